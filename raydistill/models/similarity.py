"""How alike the hidden states of two models' layers are, whatever their widths: linear CKA.

Kornblith et al. 2019, https://arxiv.org/abs/1905.00414: ||Yᵀ X||² / (||Xᵀ X|| ||Yᵀ Y||) of centred states, in Frobenius
norms. It is 1 where one is the other turned, moved or scaled; of few tokens and wide states it is too large, by about
width / tokens of states that have nothing in common.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from raydistill.models.capture import capture, real_tokens
from raydistill.models.pictures import last_state, look, on_grid
from raydistill.models.signals import Signal

MAX_TOKENS = 4096
"""Spread evenly over the sample: their states are kept, 6 MB a layer of width 384."""


def linear_cka(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    """Each of ``first`` beside each of ``second``, states (N, width) of the same tokens: (F, S), from 0 to 1; 0 where
    states do not differ between tokens."""
    sides = [[states - states.mean(0) for states in side] for side in (first, second)]
    norms = [torch.stack([(states.T @ states).norm() for states in side]) for side in sides]
    both = torch.stack([torch.stack([(y.T @ x).square().sum() for y in sides[1]]) for x in sides[0]])
    found: Tensor = both / norms[0].outer(norms[1]).clamp_min(torch.finfo(both.dtype).tiny)
    return found


@torch.inference_mode()
def layer_similarities(
    student: PreTrainedModel, teacher: PreTrainedModel, sample: Iterable[Mapping[str, Tensor]]
) -> list[list[float]]:
    """Linear CKA of each hidden state of the student (0: the embeddings) with each of the teacher, over real tokens of
    the ``sample``, batches of model inputs; feature maps of several sizes are brought to the coarsest one. Modes are
    the caller's."""
    batches = list(sample)
    step = math.ceil(sum(len(real_tokens(inputs)) for inputs in batches) / MAX_TOKENS)  # of pictures all patches
    side = coarsest(student, teacher, batches)
    states = [hidden_states(model, batches, step, side) for model in (student, teacher)]
    return [[float(value) for value in row] for row in linear_cka(*states)]


def coarsest(student: PreTrainedModel, teacher: PreTrainedModel, batches: Sequence[Mapping[str, Tensor]]) -> int | None:
    """The side of the smallest grid of two models that read pictures; None where all have the same tokens."""
    if "pixel_values" not in batches[0]:
        return None
    channels, height, width = batches[0]["pixel_values"].shape[1:]
    states = [state for model in (student, teacher) for state in look(model.config, (channels, height, width)).states]
    sizes = {state.positions for state in states}
    return math.isqrt(min(sizes)) if len(sizes) > 1 else None


def hidden_states(
    model: PreTrainedModel, batches: Sequence[Mapping[str, Tensor]], step: int, side: int | None = None
) -> list[Tensor]:
    """All hidden states of every so many-th real token, (N, width) in float32 each; of pictures with maps of several
    sizes on a grid of this ``side``."""
    signals = [Signal.of("hidden_states", layer) for layer in range(last_state(model.config) + 1)]
    parts: dict[Signal, list[Tensor]] = {signal: [] for signal in signals}
    seen = 0
    for inputs in batches:
        found = capture(model, {name: tensor.to(model.device) for name, tensor in inputs.items()}, signals)
        if side is not None:
            found = {s: on_grid(states.float(), len(inputs["pixel_values"]), side) for s, states in found.items()}
        for signal in signals:
            parts[signal].append(found[signal][-seen % step :: step].float().cpu())
        seen += len(found[signals[0]])
    return [torch.cat(parts[signal]) for signal in signals]
