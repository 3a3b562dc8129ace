"""The whole config tree: frozen, strict data. Variants are unions on ``type``; a dotted name is the YAML path,
the ``--set`` override, the sweep key and the MLflow parameter."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from raydistill.search.config import Bounds, Distribution, Sweep
from raydistill.section import MODEL_NAME_PATTERN, NAME_PATTERN, Mistake, Name, Section

__all__ = ["MODEL_NAME_PATTERN", "NAME_PATTERN", "Bounds", "Config", "Distribution", "Section", "Sweep"]


class Columns(Section):
    """Which columns of the source hold what; unset ones are recognised by their usual names."""

    text: str | None = None
    """Column of the (first) text; recognised names: text, sentence, sentence1, review, content, premise, question."""
    text_pair: str | None = None
    """Column of the second text of a pair."""
    label: str | None = None
    """Column of the label, string or integer; recognised names: label, labels, class, category, target."""

    def mistakes(self) -> list[Mistake]:
        found: list[Mistake] = []
        if self.text_pair is not None and self.text is None:
            text = f"is missing: with text_pair ({self.text_pair!r}) the first text's column is needed too."
            found.append((("text",), text))
        named = [name for name in (self.text, self.text_pair, self.label) if name is not None]
        if len(named) != len(set(named)):
            found.append(((), f"one column has two roles ({', '.join(named)}); name a column once."))
        return found


class Split(Section):
    """Share of the rows that are held out where the source has no such split of its own."""

    validation: float = Field(default=0.1, gt=0, lt=1)
    """Rows that pick the best epoch."""
    test: float = Field(default=0.1, gt=0, lt=1)
    """Rows that only the results look at."""

    def mistakes(self) -> list[Mistake]:
        held = self.validation + self.test
        return [((), f"validation and test take {held:g} of the rows; leave some for training.")] if held >= 1 else []


class Data(Section):
    """The texts and their labels."""

    path: str = Field(min_length=1)
    """A file, a folder, ``pkg://package/path`` or the name of a data set on the Hugging Face hub."""
    format: Literal["auto", "text_folder", "parquet", "csv", "jsonl", "datasets", "hub"] = "auto"
    """``text_folder``: a folder a class, a text file a document. ``datasets``: a folder written by ``save_to_disk``."""
    revision: str | None = None
    """Commit, tag or branch of a hub data set."""
    columns: Columns = Columns()
    max_length: int = Field(default=128, ge=4)
    """Tokens a row is cut to."""
    max_labeled: int | None = Field(default=None, ge=2)
    """Keep the labels of this many training rows, stratified by class, and treat the rest as unlabelled."""
    unlabeled: str | None = None
    """Another file or folder whose texts join the distillation without labels."""
    split: Split = Split()


class TextClassification(Section):
    """One class a row."""

    type: Literal["text_classification"] = "text_classification"
    labels: tuple[str, ...] | None = None
    """Class names in the order of the logits; by default taken from the data, sorted."""

    def mistakes(self) -> list[Mistake]:
        if self.labels is None:
            return []
        if len(self.labels) < 2:
            return [(("labels",), f"needs two classes or more, got {len(self.labels)}.")]
        twice = sorted({label for label in self.labels if self.labels.count(label) > 1})
        return [(("labels",), f"names {', '.join(map(repr, twice))} twice.")] if twice else []


Task = TextClassification

Metric = Literal["accuracy", "macro_f1", "mcc", "log_loss"]

LayerChoice = Literal["auto", "uniform", "last", "first"]


class LossSection(Section):
    """One term of the student's loss."""

    weight: float = Field(default=1.0, ge=0)
    """Factor of this term in the sum of all losses; 0 switches its gradient off."""


class TaskLoss(LossSection):
    """The task's own loss on labelled rows."""

    type: Literal["task"] = "task"


class ForwardKl(LossSection):
    """Soft targets: T² · KL(teacher ‖ student)."""

    type: Literal["forward_kl"] = "forward_kl"
    temperature: float = Field(default=2.0, gt=0)
    """T, by which the logits of both are divided: the higher, the more the less likely classes count."""


class LogitMse(LossSection):
    """Mean squared difference of the logits."""

    type: Literal["logit_mse"] = "logit_mse"


class HiddenMse(LossSection):
    """Mean squared difference of hidden states of mapped layers, over real tokens."""

    type: Literal["hidden_mse"] = "hidden_mse"
    layers: LayerChoice | tuple[tuple[int, int], ...] = "auto"
    """Layer map, or pairs [student layer, teacher layer]; 0 is the embeddings, i the output of layer i."""


class HiddenCosine(LossSection):
    """1 - cosine of hidden states of mapped layers, over real tokens."""

    type: Literal["hidden_cosine"] = "hidden_cosine"
    layers: LayerChoice | tuple[tuple[int, int], ...] = "last"
    """Layer map, or pairs [student layer, teacher layer]; 0 is the embeddings, i the output of layer i."""


