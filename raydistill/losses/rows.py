"""Rows out of flat tensors: what stands for a row's tokens, and which rows are compared with each other."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def row_sums(states: Tensor, lengths: np.ndarray) -> Tensor:
    """Sum over each row's tokens: (N, width) of rows with ``lengths`` (B,) one after another -> (B, width)."""
    counts = torch.as_tensor(lengths, dtype=torch.long, device=states.device)
    rows = torch.arange(len(lengths), device=states.device).repeat_interleave(counts)
    return states.new_zeros(len(lengths), states.shape[1]).index_add(0, rows, states)


def row_means(states: Tensor, lengths: np.ndarray) -> Tensor:
    """Mean over each row's tokens: (N, width) -> (B, width)."""
    return row_sums(states, lengths) / torch.as_tensor(lengths, dtype=torch.long, device=states.device)[:, None]


def first_tokens(states: Tensor, lengths: np.ndarray) -> Tensor:
    """Each row's first token, [CLS] in most families: (N, width) -> (B, width)."""
    starts = torch.as_tensor(np.cumsum(lengths) - lengths, dtype=torch.long, device=states.device)
    return states.index_select(0, starts)


def groups_of(num_rows: int, size: int, fewest: int) -> list[slice]:
    """The groups of rows of a batch; one shorter than ``fewest``, at the end of an epoch, is left out."""
    found = [slice(i, min(i + size, num_rows)) for i in range(0, num_rows, size)]
    return [rows for rows in found if rows.stop - rows.start >= fewest]
