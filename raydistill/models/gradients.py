"""How a model's predictions change with its token embeddings: what a row's tokens weigh in them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from raydistill.models.ragged import row_sums
from raydistill.models.signals import UNITS


@contextmanager
def differentiable(model: Any) -> Iterator[list[Tensor]]:
    """Keep what the token embeddings give, (B, L, width), in forward passes that can be differentiated twice.

    Fused attention has no second derivative: only the written-out one is used.
    """
    embedded: list[Tensor] = []

    def keep(module: nn.Module, given: Any, output: Tensor) -> None:
        if not output.requires_grad:  # nothing before it is trained
            output.requires_grad_()
        embedded.append(output)

    handle = model.get_input_embeddings().register_forward_hook(keep)
    try:
        with torch.inference_mode(False), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            yield embedded
    finally:
        handle.remove()


def input_gradients(logits: Tensor, embedded: Tensor, inputs: Mapping[str, Tensor], *, create_graph: bool) -> Tensor:
    """Gradient (B, L, width) of Σ ± z with respect to the embeddings.

    The signs differ from output to output and from row to row, so that over the rows the whole Jacobian is compared: a
    row's squared difference is, on average over signs, that of the two Jacobians (Hutchinson's estimator).
    """
    total = (logits * signs(inputs, logits.shape[-1])).sum()
    (found,) = torch.autograd.grad(total, embedded, create_graph=create_graph)
    return found.float()


def signs(inputs: Mapping[str, Tensor], num_outputs: int) -> Tensor:
    """1 or -1 for each output of a row (B, C), or of a unit (M, C): a hash of the row's tokens, so that teacher and
    student, in any batch and with any padding, have the same."""
    ids = inputs["input_ids"]
    real = ids if "attention_mask" not in inputs else ids * inputs["attention_mask"]
    seeds = real.sum(1)
    if (units := inputs.get(UNITS)) is not None:
        seeds = seeds[units // ids.shape[1]] * 31 + ids.flatten()[units]
    mixed = seeds[:, None] * 0x9E3779B1 + torch.arange(1, num_outputs + 1, device=ids.device) * 0x85EBCA6B
    for _ in range(2):
        mixed = ((mixed ^ (mixed >> 15)) * 0x2C1B3C6D) & 0x7FFFFFFF
    return 1.0 - 2.0 * ((mixed >> 13) & 1)


def of_unit_length(flat: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
    """Gradients (N, width) of real tokens, divided by their length over a row."""
    mask = inputs.get("attention_mask")
    batch, length = inputs["input_ids"].shape
    counts = flat.new_full((batch,), length, dtype=torch.long) if mask is None else mask.sum(1)
    squares = row_sums(flat.square().sum(1), counts)
    return flat * (squares + 1e-24).rsqrt().repeat_interleave(counts)[:, None]
