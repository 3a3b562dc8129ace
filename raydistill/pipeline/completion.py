"""Before any model runs: what the models are, whether they can go together, and everything chosen that a config leaves
open."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import PreTrainedConfig

from raydistill.config.losses import KBest, LogitMse, SoftLossSection, TaskLoss
from raydistill.config.metrics import metric
from raydistill.config.section import known
from raydistill.config.teacher import Finetune, TeacherModel
from raydistill.config.tree import CRF_LOGITS, NO_SEQUENCES, Config
from raydistill.data.augmentation import Augmentation
from raydistill.data.encoding import load_tokenizer
from raydistill.data.pictures import Processor
from raydistill.data.prepare import DataInfo
from raydistill.data.size import Texts, pieces_a_document, token_needs
from raydistill.errors import ConfigError, did_you_mean
from raydistill.losses import build_stages
from raydistill.models.checks import has_position_table
from raydistill.models.crf import is_crf, set_crf
from raydistill.models.fields import depth, is_staged, width
from raydistill.models.folder import resolve_model, tokenizer_digest
from raydistill.models.head import FOCAL, OBJECTS, is_focal
from raydistill.models.layers import projection
from raydistill.models.load import is_tuned, new_model, read_config
from raydistill.models.pictures import Sight, check_head, look
from raydistill.models.pooled import pooled_class
from raydistill.models.scorer import num_positions
from raydistill.models.shape import student_config
from raydistill.models.shared import check_shared, num_shared
from raydistill.models.signals import LOGITS, PROJECTIONS, Signal, State
from raydistill.pipeline.defaults import Choice, Facts, choose, length_choice
from raydistill.tasks import Targets, Task, kind_of, task_of


class Models(NamedTuple):
    """Configs of teacher and student, and how many tokens both have positions for; None: any number. Of a teacher that
    reads pictures its hidden states."""

    teacher: PreTrainedConfig
    student: PreTrainedConfig
    positions: int | None
    states: tuple[State, ...] = ()


def check_models(config: Config, source: Path) -> Models:
    """What is known of the models. Raises RaydistillError where they cannot go together, or not read such rows."""
    teacher = read_config(source, config.lead.trust_remote_code)
    if config.task.reads_pictures:
        return check_picture_models(config, source, teacher)
    check_tokenizers(config, source)
    if isinstance(config.lead.finetune, Finetune):
        set_crf(teacher, config.lead.finetune.head)
    student = student_config(teacher, config.student)
    length, limits = config.data.max_length, []
    for name, shaped in ((config.lead.model, teacher), (config.student.start, student)):
        with torch.device("meta"):  # built without weights, 0.03 s: families differ in where positions begin
            model = new_model(shaped, seed=0)
        limit = num_positions(model)
        if limit is not None and has_position_table(model):
            limits.append(limit)
            if length != "auto" and length > limit:
                raise ConfigError(
                    f"data.max_length is {length}, but {name} has positions for {limit} tokens. Lower it."
                )
    return Models(teacher, student, min(limits, default=None))


def check_picture_models(config: Config, source: Path, teacher: PreTrainedConfig) -> Models:
    """The same of models that read pictures, whose positions are the patches that the teacher sees of one. Raises
    RaydistillError for losses on layers that cannot compare patches or maps of other sizes."""
    wanted = kind_of(config.task).head_kind
    check_head(teacher, wanted, f"teacher.model: {config.lead.model}")
    if (start := config.student.checkpoint) is not None:
        other = read_config(resolve_model(start))
        check_head(other, wanted, f"student.start: {start}")
        if wanted == OBJECTS and is_focal(other) != is_focal(teacher):
            raise ConfigError(
                f"student.start: {start}, a {other.model_type} model, and teacher.model, a {teacher.model_type} one, "
                "say differently what they find: one has a probability of no object, the other one of each class by "
                f"itself. Start from a {' or '.join(FOCAL if is_focal(teacher) else ('yolos',))} model."
            )
    processor = Processor.open(source, config.task.wanted_size)
    student, shape = student_config(teacher, config.student), processor.shape
    if config.task.sees_whole_pictures:
        processor.check_whole()
    seen, own = look(teacher, shape), look(student, shape)
    if config.data.max_length not in ("auto", seen.num_patches):
        raise ConfigError(
            f"data.max_length is {config.data.max_length}, but a picture has {seen.num_patches} patches. Leave it out."
        )
    models = Models(teacher, student, seen.num_patches, seen.states)
    if not (seen.is_stack and own.is_stack and seen.num_patches == own.num_patches):
        check_maps(config, models, own, seen)
    return models


def check_maps(config: Config, models: Models, own: Sight, seen: Sight) -> None:
    """ConfigError for losses that say nothing of models that see other parts of a picture, or cannot tell how they lie
    in it. ``own``, ``seen``: what student and teacher see."""
    for stage_name, stage in config.stages.items():
        for name, loss in stage.losses.items():
            if not {"hidden states", "queries"} & set(loss.compares.split(", ")):
                continue
            place = f"stages.{stage_name}.losses.{name}"
            if not loss.takes_maps or getattr(loss, "nodes", "rows") == "tokens":
                raise ConfigError(
                    f"{place}: {loss.type} compares {loss.compares} one by one, and a {models.student.model_type} "
                    f"student sees other parts of a picture than its {models.teacher.model_type} teacher. Use losses "
                    "on feature maps, such as hidden_mse or pooled_cosine, or on logits, such as forward_kl."
                )
            for model, sight in ((models.student, own), (models.teacher, seen)):
                if not sight.grids:
                    unknown = "has maps of which it is not known how they lie in pictures that are no squares"
                    what = unknown if sight.states else "does not give its feature maps"
                    raise ConfigError(
                        f"{place}: {loss.type} compares feature maps, and a {model.model_type} model {what}. Use "
                        "losses on logits, such as forward_kl, or an image processor whose pictures are squares."
                    )


def check_tokenizers(config: Config, teacher: Path) -> None:
    """Refuse a student that starts from a checkpoint with another tokenizer: it would read the teacher's token ids."""
    if config.student.checkpoint is None:
        return
    start = resolve_model(config.student.checkpoint)
    if tokenizer_digest(start) == tokenizer_digest(teacher):
        return
    if load_tokenizer(start).get_vocab() != load_tokenizer(teacher).get_vocab():
        raise ConfigError(
            f"student.start: {config.student.start} has another tokenizer than the teacher {config.lead.model}. "
            "Start from a checkpoint with the teacher's tokenizer files, from teacher_layers, or from random."
        )


