"""What several teachers say in the mean, out of what each was recorded to say."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from raydistill.data.batches import Batch
from raydistill.models.signals import LOGITS, Signal
from raydistill.tasks import Task
from raydistill.teacher.cached import RecordedSignals
from raydistill.teacher.signals import Signals


class MixedSignals(Signals):
    """The weighted mean of several teachers' predictions: all were recorded in the order of the task's outputs."""

    def __init__(self, task: Task, sources: Sequence[RecordedSignals], weights: Sequence[float]) -> None:
        """``sources``: of each teacher LOGITS, about the same rows. ``weights``: of any sum."""
        self.task, self.sources, self.weights = task, sources, weights

    def read(self, batch: Batch) -> dict[Signal, Tensor]:
        return self.rows(batch.row_ids)

    def rows(self, row_ids: np.ndarray) -> dict[Signal, Tensor]:
        """Of any rows, without a batch: (B, C), or (M, C) of rows that have several predictions."""
        said = [source.rows(row_ids)[LOGITS].numpy() for source in self.sources]
        return {LOGITS: torch.from_numpy(self.task.averaged(said, self.weights))}
