"""Losses on hidden states of mapped layers, over real tokens; padding never enters (tensors are flat)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raydistill.config.losses import Schedule
from raydistill.data.batches import Batch
from raydistill.losses.base import Loss
from raydistill.models.signals import Signal


class HiddenLoss(Loss):
    """A loss with one value a token: the mean over the mapped layer pairs of ``distance``.

    ``pairs`` are (student, teacher) indices of hidden states, 0 being the embeddings. Where the widths differ, the
    student's states pass through one trained linear map a pair (TinyBERT's W_h, https://arxiv.org/abs/1909.10351).
    """

    role = "representation"

    def __init__(
        self, pairs: tuple[tuple[int, int], ...], student_width: int, teacher_width: int, weight: float | Schedule = 1.0
    ) -> None:
        super().__init__(weight)
        self.pairs = pairs
        self.student_needs = frozenset(Signal.of("hidden_states", s) for s, _ in pairs)
        self.teacher_needs = frozenset(Signal.of("hidden_states", t) for _, t in pairs)
        same_width = student_width == teacher_width
        self.projections = nn.ModuleList(
            nn.Identity() if same_width else nn.Linear(student_width, teacher_width) for _ in pairs
        )

    def count(self, batch: Batch) -> int:
        return batch.num_tokens

    def forward(self, student: Mapping[Signal, Tensor], teacher: Mapping[Signal, Tensor], batch: Batch) -> Tensor:
        values = [
            self.distance(
                projection(student[Signal.of("hidden_states", s)]).float(),
                teacher[Signal.of("hidden_states", t)].float(),
            )
            for (s, t), projection in zip(self.pairs, self.projections, strict=True)
        ]
        return torch.stack(values).mean(0)

    @staticmethod
    def distance(student: Tensor, teacher: Tensor) -> Tensor:
        """Compare (N, width) with (N, width); shape (N,)."""
        raise NotImplementedError


class HiddenMse(HiddenLoss):
    """Squared difference of hidden states, averaged over the width. TinyBERT, https://arxiv.org/abs/1909.10351."""

    @staticmethod
    def distance(student: Tensor, teacher: Tensor) -> Tensor:
        return (student - teacher).square().mean(-1)


class HiddenCosine(HiddenLoss):
    """1 - cosine of hidden states. DistilBERT, https://arxiv.org/abs/1910.01108."""

    @staticmethod
    def distance(student: Tensor, teacher: Tensor) -> Tensor:
        return 1 - F.cosine_similarity(student, teacher, dim=-1)
