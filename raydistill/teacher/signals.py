"""Where a batch's teacher signals come from: one interface, equal numbers within half-precision rounding."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from typing import Protocol

import numpy as np
from torch import Tensor
from transformers import PreTrainedConfig

from raydistill.data.batches import Batch
from raydistill.models.signals import Signal


class Signals(ABC):
    """A source of teacher signals, as a loop asks it."""

    @abstractmethod
    def read(self, batch: Batch) -> dict[Signal, Tensor]:
        """Return the signals of a batch, whose inputs are on the device that computes: row-level (B, …), token-level
        (N, …) flat, in the rows' order."""

    def foresee(self, steps: Iterator[list[np.ndarray]]) -> None:  # noqa: B027, most sources need no foresight
        """Learn what is asked for from here on: each step's micro-batches (row ids), computed when it is looked at."""

    def wait(self, parts: Sequence[np.ndarray]) -> bool:
        """Wait a moment, a second or so, for the signals of a step's micro-batches; whether all are there."""
        return True


class Feed(Protocol):
    """A pool of teachers, as a training worker sees it."""

    def signals(self, needs: Collection[Signal], teacher: PreTrainedConfig, lengths: np.ndarray, rank: int) -> Signals:
        """What the teachers say about rows of the training split; ``lengths``: tokens of each of its rows."""
        ...

    def close(self) -> None:
        """Say that no more signals will be asked for."""


class NoSignals(Signals):
    """For stages in which no teacher speaks."""

    def read(self, batch: Batch) -> dict[Signal, Tensor]:
        return {}
