"""Losses on the logits of a row: soft targets and squared differences."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from raydistill.config.losses import Kind, Schedule
from raydistill.data.batches import Batch
from raydistill.losses.base import Loss
from raydistill.models.signals import LOGITS, Signal


class RowLoss(Loss):
    """A loss with one value a row, from the logits of both models, (B, C)."""

    student_needs = frozenset({LOGITS})
    teacher_needs = frozenset({LOGITS})

    def count(self, batch: Batch) -> int:
        return batch.num_rows


class ForwardKl(RowLoss):
    """Soft targets, T² · KL(p_T ‖ p_S) of the predictions at temperature T.

    ``categorical`` predictions are softmax(z/T), the divergence is summed over the classes; ``bernoulli`` ones are
    sigmoid(z/T) for each label, the mean over the labels, as the task's own loss is. T² keeps the size of the gradient
    about constant over T. Hinton et al. 2015, https://arxiv.org/abs/1503.02531.
    """

    temperature: float

    def __init__(
        self, weight: float | Schedule = 1.0, temperature: float | Schedule = 2.0, kind: Kind = "categorical"
    ) -> None:
        super().__init__(weight)
        self.set("temperature", temperature)
        self.kind = kind

    def forward(self, student: Mapping[Signal, Tensor], teacher: Mapping[Signal, Tensor], batch: Batch) -> Tensor:
        z_student, z_teacher = (side[LOGITS].float() / self.temperature for side in (student, teacher))
        if self.kind == "bernoulli":  # the two outcomes of each label are a distribution over z and 0
            z_student, z_teacher = (torch.stack([z, torch.zeros_like(z)], dim=-1) for z in (z_student, z_teacher))
        log_student, log_teacher = F.log_softmax(z_student, dim=-1), F.log_softmax(z_teacher, dim=-1)
        divergence = F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(-1)
        if self.kind == "bernoulli":
            divergence = divergence.mean(-1)
        return divergence * self.temperature**2


class LogitMse(RowLoss):
    """Squared difference of the logits, averaged over classes. Ba & Caruana 2014, https://arxiv.org/abs/1312.6184."""

    def forward(self, student: Mapping[Signal, Tensor], teacher: Mapping[Signal, Tensor], batch: Batch) -> Tensor:
        return (student[LOGITS].float() - teacher[LOGITS].float()).square().mean(-1)
