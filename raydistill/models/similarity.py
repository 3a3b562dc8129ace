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
from raydistill.models.pictures import coarsest, last_state, look, on_grid, shape_of
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
    size = common_size(student, teacher, batches[0])
    states = [hidden_states(model, batches, step, size) for model in (student, teacher)]
    return [[float(value) for value in row] for row in linear_cka(*states)]


def common_size(
    student: PreTrainedModel, teacher: PreTrainedModel, inputs: Mapping[str, Tensor]
) -> tuple[int, int] | None:
    """The size of the smallest grid of two models that read pictures; None where all have the same tokens."""
    if "pixel_values" not in inputs:
        return None
    sights = [look(model.config, shape_of(inputs)) for model in (student, teacher)]
    if len({state.positions for sight in sights for state in sight.states}) == 1:
        return None
    return coarsest(grid for sight in sights for grid in sight.grids)


def hidden_states(
    model: PreTrainedModel, batches: Sequence[Mapping[str, Tensor]], step: int, size: tuple[int, int] | None = None
) -> list[Tensor]:
    """All hidden states of every so many-th real token, (N, width) in float32 each; of pictures with maps of several
    sizes on a grid of this ``size``."""
    signals = [Signal.of("hidden_states", layer) for layer in range(last_state(model.config) + 1)]
    parts: dict[Signal, list[Tensor]] = {signal: [] for signal in signals}
    seen = 0
    for inputs in batches:
        found = capture(model, {name: tensor.to(model.device) for name, tensor in inputs.items()}, signals)
        if size is not None:
            placed = zip(signals, look(model.config, shape_of(inputs)).grids, strict=True)
            found = {s: on_grid(found[s].float(), len(inputs["pixel_values"]), grid, size) for s, grid in placed}
        for signal in signals:
            parts[signal].append(found[signal][-seen % step :: step].float().cpu())
        seen += len(found[signals[0]])
    return [torch.cat(parts[signal]) for signal in signals]
