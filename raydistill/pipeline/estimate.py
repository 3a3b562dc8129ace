"""How long a run takes, for ``raydistill plan``: counted from the config, timed on a few batches here; what it takes
beside its models' work is in ``overhead``. A cluster whose nodes are slower or faster than this machine changes every
figure in proportion.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from raydistill.cluster.device import Device
from raydistill.config.section import known
from raydistill.config.teacher import MODES, Finetune
from raydistill.config.tree import Config
from raydistill.data.pictures import Processor
from raydistill.data.size import Size
from raydistill.models.embedding import set_head_of
from raydistill.models.shape import student_config
from raydistill.pipeline import recipes
from raydistill.pipeline.overhead import overhead
from raydistill.pipeline.resolve import Resolved
from raydistill.pipeline.status import Phase
from raydistill.pipeline.timing import Machine, Sample, Speed, machine, time_student, time_teacher
from raydistill.storage.storage import Storage
from raydistill.train.schedule import Schedule

BEFORE = ("start", "prepare")
"""Phases before any model's, in the order of a run."""
FORWARD_SHARE = 1 / 3
"""Of a training step: a backward pass takes two forward passes, for inputs and for weights."""


def estimate_run(resolved: Resolved, size: Size, mode: str, phases: Sequence[Phase]) -> dict[str, Any]:
    """Seconds of all that ``distill`` has left to do; every one an estimate.

    ``seconds``: by phase the least and the most; ``total`` and ``longest``, the whole run's, are their sums.
    Takes a few seconds, where all is there already none.
    """
    config, missing = resolved.config, [phase for phase in phases if not phase.is_done]
    if not missing:
        return {"seconds": {}, "total": 0.0, "longest": 0.0, "measured_on": None}
    computer = machine(config, resolved.device)
    speed = measure(resolved, size, mode, computer)
    least, most = (run_seconds(resolved, size, missing, speed, longest=longest) for longest in (False, True))
    found = {name: (seconds, most[name]) for name, seconds in least.items()}
    names = {phase.name for phase in missing}
    around = overhead(
        config, Storage(config.storage), sum(size.num_rows.values()), names, answer_seconds(config, size, speed)
    )
    found = {name: around[name] for name in BEFORE if name in around} | found
    found |= {name: seconds for name, seconds in around.items() if name not in found}
    total, longest = (sum(ends) for ends in zip(*found.values(), strict=True))
    return {"seconds": found, "total": total, "longest": longest, "measured_on": computer.measured_on}


def answer_seconds(config: Config, size: Size, speed: Speed) -> float:
    """Until all models have answered the held-out rows, and the teacher the test rows."""
    held_out, test = size.num_inputs["validation"] + size.num_inputs["test"], size.num_inputs["test"]
    students = len(recipes.seeded(config)) * (1 + (recipes.baseline_settings(config) is not None))
    seconds = sum(speed.teachers.values()) * test + students * held_out * speed.student * FORWARD_SHARE
    return seconds * (5 if config.evaluate.robustness else 1)  # four ways to write the test rows otherwise


def run_seconds(
    resolved: Resolved, size: Size, missing: Sequence[Phase], speed: Speed, *, longest: bool = False
) -> dict[str, float]:
    """Seconds that ``teacher`` (fine-tuning and recording), ``baseline`` and ``student`` of ``missing`` take.
    ``longest``: if validation gains up to the limit of each training whose end is open."""
    config = resolved.config
    found = {"teacher": teacher_seconds(resolved, size, missing, speed, longest=longest)}
    students, baselines = (sum(phase.kind == kind for phase in missing) for kind in ("student", "baseline"))
    if baselines and size.task.has_loss:  # as many steps as the student, without a teacher beside it
        found["baseline"] = baselines * student_seconds(config, size, replace(speed, online=0.0), longest=longest)
    found["student"] = students * student_seconds(config, size, speed, longest=longest) if students else 0.0
    return {name: seconds for name, seconds in found.items() if seconds}


def measure(resolved: Resolved, size: Size, mode: str, computer: Machine) -> Speed:
    """Time the teachers, and the config's student in the stage that trains longest."""
    config, teacher = resolved.config, resolved.models.teacher
    length = max(4, round(size.num_tokens["train"] / max(size.num_inputs["train"], 1)))
    device = Device(computer.device, resolved.dtype)
    processor = Processor.open(resolved.source, size.task.picture_size) if size.task.reads_pictures else None
    trial = Sample(length, size.task, device, computer.threads, processor)
    stage = max(config.stages.values(), key=lambda stage: known(stage.num_epochs) * recipes.num_stage_rows(stage, size))
    # a GPU is timed alone, and each worker has one; threads are timed as many as all workers have together
    workers = max(1, config.train.num_workers) if computer.device == "cuda" else 1
    student = student_config(teacher, config.student)  # with the task's outputs
    alone = replace(trial, threads=computer.cpus)
    for one in resolved.teachers:
        set_head_of(one.models.teacher, one.source, size.task.head)
    pairs = zip(resolved.suffixes, resolved.teachers, strict=True)
    speeds = {suffix: time_teacher(one.models.teacher, alone) / workers for suffix, one in pairs}
    return Speed(
        teachers=speeds,
        online=time_teacher(teacher, trial) / workers if MODES[mode].keeps_teacher else 0.0,
        student=time_student(config, stage, student, teacher, trial) / workers,
    )


def student_seconds(config: Config, size: Size, speed: Speed, *, longest: bool = False) -> float:
    """Training of one student to its end, validations included."""
    seconds = 0.0
    for stage in config.stages.values():
        rows = recipes.num_stage_rows(stage, size)
        epochs = known(stage.num_epochs) if longest else stage.fewest_epochs
        schedule = Schedule.of_epochs(rows, config.train.global_batch_size, stage)
        steps = schedule.num_steps if longest else schedule.fewest_steps
        validations = math.ceil(steps / schedule.validate_steps)
        seconds += validations * size.num_inputs["validation"] * speed.student * FORWARD_SHARE
        seconds += epochs * rows * (speed.student + speed.online * recipes.teacher_speaks(stage))
    return seconds


def teacher_seconds(
    resolved: Resolved, size: Size, missing: Sequence[Phase], speed: Speed, *, longest: bool = False
) -> float:
    """What fitting the teachers and recording their signals takes, as far as it is among ``missing``."""
    seconds = 0.0
    for suffix, finetune in resolved.tunings.items():
        kinds = {phase.kind for phase in missing if phase.suffix == suffix}
        rows = rows_read(finetune, size, trains="teacher" in kinds, records="signal" in kinds, longest=longest)
        seconds += rows * speed.teachers[suffix]
    return seconds


def rows_read(finetune: Finetune | None, size: Size, *, trains: bool, records: bool, longest: bool = False) -> float:
    """Rows that a teacher reads while it trains and records; one that it learns from counts as several."""
    validation, rows = size.num_inputs["validation"], 0.0
    if finetune is not None and trains:
        epochs = finetune.epochs if longest else finetune.fewest_epochs
        rows = (
            size.num_labeled_inputs * (finetune.method == "probe")
            + epochs * size.num_labeled_inputs / FORWARD_SHARE
            + math.ceil(epochs) * validation
        )
    if records:
        rows += size.num_inputs["train"]
    return rows + validation if trains or records else rows
