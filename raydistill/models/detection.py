"""What detectors say of a picture, logits and a box for each of their queries, and the losses by which they learn it.

Outputs are flat: (B, Q · (S + 4)), a query's S logits and its box, query after query. YOLOS has logits of C classes and
of no object; a ``focal`` detector (RT-DETR, RT-DETRv2, D-FINE) says of each of C classes by itself whether it is there.
While a focal one is trained, outputs are (B, K, Q · (S + 4)): of its last layer, then of each other layer of its
decoder and of the proposals that its queries begin from, which learn by nothing else.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from raydistill.models.boxes import GIOU_WEIGHT, L1_WEIGHT, box_errors, cheapest, giou, iou
from raydistill.models.head import NUM_SIDES, num_scores

NO_OBJECT_WEIGHT = 0.1
"""Of a query that finds nothing, in the loss."""
CHOSEN_FIRST = 30.0
"""More than any cost of a pair: the queries that find something are matched before all others."""
MATCHED = 100
"""Queries of a teacher that are matched by what they find; with all 300 of an RT-DETR it would take 25 ms a picture."""
FOCAL_ALPHA, FOCAL_GAMMA, FOCAL_COST = 0.25, 2.0, 2.0
"""Of the cost of a match, by Deformable DETR and its kin."""
VARIFOCAL_ALPHA, VARIFOCAL_GAMMA = 0.75, 2.0
"""Of what a query does not find, in RT-DETR's loss."""


class Matches(NamedTuple):
    """Which query finds which object: row, query and object of each match (M,), on the CPU."""

    rows: Tensor
    queries: Tensor
    objects: Tensor


@dataclass(frozen=True)
class Problem(ABC):
    """What a loss on boxes knows of the training pictures: the number of classes, and the objects of a mean one."""

    num_classes: int
    mean_objects: float
    is_focal: ClassVar[bool]

    def units(self, outputs: Tensor) -> Tensor:
        """Flat outputs by query, (…, Q, S + 4), float32."""
        return outputs.float().unflatten(-1, (-1, num_scores(self.num_classes, self.is_focal) + NUM_SIDES))

    def stages(self, outputs: Tensor) -> Tensor:
        """Outputs (B, K, Q, S + 4), the last layer's first; K is 1 where only this one's are there."""
        units = self.units(outputs)
        return units if units.dim() == 4 else units[:, None]

    def mean_weight(self, num_queries: int) -> float:
        """Weight of all queries of a mean picture, those that find nothing counting a tenth."""
        found = min(self.mean_objects, num_queries)
        return found + NO_OBJECT_WEIGHT * (num_queries - found)

    @abstractmethod
    def probabilities(self, logits: Tensor) -> Tensor:
        """Of the classes, (…, S) -> (…, C)."""

    @abstractmethod
    def certainty(self, logits: Tensor) -> Tensor:
        """Probability that queries find something, (…, S) -> (…)."""

    @abstractmethod
    def class_costs(self, logits: Tensor) -> Tensor:
        """Of a query (…, S) for an object of each class, (…, C)."""

    @abstractmethod
    def class_losses(self, units: Tensor, matches: Matches, classes: Tensor, wanted: Tensor) -> Tensor:
        """Of each row (B, Q, S + 4), (B,): of classes (M,) and boxes (M, 4) that matched queries should have found."""


class Softmax(Problem):
    """Cross entropy over the classes and no object, DETR's: https://arxiv.org/abs/2005.12872."""

    is_focal = False

    def probabilities(self, logits: Tensor) -> Tensor:
        return logits.softmax(-1)[..., :-1]

    def certainty(self, logits: Tensor) -> Tensor:
        return 1 - logits.softmax(-1)[..., -1]

    def class_costs(self, logits: Tensor) -> Tensor:
        return -self.probabilities(logits)

    def class_losses(self, units: Tensor, matches: Matches, classes: Tensor, wanted: Tensor) -> Tensor:
        logits, nothing = units[..., :-NUM_SIDES], self.num_classes
        labels = torch.full(logits.shape[:2], nothing, device=units.device)
        labels[matches.rows, matches.queries] = classes
        nats = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape)
        weights = torch.where(labels == nothing, NO_OBJECT_WEIGHT, 1.0)
        return (nats * weights).sum(1) / self.mean_weight(labels.shape[1])


