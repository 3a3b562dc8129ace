"""Where a batch's teacher signals come from: one interface, equal numbers within half-precision rounding."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from raydistill.models.capture import capture
from raydistill.train.device import Device


class Signals(Protocol):
    """``batch`` returns the signals of these rows: row-level (B, …), token-level (N, …) flat, in the rows' order."""

    def batch(self, row_ids: np.ndarray, inputs: dict[str, Tensor]) -> dict[str, Tensor]: ...


class NoSignals:
    """For stages in which no teacher speaks."""

    def batch(self, row_ids: np.ndarray, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {}


class OnlineSignals:
    """The teacher runs in the training process: evaluation mode, no gradient."""

    def __init__(self, teacher: nn.Module, needs: Collection[str], device: Device) -> None:
        self.teacher = teacher.to(device.torch_device).eval()
        self.needs = frozenset(needs)
        self.device = device

    def batch(self, row_ids: np.ndarray, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        with torch.no_grad(), self.device.autocast():
            return capture(self.teacher, inputs, self.needs)