def complete(config: Config, models: Models, info: DataInfo, texts: Texts, source: Path) -> tuple[Config, list[Choice]]:
    """The config with everything chosen that it leaves open; texts are read only where their length is asked for."""
    train, task = info.counts["train"], task_of(info.task)
    check_classes(config, task)
    check_labels(config, task)
    check_signals(config, task, models)
    is_text = not task.reads_pictures
    needed, limit = (0, 0)
    if config.data.max_length == "auto" and is_text:
        needed, limit = token_needs(texts("train"), source)
    trusted = config.lead.trust_remote_code
    tuning = config.lead.finetune
    is_open = tuning is not None and (tuning == "auto" or tuning.method == "auto")
    facts = Facts(
        has_head=is_open and is_tuned(source, task.head, trusted),
        is_foreign=trusted,
        kind=task.kind,
        num_outputs=len(task.outputs),
        has_units=task.has_units,
        usual_length=task.usual_length,
        width=width(models.teacher),
        teacher_layers=depth(models.teacher),
        student_layers=None if is_staged(models.student) else depth(models.student),
        num_patches=None if is_text else models.positions,
        num_rows=train.rows,
        num_labeled=train.labeled,
        num_copies=config.data.num_copies,
        num_labeled_copies=config.data.num_labeled_copies(type(config.task)),
        num_tokens=needed,
        limit=min(limit, models.positions or limit),
        metric=task.advised_metric(train.per_class),
    )
    if task.reads_documents:
        length = config.data.max_length if config.data.max_length != "auto" else length_choice(facts).value
        rows = round(train.rows * task.copies * pieces_a_document(texts("train"), source, length))
        facts = replace(facts, num_rows=rows, num_labeled=rows)
    config, choices = choose(config, facts)
    check_sequences(config, models.teacher, task)
    return config, choices


def check_sequences(config: Config, teacher: PreTrainedConfig, task: Task) -> None:
    """ConfigError for what ``config.tree.check_sequences`` cannot know: the data's scheme, a teacher that is tuned."""
    heads = {"student.head": config.student.head}
    if (tuning := known(config.lead.finetune)) is not None:
        heads["teacher.finetune.head"] = tuning.head
    scheme = getattr(task, "scheme", None)
    for place, head in heads.items():
        if head == "constrained_crf" and scheme is not None and scheme.name != "iob2":
            why = f"in the labels of this data (scheme {scheme.name}) none is forbidden after another"
            raise ConfigError(f"{place}: {why}. Take crf.")
    for stage_name, stage in config.stages.items():
        for name, loss in stage.losses.items():
            place = f"stages.{stage_name}.losses.{name}"
            if isinstance(loss, KBest) and not is_crf(teacher):
                raise ConfigError(f"{place}: {NO_SEQUENCES} Name a CRF, or take forward_kl.")
            if isinstance(loss, LogitMse) and is_crf(teacher):
                raise ConfigError(f"{place}: {CRF_LOGITS}")


