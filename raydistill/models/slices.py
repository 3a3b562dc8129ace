"""Weights of a narrower model cut out of a wider one.

Where ``narrowing.py`` has measured what matters, hidden states are cut in one basis everywhere, feed-forward blocks to
chosen entries, attention to chosen heads; otherwise all keep the first ones. Heads are kept whole where their width
stays, and the first entries of each head otherwise; queries, keys, values and the output projection take the same.
Rotary heads keep evenly spaced pairs, whose frequencies are nearest to those of the narrower head. Nothing is rescaled
here: a sum over d of D inputs has about d/D of the variance, which the next layer norm undoes; only attention before
the softmax is not normalised and starts softer, by about sqrt(d/D).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from raydistill.errors import ModelError

_HEADS_OUT = re.compile(
    r"\.(query|key|value|query_proj|key_proj|value_proj|q_lin|k_lin|v_lin|q_proj|k_proj|v_proj|q|k|v"
    r"|query_global|key_global|value_global|pos_proj|pos_q_proj|pos_key_proj|pos_query_proj)\.(weight|bias)$"
    r"|\.(q_bias|v_bias)$"
)
_HEADS_IN = re.compile(
    r"\.(attention\.(?:output\.)?dense|out_lin|attn\.o|attn\.Wo|o_proj|self_attn\.out_proj)\.weight$"
)
_FUSED_QKV = re.compile(r"\.(Wqkv|qkv|qkv_proj)\.(weight|bias)$")
_FUSED_QKV_BY_HEAD = re.compile(r"\.self\.in_proj\.weight$")  # deberta: head by head its query, key and value
_LAYER = re.compile(r".*?\.\d+\.")
_FUSED_GATE = re.compile(r"\.mlp\.(Wi|gate_up_proj|up_gate_proj)\.(weight|bias)$")


@dataclass(frozen=True)
class Heads:
    """Width of a head in the wide and in the narrow model, and whether positions are rotated into it."""

    wide: int
    narrow: int
    rotary: bool = False

    def rows(self, have: int, want: int, chosen: Tensor | None = None) -> Tensor:
        """Return which of ``have`` entries (head after head) the ``want`` entries of the narrow model are: those of
        the ``chosen`` heads, else of the first."""
        whole = have % self.wide == 0 and want % self.narrow == 0 and self.narrow <= self.wide
        if not whole or want // self.narrow > have // self.wide:
            return torch.arange(want)  # heads are grouped anew: neighbours stay neighbours
        kept = torch.arange(want // self.narrow) if chosen is None else chosen
        return (kept[:, None] * self.wide + self._inside()[None, :]).flatten()

    def _inside(self) -> Tensor:
        if not self.rotary or self.narrow == self.wide:
            return torch.arange(self.narrow)
        pairs = torch.arange(self.narrow // 2) * self.wide // self.narrow  # entry j is rotated with entry j + width / 2
        return torch.cat([pairs, pairs + self.wide // 2])


Role = Literal["attention", "feed_forward", "residual", "head"]
"""What a dimension of a parameter counts: entries of the heads of attention, of a feed-forward block, of the hidden
states, or of the states inside a classifier's head."""


