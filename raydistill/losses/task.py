"""The task's own loss, on labelled rows."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from raydistill.config.losses import Schedule
from raydistill.data.batches import Batch
from raydistill.losses.base import Loss
from raydistill.models.signals import LOGITS, Signal
from raydistill.tasks import Task


class TaskLoss(Loss):
    """The task's loss, one value a labelled row; rows without a label are not counted."""

    role = "task"
    student_needs = frozenset({LOGITS})

    def __init__(self, task: Task, weight: float | Schedule = 1.0) -> None:
        super().__init__(weight)
        self.task = task

    def count(self, batch: Batch) -> int:
        return batch.num_labeled

    def forward(self, student: Mapping[Signal, Tensor], teacher: Mapping[Signal, Tensor], batch: Batch) -> Tensor:
        logits, targets = student[LOGITS], batch.targets
        labeled = torch.as_tensor(targets.labeled, device=logits.device)
        return self.task.loss_values(logits[labeled], torch.as_tensor(targets.values, device=logits.device)[labeled])
