"""Reading signals off a model: the one function that serves teacher and student, recorded and online."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from raydistill.errors import ConfigError
from raydistill.models.boxes import exact_boxes
from raydistill.models.crf import Chains, read_chain
from raydistill.models.detection import training_outputs
from raydistill.models.gradients import differentiable, input_gradients, of_unit_length
from raydistill.models.head import is_focal, logits_of
from raydistill.models.layers import projection
from raydistill.models.pictures import states_in
from raydistill.models.shared import beginning_behind
from raydistill.models.signals import BEGINS, GRADIENTS, LABELS, LOGITS, PROJECTIONS, SECOND, UNITS, Signal
from raydistill.models.vocabulary import decoder_input, is_masked_model, vocabulary_signals


def capture(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    signals: Collection[str],
    begin: Mapping[Signal, Tensor] | None = None,
) -> dict[Signal, Tensor]:
    """Return the wanted signals of a batch; ``inputs`` is what the tokenizer made, (B, L) each, right or left padded,
    or pictures (B, C, H, W), whose patches are the tokens, or the positions of feature maps, as many of each picture.

    ``logits``: (B, C) float32, or (M, C) where ``inputs`` name ``UNITS``; then there are those of ``models.crf``, too,
    and of a masked language model (``models.vocabulary``) VocabularyLogits, ``answers`` and ``top_logits[k]``. Of
    detectors see ``models.detection``.
    Of rows of two texts that are read apart (``SECOND``): (B, 2 C). All others: (N, width) of the N real tokens, row
    after row without padding. ``hidden_states[i]`` and the projections are in the dtype the model computes in, heads
    beside each other; hidden states are outputs of the model, projections are caught by hooks, so that attention stays
    as fast as it is. ``gradients``: float32, see ``models.gradients``. ``begin``: hidden states of one layer (N, width)
    from which the model goes on; the layers up to it are not run, and what they would give is not there. Mode, grad and
    autocast are the caller's. Raises ConfigError or ModelError for a signal that the model does not have.
    """
    if SECOND in inputs:
        found = capture(model, texts_apart(inputs), signals, begin)
        return {s: values.reshape(-1, 2 * values.shape[1]) if s == LOGITS else values for s, values in found.items()}
    if GRADIENTS in signals:
        return capture_with_gradients(model, inputs, signals)
    return _capture(model, inputs, signals, begin)


def capture_with_gradients(
    model: nn.Module, inputs: Mapping[str, Tensor], signals: Collection[str]
) -> dict[Signal, Tensor]:
    """As ``capture``; whether a loss can be trained through the gradients is the caller's grad mode."""
    trained = torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    with differentiable(model) as embedded:
        inputs = {name: tensor.clone() for name, tensor in inputs.items()}  # in inference mode they are no use as made
        found = _capture(model, inputs, [LOGITS, *(signal for signal in signals if signal != GRADIENTS)])
        gradients = input_gradients(found[LOGITS], embedded[0], inputs, create_graph=trained)
        found[GRADIENTS] = of_unit_length(_flat(gradients, real_tokens(inputs)), inputs)
    kept = {signal: found[signal] for signal in map(Signal, signals)}
    return kept if trained else {signal: values.detach() for signal, values in kept.items()}


