"""Losses on how rows lie to each other: no widths need to agree, and none is projected."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from raydistill.config.losses import Schedule
from raydistill.data.batches import Batch
from raydistill.losses.base import LastStates
from raydistill.losses.rows import groups_of, num_in_groups, row_means
from raydistill.models.signals import Signal


class RelationLoss(LastStates):
    """A loss with one value a row: how its relations to the other rows of its group differ between the two models.

    A row is the mean of the last hidden states of its tokens. Relations differ by Huber's loss.
    """

    fewest: int
    """Rows that make a relation."""

    def __init__(
        self, student_layers: int, teacher_layers: int, group_size: int = 16, weight: float | Schedule = 1.0
    ) -> None:
        super().__init__((student_layers, teacher_layers), weight)
        self.group_size = group_size

    def count(self, batch: Batch) -> int:
        return num_in_groups(batch.num_rows, self.group_size, self.fewest)

    def forward(self, student: Mapping[Signal, Tensor], teacher: Mapping[Signal, Tensor], batch: Batch) -> Tensor:
        own, others = (row_means(states, batch.lengths) for states in self.states(student, teacher))
        groups = groups_of(batch.num_rows, self.group_size, self.fewest)
        return torch.cat([self.differences(own[rows], others[rows]) for rows in groups])

    def differences(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compare rows (G, width) with rows (G, other width); shape (G,)."""
        raise NotImplementedError


class RkdDistance(RelationLoss):
    """Distances between rows, in units of their group's mean distance. Park et al. 2019,
    https://arxiv.org/abs/1904.05068, equation 6."""

    fewest = 2

    def differences(self, student: Tensor, teacher: Tensor) -> Tensor:
        others = ~torch.eye(len(student), dtype=torch.bool, device=student.device)

        def distances(rows: Tensor) -> Tensor:
            found = (rows[:, None] - rows)[others].norm(dim=-1).view(len(rows), -1)
            return found / found.mean().clamp_min(1e-12)

        return F.smooth_l1_loss(distances(student), distances(teacher), reduction="none").mean(1)


class RkdAngle(RelationLoss):
    """Cosines of the angles at a row between the directions to two others. Park et al. 2019,
    https://arxiv.org/abs/1904.05068, equation 8."""

    fewest = 3

    def differences(self, student: Tensor, teacher: Tensor) -> Tensor:
        size = len(student)
        others = ~torch.eye(size, dtype=torch.bool, device=student.device)
        pairs = ~torch.eye(size - 1, dtype=torch.bool, device=student.device)

        def cosines(rows: Tensor) -> Tensor:
            directions = F.normalize((rows - rows[:, None])[others].view(size, size - 1, -1), dim=-1)
            return (directions @ directions.transpose(1, 2))[:, pairs]

        return F.smooth_l1_loss(cosines(student), cosines(teacher), reduction="none").mean(1)
