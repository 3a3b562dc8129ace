"""How fast this machine trains and reads: a few real steps of models with random weights, for the estimates of a plan.

A model with random weights takes as long as a trained one. Times are those of cores that nothing else wants: beside a
load of 20 on 2 cores small batches took up to 10 times as long, and what follows from two of them a hundred times.
Nothing is stored, and nothing is left of it in torch's generators and threads.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PretrainedConfig

from raydistill.cluster import TRIALS_AT_ONCE
from raydistill.cluster.device import Device
from raydistill.cluster.group import Group
from raydistill.config.training import Optimization
from raydistill.config.training import Stage as StageSettings
from raydistill.config.tree import Config
from raydistill.data.batches import Batch, micro_batches
from raydistill.data.rows import Rows
from raydistill.evaluate.latency import cpu_times, longest_wait
from raydistill.losses import build_losses
from raydistill.models.capture import capture
from raydistill.models.load import new_model, seeded
from raydistill.models.precision import attention_implementation
from raydistill.models.signals import LOGITS, Signal
from raydistill.pipeline.context import CPU_INFERENCE_TOKENS
from raydistill.storage.storage import Storage
from raydistill.tasks import Task
from raydistill.teacher.signals import Signals
from raydistill.train.checkpoint import Checkpoints
from raydistill.train.loop import Schedule, Setup, StageRun

SECONDS = 0.25
"""A batch is doubled until it takes so long, or is as large as in training."""


@dataclass(frozen=True)
class Step:
    """Seconds of an optimizer step: ``fixed`` whatever its batch, and ``per_row`` of the batch."""

    fixed: float
    per_row: float

    def seconds(self, num_steps: float, num_rows: float) -> float:
        """Of so many steps, which see so many rows in all."""
        return self.fixed * num_steps + self.per_row * num_rows


@dataclass(frozen=True)
class Sample:
    """What rows look like on which a model is timed, and where it computes."""

    length: int
    """Tokens of a row, the mean of the training rows."""
    task: Task
    device: Device
    threads: int

    def rows(self, vocab_size: int, num_rows: int) -> Rows:
        """Rows of random tokens, all labelled."""
        draw = np.random.default_rng(0)
        size = num_rows * self.length
        return Rows(
            lengths=np.full(num_rows, self.length, np.int32),
            targets=self.task.blank(num_rows),
            example_ids=np.arange(num_rows, dtype=np.int64),
            starts=np.arange(0, size, self.length, dtype=np.int64),
            values={"input_ids": draw.integers(0, vocab_size, size, dtype=np.int32)},
            pad_token_id=0,
        )

    @property
    def attention(self) -> str:
        return attention_implementation(self.device.torch_device.type, self.device.dtype, self.length)


@dataclass(frozen=True)
class Machine:
    """What a trial, or a run, computes on, as far as it is known here."""

    device: str
    """``cuda`` only where this machine has one: times are then a GPU's."""
    cpus: int
    threads: int
    """CPUs of a trial: of all its workers together."""
    gpus: float
    """GPUs of a trial; 0 where it uses none."""
    concurrency: int
    unit: str = " a trial"

    @property
    def measured_on(self) -> str:
        if self.device != "cpu":
            return torch.cuda.get_device_name()
        where = f"cpu, {self.threads} thread{'s' * (self.threads > 1)}{self.unit}"
        return f"{where}, though workers will use GPUs" if self.gpus else where


@dataclass(frozen=True)
class Speed:
    """Seconds of the teacher's forward pass and of the student's steps."""

    teacher_row: float
    """Recording a row with all CPUs."""
    teacher_step: float
    """What a step of its fine-tuning costs whatever the batch."""
    online_row: float
    """The teacher beside the student, a row; 0 where signals are recorded."""
    step: Step


