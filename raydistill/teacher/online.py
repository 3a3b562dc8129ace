"""Outputs of a teacher that sits beside the student, computed for each batch."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from raydistill.cluster.device import Device
from raydistill.data.batches import Batch
from raydistill.models.capture import capture
from raydistill.models.signals import Signal
from raydistill.teacher.signals import Signals


class OnlineSignals(Signals):
    """The teacher runs in the training process: evaluation mode, no gradient."""

    def __init__(self, teacher: nn.Module, needs: Collection[Signal], device: Device) -> None:
        self.teacher = teacher.to(device.torch_device).eval()
        self.needs = frozenset(needs)
        self.device = device

    def read(self, batch: Batch) -> dict[Signal, Tensor]:
        with torch.no_grad(), self.device.autocast():
            return capture(self.teacher, batch.inputs, self.needs)
