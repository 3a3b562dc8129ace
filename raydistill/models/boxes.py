"""Boxes of detectors: how far one is from another, which goes with which, and how the layers that make them compute.

Boxes are center, width and height as shares of the picture.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from raydistill.models.head import DETECTORS

L1_WEIGHT, GIOU_WEIGHT = 5.0, 2.0
"""Of a box beside its class, in the cost of a match and in the loss."""
TOKENS, TOKEN_DEVIATION = ("_token", "_tokens", "position_embeddings"), 0.2
"""Of a new model, where nothing has learned what they mean. On toy scenes, 600 steps from random weights, mAP at IoU
0.5 was 6 % with zeros, 46 with YOLOS's own 0.02 and 80 with this."""
FILLING = (0.5, 0.5, 1.0, 1.0)
"""The box of an object that is not there."""
BOX_HEADS = ("bbox_predictor", "bbox_embed", "enc_bbox_head", "pre_bbox_head")
"""Names, in transformers, of the layers that make boxes, or of lists of these."""


@torch.no_grad()
def fit_to_be_trained(model: nn.Module) -> None:
    """Draw anew what transformers leaves as no new detector can learn from it: tokens and positions at 0, of which all
    queries would give one answer, and scales of batch norms near 0 (RT-DETR), behind which nothing is left."""
    for name, parameter in model.named_parameters():
        if name.endswith(TOKENS) and not parameter.is_meta and not parameter.any():
            nn.init.trunc_normal_(parameter, std=TOKEN_DEVIATION)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)


@contextmanager
def exact_boxes(model: nn.Module) -> Iterator[None]:
    """Inside, the layers of a detector that make boxes compute in float32 under autocast: bfloat16 knows the middle of
    a picture to 1 part in 256, which no box that has to overlap by 95 % can do with."""
    with ExitStack() as kept:
        for head in box_heads(model):
            head.forward = partial(exact, head.forward)
            kept.callback(delattr, head, "forward")  # the class's own again
        yield


def box_heads(model: nn.Module) -> list[nn.Module]:
    """The layers of a model that make boxes; of a list its members. Only detectors are looked through: this is asked at
    each forward pass."""
    if getattr(getattr(model, "config", None), "model_type", None) not in DETECTORS:
        return []
    found = {name: module for name, module in model.named_modules() if name.rpartition(".")[2] in BOX_HEADS}
    return [one for head in found.values() for one in (head if isinstance(head, nn.ModuleList) else [head])]


def exact(forward: Any, states: Tensor) -> Tensor:
    """What a layer gives in float32."""
    with torch.autocast(states.device.type, enabled=False):
        found: Tensor = forward(states.float())
        return found


def corners(boxes: Tensor) -> Tensor:
    """Left, top, right and bottom of boxes (…, 4)."""
    half = boxes[..., 2:] / 2
    return torch.cat([boxes[..., :2] - half, boxes[..., :2] + half], dim=-1)


def giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised intersection over union of boxes (…, 4), -1 to 1. https://arxiv.org/abs/1902.09630."""
    inside, union = shared(a, b)
    a, b = corners(a), corners(b)
    hull = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).prod(-1)
    return inside / union - (hull - union) / hull


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of boxes (…, 4), 0 to 1."""
    inside, union = shared(a, b)
    return inside / union


def shared(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Areas that boxes (…, 4) share, and that they cover together."""
    a, b = corners(a), corners(b)
    size_a, size_b = ((box[..., 2:] - box[..., :2]).prod(-1) for box in (a, b))
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    inside = (high - low).clamp(min=0).prod(-1)
    return inside, size_a + size_b - inside


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
