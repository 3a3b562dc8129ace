"""Training a model through its stages, and publishing it: the teacher, the student and the baseline go this way."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from raydistill.config.section import known
from raydistill.config.training import Optimization, Stage
from raydistill.config.tree import Config
from raydistill.data.pictures import sized
from raydistill.errors import Interrupted
from raydistill.evaluate.divergence import Divergence, rise
from raydistill.losses import build_losses
from raydistill.models.folder import PROCESSOR
from raydistill.models.load import save_model
from raydistill.models.signals import Signal
from raydistill.pipeline import recipes
from raydistill.pipeline.context import Context
from raydistill.pipeline.recipes import TeacherIdentity
from raydistill.storage.artifacts import Artifact
from raydistill.tasks import SYMMETRIC, TASK_TYPE
from raydistill.teacher.signals import NoSignals, OnlineSignals, Signals
from raydistill.train.dropout import check_dropout
from raydistill.train.loop import Report, Setup, Validation, train
from raydistill.train.preflight import check_losses, sample_rows
from raydistill.train.schedule import Schedule


@dataclass(frozen=True)
class StageReport:
    """A report of the loop, counted over all stages."""

    report: Report
    step: int
    num_steps: int
    is_last: bool


def stage_reports(
    context: Context,
    kind: str,
    model: PreTrainedModel,
    stages: dict[str, Stage],
    recorded: dict[Signal, Artifact],
    teacher: TeacherIdentity | None,
    *,
    labeled_only: bool = False,
    metric: str | None = None,
    is_trial: bool = False,
    save_at_validation: bool = False,
    seed: int | None = None,
    before_validation: Callable[[], Any] = lambda: None,
) -> Generator[StageReport]:
    """Train ``model`` through ``stages``, a report at a time.

    With ``labeled_only`` the rows are the labelled ones; the limits of the steps stay those of the stage in the config.
    ``metric`` picks the best weights, by default that of the config. A trial's losses are not checked again. ``seed``:
    by default that of the student.
    """
    rows = context.rows["train"]
    labeled = rows.targets.labeled
    teacher_config = context.read_config(teacher.folder) if teacher else None
    seed = recipes.student_seed(context.config) if seed is None else seed

    def validate() -> Validation:
        before_validation()
        return context.validate(model, metric or context.config.epoch_metric)

    lengths = stage_lengths(context, kind, stages)
    later = sum(length.fewest_steps for length in lengths.values())
    offset, last = 0, list(stages)[-1]
    for name, whole in stages.items():
        row_ids = np.flatnonzero(labeled) if labeled_only else recipes.stage_rows(whole, labeled)
        later -= lengths[name].fewest_steps
        so_far = context.history(kind, name)
        reached = taken(so_far)
        so_far = [{**entry, "step": entry["step"] + offset} for entry in so_far]
        context.report.replay(kind, so_far)  # what a worker on a lost node had not sent; the rest is not sent again
        if not is_trial:
            context.report.notes += check_dropout(f"{kind}.{name}", model, rows, row_ids, context.device)
        for stage, until in segments(whole):
            given = (stage.losses, context.task, model.config, teacher_config)
            losses = build_losses(*given, seed=seed, targets=rows.targets)
            signals = stage_signals(context, losses.teacher_needs, recorded, teacher)
            if kind == "student" and not is_trial:
                await_signals(context, signals, sample_rows(rows, row_ids))
                context.report.notes += check_losses(name, model, losses, signals, rows, row_ids, context.device)
            setup = Setup(
                name=f"{kind}.{name}",
                model=model,
                losses=losses,
                signals=signals,
                rows=rows,
                row_ids=row_ids,
                schedule=lengths[name],
                optimization=Optimization(**stage.model_dump(exclude={"losses", "changes"})),
                settings=context.config.train,
                seed=seed,
                validate=validate,
                checkpoints=context.checkpoints(kind, name),
                group=context.group,
                device=context.device,
                should_stop=context.board.should_stop,
                should_save=context.should_save,
                until=until,
                save_at_validation=save_at_validation,
            )
            for report in train(setup):
                context.report.observe(kind, report, offset)
                reached, total = report.step, offset + report.num_steps + later
                yield StageReport(report, report.step + offset, total, report.finished and name == last)
        offset += reached


def stage_history(context: Context, kind: str, stages: dict[str, Stage]) -> list[dict[str, Any]]:
    """All reports up to the last checkpoints, each with its stage, steps counted over all stages."""
    history: list[dict[str, Any]] = []
    offset = 0
    for name in stages:
        found = context.history(kind, name)
        history += [{**entry, "step": entry["step"] + offset, "stage": name} for entry in found]
        offset += taken(found)
    return history


def taken(history: list[dict[str, Any]]) -> int:
    """The steps of a stage so far, of one that has ended all: at the last one there is a report."""
    return int(history[-1]["step"]) if history else 0


def stage_lengths(context: Context, kind: str, stages: dict[str, Stage]) -> dict[str, Schedule]:
    """The baseline takes as many steps, and validates as often, as the student does in the stage of that name; where
    the end of that is open, so is its own, within the same limits."""
    labeled, size = context.rows["train"].targets.labeled, context.config.train.global_batch_size
    references = context.config.stages if kind == "baseline" else stages
    return {
        name: Schedule.of_epochs(len(recipes.stage_rows(references[name], labeled)), size, stage)
        for name, stage in stages.items()
    }


def segments(stage: Stage) -> list[tuple[Stage, int | None]]:
    """The settings that hold one after another, and the step up to which each does (None: to the end)."""
    parts: list[tuple[Stage, int | None]] = []
    settings = stage.model_dump(exclude={"changes"})
    for change in stage.changes:
        parts.append((Stage.model_validate(settings), change.step))
        settings = copy.deepcopy(settings)
        for name, value in change.set.items():
            *parents, leaf = name.split(".")
            section = settings
            for parent in parents:
                section = section[parent]
            section[leaf] = value
    return [*parts, (Stage.model_validate(settings), None)]


def stage_signals(
    context: Context, needs: frozenset[Signal], recorded: dict[Signal, Artifact], teacher: TeacherIdentity | None
) -> Signals:
    if not needs or teacher is None:
        return NoSignals()
    if recorded:
        return context.recorded({signal: recorded[signal] for signal in sorted(needs)})
    if context.feed is not None:
        config, rows = context.read_config(teacher.folder), context.rows["train"]
        return context.feed.signals(needs, config, rows.lengths, context.group.rank, rows.states_of(config))
    return OnlineSignals(context.teacher(teacher), needs, context.device)


def await_signals(context: Context, signals: Signals, row_ids: np.ndarray) -> None:
    """Wait for the signals of these rows before a stage begins; in it the loop waits. Raises Interrupted on a stop."""
    context.group.meet()  # each has opened what is recorded, perhaps after copying it to its node
    while True:
        waits = not signals.wait([row_ids])
        someone_waits, stop = context.group.sum([float(waits), float(context.board.should_stop())])
        if stop:
            raise Interrupted("The run was stopped before training began; everything finished so far is kept.")
        if not someone_waits:
            return


def publish(
    context: Context,
    artifact: Artifact,
    model: PreTrainedModel,
    tokenizer_folder: Path,
    history: list[dict[str, Any]],
) -> None:
    """Rank 0 writes the trained model as an artefact and drops the checkpoints that led to it."""
    task = context.task
    if task.is_fitted:
        task = task.fitted(*context.labeled(model, "validation", may_stop=False))
    order = {SYMMETRIC: True} if context.config.data.symmetric else {}
    model.config.update({TASK_TYPE: task.type, **order, **task.model_settings()})
    context.group.barrier()  # until every rank has read its best weights from these checkpoints
    if context.group.is_first:
        context.job.owner.check()
        with artifact.write() as folder:
            save_model(model, tokenizer_folder, folder / "model")
            if not context.task.reads_pictures:
                length = {"model_max_length": known(context.config.data.max_length)}
                change(folder / "model" / "tokenizer_config.json", length)
            elif context.task.picture_size is not None:
                change(folder / "model" / PROCESSOR, sized(context.task.picture_size))
            (folder / "training.json").write_text(json.dumps({"history": history}))
        context.checkpoints(artifact.kind).clear()
    context.group.barrier()


def change(path: Path, settings: Mapping[str, Any]) -> None:
    """Let whoever loads the model cut rows, or bring pictures to a size, as training did, instead of as the model that
    it comes from."""
    written = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**written, **settings}, indent=2))


def untrained() -> list[dict[str, Any]]:
    """The history of a model that no stage has trained."""
    return [{"step": 0, "validated": True, "kept": True}]


def read_history(artifact: Artifact) -> list[dict[str, Any]]:
    """The reports of a published model's training."""
    history: list[dict[str, Any]] = json.loads((artifact.local() / "training.json").read_text())["history"]
    return history


def risen(config: Config, kind: str, history: Sequence[Mapping[str, Any]]) -> Divergence | None:
    """How the loss of a published model rose in its training; of several stages the first in which it did."""
    if kind == "teacher":
        tuning = known(config.lead.finetune)
        rate = None if tuning is None or tuning.method == "probe" else known(tuning.learning_rate)
        return None if rate is None else rise(history, "teacher.finetune.learning_rate", rate)
    found = (
        rise([entry for entry in history if entry.get("stage") == name], f"stages.{name}.learning_rate", rate)
        for name, rate in ((name, known(stage.learning_rate)) for name, stage in config.stages.items())
    )
    return next((one for one in found if one is not None), None)
