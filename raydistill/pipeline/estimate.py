"""How long a run takes, for ``raydistill plan``: counted from the config, timed on a few batches here; what it takes
beside its models' work is in ``overhead``. A cluster whose nodes are slower or faster than this machine changes every
figure in proportion.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from raydistill.cluster.device import Device
from raydistill.config.section import known
from raydistill.config.teacher import MODES, Finetune
from raydistill.config.training import Stage
from raydistill.config.tree import Config
from raydistill.data.pictures import Processor
from raydistill.data.size import Size
from raydistill.models.embedding import set_head_of
from raydistill.models.shape import student_config
from raydistill.pipeline import recipes
from raydistill.pipeline.overhead import overhead
from raydistill.pipeline.resolve import Resolved
from raydistill.pipeline.timing import Machine, Sample, Speed, machine, time_student, time_teacher
from raydistill.storage.storage import Storage
from raydistill.train.schedule import Schedule

BEFORE = ("start", "prepare")
"""Phases before any model's, in the order of a run."""
FORWARD_SHARE = 1 / 3
"""Of a training step: a backward pass takes two forward passes, for inputs and for weights."""


def estimate_run(resolved: Resolved, size: Size, plan: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds of all that ``distill`` has left to do, from the other parts of the plan; every one an estimate.

    ``seconds``: by phase the least and the most; ``total`` and ``longest``, the whole run's, are their sums.
    Takes a few seconds, where all is there already none.
    """
    config, missing = resolved.config, missing_phases(plan)
    if not missing:
        return {"seconds": {}, "total": 0.0, "longest": 0.0, "measured_on": None}
    computer = machine(config, resolved.device)
    speed = measure(resolved, size, plan["teacher"]["mode"], computer)
    least, most = (run_seconds(resolved, size, plan, speed, longest=longest) for longest in (False, True))
    found = {name: (seconds, most[name]) for name, seconds in least.items()}
    around = overhead(
        config, Storage(config.storage), sum(size.num_rows.values()), missing, answer_seconds(config, size, speed)
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


def missing_phases(plan: Mapping[str, Any]) -> set[str]:
    return {phase["phase"] for phase in plan["phases"] if phase["state"] != "there"}


def run_seconds(
    resolved: Resolved, size: Size, plan: Mapping[str, Any], speed: Speed, *, longest: bool = False
) -> dict[str, float]:
    """Seconds of ``teacher`` (fine-tuning and recording), ``baseline`` and ``student``; none of what is there.
    ``longest``: if validation gains up to the limit of each training whose end is open."""
    config, missing = resolved.config, missing_phases(plan)
    found = {"teacher": teacher_seconds(resolved, size, plan, speed, longest=longest)}
    students, baselines = (sum(name.startswith(model) for name in missing) for model in ("student", "baseline"))
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
    stage = max(config.stages.values(), key=lambda stage: known(stage.num_epochs) * num_rows(stage, size))
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


def num_rows(stage: Stage, size: Size) -> int:
    """Rows that a stage of the student trains on."""
    return size.num_inputs["train"] if recipes.teacher_speaks(stage) else size.num_labeled_inputs


def student_seconds(config: Config, size: Size, speed: Speed, *, longest: bool = False) -> float:
    """Training of one student to its end, validations included."""
    seconds = 0.0
    for stage in config.stages.values():
        rows, epochs = num_rows(stage, size), known(stage.num_epochs) if longest else stage.fewest_epochs
        schedule = Schedule.of_epochs(rows, config.train.global_batch_size, stage)
        steps = schedule.num_steps if longest else schedule.fewest_steps
        validations = math.ceil(steps / schedule.validate_steps)
        seconds += validations * size.num_inputs["validation"] * speed.student * FORWARD_SHARE
        seconds += epochs * rows * (speed.student + speed.online * recipes.teacher_speaks(stage))
    return seconds


def teacher_seconds(
    resolved: Resolved, size: Size, plan: Mapping[str, Any], speed: Speed, *, longest: bool = False
) -> float:
    """What is left to do of fitting the teachers and recording their signals."""
    missing = missing_phases(plan)
    rows = {n: rows_read(n, tuning, size, missing, longest=longest) for n, tuning in resolved.tunings.items()}
    return sum(rows[name] * seconds for name, seconds in speed.teachers.items())


def rows_read(name: str, finetune: Finetune | None, size: Size, missing: set[str], *, longest: bool = False) -> float:
    """Rows that a teacher still has to read, one that it learns from counted as several; ``name``: what its phases have
    behind their names."""
    validation = size.num_inputs["validation"]
    is_recorded = not any(phase.startswith("signal ") and phase.endswith(name) for phase in missing)
    rows = 0.0
    if finetune is not None and f"teacher{name}" in missing:
        epochs = finetune.epochs if longest else finetune.fewest_epochs
        rows = (
            size.num_labeled_inputs * (finetune.method == "probe")
            + epochs * size.num_labeled_inputs / FORWARD_SHARE
            + math.ceil(epochs) * validation
        )
    if not is_recorded:
        rows += size.num_inputs["train"]
    if f"teacher{name}" in missing or not is_recorded:
        rows += validation
    return rows