class Focal(Problem):
    """The varifocal loss, RT-DETR's: a matched query should give its class the probability of the IoU of its box, and
    what should be 0 weighs as much as it is not. https://arxiv.org/abs/2304.08069, https://arxiv.org/abs/2008.13367."""

    is_focal = True

    def probabilities(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()

    def certainty(self, logits: Tensor) -> Tensor:
        return logits.sigmoid().amax(-1)

    def class_costs(self, logits: Tensor) -> Tensor:
        p, tiny = logits.sigmoid(), 1e-8
        found = FOCAL_ALPHA * (1 - p) ** FOCAL_GAMMA * -(p + tiny).log()
        missed = (1 - FOCAL_ALPHA) * p**FOCAL_GAMMA * -(1 - p + tiny).log()
        return FOCAL_COST * (found - missed)

    def class_losses(self, units: Tensor, matches: Matches, classes: Tensor, wanted: Tensor) -> Tensor:
        logits, place = units[..., :-NUM_SIDES], (matches.rows, matches.queries)
        targets, is_found = torch.zeros_like(logits), torch.zeros_like(logits, dtype=torch.bool)
        targets[(*place, classes)] = iou(units[place][:, -NUM_SIDES:], wanted).detach()
        is_found[(*place, classes)] = True
        weights = torch.where(is_found, targets, VARIFOCAL_ALPHA * logits.detach().sigmoid() ** VARIFOCAL_GAMMA)
        nats = F.binary_cross_entropy_with_logits(logits, targets, weights, reduction="none")
        return nats.sum((1, 2)) / self.mean_objects


def problem_of(num_classes: int, mean_objects: float, focal: bool) -> Problem:
    """The problem of such pictures for detectors of a kind."""
    return (Focal if focal else Softmax)(num_classes, mean_objects)


def training_outputs(output: Any) -> Tensor:
    """Return what a focal detector computed, of its last layer, all others and the proposals, (B, K, Q · (S + 4))."""
    layers = torch.cat([output["intermediate_logits"], output["intermediate_reference_points"]], -1)
    proposals = torch.cat([output["enc_topk_logits"], output["enc_topk_bboxes"]], -1)
    return torch.cat([layers[:, -1:], layers[:, :-1], proposals[:, None]], 1).flatten(2)


@torch.no_grad()
def match(units: Tensor, classes: Tensor, wanted: Tensor, lengths: np.ndarray, problem: Problem) -> Matches:
    """Which query finds which object, so that all costs of a row are the least together.

    ``units`` (B, Q, S + 4); ``classes`` (B, N) and ``wanted`` boxes (B, N, 4) of the first ``lengths`` (B,) objects of
    each row. The cost of a pair is that of its class + 5 · L1 - 2 · GIoU. Of more objects than queries some stay
    without one.
    """
    boxes = units[..., -NUM_SIDES:]
    index = classes[:, None].expand(-1, units.shape[1], -1)
    cost = problem.class_costs(units[..., :-NUM_SIDES]).gather(2, index)
    cost = cost + L1_WEIGHT * (boxes[:, :, None] - wanted[:, None]).abs().sum(-1)
    cost = cost - GIOU_WEIGHT * giou(boxes[:, :, None], wanted[:, None])
    found = cheapest(cost, lengths)
    rows = np.repeat(np.arange(len(found)), [len(pair[0]) for pair in found])
    query, item = (np.concatenate([np.zeros(0, int), *(pair[side] for pair in found)]) for side in (0, 1))
    return Matches(torch.as_tensor(rows), torch.as_tensor(query), torch.as_tensor(item))


def detection_losses(outputs: Tensor, classes: Tensor, wanted: Tensor, lengths: np.ndarray, problem: Problem) -> Tensor:
    """The loss of each row, (B,), by which a detector's family learns: of classes, and L1 and GIoU of matched boxes;
    the mean over the stages of ``outputs``, each of which is matched by itself.

    DETR and RT-DETR divide by the number of objects of a batch, DETR's classes by the sum of their weights. Here both
    are those of a mean row of the training set: a row's loss does not hang on the rows beside it, one without objects
    counts, and over all of them it is the same.
    """
    stages = problem.stages(outputs).unbind(1)
    losses = [stage_losses(units, classes, wanted, lengths, problem) for units in stages]
    return torch.stack(losses).mean(0)


def stage_losses(units: Tensor, classes: Tensor, wanted: Tensor, lengths: np.ndarray, problem: Problem) -> Tensor:
    """The same of one stage, (B, Q, S + 4)."""
    found = match(units, classes, wanted, lengths, problem)
    matches = Matches(*(index.to(units.device) for index in found))
    rows, query, item = matches
    errors = box_errors(units[rows, query][:, -NUM_SIDES:], wanted[rows, item])
    of_classes = problem.class_losses(units, matches, classes[rows, item], wanted[rows, item])
    return of_classes + of_classes.new_zeros(len(units)).index_add(0, rows, errors) / problem.mean_objects


def paired(student: Tensor, teacher: Tensor, problem: Problem) -> tuple[Tensor, Tensor]:
    """The queries of two detectors that stand for each other, (B, K, M, S + 4) each, of flat outputs: those of all
    stages of the student, each beside the teacher's last layer.

    Where both have as many and these are the same in all pictures, query i is query i: a student that is cut from its
    teacher has its queries, and any other can learn what each of them looks for. Else they are matched, by the
    student's last layer, as to objects, those first of which the teacher is surest.
    """
    own, other = problem.stages(student), problem.units(teacher)
    if problem.is_focal or own.shape[2] != other.shape[1]:
        first, second = match_queries(own[:, 0], other, problem)
        index = first.to(own.device)[:, None, :, None].expand(-1, own.shape[1], -1, own.shape[-1])
        own = own.gather(2, index)
        other = other.gather(1, second.to(other.device)[..., None].expand(-1, -1, other.shape[-1]))
    return own, other[:, None].expand_as(own)


@torch.no_grad()
def match_queries(own: Tensor, other: Tensor, problem: Problem) -> tuple[Tensor, Tensor]:
    """Which query of a row (B, Q, S + 4) stands for which of another model's (B, R, S + 4): (B, min(Q, R)) each. Of
    more than ``MATCHED`` those that find least say the same, and are paired as they come."""
    sure, order = problem.certainty(other[..., :-NUM_SIDES]).sort(1, descending=True)
    sure, chosen = sure[:, :MATCHED], order[:, :MATCHED, None].expand(-1, -1, other.shape[-1])
    known = other.gather(1, chosen)
    likely = problem.probabilities(known[..., :-NUM_SIDES])
    cost = -problem.probabilities(own[..., :-NUM_SIDES]) @ likely.transpose(1, 2)
    cost = cost + box_errors(own[:, :, None, -NUM_SIDES:], known[:, None, :, -NUM_SIDES:])
    pairs = cheapest(sure[:, None] * (cost - CHOSEN_FIRST), np.full(len(own), known.shape[1]))
    first, second = (np.array([pair[side] for pair in pairs]).reshape(len(own), -1) for side in (0, 1))
    if rest := min(own.shape[1], other.shape[1]) - first.shape[1]:
        free = np.array([np.setdiff1d(np.arange(own.shape[1]), row)[:rest] for row in first])
        first = np.concatenate([first, free], 1)
        second = np.concatenate([second, np.tile(np.arange(MATCHED, MATCHED + rest), (len(own), 1))], 1)
    return torch.as_tensor(first), order.cpu().gather(1, torch.as_tensor(second))