Loss = Annotated[TaskLoss | ForwardKl | LogitMse | HiddenMse | HiddenCosine, Field(discriminator="type")]


class Optimization(Section):
    """Length and optimizer settings of one stage of training."""

    num_epochs: float = Field(default=3, gt=0)
    """Passes over the training rows; 0.5 is half of one."""
    learning_rate: float = Field(default=5e-5, gt=0)
    """AdamW's, where the warm-up ends."""
    weight_decay: float = Field(default=0.01, ge=0)
    """AdamW's, of all weights but biases and norms."""
    warmup_ratio: float = Field(default=0.1, ge=0, le=1)
    """Share of the steps over which the learning rate rises from 0."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rate falls after the warm-up."""
    freeze: tuple[str, ...] = ()
    """Glob patterns of parameter names that are not trained, for example ``*embeddings*``."""


class Change(Section):
    """New values of a stage's settings from a step on."""

    step: int = Field(ge=1)
    """Optimizer steps of the stage after which the new values hold."""
    set: dict[str, float] = Field(min_length=1)
    """learning_rate, weight_decay, losses.<name>.weight, losses.<name>.temperature: new value."""


class Stage(Optimization):
    """One stage of the student's training: its losses, length and optimizer settings."""

    losses: dict[Name, Loss] = Field(min_length=1)
    """Named loss terms; the name is the metric key ``train/loss/<name>``."""
    changes: tuple[Change, ...] = ()
    """Settings that take other values on the way, by rising step: the schedule that a ``pbt`` sweep found."""

    def mistakes(self) -> list[Mistake]:
        silent = all(loss.weight == 0 for loss in self.losses.values())
        found: list[Mistake] = [(("losses",), "every weight is 0, so nothing would be learned.")] if silent else []
        steps = [change.step for change in self.changes]
        if steps != sorted(set(steps)):
            found.append((("changes",), f"steps must rise, got {', '.join(map(str, steps))}."))
        settings = {"learning_rate", "weight_decay"} | {
            f"losses.{name}.{setting}"
            for name, loss in self.losses.items()
            for setting in ("weight", "temperature")
            if hasattr(loss, setting)
        }
        for name in sorted({name for change in self.changes for name in change.set} - settings):
            text = f"{name} cannot change on the way; what can: {', '.join(sorted(settings))}."
            found.append((("changes",), text))
        for change in self.changes:
            for name, value in change.set.items():
                least = name.rpartition(".")[2]
                if value < 0 or (value == 0 and least in ("learning_rate", "temperature")):
                    text = f"{name} becomes {value:g} at step {change.step}; it must be positive."
                    found.append((("changes",), text))
        return found


class Finetune(Optimization):
    """Training of the teacher on the labelled rows."""

    metric: Metric = "log_loss"
    """Validation metric that picks the teacher's best epoch. Its probabilities are what a student learns, and at equal
    accuracy an early epoch's near-uniform ones teach little."""


Resources = dict[str, Annotated[float, Field(ge=0)]]


class Pool(Section):
    """Teachers in actors of their own, on other devices and nodes than the training workers. They may come and go."""

    min: int = Field(default=1, ge=1)
    """Work begins when so many teachers are there; later it goes on with one."""
    max: int = Field(default=1, ge=1)
    """So many are asked for; an autoscaler brings nodes for them."""
    resources: Resources | None = None
    """What each teacher asks for, for example {GPU: 0.5}; by default one GPU where the cluster has some, else a CPU.
    Where there are nodes with the resource ``teacher``, teachers are placed on those."""
    accelerator_type: str | None = Field(default=None, min_length=1)
    """A kind of GPU by Ray's name, for example L4."""
    max_ahead_bytes: int = Field(default=64 * 2**20, ge=0)
    """Outputs that teachers may have ready for each training worker; beyond that they wait for the student."""

    def mistakes(self) -> list[Mistake]:
        return [(("min",), f"{self.min} is above max ({self.max}).")] if self.min > self.max else []


class ModelTeacher(Section):
    """A classifier, or an encoder that is fine-tuned first, and how its outputs reach the student."""

    type: Literal["model"] = "model"
    model: str = Field(min_length=1)
    """A folder, ``pkg://package/path`` or a hub name: a fine-tuned classifier, or a plain encoder with ``finetune``."""
    revision: str | None = None
    """Commit, tag or branch of a hub model."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Only for models whose code you have read; the student has it, too."""
    finetune: Finetune | None = None
    """Fine-tune the model on the labelled rows first; the best epoch by validation is kept."""
    allow_chance: bool = False
    """Go on with a teacher that is no better than chance on the validation rows, instead of ending the run."""
    mode: Literal["auto", "cached", "online", "pool"] = "auto"
    """``cached``: record its outputs once; ``online``: run it beside the student; ``pool``: teacher actors compute
    ahead of it; ``auto``: by ``max_cache_bytes``."""
    pool: Pool | None = None
    """Teacher actors: they record (``cached``) or compute ahead of the student (``pool``)."""
    max_cache_bytes: int = Field(default=20_000_000_000, ge=0)
    """Up to this size ``auto`` records outputs that are wider than logits."""


