"""A loss on the graph that attention draws between rows, or between the tokens of a row."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raydistill.config.losses import Schedule
from raydistill.data.batches import Batch
from raydistill.losses.attention import by_row, log_attention
from raydistill.losses.base import LastStates
from raydistill.losses.rows import groups_of, row_means
from raydistill.models.signals import Signal

Nodes = Literal["rows", "tokens"]
HEAD_SIZE = 32


class Graph(nn.Module):
    """Attention of ``heads`` heads between nodes (B, L, width), and the message that each node gets from the others."""

    def __init__(self, width: int, message_width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.queries, self.keys, self.values = (nn.Linear(width, heads * HEAD_SIZE) for _ in range(3))
        self.messages = nn.Linear(heads * HEAD_SIZE, message_width)

    def forward(self, nodes: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logarithms of the edges (B, heads, L, L), which add up to 1 at each node, and the messages (B, L,
        message_width)."""
        parts = (
            made(nodes).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for made in (self.queries, self.keys, self.values)
        )
        queries, keys, values = parts
        edges = log_attention(queries @ keys.transpose(2, 3) / math.sqrt(HEAD_SIZE), seen)
        return edges, self.messages((edges.exp() @ values).transpose(1, 2).flatten(2))


class GraphAttention(LastStates):
    """One value a node: how badly the teacher's graph tells a node from its neighbours, which is what draws the graph,
    and how far the student's graph and messages are from it: (1 - cos(m_T, h_T)) + KL(e_T ‖ e_S) + (1 - cos(m_S, m_T)),
    nothing of the last two reaching the teacher's graph. After Lee and Song 2019, https://arxiv.org/abs/1907.02226.

    Nodes are the rows of a group, by their mean last hidden states, or the tokens of a row. No node is its own
    neighbour; one that is alone has no value.
    """

    def __init__(
        self,
        depths: tuple[int, int],
        widths: tuple[int, int],
        nodes: Nodes = "rows",
        heads: int = 4,
        group_size: int = 16,
        weight: float | Schedule = 1.0,
    ) -> None:
        """``depths``, ``widths``: of student and teacher."""
        super().__init__(depths, weight)
        self.student, self.teacher = (Graph(width, widths[1], heads) for width in widths)
        self.nodes = nodes
        self.group_size = group_size if nodes == "rows" else 1
        self.heads = heads

    def count(self, batch: Batch) -> int:
        return sum(size for size in self.sizes(batch) if size > 1)

    def sizes(self, batch: Batch) -> list[int]:
        """Nodes of each graph of a batch."""
        if self.nodes == "tokens":
            return [int(length) for length in batch.lengths]
        return [rows.stop - rows.start for rows in groups_of(batch.num_rows, self.group_size, 1)]

    def forward(self, student: Mapping[Signal, Tensor], teacher: Mapping[Signal, Tensor], batch: Batch) -> Tensor:
        own, other = self.states(student, teacher)
        if self.nodes == "rows":
            own, other = (row_means(states, batch.lengths) for states in (own, other))
        sizes = self.sizes(batch)
        values = by_row(self.compare, (own,), (other,), sizes, self.heads)
        together = torch.tensor([size > 1 for size in sizes for _ in range(size)], device=values.device)
        return values[together]

    def compare(self, student: tuple[Tensor, ...], teacher: tuple[Tensor, ...], real: Tensor) -> Tensor:
        """Values (B, L) of nodes (B, L, width)."""
        others = ~torch.eye(real.shape[1], dtype=torch.bool, device=real.device)
        seen = real[:, None, :] & others
        seen = seen | ~seen.any(-1, keepdim=True)  # a node that is alone: any distribution will do
        edges, messages = self.student(student[0], seen)
        taught, told = self.teacher(teacher[0], seen)
        drawn = 1 - F.cosine_similarity(told, teacher[0], dim=-1)
        followed = F.kl_div(edges, taught.detach(), reduction="none", log_target=True).sum(-1).mean(1)
        return drawn + followed + 1 - F.cosine_similarity(messages, told.detach(), dim=-1)
