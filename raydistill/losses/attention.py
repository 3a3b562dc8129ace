"""Losses on how the tokens of a row relate to each other, by their queries, keys and values.

Scores are made here from the projections that a layer's hooks caught, so that the models keep their fast attention and
the teacher's side can be recorded. Families that add positions inside attention (rotary ones, deberta-v2) do so after
the projections: compared is what tokens look for in each other, wherever they stand.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint

from raydistill.config.losses import Schedule
from raydistill.data.batches import Batch
from raydistill.errors import ConfigError
from raydistill.losses.base import Loss
from raydistill.models.signals import Signal

if TYPE_CHECKING:
    from transformers import PretrainedConfig

CHUNK = 2**25
"""Scores of one model that are made at a time, 128 MB: rows beyond it are computed again for the gradient."""
RELATION_WIDTH = 16
"""Numbers of the teacher in one of MiniLMv2's relations: 48 of them for a width of 768, 64 for 1,024."""

Pairs = tuple[tuple[int, int], ...]
Heads = Literal["auto", "mean"] | Sequence[Sequence[int]]
Projections = tuple[Tensor, ...]
Relation = Callable[[Projections, Projections, Tensor], Tensor]


class TokenRelations(Loss):
    """A loss with one value a token: the mean over the mapped layer pairs of ``compare``.

    ``pairs`` are (student, teacher) layers, from 1; ``names`` the projections that are looked at.
    """

    role = "representation"
    names: tuple[str, ...]
    scores_per_token: int
    """Heads for which a token has a score to each token of its row."""

    def __init__(self, pairs: Pairs, weight: float | Schedule = 1.0) -> None:
        super().__init__(weight)
        self.pairs = pairs
        self.student_needs, self.teacher_needs = (
            frozenset(Signal.of(name, pair[side]) for pair in pairs for name in self.names) for side in (0, 1)
        )

    def count(self, batch: Batch) -> int:
        return batch.num_tokens

    def forward(self, student: Mapping[Signal, Tensor], teacher: Mapping[Signal, Tensor], batch: Batch) -> Tensor:
        values = []
        for s, t in self.pairs:
            own = tuple(student[Signal.of(name, s)].float() for name in self.names)
            other = tuple(teacher[Signal.of(name, t)].float() for name in self.names)
            values.append(by_row(self.compare, own, other, batch.lengths.tolist(), self.scores_per_token))
        return torch.stack(values).mean(0)

    def compare(self, student: Projections, teacher: Projections, real: Tensor) -> Tensor:
        """Compare projections (B, L, width) of rows whose ``real`` tokens are (B, L); shape (B, L)."""
        raise NotImplementedError


def by_row(compare: Relation, student: Projections, teacher: Projections, lengths: Sequence[int], heads: int) -> Tensor:
    """Give ``compare`` the rows of flat projections (N, width), few enough at a time that their scores fit; (N,)."""
    chunks = cut(lengths, heads)
    found, start = [], 0
    for rows in chunks:
        here = lengths[rows]
        end = start + sum(here)
        own, other = (
            tuple(pad_sequence(list(flat[start:end].split(list(here))), batch_first=True) for flat in side)
            for side in (student, teacher)
        )
        real = torch.arange(max(here), device=own[0].device) < torch.tensor(here, device=own[0].device)[:, None]
        if len(chunks) > 1 and torch.is_grad_enabled():
            values = checkpoint(compare, own, other, real, use_reentrant=False, preserve_rng_state=False)
        else:
            values = compare(own, other, real)
        found.append(values[real])
        start = end
    return torch.cat(found)


def cut(lengths: Sequence[int], heads: int) -> list[slice]:
    """Runs of rows with at most ``CHUNK`` scores, padding counted, or one row."""
    runs, start, longest = [], 0, 0
    for row, length in enumerate(lengths):
        if row > start and heads * max(longest, length) ** 2 * (row + 1 - start) > CHUNK:
            runs.append(slice(start, row))
            start, longest = row, 0
        longest = max(longest, length)
    return [*runs, slice(start, len(lengths))]


