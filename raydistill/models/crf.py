"""A linear-chain conditional random field on a tagger: p(labels of a row) ∝ exp(Σ emission + Σ transition).

Emissions are the model's logits, of each unit (word) of a row. Lafferty et al. 2001. Transitions are parameters of the
module ``crf`` beside the family's own; on disk they stand in config.json, so that the weights are those of the family's
plain tagger, which transformers loads and whose logits are the emissions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from raydistill.config.losses import SequenceHead
from raydistill.models.signals import LOG_MARGINALS, LOGITS, TRANSITIONS, Signal

FIELD = "crf"
"""Of config.json: ``constrained``, and ``transitions`` (C + 1, C) once they are learned."""
FORBIDDEN = -1e4
"""Score of a transition that cannot be; finite, so that no gradient is NaN."""
LOWEST = -50.0
"""Of a log marginal: what a label that cannot be costs a loss that wants a little of it."""
RATE_FACTOR = 100.0
"""Transitions learn so many times as fast as the encoder: at its 5e-5, AdamW moves a number by 0.02 in 300 steps."""


def is_crf(config: PreTrainedConfig) -> bool:
    return isinstance(getattr(config, FIELD, None), dict)  # others may have a field of that name


def set_crf(config: PreTrainedConfig, head: SequenceHead) -> None:
    """Let models of a config have this head; a CRF that is one already keeps what it has learned."""
    if head == "softmax":
        config.__dict__.pop(FIELD, None)
    else:
        own = getattr(config, FIELD) if is_crf(config) else {}
        setattr(config, FIELD, {**own, "constrained": head == "constrained_crf"})


def predictions(config: PreTrainedConfig) -> Signal:
    """What of a model are the log-probabilities of single labels, up to a constant."""
    return LOG_MARGINALS if is_crf(config) else LOGITS


def add_crf(model: PreTrainedModel, names: Sequence[str]) -> None:
    """Give a tagger the CRF that its config speaks of, if it does; ``names``: of the labels that it is written for."""
    if is_crf(model.config):
        model.add_module(FIELD, LinearChain(names, **getattr(model.config, FIELD)))
        model._keys_to_ignore_on_save = [f"{FIELD}.transitions"]


def saved_settings(model: PreTrainedModel) -> dict[str, Any]:
    """A model's config as it stands in config.json, with the present transitions, which are noted in it."""
    chain = getattr(model, FIELD, None)
    if chain is not None:
        getattr(model.config, FIELD)["transitions"] = chain.scores().tolist()
    return dict(model.config.to_dict())


class LinearChain(nn.Module):
    """Transitions between labels, (C + 1, C): from a label to the next one, and in the last row from the beginning."""

    allowed: Tensor

    def __init__(
        self, names: Sequence[str], constrained: bool = False, transitions: Sequence[Sequence[float]] | None = None
    ) -> None:
        super().__init__()
        found = torch.zeros(len(names) + 1, len(names)) if transitions is None else torch.tensor(transitions)
        allowed = allowed_transitions(names) if constrained else torch.ones_like(found, dtype=torch.bool)
        self.register_buffer("allowed", allowed, persistent=False)
        self.transitions = nn.Parameter(torch.where(found > FORBIDDEN / 2, found, 0.0))
        self.transitions.rate_factor = RATE_FACTOR  # type: ignore[attr-defined]

    def scores(self) -> Tensor:
        return self.transitions.float().masked_fill(~self.allowed, FORBIDDEN)

    @torch.no_grad()
    def reorder(self, order: Sequence[int]) -> None:
        """Let label i become what label ``order[i]`` was."""
        for tensor in (self.transitions.data, self.allowed):
            tensor.copy_(tensor[[*order, len(order)]][:, list(order)])


def allowed_transitions(names: Sequence[str]) -> Tensor:
    """(C + 1, C) bool, under IOB2: an I- follows the B- or the I- of its type, and nothing else."""
    before = [*names, "O"]  # what begins a text stands after nothing
    rows = [[not name.startswith("I-") or one[2:] == name[2:] != "" for name in names] for one in before]
    return torch.tensor(rows)


@dataclass(frozen=True)
class Chains:
    """Where the units (M,) of rows stand in a padded batch: ``real`` (B, W), and ``begins`` (B,), whether a row is the
    beginning of its text; a later window of one has a word before its first that it does not know."""

    real: Tensor
    begins: Tensor

    @classmethod
    def of(cls, lengths: Tensor, begins: Tensor | None = None) -> Chains:
        """Rows of so many units each, (B,)."""
        longest = max(1, int(lengths.max())) if len(lengths) else 1
        real = torch.arange(longest, device=lengths.device) < lengths[:, None]
        return cls(real, torch.ones_like(lengths, dtype=torch.bool) if begins is None else begins)

    @cached_property
    def places(self) -> Tensor:
        return self.real.flatten().nonzero().squeeze(1)

    @cached_property
    def first(self) -> Tensor:
        """The first unit (R,) of each row that has any."""
        lengths = self.real.sum(1)
        return (lengths.cumsum(0) - lengths)[lengths > 0]

    def padded(self, flat: Tensor) -> Tensor:
        """(M, …) as (B, W, …)."""
        empty = flat.new_zeros(self.real.numel(), *flat.shape[1:])
        return empty.index_copy(0, self.places, flat).unflatten(0, self.real.shape)

    def flat(self, padded: Tensor) -> Tensor:
        return padded.flatten(0, 1).index_select(0, self.places)

    def opening(self, scores: Tensor) -> Tensor:
        """What a row's first label scores beside its emission, (B, C)."""
        return torch.where(self.begins[:, None], scores[-1], torch.zeros_like(scores[-1]))

    def before(self, emissions: Tensor, scores: Tensor) -> Tensor:
        """Log sum over all that may stand before each unit, by its label: (B, W, C), of padded emissions."""
        return messages(emissions, scores[:-1], self.real, self.opening(scores))

    def after(self, emissions: Tensor, scores: Tensor) -> Tensor:
        """Log sum over all that may follow each unit, by its label."""
        nothing = torch.zeros_like(emissions[:, 0])
        return messages(emissions.flip(1), scores[:-1].T, self.real.flip(1), nothing).flip(1)