def num_cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine(config: Config, device_type: str, cpus: int) -> Machine:
    """What trials compute on: this machine, with so many ``cpus``, shared as ``cluster.worker_resources`` shares one.

    Where ``RAY_ADDRESS`` names a cluster, as many trials at a time as ``sweep.max_concurrent_trials`` says. Without a
    sweep it is one run that has all of it.
    """
    is_sweep = config.sweep is not None
    limit = config.sweep.max_concurrent_trials if config.sweep is not None else 1
    workers = max(1, config.train.num_workers)
    has_gpu = device_type == "cuda" and torch.cuda.is_available()
    there = {"CPU": float(cpus)} | ({"GPU": float(torch.cuda.device_count())} if has_gpu else {})
    wanted = config.train.resources_per_worker
    if wanted is None and there.get("GPU", 0) >= workers:
        wanted = {"CPU": max(1.0, cpus // there["GPU"]), "GPU": 1.0}
    elif wanted is None:
        wanted = {"CPU": max(1.0, cpus // (workers * (TRIALS_AT_ONCE if is_sweep else 1)))}
    rooms = [there[name] / (workers * amount) for name, amount in wanted.items() if amount and name in there]
    room = min(rooms, default=float(cpus))
    if limit is not None:
        room = limit if os.environ.get("RAY_ADDRESS") else min(room, limit)
    each = min(max(1, int(workers * wanted.get("CPU", 1.0))), cpus)
    device, gpus = "cuda" if has_gpu else "cpu", workers * wanted.get("GPU", 0.0)
    return Machine(device, cpus, each, gpus, max(1, int(room)), " a trial" if is_sweep else "")


def time_teacher(teacher: PretrainedConfig, sample: Sample) -> float:
    """Seconds a row of a forward pass without gradient."""
    rows = sample.rows(teacher.vocab_size, max(1, CPU_INFERENCE_TOKENS // sample.length))
    model = new_model(teacher, seed=0, attn_implementation=sample.attention)
    torch.nn.Module.to(model, sample.device.torch_device)

    def read(num_rows: int) -> None:
        inputs = sample.device.move(rows.inputs(np.arange(num_rows)))
        with torch.inference_mode(), sample.device.autocast():
            capture(model, inputs, {LOGITS})

    with threads(sample.threads):
        num_rows, seconds = grown(read, rows.num_rows, sample.device)[-1]
    return seconds / num_rows


def time_student(
    config: Config, stage: StageSettings, student: PretrainedConfig, teacher: PretrainedConfig, sample: Sample
) -> Step:
    """Steps of a student of this shape in the stage, with signals as they are read from storage.

    Two batches of different size tell what a step costs whatever its batch; a batch too slow to be timed here is
    taken to be as fast a row as the largest that was.
    """
    with seeded(0), threads(sample.threads):
        setup = training(config, stage, student, teacher, sample)
        loop, losses = StageRun(setup), setup.losses

        def step(num_rows: int) -> None:
            parts = micro_batches(
                np.arange(num_rows),
                setup.rows.lengths,
                tokens=config.train.tokens_per_micro_batch,
                group_size=losses.group_size,
            )
            batches = [setup.rows.batch(ids) for ids in parts]
            loop.take_step(0, batches, [float(count) for count in losses.counts(batches)])

        times = grown(step, setup.rows.num_rows, sample.device, losses.group_size)
    return fit(times)


def training(
    config: Config, stage: StageSettings, student: PretrainedConfig, teacher: PretrainedConfig, sample: Sample
) -> Setup:
    """A stage that could train on the sample's rows, with a checkpoint folder that is never written to."""
    rows = sample.rows(student.vocab_size, config.train.global_batch_size)
    model = new_model(student, seed=0, attn_implementation=sample.attention)
    losses = build_losses(stage.losses, sample.task, student, teacher, seed=0)
    return Setup(
        name="student.timing",
        model=model,
        losses=losses,
        signals=EmptySignals(losses.teacher_needs, teacher),
        rows=rows,
        row_ids=np.arange(rows.num_rows),
        schedule=Schedule(1, 1),
        optimization=Optimization(**stage.model_dump(include=set(Optimization.model_fields))),
        settings=config.train,
        seed=0,
        validate=dict,
        score=len,
        checkpoints=Checkpoints(Storage(config.storage), ("runs", "timing")),
        group=Group(sample.device.torch_device),
        device=sample.device,
    )


class EmptySignals(Signals):
    """Signals of zeros in the shapes that a teacher's have."""

    def __init__(self, needs: frozenset[Signal], teacher: PretrainedConfig) -> None:
        self.widths = {signal: signal.width(teacher) for signal in needs}

    def read(self, batch: Batch) -> dict[Signal, Tensor]:
        return {
            signal: torch.zeros(batch.num_tokens if signal.is_token_level else batch.num_rows, width)
            for signal, width in self.widths.items()
        }


def grown(work: Callable[[int], None], limit: int, device: Device, unit: int = 1) -> list[tuple[int, float]]:
    """(rows, seconds) of ever larger batches up to ``limit`` rows, each a multiple of ``unit``; the best of a few."""
    found: list[tuple[int, float]] = []
    num_rows = unit
    while True:
        num_rows = min(num_rows, max(limit, unit))
        seconds = timed(work, num_rows, device)  # finds its memory and kernels, and tells how often to repeat
        seconds = min(timed(work, num_rows, device) for _ in range(max(1, min(10, int(0.15 / seconds)))))
        found.append((num_rows, seconds))
        if seconds > SECONDS or num_rows >= limit:
            return found
        num_rows *= 2 if seconds > SECONDS / 8 else 4


def timed(work: Callable[[int], None], num_rows: int, device: Device) -> float:
    """Seconds that it takes where nothing else wants the cores: without what was waited for one."""
    before, started = cpu_times(), time.perf_counter()
    work(num_rows)
    if device.torch_device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    return max(seconds - longest_wait(before, cpu_times()), 1e-6)


def fit(times: list[tuple[int, float]]) -> Step:
    """The line through the smallest and the largest batch; all of it is per row where one batch was timed."""
    (few, quick), (many, slow) = times[0], times[-1]
    if many == few:
        return Step(0.0, slow / many)
    per_row = max(slow - quick, 0.0) / (many - few)
    return Step(max(slow - per_row * many, 0.0), per_row)


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Compute with so many threads inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
