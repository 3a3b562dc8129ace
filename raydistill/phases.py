"""The straight line inside the worker group: teacher, recording, student, baseline, evaluation.

Every rank runs ``run_phases`` with the same job. Each phase looks for its artefact first, so a restarted group goes on
in the phase, and at the shard or step, where it was. Nothing here knows Ray; with one process it runs in a notebook.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from raydistill import recipes
from raydistill.artifacts import Artifact
from raydistill.config import Optimization, Stage, TaskLoss
from raydistill.errors import ModelError
from raydistill.evaluate.compare import write_predictions
from raydistill.evaluate.latency import measure_models
from raydistill.evaluate.predict import predict
from raydistill.losses import build_losses
from raydistill.models.load import is_classifier, model_digest, resolve_model, save_model
from raydistill.models.student import build_student, student_config
from raydistill.preflight import check_losses
from raydistill.recipes import TeacherIdentity
from raydistill.teacher.record import Wanted, record
from raydistill.teacher.signals import NoSignals, OnlineSignals, Signals
from raydistill.teacher.store import RecordedSignals, signal_artifact
from raydistill.train.loop import Schedule, Setup, train
from raydistill.workplace import Workplace

Recorded = dict[str, dict[str, Artifact]]
"""Split → signal → artefact."""


@dataclass(frozen=True)
class Outcome:
    """What the phases made: artefacts, and what a report wants to know about them."""

    teacher: TeacherIdentity
    recorded: Recorded
    mode: str
    student: Artifact
    baseline: Artifact | None
    evaluation: Artifact
    seconds: dict[str, float]
    reused: list[str]
    notes: list[str]


def run_phases(place: Workplace) -> Outcome:
    """Run all phases on this rank; every rank returns the same outcome."""
    teacher = fit_teacher(place)
    mode, recorded = record_teacher(place, teacher)
    student = train_student(place, teacher, mode, recorded)
    baseline = train_baseline(place, teacher)
    evaluation = evaluate(place, teacher, recorded, student, baseline)
    place.flush()
    return Outcome(teacher, recorded, mode, student, baseline, evaluation, place.seconds, place.reused, place.notes)


def fit_teacher(place: Workplace) -> TeacherIdentity:
    """Fine-tune the teacher where the config asks for it; its best weights stay in memory for the recording."""
    settings = place.config.teacher
    with place.phase("teacher"):
        source = resolve_model(settings.model, settings.revision, settings.trust_remote_code)
        source_digest = model_digest(source)
        if settings.finetune is None:
            if not is_classifier(source):
                raise ModelError(
                    f"teacher.model: {settings.model} is an encoder without a trained classification head. "
                    "Add teacher.finetune (for example {num_epochs: 3}), or name a fine-tuned classifier."
                )
            return TeacherIdentity(source, source_digest, source_digest, None)
        recipe = recipes.teacher_recipe(place.config, source_digest, place.job.tokens.digest, place.device.dtype)
        artifact = recipes.artifact_of(place.job.storage, "teacher", recipe)
        if place.has(artifact, "teacher"):
            place.replay("teacher", read_training(artifact)["history"])
        else:
            model = place.load(source, dropout=None)
            stage = Stage(**settings.finetune.model_dump(), losses={"task": TaskLoss()})
            history = run_stages(place, "teacher", model, {"finetune": stage}, {}, None, labeled_only=True)
            parents = {"tokens": place.job.tokens.digest, "source": source_digest}
            publish(place, artifact, recipe, parents, model, source, {"history": history})
            place.teacher_model = model
    folder = artifact.local() / "model"
    return TeacherIdentity(folder, model_digest(folder), source_digest, artifact)


def record_teacher(place: Workplace, teacher: TeacherIdentity) -> tuple[str, Recorded]:
    """Record what the losses need on training rows (unless online), and the logits of validation and test rows."""
    with place.phase("record"):
        config = AutoConfig.from_pretrained(teacher.folder)
        needs = teacher_needs(place, config)
        rows = place.rows["train"]
        sizes = recipes.signal_bytes(needs, config, rows.num_rows, int(rows.lengths.sum()))
        mode, why = recipes.choose_mode(place.config.teacher, sizes)
        place.notes.append(f"Teacher mode {mode}: {why}.")
        splits = {"train": needs if mode == "cached" else frozenset(), "validation": {"logits"}, "test": {"logits"}}
        recorded: Recorded = {}
        for split, signals in splits.items():
            wanted = {signal: wanted_signal(place, teacher, signal, split) for signal in sorted(signals)}
            recorded[split] = {signal: item.artifact for signal, item in wanted.items()}
            missing = {s: item for s, item in wanted.items() if not place.has(item.artifact, f"signals of {split}")}
            if missing:
                record(
                    place.teacher(teacher),
                    place.rows[split],
                    missing,
                    tokens=place.inference_tokens,
                    device=place.device,
                    group=place.group,
                    owner=place.job.owner,
                    should_stop=place.board.should_stop,
                    progress=place.recording_progress(split),
                )
    return mode, recorded


def wanted_signal(place: Workplace, teacher: TeacherIdentity, signal: str, split: str) -> Wanted:
    tokens = place.job.tokens.digest
    artifact, recipe = signal_artifact(
        place.job.storage,
        signal,
        split,
        teacher_digest=teacher.digest,
        tokens_digest=tokens,
        dtype=place.device.dtype,
    )
    return Wanted(artifact, recipe, {"tokens": tokens, **teacher.parents})


def teacher_needs(place: Workplace, teacher: PretrainedConfig) -> frozenset[str]:
    """The union of the signals that the stages' losses ask of the teacher."""
    student = student_config(teacher, place.config.student)
    losses = [
        build_losses(stage.losses, place.task, student, teacher, seed=place.config.seed)
        for stage in place.config.stages.values()
    ]
    return frozenset[str]().union(*(term.teacher_needs for term in losses))


