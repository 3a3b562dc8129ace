"""Losses that pull some rows together and others apart."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raydistill.config.losses import Schedule
from raydistill.data.batches import Batch
from raydistill.losses.base import LastStates, Loss
from raydistill.losses.rows import groups_of, num_in_groups, row_means
from raydistill.models.signals import Signal


class CosinePairs(Loss):
    """Squared difference of the cosine of two rows' mean hidden states from 1 where their labels are equal, from 0
    where not, within groups of ``group_size`` rows. SetFit's fine-tuning (https://arxiv.org/abs/2209.11055).

    One value a labelled row with another one in its group: the mean over its partners, those with its label and the
    others weighing the same.
    """

    role = "task"

    def __init__(self, layer: int, group_size: int = 16, weight: float | Schedule = 1.0) -> None:
        """``layer``: whose output is averaged, the last one."""
        super().__init__(weight)
        self.states = Signal.of("hidden_states", layer)
        self.student_needs = frozenset({self.states})
        self.group_size = group_size

    def count(self, batch: Batch) -> int:
        return int(sum(len(rows) for rows in self._groups(batch)))

    def forward(self, student: Mapping[Signal, Tensor], teacher: Mapping[Signal, Tensor], batch: Batch) -> Tensor:
        states = student[self.states].float()
        embeddings = F.normalize(row_means(states, batch.lengths), dim=-1)
        return torch.cat([self._values(embeddings, batch, rows) for rows in self._groups(batch)])

    def _groups(self, batch: Batch) -> list[np.ndarray]:
        """Places in the batch of each group's labelled rows, where there are two or more."""
        places = np.arange(batch.num_rows)
        groups = [places[rows] for rows in groups_of(batch.num_rows, self.group_size, 2)]
        labeled = [rows[batch.targets.labeled[rows]] for rows in groups]
        return [rows for rows in labeled if len(rows) > 1]

    @staticmethod
    def _values(embeddings: Tensor, batch: Batch, rows: np.ndarray) -> Tensor:
        own = embeddings[torch.as_tensor(rows, device=embeddings.device)]
        labels = torch.as_tensor(batch.targets.values[rows], device=embeddings.device)
        same, others = labels[:, None] == labels, ~torch.eye(len(rows), dtype=torch.bool, device=embeddings.device)
        squares = (own @ own.T - same.float()).square()
        means = [(squares * kind).sum(1) / kind.sum(1).clamp(min=1) for kind in (same & others, ~same)]
        kinds = (same & others).any(1).float() + (~same).any(1).float()
        return (means[0] + means[1]) / kinds


class Crd(LastStates):
    """-log of the share that a row's teacher has among the teachers of its group, by exp(cosine / temperature) of
    projected mean hidden states; one value a row. Contrastive representation distillation, Tian et al. 2020,
    https://arxiv.org/abs/1910.10699, with the group's other rows as negatives instead of a memory of all.
    """

    def __init__(
        self,
        depths: tuple[int, int],
        widths: tuple[int, int],
        group_size: int = 16,
        temperature: float = 0.1,
        size: int = 128,
        weight: float | Schedule = 1.0,
    ) -> None:
        """``depths``, ``widths``: of student and teacher; ``size``: width of the common space."""
        super().__init__(depths, weight)
        self.projections = nn.ModuleList(nn.Linear(width, size) for width in widths)
        self.group_size, self.temperature = group_size, temperature

    def count(self, batch: Batch) -> int:
        return num_in_groups(batch.num_rows, self.group_size, 2)

    def forward(self, student: Mapping[Signal, Tensor], teacher: Mapping[Signal, Tensor], batch: Batch) -> Tensor:
        own, other = (
            F.normalize(projection(row_means(states, batch.lengths)).float(), dim=-1)
            for states, projection in zip(self.states(student, teacher), self.projections, strict=True)
        )
        values = []
        for rows in groups_of(batch.num_rows, self.group_size, 2):
            cosines = own[rows] @ other[rows].T
            values.append(-F.log_softmax(cosines / self.temperature, dim=-1).diagonal())
        return torch.cat(values)
