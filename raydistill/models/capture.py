"""Reading signals off a model: the one function that serves teacher and student, recorded and online."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from raydistill.errors import ConfigError

_HIDDEN = re.compile(r"hidden_states\[(\d+)\]")


def capture(model: nn.Module, inputs: Mapping[str, Tensor], signals: Collection[str]) -> dict[str, Tensor]:
    """Return the wanted signals of a batch; ``inputs`` is what the tokenizer made, (B, L) each, right or left padded.

    ``logits``: (B, C) float32. ``hidden_states[i]``: (N, width) of the N real tokens, row after row without padding, in
    the dtype the model computes in; 0 is the embeddings, i the output of layer i. Mode, grad and autocast are the
    caller's. Raises ConfigError for a signal that the model does not have.
    """
    layers = {signal: index for signal in signals if (index := hidden_index(signal)) is not None}
    output = model(**inputs, output_hidden_states=bool(layers))
    found = {"logits": output.logits.float()} if "logits" in signals else {}
    if layers:
        tokens = real_tokens(inputs)
        states = output.hidden_states
        for signal, index in layers.items():
            if index >= len(states):
                raise ConfigError(
                    f"There is no {signal}: the model has hidden_states[0] to hidden_states[{len(states) - 1}]."
                )
            found[signal] = _flat(states[index], tokens)
    return found


def real_tokens(inputs: Mapping[str, Tensor]) -> Tensor:
    """Return the positions (N,) of real tokens in the flattened (B · L) batch; found once for all layers."""
    mask = inputs.get("attention_mask")
    if mask is None:
        first = next(iter(inputs.values()))
        return torch.arange(first.shape[0] * first.shape[1], device=first.device)
    return mask.flatten().nonzero().squeeze(1)


def _flat(states: Tensor, tokens: Tensor) -> Tensor:
    flat = states.flatten(0, 1)
    return flat if tokens.numel() == flat.shape[0] else flat.index_select(0, tokens)


def hidden_index(signal: str) -> int | None:
    """Return i of ``hidden_states[i]``, None for ``logits``; ConfigError for anything else."""
    if signal == "logits":
        return None
    found = _HIDDEN.fullmatch(signal)
    if found is None:
        raise ConfigError(f"Unknown signal {signal!r}. Known signals: logits, hidden_states[i].")
    return int(found[1])


def is_token_level(signal: str) -> bool:
    """Return whether the signal has one row a token; otherwise it has one a row of the data."""
    return hidden_index(signal) is not None


def signal_width(config: PreTrainedConfig, signal: str) -> int:
    """Return how many numbers the signal has a token, or a row. Raises ConfigError beyond the model's layers."""
    index = hidden_index(signal)
    if index is None:
        return len(config.id2label or ())
    if index > config.num_hidden_layers:
        raise ConfigError(f"There is no {signal}: the model has {config.num_hidden_layers} layers.")
    return int(config.hidden_size)
