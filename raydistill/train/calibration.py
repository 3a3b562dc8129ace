"""Temperature scaling: one number that makes a model's probabilities fit. Guo et al. 2017,
https://arxiv.org/abs/1706.04599."""

from __future__ import annotations

import math

import torch

from raydistill.models.crf import Chains, log_likelihood
from raydistill.tasks import Task
from raydistill.tasks.targets import Values, units_of

SPREAD = 0.5
"""Deviation of log T around 0 that is expected before any row is seen, so that ten rows that happen to be answered
rightly do not make a model infinitely sure. On a thousand rows it moves T by less than 1 %."""

LOWEST, HIGHEST = -3.0, 3.0
"""Of log T."""


def fit_temperature(task: Task, outputs: Values, targets: Values, transitions: torch.Tensor | None = None) -> float:
    """T by which logits (N, C) are to be divided: the most likely one given these rows, log T being normal; of a CRF
    its ``transitions``, too, by the likelihood of whole rows."""
    from scipy.optimize import brentq

    logits = torch.as_tensor(units_of(outputs), dtype=torch.float64)
    values = torch.as_tensor(task.values_of(outputs, targets))

    def nats(t: torch.Tensor) -> torch.Tensor:
        if transitions is None:
            return task.loss_values(logits / t, values)
        labels, chains = values[:, -1:].long(), Chains.of(torch.as_tensor(outputs.lengths))
        return -log_likelihood(logits / t, transitions.detach().double() / t, chains, labels)

    def slope(log_t: float) -> float:
        """Of the cost over log T: single precision finds its root 1,000 times closer than the cost's minimum."""
        at = torch.tensor(log_t, dtype=torch.float64, requires_grad=True)
        cost = nats(at.exp()).sum() + at.square() / (2 * SPREAD**2)
        return float(torch.autograd.grad(cost, at)[0])

    if slope(LOWEST) >= 0:
        return math.exp(LOWEST)
    if slope(HIGHEST) <= 0:
        return math.exp(HIGHEST)
    return math.exp(float(brentq(slope, LOWEST, HIGHEST, xtol=1e-9)))
