"""Terms over a vocabulary, computed chunk by chunk: memory does not grow with units × tokens of the vocabulary.

A term is a sum over units, so its gradient is the sum of those of chunks. Each chunk is decoded once for all terms, and
its gradients are taken at once, as in Liger Kernel's fused linear cross entropy (https://arxiv.org/abs/2410.10989):
what stays is the gradient of the states and of the decoder, and the logits of one chunk at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raydistill.data.batches import Batch
from raydistill.models.signals import LOGITS, TOP, Signal
from raydistill.models.vocabulary import VocabularyLogits
from raydistill.tasks.targets import Ragged, Targets, units_of


def in_chunks(
    terms: Mapping[str, tuple[Callable[..., Tensor], float]],
    student: Mapping[Signal, Any],
    teacher: Mapping[Signal, Any],
    batch: Batch,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the sum of ``terms``, each a loss on logits and its factor, and each one's unweighted sum (detached).

    ``student`` has VocabularyLogits, ``teacher`` these, too, or ``top_logits``.
    """
    logits: VocabularyLogits = student[LOGITS]
    is_trained = torch.is_grad_enabled()
    weights = [weight for weight in logits.decoder.parameters() if weight.requires_grad and is_trained]
    of_states = torch.zeros_like(logits.states)
    of_weights = [torch.zeros_like(weight) for weight in weights]
    has_states = is_trained and logits.states.requires_grad
    sums = {name: torch.zeros((), device=logits.states.device) for name in terms}
    total = torch.zeros((), device=logits.states.device)
    for units in logits.chunks():
        states = logits.states[units].detach().requires_grad_(has_states)
        own = {**student, LOGITS: logits.decoded(states)}
        spoken = {signal: part(values, signal, units) for signal, values in teacher.items()}
        alone, share = units_alone(batch, units), torch.zeros((), device=states.device)
        for name, (loss, factor) in terms.items():
            value = loss(own, spoken, alone).sum()
            sums[name] = sums[name] + value.detach()
            share = share + value * factor
        if wanted := [*([states] if has_states else []), *weights]:
            found = [*torch.autograd.grad(share, wanted)]
            if has_states:
                of_states[units] = found.pop(0)
            for gradient, more in zip(of_weights, found, strict=True):
                gradient += more
        total = total + share.detach()
    inputs = [*([logits.states] if has_states else []), *weights]
    gradients = [*([of_states] if has_states else []), *of_weights]
    return (_Known.apply(total, gradients, *inputs) if inputs else total), sums


def part(values: Any, signal: Signal, units: slice) -> Any:
    """What a signal says of some units, where it speaks of units."""
    if isinstance(values, VocabularyLogits):
        with torch.no_grad():
            return values.part(units)
    return values[units] if signal.name == TOP else values


def units_alone(batch: Batch, units: slice) -> Batch:
    """The batch with the targets of some units, each as if it were a row."""
    targets = batch.targets
    flat = units_of(targets.values)[units]
    alone = Targets(Ragged(flat, np.ones(len(flat), np.int64)), targets.labeled_units()[units])
    return replace(batch, targets=alone)


class _Known(torch.autograd.Function):
    """A value (a scalar) whose gradients with respect to ``inputs`` are known."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: list[Tensor], *inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*gradients)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        return (None, None, *(outer[0] * gradient for gradient in ctx.saved_tensors))