def train_student(place: Workplace, teacher: TeacherIdentity, mode: str, recorded: Recorded) -> Artifact:
    """Build the student and train it through its stages."""
    config = place.config
    with place.phase("train"):
        start_digest = recipes.start_digest(config.student, teacher.digest)
        recipe = recipes.student_recipe(
            config, start_digest, teacher.digest, place.job.tokens.digest, place.device.dtype, mode
        )
        artifact = recipes.artifact_of(place.job.storage, "student", recipe)
        if place.has(artifact, "student"):
            place.replay("student", read_training(artifact)["history"])
        else:
            build = build_student(
                place.teacher(teacher), config.student, seed=config.seed, attn_implementation=place.attention
            )
            if mode == "cached":
                place.teacher_model = None  # its memory is the student's now
            history = run_stages(place, "student", build.model, config.stages, recorded["train"], teacher)
            parents = {"tokens": place.job.tokens.digest, **teacher.parents}
            about = {"history": history, "teacher_layers": list(build.teacher_layers)}
            publish(place, artifact, recipe, parents, build.model, teacher.folder, about)
    return artifact


def train_baseline(place: Workplace, teacher: TeacherIdentity) -> Artifact | None:
    """Train the same student without a teacher: labelled rows only, as many steps, the same settings."""
    settings, config = recipes.baseline_settings(place.config), place.config
    if settings is None:
        return None
    with place.phase("baseline"):
        is_same = settings.start == "same"
        start_digest = recipes.start_digest(config.student, teacher.digest if is_same else teacher.source_digest)
        recipe = recipes.baseline_recipe(config, start_digest, place.job.tokens.digest, place.device.dtype)
        artifact = recipes.artifact_of(place.job.storage, "baseline", recipe)
        if place.has(artifact, "baseline"):
            place.replay("baseline", read_training(artifact)["history"])
        else:
            source = teacher.folder
            if not is_same:
                source = resolve_model(config.teacher.model, config.teacher.revision, config.teacher.trust_remote_code)
            start = place.teacher(teacher) if is_same else place.load(source, dropout=0.0)
            model = build_student(start, config.student, seed=config.seed, attn_implementation=place.attention).model
            place.teacher_model = None
            stages = recipes.baseline_stages(config)
            history = run_stages(place, "baseline", model, stages, {}, None, labeled_only=True)
            parents = {"tokens": place.job.tokens.digest, **teacher.parents}
            publish(place, artifact, recipe, parents, model, teacher.folder, {"history": history})
    return artifact


