"""The straight line inside the worker group: teacher, recording, baseline, student, evaluation.

Every rank runs ``run_phases`` with the same job. Each phase looks for its artefact first, so a restarted group goes on
in the phase, and at the shard or step, where it was. Nothing here knows Ray; with one process it runs in a notebook.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from raydistill.cluster.device import Device, keep_freed_memory
from raydistill.cluster.group import Group
from raydistill.config.teacher import Mode
from raydistill.errors import RaydistillError
from raydistill.models.folder import resolve_model
from raydistill.models.signals import Signal
from raydistill.pipeline import recipes
from raydistill.pipeline.context import Context
from raydistill.pipeline.failures import known
from raydistill.pipeline.job import Job
from raydistill.pipeline.layers import by_similarity, settle_layers
from raydistill.pipeline.measure import Models, evaluate, evaluate_perturbed
from raydistill.pipeline.recipes import Recorded, TeacherIdentity
from raydistill.pipeline.seeds import MODELS, Seeded, median, with_seeds
from raydistill.pipeline.spoken import why_weak
from raydistill.pipeline.stages import (
    StageReport,
    publish,
    read_history,
    stage_history,
    stage_reports,
    untrained,
)
from raydistill.pipeline.teaching import fit_teacher, record_teacher
from raydistill.storage.artifacts import Artifact
from raydistill.storage.board import Board, Show
from raydistill.storage.outages import OUTAGES


@dataclass(frozen=True)
class PhaseResults:
    """What the phases made: artefacts, and what a report wants to know about them."""

    teacher: TeacherIdentity
    student: Artifact
    baseline: Artifact | None
    evaluation: Artifact
    robustness: Artifact | None
    """Outputs on the perturbed test rows, where they are asked for."""
    seconds: dict[str, float]
    reused: list[str]
    notes: list[str]
    seeds: tuple[Seeded, ...] = ()
    """What each seed made, where there are several; ``student`` and ``baseline`` are among it."""


def run_phases(context: Context) -> PhaseResults:
    """Run all phases on this rank; every rank returns the same outcome."""
    teacher = fit_teacher(context)
    if any(by_similarity(context.config)):
        with context.report.phase("layers"):
            settle_layers(context, teacher)
    mode, recorded = record_teacher(context, teacher)
    baselines = with_seeds(context, lambda: train_baseline(context, teacher))
    say_weak(context, teacher, recorded, baselines[0])  # before anything is distilled from it
    students = with_seeds(context, lambda: train_student(context, teacher, mode, recorded))
    if context.feed is not None:
        context.feed.close()  # teachers hold devices that others may wait for
    seeds = evaluate_seeds(context, teacher, recorded, students, baselines)
    student, baseline = choose(context, seeds) if seeds else (students[0], baselines[0])
    models = Models.of(teacher, student, baseline)
    evaluation = evaluate(context, models, recorded, latency=context.config.evaluate.latency)
    robustness = evaluate_perturbed(context, models, recorded, evaluation)
    report, made = context.report, (teacher, student, baseline, evaluation, robustness)
    report.flush()
    notes = [*dict.fromkeys(report.notes), *OUTAGES.take_notes()]
    return PhaseResults(*made, report.seconds, report.reused, notes, seeds)


def say_weak(context: Context, teacher: TeacherIdentity, recorded: Recorded, baseline: Artifact | None) -> None:
    """Say at once, and in the run's notes, where the teacher is worse than the student without it."""
    if baseline is None or not context.task.has_loss or context.task.is_taught:
        return
    if (why := why_weak(context, teacher, recorded, baseline)) is not None:
        context.report.notes.append(why)
        if context.group.is_first:
            context.board.post("baseline", 0, 0, "", 0.0, why, force=True)


def evaluate_seeds(
    context: Context,
    teacher: TeacherIdentity,
    recorded: Recorded,
    students: list[Artifact],
    baselines: list[Artifact | None],
) -> tuple[Seeded, ...]:
    """Every seed's models on validation and test rows, without their speed; none where there is one seed."""
    if len(students) == 1:
        return ()
    pairs = list(zip(students, baselines, strict=True))
    left = (Models.of(teacher, *pair) for pair in pairs)
    evaluations = with_seeds(context, lambda: evaluate(context, next(left), recorded, latency=False))
    configs = recipes.seeded(context.job.config)
    return tuple(
        Seeded(recipes.student_seed(config), *pair, evaluation)
        for config, pair, evaluation in zip(configs, pairs, evaluations, strict=True)
    )


