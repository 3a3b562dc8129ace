"""What detectors say of a picture: for each of their queries the logits of the classes and of no object, and a box.

Boxes are center, width and height as shares of the picture. Outputs are flat: (B, Q · (C + 5)), a query's C + 1 logits
and its box, query after query. Matching and loss are those of DETR, https://arxiv.org/abs/2005.12872.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raydistill.models.head import NUM_SIDES

L1_WEIGHT, GIOU_WEIGHT = 5.0, 2.0
"""Of a box beside its class, in the cost of a match and in the loss."""
NO_OBJECT_WEIGHT = 0.1
"""Of a query that finds nothing, in the loss."""
CHOSEN_FIRST = 30.0
"""More than any cost of a pair: the queries that find something are matched before all others."""
TOKENS, TOKEN_DEVIATION = ("_token", "_tokens", "position_embeddings"), 0.2
"""Of a new model, where nothing has learned what they mean. On toy scenes, 600 steps from random weights, mAP at IoU
0.5 was 6 % with zeros, 46 with YOLOS's own 0.02 and 80 with this."""
FILLING = (0.5, 0.5, 1.0, 1.0)
"""The box of an object that is not there."""


@dataclass(frozen=True)
class Problem:
    """What a loss on boxes knows of the training pictures: the number of classes, and the objects of a mean one."""

    num_classes: int
    mean_objects: float

    def units(self, outputs: Tensor) -> Tensor:
        """Flat outputs by query, (B, Q, C + 5), float32."""
        return outputs.float().unflatten(1, (-1, self.num_classes + 1 + NUM_SIDES))

    def mean_weight(self, num_queries: int) -> float:
        """Weight of all queries of a mean picture, those that find nothing counting a tenth."""
        found = min(self.mean_objects, num_queries)
        return found + NO_OBJECT_WEIGHT * (num_queries - found)

    def certainty(self, logits: Tensor) -> Tensor:
        """Probability that queries find something, (…, C + 1) -> (…)."""
        return 1 - logits.softmax(-1)[..., -1]


@torch.no_grad()
def tell_queries_apart(model: nn.Module) -> None:
    """Draw the tokens and positions that transformers leaves at 0: all queries of a new model would give one answer."""
    for name, parameter in model.named_parameters():
        if name.endswith(TOKENS) and not parameter.is_meta and not parameter.any():
            nn.init.trunc_normal_(parameter, std=TOKEN_DEVIATION)


@contextmanager
def exact_boxes(model: nn.Module) -> Iterator[None]:
    """Inside, the layers of a detector that make boxes compute in float32 under autocast: bfloat16 knows the middle of
    a picture to 1 part in 256, which no box that has to overlap by 95 % can do with."""
    head: Any = getattr(model, "bbox_predictor", None)
    if head is None:
        yield
        return
    inexact = head.forward

    def exact(states: Tensor) -> Tensor:
        with torch.autocast(states.device.type, enabled=False):
            found: Tensor = inexact(states.float())
            return found

    head.forward = exact
    try:
        yield
    finally:
        del head.forward  # the class's own again


def queries(outputs: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Flat outputs as logits (B, Q, C + 1), no object the last, and boxes (B, Q, 4)."""
    units = outputs.unflatten(1, (-1, num_classes + 1 + NUM_SIDES))
    return units[..., :-NUM_SIDES], units[..., -NUM_SIDES:]


def corners(boxes: Tensor) -> Tensor:
    """Left, top, right and bottom of boxes (…, 4)."""
    half = boxes[..., 2:] / 2
    return torch.cat([boxes[..., :2] - half, boxes[..., :2] + half], dim=-1)


def giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised intersection over union of boxes (…, 4), -1 to 1. https://arxiv.org/abs/1902.09630."""
    a, b = corners(a), corners(b)
    size_a, size_b = ((box[..., 2:] - box[..., :2]).prod(-1) for box in (a, b))
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    inside = (high - low).clamp(min=0).prod(-1)
    union = size_a + size_b - inside
    hull = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).prod(-1)
    return inside / union - (hull - union) / hull


def box_errors(boxes: Tensor, wanted: Tensor) -> Tensor:
    """How far boxes (M, 4) are from those wanted, (M,): L1 and 1 - GIoU, weighted."""
    return L1_WEIGHT * (boxes - wanted).abs().sum(-1) + GIOU_WEIGHT * (1 - giou(boxes, wanted))


def as_block(objects: np.ndarray, lengths: np.ndarray, filling: tuple[float, ...]) -> np.ndarray:
    """Objects (M, K) of rows one after another as (B, most, K), with ``filling`` (K,) behind a row's last one."""
    is_there = np.arange(lengths.max(initial=0)) < lengths[:, None]
    block = np.empty((*is_there.shape, objects.shape[1]), objects.dtype)
    block[...] = filling
    block[is_there] = objects
    return block


