"""Answers out of logits: the best spans of tokens of a context, and whether there is one at all.

A span begins and ends in one window, and counts the sum of the two logits there; "no answer" counts the least that its
token gets in any window, as each window has to say so. Its score is the product of the two probabilities among the
units of its window.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from raydistill.tasks.targets import Array, Ragged

LEAST = -1e30
"""Of what cannot be an answer."""


@dataclass(frozen=True, eq=False)
class Spans:
    """Outputs of N rows, Ragged (M, 2) with places, and the most tokens that an answer has."""

    outputs: Ragged
    max_answer_length: int

    @cached_property
    def windows(self) -> Array:
        """The window of each unit, (M,)."""
        return np.cumsum(self.is_none) - 1

    @cached_property
    def is_none(self) -> Array:
        """Which units say that there is no answer, the first of each window, (M,)."""
        assert self.outputs.places is not None
        found: Array = self.outputs.places[:, 0] < 0
        return found

    @cached_property
    def log_probs(self) -> Array:
        """Log-probabilities of begin and end among the units of a window, (M, 2)."""
        logits, first = self.outputs.flat.astype(np.float64), np.flatnonzero(self.is_none)
        if not len(first):
            return logits
        shifted = logits - np.maximum.reduceat(logits, first)[self.windows]
        found: Array = shifted - np.log(np.add.reduceat(np.exp(shifted), first))[self.windows]
        return found

    @cached_property
    def best(self) -> tuple[Array, Array, Array]:
        """Of each row the units at which its best span begins and ends, and its logits' sum, (N,) each; of a context
        without tokens the first unit, and ``LEAST``."""
        if not len(self.outputs):
            return np.zeros(0, int), np.zeros(0, int), np.zeros(0)
        sums, ends = self._best_ends
        starts = self.outputs.starts
        most = np.maximum.reduceat(sums, starts)
        hits = np.flatnonzero(sums == most[self.outputs.rows])
        begin = hits[np.unique(self.outputs.rows[hits], return_index=True)[1]]
        return begin, ends[begin], most

    @cached_property
    def _best_ends(self) -> tuple[Array, Array]:
        """Of each unit the largest sum of a span that begins there, and the unit at which that ends."""
        begins, ends = self.outputs.flat.astype(np.float64).T
        ends = np.where(self.is_none, LEAST, ends)
        most, chosen = np.full(len(ends), LEAST), np.arange(len(ends))
        for ahead in range(min(self.max_answer_length, len(ends))):
            until = len(ends) - ahead
            same = self.windows[:until] == self.windows[ahead:]
            better = np.flatnonzero(same & ~self.is_none[:until] & (ends[ahead:] > most[:until]))
            most[better], chosen[better] = ends[ahead:][better], better + ahead
        return np.where(most > LEAST, begins + most, LEAST), chosen

    @cached_property
    def none(self) -> tuple[Array, Array]:
        """Of each row the unit that says "no answer" with the smallest sum of logits, and that, (N,) each."""
        if not len(self.outputs):
            return np.zeros(0, int), np.zeros(0)
        sums = np.where(self.is_none, self.outputs.flat.sum(axis=1, dtype=np.float64), np.inf)
        least = np.minimum.reduceat(sums, self.outputs.starts)
        hits = np.flatnonzero(sums == least[self.outputs.rows])
        return hits[np.unique(self.outputs.rows[hits], return_index=True)[1]], least

    @cached_property
    def margin(self) -> Array:
        """How much more "no answer" counts than the best span, (N,)."""
        return np.clip(self.none[1] - self.best[2], -1e9, 1e9)

    def score(self, begin: Array, end: Array) -> Array:
        """Probability of spans between units."""
        found: Array = np.exp(self.log_probs[begin, 0] + self.log_probs[end, 1])
        return found

    def chosen(self, threshold: float | None) -> tuple[Array, Array]:
        """The answer to each row: its place in the context (N, 2), -1 where there is none, and its score (N,).

        ``threshold``: of the margin, above which there is none; None where there always is one.
        """
        assert self.outputs.places is not None
        begin, end, most = self.best
        empty = most <= LEAST
        if threshold is not None:
            empty = empty | (self.margin > threshold)
        none = self.none[0]
        places = np.stack([self.outputs.places[begin, 0], self.outputs.places[end, 1]], axis=1)
        scores = np.where(empty, self.score(none, none), self.score(begin, end))
        return np.where(empty[:, None], -1, places), scores

    def most_likely(self, row: int, count: int) -> list[tuple[int, int, float]]:
        """The best spans of a row: begin and end in the context, and score; of a place in several windows the best."""
        assert self.outputs.places is not None
        first, width = int(self.outputs.starts[row]), int(self.outputs.lengths[row])
        units = slice(first, first + width)
        length = min(self.max_answer_length, width)
        logits, windows = self.outputs.flat[units].astype(np.float64), self.windows[units]
        ends = np.where(self.is_none[units], LEAST, logits[:, 1])
        later = np.arange(width)[:, None] + np.arange(length)
        there = later < width
        later = np.minimum(later, width - 1)
        there &= (windows[later] == windows[:, None]) & ~self.is_none[units][:, None] & ~self.is_none[units][later]
        sums = np.where(there, logits[:, :1] + ends[later], LEAST).ravel()
        wanted = min(len(sums), count * (int(windows[-1] - windows[0]) + 1))
        found: dict[tuple[int, int], float] = {}
        for cell in sorted(np.argpartition(-sums, wanted - 1)[:wanted], key=lambda cell: -sums[cell]):
            if sums[cell] <= LEAST or len(found) == count:
                break
            begin, end = first + cell // length, first + later.ravel()[cell]
            place = (int(self.outputs.places[begin, 0]), int(self.outputs.places[end, 1]))
            found.setdefault(place, float(self.score(begin, end)))
        return [(*place, score) for place, score in found.items()]
