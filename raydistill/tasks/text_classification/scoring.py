"""What a classifier is worth on labelled rows, under many weightings of them at once.

Metric names: ``accuracy``, ``{macro,micro,weighted}_{precision,recall,f1}``, ``auc`` (one class against the rest, mean
over the classes that have rows), ``mcc``, ``log_loss`` (nats), ``calibration_error`` (expected, 15 bins of equal
width). Averages go over the classes that occur in the labels or the predictions, scikit-learn's default.

The intervals need every metric a thousand times: 15 s a model through scikit-learn. So ``weighted`` computes them for
a block of resamples at once from counts (1,500 rows, 1,000 resamples: 0.02 s for 2 classes, 0.2 s for 30); the tests
hold each against scikit-learn's and torchmetrics' number, and the intervals against ``scipy.stats.bootstrap``.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cached_property
from itertools import permutations
from typing import Any

import numpy as np

from raydistill.errors import DataError
from raydistill.tasks.scores import Floor, Scores, fit_rows
from raydistill.tasks.statistics import (
    average_precision,
    averages,
    divide,
    label_counts,
    label_table,
    mean_of,
    weighted_auc,
)
from raydistill.tasks.targets import Array

NUM_BINS = 15
MOST_PAIRED = 100
"""Classes each of which is compared with each other one: of 400 these are 160,000 numbers, 3.2 MB a model."""


def probabilities(logits: Array) -> Array:
    """Softmax in double precision; (N, C) -> (N, C)."""
    from scipy.special import softmax

    return np.asarray(softmax(np.asarray(logits, dtype=np.float64), axis=1))


def mean_logits(logits: Sequence[Array], weights: Sequence[float] | None = None) -> Array:
    """Logarithms (N, C) of the mean of the probabilities of several logits (K, N, C), in their precision; ``weights``:
    of any sum, by default equal ones."""
    from scipy.special import log_softmax, logsumexp

    factors = np.ones(len(logits)) if weights is None else np.asarray(weights, np.float64)
    known = log_softmax(np.asarray(logits, np.float64), axis=2)
    return np.asarray(logsumexp(known, axis=0, b=(factors / factors.sum())[:, None, None]), logits[0].dtype)


def _bins(confidence: Array) -> Array:
    """Bin of each confidence as torchmetrics puts it: single precision, a border belongs to the bin above it."""
    borders = np.linspace(0, 1, NUM_BINS + 1, dtype=np.float32)
    return np.searchsorted(borders, confidence.astype(np.float32), side="right") - 1


class ClassScores(Scores):
    """A classifier's logits (N, C) on rows with labels (N,) in 0 ... C-1."""

    # with one label a row the micro averages are the accuracy
    share_metrics = frozenset({"accuracy", "micro_precision", "micro_recall", "micro_f1"})

    def __init__(self, logits: Array, labels: Array, names: Sequence[str]) -> None:
        fit_rows(logits, labels)
        if labels.min() < 0 or labels.max() >= logits.shape[1]:
            raise DataError(
                f"Metrics need labels in 0 ... {logits.shape[1] - 1}, but they lie in {labels.min()} ... "
                f"{labels.max()}. Give validation and test rows labels of the classes in task.labels."
            )
        self.num_rows = len(labels)
        self.logits, self.labels, self.names = logits, labels, names
        self.predictions = logits.argmax(axis=1)
        self.right = self.predictions == labels
        self.num_classes = logits.shape[1]

    def floor(self) -> Floor:
        """Always giving the most frequent label."""
        counts = np.bincount(self.labels)
        answer = f'always answering "{self.names[int(counts.argmax())]}"'
        given = np.unique(self.predictions)
        constant = f'"{self.names[given[0]]}"' if len(given) == 1 else None
        return Floor("accuracy", float(counts.max() / counts.sum()), answer, constant, ("mcc", 0.0))

    def details(self) -> dict[str, Any]:
        """``per_class``; ``confusion``, row counts [label][prediction]; ``reliability``;
        ``pairwise_pr_auc``, where classes are few enough."""
        table = np.zeros((self.num_classes, self.num_classes), int)
        np.add.at(table, (self.labels, self.predictions), 1)
        per_class = label_table(self.names, *self._given)
        pairs = {"pairwise_pr_auc": self.pairwise_pr_auc()} if self.num_classes <= MOST_PAIRED else {}
        return {"per_class": per_class, "confusion": table.tolist(), "reliability": self.reliability(), **pairs}

    def pairwise_pr_auc(self) -> list[list[float | None]]:
        """How well class i is told from class j, [i][j]: the average precision of p_i / (p_i + p_j) on the rows of
        these two classes, those of i being positive; None where i = j or one of them has no row.

        77 classes and 3,000 rows take 0.3 s, 5.9 s through scikit-learn.
        """
        classes = range(self.num_classes)
        found: list[list[float | None]] = [[None for _ in classes] for _ in classes]
        rows = [np.flatnonzero(self.labels == c) for c in classes]
        for i, j in permutations(classes, 2):
            if len(rows[i]) and len(rows[j]):
                both = np.concatenate([rows[i], rows[j]])
                margin = self.logits[both, i] - self.logits[both, j]  # orders rows as the probabilities do
                found[i][j] = average_precision(margin, np.arange(len(both)) < len(rows[i]))
        return found

    def reliability(self) -> list[dict[str, Any]]:
        """The bins behind ``calibration_error``: mean confidence, accuracy and number of rows; no empty ones."""
        confidence, right = self._probs.max(axis=1), self.predictions == self.labels
        bins = _bins(confidence)
        return [
            {"confidence": float(confidence[m].mean()), "accuracy": float(right[m].mean()), "rows": int(m.sum())}
            for m in (bins == b for b in np.unique(bins))
        ]

    def weighted(self, weights: Array, wanted: Collection[str] | None = None) -> dict[str, Array]:
        total = weights.sum(axis=0, dtype=np.float64)
        hits, support, predicted = label_counts(*self._given, weights)
        present = (support + predicted) > 0
        values = {"accuracy": hits.sum(axis=0) / total, **averages(hits, support, predicted, present)}
        skip_auc = wanted is not None and "auc" not in wanted
        values["auc"] = np.full(weights.shape[1], np.nan) if skip_auc else self._weighted_auc(weights)
        values["mcc"] = _mcc(hits, support, predicted, total)
        values["log_loss"] = (self._nats @ weights) / total
        values["calibration_error"] = np.abs(self._gaps @ weights).sum(axis=0) / total
        return values

    @cached_property
    def _given(self) -> tuple[Array, Array]:
        """Which row has, and is given, which class: (C, N) each."""
        classes = np.arange(self.num_classes)[:, None]
        return (classes == self.labels).astype(np.float32), (classes == self.predictions).astype(np.float32)

    @cached_property
    def _probs(self) -> Array:
        return probabilities(self.logits)

    @cached_property
    def _nats(self) -> Array:
        chosen = self._probs[np.arange(len(self.labels)), self.labels]
        tiny = np.finfo(np.float64).eps  # scikit-learn clips here
        return -np.log(np.clip(chosen, tiny, 1.0)).astype(np.float32)

    @cached_property
    def _gaps(self) -> Array:
        """Right minus confidence of each row, in its bin: (bins, N)."""
        confidence = self._probs.max(axis=1)
        gaps = (self.right - confidence).astype(np.float32)
        return gaps * (_bins(confidence) == np.arange(NUM_BINS + 1)[:, None])

    def _weighted_auc(self, weights: Array) -> Array:
        classes = [1] if self.num_classes == 2 else np.unique(self.labels)
        return mean_of(np.stack([weighted_auc(self._probs[:, c], self.labels == c, weights) for c in classes]))


def _mcc(hits: Array, support: Array, predicted: Array, total: Array) -> Array:
    """Matthews correlation for C classes (Gorodkin 2004), 0 where one side is constant, as in scikit-learn."""
    covariance = hits.sum(axis=0) * total - (support * predicted).sum(axis=0)
    spread = (total**2 - (support**2).sum(axis=0)) * (total**2 - (predicted**2).sum(axis=0))
    return divide(covariance, np.sqrt(spread))
