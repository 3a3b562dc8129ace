"""How fast this machine trains and reads: a few real steps of models with random weights, for the estimates of a plan.

A model with random weights takes as long as a trained one. Times are those of cores that nothing else wants: beside a
load of 20 on 2 cores small batches took up to 10 times as long.
Nothing is stored, and nothing is left of it in torch's generators and threads.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PretrainedConfig

from raydistill.cluster.device import Device
from raydistill.cluster.group import Group
from raydistill.cluster.placement import can_grow
from raydistill.cluster.resources import TRIALS_AT_ONCE, wanted_by_workers
from raydistill.cluster.room import Node, room
from raydistill.config.training import Optimization
from raydistill.config.training import Stage as StageSettings
from raydistill.config.tree import Config
from raydistill.data.batches import Batch, micro_batches
from raydistill.data.pictures import Processor
from raydistill.data.rows import PictureRows, Rows
from raydistill.evaluate.latency import cpu_times, longest_wait
from raydistill.losses import build_losses
from raydistill.models.capture import capture
from raydistill.models.load import new_model, seeded
from raydistill.models.precision import attention_implementation
from raydistill.models.signals import LOGITS, Signal, State
from raydistill.models.vocabulary import VocabularyLogits
from raydistill.pipeline.context import CPU_INFERENCE_TOKENS
from raydistill.storage.storage import Storage
from raydistill.tasks import Task
from raydistill.tasks.targets import Ragged
from raydistill.teacher.signals import Signals
from raydistill.train.checkpoint import Checkpoints, TrainProgress
from raydistill.train.loop import Setup, StageRun, Validation
from raydistill.train.schedule import Schedule

SECONDS = 0.25
"""A batch is doubled until it takes so long, or is as large as in training."""


@dataclass(frozen=True)
class Sample:
    """What rows look like on which a model is timed, and where it computes."""

    length: int
    """Tokens of a row, the mean of the training rows."""
    task: Task
    device: Device
    threads: int
    processor: Processor | None = None
    """Of pictures, where rows are such."""

    def rows(self, vocab_size: int, num_rows: int) -> Rows:
        """Rows of random tokens, or pixels, all labelled."""
        draw = np.random.default_rng(0)
        if self.processor is not None:
            pixels = draw.integers(0, 256, (num_rows, *self.processor.shape), dtype=np.uint8)
            known = (self.task.blank(num_rows), np.arange(num_rows, dtype=np.int64))
            return PictureRows.of_pixels(pixels, *known, self.length, self.processor)
        size = num_rows * self.length
        targets = self.task.blank(num_rows)
        values = targets.values
        return Rows(
            lengths=np.full(num_rows, self.length, np.int32),
            targets=targets,
            example_ids=np.arange(num_rows, dtype=np.int64),
            starts=np.arange(0, size, self.length, dtype=np.int64),
            values={"input_ids": draw.integers(0, vocab_size, size, dtype=np.int32)},
            pad_token_id=0,
            units=Ragged(values.rows * 0, values.lengths) if isinstance(values, Ragged) else None,
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
    """Seconds a row."""

    teachers: Mapping[str, float]
    """Recording each teacher with all CPUs, by what its phases have behind their names."""
    online: float
    """The teacher beside the student; 0 where signals are recorded."""
    student: float
    """Training on it."""


def machine(config: Config, device_type: str, cpus: int | None = None) -> Machine:
    """What trials compute on: this machine (with so many ``cpus``), shared as a cluster of it alone would be.

    On a cluster that may grow, as many trials at a time as ``sweep.max_concurrent_trials`` says. Without a
    sweep it is one run that has all of it.
    """
    cpus = cpus or len(os.sched_getaffinity(0))
    sweep, workers = config.sweep, max(1, config.train.num_workers)
    has_gpu = device_type == "cuda" and torch.cuda.is_available()
    here = Node("here", {"CPU": float(cpus)} | ({"GPU": float(torch.cuda.device_count())} if has_gpu else {}))
    wanted = wanted_by_workers(config.train, [here], groups=1 if sweep is None else TRIALS_AT_ONCE, is_trial=True)
    held = {name: amount for name, amount in wanted.items() if name in here.total}
    concurrency = 1 if sweep is None else int(min(room(held, [here]), cpus)) // workers
    if sweep is not None and (limit := sweep.max_concurrent_trials) is not None:
        concurrency = limit if can_grow() else min(concurrency, limit)
    each = min(max(1, int(workers * wanted.get("CPU", 1.0))), cpus)
    device, gpus = "cuda" if has_gpu else "cpu", workers * wanted.get("GPU", 0.0)
    return Machine(device, cpus, each, gpus, max(1, concurrency), "" if sweep is None else " a trial")


def time_teacher(teacher: PretrainedConfig, sample: Sample) -> float:
    """Seconds a row of a forward pass without gradient."""
    rows = sample.rows(getattr(teacher, "vocab_size", 0), max(1, CPU_INFERENCE_TOKENS // sample.length))
    model = new_model(teacher, seed=0, attn_implementation=sample.attention)
    torch.nn.Module.to(model, sample.device.torch_device)

    def read(num_rows: int) -> None:
        inputs = sample.device.move(rows.inputs(np.arange(num_rows)))
        with torch.inference_mode(), sample.device.autocast():
            logits: Any = capture(model, inputs, {LOGITS})[LOGITS]
            for units in logits.chunks() if isinstance(logits, VocabularyLogits) else ():
                logits.part(units)

    with threads(sample.threads):
        return seconds_per_row(read, rows.num_rows, sample.device)


def time_student(
    config: Config, stage: StageSettings, student: PretrainedConfig, teacher: PretrainedConfig, sample: Sample
) -> float:
    """Seconds a row of training a student of this shape in the stage, with signals as they are read from storage."""
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
            loop.take_step(0, batches, [float(count) for count in losses.counts(batches)], TrainProgress())

        return seconds_per_row(step, setup.rows.num_rows, sample.device, losses.group_size)


def training(
    config: Config, stage: StageSettings, student: PretrainedConfig, teacher: PretrainedConfig, sample: Sample
) -> Setup:
    """A stage that could train on the sample's rows, with a checkpoint folder that is never written to."""
    rows = sample.rows(getattr(student, "vocab_size", 0), config.train.global_batch_size)
    model = new_model(student, seed=0, attn_implementation=sample.attention)
    losses = build_losses(stage.losses, sample.task, student, teacher, seed=0)
    return Setup(
        name="student.timing",
        model=model,
        losses=losses,
        signals=EmptySignals(losses.teacher_needs, teacher, rows.states_of(teacher)),
        rows=rows,
        row_ids=np.arange(rows.num_rows),
        schedule=Schedule(1, 1),
        optimization=Optimization(**stage.model_dump(include=set(Optimization.model_fields))),
        settings=config.train,
        seed=0,
        validate=lambda: Validation({}, 0.0),
        checkpoints=Checkpoints(Storage(config.storage), ("runs", "timing")),
        group=Group(sample.device.torch_device),
        device=sample.device,
    )