def check_labels(config: Config, task: Task) -> None:
    """ConfigError for what needs labels that this data has not: the task's loss, a metric."""
    losses = [loss for stage in config.stages.values() for loss in stage.losses.values()]
    if any(isinstance(loss, TaskLoss) for loss in losses) or isinstance(config.lead.finetune, Finetune):
        task.check_loss()
    places = {"evaluate.metric": config.evaluate.metric}
    if config.sweep is not None:
        places |= {f"sweep.objectives.{name}": name for name in config.sweep.objectives}
        places |= {f"sweep.constraints.{name}": name for name in config.sweep.constraints}
    for place, name in places.items():
        wanted = (name or "").removeprefix("validation/")
        if wanted in {*task.Settings.metrics} - {*task.shown_metrics}:
            raise ConfigError(
                f"{place}: such rows do not define {wanted}. They define {', '.join(task.shown_metrics)}."
            )


def check_validation(config: Config, task: Task, targets: Targets) -> None:
    """ConfigError for a metric that is to pick epochs or trials, where the validation rows do not define it whatever a
    model says of them; ``targets``: theirs. Of what it depends on the model the epoch counts as worst."""
    places = {"evaluate.metric": config.epoch_metric}
    if config.sweep is not None:
        places |= {f"sweep.objectives.{name}": name.removeprefix("validation/") for name in config.sweep.objectives}
    if task.is_taught:  # what the teacher says of these rows is not there yet
        places = {}
    teachers: Mapping[str, TeacherModel] = {f"members.{name}.": one for name, one in config.members.items()}
    teachers = teachers or {"": config.lead}
    for name, teacher in teachers.items():
        if isinstance(teacher.finetune, Finetune):
            places[f"teacher.{name}finetune.metric"] = teacher.finetune.metric or config.task.teacher_metric
    doubtful = {name for name in places.values() if metric(name).undefined}
    lost = task.undefined(targets, doubtful) if doubtful else frozenset()  # 100,000 rows of 400 classes: 3 s
    for place, name in places.items():
        if name in lost:
            others = [one for one in config.task.tuning_metrics if one not in task.undefined(targets)]
            raise ConfigError(
                f"{place}: {metric(name).words} is not defined on the validation rows, because "
                f"{metric(name).undefined}. Name another metric ({', '.join(others)}), or keep other rows for "
                "validation (data.split)."
            )


def check_pooled(config: Config, models: Models) -> None:
    """Refuse a head on mean states for a family that has none."""
    if (tuning := known(config.lead.finetune)) is not None and tuning.method != "full":
        pooled_class(models.teacher)


def augmentation_of(config: Config, teacher: Path) -> Augmentation | None:
    """How copies of the training rows are written, by the teacher's embeddings; None where there are none."""
    augment = config.data.augment
    if augment is None:
        return None
    masked = None if augment.masked_model is None else resolve_model(augment.masked_model)
    keeps_labels = config.task.sees_whole_pictures
    return Augmentation(augment, config.seed, teacher, config.lead.trust_remote_code, masked, keeps_labels)


def check_classes(config: Config, task: Task) -> None:
    """ConfigError for a loss that says nothing of so few classes, or a weight of a class that the data does not
    have."""
    for stage_name, stage in config.stages.items() if task.outputs else ():
        for name, loss in stage.losses.items():
            place = f"stages.{stage_name}.losses.{name}"
            given = loss.class_weights if isinstance(loss, TaskLoss) else None
            for unknown in sorted(given.keys() - set(task.outputs)) if isinstance(given, dict) else ():
                raise ConfigError(
                    f"{place}.class_weights names {unknown!r}, which the data does not have. "
                    f"{did_you_mean(unknown, task.outputs)}"
                )
            if task.kind == "categorical" and len(task.outputs) < loss.fewest_classes:
                raise ConfigError(
                    f"{place}: {loss.type} needs {loss.fewest_classes} classes or more, and there are "
                    f"{len(task.outputs)}: the others than one are then a single one, which has nothing to say. Use "
                    "forward_kl."
                )
            if isinstance(loss, SoftLossSection) and loss.standardize and len(task.outputs) < 3:
                raise ConfigError(
                    f"{place}.standardize: standardised logits of two classes are always 1 and -1, so a student would "
                    "learn nothing but which one is the larger. Leave it out."
                )


def check_signals(config: Config, task: Task, models: Models) -> None:
    """RaydistillError for losses that these models cannot be compared by."""
    stages = build_stages(config.stages, task, models.student, models.teacher, seed=config.seed)
    teacher, student = (
        frozenset[Signal]().union(*needs)
        for needs in zip(*((losses.teacher_needs, losses.student_needs) for losses in stages.values()), strict=True)
    )
    if config.members and (more := sorted(teacher - {LOGITS})):
        raise ConfigError(f"stages: its losses ask for {', '.join(more)}, of which several teachers have no mean.")
    for shaped, needs in ((models.teacher, teacher), (models.student, student)):
        projected = [(signal.layer, signal.name) for signal in needs if signal.layer and signal.name in PROJECTIONS]
        if projected:
            with torch.device("meta"):
                model = new_model(shaped, seed=0)
            for layer, name in projected:
                projection(model, layer, name)
    if num_shared(models.student):
        check_shared(new_model(models.student, seed=0))
