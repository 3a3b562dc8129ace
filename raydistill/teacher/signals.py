"""Where a batch's teacher signals come from: one interface, equal numbers within half-precision rounding."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from raydistill.cluster.device import Device
from raydistill.data.batches import Batch
from raydistill.models.capture import capture
from raydistill.models.signals import Signal


class Signals(ABC):
    """A source of teacher signals, as a loop asks it."""

    knows_batch: ClassVar[bool] = False
    """Whether it looks at the batch's own inputs, which may be other ones at every epoch, not at rows as stored."""

    @abstractmethod
    def read(self, batch: Batch) -> dict[Signal, Tensor]:
        """Return the signals of a batch, whose inputs are on the device that computes: row-level (B, …), token-level
        (N, …) flat, in the rows' order."""

    def foresee(self, steps: Iterator[list[np.ndarray]]) -> None:  # noqa: B027, most sources need no foresight
        """Learn what is asked for from here on: each step's micro-batches (row ids), computed when it is looked at."""

    def wait(self, parts: Sequence[np.ndarray]) -> bool:
        """Wait a moment, a second or so, for the signals of a step's micro-batches; whether all are there."""
        return True


class NoSignals(Signals):
    """For stages in which no teacher speaks."""

    knows_batch = True

    def read(self, batch: Batch) -> dict[Signal, Tensor]:
        return {}


class OnlineSignals(Signals):
    """The teacher runs in the training process: evaluation mode, no gradient."""

    knows_batch = True

    def __init__(self, teacher: nn.Module, needs: Collection[Signal], device: Device) -> None:
        self.teacher = teacher.to(device.torch_device).eval()
        self.needs = frozenset(needs)
        self.device = device

    def read(self, batch: Batch) -> dict[Signal, Tensor]:
        with torch.no_grad(), self.device.autocast():
            return capture(self.teacher, batch.inputs, self.needs)
