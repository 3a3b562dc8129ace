"""What teachers were recorded to say: where it lies, what it is worth, and the mean of what several say."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from transformers import PreTrainedModel

from raydistill.config.metrics import metric, score
from raydistill.config.section import known
from raydistill.evaluate.bootstrap import bootstrap
from raydistill.evaluate.compare import chance
from raydistill.evaluate.figure import Figure
from raydistill.evaluate.intervals import interval, intervals
from raydistill.evaluate.verdict import weak_teacher
from raydistill.models.signals import LOGITS, Signal
from raydistill.pipeline.context import Context
from raydistill.pipeline.recipes import Recorded, TeacherIdentity
from raydistill.pipeline.stages import read_history
from raydistill.storage.artifacts import Artifact
from raydistill.tasks.scores import Scores
from raydistill.tasks.targets import Values
from raydistill.teacher.cached import RecordedSignals
from raydistill.teacher.mixed import MixedSignals
from raydistill.teacher.store import signal_artifact


def signal_of(context: Context, teacher: TeacherIdentity, signal: Signal, split: str) -> Artifact:
    """Where a signal of a split is recorded, or is to be."""
    tokens = context.job.tokens_of(split).digest
    return signal_artifact(
        context.job.storage,
        signal,
        split,
        teacher_digest=teacher.digest,
        tokens_digest=tokens,
        dtype=context.device.dtype,
        parents={"tokens": tokens, **teacher.parents},
    )


def logits_of(context: Context, teacher: TeacherIdentity, splits: Iterable[str]) -> Recorded:
    """Where what a teacher predicts of these splits is recorded."""
    return {split: {LOGITS: signal_of(context, teacher, LOGITS, split)} for split in splits}


def members_of(context: Context, teacher: TeacherIdentity) -> list[tuple[str, Context, TeacherIdentity]]:
    """Of several teachers each one's name, tools and identity; nothing where one speaks."""
    names = [one.name for one in context.job.teachers]
    return [*zip(names, context.teachers, teacher.members, strict=True)] if teacher.members else []


def speaker(context: Context, teacher: TeacherIdentity, split: str) -> PreTrainedModel | MixedSignals:
    """Who says what is to be recorded of a split: the teacher's module, or what several were recorded to say."""
    if not teacher.members:
        return context.teacher(teacher)
    num_rows = context.rows[split].num_rows
    weights = [one.weight for one in context.job.teachers]
    sources = [
        RecordedSignals({LOGITS: signal_of(own, member, LOGITS, split)}, num_rows)
        for (_, own, member), weight in zip(members_of(context, teacher), weights, strict=True)
        if weight
    ]
    return MixedSignals(context.task, sources, [weight for weight in weights if weight])


def scores_of(context: Context, teacher: TeacherIdentity, recorded: Recorded, split: str = "validation") -> Scores:
    """What the teacher reaches on the labelled rows of a split, out of the records of it and of the validation rows."""

    def known(split: str) -> tuple[Values, Values]:
        truth, _ = context.rows[split].examples
        return context.recorded_outputs(recorded, split)[truth.labeled], truth.values[truth.labeled]

    task = context.task.for_model(context.read_config(teacher.folder).to_dict())
    return task.fitted(*known("validation")).scores(*known(split))


def why_chance(context: Context, scores: Scores) -> str | None:
    """Why a teacher with these scores on the validation rows is no better than chance, as results test it; None where
    it is, or has learned something all the same."""
    truth, ids = context.rows["validation"].examples
    num_samples = context.config.evaluate.bootstrap_samples
    tested = chance(intervals(scores, num_samples, example_ids=ids[truth.labeled]), scores.floor())
    return None if tested["reason"] in (None, "floor_only") else str(tested["why"])


def compared(context: Context, mixture: TeacherIdentity, recorded: Recorded) -> list[str]:
    """Notes on what several teachers reach on the validation rows in the mean, and each alone: which of them are no
    better than chance, or no worse than the mean."""
    if context.task.is_taught:  # each is its own measure
        return []
    main, found, values, guessing = context.config.epoch_metric, [], {}, set()
    for name, own, member in members_of(context, mixture):
        scores = scores_of(own, member, logits_of(own, member, recorded))
        values[name] = scores.values[main]
        if (why := why_chance(context, scores)) is not None:
            guessing.add(name)
            found.append(f"Teacher {name} is {context.task.guessing}: {why}. The mean may be better without it.")
    about, mean = metric(main), scores_of(context, mixture, recorded).values[main]
    each = ", ".join(f"{name} {about.text(value)}" for name, value in values.items())
    found.insert(0, f"On the validation rows the mean of the teachers has {about.words} {about.text(mean)}; {each}.")
    reached = {name: score(main, {main: value}) for name, value in values.items() if name not in guessing}
    best = [name for name, value in reached.items() if value >= score(main, {main: mean})]
    if best:
        found.append(f"Alone {' or '.join(best)} would be no worse a teacher by that, and cost less than all.")
    return found


def why_weak(context: Context, teacher: TeacherIdentity, recorded: Recorded, baseline: Artifact) -> str | None:
    """That the teacher is worse on the validation rows than the student that was trained without it, beyond chance, and
    what to set; None where it is not. Every rank runs this."""
    main, (truth, ids) = context.config.epoch_metric, context.rows["validation"].examples
    folder = baseline.local() / "model"
    outputs, targets = context.labeled(context.load(folder, dropout=0.0), "validation")
    task = context.task.for_model(context.read_config(folder).to_dict())
    scores = {
        "baseline": task.fitted(outputs, targets).scores(outputs, targets),
        "teacher": scores_of(context, teacher, recorded),
    }
    num_samples = context.config.evaluate.bootstrap_samples
    samples = bootstrap(scores, ids[truth.labeled], num_samples, context.config.seed, wanted={main})
    one, other = (Figure(main, scores[name].values[main], None, None) for name in scores)
    if one.value is None or other.value is None:
        return None
    ahead = Figure.of(main, interval(other.value - one.value, samples["teacher"][main] - samples["baseline"][main]))
    if not ahead.is_worse:
        return None
    made = [made for made in (teacher.artifact, baseline) if made is not None]
    steps = [max((entry["step"] for entry in read_history(artifact)), default=0) for artifact in made]
    tuning = known(context.config.lead.finetune)
    told = weak_teacher(
        ahead, other, one, (steps[0] if len(steps) > 1 else 0, steps[-1]), tuning.model_dump() if tuning else None
    )
    return f"On the validation rows: {told} What is distilled from it may be worse than nothing."


def describe_members(context: Context, mixture: TeacherIdentity) -> dict[str, Any]:
    """Of several teachers each one's weight, folder, and metrics alone, by its name; nothing of a single one."""
    found: dict[str, Any] = {}
    weights = {one.name: one.weight for one in context.job.teachers}
    splits = ("validation", "test")
    for name, own, member in members_of(context, mixture):
        kept = logits_of(own, member, [one for split in splits for one in own.orders(split)])
        reached = {split: dict(scores_of(own, member, kept, split).values) for split in splits}
        about = {"weight": weights[name], "path": str(member.folder)}
        found[name] = about | ({} if context.task.is_taught else reached)
    return found
