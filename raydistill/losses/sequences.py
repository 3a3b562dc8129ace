"""Losses on whole sequences of labels, of students that are a CRF or plain taggers: one value a unit, whose sum over a
row is that of its sequence. The formulas of the chain are in ``models.crf``."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from raydistill.config.losses import Schedule
from raydistill.data.batches import Batch
from raydistill.losses.base import Loss
from raydistill.models.crf import Chains, log_likelihood
from raydistill.models.ragged import row_sums
from raydistill.models.signals import BEGINS, LOGITS, SEQUENCES, TRANSITIONS, Signal


class SequenceLoss(Loss):
    """A loss on the log-probabilities of labels given those before them."""

    student_needs = frozenset({LOGITS, TRANSITIONS})

    def nats(self, student: Mapping[Signal, Tensor], batch: Batch, labels: Tensor) -> Tensor:
        """Log-probabilities (M, K) of the units of K sequences of labels (M, K)."""
        scores = student[TRANSITIONS]
        return log_likelihood(student[LOGITS].float(), scores, chains_of(batch, scores.device), labels)


class Likelihood(SequenceLoss):
    """Negative log-likelihood of the labels of labelled rows: the task's loss of a CRF."""

    role = "task"

    def count(self, batch: Batch) -> int:
        return int(batch.targets.labeled_units().sum())

    def forward(self, student: Mapping[Signal, Tensor], teacher: Mapping[Signal, Tensor], batch: Batch) -> Tensor:
        device, targets = student[LOGITS].device, batch.targets
        labels = torch.as_tensor(targets.labels(), device=device).clamp(min=0)
        labeled = torch.as_tensor(targets.labeled_units(), device=device)
        return -self.nats(student, batch, labels[:, None])[labeled, 0]


class KBest(SequenceLoss):
    """-Σ_k w_k log p_S(y_k) over the teacher's k most likely sequences, w its probabilities of them, divided by their
    sum. Top-WK of Wang et al. 2020, https://arxiv.org/abs/2004.03846."""

    def __init__(self, weight: float | Schedule = 1.0, k: int = 5) -> None:
        super().__init__(weight)
        self.sequences = Signal.of(SEQUENCES, k)
        self.teacher_needs = frozenset({self.sequences})

    def count(self, batch: Batch) -> int:
        return batch.targets.num_units

    def forward(self, student: Mapping[Signal, Tensor], teacher: Mapping[Signal, Tensor], batch: Batch) -> Tensor:
        labels, nats = teacher[self.sequences].chunk(2, dim=1)
        lengths = torch.as_tensor(batch.targets.values.lengths, device=nats.device)
        weights = row_sums(nats, lengths).softmax(1).repeat_interleave(lengths, 0)
        return -(weights * self.nats(student, batch, labels.long())).sum(1)


def chains_of(batch: Batch, device: torch.device) -> Chains:
    """The rows of a batch as chains of their units."""
    lengths = torch.as_tensor(batch.targets.values.lengths, device=device)
    return Chains.of(lengths, batch.inputs[BEGINS])
