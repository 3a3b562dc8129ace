"""What a model that gives several labels a row is worth, under many weightings of the rows at once."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from raydistill.tasks.scores import Floor, Scores, fit_rows
from raydistill.tasks.statistics import averages, label_counts, label_table, mean_of, weighted_auc
from raydistill.tasks.targets import Array


class LabelScores(Scores):
    """A model's logits (N, L) on rows with targets (N, L)."""

    share_metrics = frozenset({"exact_match"})

    def __init__(self, outputs: Array, targets: Array, task: Any) -> None:
        """``task``: with the thresholds that the model goes by."""
        fit_rows(outputs, targets)
        self.num_rows = len(targets)
        self.task, self.targets, self.probs = task, targets, probabilities(outputs)
        self.given = task.decide(outputs)
        self.right: Array = (self.given == targets).all(axis=1)

    @cached_property
    def _nats(self) -> Array:
        """Binary cross entropy of each row, the mean over the labels."""
        tiny = np.finfo(np.float64).eps
        chosen = np.clip(np.where(self.targets > 0, self.probs, 1 - self.probs), tiny, 1.0)
        return -np.log(chosen).mean(axis=1)

    def weighted(self, weights: Array, wanted: Collection[str] | None = None) -> dict[str, Array]:
        total = weights.sum(axis=0, dtype=np.float64)
        counts = label_counts(*self._given, weights)
        values = {
            "exact_match": self.right.astype(np.float64) @ weights / total,
            "log_loss": self._nats @ weights / total,
            **averages(*counts, np.ones_like(counts[0])),
        }
        if wanted is None or "auc" in wanted:
            values["auc"] = mean_of(self.label_auc(weights))
        return values

    def label_auc(self, weights: Array) -> Array:
        """AUC of each label, (L, S); NaN where all rows of a resample have it, or none."""
        return np.stack(
            [weighted_auc(self.probs[:, i], column > 0, weights) for i, column in enumerate(self.targets.T)]
        )

    @cached_property
    def _given(self) -> tuple[Array, Array]:
        """Which row has, and is given, which label: (L, N) each."""
        return self.targets.T.astype(np.float32), self.given.T.astype(np.float32)

    def floor(self) -> Floor:
        """Always giving the most frequent labels, as many as have the best micro F1."""
        counts = self.targets.sum(axis=0, dtype=np.int64)
        order = np.argsort(-counts, kind="stable")
        reached = 2 * counts[order].cumsum() / (np.arange(1, len(order) + 1) * len(self.targets) + max(counts.sum(), 1))
        best = np.zeros(len(order), bool)
        best[order[: reached.argmax() + 1]] = True
        constant = self.task.spoken_target(self.given[0]) if (self.given == self.given[0]).all() else None
        answer = f"always giving {self.task.spoken_target(best)}"
        return Floor("micro_f1", float(reached.max()), answer, constant, ("auc", 0.5))

    def details(self) -> dict[str, Any]:
        """``per_class``: a label each, with its AUC and threshold."""
        found = self.label_auc(np.ones((self.num_rows, 1)))[:, 0]
        auc = [None if np.isnan(own) else float(own) for own in found]
        table = zip(label_table(self.task.outputs, *self._given), auc, self.task.thresholds, strict=True)
        return {"per_class": [entry | {"auc": own, "threshold": threshold} for entry, own, threshold in table]}


def probabilities(outputs: Array) -> Array:
    """Sigmoid in double precision, (N, L)."""
    from scipy.special import expit

    return np.asarray(expit(np.asarray(outputs, np.float64)))


def mean_logits(outputs: Sequence[Array], weights: Sequence[float] | None = None) -> Array:
    """Logits (N, L) of the mean of the probabilities of several ones (K, N, L), in their precision; ``weights``: of any
    sum, by default equal ones."""
    from scipy.special import log_expit, logsumexp

    stacked = np.asarray(outputs, np.float64)
    factors = np.ones((len(stacked), 1, 1)) if weights is None else np.asarray(weights, np.float64)[:, None, None]
    found = logsumexp(log_expit(stacked), axis=0, b=factors) - logsumexp(log_expit(-stacked), axis=0, b=factors)
    return np.asarray(found, outputs[0].dtype)
