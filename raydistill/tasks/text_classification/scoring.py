"""What a classifier is worth on labelled rows: metrics from kept libraries, and under many weightings of the rows.

Metric names: ``accuracy``, ``{macro,micro,weighted}_{precision,recall,f1}``, ``auc`` (one class against the rest, mean
over the classes), ``mcc``, ``log_loss`` (nats), ``calibration_error`` (expected, 15 bins of equal width). Averages go
over the classes that occur in the labels or the predictions, scikit-learn's default.

The intervals need every metric a thousand times: 15 s a model through scikit-learn. So ``weighted`` computes them for
a block of resamples at once from counts (1,500 rows, 1,000 resamples: 0.02 s for 2 classes, 0.2 s for 30); the tests
hold each against the library's number on the resampled rows, and the intervals against ``scipy.stats.bootstrap``.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from raydistill.errors import DataError
from raydistill.tasks.scores import Floor, Scores, fit_rows
from raydistill.tasks.statistics import divide, mcnemar, weighted_auc
from raydistill.tasks.targets import Array

AVERAGES = ("macro", "micro", "weighted")
METRICS = (
    "accuracy",
    *(f"{average}_{name}" for average in AVERAGES for name in ("precision", "recall", "f1")),
    "auc",
    "mcc",
    "log_loss",
    "calibration_error",
)
NUM_BINS = 15


def check_rows(logits: Array, labels: Array) -> None:
    """Refuse what no metric can be computed from; logits (N, C), labels (N,) in 0 ... C-1. DataError, ModelError."""
    fit_rows(logits, labels)
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise DataError(
            f"Metrics need labels in 0 ... {logits.shape[1] - 1}, but they lie in {labels.min()} ... {labels.max()}. "
            "Give validation and test rows labels of the classes in task.labels."
        )


def probabilities(logits: Array) -> Array:
    """Softmax in double precision; (N, C) -> (N, C)."""
    from scipy.special import softmax

    return np.asarray(softmax(np.asarray(logits, dtype=np.float64), axis=1))


def classification_metrics(logits: Array, labels: Array) -> dict[str, float]:
    """All of METRICS for logits (N, C) and labels (N,); ``auc`` is NaN when a class is absent from the labels."""
    from sklearn.metrics import accuracy_score, log_loss, matthews_corrcoef, precision_recall_fscore_support

    check_rows(logits, labels)
    probs, predictions, num_classes = probabilities(logits), logits.argmax(axis=1), logits.shape[1]
    values = {"accuracy": float(accuracy_score(labels, predictions))}
    for average in AVERAGES:
        scores = precision_recall_fscore_support(labels, predictions, average=average, zero_division=0)
        values |= {
            f"{average}_{name}": float(v) for name, v in zip(("precision", "recall", "f1"), scores, strict=False)
        }
    values["auc"] = _auc(probs, labels)
    values["mcc"] = float(matthews_corrcoef(labels, predictions))
    values["log_loss"] = float(log_loss(labels, probs, labels=range(num_classes)))
    values["calibration_error"] = _calibration_error(probs, labels)
    return values


def _auc(probs: Array, labels: Array) -> float:
    from sklearn.metrics import roc_auc_score

    num_classes = probs.shape[1]
    if len(np.unique(labels)) < num_classes:
        return float("nan")
    if num_classes == 2:
        return float(roc_auc_score(labels, probs[:, 1]))
    return float(roc_auc_score(labels, probs, multi_class="ovr", average="macro", labels=range(num_classes)))


def _calibration_error(probs: Array, labels: Array) -> float:
    import torch
    from torchmetrics.functional.classification import multiclass_calibration_error

    target = torch.tensor(np.asarray(labels, dtype=np.int64))
    error = multiclass_calibration_error(torch.from_numpy(probs), target, num_classes=probs.shape[1], n_bins=NUM_BINS)
    return float(error)


def per_class(logits: Array, labels: Array, names: Sequence[str]) -> list[dict[str, Any]]:
    """One entry a class: name, precision, recall, f1, support (rows with the label), predicted (rows given it)."""
    from sklearn.metrics import precision_recall_fscore_support

    check_rows(logits, labels)
    predictions, classes = logits.argmax(axis=1), range(logits.shape[1])
    columns = precision_recall_fscore_support(labels, predictions, labels=classes, zero_division=0)
    predicted = np.bincount(predictions, minlength=logits.shape[1])
    return [
        {
            "name": name,
            "precision": float(p),
            "recall": float(r),
            "f1": float(f),
            "support": int(s),
            "predicted": int(n),
        }
        for name, p, r, f, s, n in zip(names, *columns, predicted, strict=True)
    ]


def confusion(logits: Array, labels: Array, num_classes: int) -> list[list[int]]:
    """Row counts [label][prediction]."""
    from sklearn.metrics import confusion_matrix

    check_rows(logits, labels)
    return confusion_matrix(labels, logits.argmax(axis=1), labels=range(num_classes)).tolist()


def reliability(logits: Array, labels: Array) -> list[dict[str, Any]]:
    """The bins behind ``calibration_error``: mean confidence, accuracy and number of rows; empty bins are left out."""
    confidence, hits = probabilities(logits).max(axis=1), logits.argmax(axis=1) == labels
    bins = _bins(confidence)
    return [
        {"confidence": float(confidence[m].mean()), "accuracy": float(hits[m].mean()), "rows": int(m.sum())}
        for m in (bins == b for b in np.unique(bins))
    ]


def _bins(confidence: Array) -> Array:
    """Bin of each confidence as torchmetrics puts it: single precision, a border belongs to the bin above it."""
    borders = np.linspace(0, 1, NUM_BINS + 1, dtype=np.float32)
    return np.searchsorted(borders, confidence.astype(np.float32), side="right") - 1


class ClassScores(Scores):
    """A classifier's logits (N, C) on rows with labels (N,)."""

    # with one label a row the micro averages are the accuracy
    share_metrics = frozenset({"accuracy", "micro_precision", "micro_recall", "micro_f1"})

    def __init__(self, logits: Array, labels: Array, names: Sequence[str]) -> None:
        check_rows(logits, labels)
        self.num_rows = len(labels)
        self.logits, self.labels, self.names = logits, labels, names
        self.predictions = logits.argmax(axis=1)
        self.right = self.predictions == labels
        self.num_classes = logits.shape[1]

    @cached_property
    def values(self) -> dict[str, float]:  # type: ignore[override]
        return classification_metrics(self.logits, self.labels)

    def floor(self) -> Floor:
        """Always giving the most frequent label."""
        counts = np.bincount(self.labels, minlength=self.num_classes)
        answer = f'always answering "{self.names[int(counts.argmax())]}"'
        given = np.unique(self.predictions)
        constant = f'"{self.names[given[0]]}"' if len(given) == 1 else None
        return Floor("accuracy", float(counts.max() / counts.sum()), answer, constant, ("mcc", 0.0))

    def details(self) -> dict[str, Any]:
        """``per_class``, ``confusion`` and ``reliability``."""
        return {
            "per_class": per_class(self.logits, self.labels, self.names),
            "confusion": confusion(self.logits, self.labels, self.num_classes),
            "reliability": reliability(self.logits, self.labels),
        }

    def weighted(self, weights: Array, wanted: Collection[str] | None = None) -> dict[str, Array]:
        total = weights.sum(axis=0, dtype=np.float64)
        truth, guess, both = self._counted
        support, predicted, hits = ((m @ weights).astype(np.float64) for m in (truth, guess, both))
        values = {"accuracy": hits.sum(axis=0) / total, **_averages(hits, support, predicted, total)}
        skip_auc = (wanted is not None and "auc" not in wanted) or len(np.unique(self.labels)) < self.num_classes
        values["auc"] = np.full(weights.shape[1], np.nan) if skip_auc else self._weighted_auc(weights)
        values["mcc"] = _mcc(hits, support, predicted, total)
        values["log_loss"] = (self._nats @ weights) / total
        values["calibration_error"] = np.abs(self._gaps @ weights).sum(axis=0) / total
        return values

    @cached_property
    def _counted(self) -> tuple[Array, Array, Array]:
        """Which row has, is given, and is rightly given which class: (C, N) each."""
        truth, guess = (
            (np.arange(self.num_classes)[:, None] == classes).astype(np.float32)
            for classes in (self.labels, self.predictions)
        )
        return truth, guess, truth * guess

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
        classes = [1] if self.num_classes == 2 else range(self.num_classes)
        return np.mean([weighted_auc(self._probs[:, c], self.labels == c, weights) for c in classes], axis=0)


