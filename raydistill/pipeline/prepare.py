"""What is there before any model runs: prepared data, tokens, and the key of the run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from transformers import PreTrainedConfig

from raydistill.config.losses import KBest, LogitMse, SoftLossSection, TaskLoss
from raydistill.config.plugins import registered
from raydistill.config.section import known
from raydistill.config.teacher import Finetune
from raydistill.config.tree import CRF_LOGITS, NO_SEQUENCES, Config
from raydistill.data.augmentation import Augmentation
from raydistill.data.perturbations import perturb_rows
from raydistill.data.prepare import DataInfo, prepare_data, read_info
from raydistill.data.rows import load_tokenizer, read_texts, tokenize_data
from raydistill.data.size import Texts, token_needs
from raydistill.errors import ConfigError, did_you_mean
from raydistill.losses import build_stages
from raydistill.models.checks import has_position_table
from raydistill.models.crf import is_crf, set_crf
from raydistill.models.folder import model_digest, resolve_model, tokenizer_digest
from raydistill.models.layers import projection
from raydistill.models.load import has_head, new_model, read_config
from raydistill.models.pooled import pooled_class
from raydistill.models.scorer import num_positions
from raydistill.models.shape import student_config
from raydistill.models.shared import check_shared, num_shared
from raydistill.models.signals import PROJECTIONS, Signal
from raydistill.pipeline.defaults import Choice, Facts, choose
from raydistill.pipeline.recipes import start_digest
from raydistill.storage.artifacts import Artifact
from raydistill.storage.board import Show
from raydistill.storage.manifest import recipe_key
from raydistill.storage.ownership import Owner
from raydistill.storage.paths import resolve_path
from raydistill.storage.storage import Storage
from raydistill.tasks import Task, task_of
from raydistill.tracking.runs import RunRef

if TYPE_CHECKING:
    from raydistill.pipeline.job import Job


@dataclass(frozen=True)
class Prepared:
    """The driver's part of the work before any model runs."""

    config: Config
    """With everything chosen that it left open."""
    choices: list[Choice]
    storage: Storage
    data: Artifact
    tokens: Artifact
    info: DataInfo
    source: Path
    dtype: str
    run_key: str
    reused: tuple[str, ...]
    perturbed: Artifact | None = None
    """Tokens of the perturbed test rows, where ``evaluate.robustness`` is on."""

    @property
    def made(self) -> list[Artifact]:
        """What the driver has made for the workers."""
        return [self.data, self.tokens, *([self.perturbed] if self.perturbed is not None else [])]

    def job(self, owner: Owner, run: RunRef) -> Job:
        """What the workers are handed."""
        from raydistill.pipeline.job import Job

        data, tokens, task = self.data, self.tokens, self.info.task
        shared = (self.config, self.run_key, self.storage, owner, data, tokens, task, self.dtype, run)
        return Job(*shared, plugins=registered(), perturbed=self.perturbed)


def prepare(config: Config, storage: Storage) -> Prepared:
    """Prepare and tokenise the data; compute the key of the run."""
    from raydistill.cluster.resources import device_type
    from raydistill.models.precision import compute_dtype

    config = with_absolute_paths(config)
    source = resolve_model(config.teacher.model, config.teacher.revision, config.teacher.trust_remote_code)
    models = check_models(config, source)
    before = {kind: set(storage.list(kind)) for kind in ("data", "tokens")}
    data = prepare_data(config, storage)
    info = read_info(data)
    config, choices = complete(config, models, info, partial(read_texts, data), source)
    if (tuning := known(config.teacher.finetune)) is not None and tuning.method != "full":
        pooled_class(models.teacher)  # refuses a family that has none
    how: dict[str, Any] = {"symmetric": config.data.symmetric, "augmentation": augmentation_of(config, source)}
    tokens = tokenize_data(data, source, known(config.data.max_length), storage, **how)
    is_perturbed = config.evaluate.robustness
    perturbed = perturb_rows(data, tokens, source, config.seed, storage) if is_perturbed else None
    dtype = compute_dtype(config.train.dtype, device_type(config))
    reused = [a.kind for a in (data, tokens) if a.key in before[a.kind]]
    key = run_key(config, tokens, source, dtype)
    return Prepared(config, choices, storage, data, tokens, info, source, dtype, key, tuple(reused), perturbed)


def complete(config: Config, models: Models, info: DataInfo, texts: Texts, source: Path) -> tuple[Config, list[Choice]]:
    """The config with everything chosen that it leaves open; texts are read only where their length is asked for."""
    train, task = info.counts["train"], task_of(info.task)
    check_classes(config, task)
    check_labels(config, task)
    check_signals(config, task, models)
    needed, limit = (0, 0) if config.data.max_length != "auto" else token_needs(texts("train"), source)
    trusted = config.teacher.trust_remote_code
    tuning = config.teacher.finetune
    is_open = tuning is not None and (tuning == "auto" or tuning.method == "auto")
    facts = Facts(
        has_head=is_open and has_head(source, trusted, task.head_kind),
        is_foreign=trusted,
        kind=task.kind,
        num_outputs=len(task.outputs),
        has_units=task.has_units,
        width=models.teacher.hidden_size,
        teacher_layers=models.teacher.num_hidden_layers,
        student_layers=models.student.num_hidden_layers,
        num_rows=train.rows,
        num_labeled=train.labeled,
        num_orders=config.data.num_orders,
        num_copies=config.data.num_copies,
        num_tokens=needed,
        limit=min(limit, models.positions or limit),
        metric=task.advised_metric(train.per_class),
    )
    config, choices = choose(config, facts)
    check_sequences(config, models.teacher, task)
    return config, choices


