"""The task's own loss, on labelled rows."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from raydistill.data.batches import Batch
from raydistill.losses.base import Loss
from raydistill.tasks import TextClassification


class TaskLoss(Loss):
    """The task's loss, one value a labelled row; rows without a label are not counted."""

    role = "task"
    student_needs = frozenset({"logits"})

    def __init__(self, task: TextClassification, weight: float = 1.0) -> None:
        super().__init__(weight)
        self.task = task

    def count(self, batch: Batch) -> int:
        return batch.num_labeled

    def forward(self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], batch: Batch) -> Tensor:
        logits = student["logits"]
        labels = torch.as_tensor(batch.labels, device=logits.device)
        labeled = labels >= 0
        return self.task.loss_values(logits[labeled], labels[labeled])