def _capture(
    model: Any, inputs: Mapping[str, Tensor], signals: Collection[str], begin: Mapping[Signal, Tensor] | None = None
) -> dict[Signal, Tensor]:
    wanted = [Signal(signal) for signal in signals]
    units, begins, labels = (inputs.get(name) for name in (UNITS, BEGINS, LABELS))
    inputs = {name: tensor for name, tensor in inputs.items() if name not in (UNITS, BEGINS, LABELS)}
    caught: dict[Signal, Tensor] = {}
    needs_tokens = "pixel_values" not in inputs and any(signal.is_token_level for signal in wanted)
    tokens = real_tokens(inputs) if begin or needs_tokens else None
    with ExitStack() as hooks:
        for signal, states in (begin or {}).items():
            assert signal.layer is not None
            assert tokens is not None
            padded = _padded(states, tokens, next(iter(inputs.values())).shape[:2])
            hooks.enter_context(beginning_behind(model, signal.layer, padded))
        for signal in wanted:
            if signal.name in PROJECTIONS:
                hooks.callback(_catch(model, signal, caught).remove)
        decoding = hooks.enter_context(decoder_input(model, units))
        hooks.enter_context(exact_boxes(model))
        output = model(**inputs, output_hidden_states=any(signal.name == "hidden_states" for signal in wanted))
    found: dict[Signal, Any] = {}
    predicted = [signal for signal in wanted if signal.is_prediction]
    if predicted and is_masked_model(model):
        assert units is not None
        found = vocabulary_signals(predicted, decoding.logits(model, output, units), labels)
    elif predicted:
        logits = (training_outputs(output) if model.training and is_focal(model.config) else logits_of(output)).float()
        logits = logits if units is None else logits.flatten(0, 1).index_select(0, units)
    for signal in (signal for signal in wanted if signal not in found):
        if signal == LOGITS:
            found[signal] = logits
        elif signal.is_prediction:
            assert units is not None
            num_rows, length = output.logits.shape[:2]
            lengths = torch.bincount(units // length, minlength=num_rows)
            found[signal] = read_chain(model, signal, logits, Chains.of(lengths, begins))
        elif signal in caught:
            found[signal] = _flat(caught[signal], tokens)
        else:
            given, layer = states_in(output), signal.layer or 0
            if layer >= len(given):
                raise ConfigError(
                    f"There is no {signal}: the model has hidden_states[0] to hidden_states[{len(given) - 1}]."
                )
            found[signal] = _flat(given[layer], tokens)
    return found


def texts_apart(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rows of two texts each, right padded, as rows of one: (B, L) -> (2 B, L'), a row's first text and then its
    second, so that the real tokens stay in their order."""
    first = inputs[SECOND]
    lengths = torch.stack([first, inputs["attention_mask"].sum(1) - first], dim=1).flatten()
    starts = torch.stack([torch.zeros_like(first), first], dim=1).flatten()
    place = torch.arange(int(lengths.max()), device=first.device)
    real = place < lengths[:, None]
    rows = torch.arange(len(first), device=first.device).repeat_interleave(2)[:, None]
    source = torch.where(real, starts[:, None] + place, inputs["attention_mask"].shape[1] - 1)
    # a place behind a text takes the row's last token: padding, but in the longest row, where the mask hides it
    apart = {name: tensor[rows, source] for name, tensor in inputs.items() if name not in (SECOND, "attention_mask")}
    return {**apart, "attention_mask": real.long()}


def _catch(model: Any, signal: Signal, caught: dict[Signal, Tensor]) -> Any:
    """Keep what a projection gives in the next forward pass."""
    assert signal.layer is not None
    linear, part = projection(model, signal.layer, signal.name)

    def keep(module: nn.Module, given: Any, output: Tensor) -> None:
        # the first call is that of the layer's own input: deberta-v2 projects its relative positions, too
        caught.setdefault(signal, output if part is None else output[..., part])

    return linear.register_forward_hook(keep)


def real_tokens(inputs: Mapping[str, Tensor]) -> Tensor:
    """Return the positions (N,) of real tokens in the flattened (B · L) batch; found once for all layers."""
    mask = inputs.get("attention_mask")
    if mask is None:
        first = next(iter(inputs.values()))
        return torch.arange(first.shape[0] * first.shape[1], device=first.device)
    return mask.flatten().nonzero().squeeze(1)


def _flat(states: Tensor, tokens: Tensor | None) -> Tensor:
    if states.dim() == 4:  # a map (B, C, H, W)
        states = states.permute(0, 2, 3, 1).flatten(1, 2)
    flat = states.flatten(0, 1) if states.dim() == 3 else states
    return flat if tokens is None or tokens.numel() == flat.shape[0] else flat.index_select(0, tokens)


def _padded(states: Tensor, tokens: Tensor, shape: torch.Size) -> Tensor:
    """(N, width) -> (B, L, width) in float32, with zeros for padding."""
    padded = states.new_zeros((shape.numel(), states.shape[1]), dtype=torch.float32)
    return padded.index_copy_(0, tokens, states.float()).unflatten(0, shape)
