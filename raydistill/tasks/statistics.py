"""Statistics that several tasks need; weights (N, S) say how often each of S resamples has a row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from raydistill.tasks.targets import Array


def weighted_auc(scores: Array, is_positive: Array, weights: Array) -> Array:
    """Area under the ROC curve of scores (N,), (S,): weight of the (positive, negative) pairs in the right order, ties
    half, over the weight of all pairs; NaN where one side has no weight."""
    positive, negative = np.flatnonzero(is_positive), np.flatnonzero(~is_positive)
    negative = negative[np.argsort(scores[negative])]
    below = np.zeros((len(negative) + 1, weights.shape[1]), dtype=np.float32)
    np.cumsum(weights[negative], axis=0, out=below[1:])
    low, high = (np.searchsorted(scores[negative], scores[positive], side=side) for side in ("left", "right"))
    pairs = np.einsum("ps,ps->s", weights[positive], (below[low] + below[high]) / 2, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        return pairs / (weights[positive].sum(axis=0, dtype=np.float64) * below[-1])


def average_precision(scores: Array, is_positive: Array) -> float:
    """Area under the precision-recall curve of scores (N,): the mean precision at the positives, equal scores together,
    without interpolation, as scikit-learn's; some row has to be positive."""
    order = np.argsort(-scores, kind="stable")
    ordered, hits = scores[order], is_positive[order].cumsum()
    last = np.append(np.flatnonzero(np.diff(ordered)), len(ordered) - 1)  # of the rows with a score
    found = hits[last]
    return float((np.diff(found, prepend=0) * found / (last + 1)).sum() / found[-1])


def weighted_ranks(values: Array, weights: Array) -> Array:
    """Ranks of values (N,) in each resample, ties sharing their mean, (N, S)."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    until = np.zeros((len(values) + 1, weights.shape[1]))
    np.cumsum(weights[order], axis=0, out=until[1:])
    first, last = (np.searchsorted(ordered, values, side=side) for side in ("left", "right"))
    return (until[first] + until[last] + 1) / 2


def weighted_pearson(a: Array, b: Array, weights: Array) -> Array:
    """Pearson's correlation of a and b, (N,) or (N, S), (S,); NaN where one of them is constant."""
    a, b = (values[:, None] if values.ndim == 1 else values for values in (a, b))
    a, b = a - a[0], b - b[0]  # of what is constant nothing is left, not even rounding
    total = weights.sum(axis=0, dtype=np.float64)
    a, b = (values - (weights * values).sum(axis=0) / total for values in (a, b))
    with np.errstate(invalid="ignore", divide="ignore"):
        found = (weights * a * b).sum(axis=0) / np.sqrt((weights * a**2).sum(axis=0) * (weights * b**2).sum(axis=0))
    return np.clip(found, -1.0, 1.0)


def label_counts(truth: Array, given: Array, weights: Array) -> tuple[Array, Array, Array]:
    """Weight of the rows that are rightly given, that have, and that are given each label, (L, S).

    ``truth``, ``given``: which rows have it and are given it, (L, N), 0 or 1.
    """
    hits, support, predicted = ((m @ weights).astype(np.float64) for m in (truth * given, truth, given))
    return hits, support, predicted


def label_ratios(hits: Array, support: Array, predicted: Array) -> dict[str, tuple[Array, Array]]:
    """What precision, recall and F1 of labels are: counts above and below the line."""
    return {"precision": (hits, predicted), "recall": (hits, support), "f1": (2 * hits, support + predicted)}


def averages(hits: Array, support: Array, predicted: Array, present: Array) -> dict[str, Array]:
    """Precision, recall and F1 of counts (L, S), averaged in three ways, ``macro`` over the labels that are ``present``
    (L, S); 0 divided by 0 is 0."""
    values = {}
    for name, (above, below) in label_ratios(hits, support, predicted).items():
        ratio = divide(above, below)
        values[f"macro_{name}"] = divide((ratio * present).sum(axis=0), present.sum(axis=0))
        values[f"micro_{name}"] = divide(above.sum(axis=0), below.sum(axis=0))
        values[f"weighted_{name}"] = divide((ratio * support).sum(axis=0), support.sum(axis=0))
    return values


def label_table(names: Sequence[str], truth: Array, given: Array) -> list[dict[str, Any]]:
    """One entry a label, see ``count_table``: ``support``, rows that have it, ``predicted``, rows given it."""
    return count_table(names, *(m[:, 0] for m in label_counts(truth, given, np.ones((truth.shape[1], 1)))))


def count_table(names: Sequence[str], hits: Array, support: Array, predicted: Array) -> list[dict[str, Any]]:
    """One entry a label, of counts (L,): name, precision, recall, f1, support, predicted."""
    columns = {name: divide(*counts).tolist() for name, counts in label_ratios(hits, support, predicted).items()}
    columns |= {"support": support.astype(int).tolist(), "predicted": predicted.astype(int).tolist()}
    rows = zip(names, *columns.values(), strict=True)
    return [dict(zip(("name", *columns), row, strict=True)) for row in rows]


def best_threshold(scores: Array, hits: Array, positives: int) -> float:
    """The score from which on to give an answer for the best F1, halfway between the last that is given and the next.

    ``hits`` (N,): which of those with these ``scores`` (N,) are right, of ``positives`` that there are to find; 0.5
    where none is.
    """
    if not hits.any():
        return 0.5
    order = np.argsort(-scores, kind="stable")
    ordered = np.append(scores[order], 0.0)
    found = hits[order].cumsum()
    f1 = np.where(ordered[:-1] > ordered[1:], 2 * found / (np.arange(1, len(order) + 1) + positives), 0.0)
    best = int(f1.argmax())
    return float((ordered[best] + ordered[best + 1]) / 2)


def mean_of(values: Array) -> Array:
    """Mean over the classes (C, S) that have a value in a resample; NaN where none has."""
    known = ~np.isnan(values)
    count = known.sum(0)
    total = np.where(known, values, 0.0).sum(0)
    return np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0)


def divide(a: Array, b: Array) -> Array:
    """a / b, 0 where b is 0."""
    return np.divide(a, b, out=np.zeros_like(a, dtype=np.float64), where=b > 0)


def mcnemar(right_a: Array, right_b: Array) -> dict[str, Any]:
    """McNemar's exact test of two models that are right or wrong on the same rows: {only_first, only_second, p}.

    ``only_first`` counts rows that only the first model gets right. Under the hypothesis that both err equally often
    each such row is a fair coin, so ``p`` is the two-sided binomial probability (McNemar 1947; exact form); 1 where the
    models never differ.
    """
    from scipy.stats import binomtest

    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    p = float(binomtest(only_a, only_a + only_b, 0.5).pvalue) if only_a + only_b else 1.0
    return {"only_first": only_a, "only_second": only_b, "p": p}
