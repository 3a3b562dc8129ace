"""What a detector is worth on labelled pictures: COCO's average precision, under many weightings of them at once.

Metric names: ``map`` (mean over classes and over IoU from 0.5 to 0.95), ``map_50`` and ``map_75`` (at one IoU),
``map_small``, ``map_medium``, ``map_large`` (of objects below 32², up to 96² and above, pixels), ``mar`` (recall, the
mean as of ``map``). As pycocotools has them, at most 100 detections of a class in a picture: Lin et al. 2014,
https://arxiv.org/abs/1405.0312. The tests hold all of them against it. A crowd is no object to find; detections that
find nothing else and lie in one of their class, by as much of their own area as an IoU asks for, are neither right nor
wrong, however many these are.

Which detection finds which object is a picture's own business, however often that is drawn. So pictures are matched
once, and a resample only counts anew: at the detections that are right, weights of these over those of all before them.
1,000 pictures of 100 queries and 20 classes are matched in 1.3 s; 200 resamples of ``map`` take 0.3 s then, 1,000 of
all metrics 20 s.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from raydistill.tasks.object_detection.detections import Detections, ious, of_targets
from raydistill.tasks.object_detection.reading import AREA, CLASS, SIZE, crowds, with_crowds
from raydistill.tasks.scores import Floor, Scores, fit_rows
from raydistill.tasks.statistics import best_threshold, count_table, divide, mean_of
from raydistill.tasks.targets import Array, Ragged

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
SIZES = {"all": (0, 1e10), "small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}
"""Pixels of an object, both ends included."""
MOST = 100
"""Detections of a class in a picture that count."""
AT = {"map_50": 0, "map_75": 5}
"""Metrics at one of the thresholds."""
ANSWER_IOU, NEAR_IOU = 0.5, 0.1
"""From which a detection that is given as an answer is right, and from which it is at least on the object."""


@dataclass(frozen=True, eq=False)
class Matched:
    """The detections of all pictures, the surest first; a sizes, t thresholds of IoU."""

    rows: Array
    """The picture of each, (D,)."""
    classes: Array
    scores: Array
    hits: Array
    """Whether it finds an object, (D, a, t)."""
    counts: Array
    """Whether it is right or wrong, and not of another size, (D, a, t)."""


class BoxScores(Scores):
    """Outputs (N, Q · (S + 4)) of models that are ``focal`` or not, see ``models.detection``, of pictures with objects,
    see ``reading``; ``threshold``: from which score on a detection is an answer."""

    def __init__(
        self, outputs: Array, targets: Ragged, names: Sequence[str], threshold: float, focal: bool = False
    ) -> None:
        fit_rows(outputs, targets)  # type: ignore[arg-type]
        self.num_rows, self.names, self.threshold = len(targets), names, threshold
        self.targets, self.found = targets, Detections(outputs, len(names), focal)

    @cached_property
    def truth(self) -> list[tuple[Array, Array]]:
        return of_targets(self.targets)

    @cached_property
    def fits(self) -> Array:
        """Which of the objects and crowds is an object of which size, (M, a)."""
        there, is_crowd = with_crowds(self.targets)
        area = np.where(is_crowd, np.nan, there.flat[:, AREA].astype(np.float64))
        return np.stack([(area >= low) & (area <= high) for low, high in SIZES.values()], axis=1)

    @cached_property
    def support(self) -> Array:
        """Objects of each class and size in each picture, (N, C, a)."""
        found = np.zeros((self.num_rows, len(self.names), len(SIZES)))
        there, _ = with_crowds(self.targets)
        np.add.at(found, (there.rows, there.flat[:, CLASS].astype(int)), self.fits)
        return found

    @cached_property
    def matched(self) -> Matched:
        """COCO's matching: the surest detections choose first, each the object that it overlaps most."""
        there, are_crowds = with_crowds(self.targets)
        parts = []
        sizes = self.targets.flat[self.targets.starts, SIZE].astype(np.float64)
        for row, (classes, boxes) in enumerate(of_targets(there)):
            given, scores, places = self.found.found(row, 0.0)
            kept = np.array([(given[:i] == own).sum() < MOST for i, own in enumerate(given)], bool)
            given, scores, places = given[kept], scores[kept], places[kept]
            own = slice(there.starts[row], there.starts[row] + len(classes))
            overlap = np.where(given[:, None] == classes, ious(places, boxes, are_crowds[own]), 0.0)
            hits, ignored = assigned(overlap, self.fits[own], are_crowds[own])
            area = places[:, 2:].prod(-1) * sizes[row].prod()
            other = np.stack([(area < low) | (area > high) for low, high in SIZES.values()], axis=1)
            counts = ~np.where(hits, ignored, other[..., None])
            parts.append((np.full(len(given), row), given, scores, hits & counts, counts))
        columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
        order = np.argsort(-columns[2], kind="stable")
        return Matched(*(column[order] for column in columns))

    def weighted(self, weights: Array, wanted: Collection[str] | None = None) -> dict[str, Array]:
        precision, recall = self.averages(weights, 0)
        found = {"map": mean_of(precision.mean(1)), "mar": mean_of(recall.mean(1))}
        found |= {name: mean_of(precision[:, at]) for name, at in AT.items()}
        for place, size in enumerate(SIZES):
            if place and (wanted is None or f"map_{size}" in wanted):
                found[f"map_{size}"] = mean_of(self.averages(weights, place)[0].mean(1))
        return found

    def averages(self, weights: Array, size: int) -> tuple[Array, Array]:
        """Average precision, and recall, of each class at each IoU for objects of a size: weights (N, S) -> (C, t, S),
        NaN where none has weight."""
        shape = (len(self.names), len(THRESHOLDS), weights.shape[1])
        precision, recall = np.full(shape, np.nan), np.full(shape, np.nan)
        for one in range(len(self.names)):
            total = self.support[:, one, size] @ weights.astype(np.float64)
            own = np.flatnonzero(self.matched.classes == one)
            drawn, counts = weights[self.matched.rows[own]], self.matched.counts[own, size]
            whole = np.cumsum(drawn, axis=0, dtype=np.float64)
            for at, counted in enumerate(counts.T):
                is_whole = bool(counted.all())  # of objects of all sizes; then the sums are those of each threshold
                given = whole if is_whole else np.cumsum(drawn * counted[:, None], axis=0, dtype=np.float64)
                values = average_precision(drawn, given, self.matched.hits[own, size, at], total)
                precision[one, at], recall[one, at] = np.where(total > 0, values, np.nan)
        return precision, recall

    def best_threshold(self) -> float:
        """The score from which on detections have the best F1 at an IoU of 0.5, all classes together, to 4 digits."""
        counts, total = self.matched.counts[:, 0, 0], int(self.support[..., 0].sum())
        found = self.matched.scores[counts], self.matched.hits[counts, 0, 0], total
        return round(best_threshold(*found), 4)

    def floor(self) -> Floor:
        """Finding nothing."""
        return Floor("map", 0.0, "finding nothing", None, ("map_50", 0.0))

    def details(self) -> dict[str, Any]:
        """``per_class``: of the detections that are answers precision, recall and F1 at an IoU of 0.5, and the average
        precision ``map`` and ``map_50`` of all of them; ``box_errors``: answers that are ``right``, lie on an object of
        their class but not enough (``misplaced``), on one of another class (``confused``), on none (``invented``), and
        objects that are ``missed``; answers that lie in a crowd count nowhere. ``threshold``: from which score on they
        are answers."""
        ones = np.ones((self.num_rows, 1))
        precision = self.averages(ones, 0)[0][..., 0]
        hits, predicted, support = (np.zeros(len(self.names), int) for _ in range(3))
        crowded = of_targets(crowds(self.targets))
        errors = dict.fromkeys(("right", "misplaced", "confused", "invented", "missed"), 0)
        for row, (classes, boxes) in enumerate(self.truth):
            given, _, places = self.found.found(row, self.threshold)
            overlap = ious(places, boxes)
            partner = partners(np.where(given[:, None] == classes, overlap, 0.0), ANSWER_IOU)
            counts = (partner >= 0) | ~in_crowds(given, places, *crowded[row])
            given, overlap, right = given[counts], overlap[counts], partner[counts] >= 0
            for total, own in ((hits, given[right]), (predicted, given), (support, classes)):
                total += np.bincount(own, minlength=len(self.names))
            same = np.where(given[:, None] == classes, overlap, 0.0).max(1, initial=0.0) >= NEAR_IOU
            other = overlap.max(1, initial=0.0) >= ANSWER_IOU
            kinds = np.select([right, same, other], ["right", "misplaced", "confused"], "invented")
            for kind, count in zip(*np.unique(kinds, return_counts=True), strict=True):
                errors[str(kind)] += int(count)
            errors["missed"] += len(classes) - int(right.sum())
        table = zip(count_table(self.names, hits, support, predicted), precision, strict=True)
        per_class = [{**counts, "map": none_if_nan(own.mean()), "map_50": none_if_nan(own[0])} for counts, own in table]
        return {"per_class": per_class, "box_errors": errors, "threshold": self.threshold}