class EmptySignals(Signals):
    """Signals of zeros in the shapes that a teacher's have."""

    def __init__(self, needs: frozenset[Signal], teacher: PretrainedConfig, states: Sequence[State]) -> None:
        self.states = states
        self.widths = {signal: signal.width(teacher, states) for signal in needs}

    def read(self, batch: Batch) -> dict[Signal, Tensor]:
        known = (batch.num_rows, batch.num_tokens, self.states)
        return {
            signal: torch.zeros(
                signal.num_positions(*known) if signal.is_token_level else batch.targets.num_units, width
            )
            for signal, width in self.widths.items()
        }


def seconds_per_row(work: Callable[[int], None], limit: int, device: Device, unit: int = 1) -> float:
    """In the largest batch up to ``limit`` rows, a multiple of ``unit``, that does not take too long to be timed; the
    best of a few."""
    num_rows = unit
    while True:
        num_rows = min(num_rows, max(limit, unit))
        seconds = timed(work, num_rows, device)  # finds its memory and kernels, and tells how often to repeat
        seconds = min(timed(work, num_rows, device) for _ in range(max(1, min(10, int(0.15 / seconds)))))
        if seconds > SECONDS or num_rows >= limit:
            return seconds / num_rows
        num_rows *= 2 if seconds > SECONDS / 8 else 4


def timed(work: Callable[[int], None], num_rows: int, device: Device) -> float:
    """Seconds that it takes where nothing else wants the cores: without what was waited for one."""
    before, started = cpu_times(), time.perf_counter()
    work(num_rows)
    if device.torch_device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    return max(seconds - longest_wait(before, cpu_times()), 1e-6)


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Compute with so many threads inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