def choose(context: Context, seeds: tuple[Seeded, ...]) -> tuple[Artifact, Artifact | None]:
    """The median student and the median baseline by the validation metric, as rank 0 sees them."""
    metric, found = context.config.epoch_metric, list(seeds)
    numbers = None
    if context.group.is_first:
        numbers = [median(found, model, metric) for model in MODELS[: 1 + (found[0].baseline is not None)]]
    student, *rest = context.group.broadcast(numbers)
    return found[student].student, found[rest[0]].baseline if rest else None


def run_local(job: Job, show: Show, stop: threading.Event) -> PhaseResults:
    """Run all phases in the calling process; ``show`` gets their progress, ``stop`` ends them with a checkpoint."""
    keep_freed_memory()
    device = Device("cuda" if torch.cuda.is_available() else "cpu", job.dtype)
    board = Board(job.storage, job.run_parts, job.owner, listener=show, stop=stop.is_set)
    context = Context(job, Group(device.torch_device), device, board)
    try:
        return run_phases(context)
    except Exception as error:
        if isinstance(error, RaydistillError) or (found := known(error, "The run")) is None:
            raise
        raise found from error
    finally:
        context.report.flush()


def train_student(context: Context, teacher: TeacherIdentity, mode: Mode, recorded: Recorded) -> Artifact:
    """Build the student and train it through its stages."""
    with context.report.phase("train"):
        artifact = student_artifact(context, teacher, mode)
        if context.report.has(artifact, "student"):
            context.report.replay("student", read_history(artifact))
        else:
            for _ in student_reports(context, teacher, mode, recorded["train"]):
                pass
    return artifact


def student_artifact(context: Context, teacher: TeacherIdentity, mode: Mode) -> Artifact:
    job = context.job
    return recipes.student_artifact(context.config, job.storage, teacher, job.tokens.digest, context.device.dtype, mode)


def student_reports(
    context: Context,
    teacher: TeacherIdentity,
    mode: Mode,
    signals: dict[Signal, Artifact],
    *,
    is_trial: bool = False,
    save_at_validation: bool = False,
) -> Iterator[StageReport]:
    """Build the student, train it, a report at a time, and publish it. A trial keeps the teacher's module for the next.

    The caller looks first whether the student is in storage already.
    """
    config = context.config
    artifact = student_artifact(context, teacher, mode)
    model = context.untaught(context.teacher(teacher), config, recipes.student_seed(config))
    if not mode.keeps_teacher and not is_trial:
        context.teacher_model = None  # its memory is the student's now
    yield from stage_reports(
        context,
        "student",
        model,
        config.stages,
        signals,
        teacher,
        is_trial=is_trial,
        save_at_validation=save_at_validation,
    )
    publish(context, artifact, model, teacher.folder, stage_history(context, "student", config.stages))


def train_baseline(context: Context, teacher: TeacherIdentity) -> Artifact | None:
    """Train the same student without a teacher: labelled rows only, the same settings and length. Where there are
    no labels to learn from it stays as it was cut."""
    settings, config = recipes.baseline_settings(context.config), context.config
    if settings is None:
        return None
    with context.report.phase("baseline"):
        is_same = settings.start == "same"
        artifact = recipes.baseline_artifact(
            config, context.job.storage, teacher, context.job.tokens.digest, context.device.dtype
        )
        if context.report.has(artifact, "baseline"):
            context.report.replay("baseline", read_history(artifact))
        else:
            source = teacher.folder
            if not is_same:
                source = resolve_model(config.lead.model, config.lead.revision, config.lead.trust_remote_code)
            start = context.teacher(teacher) if is_same else context.load(source, dropout=0.0)
            model = context.untaught(start, config, recipes.student_seed(config))
            context.teacher_model = None
            stages, history = recipes.baseline_stages(config), untrained()
            if context.task.has_loss:
                for _ in stage_reports(context, "baseline", model, stages, {}, None, labeled_only=True):
                    pass
                history = stage_history(context, "baseline", stages)
            publish(context, artifact, model, teacher.folder, history)
    return artifact
