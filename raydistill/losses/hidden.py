"""Losses on hidden states of mapped layers, of real tokens or of rows; padding never enters (tensors are flat)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raydistill.config.losses import Schedule
from raydistill.data.batches import Batch
from raydistill.losses.base import Loss
from raydistill.losses.rows import first_tokens, row_means
from raydistill.models.pictures import Grid, look, on_one_grid, shape_of
from raydistill.models.signals import Signal

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def width_of(widths: int | Sequence[int], layer: int) -> int:
    return widths if isinstance(widths, int) else widths[layer]


class HiddenLoss(Loss):
    """A loss with one value a token: the mean over the mapped layer pairs of ``distance``. Of pictures one value each,
    the mean over the positions of the smaller grid of a pair (``models.pictures``).

    ``pairs`` are (student, teacher) indices of hidden states, 0 being the embeddings; widths are those of all states,
    or of each. Where they differ, the student's states pass through one trained linear map a pair (TinyBERT's W_h,
    https://arxiv.org/abs/1909.10351; of maps FitNets' regressor of 1 x 1, https://arxiv.org/abs/1412.6550).
    ``pictures``: configs of student and teacher where they read such.
    """

    role = "representation"

    def __init__(
        self,
        pairs: tuple[tuple[int, int], ...],
        student_width: int | Sequence[int],
        teacher_width: int | Sequence[int],
        weight: float | Schedule = 1.0,
        *,
        pictures: tuple[PretrainedConfig, PretrainedConfig] | None = None,
    ) -> None:
        super().__init__(weight)
        self.pairs, self.pictures = pairs, pictures
        self._grids: dict[tuple[int, int, int], dict[tuple[int, int], tuple[Grid, Grid]]] = {}
        self.student_needs = frozenset(Signal.of("hidden_states", s) for s, _ in pairs)
        self.teacher_needs = frozenset(Signal.of("hidden_states", t) for _, t in pairs)
        widths = [(width_of(student_width, s), width_of(teacher_width, t)) for s, t in pairs]
        self.projections = nn.ModuleList(
            nn.Identity() if own == other else nn.Linear(own, other) for own, other in widths
        )

    def count(self, batch: Batch) -> int:
        return batch.num_tokens if self.pictures is None else batch.num_rows

    def forward(self, student: Mapping[Signal, Tensor], teacher: Mapping[Signal, Tensor], batch: Batch) -> Tensor:
        values = []
        for pair, projection in zip(self.pairs, self.projections, strict=True):
            own, other = self.reduced(*self.states(student, teacher, pair), batch, pair)
            found = self.distance(projection(own).float(), other)
            values.append(found if self.pictures is None else found.view(batch.num_rows, -1).mean(1))
        return torch.stack(values).mean(0)

    def states(
        self, student: Mapping[Signal, Tensor], teacher: Mapping[Signal, Tensor], pair: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Those of a pair, (N, width) each."""
        return student[Signal.of("hidden_states", pair[0])], teacher[Signal.of("hidden_states", pair[1])].float()

    def reduced(self, student: Tensor, teacher: Tensor, batch: Batch, pair: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """What of the states (N, width) of a pair is compared."""
        if self.pictures is None or len(student) == len(teacher):
            return student, teacher
        return on_one_grid(student, teacher, self.grids(batch)[pair], batch.num_rows)

    def grids(self, batch: Batch) -> dict[tuple[int, int], tuple[Grid, Grid]]:
        """How the states of each pair lie in the batch's pictures."""
        assert self.pictures is not None
        shape = shape_of(batch.inputs)
        if shape not in self._grids:
            own, other = (look(config, shape).grids for config in self.pictures)
            self._grids[shape] = {(s, t): (own[s], other[t]) for s, t in self.pairs}
        return self._grids[shape]

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compare (N, width) with (N, width); shape (N,)."""
        raise NotImplementedError


class HiddenMse(HiddenLoss):
    """Squared difference of hidden states, averaged over the width. TinyBERT, https://arxiv.org/abs/1909.10351."""

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        return (student - teacher).square().mean(-1)


class HiddenCosine(HiddenLoss):
    """1 - cosine of hidden states. DistilBERT, https://arxiv.org/abs/1910.01108."""

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        return 1 - F.cosine_similarity(student, teacher, dim=-1)


class HiddenKl(HiddenLoss):
    """T² · KL of the hidden states, each a distribution over its width by softmax(h/T)."""

    def __init__(self, *arguments: Any, temperature: float = 1.0, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.temperature = temperature

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        log_student, log_teacher = (F.log_softmax(states / self.temperature, dim=-1) for states in (student, teacher))
        divergence = F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(-1)
        return divergence * self.temperature**2


class Pkd(HiddenLoss):
    """Squared difference of the first tokens' hidden states, each of length 1; one value a row. Patient knowledge
    distillation, Sun et al. 2019, https://arxiv.org/abs/1908.09355, equation 7."""

    def count(self, batch: Batch) -> int:
        return batch.num_rows

    def reduced(self, student: Tensor, teacher: Tensor, batch: Batch, pair: tuple[int, int]) -> tuple[Tensor, Tensor]:
        return first_tokens(student, batch.lengths), first_tokens(teacher, batch.lengths)

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        return (F.normalize(student, dim=-1) - F.normalize(teacher, dim=-1)).square().sum(-1)


class PooledCosine(HiddenLoss):
    """1 - cosine of the mean hidden states of a row; one value a row. What sentence encoders are compared by."""

    def count(self, batch: Batch) -> int:
        return batch.num_rows

    def reduced(self, student: Tensor, teacher: Tensor, batch: Batch, pair: tuple[int, int]) -> tuple[Tensor, Tensor]:
        return row_means(student.float(), batch.lengths), row_means(teacher, batch.lengths)

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        return 1 - F.cosine_similarity(student, teacher, dim=-1)
