"""Weights of a narrower model cut out of a wider one.

Residual widths (embeddings, norms, ends of layers, feed-forward) keep their first entries. Attention keeps its first
heads whole where their width stays, and the first entries of each head otherwise; queries, keys, values and the output
projection take the same ones. Rotary heads keep evenly spaced pairs, whose frequencies are nearest to those of the
narrower head. Nothing is rescaled: a sum over d of D inputs has about d/D of the variance, which the next layer norm
undoes; only attention before the softmax is not normalised and starts softer, by about sqrt(d/D).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

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
_FUSED_GATE = re.compile(r"\.mlp\.(Wi|gate_up_proj|up_gate_proj)\.(weight|bias)$")


@dataclass(frozen=True)
class Heads:
    """Width of a head in the wide and in the narrow model, and whether positions are rotated into it."""

    wide: int
    narrow: int
    rotary: bool = False

    def rows(self, have: int, want: int) -> Tensor:
        """Return which of ``have`` entries (head after head) the ``want`` entries of the narrow model are."""
        whole = have % self.wide == 0 and want % self.narrow == 0 and self.narrow <= self.wide
        if not whole or want // self.narrow > have // self.wide:
            return torch.arange(want)  # heads are grouped anew: neighbours stay neighbours
        first = torch.arange(want // self.narrow) * self.wide
        return (first[:, None] + self._inside()[None, :]).flatten()

    def _inside(self) -> Tensor:
        if not self.rotary or self.narrow == self.wide:
            return torch.arange(self.narrow)
        pairs = torch.arange(self.narrow // 2) * self.wide // self.narrow  # entry j is rotated with entry j + width / 2
        return torch.cat([pairs, pairs + self.wide // 2])


def cut(name: str, wide: Tensor, shape: torch.Size, heads: Heads) -> Tensor:
    """Return the part of the parameter ``wide`` called ``name`` that a parameter of ``shape`` starts from."""
    if wide.dim() != len(shape) or any(want > have for have, want in zip(wide.shape, shape, strict=True)):
        raise ModelError(
            f"The student's {name} has shape {tuple(shape)}, the model it starts from {tuple(wide.shape)}: it cannot "
            "be cut out of it. Set student.start to random, or student.hidden_size to the teacher's."
        )
    for dim, (have, want) in enumerate(zip(wide.shape, shape, strict=True)):
        if have != want:
            wide = wide.index_select(dim, _rows(name, dim, have, want, heads).to(wide.device))
    return wide


def _rows(name: str, dim: int, have: int, want: int, heads: Heads) -> Tensor:
    if dim == 0 and _FUSED_QKV.search(name):
        return _blocks(heads.rows(have // 3, want // 3), have // 3, 3)
    if dim == 0 and _FUSED_QKV_BY_HEAD.search(name):
        return _triple(heads.rows(have // 3, want // 3), heads.wide, heads.narrow)
    if dim == 0 and _FUSED_GATE.search(name):
        return _blocks(torch.arange(want // 2), have // 2, 2)
    if (dim == 0 and _HEADS_OUT.search(name)) or (dim == 1 and _HEADS_IN.search(name)):
        return heads.rows(have, want)
    return torch.arange(want)


def _blocks(rows: Tensor, size: int, count: int) -> Tensor:
    """The same rows out of each of ``count`` blocks of ``size`` that lie one after another."""
    return torch.cat([rows + block * size for block in range(count)])


def _triple(rows: Tensor, wide: int, narrow: int) -> Tensor:
    """The same rows of query, key and value where these alternate inside each head."""
    by_head = rows.view(-1, narrow)
    head, inside = by_head // wide, by_head % wide
    return torch.cat([(head * 3 + part) * wide + inside for part in range(3)], dim=1).flatten()