Teacher = ModelTeacher


class Student(Section):
    """Shape and start of the student; what is not set is as in the teacher."""

    num_layers: int | None = Field(default=None, ge=1)
    """Transformer layers. None: as many as the teacher."""
    hidden_size: int | None = Field(default=None, ge=1)
    """Width of the hidden states, a multiple of ``num_heads``. None: the teacher's."""
    num_heads: int | None = Field(default=None, ge=1)
    """Attention heads. None: the teacher's, or as many as keep their width in a narrower student."""
    intermediate_size: int | None = Field(default=None, ge=1)
    """Width inside the feed-forward blocks. None: in proportion to ``hidden_size``."""
    start: str = Field(default="teacher_layers", min_length=1)
    """``teacher_layers`` (copied, or sliced where the student is narrower), ``random``, or a checkpoint."""
    teacher_layers: tuple[int, ...] | Literal["auto"] = "auto"
    """Which of the teacher's layers (from 0) the student starts from."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout everywhere in the student; 0 by default, as the teacher's targets regularise."""

    def mistakes(self) -> list[Mistake]:
        found: list[Mistake] = []
        width, heads, layers = self.hidden_size, self.num_heads, self.teacher_layers
        if width and heads and width % heads:
            found.append((("hidden_size",), f"{width} is not divisible by num_heads ({heads}); change one of them."))
        if layers == "auto":
            return found
        place = ("teacher_layers",)
        if not layers:
            found.append((place, "names no layer; write a list such as [0, 2], or auto."))
        if any(layer < 0 for layer in layers):
            found.append((place, f"layers count from 0, got {min(layers)}."))
        if layers and self.num_layers is not None and len(layers) != self.num_layers:
            text = f"names {len(layers)} layers, but student.num_layers is {self.num_layers}; they must agree."
            found.append((place, text))
        if self.start != "teacher_layers":
            found.append((place, f"has no effect with start: {self.start}; remove one of the two."))
        return found


class Train(Section):
    """How training runs: workers, batches, checkpoints."""

    num_workers: int = Field(default=1, ge=0)
    """Ray Train workers; 0 runs everything in the calling process without Ray."""
    min_workers: int | None = Field(default=None, ge=1)
    """Elastic training: begin, or go on, with so many workers while the cluster has no room for ``num_workers``."""
    resources_per_worker: Resources | None = None
    """For example {CPU: 4, GPU: 1}; by default one GPU where the cluster has some, else an even share of the CPUs."""
    accelerator_type: str | None = Field(default=None, min_length=1)
    """A kind of GPU by Ray's name, for example A100."""
    max_wait_minutes: float = Field(default=60, ge=0)
    """So long a run waits while the cluster has no room for the least of its workers, or its teachers."""
    max_failures: int = Field(default=3, ge=0)
    """How often a worker group that lost a worker is started again."""
    global_batch_size: int = Field(default=32, ge=1)
    """Rows an optimizer step sees, over all workers."""
    tokens_per_micro_batch: int = Field(default=8192, ge=1)
    """Tokens (padding included) of one forward pass on one worker; changes speed and memory, not the result."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute dtype of teacher and student; ``auto``: bfloat16 where the device is fast at it."""
    checkpoint_steps: int = Field(default=100, ge=1)
    """Steps between two checkpoints: at most so many are repeated after a crash."""
    early_stopping: int | None = Field(default=None, ge=1)
    """Stop after this many validations without a better score; there is one an epoch, or for several of few steps."""
    max_grad_norm: float | None = Field(default=1.0, gt=0)
    """Gradients with a larger norm are scaled down to it. None: never."""
    seed: int | None = Field(default=None, ge=0, lt=2**31)
    """Seed of student and baseline: order of the rows, dropout, random starts. None: that of the config. With another
    one data and teacher stay what they are."""

    def mistakes(self) -> list[Mistake]:
        if self.min_workers is None or self.min_workers <= self.num_workers:
            return []
        return [(("min_workers",), f"{self.min_workers} is above num_workers ({self.num_workers}).")]


class Baseline(Section):
    """The same student trained without a teacher."""

    start: Literal["same", "pretrained"] = "same"
    """``same``: cut from the fine-tuned teacher like the student; ``pretrained``: from the encoder before that."""


