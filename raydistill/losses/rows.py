"""Rows out of flat tensors: what stands for a row's tokens, and which rows are compared with each other."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from raydistill.models.ragged import num_positions, row_sums


def row_means(states: Tensor, lengths: np.ndarray) -> Tensor:
    """Mean over each row's tokens, or positions: (N, width) of rows with ``lengths`` (B,) one after another -> (B,
    width)."""
    counts = torch.as_tensor(num_positions(len(states), lengths), dtype=torch.long, device=states.device)
    return row_sums(states, counts) / counts[:, None]


def first_tokens(states: Tensor, lengths: np.ndarray) -> Tensor:
    """Each row's first token, [CLS] in most families: (N, width) -> (B, width)."""
    starts = torch.as_tensor(np.cumsum(lengths) - lengths, dtype=torch.long, device=states.device)
    return states.index_select(0, starts)


def num_in_groups(num_rows: int, size: int, fewest: int) -> int:
    """Rows of a batch that are in such a group."""
    return sum(rows.stop - rows.start for rows in groups_of(num_rows, size, fewest))


def groups_of(num_rows: int, size: int, fewest: int) -> list[slice]:
    """The groups of rows of a batch; one shorter than ``fewest``, at the end of an epoch, is left out."""
    found = [slice(i, min(i + size, num_rows)) for i in range(0, num_rows, size)]
    return [rows for rows in found if rows.stop - rows.start >= fewest]
