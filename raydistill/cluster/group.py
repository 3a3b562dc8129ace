"""The processes that train together, as plain torch sees them: one alone, or a ``torch.distributed`` group."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from raydistill.errors import RaydistillError

BUCKET_BYTES = 32 * 2**20
"""Gradients are reduced in flat buckets of about this size: few calls, and no second copy of a whole model."""
TELL_SECONDS = 10.0
"""At this interval a rank at work says so, and those that wait for it look."""
HUNG_SECONDS = 6 * 3600.0
"""Ranks that wait take another for hung after so long without a word: what is not told in steps, as the upload of a
model or a node's copy of 180 GB at 10 MB/s, takes less."""
POLL_SECONDS = 0.2


class Group:
    """Rank, size and the few collectives that are used. Without an initialised process group it is one process.

    A collective fails after a while (Ray's groups: 1,800 s), however good the reason. So all of them but the sums,
    which every training step needs, are preceded by ``meet``: ranks may come as late as their own work lets them.

    Gradients are summed once a step, after the last micro-batch, instead of through DDP's hooks: a rank whose share of
    a short batch is empty, parameters that no loss reached, and losses with projections then need no special case.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self.is_distributed = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if self.is_distributed else 0
        self.size = dist.get_world_size() if self.is_distributed else 1
        self.device = device or torch.device("cpu")
        self._told_at = -TELL_SECONDS

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Return the element-wise sum over all ranks, exact for integers up to 2^53. They do not ``meet`` before."""
        if self.size == 1:
            return list(values)
        vector = torch.tensor(values, dtype=torch.float64, device=self._communication_device())
        dist.all_reduce(vector)
        return vector.tolist()

    def any(self, value: bool) -> bool:
        """Whether ``value`` is true on some rank, after work that may take each as long as it will."""
        self.meet()
        return bool(self.sum([float(value)])[0])

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
        self.meet()
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self._communication_device())
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's ``value`` (any picklable object), in the order of the ranks, on every rank."""
        if self.size == 1:
            return [value]
        self.meet()
        boxes: list[Any] = [None] * self.size
        dist.all_gather_object(boxes, value)
        return boxes

    def synchronize(self, module: nn.Module) -> None:
        """Copy rank 0's parameters and buffers to every rank."""
        if self.size == 1:
            return
        self.meet()
        for tensor in [*module.parameters(), *module.buffers()]:
            dist.broadcast(tensor.data, src=0)

    def barrier(self) -> None:
        if self.size > 1:
            self.meet()
            dist.barrier()

    def meet(self) -> None:
        """Wait until every rank has come here, in no collective: however long the work takes that another is at.

        Raises RaydistillError where no rank has been ``at_work`` for HUNG_SECONDS.
        """
        if self.size == 1:
            return
        store = dist.distributed_c10d._get_default_store()
        number = store.add(f"meetings/{self.rank}", 1)  # counted there: another Group of this process goes on with it
        if store.add(f"met/{number}/ranks", 1) == self.size:
            store.set(f"met/{number}", "all")
            for key in (f"met/{number - 1}", f"met/{number - 1}/ranks"):  # which all have left that are here
                store.delete_key(key)
            return
        pause, told, since = 0.001, [-1], time.monotonic()
        look_at = since
        while not store.check([f"met/{number}"]):
            time.sleep(pause)
            pause = min(2 * pause, POLL_SECONDS)
            if (now := time.monotonic()) < look_at:
                continue
            look_at = now + TELL_SECONDS
            if (heard := [store.add(f"at work/{rank}", 0) for rank in range(self.size)]) != told:
                told, since = heard, now
            elif now - since >= HUNG_SECONDS:
                late = [rank for rank in range(self.size) if store.add(f"meetings/{rank}", 0) < number]
                raise RaydistillError(
                    f"Worker {', '.join(map(str, late))} has not got on for {(now - since) / 3600:.1f} hours, so it is "
                    "taken for hung. Look at the log and the disk of its node; the same command goes on from the last "
                    "checkpoint."
                )

    def at_work(self) -> None:
        """Tell ranks that wait for this one that it gets on; to be called in the steps of work without bounds."""
        if self.size > 1 and (now := time.monotonic()) - self._told_at >= TELL_SECONDS:
            self._told_at = now
            dist.distributed_c10d._get_default_store().add(f"at work/{self.rank}", 1)

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
