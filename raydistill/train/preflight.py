"""Checks of a training stage before it starts: every loss once on real rows, with its gradient."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from raydistill.cluster.device import Device
from raydistill.data.batches import Batch
from raydistill.data.rows import Rows
from raydistill.losses.base import Losses
from raydistill.models.capture import capture
from raydistill.teacher.signals import Signals

GRADIENT_RATIO = 100.0
"""Terms whose gradients differ by more than this: the smaller one has no say (distillation.md lists it as a trap)."""

RATIOS = (1.0, 3.0)
"""Least and most that the gradient of the distillation is of that of the representation, by the rule of thumb."""

NUM_ROWS = 16


def check_losses(
    stage: str,
    model: PreTrainedModel,
    losses: Losses,
    signals: Signals,
    rows: Rows,
    row_ids: np.ndarray,
    device: Device,
) -> list[str]:
    """Return findings, a sentence each, about a stage's losses on the first rows it will train on.

    Losses and gradients are computed on at most 16 rows, labelled ones among them; the model is left as it was.
    """
    ids = sample_rows(rows, row_ids)
    losses.at(0.5)  # in the middle, where no schedule is at an end that may be 0
    norms = gradient_norms(model, losses, signals, rows.batch(ids), device)
    return [f"stages.{stage}: {finding}" for finding in [*_judge_sizes(norms), *_judge_roles(norms, losses)]]


def sample_rows(rows: Rows, row_ids: np.ndarray) -> np.ndarray:
    """Ids of the rows that losses are checked on."""
    is_labeled = rows.targets.labeled[row_ids]
    labeled, others = row_ids[is_labeled], row_ids[~is_labeled]
    return np.concatenate([labeled[: NUM_ROWS // 2], others[:NUM_ROWS], labeled[NUM_ROWS // 2 :]])[:NUM_ROWS]


def gradient_norms(
    model: PreTrainedModel, losses: Losses, signals: Signals, batch: Batch, device: Device
) -> dict[str, float]:
    """Return the norm of each term's weighted gradient with respect to the student's parameters, on one batch."""
    nn.Module.to(model, device.torch_device).eval()
    losses.to(device.torch_device)
    parameters = [p for p in model.parameters() if p.requires_grad]
    batch = replace(batch, inputs=device.move(batch.inputs))
    teacher = device.move(signals.read(batch))
    norms = {}
    for name, loss in losses.terms.items():
        count = loss.count(batch)
        if count == 0 or loss.weight == 0:
            norms[name] = 0.0
            continue
        with device.autocast():
            student = capture(model, batch.inputs, loss.student_needs, losses.begin(teacher))
        value, _ = Losses({name: loss})(student, teacher, batch, [count])
        gradients = torch.autograd.grad(value, parameters, allow_unused=True)
        norms[name] = math.sqrt(sum(float(g.float().square().sum()) for g in gradients if g is not None))
    return norms


def _judge_sizes(norms: dict[str, float]) -> list[str]:
    findings = [f"the term {name!r} has no gradient; it has no effect." for name, norm in norms.items() if norm == 0]
    living = {name: norm for name, norm in norms.items() if norm > 0}
    if len(living) > 1:
        largest, smallest = max(living, key=living.__getitem__), min(living, key=living.__getitem__)
        ratio = living[largest] / living[smallest]
        if ratio > GRADIENT_RATIO:
            findings.append(
                f"the gradient of {largest!r} is {ratio:,.0f} times that of {smallest!r}; the smaller term has no say. "
                f"Lower the weight of {largest!r} or raise that of {smallest!r}."
            )
    return findings


def _judge_roles(norms: dict[str, float], losses: Losses) -> list[str]:
    """How the terms that compare representations pull beside those that compare predictions, or else beside labels."""
    shares = {
        role: sum(norms[name] for name, loss in losses.terms.items() if loss.role == role)
        for role in ("distillation", "task", "representation")
    }
    beside = "distillation" if shares["distillation"] else "task"
    if not shares[beside] or not shares["representation"]:
        return []
    ratio = shares[beside] / shares["representation"]
    told = ", ".join(f"{name} {norm:.2g}" for name, norm in norms.items())
    shown = f"gradient norms on real rows: {told}; {beside} {ratio:.2g} times representation"
    if RATIOS[0] <= ratio <= RATIOS[1] or (beside == "task" and ratio > RATIOS[1]):
        return [f"{shown}."]
    names = ", ".join(name for name, loss in losses.terms.items() if loss.role == "representation")
    if ratio < RATIOS[0]:
        learned = "its predictions" if beside == "distillation" else "any label"
        advice = f"the student learns the teacher's states before {learned}. Divide the weight of"
        factor = RATIOS[0] / ratio
    else:
        advice = "the teacher's states have little say. Multiply the weight of"
        factor = ratio / RATIOS[1]
    return [f"{shown}, where 1 to 3 is the rule of thumb: {advice} {names} by {factor:.2g} or more."]


def judge_weights(losses: Losses) -> list[str]:
    """Return a finding where the representation weighs more than the distillation; no data is needed for it."""
    representation = {n: loss.weight for n, loss in losses.terms.items() if loss.role == "representation"}
    distillation = {n: loss.weight for n, loss in losses.terms.items() if loss.role == "distillation"}
    if not representation or not distillation or sum(representation.values()) <= sum(distillation.values()):
        return []
    return [
        f"the weight of the representation ({', '.join(representation)}) exceeds that of the distillation "
        f"({', '.join(distillation)}); rule of thumb: distillation 1 to 3 times the representation."
    ]
