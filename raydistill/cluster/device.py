"""The device of a process and its compute dtype."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
KEPT_BYTES = 2**30


def keep_freed_memory(block_bytes: int = KEPT_BYTES, total_bytes: int = KEPT_BYTES) -> None:
    """Let glibc keep freed blocks of up to 1 GiB instead of mapping them afresh: a CPU step is 15 % faster.

    ``block_bytes``: larger blocks are mapped; ``total_bytes``: more free memory than this at the top of the heap goes
    back to the system. Does nothing where the C library has no ``mallopt``.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, block_bytes)
        mallopt(M_TRIM_THRESHOLD, total_bytes)


Name = TypeVar("Name", bound=str)


@dataclass(frozen=True)
class Device:
    """Where a process computes, and in which dtype: ``float32``, or ``bfloat16`` by autocast over float32 weights."""

    name: str = "cpu"
    dtype: str = "float32"

    @property
    def torch_device(self) -> torch.device:
        return torch.device(self.name)

    def autocast(self) -> AbstractContextManager[object]:
        if self.dtype == "float32":
            return nullcontext()
        return torch.autocast(self.torch_device.type, dtype=torch.bfloat16)

    def move(self, tensors: Mapping[Name, Tensor]) -> dict[Name, Tensor]:
        return {name: tensor.to(self.torch_device, non_blocking=True) for name, tensor in tensors.items()}
