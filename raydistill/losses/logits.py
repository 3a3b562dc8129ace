"""Losses on the logits of a row: soft targets and squared differences."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

from raydistill.data.batches import Batch
from raydistill.losses.base import Loss


class RowLoss(Loss):
    """A loss with one value a row, from the logits of both models, (B, C)."""

    student_needs = frozenset({"logits"})
    teacher_needs = frozenset({"logits"})

    def count(self, batch: Batch) -> int:
        return batch.num_rows


class ForwardKl(RowLoss):
    """Soft targets, T² · KL(softmax(z_T/T) ‖ softmax(z_S/T)), summed over classes.

    T² keeps the size of the gradient about constant over T. Hinton et al. 2015, https://arxiv.org/abs/1503.02531.
    """

    def __init__(self, weight: float = 1.0, temperature: float = 2.0) -> None:
        super().__init__(weight)
        self.temperature = temperature

    def forward(self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], batch: Batch) -> Tensor:
        log_student = F.log_softmax(student["logits"].float() / self.temperature, dim=-1)
        log_teacher = F.log_softmax(teacher["logits"].float() / self.temperature, dim=-1)
        divergence = F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(-1)
        return divergence * self.temperature**2


class LogitMse(RowLoss):
    """Squared difference of the logits, averaged over classes. Ba & Caruana 2014, https://arxiv.org/abs/1312.6184."""

    def forward(self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], batch: Batch) -> Tensor:
        return (student["logits"].float() - teacher["logits"].float()).square().mean(-1)
