"""A linear head on fixed embeddings, brought to its optimum instead of being trained in steps: it takes seconds."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from raydistill.evaluate.compare import has_learned
from raydistill.tasks import Targets, Task
from raydistill.tasks.targets import Array, Values, units_of

STRENGTHS = (0.1, 1.0, 10.0, 100.0)
"""Values of C that cross-validation chooses from: the task's loss summed over the rows, and |W|² / 2C."""
FOLDS = 5


def fit_head(
    layer: nn.Linear,
    embeddings: Tensor,
    targets: Targets,
    task: Task,
    strengths: Sequence[float] = STRENGTHS,
    example_ids: Array | None = None,
) -> float:
    """Put the best weights on these embeddings (N, width) into ``layer``, and return the C that they go by.

    Several ``strengths`` are judged by cross-validation, which deals the rows out by their strata, those of one
    example, by ``example_ids`` (N,), together: both orders of a pair, say. The loss is the task's own, so that it is a
    logistic regression for classes and a ridge regression for numbers.
    """
    values = torch.as_tensor(targets.values)
    fit = partial(_fitted, task, layer.out_features)
    best = strengths[0]
    if len(strengths) > 1:
        ids = np.arange(len(targets)) if example_ids is None else example_ids
        _, first, example = np.unique(ids, return_index=True, return_inverse=True)
        dealt = np.empty(len(first), int)
        dealt[np.argsort(task.strata(targets)[first], kind="stable")] = np.arange(len(first)) % FOLDS
        fold = dealt[example]
        losses = dict.fromkeys(strengths, 0.0)
        for held_out in (torch.as_tensor(fold == i) for i in range(FOLDS)):
            for c in strengths:
                weight, bias = fit(embeddings[~held_out], values[~held_out], c)
                found = task.loss_values(embeddings[held_out] @ weight.T + bias, values[held_out])
                losses[c] += float(found.sum())
        best = min(strengths, key=lambda c: losses[c])
    weight, bias = fit(embeddings, values, best)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    return best


def constant_loss(task: Task, targets: Targets) -> float:
    """The task's mean loss, over the labelled rows, of the best answer that does not look at a row."""
    return constant_loss_of(task, torch.as_tensor(units_of(targets.values[targets.labeled])))


def constant_loss_of(task: Task, values: Tensor) -> float:
    """The same, over these values (N, …)."""
    nothing = torch.zeros(len(values), 0)
    _, bias = _fitted(task, len(task.outputs), nothing, values, 1.0)
    return float(task.loss_values(bias.expand(len(values), -1), values).mean())


def sees_nothing(task: Task, outputs: Values, targets: Values) -> bool:
    """Whether a model answers labelled rows no better than one that does not look at them: with one answer for all, or
    by its metrics, or by its loss, which a few right answers among confident wrong ones do not lower."""
    scores = task.scores(outputs, targets)
    if not has_learned(scores):
        return True
    if task.kind == "value":
        return scores.values["r2"] <= 0
    if task.kind not in ("categorical", "bernoulli") or task.has_units:
        return False
    values = torch.as_tensor(task.values_of(outputs, targets))
    return float(task.loss_values(torch.as_tensor(outputs), values).mean()) >= constant_loss_of(task, values)


def _fitted(task: Task, num_outputs: int, embeddings: Tensor, values: Tensor, c: float) -> tuple[Tensor, Tensor]:
    """Weights (outputs, width) and biases of the optimum, by L-BFGS."""
    weight = torch.zeros(num_outputs, embeddings.shape[1], requires_grad=True)
    bias = torch.zeros(num_outputs, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        losses = task.loss_values(embeddings @ weight.T + bias, values)
        total = losses.mean() + weight.square().sum() / (2 * c * len(values))
        total.backward()
        return total

    optimizer.step(closure)
    return weight.detach(), bias.detach()
