"""Recorded outputs of a teacher, read by row number from memory-mapped shards."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from raydistill.data.batches import Batch
from raydistill.errors import ArtifactError
from raydistill.models.signals import Signal
from raydistill.storage.artifacts import Artifact
from raydistill.teacher.signals import Signals
from raydistill.teacher.store import MAX_MAPS, Shard


class RecordedSignals(Signals):
    """Signals read from the store, by row number."""

    def __init__(self, artifacts: dict[Signal, Artifact], num_rows: int, *, verify: bool = False) -> None:
        """``artifacts`` maps a signal's name to its artefact. Raises ArtifactError where rows are missing."""
        maps = max(1, MAX_MAPS // max(1, len(artifacts)))
        self._columns = {
            signal: Column(artifact.local(verify=verify), sorted(artifact.manifest().files), num_rows, maps)
            for signal, artifact in artifacts.items()
        }

    def read(self, batch: Batch) -> dict[Signal, Tensor]:
        return self.rows(batch.row_ids)

    def rows(self, row_ids: np.ndarray) -> dict[Signal, Tensor]:
        """Of any rows, without a batch."""
        return {signal: torch.from_numpy(column.read(row_ids)) for signal, column in self._columns.items()}


class Column:
    """One signal of a whole split, memory-mapped: ``read(row_ids)`` gives (B, C), or (N, width) row after row.

    At most ``max_maps`` shards are mapped at a time, those that were read last.
    """

    def __init__(self, folder: Path, names: list[str], num_rows: int, max_maps: int) -> None:
        self.shard = np.full(num_rows, -1, dtype=np.int32)
        self.position = np.zeros(num_rows, dtype=np.int32)
        # not what else lies there: another process may have recorded the same shard beside this one
        self._open = lru_cache(max_maps)(lambda index: Shard.open(folder / names[index]))
        for index in range(len(names)):
            rows = self._open(index).row_ids
            self.shard[rows] = index
            self.position[rows] = np.arange(len(rows))
        if (self.shard < 0).any():
            missing = int((self.shard < 0).sum())
            raise ArtifactError(f"{folder} lacks {missing} of {num_rows} rows; remove it to record them anew.")

    def read(self, row_ids: np.ndarray) -> np.ndarray:
        return np.concatenate(list(self._slices(row_ids)))

    def _slices(self, row_ids: np.ndarray) -> Iterable[np.ndarray]:
        for shard, position in zip(self.shard[row_ids], self.position[row_ids], strict=True):
            opened = self._open(int(shard))
            offsets = opened.offsets
            first, last = (position, position + 1) if offsets is None else offsets[position : position + 2]
            yield opened.values[first:last]
