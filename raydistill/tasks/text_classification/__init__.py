"""Text classification: one of two or more classes a row; and all of it that holds of pictures, too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa

from raydistill.config import tasks as config
from raydistill.errors import DataError
from raydistill.tasks.base import Read, Task
from raydistill.tasks.linear import Linear, fit_classes
from raydistill.tasks.targets import Array, Targets
from raydistill.tasks.text_classification import reading, scoring
from raydistill.tasks.text_classification.classes import balanced_weights, class_summary

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Classification", "TextClassification"]


MOST_CLASSES, MOST_LETTERS = 50, 40
"""Of a column without a usual name that may be taken for classes."""


UNEQUAL = 0.7
"""Share of the largest class from which accuracy says little."""


class Classification(Task):
    """Targets are class ids (N,) int64; outputs the logits of the classes ``outputs``."""

    kind = "categorical"
    problem_type = "single_label_classification"
    limit = "It gives every row exactly one of these classes, also a row that belongs to none: {names}."
    guessing = "no better than guessing the most frequent class"
    strata_words = "classes"

    def __init__(self, outputs: Sequence[str]) -> None:
        self.outputs = tuple(outputs)

    @classmethod
    def column(cls, settings: Any, column: pa.ChunkedArray, what: str, names: Sequence[str] | None) -> pa.ChunkedArray:
        return reading.class_column(column, what, names)

    @classmethod
    def is_target(cls, cells: Sequence[Any]) -> bool:
        """A few different short words or whole numbers that come again and again."""
        known = [str(cell).strip() for cell in cells if cell is not None and str(cell).strip()]
        different = set(known)
        if any(isinstance(cell, list | dict) for cell in cells):
            return False
        return 2 <= len(different) <= min(MOST_CLASSES, len(known) // 2) and max(map(len, different)) <= MOST_LETTERS

    @classmethod
    def read(cls, settings: Any, columns: Mapping[str, pa.ChunkedArray], names: tuple[str, ...] | None) -> Read:
        outputs, ids, notes, doubts = reading.encode_labels(columns, names, settings.labels)
        return Read(cls(outputs), {split: _targets(own) for split, own in ids.items()}, notes, doubts)

    def read_for(self, column: pa.ChunkedArray, names: Sequence[str] | None) -> tuple[Targets, list[str]]:
        ids, notes = reading.encode_for(column, self.outputs, names)
        return _targets(ids), notes

    def translate(self, targets: Targets, other: Self) -> tuple[Targets, list[str]]:
        place, notes = reading.known_places(other.names_in(targets), self.outputs, other.outputs)
        ids = np.array([place.get(name, 0) for name in other.outputs])  # a class without a row may be unknown
        return Targets(ids[targets.values], targets.labeled), notes

    @classmethod
    def of_model(cls, outputs: tuple[str, ...], settings: Mapping[str, Any]) -> Self:
        return cls(outputs)

    def facts(self) -> dict[str, Any]:
        return {"type": self.type, "outputs": list(self.outputs)}

    def reordered(self, order: Sequence[int]) -> Self:
        return type(self)([self.outputs[i] for i in order])

    def strata(self, targets: Targets) -> np.ndarray:
        return np.where(targets.labeled, targets.values, -1)

    def check(self, train: Targets, notes: Sequence[str]) -> None:
        if len(self.names_in(train)) < 2:
            useless = "broken pictures" if self.reads_pictures else "empty texts"
            raise DataError(
                f"Fewer than two classes are left in training without {useless} and duplicates. " + " ".join(notes)
            )

    def counts(self, targets: Targets) -> dict[str, int]:
        found = np.bincount(targets.values[targets.labeled], minlength=len(self.outputs)).tolist()
        return dict(zip(self.outputs, found, strict=True))

    def blank(self, num_rows: int) -> Targets:
        return Targets(np.arange(num_rows) % len(self.outputs), np.ones(num_rows, bool))

    def summary(self, train: Targets) -> str:
        return class_summary(self.counts(train))

    def advised_metric(self, counts: Mapping[str, int]) -> tuple[str, str] | None:
        share = max(counts.values(), default=0) / max(sum(counts.values()), 1)
        return ("macro_f1", f"{100 * share:.0f} % are of one class") if share >= UNEQUAL else None

    def loss_values(
        self,
        outputs: Tensor,
        targets: Tensor,
        class_weights: Tensor | None = None,
        label_smoothing: float = 0.0,
    ) -> Tensor:
        """Cross entropy, weighted and smoothed as torch does."""
        from torch.nn.functional import cross_entropy

        return cross_entropy(outputs.float(), targets, class_weights, reduction="none", label_smoothing=label_smoothing)

    def balanced_weights(self, targets: Targets) -> Array:
        return balanced_weights(self.counts(targets))

    def fit_linear(self, features: Any, targets: Array, strength: float) -> Linear:
        return fit_classes(features, targets, len(self.outputs), strength)

    def averaged(self, outputs: Sequence[Array], weights: Sequence[float] | None = None) -> Array:
        """The logarithms of the mean probabilities."""
        return outputs[0] if len(outputs) == 1 else scoring.mean_logits(outputs, weights)

    def scores(self, outputs: Array, targets: Array) -> scoring.ClassScores:
        return scoring.ClassScores(outputs, targets, self.outputs)

    def agreement(self, a: Array, b: Array, other: Task | None = None) -> float:
        """Share of the rows for which two models name the same class."""
        return float((a.argmax(axis=1) == b.argmax(axis=1)).mean())

    def disagreements(self, a: Array, b: Array, other: Task | None = None) -> Array:
        """The smaller one of the probabilities that each gives its own class: their product would put a sure model
        beside a guessing one above two that are fairly sure."""
        sure = np.minimum(*(scoring.probabilities(outputs).max(axis=1) for outputs in (a, b)))
        return np.where(a.argmax(axis=1) != b.argmax(axis=1), sure, 0.0)

    def errors(self, outputs: Array, targets: Array) -> Array:
        return np.where(outputs.argmax(axis=1) != targets, scoring.probabilities(outputs).max(axis=1), 0.0)

    def answers(self, outputs: Array) -> list[dict[str, Any]]:
        """``label``, ``score``, its probability, and ``scores``, those of all classes."""
        return [
            {
                "label": self.outputs[row.argmax()],
                "score": float(row.max()),
                "scores": dict(zip(self.outputs, row.tolist(), strict=True)),
            }
            for row in scoring.probabilities(outputs)
        ]

    @property
    def answer_columns(self) -> tuple[str, ...]:
        return ("label", "score", "scores")

    def spoken(self, outputs: Array) -> list[tuple[str, float | None]]:
        return [(self.outputs[row.argmax()], float(row.max())) for row in scoring.probabilities(outputs)]

    def spoken_target(self, target: Any) -> str:
        return self.outputs[int(target)]


class TextClassification(Classification):
    """One class a text."""

    type = "text_classification"
    Settings = config.TextClassification
    about = "text classifier with {count} classes"
    linear = "logistic regression"


def _targets(ids: Array) -> Targets:
    return Targets(np.maximum(ids, 0), ids >= 0)
