"""Text regression: a number a row. Models are trained in standard units, and saved to answer in the target's own."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa

from raydistill.config import tasks as config
from raydistill.errors import DataError
from raydistill.tasks.base import Read, Task
from raydistill.tasks.linear import Linear, fit_numbers
from raydistill.tasks.numbers import NUMBER, as_numbers, group_means, no_numbers, tenths
from raydistill.tasks.scores import Floor, Scores, fit_rows
from raydistill.tasks.statistics import weighted_pearson, weighted_ranks
from raydistill.tasks.targets import Array, Targets, decoded, is_string, none_if_empty

if TYPE_CHECKING:
    from torch import Tensor

FEW_VALUES = 3
"""A target of so few different values is rather a class."""
MANY_VALUES = 50
"""So many different ones are hardly numbers of classes, unless their column says so."""
MAX_POINTS = 500
"""Rows of a report's picture of outputs against targets."""


class TextRegression(Task):
    """Targets are numbers (N,) float64; the one output is in the same unit, and in standard units while training."""

    type = "text_regression"
    kind = "value"
    Settings = config.TextRegression
    problem_type = "regression"
    label_columns = ("label", "labels", "score", "target", "value", "rating", "similarity_score", "stars")
    about = "model that gives a text a number"
    limit = "It gives every row a number, also a row of which that makes no sense."
    guessing = "no better than always answering the mean"
    strata_words = "ranges of the target"
    joined_words = "their number is the mean"
    linear = "ridge regression"

    def __init__(self, center: float = 0.0, scale: float = 1.0, outputs: Sequence[str] = ("value",)) -> None:
        self.outputs, self.output_scale = tuple(outputs), (center, scale)

    @classmethod
    def column(cls, settings: Any, column: pa.ChunkedArray, what: str, names: Sequence[str] | None) -> pa.ChunkedArray:
        column = decoded(column)
        if names is not None or pa.types.is_boolean(column.type) or pa.types.is_nested(column.type):
            raise DataError(f"{what} holds classes or lists, not numbers. Name another.")
        if is_string(column.type):
            column = none_if_empty(column)
            wrong = column.filter(pa.array(no_numbers(column)))
            if len(wrong):
                raise DataError(
                    f"{what} holds {wrong[0].as_py()[:50]!r}, which is no number ({len(wrong):,} rows). Write numbers "
                    "with a decimal point, or leave the cell empty."
                )
        return as_numbers(column, f"{what} holds")

    @classmethod
    def is_target(cls, cells: Sequence[Any]) -> bool:
        """Many different numbers."""
        known = [str(cell).strip() for cell in cells if cell is not None and str(cell).strip()]
        return len(set(known)) > FEW_VALUES and all(NUMBER.fullmatch(cell) for cell in known)

    @classmethod
    def is_told_by(cls, chosen: Mapping[str, str], cells: Mapping[str, Sequence[Any]]) -> bool:
        """Numbers with fractions; or many whole ones that do not rise from row to row, as numbers of rows do, in a
        column that is not called as one of classes."""
        label = chosen["label"]
        if not cls.is_target(cells[label]):
            return False
        known = [float(cell) for cell in cells[label] if cell is not None and str(cell).strip()]
        is_mixed = len(set(known)) > MANY_VALUES and any(a > b for a, b in pairwise(known))
        return any(number % 1 for number in known) or (is_mixed and label.lower() not in Task.label_columns)

    @classmethod
    def read(cls, settings: Any, columns: Mapping[str, pa.ChunkedArray], names: tuple[str, ...] | None) -> Read:
        targets = {split: _targets(column) for split, column in columns.items()}
        known = targets["train"].values[targets["train"].labeled]
        different = len(np.unique(known))
        if different < 2:
            had = f"only the value {known[0]:g}" if different else "no target at all"
            raise DataError(f"The training rows have {had}. Regression needs different numbers; check the column.")
        doubts = []
        if different <= FEW_VALUES:
            doubts.append(f"The target has {different} different values only: did you mean classes (task.type)?")
        return Read(cls().scaled(targets["train"]), targets, [], doubts)

    def read_for(self, column: pa.ChunkedArray, names: Sequence[str] | None) -> tuple[Targets, list[str]]:
        return _targets(column), []

    @classmethod
    def of_model(cls, outputs: tuple[str, ...], settings: Mapping[str, Any]) -> Self:
        return cls(outputs=outputs)

    def facts(self) -> dict[str, Any]:
        center, scale = self.output_scale
        return {"type": self.type, "center": center, "scale": scale, "outputs": list(self.outputs)}

    def reordered(self, order: Sequence[int]) -> Self:
        return self

    def strata(self, targets: Targets) -> np.ndarray:
        """Tenths of the labelled rows by their target."""
        found = np.full(len(targets), -1, np.int64)
        found[targets.labeled] = tenths(targets.values[targets.labeled])
        return found

    def joined(self, targets: Targets, groups: Array) -> Targets:
        """With the mean of the numbers of a group."""
        values, known = targets.values.copy(), targets.labeled
        values[known] = group_means(values[known], groups[known])
        return Targets(values, known)

    def scaled(self, train: Targets) -> Self:
        known = train.values[train.labeled]
        return type(self)(float(known.mean()), float(known.std()), self.outputs)

    def check(self, train: Targets, notes: Sequence[str]) -> None:
        if len(np.unique(train.values[train.labeled])) < 2:
            raise DataError("No two different numbers are left in training. " + " ".join(notes))

    def blank(self, num_rows: int) -> Targets:
        return Targets(np.zeros(num_rows), np.ones(num_rows, bool))

    def summary(self, train: Targets) -> str:
        known = train.values[train.labeled]
        return f"numbers from {known.min():g} to {known.max():g}, mean {known.mean():.4g}, deviation {known.std():.4g}"

    def loss_values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Squared error in standard units."""
        center, scale = self.output_scale
        return (outputs.float()[:, 0] - (targets - center).float() / scale).square()

    def fit_linear(self, features: Any, targets: Array, strength: float) -> Linear:
        return fit_numbers(features, targets, strength)

    def scores(self, outputs: Array, targets: Array) -> RegressionScores:
        return RegressionScores(outputs, targets)

    def unit(self, outputs: Array) -> float:
        """The outputs' own deviation."""
        return float(np.std(outputs)) or 1.0

    def agreement(self, a: Array, b: Array, other: Task | None = None) -> float:
        """Pearson's correlation of two models' outputs."""
        return _pearson(a[:, 0], b[:, 0])

    def disagreements(self, a: Array, b: Array, other: Task | None = None) -> Array:
        return np.abs(a[:, 0] - b[:, 0])

    def errors(self, outputs: Array, targets: Array) -> Array:
        return np.abs(outputs[:, 0] - targets)

    def answers(self, outputs: Array) -> list[dict[str, Any]]:
        return [{"value": float(value)} for value in outputs[:, 0]]

    @property
    def answer_columns(self) -> tuple[str, ...]:
        return ("value",)

    def spoken(self, outputs: Array) -> list[tuple[str, float | None]]:
        return [(f"{value:.4g}", None) for value in outputs[:, 0]]

    def spoken_target(self, target: Any) -> str:
        return f"{float(target):.4g}"