class Evaluate(Section):
    """What is measured of the student and its rivals."""

    baseline: bool | Baseline = False
    """Also train the student without a teacher: labels only, the same number of steps."""
    metric: Metric = "accuracy"
    """Validation metric that picks the best epoch."""
    bootstrap_samples: int = Field(default=1000, ge=100)
    """Resamples of the test rows behind each 95 % interval."""
    latency: bool = True
    """Measure latency and throughput of teacher and student."""


class Registry(Section):
    """MLflow's model registry."""

    name: str | None = Field(default=None, pattern=MODEL_NAME_PATTERN, max_length=200)
    """Registered model that the student becomes a version of; none: the student is not registered."""
    challenger: bool = False
    """Give the new version the alias ``challenger`` also where it only guesses or is worse than the one that has it."""


class Tracking(Section):
    """How the run appears in MLflow."""

    experiment: str = Field(default="raydistill", min_length=1, max_length=200)
    """MLflow experiment that the run belongs to."""
    run_name: str | None = None
    """Name of the run; by default it says what the run is: ``mood 2 layers kd+task``."""
    tags: dict[str, str] = Field(default={})
    """Tags of the run, to find it by."""
    system_metrics: bool = True
    """Also log the load of CPUs, memory, disk and GPUs."""


class Config(Section):
    """One distillation, from data to registered student."""

    storage: str = Field(default="raydistill-storage", min_length=1)
    """Folder or URL (s3://, gs://) for everything that is computed."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Of everything that is drawn: splits, order of the rows, random starts."""
    data: Data
    task: Task = TextClassification()
    teacher: Teacher
    student: Student = Student()
    stages: dict[Name, Stage] = Field(min_length=1)
    """Training stages of the student, in order."""
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    registry: Registry = Registry()
    tracking: Tracking = Tracking()
    sweep: Sweep | None = None
    """The search that ``raydistill sweep`` does; ``distill`` runs the config as it stands without it."""

    def mistakes(self) -> list[Mistake]:
        return [*check_layer_maps(self), *check_baseline(self), *check_exchange(self), *check_teachers(self)]


def check_layer_maps(config: Config) -> list[Mistake]:
    """Layer pairs written by hand that a student of this depth does not have."""
    mistakes: list[Mistake] = []
    depth = config.student.num_layers
    for stage_name, stage in config.stages.items():
        for loss_name, loss in stage.losses.items():
            if loss.type not in ("hidden_mse", "hidden_cosine") or isinstance(loss.layers, str):
                continue
            place = ("stages", stage_name, "losses", loss_name, "layers")
            if not loss.layers:
                mistakes.append((place, "names no pair; write [[student, teacher], ...] or a layer map such as auto."))
            for pair in loss.layers:
                if min(pair) < 0:
                    mistakes.append((place, f"the pair {list(pair)} is negative; layers count from 0, the embeddings."))
                elif depth is not None and pair[0] > depth:
                    text = f"the pair {list(pair)} names student layer {pair[0]}, but student.num_layers is {depth}."
                    mistakes.append((place, text))
    return mistakes


def check_baseline(config: Config) -> list[Mistake]:
    """A baseline that could not differ from the student, or has no start."""
    baseline = config.evaluate.baseline
    if not baseline:
        return []
    mistakes: list[Mistake] = []
    losses = [loss for stage in config.stages.values() for loss in stage.losses.values()]
    if all(loss.type == "task" for loss in losses):
        text = "needs a stage with a teacher loss: this student learns from labels only and is its own baseline."
        mistakes.append((("evaluate", "baseline"), text))
    if baseline is not True and baseline.start == "pretrained" and config.teacher.finetune is None:
        text = "pretrained is the encoder before teacher.finetune, which is not set; write same."
        mistakes.append((("evaluate", "baseline", "start"), text))
    return mistakes


def check_exchange(config: Config) -> list[Mistake]:
    """What pbt, which changes settings on the way, needs of the rest of the config."""
    if config.sweep is None or config.sweep.scheduler != "pbt":
        return []
    mistakes: list[Mistake] = []
    place = ("sweep", "scheduler")
    if len(config.stages) > 1:
        mistakes.append((place, "pbt needs a single stage; search a later stage with the earlier ones fixed."))
    if config.train.num_workers > 1:
        mistakes.append((place, "pbt needs train.num_workers: 1, as trials take over each other's checkpoints."))
    return mistakes


def check_teachers(config: Config) -> list[Mistake]:
    """Teachers in actors of their own need Ray."""
    teacher = config.teacher
    name = "pool" if teacher.pool is not None else "mode"
    if config.train.num_workers > 0 or (teacher.pool is None and teacher.mode != "pool"):
        return []
    text = "teacher actors need Ray, and train.num_workers: 0 works without; set it to 1 or more, or remove this."
    return [(("teacher", name), text)]
