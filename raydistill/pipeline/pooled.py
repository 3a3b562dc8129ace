"""A run with a pool, seen from the driver: fine-tune, record with the pool, train beside it or without it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from raydistill.cluster.device import Device
from raydistill.cluster.group import Group
from raydistill.cluster.placement import teacher_options
from raydistill.cluster.resources import check_teachers, teachers_beside, worker_resources
from raydistill.config.teacher import Mode, Pool
from raydistill.config.tree import Config
from raydistill.models.signals import Signal
from raydistill.pipeline import recipes
from raydistill.pipeline.context import Context
from raydistill.pipeline.job import Job
from raydistill.pipeline.layers import REUSED, by_similarity, known_layers, settle_layers, with_layers
from raydistill.pipeline.phases import PhaseResults, run_phases, student_artifact
from raydistill.pipeline.pool_teacher import Teacher
from raydistill.pipeline.recipes import TeacherIdentity, fine_tuned, identify_teacher
from raydistill.pipeline.seeds import with_seeds
from raydistill.pipeline.spoken import logits_of, signal_of
from raydistill.pipeline.stopping import Stop
from raydistill.pipeline.teaching import (
    check_chance,
    fit_teacher,
    recorded_signals,
    source_teacher,
    teach,
    teacher_artifact,
    teacher_mode,
)
from raydistill.pipeline.worker import run_workers
from raydistill.storage.artifacts import Artifact
from raydistill.storage.board import Board, Show
from raydistill.teacher.pool.recording import record_in_pool
from raydistill.teacher.pool.signals import PoolFeed
from raydistill.teacher.pool.teachers import TeacherPool


def run_with_pool(job: Job, show: Show, stop: Stop) -> PhaseResults:
    """Run all phases with teachers in actors of their own; phases whose artefacts are there are skipped."""
    run = PooledRun(job, show, stop)
    teacher = run.teacher([job.config])
    settle_layers(run.context, teacher)
    mode, _, needs = teacher_mode(run.context, teacher, run.context.config)
    wanted = find_unrecorded(run.context, teacher, recorded_signals(run.context, mode, needs))
    feeds = mode.needs_pool and not all(with_seeds(run.context, partial(is_trained, run.context, teacher, mode)))
    if wanted or feeds:
        with run.pool(teacher, feeds=feeds) as pool:
            run.record(pool, teacher, wanted)
            if feeds:
                phases = partial(run_fed, feed=PoolFeed(pool.directory, run.settings.max_ahead_bytes))
                return run.completed(run_workers(job, show, stop, phases, watch=pool.supervise, pool=run.settings))
    return run.completed(run_workers(job, show, stop, run_phases))


def is_trained(context: Context, teacher: TeacherIdentity, mode: Mode) -> bool:
    """Whether the student of the present seed is there."""
    return context.report.has(student_artifact(context, teacher, mode), "student")


class PooledRun:
    """What a run with a pool does before its last worker group. ConfigError where the cluster can never hold it."""

    def __init__(self, job: Job, show: Show, stop: Stop) -> None:
        self.job, self.show, self.stop = job, show, stop
        self.settings = job.config.teacher.pool or Pool()
        check_teachers(self.settings)
        if job.config.teacher.feeds_student:
            worker_resources(job.config.train, pool=self.settings)  # refuses workers that find no place beside them
        self.context = driver_context(job)
        self.seconds: dict[str, float] = {}
        self.made: set[str] = set()

    def teacher(self, configs: Sequence[Config]) -> TeacherIdentity:
        """The teacher that speaks; a worker group of its own fine-tunes it, and measures which of its layers are
        compared under these configs, where that is still to be done."""
        found = find_teacher(self.context)
        if found is None or not all(self._knows_layers(config, found) for config in configs):
            made = run_workers(self.job, self.show, self.stop, partial(fine_tune, configs=configs))
            self.made.add(REUSED)
            if found is None:
                self.seconds["teacher"] = made[0]
                self.made.add("teacher")
            found = identify_teacher(self.job.config.lead, made[1])
        return found

    def _knows_layers(self, config: Config, teacher: TeacherIdentity) -> bool:
        settled, _ = known_layers(config, self.job.storage, teacher, self.job.tokens.digest)
        return not any(by_similarity(settled))

    def pool(self, teacher: TeacherIdentity, *, feeds: bool) -> TeacherPool:
        """The pool, to be entered. ``feeds``: training workers take their place at the same time."""
        train, settings = self.job.config.train, self.settings
        options = teacher_options(settings, train if feeds else None)
        if feeds:
            settings = settings.model_copy(update={"max": teachers_beside(train, settings)})
        arguments = (self.job, teacher)
        return TeacherPool(settings, options, Teacher, arguments, self.show, train.max_wait_minutes)

    def record(
        self, pool: TeacherPool, teacher: TeacherIdentity, wanted: Mapping[str, Mapping[Signal, Artifact]]
    ) -> None:
        """Record what is wanted of each split: the validation rows first, which tell whether the teacher is of use."""
        with self.context.report.phase("record"):
            validation = set(self.context.orders("validation"))
            for splits in (validation, set(wanted) - validation):
                part = {split: signals for split, signals in wanted.items() if split in splits}
                if part:
                    record_in_pool(pool, self.context.rows, part, owner=self.job.owner, stop=self.stop, show=self.show)
                if splits == validation:
                    recorded = logits_of(self.context, teacher, splits)
                    teach(self.context, teacher, "validation")
                    check_chance(self.context, teacher, recorded)
        self.seconds["record"] = self.context.report.seconds["record"]
        self.made |= {f"signals of {split}" for split in wanted}

    def completed(self, result: Any) -> Any:
        """The result of the last worker group, a dataclass, with the times and notes of what was made before it, which
        is not called reused."""
        seconds = {name: result.seconds.get(name, 0.0) + value for name, value in self.seconds.items()}
        reused = type(result.reused)(name for name in result.reused if name not in self.made)
        notes = type(result.notes)([*self.context.report.notes, *result.notes])
        return replace(result, seconds={**result.seconds, **seconds}, reused=reused, notes=notes)


def driver_context(job: Job) -> Context:
    """What the driver needs of the tools of a rank: it loads no weights, tracks nothing and owns no device."""
    board = Board(job.storage, job.board_parts, job.owner, listener=lambda entry: None, stop=lambda: False)
    return Context(replace(job, run=None), Group(), Device("cpu", job.dtype), board)


def find_teacher(context: Context) -> TeacherIdentity | None:
    """The teacher that speaks; None while it is still to be fine-tuned."""
    source = source_teacher(context.config)
    if not recipes.changes_teacher(context.config):
        return source
    artifact = teacher_artifact(context, source)
    return fine_tuned(source, artifact) if context.report.has(artifact, "teacher") else None


def fine_tune(context: Context, configs: Sequence[Config]) -> tuple[float, Artifact | None]:
    """What each worker of the first group runs; seconds, and where the teacher lies."""
    teacher = fit_teacher(context)
    for config in configs:
        with_layers(context, teacher, config)
    context.report.flush()
    return context.report.seconds["teacher"], teacher.artifact


def find_unrecorded(
    context: Context, teacher: TeacherIdentity, splits: Mapping[str, frozenset[Signal]]
) -> dict[str, dict[Signal, Artifact]]:
    """The signals that are still to be recorded, by split. The run refers to all of them, also to those on storage."""
    found: dict[str, dict[Signal, Artifact]] = {}
    for split, signals in splits.items():
        wanted = {signal: signal_of(context, teacher, signal, split) for signal in sorted(signals)}
        missing = {s: one for s, one in wanted.items() if not context.report.has(one, f"signals of {split}")}
        if missing:
            found[split] = missing
    return found


def run_fed(context: Context, feed: PoolFeed) -> PhaseResults:
    """What each training worker runs beside the pool."""
    context.feed = feed
    return run_phases(context)
