"""Multi-label classification: any number of labels a row, each a decision of its own with its own threshold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa

from raydistill.config import tasks as config
from raydistill.errors import DataError, did_you_mean
from raydistill.tasks.base import Read, Task
from raydistill.tasks.linear import Linear, fit_labels
from raydistill.tasks.multi_label import reading
from raydistill.tasks.multi_label.scoring import LabelScores, mean_logits, probabilities
from raydistill.tasks.multi_label.thresholds import choose_thresholds
from raydistill.tasks.targets import Array, Targets, shown
from raydistill.tasks.text_classification.classes import class_summary, look_alikes
from raydistill.tasks.text_classification.reading import known_places

if TYPE_CHECKING:
    from torch import Tensor

NO_LABEL = "none of the labels"


class MultiLabelClassification(Task):
    """Targets are 0 or 1 for each label, (N, L) int8; outputs their logits. ``thresholds``: probabilities from which
    on a label is given, 0.5 where none were chosen."""

    type = "multi_label_classification"
    kind = "bernoulli"
    Settings = config.MultiLabelClassification
    problem_type = "multi_label_classification"
    label_columns = ("labels", "label", "tags", "categories", "topics", "targets")
    pipeline_options = "top_k=None"
    pipeline_note = "A row has the labels whose score reaches their threshold; the thresholds are in config.json."
    about = "text classifier with {count} labels, any number of them a row"
    limit = "It knows no other labels than these: {names}."
    guessing = "no better than always giving the same labels"
    strata_words = "labels"
    linear = "logistic regression"
    is_fitted = True

    def __init__(self, outputs: Sequence[str], thresholds: Sequence[float] | None = None) -> None:
        self.outputs = tuple(outputs)
        self.thresholds = np.full(len(self.outputs), 0.5) if thresholds is None else np.asarray(thresholds)

    @classmethod
    def column(
        cls, settings: config.MultiLabelClassification, column: pa.ChunkedArray, what: str, names: Sequence[str] | None
    ) -> pa.ChunkedArray:
        """A list of names for each row, see ``reading``."""
        return reading.label_lists(settings, column, what, names)

    @classmethod
    def is_target(cls, cells: Sequence[Any]) -> bool:
        """Lists of names or numbers; what a cell of text means nobody can tell."""
        lists = [cell for cell in cells if isinstance(cell, list)]
        return bool(lists) and not any(isinstance(item, list | dict) for cell in lists for item in cell)

    @classmethod
    def is_told_by(cls, chosen: Mapping[str, str], cells: Mapping[str, Sequence[Any]]) -> bool:
        return cls.is_target(cells[chosen["label"]]) and not any(isinstance(c, list) for c in cells[chosen["text"]])

    @classmethod
    def read(
        cls,
        settings: config.MultiLabelClassification,
        columns: Mapping[str, pa.ChunkedArray],
        names: tuple[str, ...] | None,
    ) -> Read:
        rows = {split: column.to_pylist() for split, column in columns.items()}
        seen = sorted({name for row in rows["train"] if row for name in row})
        order = settings.labels or names or tuple(seen)
        place = {name: i for i, name in enumerate(order)}
        unknown = sorted({name for found in rows.values() for row in found if row for name in row} - place.keys())
        if unknown:
            where = "task.labels" if settings.labels else "the labels of the training rows"
            raise DataError(
                f"Some rows have labels that are not among {where}: {shown(unknown)}. "
                f"{did_you_mean(unknown[0], order)} Correct them, or list all labels in task.labels."
            )
        if len(order) < 2:
            raise DataError(f"The training rows have {len(order)} different labels. Multi-label needs two or more.")
        targets = {split: _targets(found, place, len(order)) for split, found in rows.items()}
        task = cls(order)
        notes, doubts = [], []
        if absent := [name for name in order if name not in seen]:
            notes.append(f"No training row has the label {shown(absent)}.")
        if bare := int((targets["train"].labeled & ~targets["train"].values.any(axis=1)).sum()):
            notes.append(f"{bare:,} training rows have none of the labels.")
        if twins := look_alikes(order):
            doubts.append("Labels that differ in case or spaces only: " + "; ".join(map(shown, twins)) + ".")
        return Read(task, targets, notes, doubts)

    def read_for(self, column: pa.ChunkedArray, names: Sequence[str] | None) -> tuple[Targets, list[str]]:
        rows = column.to_pylist()
        seen = {name for row in rows if row for name in row}
        place, notes = known_places(seen, self.outputs, names or sorted(seen))
        return _targets(rows, place, len(self.outputs)), notes

    def translate(self, targets: Targets, other: Self) -> tuple[Targets, list[str]]:
        place, notes = known_places(other.names_in(targets), self.outputs, other.outputs)
        values = np.zeros((len(targets), len(self.outputs)), np.int8)
        for i, name in enumerate(other.outputs):
            if name in place:
                values[:, place[name]] = targets.values[:, i]
        return Targets(values, targets.labeled), notes

    @classmethod
    def of_model(cls, outputs: tuple[str, ...], settings: Mapping[str, Any]) -> Self:
        return cls(outputs, settings.get("thresholds"))

    def facts(self) -> dict[str, Any]:
        return {"type": self.type, "outputs": list(self.outputs), **self.model_settings()}

    def reordered(self, order: Sequence[int]) -> Self:
        return type(self)([self.outputs[i] for i in order], [self.thresholds[i] for i in order])

    def model_settings(self) -> dict[str, Any]:
        return {"thresholds": self.thresholds.tolist()}

    def strata(self, targets: Targets) -> np.ndarray:
        """The rarest label of each row, so that rare ones come into every split; one more group without any."""
        frequency = targets.values[targets.labeled].sum(axis=0)
        ranks = np.argsort(np.argsort(frequency, kind="stable"))
        rows, labels = np.nonzero(targets.values)  # few a row, where (N, L) ranks are 8 bytes each
        rarest = np.full(len(targets), len(ranks))
        np.minimum.at(rarest, rows, ranks[labels])
        return np.where(targets.labeled, rarest, -1)

    def check(self, train: Targets, notes: Sequence[str]) -> None:
        if not self.names_in(train):
            raise DataError("No label is left in training without empty texts and duplicates. " + " ".join(notes))

    def counts(self, targets: Targets) -> dict[str, int]:
        found = targets.values[targets.labeled].sum(axis=0, dtype=np.int64).tolist()
        return dict(zip(self.outputs, found, strict=True))

    def blank(self, num_rows: int) -> Targets:
        return Targets(np.zeros((num_rows, len(self.outputs)), np.int8), np.ones(num_rows, bool))

    def summary(self, train: Targets) -> str:
        mean = train.values[train.labeled].sum(axis=1).mean()
        return f"{class_summary(self.counts(train), 'labels')}; {mean:.1f} a row"

    def loss_values(
        self,
        outputs: Tensor,
        targets: Tensor,
        class_weights: Tensor | None = None,
        label_smoothing: float = 0.0,
    ) -> Tensor:
        """Binary cross entropy, the mean over the labels.

        ``class_weights`` (L,): of the rows that have a label, torch's ``pos_weight``. Smoothing by ε makes 1 - ε/2 of a
        yes and ε/2 of a no.
        """
        from torch.nn.functional import binary_cross_entropy_with_logits

        soft = targets.float() * (1 - label_smoothing) + label_smoothing / 2
        found = binary_cross_entropy_with_logits(outputs.float(), soft, reduction="none", pos_weight=class_weights)
        return found.mean(-1)

    def balanced_weights(self, targets: Targets) -> Array:
        """Rows without the label ÷ rows with it, so that both count as much; 1 for a label that all have, or none."""
        counts, num_rows = np.array(list(self.counts(targets).values())), int(targets.labeled.sum())
        return np.where((counts > 0) & (counts < num_rows), (num_rows - counts) / np.maximum(counts, 1), 1.0)

    def fit_linear(self, features: Any, targets: Array, strength: float) -> Linear:
        return fit_labels(features, targets, strength)

    def averaged(self, outputs: Sequence[Array], weights: Sequence[float] | None = None) -> Array:
        """The logits of the mean probabilities."""
        return outputs[0] if len(outputs) == 1 else mean_logits(outputs, weights)

    def scores(self, outputs: Array, targets: Array) -> LabelScores:
        return LabelScores(outputs, targets, self)

    def fitted(self, outputs: Array, targets: Array) -> Self:
        """With a threshold for each label, chosen on these rows."""
        return type(self)(self.outputs, choose_thresholds(probabilities(outputs), targets).tolist())

    def decide(self, outputs: Array) -> Array:
        """Which labels are given, (N, L) bool."""
        return probabilities(outputs) >= self.thresholds

    def distance(self, outputs: Array) -> Array:
        """How far each probability lies from its threshold."""
        return np.abs(probabilities(outputs) - self.thresholds)

    def agreement(self, a: Array, b: Array, other: Task | None = None) -> float:
        """Share of the decisions, a row and label each, that two models share."""
        return float((self.decide(a) == (other or self).decide(b)).mean())  # type: ignore[attr-defined]

    def disagreements(self, a: Array, b: Array, other: Task | None = None) -> Array:
        second: Any = other or self
        sure = np.minimum(self.distance(a), second.distance(b))
        return np.where(self.decide(a) != second.decide(b), sure, 0.0).max(axis=1)

    def errors(self, outputs: Array, targets: Array) -> Array:
        return np.where(self.decide(outputs) != targets, self.distance(outputs), 0.0).max(axis=1)

    def answers(self, outputs: Array) -> list[dict[str, Any]]:
        """``labels``, a list, and ``scores``, the probabilities of all labels."""
        return [
            {"labels": self._named(given), "scores": dict(zip(self.outputs, row.tolist(), strict=True))}
            for row, given in zip(probabilities(outputs), self.decide(outputs), strict=True)
        ]

    @property
    def answer_columns(self) -> tuple[str, ...]:
        return ("labels", "scores")

    def _named(self, given: Array) -> list[str]:
        return [name for name, is_given in zip(self.outputs, given, strict=True) if is_given]

    def spoken(self, outputs: Array) -> list[tuple[str, float | None]]:
        """How sure: the least sure decision."""
        probs = probabilities(outputs)
        sure = np.maximum(probs, 1 - probs).min(axis=1)
        return [(self.spoken_target(row), float(s)) for row, s in zip(self.decide(outputs), sure, strict=True)]

    def spoken_target(self, target: Any) -> str:
        return ", ".join(self._named(target)) or NO_LABEL


def _targets(rows: Sequence[Sequence[str] | None], place: Mapping[str, int], num_outputs: int) -> Targets:
    """``place``: the output of each label."""
    values = np.zeros((len(rows), num_outputs), np.int8)
    for i, row in enumerate(rows):
        values[i, [place[name] for name in row or ()]] = 1
    return Targets(values, np.array([row is not None for row in rows], bool))
