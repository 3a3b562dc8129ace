"""The global batch plan: which rows form global batch k of epoch e, as a pure function of lengths, seed and epoch.

Nothing here knows about workers but ``rank_share``, so the rows of a batch never depend on how many there are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from raydistill.tasks.targets import Targets

if TYPE_CHECKING:
    import torch

WINDOW_BATCHES = 32
"""Rows are grouped by length inside windows of so many batches: wide enough that 97 % of a batch is real tokens on
short texts, narrow enough that an epoch still mixes the data."""
NUM_WINDOWS = 4
"""An epoch has at least so many, down to a batch each: a hundred rows sorted as a whole would be in the same batches at
every epoch, and rows of different lengths never together."""


@dataclass(frozen=True)
class Batch:
    """Rows of one forward pass: ``row_ids`` and ``lengths`` (B,), their targets, and the model's ``inputs``.

    A batch without ``inputs`` is enough to count what a loss will see.
    """

    row_ids: np.ndarray
    lengths: np.ndarray
    targets: Targets
    inputs: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def num_rows(self) -> int:
        return len(self.row_ids)

    @property
    def num_tokens(self) -> int:
        return int(self.lengths.sum())

    @property
    def num_labeled(self) -> int:
        return int(self.targets.labeled.sum())


def epoch_batches(
    rows: np.ndarray, lengths: np.ndarray, labeled: np.ndarray, *, seed: int, epoch: int, global_batch_size: int
) -> list[np.ndarray]:
    """Cut ``rows`` (ids) into the global batches of one epoch, in training order.

    ``lengths`` and ``labeled``, which rows have a label, belong to the whole split and are indexed by row id.
    Labelled rows are spread evenly over the batches, and rows of like length share a batch. The last batch may
    be smaller than ``global_batch_size``; every row occurs exactly once.
    """
    random = np.random.default_rng((seed, epoch))
    order = _spread_labeled(random.permutation(rows), labeled)
    batches: list[np.ndarray] = []
    window = max(1, min(WINDOW_BATCHES, len(order) // (NUM_WINDOWS * global_batch_size))) * global_batch_size
    for start in range(0, len(order), window):
        chunk = _group_by_length(order[start : start + window], lengths, labeled)
        batches += [chunk[i : i + global_batch_size] for i in range(0, len(chunk), global_batch_size)]
    # Full batches in random order, the one short batch last: every prefix of an epoch holds equally many rows.
    full = [batch for batch in batches if len(batch) == global_batch_size]
    short = [batch for batch in batches if len(batch) < global_batch_size]
    return [full[i] for i in random.permutation(len(full))] + short


class BatchPlan:
    """The global batches of a stage by step, one epoch after another. Keeps one epoch: each thread has its own plan."""

    def __init__(
        self, rows: np.ndarray, lengths: np.ndarray, labeled: np.ndarray, *, seed: int, global_batch_size: int
    ) -> None:
        self._cut = partial(epoch_batches, rows, lengths, labeled, seed=seed, global_batch_size=global_batch_size)
        self._steps_per_epoch = math.ceil(len(rows) / global_batch_size)
        self._epoch: tuple[int, list[np.ndarray]] = (-1, [])

    def epoch(self, step: int) -> int:
        """Return the number of the epoch that a step is in."""
        return step // self._steps_per_epoch

    def batch(self, step: int) -> np.ndarray:
        """Return the rows (ids) of the global batch of a step, counted over all epochs."""
        epoch, k = self.epoch(step), step % self._steps_per_epoch
        if self._epoch[0] != epoch:
            self._epoch = (epoch, self._cut(epoch=epoch))
        return self._epoch[1][k]


def _spread_labeled(order: np.ndarray, labeled: np.ndarray) -> np.ndarray:
    """Reorder a shuffled sequence so that labelled rows lie at even distances in it."""
    return order[np.argsort(_quantiles(labeled[order]), kind="stable")]


def _group_by_length(chunk: np.ndarray, lengths: np.ndarray, labeled: np.ndarray) -> np.ndarray:
    """Sort a window by length, labelled and unlabelled rows each for themselves, interleaved by quantile."""
    by_length = chunk[np.argsort(lengths[chunk], kind="stable")]
    return by_length[np.argsort(_quantiles(labeled[by_length]), kind="stable")]


def _quantiles(labeled: np.ndarray) -> np.ndarray:
    """Position of each element within its own kind (labelled or not), as a fraction of that kind's number."""
    quantile = np.empty(len(labeled))
    for kind in (labeled, ~labeled):
        quantile[kind] = (np.arange(kind.sum()) + 0.5) / max(kind.sum(), 1)
    return quantile


def rank_share(batch: np.ndarray, rank: int, world_size: int, group_size: int = 1) -> np.ndarray:
    """Return the rows of a global batch that ``rank`` computes: whole groups of ``group_size`` rows, contiguous."""
    num_groups = -(-len(batch) // group_size)
    first, last = (num_groups * r // world_size * group_size for r in (rank, rank + 1))
    return batch[first:last]


def micro_batches(rows: np.ndarray, lengths: np.ndarray, *, tokens: int, group_size: int = 1) -> list[np.ndarray]:
    """Cut ``rows`` into runs of whole groups whose padded size stays within ``tokens`` (one group always passes)."""
    parts: list[np.ndarray] = []
    start, longest = 0, 0
    for i in range(0, len(rows), group_size):
        group_longest = int(lengths[rows[i : i + group_size]].max())
        end = min(i + group_size, len(rows))
        if i > start and max(longest, group_longest) * (end - start) > tokens:
            parts.append(rows[start:i])
            start, longest = i, 0
        longest = max(longest, group_longest)
    if start < len(rows):
        parts.append(rows[start:])
    return parts