def assigned(overlap: Array, fits: Array, is_crowd: Array) -> tuple[Array, Array]:
    """Which detections (D,), the surest first, find an object or a crowd (G,), and whether that is not one of the size:
    overlaps of equal classes (D, G), ``fits`` (G, a) -> (D, a, t) each. One of the size is taken before all others; of
    equal overlaps the last. A crowd is never used up."""
    shape = (len(overlap), fits.shape[1], len(THRESHOLDS))
    hits, ignored = np.zeros(shape, bool), np.zeros(shape, bool)
    if not overlap.size:
        return hits, ignored
    free = np.ones((*shape[1:], len(fits)), bool)
    least = np.minimum(THRESHOLDS, 1 - 1e-10)[:, None]
    sizes, levels = np.arange(shape[1])[:, None], np.arange(shape[2])
    for one in np.flatnonzero(overlap.max(1) >= least[0]):
        own = overlap[one]
        # one of the size is worth more than any overlap with another
        worth = np.where(free & (own >= least), own + fits.T[:, None], -1.0)
        best = len(own) - 1 - worth[..., ::-1].argmax(-1)
        is_hit = worth.max(-1) >= 0
        hits[one], ignored[one] = is_hit, is_hit & ~fits[best, sizes]
        free[sizes, levels, best] &= ~is_hit | is_crowd[best]
    return hits, ignored


