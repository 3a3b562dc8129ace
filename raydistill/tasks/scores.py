"""What a model's outputs are worth on labelled rows: the interface of every task's metrics."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raydistill.errors import DataError, ModelError
from raydistill.tasks.targets import Array


@dataclass(frozen=True)
class Floor:
    """What a model reaches that does not look at its input, and why one counts as no better."""

    metric: str
    value: float
    answer: str
    """What such a model does, for people: ``always answering "pos"``."""
    constant: str | None
    """What it answers for every row, for people, where the model has a single answer; else None."""
    evidence: tuple[str, float]
    """A metric than whose value a model is better that has learned something all the same."""


def fit_rows(outputs: Array, targets: Array) -> None:
    """Refuse outputs from which nothing can be computed: ModelError for what is not finite or does not fit."""
    if outputs.ndim != 2 or len(outputs) != len(targets) or not len(targets):
        raise (ModelError if len(targets) else DataError)(
            f"Outputs of shape {outputs.shape} do not fit {len(targets)} labelled rows. Check that model and data were "
            "prepared for the same task, and that validation and test rows have labels."
        )
    if not np.isfinite(outputs).all():
        rows = int((~np.isfinite(outputs).all(axis=1)).sum())
        raise ModelError(
            f"The model's logits are not finite in {rows} of {len(outputs)} rows: its training has diverged. "
            "Lower the stage's learning_rate, or set train.dtype to float32."
        )


class Scores(ABC):
    """One model's outputs on labelled rows."""

    num_rows: int
    right: NDArray[np.bool_] | None = None
    """Which rows (N,) are answered rightly, where an answer is right or wrong: of metrics that are their share,
    ``share_metrics``, intervals are then known better than the bootstrap gives them."""
    share_metrics: frozenset[str] = frozenset()

    @cached_property
    def values(self) -> dict[str, float]:
        """Every metric of the task; NaN where it is not defined on these rows."""
        return {name: float(found[0]) for name, found in self.weighted(np.ones((self.num_rows, 1))).items()}

    @abstractmethod
    def weighted(self, weights: Array, wanted: Collection[str] | None = None) -> dict[str, Array]:
        """Metrics under many weightings of the rows at once: weights (N, S) -> metric -> (S,).

        Those that are not ``wanted`` may be left out, which spares the slow ones.
        """

    @abstractmethod
    def floor(self) -> Floor:
        """What a model reaches on these rows without looking at them."""

    def details(self) -> dict[str, Any]:
        """More of the model than its metrics, for results.json and the pages; plain JSON types."""
        return {}
