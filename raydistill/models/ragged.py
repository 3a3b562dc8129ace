"""Rows of any number of units as one block, for what is computed over the units of a row."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

NEVER = -1e4
"""A logit of what cannot be: its probability is 0 in any precision, and 0 times its logarithm is no NaN."""


def row_sums(flat: Tensor, lengths: Tensor) -> Tensor:
    """Sum over the units of each row: (M, …) of rows with ``lengths`` (B,) one after another -> (B, …)."""
    rows = torch.arange(len(lengths), device=flat.device).repeat_interleave(lengths)
    return flat.new_zeros(len(lengths), *flat.shape[1:]).index_add(0, rows, flat)


def num_positions(num_states: int, lengths: np.ndarray) -> np.ndarray:
    """Positions of each row (B,) among so many states: its tokens, ``lengths``; of feature maps as many of each."""
    return lengths if num_states == lengths.sum() else np.full(len(lengths), num_states // len(lengths))


def padded(logits: Tensor, lengths: np.ndarray) -> Tensor:
    """Logits (M, C) of rows that have any number of units, ``lengths`` (B,), one after another -> (B, C, the most),
    with ``NEVER`` behind a row's last one."""
    most = int(lengths.max(initial=1))
    places = np.concatenate([np.arange(n) + row * most for row, n in enumerate(lengths)] or [np.zeros(0, int)])
    index = torch.as_tensor(places, dtype=torch.long, device=logits.device)
    found = logits.new_full((len(lengths) * most, logits.shape[1]), NEVER).index_copy(0, index, logits)
    return found.view(len(lengths), most, -1).transpose(1, 2)
