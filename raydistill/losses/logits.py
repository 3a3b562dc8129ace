"""Losses on the logits of a row, or of each of its units: soft targets and squared differences."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from raydistill.config.losses import Kind, Schedule
from raydistill.data.batches import Batch
from raydistill.losses.base import Loss
from raydistill.models.detection import NO_OBJECT_WEIGHT, Problem, paired
from raydistill.models.head import NUM_SIDES
from raydistill.models.ragged import padded
from raydistill.models.signals import LOGITS, TOP, Signal
from raydistill.models.vocabulary import coarse, top_ids, top_log_probabilities


class LogitLoss(Loss):
    """A loss with one value a row, or a unit of one, from the logits of both models, (B, C)."""

    student_needs = frozenset({LOGITS})
    teacher_needs = frozenset({LOGITS})
    signals = (LOGITS, LOGITS)
    """Of student and teacher."""

    def read(self, student: Signal, teacher: Signal) -> None:
        """Compare these signals: of a CRF the logarithms of its marginals, which are what logits are elsewhere."""
        self.signals = (student, teacher)
        self.student_needs, self.teacher_needs = frozenset({student}), frozenset({teacher})

    def count(self, batch: Batch) -> int:
        return batch.targets.num_units


class SoftLoss(LogitLoss):
    """T² times a divergence of the predictions at temperature T.

    ``categorical`` predictions are softmax(z/T); ``bernoulli`` ones are sigmoid(z/T) for each label, ``span`` ones
    softmax(z/T) over the units of a row for each output (begin and end), a value a row; the mean over the labels, or
    outputs, is taken, as the task's own loss does. Of ``boxes`` they are softmax(z/T) over the classes and no object
    for each query that the teacher has, or sigmoid(z/T) of each class, over which the sum is taken, see
    ``models.detection``; a value a row: the sum over the queries, in which one counts 0.1, and as much more as the
    teacher is sure that it finds something, over what the queries of a mean row count, and the mean over the student's
    stages. T² keeps the size of the gradient about constant over T.

    ``standardize``: z is (z - mean) / deviation over the row's classes (Sun et al. 2024,
    https://arxiv.org/abs/2403.01427). ``confidence``: a value is multiplied by this power of the teacher's largest
    probability at T = 1.
    """

    temperature: float
    problem: Problem | None = None
    """Of boxes."""

    def __init__(
        self,
        weight: float | Schedule = 1.0,
        temperature: float | Schedule = 2.0,
        kind: Kind = "categorical",
        standardize: bool = False,
        confidence: float = 0.0,
    ) -> None:
        super().__init__(weight)
        self.set("temperature", temperature)
        self.kind = kind
        self.standardize, self.confidence = standardize, confidence

    def forward(self, student: Mapping[Signal, Tensor], teacher: Mapping[Signal, Tensor], batch: Batch) -> Tensor:
        sides = zip((student, teacher), self.signals, strict=True)
        z_student, z_teacher = (side[signal].float() for side, signal in sides)
        if self.signals[1].name == TOP:  # the likeliest tokens, and all others as one
            z_student, z_teacher = coarse(z_student, top_ids(z_teacher)), top_log_probabilities(z_teacher)
        if self.kind == "span":
            lengths = batch.targets.values.lengths
            z_student, z_teacher = (padded(z, lengths) for z in (z_student, z_teacher))
        if self.problem is not None:
            z_student, z_teacher = (one[..., :-NUM_SIDES] for one in paired(z_student, z_teacher, self.problem))
            certainty = self.problem.certainty(z_teacher)
        is_focal = self.problem is not None and self.problem.is_focal
        if self.kind == "bernoulli" or is_focal:  # the two outcomes of each label are a distribution over z and 0
            z_student, z_teacher = (torch.stack([z, torch.zeros_like(z)], dim=-1) for z in (z_student, z_teacher))
        sure = z_teacher.softmax(-1).amax(-1) ** self.confidence if self.confidence else None
        if self.standardize:
            z_student, z_teacher = (F.layer_norm(z, z.shape[-1:], eps=1e-7) for z in (z_student, z_teacher))
        log_student, log_teacher = (F.log_softmax(z / self.temperature, dim=-1) for z in (z_student, z_teacher))
        divergence = self.divergence(log_student, log_teacher, batch)
        if sure is not None:
            divergence = divergence * sure
        if self.problem is not None:
            weights = NO_OBJECT_WEIGHT + (1 - NO_OBJECT_WEIGHT) * certainty
            divergence = divergence.sum(-1) if is_focal else divergence  # over the classes
            divergence = (weights * divergence).sum(-1).mean(1) / self.problem.mean_weight(weights.shape[-1])
        elif divergence.dim() > 1:
            divergence = divergence.mean(-1)
        return divergence * self.temperature**2

    def count(self, batch: Batch) -> int:
        return batch.num_rows if self.kind in ("span", "boxes") else super().count(batch)

    def divergence(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """Compare log-probabilities (…, C), by which they are reduced."""
        raise NotImplementedError


class ForwardKl(SoftLoss):
    """Soft targets, T² · KL(p_T ‖ p_S). Hinton et al. 2015, https://arxiv.org/abs/1503.02531."""

    def divergence(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        return kl(teacher, student)


class ReverseKl(SoftLoss):
    """T² · KL(p_S ‖ p_T), which seeks a mode. MiniLLM, https://arxiv.org/abs/2306.08543."""

    def divergence(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        return kl(student, teacher)


class Jsd(SoftLoss):
    """T² · (β KL(p_T ‖ m) + (1 - β) KL(p_S ‖ m)), m = β p_T + (1 - β) p_S. GKD, https://arxiv.org/abs/2306.13649."""

    def __init__(self, *arguments: Any, beta: float = 0.5) -> None:
        super().__init__(*arguments)
        self.beta = beta

    def divergence(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        mixture = torch.logaddexp(teacher + math.log(self.beta), student + math.log(1 - self.beta))
        return self.beta * kl(teacher, mixture) + (1 - self.beta) * kl(student, mixture)


class SoftCrossEntropy(SoftLoss):
    """T² · -Σ p_T log p_S: ``ForwardKl`` plus the teacher's entropy, so it is subsumed by it."""

    def divergence(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        return -(teacher.exp() * student).sum(-1)


class Dkd(SoftLoss):
    """Decoupled soft targets, T² · (α KL of the binary target/other + β KL among the others). Zhao et al. 2022,
    https://arxiv.org/abs/2203.08679.

    The target is a row's label, and where it has none the teacher's most likely class. With β = 1 - p_T(target), row by
    row, it would be ``ForwardKl``; of two classes the second part is empty.
    """

    def __init__(self, *arguments: Any, alpha: float = 1.0, beta: float = 2.0) -> None:
        super().__init__(*arguments)
        self.alpha, self.beta = alpha, beta

    def divergence(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        targets = batch.targets
        labels, labeled = (
            torch.as_tensor(values, device=teacher.device) for values in (targets.labels(), targets.labeled_units())
        )
        target = torch.where(labeled, labels, teacher.argmax(-1))[:, None]
        is_other = torch.ones_like(teacher, dtype=torch.bool).scatter(1, target, False)
        pairs, others = [], []
        for log_p in (teacher, student):
            rest = log_p[is_other].view(len(log_p), -1)
            total = rest.logsumexp(-1, keepdim=True)
            pairs.append(torch.cat([log_p.gather(1, target), total], dim=1))
            others.append(rest - total)
        return self.alpha * kl(*pairs) + self.beta * kl(*others)


class Dist(SoftLoss):
    """T² · (inter · (1 - ρ of a row's probabilities) + intra · the mean over classes of 1 - ρ over a group's rows), ρ
    being Pearson's correlation. DIST, https://arxiv.org/abs/2205.10536.

    A group of one row has no correlation over rows, and only the first part.
    """

    def __init__(self, *arguments: Any, inter: float = 1.0, intra: float = 1.0, group_size: int = 16) -> None:
        super().__init__(*arguments)
        self.inter, self.intra, self.group_size = inter, intra, group_size

    def divergence(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        p_student, p_teacher = student.exp(), teacher.exp()
        over_rows = [
            (1 - correlation(a.T, b.T)).mean().expand(len(a)) if len(a) > 1 else a.new_zeros(1)
            for a, b in zip(p_student.split(self.group_size), p_teacher.split(self.group_size), strict=True)
        ]
        return self.inter * (1 - correlation(p_student, p_teacher)) + self.intra * torch.cat(over_rows)


def kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p ‖ q) of log-probabilities (…, C), summed over the classes."""
    return F.kl_div(q, p, reduction="none", log_target=True).sum(-1)


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's correlation of each row of (R, N) with that of the other; (R,)."""
    return F.cosine_similarity(a - a.mean(-1, keepdim=True), b - b.mean(-1, keepdim=True), dim=-1)


class LogitMse(LogitLoss):
    """Squared difference of the logits, averaged over classes. Ba & Caruana 2014, https://arxiv.org/abs/1312.6184."""

    def forward(self, student: Mapping[Signal, Tensor], teacher: Mapping[Signal, Tensor], batch: Batch) -> Tensor:
        return (student[LOGITS].float() - teacher[LOGITS].float()).square().mean(-1)