def cheapest(cost: Tensor, lengths: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of each row of costs (B, Q, N), of which the first ``lengths`` (B,) columns count, the pairs of least total cost:
    their queries and columns, min(Q, length) each. What is no number costs most: the loop tells of models that
    diverge."""
    from scipy.optimize import linear_sum_assignment

    known = cost.nan_to_num(nan=1e9, posinf=1e9, neginf=1e9).cpu().numpy()  # one way from the device for all rows
    return [linear_sum_assignment(one[:, :length]) for one, length in zip(known, lengths, strict=True)]


@torch.no_grad()
def match(
    logits: Tensor, boxes: Tensor, classes: Tensor, wanted: Tensor, lengths: np.ndarray
) -> tuple[Tensor, Tensor, Tensor]:
    """Which query finds which object, so that all costs of a row are the least together: row, query and object of each
    match, on the CPU.

    ``classes`` (B, N) and ``wanted`` boxes (B, N, 4) of the first ``lengths`` (B,) objects of each row. The cost of a
    pair is -p(class) + 5 · L1 - 2 · GIoU. Of more objects than queries some stay without one.
    """
    index = classes[:, None].expand(-1, logits.shape[1], -1)
    cost = -logits.softmax(-1).gather(2, index)
    cost = cost + L1_WEIGHT * (boxes[:, :, None] - wanted[:, None]).abs().sum(-1)
    cost = cost - GIOU_WEIGHT * giou(boxes[:, :, None], wanted[:, None])
    found = cheapest(cost, lengths)
    rows = np.repeat(np.arange(len(found)), [len(pair[0]) for pair in found])
    query, item = (np.concatenate([np.zeros(0, int), *(pair[side] for pair in found)]) for side in (0, 1))
    return torch.as_tensor(rows), torch.as_tensor(query), torch.as_tensor(item)


def detection_losses(outputs: Tensor, classes: Tensor, wanted: Tensor, lengths: np.ndarray, problem: Problem) -> Tensor:
    """DETR's loss of each row, (B,): cross entropy of the classes, those of unmatched queries at 0.1, and L1 and GIoU
    of matched boxes.

    DETR divides the first by the sum of weights and the others by the number of objects of a batch. Here both are those
    of a mean row of the training set: a row's loss does not hang on the rows beside it,
    one without objects counts, and over all of them it is the same.
    """
    nothing = problem.num_classes
    logits, boxes = queries(outputs.float(), nothing)
    rows, query, item = (index.to(outputs.device) for index in match(logits, boxes, classes, wanted, lengths))
    labels = torch.full(logits.shape[:2], nothing, device=outputs.device)
    labels[rows, query] = classes[rows, item]
    nats = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape)
    weights = torch.where(labels == nothing, NO_OBJECT_WEIGHT, 1.0)
    errors = box_errors(boxes[rows, query], wanted[rows, item])
    of_classes = (nats * weights).sum(1) / problem.mean_weight(logits.shape[1])
    return of_classes + nats.new_zeros(len(nats)).index_add(0, rows, errors) / problem.mean_objects


def paired(student: Tensor, teacher: Tensor, problem: Problem) -> tuple[Tensor, Tensor]:
    """The queries of two detectors that stand for each other, (B, M, C + 5) each, of flat outputs.

    Where both have as many, query i is query i: a student that is cut from its teacher has its queries, and any other
    can learn what each of them looks for. Else they are matched as to objects, those first of which the teacher is
    surest that they find something.
    """
    own, other = problem.units(student), problem.units(teacher)
    if own.shape == other.shape:
        return own, other
    first, second = match_queries(own, other, problem)
    return tuple(  # type: ignore[return-value]
        units.gather(1, index.to(units.device)[..., None].expand(-1, -1, units.shape[-1]))
        for units, index in ((own, first), (other, second))
    )


@torch.no_grad()
def match_queries(own: Tensor, other: Tensor, problem: Problem) -> tuple[Tensor, Tensor]:
    """Which query of a row (B, Q, C + 5) stands for which of another model's (B, R, C + 5): (B, min(Q, R)) each."""
    sure, likely = problem.certainty(other[..., :-NUM_SIDES]), other[..., : problem.num_classes].softmax(-1)
    cost = -own[..., :-NUM_SIDES].softmax(-1)[..., :-1] @ likely.transpose(1, 2)
    cost = cost + box_errors(own[:, :, None, -NUM_SIDES:], other[:, None, :, -NUM_SIDES:])
    pairs = cheapest(sure[:, None] * (cost - CHOSEN_FIRST), np.full(len(own), other.shape[1]))
    found = np.array(pairs).reshape(len(own), 2, -1)
    return torch.as_tensor(found[:, 0]), torch.as_tensor(found[:, 1])
