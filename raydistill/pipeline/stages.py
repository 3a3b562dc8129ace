"""Training a model through its stages, and publishing it: the teacher, the student and the baseline go this way."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from raydistill.config.tasks import Metric
from raydistill.config.training import Optimization, Stage
from raydistill.errors import Interrupted
from raydistill.losses import build_losses
from raydistill.models.load import save_model
from raydistill.pipeline import recipes
from raydistill.pipeline.recipes import TeacherIdentity
from raydistill.pipeline.workplace import Workplace
from raydistill.storage.artifacts import Artifact
from raydistill.teacher.online import OnlineSignals
from raydistill.teacher.signals import NoSignals, Signals
from raydistill.train.dropout import check_dropout
from raydistill.train.loop import Report, Schedule, Setup, train
from raydistill.train.preflight import check_losses, sample_rows


@dataclass(frozen=True)
class StageReport:
    """A report of the loop, counted over all stages."""

    report: Report
    step: int
    num_steps: int
    is_last: bool


def train_on_labels(
    place: Workplace, kind: str, model: PreTrainedModel, stages: dict[str, Stage], *, metric: Metric | None = None
) -> list[dict[str, Any]]:
    """Train ``model`` through ``stages`` on labelled rows, without a teacher; its history, steps over all stages."""
    for _ in stage_reports(place, kind, model, stages, {}, None, labeled_only=True, metric=metric):
        pass
    return stage_history(place, kind, stages)


def stage_reports(
    place: Workplace,
    kind: str,
    model: PreTrainedModel,
    stages: dict[str, Stage],
    recorded: dict[str, Artifact],
    teacher: TeacherIdentity | None,
    *,
    labeled_only: bool = False,
    metric: Metric | None = None,
    is_trial: bool = False,
    save_at_validation: bool = False,
) -> Iterator[StageReport]:
    """Train ``model`` through ``stages``, a report at a time.

    With ``labeled_only`` the rows are the labelled ones; the number of steps stays that of the stage in the config.
    ``metric`` picks the best weights, by default that of the config. A trial's losses are not checked again.
    """
    rows = place.rows["train"]
    teacher_config = place.read_config(teacher.folder) if teacher else None
    seed = place.config.seed if kind == "teacher" else recipes.student_seed(place.config)
    lengths = stage_lengths(place, kind, stages)
    offset, last = 0, list(stages)[-1]
    for name, whole in stages.items():
        row_ids = np.flatnonzero(rows.labels >= 0) if labeled_only else recipes.stage_rows(whole, rows.labels)
        so_far = [{**entry, "step": entry["step"] + offset} for entry in place.history(kind, name)]
        place.replay(kind, so_far)  # what a worker on a lost node had not sent; the rest is not sent again
        if not is_trial:
            place.notes += check_dropout(f"{kind}.{name}", model, rows, row_ids, place.device)
        for stage, until in segments(whole):
            losses = build_losses(stage.losses, place.task, model.config, teacher_config, seed=seed)
            signals = stage_signals(place, losses.teacher_needs, recorded, teacher)
            if kind == "student" and not is_trial:
                await_signals(place, signals, sample_rows(rows, row_ids))
                place.notes += check_losses(name, model, losses, signals, rows, row_ids, place.device)
            setup = Setup(
                name=f"{kind}.{name}",
                model=model,
                losses=losses,
                signals=signals,
                rows=rows,
                row_ids=row_ids,
                schedule=lengths[name],
                optimization=Optimization(**stage.model_dump(exclude={"losses", "changes"})),
                settings=place.config.train,
                seed=seed,
                validate=lambda: place.validate(model),
                score=partial(score, metric or place.config.evaluate.metric),
                checkpoints=place.checkpoints(kind, name),
                group=place.group,
                device=place.device,
                should_stop=place.board.should_stop,
                should_save=place.should_save,
                until=until,
                save_at_validation=save_at_validation,
            )
            for report in train(setup):
                place.observe(kind, report, offset)
                total = sum(length.num_steps for length in lengths.values())
                yield StageReport(report, report.step + offset, total, report.finished and name == last)
        offset += lengths[name].num_steps


def stage_history(place: Workplace, kind: str, stages: dict[str, Stage]) -> list[dict[str, Any]]:
    """All reports up to the last checkpoints, steps counted over all stages."""
    history: list[dict[str, Any]] = []
    offset = 0
    for name, length in stage_lengths(place, kind, stages).items():
        history += [{**entry, "step": entry["step"] + offset} for entry in place.history(kind, name)]
        offset += length.num_steps
    return history


def stage_lengths(place: Workplace, kind: str, stages: dict[str, Stage]) -> dict[str, Schedule]:
    labels = place.rows["train"].labels
    return {name: stage_schedule(place, kind, name, stage, labels) for name, stage in stages.items()}


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


def score(metric: Metric, metrics: dict[str, float]) -> float:
    """Return the value of ``metric``, turned so that higher is better."""
    return -metrics[metric] if metric == "log_loss" else metrics[metric]


def stage_schedule(place: Workplace, kind: str, name: str, stage: Stage, labels: np.ndarray) -> Schedule:
    """The baseline takes as many steps, and validates as often, as the student does in the stage of that name."""
    reference = place.config.stages[name] if kind == "baseline" else stage
    num_rows = len(recipes.stage_rows(reference, labels))
    return Schedule.of_epochs(num_rows, place.config.train.global_batch_size, stage.num_epochs)


def stage_signals(
    place: Workplace, needs: frozenset[str], recorded: dict[str, Artifact], teacher: TeacherIdentity | None
) -> Signals:
    if not needs or teacher is None:
        return NoSignals()
    if recorded:
        return place.recorded({signal: recorded[signal] for signal in sorted(needs)})
    if place.feed is not None:
        config, lengths = place.read_config(teacher.folder), place.rows["train"].lengths
        return place.feed.signals(needs, config, lengths, place.group.rank)
    return OnlineSignals(place.teacher(teacher), needs, place.device)


def await_signals(place: Workplace, signals: Signals, row_ids: np.ndarray) -> None:
    """Wait for the signals of these rows before a stage begins; in it the loop waits. Raises Interrupted on a stop."""
    while True:
        waits = not signals.wait([row_ids])
        someone_waits, stop = place.group.sum([float(waits), float(place.board.should_stop())])
        if stop:
            raise Interrupted("The run was stopped before training began; everything finished so far is kept.")
        if not someone_waits:
            return


def publish(
    place: Workplace,
    artifact: Artifact,
    recipe: recipes.Recipe,
    parents: dict[str, str],
    model: PreTrainedModel,
    tokenizer_folder: Path,
    about: dict[str, Any],
) -> None:
    """Rank 0 writes the trained model as an artefact and drops the checkpoints that led to it."""
    place.group.barrier()  # until every rank has read its best weights from these checkpoints
    if place.group.is_first:
        place.job.owner.check()
        with artifact.write(recipe, parents) as folder:
            save_model(model, tokenizer_folder, folder / "model")
            set_max_length(folder / "model" / "tokenizer_config.json", place.config.data.max_length)
            (folder / "training.json").write_text(json.dumps(about))
        place.checkpoints(artifact.kind).clear()
    place.group.barrier()


def set_max_length(tokenizer_config: Path, max_length: int) -> None:
    """Let whoever loads the model cut rows where training did, instead of at the encoder's limit."""
    settings = json.loads(tokenizer_config.read_text()) if tokenizer_config.exists() else {}
    tokenizer_config.write_text(json.dumps({**settings, "model_max_length": max_length}, indent=2))


def read_training(artifact: Artifact) -> dict[str, Any]:
    """Return what ``publish`` wrote about a trained model: ``history``, and ``teacher_layers`` of a student."""
    about: dict[str, Any] = json.loads((artifact.local() / "training.json").read_text())
    return about
