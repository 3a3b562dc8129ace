"""Tensors as bytes between a teacher's actor and a student."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raydistill.models.signals import Signal

Packed = dict[Signal, tuple[np.ndarray, str]]
"""Signal → its values and their dtype in torch, which numpy may not have."""


def pack(signals: Mapping[Signal, Tensor]) -> Packed:
    """Tensors as arrays, which Ray hands over without a copy."""
    packed = {}
    for signal, tensor in signals.items():
        values = tensor.detach().cpu().contiguous()
        is_known = values.dtype != torch.bfloat16
        array: Any = values.numpy() if is_known else values.view(torch.int16).numpy()
        packed[signal] = (array, str(values.dtype).removeprefix("torch."))
    return packed


def unpack(packed: Packed) -> dict[Signal, Tensor]:
    """The tensors again, in memory of their own: what lies in Ray's store cannot be written to."""
    return {
        signal: torch.from_numpy(array.copy()).view(getattr(torch, dtype)) for signal, (array, dtype) in packed.items()
    }