def messages(emissions: Tensor, transitions: Tensor, real: Tensor, opening: Tensor) -> Tensor:
    """The recursion of forward-backward, in one direction; padding before the first unit hands ``opening`` on."""
    found = [opening]
    for emission, is_real in zip(emissions.unbind(1)[:-1], real.unbind(1)[:-1], strict=True):
        ahead = ((found[-1] + emission).unsqueeze(2) + transitions).logsumexp(1)
        found.append(torch.where(is_real[:, None], ahead, found[-1]))
    return torch.stack(found, 1)


def log_marginals(emissions: Tensor, scores: Tensor, chains: Chains) -> Tensor:
    """Log-probability of each label of each unit, (M, C), not below ``LOWEST``; emissions (M, C), scores (C + 1, C)."""
    padded = chains.padded(emissions)
    total = chains.before(padded, scores) + padded + chains.after(padded, scores)
    return chains.flat(total.log_softmax(-1)).clamp(min=LOWEST)


def log_likelihood(emissions: Tensor, scores: Tensor, chains: Chains, labels: Tensor) -> Tensor:
    """Log-probability of each unit's label given all labels before it, (M, K), of K sequences of labels (M, K); the sum
    over a row is that of its sequence."""
    after = chains.after(chains.padded(emissions), scores)
    onwards = chains.flat(after)
    reached, first = emissions + onwards, chains.first
    previous = labels.roll(1, 0)
    left, steps = onwards.roll(1, 0).gather(1, previous), scores[previous, labels]
    opening = chains.opening(scores)[chains.real.any(1)]
    partition = (opening + reached[first]).logsumexp(1, keepdim=True)
    left = left.index_copy(0, first, partition.expand(-1, labels.shape[1]))
    steps = steps.index_copy(0, first, opening.gather(1, labels[first]))
    return steps + reached.gather(1, labels) - left


@torch.no_grad()
def best_sequences(emissions: Tensor, scores: Tensor, chains: Chains, k: int = 1) -> tuple[Tensor, Tensor]:
    """The k most likely sequences of labels of each row, (M, k), and whether there is such a one, (B, k): Viterbi with
    k entries a state. A row of n units has no more than C^n of them."""
    padded, transitions, size = chains.padded(emissions), scores[:-1], len(scores) - 1
    best = padded.new_full((len(padded), size, k), -torch.inf)
    best[:, :, 0] = chains.opening(scores) + padded[:, 0]
    stay = torch.arange(size * k, device=padded.device).view(1, size, k)
    came_from = []
    for emission, is_real in zip(padded.unbind(1)[1:], chains.real.unbind(1)[1:], strict=True):
        ways = best.flatten(1).unsqueeze(2) + transitions.repeat_interleave(k, 0)  # (B, C·k, C)
        found, source = ways.max(1, keepdim=True) if k == 1 else ways.topk(k, 1)
        goes_on = is_real[:, None, None]
        best = torch.where(goes_on, found.transpose(1, 2) + emission.unsqueeze(2), best)
        came_from.append(torch.where(goes_on, source.transpose(1, 2), stay))
    final, state = best.flatten(1).topk(k, 1)
    path = [state]
    for source in reversed(came_from):
        path.append(source.flatten(1).gather(1, path[-1]))
    return chains.flat(torch.stack(path[::-1], 1)) // k, final > -torch.inf


@torch.no_grad()
def k_best(emissions: Tensor, scores: Tensor, chains: Chains, k: int) -> Tensor:
    """The k best sequences as units, (M, 2k): labels, and the log-probability of each given those before it."""
    labels, is_there = best_sequences(emissions, scores, chains, k)
    is_there = is_there.repeat_interleave(chains.real.sum(1), 0)
    nats = log_likelihood(emissions, scores, chains, labels)
    return torch.cat([labels.float(), torch.where(is_there, nats, FORBIDDEN)], 1)


def read_chain(model: nn.Module, signal: Signal, logits: Tensor, chains: Chains) -> Tensor:
    """One of a model's signals on sequences; a plain tagger is a CRF whose transitions are all 0."""
    size = logits.shape[1]
    chain = getattr(model, FIELD, None)
    scores = logits.new_zeros(size + 1, size) if chain is None else chain.scores()
    if signal == TRANSITIONS:
        return scores
    if signal == LOG_MARGINALS:
        return log_marginals(logits, scores, chains)
    assert signal.layer is not None
    return k_best(logits, scores, chains, signal.layer)
