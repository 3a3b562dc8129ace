"""Boxes of two detectors, and what they see in these: where the teacher finds something, so should the student."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from raydistill.config.losses import Schedule
from raydistill.data.batches import Batch
from raydistill.losses.base import Loss
from raydistill.losses.hidden import HiddenCosine
from raydistill.models.boxes import box_errors, corners
from raydistill.models.detection import Problem, paired
from raydistill.models.head import NUM_SIDES
from raydistill.models.pictures import coarsest, on_one_grid
from raydistill.models.signals import LOGITS, Signal


class Boxes(Loss):
    """Sum over the teacher's queries of p(it finds something) · (5 · L1 + 2 · (1 - GIoU)) of the two boxes, over the
    objects of a mean picture, a value a picture: the size of the task's own part on boxes; the mean over the stages of
    the student. Which query stands for which, see ``models.detection.paired``. After Chang et al. 2023 (DETRDistill),
    https://arxiv.org/abs/2211.10156.
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
        errors = sure * box_errors(own[..., -NUM_SIDES:], other[..., -NUM_SIDES:])
        return errors.sum(-1).mean(1) / self.problem.mean_objects


class BoxFeatures(HiddenCosine):
    """1 - cosine of the hidden states of mapped layers inside the teacher's boxes, a value a picture: the sum over the
    places of ``inside``, over the objects of a mean picture.

    Near objects alone, after Wang et al. 2019, https://arxiv.org/abs/1906.03402; small ones count as much as large
    ones, after Yang et al. 2022 (FGD), https://arxiv.org/abs/2111.11837. Directions, not squares: of two detectors
    lengths of features say little, and long ones outweigh all others, Cao et al. 2022,
    https://arxiv.org/abs/2207.02039.
    """

    def __init__(self, *arguments: Any, problem: Problem, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.problem = problem
        self.teacher_needs = frozenset({*self.teacher_needs, LOGITS})

    def forward(self, student: Mapping[Signal, Tensor], teacher: Mapping[Signal, Tensor], batch: Batch) -> Tensor:
        values = []
        for pair, projection in zip(self.pairs, self.projections, strict=True):
            grids = self.grids(batch)[pair]
            own, other = on_one_grid(*self.states(student, teacher, pair), grids, batch.num_rows)
            found = self.distance(projection(own).float(), other).view(batch.num_rows, -1)
            values.append((inside(teacher[LOGITS], self.problem, coarsest(grids)) * found).sum(1))
        return torch.stack(values).mean(0) / self.problem.mean_objects


@torch.no_grad()
def inside(outputs: Tensor, problem: Problem, size: tuple[int, int]) -> Tensor:
    """How much each place of a grid of this size counts, (B, height · width), by flat outputs of a teacher: 1 a box, as
    far as the teacher is sure that it finds something, spread evenly over what it covers of the picture. A place in
    several boxes counts as in that which gives it most: what is found twice counts once."""
    units = problem.units(outputs)
    sure = problem.certainty(units[..., :-NUM_SIDES])
    left, top, right, bottom = corners(units[..., -NUM_SIDES:]).unbind(-1)
    down, across = sure[..., None] * spread(top, bottom, size[0]), spread(left, right, size[1])
    # picture by picture: 300 boxes on a grid of 160 x 160 take 31 MB
    rows = [(y[:, :, None] * x[:, None, :]).amax(0) for y, x in zip(down, across, strict=True)]
    return torch.stack(rows).flatten(1)


def spread(low: Tensor, high: Tensor, num_cells: int) -> Tensor:
    """The share of what lies from ``low`` to ``high`` (…), shares of a picture's side, that is in each of so many equal
    parts of this side: (…, num_cells), of sum 1, or 0 of what lies outside."""
    edges = torch.linspace(0, 1, num_cells + 1, device=low.device)
    covered = torch.minimum(high[..., None], edges[1:]) - torch.maximum(low[..., None], edges[:-1])
    covered = covered.clamp(min=0)
    return covered / covered.sum(-1, keepdim=True).clamp(min=torch.finfo(covered.dtype).tiny)
