"""The straight line inside the worker group: teacher, recording, student, baseline, evaluation.

Every rank runs ``run_phases`` with the same job. Each phase looks for its artefact first, so a restarted group goes on
in the phase, and at the shard or step, where it was. Nothing here knows Ray; with one process it runs in a notebook.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np

from raydistill.config.losses import TASK_ALONE
from raydistill.config.training import Stage
from raydistill.config.tree import Config, Evaluate
from raydistill.errors import ModelError
from raydistill.evaluate.compare import chance, other_order
from raydistill.evaluate.intervals import intervals
from raydistill.evaluate.metrics import per_class
from raydistill.evaluate.verdict import GUESSING, why_chance
from raydistill.losses import all_teacher_needs, build_stages
from raydistill.models.folder import resolve_model
from raydistill.models.load import is_classifier, label_notice
from raydistill.models.shape import student_config
from raydistill.models.student import build_student
from raydistill.pipeline import recipes
from raydistill.pipeline.measure import evaluate
from raydistill.pipeline.recipes import Recipe, Recorded, TeacherIdentity
from raydistill.pipeline.stages import (
    StageReport,
    publish,
    read_training,
    stage_history,
    stage_reports,
    train_on_labels,
)
from raydistill.pipeline.workplace import Workplace
from raydistill.storage.artifacts import Artifact
from raydistill.storage.outages import OUTAGES
from raydistill.teacher.cached import RecordedSignals
from raydistill.teacher.record import Wanted, record
from raydistill.teacher.store import reopen_damaged, signal_artifact


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
    place.notes += OUTAGES.take_notes()
    return Outcome(teacher, recorded, mode, student, baseline, evaluation, place.seconds, place.reused, place.notes)


def fit_teacher(place: Workplace) -> TeacherIdentity:
    """Fine-tune the teacher where the config asks for it.

    The recording reads it back from its artefact, 0.2 s: another process may have published the same teacher first,
    from another number of threads, and signals belong to the weights whose digest they carry.
    """
    with place.phase("teacher"):
        source = source_teacher(place.config)
        if place.config.teacher.finetune is None:
            return source
        artifact, recipe = teacher_artifact(place, source)
        if place.has(artifact, "teacher"):
            place.replay("teacher", read_training(artifact)["history"])
        else:
            settings = place.config.teacher.finetune
            model = place.load(source.folder, dropout=None)
            stage = Stage(**settings.model_dump(exclude={"metric"}), losses=TASK_ALONE)
            history = train_on_labels(place, "teacher", model, {"finetune": stage}, metric=settings.metric)
            parents = {"tokens": place.job.tokens.digest, "source": source.digest}
            publish(place, artifact, recipe, parents, model, source.folder, {"history": history})
    return recipes.fine_tuned(source, artifact)


def source_teacher(config: Config) -> TeacherIdentity:
    """The teacher before any fine-tuning. Raises ModelError for a plain encoder that would not get any."""
    source = recipes.identify_teacher(config.teacher, None)
    if config.teacher.finetune is None and not is_classifier(source.folder, config.teacher.trust_remote_code):
        raise ModelError(
            f"teacher.model: {config.teacher.model} is an encoder without a trained classification head. "
            "Add teacher.finetune (for example {num_epochs: 3}), or name a fine-tuned classifier."
        )
    return source


def teacher_artifact(place: Workplace, source: TeacherIdentity) -> tuple[Artifact, Recipe]:
    recipe = recipes.teacher_recipe(place.config, source.digest, place.job.tokens.digest, place.device.dtype)
    return recipes.artifact_of(place.job.storage, "teacher", recipe), recipe


def record_teacher(place: Workplace, teacher: TeacherIdentity) -> tuple[str, Recorded]:
    """Record what the losses need on training rows (unless online), and the logits of validation and test rows."""
    with place.phase("record"):
        mode, why, needs = teacher_mode(place, teacher, place.config)
        place.notes.append(f"Teacher mode {mode}: {why}.")
        recorded = record_splits(place, teacher, recorded_signals(mode, needs))
    return mode, recorded


def record_splits(place: Workplace, teacher: TeacherIdentity, splits: dict[str, frozenset[str]]) -> Recorded:
    """Record the signals of each split that are missing, after a look at what the teacher says of validation rows."""
    validation = record_split(place, teacher, "validation", splits["validation"])
    check_label_order(place, teacher, validation)
    check_chance(place, validation)
    return {
        split: validation if split == "validation" else record_split(place, teacher, split, signals)
        for split, signals in splits.items()
    }


def recorded_signals(mode: str, needs: frozenset[str]) -> dict[str, frozenset[str]]:
    """Which signals of which split are recorded: of the training rows only those of a cached teacher."""
    logits = frozenset({"logits"})
    return {"train": needs if mode == "cached" else frozenset(), "validation": logits, "test": logits}


def check_label_order(place: Workplace, teacher: TeacherIdentity, recorded: dict[str, Artifact]) -> None:
    """Note where the teacher's classes are known by position only; ModelError where the rows speak for other ones."""
    names = place.job.labels
    notice = label_notice(teacher.folder, names, place.config.teacher.trust_remote_code)
    if notice is None:
        return
    place.notes.append(f"teacher.model: {notice}")
    logits, labels, _ = labeled_validation(place, recorded)
    if (order := other_order(logits, labels)) is None:
        return
    own, other = (100 * float((found.argmax(1) == labels).mean()) for found in (logits, logits[:, order]))
    turned = ", ".join(names[i] for i in np.argsort(order))
    raise ModelError(
        f"teacher.model: it names its labels LABEL_0 to LABEL_{len(names) - 1} only. Taken in this order for "
        f"{', '.join(names)}, it is right on {own:.1f} % of the validation rows; for {turned} on {other:.1f} %. Name "
        f"them so in id2label of its config.json{' or in task.labels' if place.config.task.labels is None else ''}."
    )


