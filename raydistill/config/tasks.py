"""The ``task`` section: what is to be predicted."""

from __future__ import annotations

from typing import Literal

from raydistill.config.section import Mistake, Section


class TextClassification(Section):
    """One class a row."""

    type: Literal["text_classification"] = "text_classification"
    labels: tuple[str, ...] | None = None
    """Class names in the order of the logits; by default taken from the data, sorted."""

    def mistakes(self) -> list[Mistake]:
        if self.labels is None:
            return []
        if len(self.labels) < 2:
            return [(("labels",), f"needs two classes or more, got {len(self.labels)}.")]
        twice = sorted({label for label in self.labels if self.labels.count(label) > 1})
        return [(("labels",), f"names {', '.join(map(repr, twice))} twice.")] if twice else []


Task = TextClassification

Metric = Literal["accuracy", "macro_f1", "mcc", "log_loss"]
