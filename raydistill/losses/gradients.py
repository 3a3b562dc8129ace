"""Losses on what a row's tokens weigh in the predictions: gradients with respect to the token embeddings."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from raydistill.config.losses import Schedule
from raydistill.data.batches import Batch
from raydistill.errors import ConfigError
from raydistill.losses.base import Loss
from raydistill.models.ragged import row_sums
from raydistill.models.signals import GRADIENTS, Signal


class GradientLoss(Loss):
    """A loss with one value a row: squared differences of its gradients, whose length over the row is 1, summed.

    The student's is differentiated once more, through attention that is written out: a step takes three to four times
    as long.
    """

    role = "representation"
    student_needs = frozenset({GRADIENTS})
    teacher_needs = frozenset({GRADIENTS})

    def count(self, batch: Batch) -> int:
        return batch.num_rows

    def forward(self, student: Mapping[Signal, Tensor], teacher: Mapping[Signal, Tensor], batch: Batch) -> Tensor:
        own, other = (self.reduced(side[GRADIENTS].float()) for side in (student, teacher))
        lengths = torch.as_tensor(batch.lengths, dtype=torch.long, device=own.device)
        return row_sums((own - other).square().sum(1), lengths)

    def reduced(self, gradients: Tensor) -> Tensor:
        """What of the gradients (N, width) is compared."""
        return gradients


class GradientMatch(GradientLoss):
    """‖J_S - J_T‖² of normalised gradients, 2 - 2 cos. Srinivas and Fleuret 2018, https://arxiv.org/abs/1803.00443;
    the embeddings have to be as wide. Contains what ``gradient_attention`` compares."""

    def __init__(self, student_width: int, teacher_width: int, weight: float | Schedule = 1.0) -> None:
        super().__init__(weight)
        if student_width != teacher_width:
            raise ConfigError(
                f"gradient_match compares gradients with respect to the token embeddings, which are {student_width} "
                f"wide in the student and {teacher_width} in the teacher. Use gradient_attention, which compares their "
                "lengths, or leave student.hidden_size out."
            )


class GradientAttention(GradientLoss):
    """Squared difference of the lengths of each token's gradient: how much it weighs. Zagoruyko and Komodakis 2017,
    https://arxiv.org/abs/1612.03928, section 3.2; any width."""

    def reduced(self, gradients: Tensor) -> Tensor:
        return torch.linalg.vector_norm(gradients, dim=1, keepdim=True)
