"""Temperature scaling: one number that makes a model's probabilities fit. Guo et al. 2017,
https://arxiv.org/abs/1706.04599."""

from __future__ import annotations

import math

import torch

from raydistill.tasks import Task
from raydistill.tasks.targets import Values, units_of

SPREAD = 0.5
"""Deviation of log T around 0 that is expected before any row is seen, so that ten rows that happen to be answered
rightly do not make a model infinitely sure. On a thousand rows it moves T by less than 1 %."""


def fit_temperature(task: Task, outputs: Values, targets: Values) -> float:
    """T by which logits (N, C) are to be divided: the most likely one given these rows, log T being normal."""
    from scipy.optimize import minimize_scalar

    logits, values = torch.as_tensor(units_of(outputs), dtype=torch.float64), torch.as_tensor(units_of(targets))

    def cost(log_t: float) -> float:
        return float(task.loss_values(logits / math.exp(log_t), values).sum()) + log_t**2 / (2 * SPREAD**2)

    return math.exp(float(minimize_scalar(cost, bounds=(-3.0, 3.0), method="bounded").x))
