"""What a classifier is worth on labelled rows: metrics from kept libraries, and their bootstrap samples.

Metric names: ``accuracy``, ``{macro,micro,weighted}_{precision,recall,f1}``, ``auc`` (one class against the rest, mean
over the classes), ``mcc``, ``log_loss`` (nats), ``calibration_error`` (expected, 15 bins of equal width). Averages go
over the classes that occur in the labels or the predictions, scikit-learn's default.

The intervals need every metric a thousand times: 15 s a model through scikit-learn. So ``bootstrap`` computes them for
a block of resamples at once from counts (1,500 rows, 1,000 resamples: 0.02 s for 2 classes, 0.2 s for 30); the tests
hold each against the library's number on the resampled rows, and the intervals against ``scipy.stats.bootstrap``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raydistill.errors import DataError, ModelError

Array = NDArray[Any]

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
LEVEL = 0.95
# Weights of a block of resamples, 4 bytes each: 1 MB stays in the cache of a core, 3x faster than one big block.
BLOCK_ELEMENTS = 250_000


def check_rows(logits: Array, labels: Array) -> None:
    """Refuse what no metric can be computed from; logits (N, C), labels (N,) in 0 ... C-1.

    Raises DataError for labels, ModelError for logits.
    """
    if logits.ndim != 2 or len(logits) != len(labels) or logits.shape[1] < 2:
        raise ModelError(
            f"Logits of shape {logits.shape} do not fit {len(labels)} labels: a row of at least two logits is needed "
            "for each label. Check that model and data were prepared for the same task."
        )
    if len(labels) == 0 or labels.min() < 0 or labels.max() >= logits.shape[1]:
        found = f"they lie in {labels.min()} ... {labels.max()}" if len(labels) else "there is no labelled row"
        raise DataError(
            f"Metrics need labels in 0 ... {logits.shape[1] - 1}, but {found}. Give validation and test rows labels "
            "of the classes in task.labels."
        )
    if not np.isfinite(logits).all():
        rows = int((~np.isfinite(logits).all(axis=1)).sum())
        raise ModelError(
            f"The model's logits are not finite in {rows} of {len(logits)} rows: its training has diverged. "
            "Lower the stage's learning_rate, or set train.dtype to float32."
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


def resample(example_ids: Array, num_samples: int, seed: int) -> Iterator[Array]:
    """Blocks of bootstrap weights (N, samples): how often each row was drawn, all rows of one example together."""
    rng = np.random.default_rng(seed)
    _, example = np.unique(example_ids, return_inverse=True)
    num_examples = int(example.max()) + 1
    size = max(1, BLOCK_ELEMENTS // len(example_ids))
    for first in range(0, num_samples, size):
        count = min(size, num_samples - first)
        drawn = rng.integers(0, num_examples, (count, num_examples))
        flat = (drawn + num_examples * np.arange(count)[:, None]).ravel()
        weights = np.bincount(flat, minlength=count * num_examples).reshape(count, num_examples)
        yield np.ascontiguousarray(weights.T[example], dtype=np.float32)


class WeightedMetrics:
    """METRICS of one model's rows under many weightings at once; logits (N, C), labels (N,)."""

    def __init__(self, logits: Array, labels: Array, auc: bool = True) -> None:
        check_rows(logits, labels)
        self.has_auc = auc
        self.probs, self.labels, self.num_classes = probabilities(logits), labels, logits.shape[1]
        predictions = logits.argmax(axis=1)
        self.truth, self.guess = self._one_hot(labels), self._one_hot(predictions)
        chosen = self.probs[np.arange(len(labels)), labels]
        tiny = np.finfo(np.float64).eps  # scikit-learn clips here
        self.nats = -np.log(np.clip(chosen, tiny, 1.0)).astype(np.float32)
        confidence = self.probs.max(axis=1)
        gaps = ((predictions == labels) - confidence).astype(np.float32)
        self.gaps = gaps * (_bins(confidence) == np.arange(NUM_BINS + 1)[:, None])  # (bins, N)

    def _one_hot(self, classes: Array) -> Array:
        return (np.arange(self.num_classes)[:, None] == classes).astype(np.float32)  # (C, N)

    def __call__(self, weights: Array) -> dict[str, Array]:
        """Weights (N, S) -> metric name -> (S,); ``auc`` is NaN where a class has no weight."""
        total = weights.sum(axis=0, dtype=np.float64)
        support, predicted, hits = (
            (m @ weights).astype(np.float64) for m in (self.truth, self.guess, self.truth * self.guess)
        )
        values = {"accuracy": hits.sum(axis=0) / total, **_averages(hits, support, predicted, total)}
        values["auc"] = self._auc(weights)
        values["mcc"] = _mcc(hits, support, predicted, total)
        values["log_loss"] = (self.nats @ weights) / total
        values["calibration_error"] = np.abs(self.gaps @ weights).sum(axis=0) / total
        return values

    def _auc(self, weights: Array) -> Array:
        """Weight of the (positive, negative) pairs in the right order, ties half, over the weight of all pairs."""
        if not self.has_auc or len(np.unique(self.labels)) < self.num_classes:
            return np.full(weights.shape[1], np.nan)
        classes = [1] if self.num_classes == 2 else range(self.num_classes)
        return np.mean([self._one_against_rest(weights, c) for c in classes], axis=0)

    def _one_against_rest(self, weights: Array, cls: int) -> Array:
        scores, is_positive = self.probs[:, cls], self.labels == cls
        positive, negative = np.flatnonzero(is_positive), np.flatnonzero(~is_positive)
        negative = negative[np.argsort(scores[negative])]
        below = np.zeros((len(negative) + 1, weights.shape[1]), dtype=np.float32)
        np.cumsum(weights[negative], axis=0, out=below[1:])
        low, high = (np.searchsorted(scores[negative], scores[positive], side=side) for side in ("left", "right"))
        pairs = np.einsum("ps,ps->s", weights[positive], (below[low] + below[high]) / 2, dtype=np.float64)
        with np.errstate(invalid="ignore"):
            return pairs / (weights[positive].sum(axis=0, dtype=np.float64) * below[-1])


def _averages(hits: Array, support: Array, predicted: Array, total: Array) -> dict[str, Array]:
    """Precision, recall and F1 of counts (C, S), averaged in three ways; 0 divided by 0 is 0."""
    ratios = {
        "precision": _divide(hits, predicted),
        "recall": _divide(hits, support),
        "f1": _divide(2 * hits, support + predicted),
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
    return _divide(covariance, np.sqrt(spread))


def _divide(a: Array, b: Array) -> Array:
    return np.divide(a, b, out=np.zeros_like(a), where=b > 0)


def bootstrap(
    logits: Mapping[str, Array],
    labels: Array,
    example_ids: Array | None,
    num_samples: int,
    seed: int,
    *,
    auc: bool = True,
) -> dict[str, dict[str, Array]]:
    """Metrics of several models on the same resamples: model -> metric -> (num_samples,), paired by position.

    Without ``auc``, most of the time on large splits, that metric is NaN.
    """
    from threadpoolctl import threadpool_limits

    metrics = {name: WeightedMetrics(values, labels, auc) for name, values in logits.items()}
    ids = np.arange(len(labels)) if example_ids is None else example_ids
    # The products are small: a second core gains nothing, and where it is busy, waiting for it costs 10x.
    with threadpool_limits(1, user_api="blas"):
        blocks = [
            {name: metric(weights) for name, metric in metrics.items()} for weights in resample(ids, num_samples, seed)
        ]
    return {name: {m: np.concatenate([b[name][m] for b in blocks]) for m in METRICS} for name in metrics}