def in_crowds(given: Array, places: Array, classes: Array, boxes: Array) -> Array:
    """Which detections, classes (D,) and boxes, lie in a crowd (G,) of their class, by half of them or more."""
    overlap = np.where(given[:, None] == classes, ious(places, boxes, is_crowd=True), 0.0)
    found: Array = overlap.max(1, initial=0.0) >= ANSWER_IOU
    return found


def partners(overlap: Array, least: float) -> Array:
    """The column that each row (D,), the first one first, has as its own: that of the largest overlap; -1 for none."""
    found, free = np.full(len(overlap), -1), np.ones(overlap.shape[1], bool)
    for row, own in enumerate(overlap):
        best = int(np.where(free, own, -1.0).argmax()) if free.any() else -1
        if best >= 0 and free[best] and own[best] >= least:
            found[row], free[best] = best, False
    return found


def average_precision(weights: Array, given: Array, hits: Array, total: Array) -> tuple[Array, Array]:
    """Average over 101 levels of recall of the best precision from there on, and the recall, (S,) each, of detections
    (D,), the surest first, under weights (D, S) for ``total`` (S,) objects; ``given`` (D, S): weight of those that
    count up to each.

    Precision is at its best where a detection is right, so only these are looked at.
    """
    right = np.flatnonzero(hits)
    if not len(right):
        return np.zeros(len(total)), np.zeros(len(total))
    given = given[right]
    found = np.cumsum(weights[right], axis=0, dtype=np.float64)
    precision = divide(found, given)
    best = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    recall = divide(found, total)
    reached = np.searchsorted(RECALLS, recall, side="right")
    return (np.diff(reached, axis=0, prepend=0) * best).sum(0) / len(RECALLS), recall[-1]


def none_if_nan(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
