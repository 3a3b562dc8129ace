"""What a run would do, without a cluster and without computing anything: stages, sizes, layer maps, findings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from transformers import PreTrainedConfig

from raydistill.config.data import Augment
from raydistill.config.gate import Gate
from raydistill.config.losses import largest
from raydistill.config.section import known
from raydistill.config.student import Student
from raydistill.config.tasks import MaskedLanguageModeling, TaskSection
from raydistill.config.teacher import ModelTeacher
from raydistill.config.tree import Config
from raydistill.data.rows import Rows
from raydistill.data.size import Size, estimated_size, measured_size
from raydistill.errors import RaydistillError
from raydistill.losses import Losses, build_losses, build_stages, signal_sizes
from raydistill.models.embedding import set_head_of
from raydistill.models.fields import depth, is_staged, width
from raydistill.models.layer_map import layer_maps
from raydistill.models.load import has_head, load_model, order_notice
from raydistill.models.pictures import last_state
from raydistill.models.shape import start_layers
from raydistill.models.shared import num_shared
from raydistill.pipeline import recipes
from raydistill.pipeline.layers import by_similarity, known_layers
from raydistill.pipeline.links import with_links
from raydistill.pipeline.prepare import prepare
from raydistill.pipeline.resolve import Resolved, resolve
from raydistill.pipeline.status import Phase, find_phases, find_teacher, find_tokens
from raydistill.storage.artifacts import Artifact
from raydistill.storage.redaction import redact
from raydistill.storage.storage import Storage
from raydistill.tasks import Task
from raydistill.tracking.endpoint import tracking_uri
from raydistill.train.preflight import check_losses, judge_weights
from raydistill.train.schedule import Schedule

if TYPE_CHECKING:
    from raydistill.cluster.placement import State

    Estimate: TypeAlias = Callable[[Resolved, Size, str, Sequence[Phase]], dict[str, Any]]


BOTH = "Each training pair is read in both orders (data.symmetric), so an epoch has twice as many rows."


def hiding_note(task: MaskedLanguageModeling, size: Size, max_length: int) -> str:
    """What becomes of documents and their tokens."""
    about, rows = "about " if size.is_estimate else "", size.num_inputs["train"]
    hidden = f"{about}{0 if size.num_units is None else size.num_units['train']:,}"
    when = "always the same, by which the teacher is recorded" if task.top_k else "others at each epoch"
    copies = f", {task.copies} times with other tokens hidden" if task.copies > 1 else ""
    return (
        f"Documents are read in pieces of at most {max_length} tokens{copies}: {about}{rows:,} rows for "
        f"{size.num_rows['train']:,} training documents. Hidden are {hidden} of their tokens, {when}."
    )


def augment_note(augment: Augment, task: TaskSection) -> str:
    """What ``data.augment`` does."""
    how = "seen" if task.reads_pictures else "written"
    ways = ", ".join(augment.ways)
    if augment.is_each_epoch:
        return (
            f"Each training row is {how} otherwise at every epoch ({ways}: data.augment), with its label, and by the "
            "student as by its teacher, which runs beside it."
        )
    copies, label = ("a copy", "a label") if augment.copies == 1 else (f"{augment.copies} copies", "labels")
    label = "with the boxes that are seen" if task.sees_whole_pictures else f"without {label}"
    return (
        f"Each training row has {copies} {how} otherwise ({ways}: data.augment), {label}: an epoch has "
        f"{1 + augment.num_copies} times as many rows."
    )


def reading_notes(config: Config, size: Size) -> list[str]:
    """What becomes of the training rows before models read them."""
    notes = [BOTH] if config.data.symmetric else []
    if (augment := config.data.augment) is not None:
        notes.append(augment_note(augment, config.task))
    if isinstance(config.task, MaskedLanguageModeling):
        notes.append(hiding_note(config.task, size, known(config.data.max_length)))
    return notes


def make_plan(
    config: Config, check: bool = False, state: State | None = None, *, estimate: Estimate | None = None
) -> dict[str, Any]:
    """Return the plan as plain data. With ``check`` the losses are computed once on real rows, which prepares the data.

    ``state``: the cluster that it is for, else that of RAY_ADDRESS, or this machine. ``estimate`` adds the time that
    the run or the sweep takes. Raises RaydistillError for what would end the run before any work.
    """
    storage = Storage(config.storage)
    storage.check(leave_nothing=True)
    config = with_links(config, storage)
    if check:
        prepare(config, storage)
    resolved = with_known_layers(resolve(config, storage, prepares=False, state=state), storage)
    config, models, task = resolved.config, resolved.models, resolved.task
    student, length, all_tokens = models.student, known(config.data.max_length), find_tokens(resolved, storage)
    tokens = all_tokens[0]
    size = (
        estimated_size(resolved.info, resolved.texts, length, resolved.source, config.data)
        if tokens is None
        else measured_size(resolved.data, tokens, config.data)
    )
    source_config = models.teacher
    set_head_of(source_config, resolved.source, task.head)
    losses = build_stages(config.stages, task, student, source_config, seed=config.seed)
    num_tokens = size.num_tokens["train"]
    most = {"train": num_tokens if task.has_units else size.num_inputs["train"]}
    num_units = (size.num_units or most)["train"]
    sizes = signal_sizes(losses, source_config, num_units, num_tokens, models.states)
    mode, why = config.teacher.choose_mode(sum(sizes.values()))
    lengths = stage_schedules(resolved, size)
    phases = find_phases(resolved, storage, all_tokens, [*sizes], mode)
    plan: dict[str, Any] = {
        "storage": redact(storage.url),
        "data": {
            "rows": size.num_rows,
            "labeled": size.num_labeled,
            "summary": size.info.summary,
            "per_class": {split: counts.per_class for split, counts in size.info.counts.items()},
            "tokens": size.num_tokens,
            "unit": "patches" if task.reads_pictures else "tokens",
            "cut": size.num_cut,
            "max_length": length,
            "notes": [*size.info.notes, *reading_notes(config, size)],
        },
        "labels": list(task.outputs),
        "estimate": size.is_estimate,
        "phases": [{"phase": phase.name, "state": phase.state} for phase in phases],
        "teacher": {"mode": mode.name, "why": why, "signal_bytes": sizes, "dtype": resolved.dtype}
        | {"allow_chance": config.teacher.allow_chance}
        | {"weights": {one.name: one.weight for one in resolved.teachers if one.name}},
        "student": {
            "num_layers": depth(student),
            "hidden_size": width(student),
            "num_heads": getattr(student, "num_attention_heads", None),
            "teacher_layers": teacher_layers(source_config, config.student),
            "share_layers": num_shared(student),
        },
        "layer_maps": layer_maps(config, last_state(student), last_state(source_config)),
        "steps": {name: schedule.num_steps for name, schedule in lengths.items()},
        "min_steps": {name: schedule.fewest_steps for name, schedule in lengths.items()},
        "choices": [vars(choice) for choice in resolved.choices],
        "findings": [
            *findings(resolved, storage, size, losses),
            *(checked(resolved, tokens) if check else []),
        ],
    }
    return plan if estimate is None else plan | estimate(resolved, size, mode.name, phases)


def with_known_layers(resolved: Resolved, storage: Storage) -> Resolved:
    """With pairs of layers in place of ``auto``, where a run has measured which are alike."""
    (tokens, *others), config = find_tokens(resolved, storage), resolved.config
    if others or tokens is None or config.sweep is not None:
        return resolved  # several teachers are compared by no layer, and trials have students of their own
    teacher = find_teacher(resolved.teachers[0], tokens, storage, resolved.dtype)
    return (
        resolved
        if teacher is None
        else replace(resolved, config=known_layers(config, storage, teacher, tokens.digest)[0])
    )


def teacher_layers(source: PreTrainedConfig, student: Student) -> list[int]:
    """The layers of the teacher that the student starts from; none where it starts elsewhere, or has stages."""
    is_elsewhere = student.checkpoint is not None or is_staged(source)
    return [] if is_elsewhere else list(start_layers(source, student))


def stage_schedules(resolved: Resolved, size: Size) -> dict[str, Schedule]:
    """How long every stage trains."""
    config = resolved.config
    batch = config.train.global_batch_size
    baseline = recipes.baseline_settings(config) is not None and size.task.has_loss
    made = {}
    for name, tuning in resolved.tunings.items():
        if tuning is not None and tuning.epochs:
            made[f"teacher{name}"] = Schedule.of_epochs(size.num_labeled_inputs, batch, tuning)
    for name, stage in config.stages.items():
        made[f"student.{name}"] = Schedule.of_epochs(recipes.num_stage_rows(stage, size), batch, stage)
    return made | {
        key.replace("student.", "baseline."): n for key, n in made.items() if baseline and key.startswith("student.")
    }


def teacher_findings(teacher: ModelTeacher, source: Path, task: Task) -> list[str]:
    """Of one teacher."""
    found = []
    if teacher.trust_remote_code:
        found.append(f"teacher.trust_remote_code: code that comes with {teacher.model} will be run.")
    if teacher.finetune is None:
        if has_head(source, teacher.trust_remote_code, task.head_kind):
            notice = order_notice(source, task.head, teacher.trust_remote_code)
            found += [f"teacher.model: {notice}"] if notice else []
        else:
            found.append(
                f"teacher.model: {teacher.model} has no trained classification head. Leave teacher.finetune out, which "
                "trains it first."
            )
    return found


def findings(resolved: Resolved, storage: Storage, size: Size, losses: dict[str, Losses]) -> list[str]:
    """Return what a user should know before the run, a sentence each."""
    config, found = resolved.config, list[str]()
    for one in resolved.teachers:
        found += teacher_findings(one.config.lead, one.source, size.task)
    if config.student.start == "random":
        found.append("student.start: a random student needs far more rows and steps than one cut from its teacher.")
    if size.num_labeled < size.num_rows["train"] and not any(map(recipes.teacher_speaks, config.stages.values())):
        found.append("stages: no loss asks the teacher, so the unlabelled rows are not used.")
    num_test, least = size.info.counts["test"].labeled, Gate().min_rows or 0
    if num_test < least:
        found.append(
            f"data: the test split has {num_test:,} labelled rows, and the gate judges on {least:,} or more (min_rows)."
            " It will refuse the student, however good it is. Hold more out (data.split.test), where the data has no "
            "test split of its own; else label more of its rows, or name others to `raydistill promote` (--data)."
        )
    windows, rows = (size.num_windows or size.num_rows)["train"], size.num_rows["train"]
    if windows > rows and not isinstance(config.task, MaskedLanguageModeling):
        about = "about " if size.is_estimate else ""
        found.append(
            f"data.max_length: longer texts are read in windows, {about}{windows:,} for {rows:,} training rows."
        )
    for name, term in by_similarity(config):
        found.append(
            f"stages.{name}.losses.{term}: which layers are compared is measured when the teacher is ready; until then "
            "a uniform map stands for it."
        )
    for name, stage in config.stages.items():
        for term, loss in stage.losses.items():
            if largest(loss.weight) == 0:
                found.append(f"stages.{name}.losses.{term}: its weight is 0, so it has no effect.")
        found += [f"stages.{name}: {finding}" for finding in judge_weights(losses[name])]
    try:
        tracking_uri(storage)
    except RaydistillError as error:
        found.append(str(error))
    return found


def checked(resolved: Resolved, tokens: Artifact | None) -> list[str]:
    """Compute every loss once on real rows, with the teacher as it is now."""
    from raydistill.cluster.device import Device
    from raydistill.models.student import build_student
    from raydistill.teacher.signals import OnlineSignals

    assert tokens is not None
    config, rows, task = resolved.config, Rows.open(tokens.local(), "train"), resolved.task
    tuning, trusted = known(config.lead.finetune), config.lead.trust_remote_code
    how: dict[str, Any] = {"dropout": 0.0, "seed": config.seed, "sequences": tuning and tuning.head}
    teacher = load_model(resolved.source, task.head, trust_remote_code=trusted, **how)
    student = build_student(teacher, config.student, seed=config.seed, sample=rows.sample())
    device = Device("cpu", resolved.dtype)
    found = []
    if config.lead.finetune is not None:
        which = f"teacher {next(iter(config.members))} alone" if config.members else "the teacher"
        found.append(f"The losses were checked with {which} as it is before its fine-tuning.")
    for name, stage in config.stages.items():
        given = (stage.losses, task, student.config, teacher.config)
        losses = build_losses(*given, seed=config.seed, targets=rows.targets)
        signals = OnlineSignals(teacher, losses.teacher_needs, device)
        found += check_losses(
            name, student, losses, signals, rows, recipes.stage_rows(stage, rows.targets.labeled), device
        )
    return found
