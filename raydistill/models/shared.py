"""Layers that a student has as its teacher has them: frozen, and not run where their output is at hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from raydistill.errors import ModelError
from raydistill.models.layers import layer_stack

SHARED = "raydistill_shared_layers"
"""The field of a student's config that says how many layers, from the embeddings on, are its teacher's."""

_TUPLES: dict[type[nn.Module], bool] = {}
"""Whether layers of a class give their states in a tuple; told by a first forward pass."""


def set_shared(config: PreTrainedConfig, num_layers: int | None) -> None:
    """Let the config say so; 0 is the embeddings alone, None nothing."""
    if num_layers is not None:
        setattr(config, SHARED, num_layers)
    elif hasattr(config, SHARED):
        delattr(config, SHARED)


def num_shared(config: PreTrainedConfig) -> int | None:
    """Return how many layers are the teacher's; 0: the embeddings alone, None: nothing."""
    found: int | None = getattr(config, SHARED, None)
    return found


def shared_parameters(model: PreTrainedModel) -> list[str]:
    """Return the names of all parameters that the states behind the shared layers depend on.

    Read off the gradient of these states, so that what a family keeps beside its layers (projections of embeddings,
    relative positions) is among them.
    """
    layer = num_shared(model.config)
    if layer is None:
        return []
    named = dict(model.named_parameters())
    before = [parameter.requires_grad for parameter in named.values()]
    model.requires_grad_(True)
    with torch.enable_grad():
        states = _probe(model).hidden_states[layer]
        gradients = torch.autograd.grad(states.float().sum(), [*named.values()], allow_unused=True)
    for parameter, trained in zip(named.values(), before, strict=True):
        parameter.requires_grad_(trained)
    return [name for name, gradient in zip(named, gradients, strict=True) if gradient is not None]


def check_shared(model: PreTrainedModel) -> None:
    """ModelError for a family that does something between its layers, so that a model cannot begin behind some."""
    num_layers = num_shared(model.config)
    if not num_layers:
        return
    output, states = _last_shared(model, num_layers)
    if output.shape != states.shape or not torch.equal(output, states):
        raise ModelError(
            f"student.share_layers is {num_layers}, but a {model.config.model_type} model changes the states of its "
            "last layer, or of its first, before it passes them on. Share more than one layer, and not all of them."
        )


@torch.no_grad()
def _last_shared(model: PreTrainedModel, num_layers: int) -> tuple[Tensor, Tensor]:
    """What the layer of this number gives, and the states of that number, of a few tokens."""
    caught: list[Any] = []
    layer = layer_stack(model)[1][num_layers - 1]
    hook = layer.register_forward_hook(lambda module, given, output: caught.append(output))
    states: Tensor = _probe(model).hidden_states[num_layers]
    hook.remove()
    _TUPLES[type(layer)] = isinstance(caught[0], tuple)
    return caught[0][0] if isinstance(caught[0], tuple) else caught[0], states


@contextmanager
def beginning_behind(model: PreTrainedModel, num_layers: int, states: Tensor) -> Iterator[None]:
    """In its body the first layers of ``model`` are not run: the last of them gives ``states`` (B, L, width)."""
    layers = layer_stack(model)[1][:num_layers]
    kind = type(layers[0])
    if kind not in _TUPLES:
        _last_shared(model, num_layers)
    given = (states, None) if _TUPLES[kind] else states

    def passed(hidden_states: Tensor, *others: Any, **named: Any) -> Any:
        return given

    for layer in layers:
        layer.forward = passed
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _probe(model: PreTrainedModel) -> Any:
    """What a model says of two rows of a few tokens."""
    ids = torch.arange(8, device=model.device).view(2, 4) % model.config.vocab_size
    training = model.training
    found = model.eval()(input_ids=ids, output_hidden_states=True)
    model.train(training)
    return found
