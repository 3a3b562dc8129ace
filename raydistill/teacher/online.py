"""Outputs of a teacher that sits beside the student, computed for each batch."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import torch
from torch import Tensor, nn

from raydistill.cluster.device import Device
from raydistill.models.capture import capture
from raydistill.teacher.signals import Signals


class OnlineSignals(Signals):
    """The teacher runs in the training process: evaluation mode, no gradient."""

    def __init__(self, teacher: nn.Module, needs: Collection[str], device: Device) -> None:
        self.teacher = teacher.to(device.torch_device).eval()
        self.needs = frozenset(needs)
        self.device = device

    def batch(self, row_ids: np.ndarray, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        with torch.no_grad(), self.device.autocast():
            return capture(self.teacher, inputs, self.needs)
