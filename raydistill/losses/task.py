"""The task's own loss, on labelled rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from raydistill.config.losses import Schedule
from raydistill.data.batches import Batch
from raydistill.losses.base import Loss
from raydistill.models.signals import LOGITS, Signal
from raydistill.tasks import Task


class TaskLoss(Loss):
    """The task's loss, one value a labelled row, or a unit of one (``Task.count``); others are not counted.

    ``class_weights``: of each output, in their order (C,). A row's value is multiplied by the weight of its class; the
    sum is divided by the number of labelled rows, not of weights, so that the count needs no forward pass and one
    worker's share does not depend on what the others hold. ``label_smoothing``: see the task's ``loss_values``.
    """

    role = "task"
    student_needs = frozenset({LOGITS})
    class_weights: Tensor | None

    def __init__(
        self,
        task: Task,
        weight: float | Schedule = 1.0,
        class_weights: Tensor | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(weight)
        self.task, self.label_smoothing = task, label_smoothing
        self.register_buffer("class_weights", class_weights, persistent=False)

    def count(self, batch: Batch) -> int:
        return self.task.count(batch.targets)

    def forward(self, student: Mapping[Signal, Tensor], teacher: Mapping[Signal, Tensor], batch: Batch) -> Tensor:
        logits, targets = student[LOGITS], batch.targets
        more: dict[str, Any] = {}  # a task without classes takes neither
        if self.class_weights is not None:
            more["class_weights"] = self.class_weights.to(logits.device)
        if self.label_smoothing:
            more["label_smoothing"] = self.label_smoothing
        return self.task.batch_loss(logits, targets, **more)