def scores(queries: Tensor, keys: Tensor, heads: int, key_heads: int | None = None) -> Tensor:
    """Return q·k / √d of (B, L, width) in ``heads`` parts: (B, heads, L, L). Fewer ``key_heads`` serve several each."""
    left, right = (x.unflatten(-1, (n, -1)).transpose(1, 2) for x, n in ((queries, heads), (keys, key_heads or heads)))
    right = right.repeat_interleave(heads // right.shape[1], dim=1)
    return left @ right.transpose(2, 3) / math.sqrt(left.shape[-1])


def log_attention(scores: Tensor, seen: Tensor) -> Tensor:
    """Logarithm of the softmax of scores (B, H, L, L) over the tokens that are ``seen``, (B, 1 or L, L)."""
    lowest = torch.finfo(scores.dtype).min  # not -inf: the difference of two is not a number
    return F.log_softmax(scores.masked_fill(~seen[:, None], lowest), dim=-1)


def divergence(student: Tensor, teacher: Tensor, seen: Tensor) -> Tensor:
    """KL(teacher ‖ student) of scores (B, H, L, L) after the softmax over what is ``seen``, mean over heads; (B, L)."""
    own, other = log_attention(student, seen), log_attention(teacher, seen)
    return F.kl_div(own, other, reduction="none", log_target=True).sum(-1).mean(1)


class AttentionLoss(TokenRelations):
    """A loss on attention, of heads that stand for each other; their means where ``heads`` is None."""

    names: tuple[str, ...] = ("queries", "keys")

    def __init__(
        self,
        pairs: Pairs,
        student: PretrainedConfig,
        teacher: PretrainedConfig,
        heads: Heads = "auto",
        weight: float | Schedule = 1.0,
    ) -> None:
        super().__init__(pairs, weight)
        self.num_heads = tuple((config.num_attention_heads, key_heads(config)) for config in (student, teacher))
        self.head_pairs = head_pairs(heads, student, teacher)
        self.scores_per_token = max(count for count, _ in self.num_heads)

    def attention(self, student: Projections, teacher: Projections) -> tuple[Tensor, Tensor]:
        """Scores (B, H, L, L) of both models."""
        own, other = (
            scores(side[0], side[1], *numbers) for side, numbers in zip((student, teacher), self.num_heads, strict=True)
        )
        return own, other

    def matched(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """The heads (dimension 1) that are compared, one beside the other."""
        if self.head_pairs is None:
            return student.mean(1, keepdim=True), teacher.mean(1, keepdim=True)
        own, other = (list(side) for side in zip(*self.head_pairs, strict=True))
        return student[:, own], teacher[:, other]


class AttentionMse(AttentionLoss):
    """Squared difference of the scores before the softmax, mean over a row's tokens and the heads. TinyBERT, Jiao et
    al. 2020, https://arxiv.org/abs/1909.10351, equation 7."""

    def compare(self, student: Projections, teacher: Projections, real: Tensor) -> Tensor:
        own, other = self.matched(*self.attention(student, teacher))
        gaps = (own - other).square().mean(1) * real[:, None, :]
        return gaps.sum(-1) / real.sum(-1, keepdim=True)


class AttentionKl(AttentionLoss):
    """KL(teacher ‖ student) of where a token attends to, mean over the heads; part of MiniLM."""

    def compare(self, student: Projections, teacher: Projections, real: Tensor) -> Tensor:
        own, other = self.attention(student, teacher)
        seen = real[:, None, :]
        if self.head_pairs is None:  # the mean of distributions, not the distribution of mean scores
            own, other = (
                log_attention(x, seen).exp().mean(1, keepdim=True).clamp_min(1e-12).log() for x in (own, other)
            )
            return divergence(own, other, seen)
        return divergence(*self.matched(own, other), seen)


class Minilm(AttentionLoss):
    """KL of where a token attends to, and of the relations between values, each a mean over the heads. MiniLM, Wang et
    al. 2020, https://arxiv.org/abs/2002.10957, equations 5 to 8. Contains ``attention_kl``; ``minilm_v2`` asks for no
    number of heads."""

    names = ("queries", "keys", "values")

    def __init__(
        self,
        pairs: Pairs,
        student: PretrainedConfig,
        teacher: PretrainedConfig,
        heads: Heads,
        weight: float | Schedule = 1.0,
    ) -> None:
        super().__init__(pairs, student, teacher, heads, weight)
        if self.num_heads[0] != self.num_heads[1] or self.head_pairs is None:
            raise ConfigError(
                f"minilm compares the student's heads with the teacher's one by one, but they have "
                f"{student.num_attention_heads} and {teacher.num_attention_heads}. Set student.num_heads to the "
                "teacher's, or use minilm_v2, which cuts both models' widths into as many parts."
            )

    def compare(self, student: Projections, teacher: Projections, real: Tensor) -> Tensor:
        values = [scores(side[2], side[2], n[1]) for side, n in zip((student, teacher), self.num_heads, strict=True)]
        seen = real[:, None, :]
        attention = divergence(*self.matched(*self.attention(student, teacher)), seen)
        return attention + divergence(values[0], values[1], seen)


class MinilmV2(TokenRelations):
    """KL of the relations between queries, between keys and between values, each cut into as many parts in both models,
    mean over these, sum of the three. MiniLMv2, Wang et al. 2021, https://arxiv.org/abs/2012.15828, equation 4."""

    names = ("queries", "keys", "values")

    def __init__(
        self,
        pairs: Pairs,
        student: PretrainedConfig,
        teacher: PretrainedConfig,
        relation_heads: int | str = "auto",
        weight: float | Schedule = 1.0,
    ) -> None:
        super().__init__(pairs, weight)
        widths = [Signal.of(name, 1).width(config) for config in (student, teacher) for name in self.names]
        common = math.gcd(*widths)
        fitting = [n for n in range(1, common + 1) if common % n == 0]
        if isinstance(relation_heads, int) and common % relation_heads:
            raise ConfigError(
                f"relation_heads is {relation_heads}, which does not divide the widths of both models' queries, keys "
                f"and values ({', '.join(map(str, sorted(set(widths))))}). Set it to one of "
                f"{', '.join(map(str, fitting))}, or to auto."
            )
        most = max(1, teacher.hidden_size // RELATION_WIDTH)
        self.relation_heads = (
            relation_heads if isinstance(relation_heads, int) else max(n for n in fitting if n <= most)
        )
        self.scores_per_token = self.relation_heads

    def compare(self, student: Projections, teacher: Projections, real: Tensor) -> Tensor:
        found = []
        for pair in zip(student, teacher, strict=True):
            own, other = (scores(x, x, self.relation_heads) for x in pair)
            found.append(divergence(own, other, real[:, None, :]))
        return torch.stack(found).sum(0)


def key_heads(config: PretrainedConfig) -> int:
    """Heads of keys and values: fewer than of queries where several share one."""
    return int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)


def head_pairs(heads: Heads, student: PretrainedConfig, teacher: PretrainedConfig) -> Pairs | None:
    """Which head of the student is compared with which of the teacher; None for the means of all. A narrower student
    keeps the teacher's first heads where these stay as wide."""
    own, other = student.num_attention_heads, teacher.num_attention_heads
    if isinstance(heads, str):
        if heads == "mean":
            return None
        as_wide = student.hidden_size // own == teacher.hidden_size // other
        return tuple((h, h) for h in range(own)) if own == other or (own < other and as_wide) else None
    pairs = tuple((int(s), int(t)) for s, t in heads)
    if not pairs or any(not (0 <= s < own and 0 <= t < other) for s, t in pairs):
        raise ConfigError(
            f"heads is {[list(pair) for pair in pairs]}; a pair is [student, teacher], of 0 to {own - 1} and 0 to "
            f"{other - 1}."
        )
    return pairs
