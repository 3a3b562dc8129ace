"""What every loss shares. A loss says what to compare, unreduced; the base says how to weigh and reduce it.

Sum and count: a loss's values over a whole global batch are summed and divided by their global count, so that the
result depends neither on the number of workers, nor on the micro-batch size, nor on padding.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from raydistill.config.losses import Role, Schedule
from raydistill.data.batches import Batch
from raydistill.losses.vocabulary import in_chunks
from raydistill.models.signals import LOGITS, Signal
from raydistill.models.vocabulary import VocabularyLogits
from raydistill.tasks import Task


class Loss(nn.Module):
    """One named term. Subclasses set what they need and implement ``count`` and ``forward``.

    ``role`` says what it learns from: labels (``task``), the teacher's predictions (``distillation``), or what the
    teacher computes on the way to them (``representation``). ``student_needs`` and ``teacher_needs`` name signals (see
    ``models.capture``). ``group_size`` above 1 makes the batch plan keep so many consecutive rows together on one
    worker and in one micro-batch, for losses over pairs. Projections are modules of the loss: trained, synchronised and
    checkpointed with it, never exported.
    """

    role: ClassVar[Role] = "distillation"
    student_needs: Collection[str] = frozenset()
    teacher_needs: Collection[str] = frozenset()
    group_size: int = 1

    weight: float
    """Factor in the weighted total, at the present step."""

    def __init__(self, weight: float | Schedule = 1.0) -> None:
        super().__init__()
        self._schedules: dict[str, Schedule] = {}
        self.set("weight", weight)

    @classmethod
    def build(cls, settings: Any, task: Task, student: Any, teacher: Any) -> Loss:
        """Build a loss that joined by ``raydistill.register`` or an entry point, for these shapes.

        ``settings``: its ``Settings``; ``student``, ``teacher``: configs of the models, ``teacher`` None where none
        speaks. By default the settings' fields but ``type`` are the arguments of the class.
        """
        return cls(**{name: getattr(settings, name) for name in type(settings).model_fields if name != "type"})

    def set(self, name: str, value: float | Schedule) -> None:
        """Set an attribute to a number, or let it follow a schedule from its beginning on."""
        if isinstance(value, Schedule):
            self._schedules[name] = value
            value = value.at(0.0)
        setattr(self, name, value)

    def at(self, share: float) -> None:
        """Turn to the step before which this share of the stage lies, 0 to 1."""
        for name, schedule in self._schedules.items():
            setattr(self, name, schedule.at(share))

    @property
    def scheduled(self) -> dict[str, float]:
        """Present values of what follows a schedule."""
        return {name: getattr(self, name) for name in self._schedules}

    def count(self, batch: Batch) -> int:
        """Return how many values ``forward`` gives for ``batch``, known without a forward pass."""
        raise NotImplementedError(f"{type(self).__name__} must say how many values it counts")

    def forward(self, student: Mapping[Signal, Tensor], teacher: Mapping[Signal, Tensor], batch: Batch) -> Tensor:
        """Return the values, shape (count,), in float32, not yet weighted or reduced."""
        raise NotImplementedError(f"{type(self).__name__} must return its unreduced values")


class LastStates(Loss):
    """A loss on the last hidden states of both models; ``depths``: layers of student and teacher."""

    role = "representation"

    def __init__(self, depths: tuple[int, int], weight: float | Schedule = 1.0) -> None:
        super().__init__(weight)
        own, other = (Signal.of("hidden_states", depth) for depth in depths)
        self.signals = own, other
        self.student_needs, self.teacher_needs = frozenset({own}), frozenset({other})

    def states(self, student: Mapping[Signal, Tensor], teacher: Mapping[Signal, Tensor]) -> tuple[Tensor, Tensor]:
        """Those of student and teacher, (N, width) each, float32."""
        own, other = self.signals
        return student[own].float(), teacher[other].float()


class Losses(nn.ModuleDict):
    """The named losses of one training stage."""

    begins_at: Signal | None = None
    """The teacher's states from which the student goes on, where it shares all layers before them and no term looks at
    one of these."""

    @property
    def terms(self) -> dict[str, Loss]:
        return {name: loss for name, loss in self.items() if isinstance(loss, Loss)}

    @property
    def student_needs(self) -> frozenset[Signal]:
        return frozenset(Signal(name) for loss in self.terms.values() for name in loss.student_needs)

    @property
    def teacher_needs(self) -> frozenset[Signal]:
        needs = frozenset(Signal(name) for loss in self.terms.values() for name in loss.teacher_needs)
        return needs if self.begins_at is None else needs | {self.begins_at}

    def begin(self, teacher: Mapping[Signal, Tensor]) -> dict[Signal, Tensor]:
        """Where a student's forward pass begins (see ``models.capture``); empty: at the tokens."""
        return {} if self.begins_at is None else {self.begins_at: teacher[self.begins_at]}

    @property
    def group_size(self) -> int:
        """Return the least common multiple of the terms' groups: a border of it splits no group of any term."""
        return math.lcm(*(loss.group_size for loss in self.terms.values()))

    def at(self, share: float) -> None:
        """Turn all terms to the step before which this share of the stage lies."""
        for loss in self.terms.values():
            loss.at(share)

    def counts(self, batches: list[Batch]) -> list[int]:
        """Return each term's count over ``batches``, in the order of the terms."""
        return [sum(loss.count(batch) for batch in batches) for loss in self.terms.values()]

    def forward(
        self, student: Mapping[Signal, Tensor], teacher: Mapping[Signal, Tensor], batch: Batch, counts: list[float]
    ) -> tuple[Tensor, list[Tensor]]:
        """Return this batch's share of the weighted total, and each term's unweighted sum (detached).

        ``counts`` are those of the whole global batch; a term whose count is 0 contributes 0. Terms compute in float32
        whatever a model computes in, so autocast has to have ended: near convergence bfloat16 products made a loss of
        8.5e-6 one of 6.0e-5, and its gradient's cosine to the right one 0.63.
        """
        student, teacher = in_float32(student), in_float32(teacher)
        living = {
            name: (loss, loss.weight / count)
            for (name, loss), count in zip(self.terms.items(), counts, strict=True)
            if count and loss.count(batch)
        }
        totals: list[Tensor] = []
        sums: dict[str, Tensor] = {}
        if isinstance(student.get(LOGITS), VocabularyLogits):
            over_words = {name: term for name, term in living.items() if LOGITS in term[0].student_needs}
            if over_words:
                # A decoder's weights are cast once, not in each chunk: casts are kept until the outermost context ends.
                with torch.autocast(student[LOGITS].states.device.type, enabled=False):
                    total, sums = in_chunks(over_words, student, teacher, batch)
                totals.append(total)
        for name, (loss, factor) in living.items():
            if name not in sums:
                values = loss(student, teacher, batch)
                expected = (loss.count(batch),)
                assert values.shape == expected, f"{type(loss).__name__}: {values.shape} values, not its count"
                share = values.sum()
                sums[name] = share.detach()
                totals.append(share * factor)
        total = sum(totals[1:], totals[0]) if totals else torch.zeros(())
        return total, [sums.get(name, torch.zeros(())) for name in self.terms]


def in_float32(signals: Mapping[Signal, Any]) -> dict[Signal, Any]:
    """What a model computed, or the store kept, in half precision; logits over a vocabulary see to it themselves."""
    return {s: values.float() if isinstance(values, Tensor) else values for s, values in signals.items()}
