"""Masked language models: their logits over a whole vocabulary, which are not computed before somebody looks at them.

1,200 masked positions (15 % of a micro-batch) × 30,522 tokens are 150 MB for one model, and a loss keeps several such
tables. So ``capture`` gives the states that the decoder, the last linear layer, makes logits of, at the masked
positions alone; whoever needs logits takes them in chunks, and what is kept of them is small.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raydistill.models.head import MASKED, kind_of_architectures, logits_of
from raydistill.models.signals import ANSWERS, TOP, Signal

CHUNK_NUMBERS = 2**23
"""Logits in a chunk, 32 MB in float32: 274 positions of BERT's vocabulary."""
LOWEST = -100.0
"""Of a log-probability that several tokens have together, where they have none."""


def is_masked_model(model: Any) -> bool:
    """Return whether a model is a masked language model, by its class."""
    return kind_of_architectures([type(model).__name__]) == MASKED


class VocabularyLogits:
    """Logits of units, of which there are ``len``, (M, V): what ``decoder`` makes of ``states`` (M, width), whoever
    looks at them, under the autocast that this was made under (``dtype``; None: none)."""

    def __init__(self, states: Tensor, decoder: nn.Module, num_tokens: int, dtype: torch.dtype | None = None) -> None:
        self.states, self.decoder, self.num_tokens, self.dtype = states, decoder, num_tokens, dtype

    def __len__(self) -> int:
        return len(self.states)

    def to(self, device: torch.device, non_blocking: bool = False) -> VocabularyLogits:
        """Return the same with its states on ``device``, where the decoder is."""
        states = self.states.to(device, non_blocking=non_blocking)
        return VocabularyLogits(states, self.decoder, self.num_tokens, self.dtype)

    def chunks(self) -> Iterator[slice]:
        """Yield units whose logits may be looked at together, all in their order."""
        size = max(1, CHUNK_NUMBERS // self.num_tokens)
        for start in range(0, len(self), size):
            yield slice(start, min(start + size, len(self)))

    def decoded(self, states: Tensor) -> Tensor:
        """Return the logits of states (m, width) of these units, (m, V), float32."""
        with torch.autocast(states.device.type, self.dtype, enabled=self.dtype is not None):
            logits: Tensor = self.decoder(states)
        return logits.float()

    def part(self, units: slice) -> Tensor:
        """Return the logits of some units, (m, V), float32."""
        return self.decoded(self.states[units])


class Decoding:
    """What ``decoder_input`` finds."""

    states: Tensor | None = None

    def logits(self, model: Any, output: Any, units: Tensor) -> VocabularyLogits:
        """Return the logits at ``units``; of a family whose decoder has no place of its own those that it computed."""
        num_tokens = int(model.config.vocab_size)
        if self.states is not None:
            kind = self.states.device.type
            dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
            return VocabularyLogits(self.states, model.get_output_embeddings(), num_tokens, dtype)
        return VocabularyLogits(logits_of(output).flatten(0, 1).index_select(0, units), nn.Identity(), num_tokens)


@contextmanager
def decoder_input(model: Any, units: Tensor | None) -> Iterator[Decoding]:
    """Inside, catch what the decoder of a masked language model is given at ``units`` (M,), positions in the flattened
    batch, and let it decode nothing. Other models are left as they are."""
    found = Decoding()
    decoder = model.get_output_embeddings() if is_masked_model(model) else None
    if decoder is None or getattr(decoder, "out_features", None) != model.config.vocab_size:
        yield found  # deberta-v2 in its newer form multiplies by its embeddings itself
        return

    def catch(module: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        flat = given[0].flatten(0, -2)
        if units is not None:
            found.states = flat.index_select(0, units)
        return (flat[:0],)

    hook = decoder.register_forward_pre_hook(catch)
    try:
        yield found
    finally:
        hook.remove()


def vocabulary_signals(
    wanted: Iterable[Signal], logits: VocabularyLogits, labels: Tensor | None
) -> dict[Signal, Tensor | VocabularyLogits]:
    """Return these signals of the units that ``logits`` are of; ``labels``: their right tokens (M,)."""
    found: dict[Signal, Tensor | VocabularyLogits] = {}
    for signal in wanted:
        if signal == ANSWERS:
            assert labels is not None
            found[signal] = answers(logits, labels)
        elif signal.name == TOP:
            found[signal] = top_logits(logits, signal.layer or 0)
        else:
            found[signal] = logits
    return found


@torch.no_grad()
def answers(logits: VocabularyLogits, labels: Tensor) -> Tensor:
    """Return what is kept of each unit, (M, 3): see ``models.signals.ANSWERS``; ``labels``: the right tokens (M,)."""
    parts = [logits.states.new_zeros((0, 3), dtype=torch.float32)]
    for units in logits.chunks():
        log_p = F.log_softmax(logits.part(units), dim=-1)
        best, token = log_p.max(dim=-1)
        parts.append(torch.stack([log_p.gather(1, labels[units, None]).squeeze(1), token.float(), best], dim=1))
    return torch.cat(parts)


@torch.no_grad()
def top_logits(logits: VocabularyLogits, k: int) -> Tensor:
    """Return the ``k`` likeliest tokens of each unit, (M, 2 k + 1): their ids, their log-probabilities, and that of all
    other tokens together."""
    k = min(k, logits.num_tokens)
    parts = [logits.states.new_zeros((0, 2 * k + 1), dtype=torch.float32)]
    for units in logits.chunks():
        z = logits.part(units)
        ids = z.topk(k, dim=-1).indices
        parts.append(torch.cat([ids.float(), coarse(z, ids)], dim=1))
    return torch.cat(parts)


def coarse(logits: Tensor, ids: Tensor) -> Tensor:
    """Return log-probabilities (m, k + 1) of the tokens ``ids`` (m, k) and of all others together, ``LOWEST`` where
    there are none; of logits (m, V)."""
    total = logits.logsumexp(-1, keepdim=True)
    others = logits.scatter(1, ids, -torch.inf).logsumexp(-1, keepdim=True) - total
    return torch.cat([logits.gather(1, ids) - total, others.clamp_min(LOWEST)], dim=1)


def top_ids(top: Tensor) -> Tensor:
    """Return the ids (m, k) in what ``top_logits`` gave; float32 holds whole numbers up to 16 million."""
    return top[:, : top.shape[1] // 2].long()


def top_log_probabilities(top: Tensor) -> Tensor:
    """Return the log-probabilities (m, k + 1) in it."""
    return top[:, top.shape[1] // 2 :]