def run_stages(
    place: Workplace,
    kind: str,
    model: PreTrainedModel,
    stages: dict[str, Stage],
    recorded: dict[str, Artifact],
    teacher: TeacherIdentity | None,
    *,
    labeled_only: bool = False,
) -> list[dict[str, Any]]:
    """Train ``model`` through ``stages`` and return its history, steps counted over all stages.

    With ``labeled_only`` the rows are the labelled ones; the number of steps stays that of the stage in the config.
    """
    rows = place.rows["train"]
    teacher_config = AutoConfig.from_pretrained(teacher.folder) if teacher else None
    history: list[dict[str, Any]] = []
    offset = 0
    for name, stage in stages.items():
        losses = build_losses(stage.losses, place.task, model.config, teacher_config, seed=place.config.seed)
        signals = stage_signals(place, losses.teacher_needs, recorded, teacher)
        row_ids = np.flatnonzero(rows.labels >= 0) if labeled_only else recipes.stage_rows(stage, rows.labels)
        schedule = stage_schedule(place, kind, name, stage, rows.labels)
        if kind == "student":
            place.notes += check_losses(name, model, losses, signals, rows, row_ids, place.device)
        setup = Setup(
            name=f"{kind}.{name}",
            model=model,
            losses=losses,
            signals=signals,
            rows=rows,
            row_ids=row_ids,
            schedule=schedule,
            optimization=Optimization(**stage.model_dump(exclude={"losses"})),
            settings=place.config.train,
            seed=place.config.seed,
            validate=lambda: place.validate(model),
            score=place.score,
            checkpoints=place.checkpoints(kind, name),
            group=place.group,
            device=place.device,
            should_stop=place.board.should_stop,
        )
        for report in train(setup):
            place.observe(kind, report, offset)
        history += [{**entry, "step": entry["step"] + offset} for entry in place.history(kind, name)]
        offset += schedule.num_steps
    return history


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
        artifacts = {signal: recorded[signal] for signal in needs}
        return RecordedSignals(artifacts, place.rows["train"].num_rows, verify=place.group.is_first)
    return OnlineSignals(place.teacher(teacher), needs, place.device)


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
            (folder / "training.json").write_text(json.dumps(about))
        place.checkpoints(artifact.kind).clear()
    place.group.barrier()


def is_model_file(name: str) -> bool:
    return name.endswith(".safetensors") or name == "config.json"


def read_training(artifact: Artifact) -> dict[str, Any]:
    """Return what ``publish`` wrote about a trained model: ``history``, and ``teacher_layers`` of a student."""
    about: dict[str, Any] = json.loads((artifact.local() / "training.json").read_text())
    return about


def evaluate(
    place: Workplace, teacher: TeacherIdentity, recorded: Recorded, student: Artifact, baseline: Artifact | None
) -> Artifact:
    """Store every model's logits on validation and test rows, and its size and speed."""
    with place.phase("evaluate"):
        digests = {"student": student.digest, "teacher": teacher.digest}
        if baseline is not None:
            digests["baseline"] = baseline.digest
        speed = "latency" if place.config.evaluate.latency else ""
        recipe = {**digests, "tokens": place.job.tokens.digest, "dtype": place.device.dtype, "measured": speed}
        artifact = recipes.artifact_of(place.job.storage, "evaluation", recipe)
        if place.has(artifact, "evaluation"):
            return artifact
        folders = {"teacher": teacher.folder, "student": student.local() / "model"}
        if baseline is not None:
            folders["baseline"] = baseline.local() / "model"
        logits = {split: predict_split(place, split, recorded, folders) for split in ("validation", "test")}
        if place.group.is_first:
            place.job.owner.check()
            parents = {"student": student.digest, **teacher.parents}
            parents |= {"baseline": baseline.digest} if baseline else {}
            with artifact.write(recipe, parents) as folder:
                for split, by_model in logits.items():
                    rows = place.rows[split]
                    write_predictions(
                        folder,
                        split,
                        place.hashes(split),
                        rows.labels,
                        by_model,
                        example_ids=rows.example_ids,
                        class_names=place.job.labels,
                    )
                (folder / "models.json").write_text(json.dumps(describe_models(place, folders)))
        place.group.barrier()
    return artifact


def predict_split(place: Workplace, split: str, recorded: Recorded, folders: dict[str, Path]) -> dict[str, np.ndarray]:
    rows = place.rows[split]
    signals = RecordedSignals(recorded[split], rows.num_rows)
    logits = {"teacher": signals.batch(np.arange(rows.num_rows))["logits"].numpy()}
    for name in folders.keys() - {"teacher"}:
        model = place.load(folders[name], dropout=0.0)
        logits[name] = predict(
            model,
            rows,
            tokens=place.inference_tokens,
            device=place.device,
            group=place.group,
            should_stop=place.board.should_stop,
        )
    return logits


def describe_models(place: Workplace, folders: dict[str, Path]) -> dict[str, Any]:
    """Size on disk, parameters and, where asked for, speed of each model; speeds are measured interleaved."""
    models = {name: place.load(folder, dropout=0.0) for name, folder in folders.items()}
    about: dict[str, Any] = {
        name: {
            "num_parameters": sum(p.numel() for p in model.parameters()),
            "bytes": sum(path.stat().st_size for path in folders[name].iterdir() if is_model_file(path.name)),
            "latency": None,
        }
        for name, model in models.items()
    }
    if place.config.evaluate.latency:
        started = time.perf_counter()
        shapes = place.latency_inputs()
        for model in models.values():
            nn.Module.to(model, place.device.torch_device)
        entries = {name: (model, *shapes) for name, model in models.items()}
        measured = measure_models(entries, dtype=place.device.dtype)
        for name, latency in measured.items():
            about[name]["latency"] = latency
        place.notes.append(f"Latency measured in {time.perf_counter() - started:.1f} s.")
    return about
