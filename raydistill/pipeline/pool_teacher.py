"""One teacher of a pool: it computes the signals of training rows, or records shards. Lives in a Ray actor."""

from __future__ import annotations

import os
import socket
from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from raydistill.cluster.connection import has_gpu
from raydistill.cluster.device import Device, keep_freed_memory
from raydistill.cluster.group import Group
from raydistill.models.signals import Signal
from raydistill.pipeline.context import Context
from raydistill.pipeline.job import Job
from raydistill.pipeline.recipes import TeacherIdentity, teacher_folder
from raydistill.storage.artifacts import Artifact
from raydistill.storage.board import Board
from raydistill.storage.faults import not_common
from raydistill.storage.manifest import FileInfo
from raydistill.teacher import record
from raydistill.teacher.pool.packing import Packed, pack
from raydistill.teacher.signals import OnlineSignals
from raydistill.teacher.store import cut_shards


class Teacher:
    """The teacher of a job, alone on its device; ``speaks``: who that is, by default the model that the job names."""

    def __init__(self, job: Job, speaks: TeacherIdentity | None = None) -> None:
        self.job, self.speaks = replace(job, run=None), speaks
        self.shards: dict[str, list[np.ndarray]] = {}
        """Of each split, cut once: to cut 10 million rows takes a second."""

    def open(self) -> str:
        """Load the weights; the node that this is."""
        keep_freed_memory()
        if threads := os.environ.get("OMP_NUM_THREADS"):  # Ray's, by the CPUs that the actor asked for
            torch.set_num_threads(int(threads))
        job = self.job
        if not job.storage.exists(*job.owner.folder, "owner.json"):  # the driver wrote it
            raise not_common(job.storage.url)
        device = Device("cuda" if has_gpu() else "cpu", job.dtype)
        self.context = Context(job, Group(device.torch_device), device, Board(job.storage, job.board_parts, job.owner))
        folder = self.speaks.folder if self.speaks is not None else teacher_folder(job.config.lead, None)
        self.model = self.context.load(folder, dropout=0.0)
        nn.Module.to(self.model, device.torch_device).eval()
        return socket.gethostname()

    def is_alive(self) -> bool:
        return True

    def signals(self, row_ids: np.ndarray, needs: Collection[Signal]) -> Packed:
        """Signals of these training rows as ``OnlineSignals`` gives them: the same function, batch and padding."""
        context = self.context
        batch = context.rows["train"].batch(row_ids)
        batch = replace(batch, inputs=context.device.move(batch.inputs))
        return pack(OnlineSignals(self.model, needs, context.device).read(batch))

    def record(self, split: str, index: int, wanted: Mapping[Signal, Artifact]) -> dict[Signal, tuple[str, FileInfo]]:
        """Record one shard of a split; by signal the file's name, size and checksum."""
        context, rows = self.context, self.context.rows[split]
        if split not in self.shards:
            self.shards[split] = cut_shards(rows.lengths)
        row_ids = self.shards[split][index]
        tokens, owner = context.inference_tokens, self.job.owner
        return record.record_shard(self.model, rows, row_ids, index, wanted, tokens, context.device, owner)