def labeled_validation(place: Workplace, recorded: dict[str, Artifact]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The teacher's logits (N, C), the labels and the example ids (N,) of the validation rows that have a label."""
    rows = place.rows["validation"]
    kept = np.flatnonzero(rows.labels >= 0)
    logits = RecordedSignals(recorded, rows.num_rows).batch(kept)["logits"].numpy()
    return logits, rows.labels[kept], rows.example_ids[kept]


def check_chance(place: Workplace, recorded: dict[str, Artifact]) -> None:
    """ModelError where the teacher is no better than chance on the validation rows; every rank sees the same logits."""
    settings = place.config.teacher
    if settings.allow_chance:
        return
    found = judged_chance(*labeled_validation(place, recorded), place.job.labels, place.config.evaluate)
    if found is None:
        return
    finetune = settings.finetune
    advice = "Name one that was fine-tuned for these classes, or add teacher.finetune."
    if finetune is not None:
        labeled = int((place.rows["train"].labels >= 0).sum())
        advice = (
            f"Train it for more epochs (teacher.finetune.num_epochs, now {finetune.num_epochs:g}), at a higher rate "
            f"(teacher.finetune.learning_rate, now {finetune.learning_rate:g}) or on more labels (now {labeled:,})."
        )
    raise ModelError(
        f"On the validation rows the teacher is {GUESSING}, so a student has nothing to learn from it: {found}. "
        f"{advice} teacher.allow_chance=true goes on with it."
    )


def judged_chance(
    logits: np.ndarray, labels: np.ndarray, example_ids: np.ndarray, names: tuple[str, ...], settings: Evaluate
) -> str | None:
    """Why a model is no better than chance on labelled rows, by the test that results use; None for one that is, or
    that has learned something of skewed classes."""
    found = intervals(logits, labels, settings.bootstrap_samples, example_ids=example_ids)
    tested = chance(found, logits, labels)
    if tested["reason"] in (None, "accuracy_only"):
        return None
    tested |= {"majority_class": names[tested["majority_class"]]}
    return why_chance({"chance": tested, "test": found, "per_class": per_class(logits, labels, names)})


def teacher_mode(place: Workplace, teacher: TeacherIdentity, config: Config) -> tuple[str, str, frozenset[str]]:
    """Return how this config's losses get the teacher's signals, why, and which they need."""
    teacher_config = place.read_config(teacher.folder)
    student = student_config(teacher_config, config.student)
    losses = build_stages(config.stages, place.task, student, teacher_config, seed=recipes.student_seed(config))
    needs, rows = all_teacher_needs(losses), place.rows["train"]
    sizes = recipes.signal_bytes(needs, teacher_config, rows.num_rows, int(rows.lengths.sum()))
    return *recipes.choose_mode(config.teacher, sizes), needs


def record_split(
    place: Workplace, teacher: TeacherIdentity, split: str, signals: Collection[str]
) -> dict[str, Artifact]:
    """Record the signals of one split that are missing; where each lies."""
    wanted = {signal: wanted_signal(place, teacher, signal, split) for signal in sorted(signals)}
    reopen_split(place, split, wanted)
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
    return {signal: item.artifact for signal, item in wanted.items()}


def reopen_split(place: Workplace, split: str, wanted: dict[str, Wanted]) -> None:
    """Let shards that do not fit their checksums be recorded again, and say so."""
    found = {s: reopen_damaged(item.artifact) for s, item in wanted.items()} if place.group.is_first else None
    for signal, names in place.group.broadcast(found).items():
        if names:
            where = place.job.storage.show("signals", wanted[signal].artifact.key)
            place.notes.append(
                f"Damaged, and recorded again: {', '.join(names)} in {where} ({signal} of {split}); check that disk."
            )


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


def train_student(place: Workplace, teacher: TeacherIdentity, mode: str, recorded: Recorded) -> Artifact:
    """Build the student and train it through its stages."""
    with place.phase("train"):
        artifact, _ = student_artifact(place, teacher, mode)
        if place.has(artifact, "student"):
            place.replay("student", read_training(artifact)["history"])
        else:
            for _ in student_reports(place, teacher, mode, recorded["train"]):
                pass
        if place.feed is not None:
            place.feed.close()  # teachers hold devices that others may wait for
    return artifact


def student_artifact(place: Workplace, teacher: TeacherIdentity, mode: str) -> tuple[Artifact, Recipe]:
    job = place.job
    return recipes.student_artifact(place.config, job.storage, teacher, job.tokens.digest, place.device.dtype, mode)


def student_reports(
    place: Workplace,
    teacher: TeacherIdentity,
    mode: str,
    signals: dict[str, Artifact],
    *,
    is_trial: bool = False,
    save_at_validation: bool = False,
) -> Iterator[StageReport]:
    """Build the student, train it, a report at a time, and publish it. A trial keeps the teacher's module for the next.

    The caller looks first whether the student is in storage already.
    """
    config = place.config
    artifact, recipe = student_artifact(place, teacher, mode)
    build = build_student(
        place.teacher(teacher),
        config.student,
        seed=recipes.student_seed(config),
        attn_implementation=place.attention,
    )
    if mode != "online" and not is_trial:
        place.teacher_model = None  # its memory is the student's now
    yield from stage_reports(
        place,
        "student",
        build.model,
        config.stages,
        signals,
        teacher,
        is_trial=is_trial,
        save_at_validation=save_at_validation,
    )
    parents = {"tokens": place.job.tokens.digest, **teacher.parents}
    about = {
        "history": stage_history(place, "student", config.stages),
        "teacher_layers": list(build.teacher_layers),
    }
    publish(place, artifact, recipe, parents, build.model, teacher.folder, about)


def train_baseline(place: Workplace, teacher: TeacherIdentity) -> Artifact | None:
    """Train the same student without a teacher: labelled rows only, as many steps, the same settings."""
    settings, config = recipes.baseline_settings(place.config), place.config
    if settings is None:
        return None
    with place.phase("baseline"):
        is_same = settings.start == "same"
        artifact, recipe = recipes.baseline_artifact(
            config, place.job.storage, teacher, place.job.tokens.digest, place.device.dtype
        )
        if place.has(artifact, "baseline"):
            place.replay("baseline", read_training(artifact)["history"])
        else:
            source = teacher.folder
            if not is_same:
                source = resolve_model(config.teacher.model, config.teacher.revision, config.teacher.trust_remote_code)
            start = place.teacher(teacher) if is_same else place.load(source, dropout=0.0)
            seed = recipes.student_seed(config)
            model = build_student(start, config.student, seed=seed, attn_implementation=place.attention).model
            place.teacher_model = None
            stages = recipes.baseline_stages(config)
            history = train_on_labels(place, "baseline", model, stages)
            parents = {"tokens": place.job.tokens.digest, **teacher.parents}
            publish(place, artifact, recipe, parents, model, teacher.folder, {"history": history})
    return artifact