def check_sequences(config: Config, teacher: PreTrainedConfig, task: Task) -> None:
    """ConfigError for what ``config.tree.check_sequences`` cannot know: the data's scheme, a teacher that is tuned."""
    heads = {"student.head": config.student.head}
    if (tuning := known(config.teacher.finetune)) is not None:
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
    if any(isinstance(loss, TaskLoss) for loss in losses) or isinstance(config.teacher.finetune, Finetune):
        task.check_loss()
    places = {"evaluate.metric": config.evaluate.metric}
    if config.sweep is not None:
        places |= {f"sweep.objectives.{name}": name for name in config.sweep.objectives}
        places |= {f"sweep.constraints.{name}": name for name in config.sweep.constraints}
    for place, name in places.items():
        metric = (name or "").removeprefix("validation/")
        if metric in {*task.Settings.metrics} - {*task.shown_metrics}:
            raise ConfigError(
                f"{place}: such rows do not define {metric}. They define {', '.join(task.shown_metrics)}."
            )


def augmentation_of(config: Config, teacher: Path) -> Augmentation | None:
    """How copies of the training rows are written, by the teacher's embeddings; None where there are none."""
    augment = config.data.augment
    if augment is None:
        return None
    masked = None if augment.masked_model is None else resolve_model(augment.masked_model)
    return Augmentation(augment, config.seed, teacher, config.teacher.trust_remote_code, masked)


def check_classes(config: Config, task: Task) -> None:
    """ConfigError for a loss that says nothing of so few classes, or a weight of a class that the data does not
    have."""
    for stage_name, stage in config.stages.items():
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
    for shaped, needs in ((models.teacher, teacher), (models.student, student)):
        projected = [(signal.layer, signal.name) for signal in needs if signal.layer and signal.name in PROJECTIONS]
        if projected:
            with torch.device("meta"):
                model = new_model(shaped, seed=0)
            for layer, name in projected:
                projection(model, layer, name)
    if num_shared(models.student):
        check_shared(new_model(models.student, seed=0))


def run_key(config: Config, tokens: Artifact, source: Path, dtype: str) -> str:
    """Key of a run: all of the config that determines what it makes, MLflow run and registered version included.

    Models count by their content, the task's facts with the tokens.
    """
    excluded: dict[str, Any] = {
        "storage": True,
        "sweep": True,
        "data": {"path", "unlabeled"},
        "teacher": {"model", "pool", "allow_chance"},
        "student": {"start"},
        "registry": {"challenger"},
        "train": {
            *("num_workers", "min_workers", "resources_per_worker", "accelerator_type", "max_failures"),
            *("max_wait_minutes", "tokens_per_micro_batch", "checkpoint_steps"),
        },
    }
    settings = config.model_dump(mode="json", exclude=excluded)
    digest = model_digest(source)
    inputs = {"tokens": tokens.digest, "source": digest, "start": start_digest(config.student, digest)}
    return recipe_key({"config": settings, **inputs, "dtype": dtype})


def with_absolute_paths(config: Config) -> Config:
    """Name local models by absolute paths: workers may have another folder."""
    teacher, student = config.teacher, config.student
    if not teacher.model.startswith("pkg://") and (path := resolve_path(teacher.model)) is not None:
        teacher = teacher.model_copy(update={"model": str(path)})
    if student.checkpoint is not None and not student.checkpoint.startswith("pkg://"):
        path = resolve_path(student.checkpoint)
        student = student.model_copy(update={"start": str(path)}) if path is not None else student
    return config.model_copy(update={"teacher": teacher, "student": student})


@dataclass
class Clock:
    """Seconds of the driver's phases, and of the whole."""

    seconds: dict[str, float] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)

    @contextmanager
    def phase(self, name: str, show: Show) -> Iterator[None]:
        show({"phase": name})
        started = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - started, 3)

    def total(self) -> float:
        return round(time.perf_counter() - self.started, 3)


class Models(NamedTuple):
    """Configs of teacher and student, and how many tokens both have positions for; None: any number."""

    teacher: PreTrainedConfig
    student: PreTrainedConfig
    positions: int | None


def check_models(config: Config, source: Path) -> Models:
    """What is known of the models. Raises RaydistillError where they cannot go together, or not read such rows."""
    check_tokenizers(config, source)
    teacher = read_config(source, config.teacher.trust_remote_code)
    if isinstance(config.teacher.finetune, Finetune):
        set_crf(teacher, config.teacher.finetune.head)
    student = student_config(teacher, config.student)
    length, limits = config.data.max_length, []
    for name, shaped in ((config.teacher.model, teacher), (config.student.start, student)):
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


def check_tokenizers(config: Config, teacher: Path) -> None:
    """Refuse a student that starts from a checkpoint with another tokenizer: it would read the teacher's token ids."""
    if config.student.checkpoint is None:
        return
    start = resolve_model(config.student.checkpoint)
    if tokenizer_digest(start) == tokenizer_digest(teacher):
        return
    if load_tokenizer(start).get_vocab() != load_tokenizer(teacher).get_vocab():
        raise ConfigError(
            f"student.start: {config.student.start} has another tokenizer than the teacher {config.teacher.model}. "
            "Start from a checkpoint with the teacher's tokenizer files, from teacher_layers, or from random."
        )
