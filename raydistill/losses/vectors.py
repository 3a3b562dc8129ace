"""Losses on the vectors of sentence encoders: each against the teacher's, and how those of a group lie to each
other."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from raydistill.config.losses import Schedule
from raydistill.data.batches import Batch
from raydistill.losses.base import Loss
from raydistill.losses.rows import groups_of, num_in_groups
from raydistill.models.signals import LOGITS, Signal


class VectorLoss(Loss):
    """A loss with one value a row: the mean over its texts, one or two, of ``distance`` between the models' vectors.

    ``width``: of a vector; a row's vectors lie one after another, (B, width) or (B, 2 width).
    """

    student_needs = frozenset({LOGITS})
    teacher_needs = frozenset({LOGITS})

    def __init__(self, width: int, weight: float | Schedule = 1.0) -> None:
        super().__init__(weight)
        self.width = width

    def count(self, batch: Batch) -> int:
        return batch.num_rows

    def forward(self, student: Mapping[Signal, Tensor], teacher: Mapping[Signal, Tensor], batch: Batch) -> Tensor:
        own, others = (found[LOGITS].float().view(batch.num_rows, -1, self.width) for found in (student, teacher))
        return self.distance(own, others).mean(1)

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compare (…, width) with (…, width); shape (…)."""
        raise NotImplementedError


class VectorMse(VectorLoss):
    """Squared length of the difference: the squared error of a whole vector. Reimers & Gurevych 2020,
    https://arxiv.org/abs/2004.09813."""

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        return (student - teacher).square().sum(-1)


class VectorCosine(VectorLoss):
    """1 - cosine; of vectors of length 1 half of ``VectorMse``."""

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        return 1 - F.cosine_similarity(student, teacher, dim=-1)


class SimilarityMatrix(VectorLoss):
    """Squared difference of the cosines between a row's texts and the other texts of its group. Similarity-preserving
    distillation, Tung & Mori 2019, https://arxiv.org/abs/1907.09682."""

    def __init__(self, width: int, group_size: int = 32, weight: float | Schedule = 1.0) -> None:
        super().__init__(width, weight)
        self.group_size = group_size

    def count(self, batch: Batch) -> int:
        return num_in_groups(batch.num_rows, self.group_size, 2)

    def forward(self, student: Mapping[Signal, Tensor], teacher: Mapping[Signal, Tensor], batch: Batch) -> Tensor:
        values = []
        for rows in groups_of(batch.num_rows, self.group_size, 2):
            own, others = (found[LOGITS][rows].float().reshape(-1, self.width) for found in (student, teacher))
            differences = (cosines(own) - cosines(others)).square().sum(1) / (len(own) - 1)  # its own cosine is 1
            values.append(differences.view(rows.stop - rows.start, -1).mean(1))
        return torch.cat(values)


def cosines(vectors: Tensor) -> Tensor:
    """Of each of (N, width) with each, (N, N)."""
    units = F.normalize(vectors, dim=-1)
    return units @ units.T
