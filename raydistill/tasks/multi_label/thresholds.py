"""From which probability on each label is given: as far from a common threshold as its validation rows can tell.

The best F1 of a label that few rows have is a matter of chance: of 60 labels in 150 rows such thresholds gave 9.4
labels a row instead of 0.35, and a micro F1 of 14 where 0.5 for all has 39.
"""

from __future__ import annotations

import numpy as np

from raydistill.tasks.targets import Array

LOGITS = np.linspace(-10, 10, 401)
"""Those of the thresholds that are looked at; 0.5 is among them."""
PRIOR = 10
"""Rows with a label that tell as much as what is thought before they are seen. Between 3 and 100, micro F1 on fresh
rows differs by about a point, of 10 to 300 labels as frequent as Zipf says in 20 to 5,000 validation rows."""


def choose_thresholds(probs: Array, targets: Array) -> Array:
    """A probability for each label (L,), chosen for micro F1 on validation rows (N, L); there never worse than 0.5.

    Micro F1 of F is highest where each label is given as long as its rows gain, 2 · right - F · given. The common
    threshold stays at 0.5, and a label's at the common one, as far as rows with a label are missing: with n of them it
    goes n / (n + PRIOR) of the way, in logits, to what these rows would have.
    """
    halves = np.full(targets.shape[1], 0.5)
    support = targets.sum(axis=0, dtype=np.int64)
    total = support.sum()
    if not total:
        return halves
    right, given = _counts(probs, targets)
    f1 = 2 * right.sum(axis=0) / (given.sum(axis=0) + total)
    common = _nearest(f1, 0.0) * total / (total + PRIOR)
    own = [_nearest(2 * hits - f1.max() * all_given, common) for hits, all_given in zip(right, given, strict=True)]
    chosen = _sigmoid(common + (np.array(own) - common) * support / (support + PRIOR))
    return chosen if _micro_f1(probs, targets, chosen) >= _micro_f1(probs, targets, halves) else halves


def _counts(probs: Array, targets: Array) -> tuple[Array, Array]:
    """How many rows are rightly given, and given, each label by each threshold, (L, T)."""
    found = []
    for own, known in zip(probs.T, targets.T, strict=True):
        reached = np.searchsorted(_sigmoid(LOGITS), own, side="right")  # thresholds that a row reaches
        found.append([np.bincount(reached[rows], minlength=len(LOGITS) + 1) for rows in (known > 0, slice(None))])
    until = np.array(found)[:, :, :0:-1].cumsum(axis=2)[:, :, ::-1]
    return until[:, 0], until[:, 1]


def _nearest(values: Array, start: float) -> float:
    """The logit of the highest of these values (T,), of several the nearest to ``start``."""
    best = LOGITS[values >= values.max() - 1e-9]
    return float(best[np.abs(best - start).argmin()])


def _micro_f1(probs: Array, targets: Array, thresholds: Array) -> float:
    """``targets``: at least one row has a label."""
    given = probs >= thresholds
    return float(2 * (given & (targets > 0)).sum() / (given.sum() + targets.sum(dtype=np.int64)))


def _sigmoid(logits: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-logits)))
