"""The straight line inside the worker group: teacher, recording, student, baseline, evaluation.

Every rank runs ``run_phases`` with the same job. Each phase looks for its artefact first, so a restarted group goes on
in the phase, and at the shard or step, where it was. Nothing here knows Ray; with one process it runs in a notebook.
"""

from __future__ import annotations

from dataclasses import dataclass

from transformers import AutoConfig, PretrainedConfig

from raydistill import recipes
from raydistill.artifacts import Artifact
from raydistill.config import Stage, TaskLoss
from raydistill.errors import ModelError
from raydistill.evaluate.measure import evaluate
from raydistill.losses import all_teacher_needs, build_stages
from raydistill.models.load import is_classifier, model_digest, resolve_model
from raydistill.models.student import build_student, student_config
from raydistill.recipes import Recorded, TeacherIdentity
from raydistill.stages import publish, read_training, run_stages
from raydistill.teacher.record import Wanted, record
from raydistill.teacher.store import signal_artifact
from raydistill.workplace import Workplace


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
    """Fine-tune the teacher where the config asks for it.

    The recording reads it back from its artefact, 0.2 s: another process may have published the same teacher first,
    from another number of threads, and signals belong to the weights whose digest they carry.
    """
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
            stage = Stage(**settings.finetune.model_dump(exclude={"metric"}), losses={"task": TaskLoss()})
            history = run_stages(
                place,
                "teacher",
                model,
                {"finetune": stage},
                {},
                None,
                labeled_only=True,
                metric=settings.finetune.metric,
            )
            parents = {"tokens": place.job.tokens.digest, "source": source_digest}
            publish(place, artifact, recipe, parents, model, source, {"history": history})
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
    losses = build_stages(place.config.stages, place.task, student, teacher, seed=place.config.seed)
    return all_teacher_needs(losses)


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