class RegressionScores(Scores):
    """A model's outputs (N, 1) on rows with targets (N,). Correlations are 0 where one side is constant."""

    def __init__(self, outputs: Array, targets: Array) -> None:
        fit_rows(outputs, targets)
        self.num_rows = len(targets)
        self.outputs, self.targets = outputs[:, 0].astype(np.float64), targets.astype(np.float64)

    def weighted(self, weights: Array, wanted: Collection[str] | None = None) -> dict[str, Array]:
        total = weights.sum(axis=0, dtype=np.float64)
        error = (self.outputs - self.targets).astype(np.float64)
        squared = (error**2) @ weights
        around = self.targets - self.targets.mean()  # else targets far from 0 lose their digits in the squares
        size = (around**2) @ weights
        spread = size - (around @ weights) ** 2 / total
        values = {"rmse": np.sqrt(squared / total), "mae": np.abs(error) @ weights / total}
        with np.errstate(invalid="ignore", divide="ignore"):
            values["r2"] = np.where(spread > 1e-12 * size, 1 - squared / spread, np.nan)
        values["pearson"] = np.nan_to_num(weighted_pearson(self.outputs, self.targets, weights))
        if wanted is None or "spearman" in wanted:
            own, wanted_ranks = (weighted_ranks(side, weights) for side in (self.outputs, self.targets))
            values["spearman"] = np.nan_to_num(weighted_pearson(own, wanted_ranks, weights))
        return values

    def floor(self) -> Floor:
        constant = f"{self.outputs[0]:.4g}" if not np.ptp(self.outputs) else None
        return Floor("r2", 0.0, f"always answering the mean, {self.targets.mean():.4g}", constant, ("pearson", 0.0))

    def details(self) -> dict[str, Any]:
        """``scatter``: pairs [target, output] of up to 500 rows, over the whole range of the target."""
        order = np.argsort(self.targets, kind="stable")
        rows = order[np.linspace(0, len(order) - 1, min(MAX_POINTS, len(order))).astype(int)]
        return {"scatter": np.stack([self.targets[rows], self.outputs[rows]], axis=1).tolist()}


def _targets(column: pa.ChunkedArray) -> Targets:
    return Targets(column.cast(pa.float64()).fill_null(0).to_numpy(), column.is_valid().to_numpy())


def _pearson(a: Array, b: Array) -> float:
    from scipy.stats import pearsonr

    return float(pearsonr(a, b).statistic) if np.ptp(a) and np.ptp(b) else 0.0
