"""The processes that train together, as plain torch sees them: one alone, or a ``torch.distributed`` group."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

BUCKET_BYTES = 32 * 2**20
"""Gradients are reduced in flat buckets of about this size: few calls, and no second copy of a whole model."""


class Group:
    """Rank, size and the few collectives that are used. Without an initialised process group it is one process.

    Gradients are summed once a step, after the last micro-batch, instead of through DDP's hooks: a rank whose share of
    a short batch is empty, parameters that no loss reached, and losses with projections then need no special case.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self.is_distributed = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if self.is_distributed else 0
        self.size = dist.get_world_size() if self.is_distributed else 1
        self.device = device or torch.device("cpu")

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Return the element-wise sum over all ranks, exact for integers up to 2^53."""
        if self.size == 1:
            return list(values)
        vector = torch.tensor(values, dtype=torch.float64, device=self._communication_device())
        dist.all_reduce(vector)
        return vector.tolist()

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its sum over all ranks; one that is missing on some ranks counts as 0 there.

        What no rank has stays missing, as with one process: AdamW would decay a parameter with a gradient of zeros.
        """
        if self.size == 1:
            return
        parameters = list(parameters)
        present = self.sum([float(parameter.grad is not None) for parameter in parameters])
        bucket: list[Tensor] = []
        size = 0
        for parameter, ranks in zip(parameters, present, strict=True):
            if not ranks:
                continue
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            bucket.append(parameter.grad)
            size += parameter.grad.numel() * parameter.grad.element_size()
            if size >= BUCKET_BYTES:
                _sum_bucket(bucket)
                bucket, size = [], 0
        if bucket:
            _sum_bucket(bucket)

    def broadcast(self, value: Any = None) -> Any:
        """Return rank 0's ``value`` on every rank (any picklable object)."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self._communication_device())
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's ``value`` (any picklable object), in the order of the ranks, on every rank."""
        if self.size == 1:
            return [value]
        boxes: list[Any] = [None] * self.size
        dist.all_gather_object(boxes, value)
        return boxes

    def synchronize(self, module: nn.Module) -> None:
        """Copy rank 0's parameters and buffers to every rank."""
        if self.size == 1:
            return
        for tensor in [*module.parameters(), *module.buffers()]:
            dist.broadcast(tensor.data, src=0)

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()

    def all_come(self, name: str, seconds: float) -> bool:
        """Whether every rank calls this within so many seconds; other than a barrier it may be called by some alone.

        Meant for the end of a group: a name serves once.
        """
        if self.size == 1:
            return True
        store = dist.distributed_c10d._get_default_store()
        try:
            store.set(f"{name}/{self.rank}", "here")
            store.wait([f"{name}/{rank}" for rank in range(self.size)], timedelta(seconds=seconds))
        except RuntimeError:  # too late, or rank 0, which keeps the store, is gone
            return False
        return True

    def _communication_device(self) -> torch.device:
        return self.device if dist.get_backend() == "nccl" else torch.device("cpu")


def _sum_bucket(gradients: list[Tensor]) -> None:
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for gradient in gradients:
        by_dtype.setdefault(gradient.dtype, []).append(gradient)
    for same in by_dtype.values():
        flat = torch.cat([gradient.reshape(-1) for gradient in same])
        dist.all_reduce(flat)
        for gradient, part in zip(same, flat.split([g.numel() for g in same]), strict=True):
            gradient.copy_(part.view_as(gradient))