@dataclass(frozen=True)
class Kept:
    """What the narrow model has of the wide one; the first entries where nothing is chosen."""

    heads: Heads
    width: int = 0
    """Of the wide model's hidden states; 0: no role is known."""
    inner_width: int | None = None
    """Of the wide model's feed-forward blocks."""
    leaves: frozenset[str] = frozenset()
    """Linear layers that read the hidden states and belong to a classifier's head."""
    behind: frozenset[str] = frozenset()
    """Modules that come after these."""
    stream: Tensor | None = None
    """What the narrow model's hidden states are of the wide one's: orthonormal rows (narrow width, wide width)."""
    head: Tensor | None = None
    """Entries of the states inside a classifier's head, in ascending order as all entries."""
    chosen_heads: Mapping[str, Tensor] = field(default_factory=dict)
    """Heads of attention by layer, see ``layer_of``."""
    inner: Mapping[str, Tensor] = field(default_factory=dict)
    """Entries of the feed-forward block by layer."""

    def role(self, name: str, dim: int, have: int) -> Role | None:
        """Return what ``have`` entries in a dimension of a parameter are; None where that is not known."""
        module = name.rpartition(".")[0]
        if module in self.behind or (module in self.leaves and dim == 0):
            return "head" if have == self.width else None
        makes_heads = _HEADS_OUT.search(name) or _FUSED_QKV.search(name) or _FUSED_QKV_BY_HEAD.search(name)
        if (dim == 0 and makes_heads) or (dim == 1 and reads_heads(name)):
            return "attention"
        if have == self.width:
            return "residual"
        return "feed_forward" if have == self.inner_width or (dim == 0 and _FUSED_GATE.search(name)) else None

    def part(self, name: str, dim: int, have: int, want: int) -> Tensor:
        """Return what the ``want`` entries in a parameter's dimension are of the ``have`` entries of the wide model, as
        ``taken`` reads it."""
        heads, inner = self.chosen_heads.get(layer_of(name)), self.inner.get(layer_of(name))
        if dim == 0 and _FUSED_QKV.search(name):
            return _blocks(self.heads.rows(have // 3, want // 3, heads), have // 3, 3)
        if dim == 0 and _FUSED_QKV_BY_HEAD.search(name):
            return _triple(self.heads.rows(have // 3, want // 3, heads), self.heads.wide, self.heads.narrow)
        if dim == 0 and _FUSED_GATE.search(name):
            return _blocks(_entries(inner, want // 2), have // 2, 2)
        if (dim == 0 and _HEADS_OUT.search(name)) or (dim == 1 and reads_heads(name)):
            return self.heads.rows(have, want, heads)
        chosen = {"residual": self.stream, "head": self.head, "feed_forward": inner}
        role = self.role(name, dim, have)
        return _entries(None if role is None else chosen.get(role), want)


def _entries(chosen: Tensor | None, want: int) -> Tensor:
    return torch.arange(want) if chosen is None else chosen


def taken(wide: Tensor, dim: int, part: Tensor) -> Tensor:
    """Return a part of a dimension: the entries that ``part`` names (want,), or their products with its rows (want,
    have)."""
    if part.dim() == 1:
        return wide.index_select(dim, part.to(wide.device))
    return (wide.movedim(dim, -1) @ part.to(wide).T).movedim(-1, dim)


def layer_of(name: str) -> str:
    """Return the part of a module's or parameter's name that says its layer; the same for all in one layer."""
    found = _LAYER.match(name)
    return found[0] if found else ""


def reads_heads(name: str) -> bool:
    """Whether a weight is that of the linear layer which reads the heads of attention."""
    return _HEADS_IN.search(name) is not None


def cut(name: str, wide: Tensor, shape: torch.Size, kept: Kept) -> Tensor:
    """Return the part of the parameter ``wide`` called ``name`` that a parameter of ``shape`` starts from."""
    if wide.dim() != len(shape) or any(want > have for have, want in zip(wide.shape, shape, strict=True)):
        raise ModelError(
            f"The student's {name} has shape {tuple(shape)}, the model it starts from {tuple(wide.shape)}: it cannot "
            "be cut out of it. Set student.start to random, or student.hidden_size to the teacher's."
        )
    for dim, (have, want) in enumerate(zip(wide.shape, shape, strict=True)):
        if have != want:
            wide = taken(wide, dim, kept.part(name, dim, have, want))
    return wide


def _blocks(rows: Tensor, size: int, count: int) -> Tensor:
    """The same rows out of each of ``count`` blocks of ``size`` that lie one after another."""
    return torch.cat([rows + block * size for block in range(count)])


def _triple(rows: Tensor, wide: int, narrow: int) -> Tensor:
    """The same rows of query, key and value where these alternate inside each head."""
    by_head = rows.view(-1, narrow)
    head, inside = by_head // wide, by_head % wide
    return torch.cat([(head * 3 + part) * wide + inside for part in range(3)], dim=1).flatten()
