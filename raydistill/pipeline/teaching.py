"""The teacher's phases: fit it, look whether it is of use, and record what the losses want to know of it."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace

from raydistill.config.section import known
from raydistill.config.teacher import Mode
from raydistill.config.tree import Config
from raydistill.data.paths import SPLITS
from raydistill.errors import ModelError
from raydistill.losses import build_stages, signal_sizes
from raydistill.models.fields import width
from raydistill.models.load import has_head, order_notice
from raydistill.models.shape import student_config
from raydistill.models.signals import LOGITS, Signal
from raydistill.pipeline import recipes
from raydistill.pipeline.context import Context
from raydistill.pipeline.defaults import usual_rate
from raydistill.pipeline.failures import about_member
from raydistill.pipeline.finetuning import tune
from raydistill.pipeline.recipes import Recorded, TeacherIdentity
from raydistill.pipeline.spoken import compared, members_of, scores_of, signal_of, speaker, why_chance
from raydistill.pipeline.stages import publish, read_history, risen
from raydistill.storage.artifacts import Artifact
from raydistill.tasks import kind_of
from raydistill.teacher.record import record
from raydistill.teacher.store import reopen_damaged
from raydistill.teacher.verify import verify

FAR = 10.0
"""Times the usual learning rate: a teacher at more, which learned nothing, had hardly too low a one."""


def fit_teacher(context: Context) -> TeacherIdentity:
    """Fine-tune the teacher where the config asks for it; where there are several, one after the other.

    The recording reads it back from its artefact, 0.2 s: another process may have published the same teacher first,
    from another number of threads, and signals belong to the weights whose digest they carry.
    """
    if len(context.teachers) > 1:
        fitted = []
        for one, own in zip(context.job.teachers, context.teachers, strict=True):
            with alone(context, one.name):
                fitted.append(fit_teacher(own))
        return recipes.mixed(fitted, [one.weight for one in context.job.teachers])
    with context.report.phase("teacher"):
        source, config = source_teacher(context.config), context.config.lead
        settings = known(config.finetune)
        if not recipes.changes_teacher(context.config):
            return agreed(context, source)
        artifact = teacher_artifact(context, source)
        if context.report.has(artifact, "teacher"):
            context.report.replay("teacher", read_history(artifact))
        else:
            if context.task.new_head and not has_head(source.folder, config.trust_remote_code, context.task.head_kind):
                context.report.notes.append(context.task.new_head)
            model, history = tune(context, source.folder, settings)
            publish(context, artifact, model, source.folder, history)
    return agreed(context, recipes.fine_tuned(source, artifact))


def agreed(context: Context, teacher: TeacherIdentity) -> TeacherIdentity:
    """The teacher, of which every rank has the same weights: signals, and what learns from them, go by their digest.
    Raises ModelError, on every rank."""
    digests = context.group.gather(teacher.digest)
    if len({*digests}) > 1:
        told = ", ".join(f"{rank}: {digest[:12]}" for rank, digest in enumerate(digests))
        raise ModelError(
            f"The weights of the teacher {teacher.settings.model} are not the same on all workers (digests by rank "
            f"{told}). Copy the same folder to every node, or name the model by its name on the hub."
        )
    return teacher


@contextmanager
def alone(context: Context, name: str) -> Iterator[None]:
    """While one of several teachers is worked on, what is reported, noted and refused names it."""
    report, before = context.report, len(context.report.notes)
    report.series = name
    try:
        with about_member(name):
            yield
    finally:
        report.series = ""
        report.notes[before:] = [f"Teacher {name}: {note}" for note in report.notes[before:]]


def source_teacher(config: Config) -> TeacherIdentity:
    """The teacher before any fine-tuning. Raises ModelError for a plain encoder that would not get any."""
    source = recipes.identify_teacher(config.lead, None)
    trusted, kind = config.lead.trust_remote_code, kind_of(config.task).head_kind
    if config.lead.finetune is None and not has_head(source.folder, trusted, kind):
        raise ModelError(
            f"teacher.model: {config.lead.model} is an encoder without a trained head for {config.task.type}. "
            "Leave teacher.finetune out, which trains it first, or name a model that has one."
        )
    return source


def teacher_artifact(context: Context, source: TeacherIdentity) -> Artifact:
    job = context.job
    return recipes.teacher_artifact(context.config, job.storage, source.digest, job.tokens.digest, context.device.dtype)


def record_teacher(context: Context, teacher: TeacherIdentity) -> tuple[Mode, Recorded]:
    """Record what the losses need on training rows (unless online), and the predictions of all others."""
    with context.report.phase("record"):
        mode, why, needs = teacher_mode(context, teacher, context.config)
        context.report.notes.append(f"Teacher mode {mode.name}: {why}.")
        recorded = record_splits(context, teacher, recorded_signals(context, mode, needs))
    return mode, recorded


def record_splits(context: Context, teacher: TeacherIdentity, splits: dict[str, frozenset[Signal]]) -> Recorded:
    """Record the signals of each split that are missing, after a look at what the teacher says of validation rows.

    Where there are several, each records its own, and what they say in the mean is recorded from that.
    """
    weights = {one.name: one.weight for one in context.job.teachers}
    for name, own, member in members_of(context, teacher):
        heard = {split: signals for split, signals in splits.items() if weights[name] or split != "train"}
        with alone(context, name):
            record_splits(own, member, {split: signals & {LOGITS} for split, signals in heard.items() if signals})
            own.teacher_model = None  # its memory is the next one's now
    first = {split: record_split(context, teacher, split, splits[split]) for split in context.orders("validation")}
    teach(context, teacher, "validation")
    notice = None
    if teacher.members:  # each has been looked at
        context.report.notes += compared(context, teacher, first)
    else:
        notice = order_notice(teacher.folder, context.task.head, context.config.lead.trust_remote_code)
        context.report.notes += [f"teacher.model: {notice}"] if notice is not None else []
    check_chance(context, teacher, first, notice)
    rest = {split: signals for split, signals in splits.items() if split not in first}
    found = first | {split: record_split(context, teacher, split, signals) for split, signals in rest.items()}
    for split in found.keys() & {"test", *context.perturbed}:
        teach(context, teacher, split)
    return found


def teach(context: Context, teacher: TeacherIdentity, split: str) -> None:
    """Add to the targets of held-out rows what the recorded teacher says of them, where a task measures students by it:
    of rows written otherwise what it says of them as they were."""
    if not context.task.is_taught:
        return
    rows, source = context.rows[split], split if split in SPLITS else "test"
    outputs = context.recorded_outputs({source: {LOGITS: signal_of(context, teacher, LOGITS, source)}}, source)
    context.rows[split] = replace(rows, targets=context.task.taught(rows.targets, outputs))


def recorded_signals(context: Context, mode: Mode, needs: frozenset[Signal]) -> dict[str, frozenset[Signal]]:
    """Which signals of which split are recorded: of the training rows where the mode needs it."""
    held_out = [one for split in ("validation", "test", *context.perturbed) for one in context.orders(split)]
    recorded = needs if mode.needs_recording else frozenset()
    return {"train": recorded, **dict.fromkeys(held_out, frozenset({context.task.answer_signal}))}


def check_chance(context: Context, teacher: TeacherIdentity, recorded: Recorded, notice: str | None = None) -> None:
    """ModelError where the teacher is no better than chance on the validation rows, by the test that results use; every
    rank sees the same logits. ``notice``: what was assumed of its labels."""
    if context.config.teacher.allow_chance:
        return
    why = why_chance(context, scores_of(context, teacher, recorded))
    if why is None:
        return
    who = "the mean of the teachers" if teacher.members else "the teacher"
    advice = chance_advice(context, teacher, recorded)
    raise ModelError(
        f"On the validation rows {who} is {context.task.guessing}, so a student has nothing to learn from it: "
        f"{why}. {advice} teacher.allow_chance=true goes on with it." + (f" {notice}" if notice else "")
    )


def chance_advice(context: Context, teacher: TeacherIdentity, recorded: Recorded) -> str:
    """What to do about a teacher that has not learned anything."""
    if teacher.members:
        return " ".join(
            [*compared(context, teacher, recorded)[:1], "Train those longer that guess, or leave them out."]
        )
    finetune = known(context.config.lead.finetune)
    advice = "Name one that was fine-tuned for this task, or add teacher.finetune."
    if finetune is not None:
        advice = "Set teacher.finetune.method: full, or give it more labels."
    if finetune is None or finetune.method == "probe":
        return advice
    artifact = teacher_artifact(context, source_teacher(context.config))
    if (found := risen(context.config, "teacher", read_history(artifact))) is not None:
        return f"Its training diverged: {found.why}. To mend it, {found.advice}."
    if finetune.method == "full":
        labeled = int(context.rows["train"].targets.labeled.sum())
        epochs, rate = known(finetune.num_epochs), known(finetune.learning_rate)
        usual = usual_rate(width(context.read_config(teacher.folder)))
        way = "a higher rate" if rate <= FAR * usual else f"a lower rate, such as {usual:g},"
        advice = (
            f"Train it for more epochs (teacher.finetune.num_epochs, now {epochs:g}), at {way} "
            f"(teacher.finetune.learning_rate, now {rate:g}) or on more labels (now {labeled:,})."
        )
    return advice


def teacher_mode(context: Context, teacher: TeacherIdentity, config: Config) -> tuple[Mode, str, frozenset[Signal]]:
    """Return how this config's losses get the teacher's signals, why, and which they need."""
    teacher_config = context.read_config(teacher.folder)
    student = student_config(teacher_config, config.student)
    losses = build_stages(config.stages, context.task, student, teacher_config, seed=recipes.student_seed(config))
    rows = context.rows["train"]
    states = rows.states_of(teacher_config)
    sizes = signal_sizes(losses, teacher_config, rows.num_predictions, int(rows.lengths.sum()), states)
    return *config.teacher.choose_mode(sum(sizes.values())), frozenset(sizes)


def record_split(
    context: Context, teacher: TeacherIdentity, split: str, signals: Collection[Signal]
) -> dict[Signal, Artifact]:
    """Record the signals of one split that are missing; where each lies."""
    wanted = {signal: signal_of(context, teacher, signal, split) for signal in sorted(signals)}
    reopen_split(context, split, wanted)
    missing = {s: one for s, one in wanted.items() if not context.report.has(one, f"signals of {split}")}
    if missing:
        record(
            speaker(context, teacher, split),
            context.rows[split],
            missing,
            tokens=context.inference_tokens,
            device=context.device,
            group=context.group,
            owner=context.job.owner,
            should_stop=context.board.should_stop,
            progress=context.report.recording_progress(split),
        )
    return wanted


def reopen_split(context: Context, split: str, artifacts: dict[Signal, Artifact]) -> None:
    """Let shards that do not fit their checksums be recorded again, and say so. Ranks share the reading."""
    group = context.group
    sealed = group.broadcast([s for s, artifact in artifacts.items() if artifact.exists()] if group.is_first else None)
    found = verify(
        [artifacts[signal] for signal in sealed],
        group,
        should_stop=context.board.should_stop,
        progress=context.report.verifying_progress(split),
    )
    damaged = None
    if group.is_first:
        damaged = {s: reopen_damaged(artifacts[s], files) for s, files in zip(sealed, found, strict=True)}
    for signal, names in group.broadcast(damaged).items():
        if names:
            where = context.job.storage.show("signals", artifacts[signal].key)
            context.report.notes.append(
                f"Damaged, and recorded again: {', '.join(names)} in {where} ({signal} of {split}); check that disk."
            )
