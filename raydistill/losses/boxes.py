"""Boxes of two detectors: where the teacher finds something, so should the student."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from raydistill.config.losses import Schedule
from raydistill.data.batches import Batch
from raydistill.losses.base import Loss
from raydistill.models.boxes import Problem, box_errors, paired
from raydistill.models.head import NUM_SIDES
from raydistill.models.signals import LOGITS, Signal


class Boxes(Loss):
    """Sum over the teacher's queries of p(it finds something) · (5 · L1 + 2 · (1 - GIoU)) of the two boxes, over the
    objects of a mean picture, a value a picture: the size of the task's own part on boxes. Which query stands for
    which, see ``models.boxes.paired``. After Chang et al. 2023 (DETRDistill), https://arxiv.org/abs/2211.10156.
    """

    student_needs = frozenset({LOGITS})
    teacher_needs = frozenset({LOGITS})

    def __init__(self, problem: Problem, weight: float | Schedule = 1.0) -> None:
        super().__init__(weight)
        self.problem = problem

    def count(self, batch: Batch) -> int:
        return batch.num_rows

    def forward(self, student: Mapping[Signal, Tensor], teacher: Mapping[Signal, Tensor], batch: Batch) -> Tensor:
        own, other = paired(student[LOGITS], teacher[LOGITS], self.problem)
        sure = self.problem.certainty(other[..., :-NUM_SIDES])
        return (sure * box_errors(own[..., -NUM_SIDES:], other[..., -NUM_SIDES:])).sum(1) / self.problem.mean_objects