def _averages(hits: Array, support: Array, predicted: Array, total: Array) -> dict[str, Array]:
    """Precision, recall and F1 of counts (C, S), averaged in three ways; 0 divided by 0 is 0."""
    ratios = {
        "precision": divide(hits, predicted),
        "recall": divide(hits, support),
        "f1": divide(2 * hits, support + predicted),
    }
    present = (support + predicted) > 0
    values = {}
    for name, ratio in ratios.items():
        values[f"macro_{name}"] = (ratio * present).sum(axis=0) / present.sum(axis=0)
        values[f"micro_{name}"] = hits.sum(axis=0) / total  # with one label a row all three are the accuracy
        values[f"weighted_{name}"] = (ratio * support).sum(axis=0) / total
    return values


def _mcc(hits: Array, support: Array, predicted: Array, total: Array) -> Array:
    """Matthews correlation for C classes (Gorodkin 2004), 0 where one side is constant, as in scikit-learn."""
    covariance = hits.sum(axis=0) * total - (support * predicted).sum(axis=0)
    spread = (total**2 - (support**2).sum(axis=0)) * (total**2 - (predicted**2).sum(axis=0))
    return divide(covariance, np.sqrt(spread))


def other_order(logits: Array, labels: Array) -> tuple[int, ...] | None:
    """The order in which logits (N, C) fit labels (N,) far better, where in their own they are no better than chance.

    Class i is logit ``order[i]``. None unless the accuracy is at most the share of the most frequent label, and that of
    the best order at least 20 points above it, with p < 0.001 in McNemar's test, divided by the number of orders: among
    the 3.6 million of ten classes some fit 30 rows well by luck.
    """
    from scipy.optimize import linear_sum_assignment

    predicted, num_classes = logits.argmax(axis=1), logits.shape[1]
    table = np.zeros((num_classes, num_classes))
    np.add.at(table, (labels, predicted), 1)
    keeps = np.eye(num_classes) / (2 * num_classes)  # what no row speaks about stays in its place
    order = linear_sum_assignment(table + keeps, maximize=True)[1]
    own, other = float((predicted == labels).mean()), float((predicted == order[labels]).mean())
    share = float(np.bincount(labels).max() / len(labels))
    if own > share or other - own < 0.2:
        return None
    p = mcnemar(predicted == labels, predicted == order[labels])["p"]
    if p > 0 and math.log(p) >= math.log(1e-3) - math.lgamma(num_classes + 1):
        return None
    return tuple(order.tolist())
