"""What all trials of a sweep share: teacher, recorded signals, and what each shape weighs and how long it takes."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from transformers import PretrainedConfig

from raydistill.config.tree import Config
from raydistill.errors import ConfigError
from raydistill.evaluate.latency import busy_note, measure_models
from raydistill.models.fields import depth, dropout_fields, intermediate, is_staged, width
from raydistill.models.load import new_model
from raydistill.models.modeling_conv import ConvConfig
from raydistill.models.shape import count_parameters, student_config
from raydistill.models.signals import Signal
from raydistill.pipeline import recipes
from raydistill.pipeline.context import Context
from raydistill.pipeline.job import Job
from raydistill.pipeline.layers import with_layers
from raydistill.pipeline.pooled import PooledRun, driver_context, find_unrecorded
from raydistill.pipeline.recipes import TeacherIdentity
from raydistill.pipeline.stopping import Stop
from raydistill.pipeline.teaching import fit_teacher, record_splits, teacher_mode
from raydistill.pipeline.worker import run_workers
from raydistill.search.front import within
from raydistill.search.ledger import Params
from raydistill.search.proposals import Verdict
from raydistill.search.space import decides_signals, finite_values, sweep_of, with_params
from raydistill.storage.artifacts import Artifact
from raydistill.storage.board import Show
from raydistill.teacher.store import fits

MODELS_AT_ONCE = 8
"""Shapes whose latencies are measured in turn, call by call, so that a busy moment hits all of them alike."""


@dataclass(frozen=True)
class Shape:
    """A student's shape, its size, and the latency of one row, alone on the machine, with untrained weights."""

    name: str
    key: str
    """What it is told apart by, as ``shape_key`` returns it: other families, vocabularies and heads share a name."""
    num_parameters: int
    latency: dict[str, Any] | None = None
    """As ``measure_models`` returns it; None where nothing in the sweep asks for it."""

    @property
    def facts(self) -> dict[str, float]:
        facts = {"num_parameters": float(self.num_parameters)}
        return facts | ({"latency_ms": self.latency["latency_ms"]["p50"]} if self.latency else {})


@dataclass(frozen=True)
class Shared:
    """Made once, before the first trial; picklable, handed to every trial actor."""

    job: Job
    teacher: TeacherIdentity
    signals: dict[Signal, Artifact]
    """Recorded signals of the training rows: the union over the space."""
    shapes: tuple[Shape, ...]
    rows: int
    """Rows the teacher speaks about: those of the training split."""
    seconds: dict[str, float]
    reused: tuple[str, ...]
    notes: tuple[str, ...]


def share(context: Context) -> Shared:
    """Fit the teacher, record the union of the signals, measure the shapes; every rank runs this."""
    teacher = fit_teacher(context)
    with context.report.phase("record"):
        signals = record_splits(context, teacher, shared_signals(context, teacher))["train"]
    with context.report.phase("shapes"):
        shapes = measure_shapes(context, context.read_config(teacher.folder))
    context.report.flush()
    return Shared(
        context.job,
        teacher,
        signals,
        tuple(shapes),
        context.rows["train"].num_rows,
        context.report.seconds,
        tuple(context.report.reused),
        tuple(context.report.notes),
    )


def shared_signals(context: Context, teacher: TeacherIdentity) -> dict[str, frozenset[Signal]]:
    """Which signals of which split are recorded: of the training rows what any trial may need.

    Signals that are too wide to record come from a teacher in each trial, as a pool feeds one student only.
    """
    needs: set[Signal] = set()
    for config in combinations(context.config, decides_signals):
        mode, _, wanted = teacher_mode(context, teacher, with_layers(context, teacher, config))
        needs |= wanted if mode.needs_recording else set()
    held_out = frozenset({context.task.answer_signal})
    return {"train": frozenset(needs), **dict.fromkeys(context.orders("validation"), held_out)}


def save_shared(shared: Shared) -> None:
    """Keep what a resumed sweep need not make again."""
    teacher = shared.teacher.artifact
    content = {
        "teacher": None if teacher is None else teacher.key,
        "members": [one.artifact and one.artifact.key for one in shared.teacher.members],
        "signals": {name: artifact.key for name, artifact in shared.signals.items()},
        "shapes": [asdict(shape) for shape in shared.shapes],
        "rows": shared.rows,
        "seconds": shared.seconds,
        "reused": shared.reused,
        "notes": shared.notes,
    }
    shared.job.storage.write_json(content, *shared.job.run_parts, "shared.json")


def load_shared(job: Job) -> Shared | None:
    """What an earlier session made, where all of it is still in storage, and the signals are whole: what is damaged is
    recorded again with all else that is missing."""
    storage = job.storage
    if not storage.exists(*job.run_parts, "shared.json"):
        return None
    content = storage.read_json(*job.run_parts, "shared.json")
    signals = {name: Artifact(storage, "signals", key) for name, key in content["signals"].items()}
    keys = content.get("members") or [content["teacher"]]
    artifacts = [None if key is None else Artifact(storage, "teacher", key) for key in keys]
    if not all(artifact.exists() for artifact in artifacts if artifact is not None):
        return None
    teacher = recipes.identify_teachers(job.config, artifacts)
    if not all(artifact.exists() and fits(artifact) for artifact in signals.values()):
        return None
    if not all("key" in shape for shape in content["shapes"]):
        return None  # written by a version that told shapes apart by their names
    return Shared(
        job,
        teacher,
        signals,
        tuple(Shape(**shape) for shape in content["shapes"]),
        content["rows"],
        {},  # nothing was computed
        (*content["reused"], "teacher", "signals"),
        tuple(content["notes"]),
    )


class Judge:
    """Rejects what is impossible or breaks a constraint on size or latency, before it costs anything."""

    def __init__(self, config: Config, shared: Shared) -> None:
        self.config, self.constraints = config, sweep_of(config).constraints
        self.teacher = driver_context(shared.job).read_config(shared.teacher.folder)  # as that of the measured shapes
        self.shapes = {shape.key: shape for shape in shared.shapes}

    def __call__(self, params: Params) -> Verdict:
        try:
            student = student_config(self.teacher, with_params(self.config, params).student)
        except ConfigError as error:
            return Verdict(reason=str(error))
        name, key = shape_name(student), shape_key(student)
        shape = self.shapes.get(key) or Shape(name, key, count_parameters(student))
        for measure, bounds in self.constraints.items():
            value = shape.facts.get(measure)
            if value is not None and not within(value, bounds):
                limit = f"above {bounds.max:,g}" if bounds.max is not None and value > bounds.max else "too small"
                return Verdict(shape.facts, f"{measure} {value:,.6g} is {limit} ({name})")
        return Verdict(shape.facts)


def combinations(config: Config, decides: Callable[[str], bool]) -> Iterator[Config]:
    """The config with every combination of the finite settings of the space that ``decides`` picks.

    Impossible combinations are left out: such a trial is rejected.
    """
    space = sweep_of(config).space
    finite = {name: finite_values(values) for name, values in space.items() if decides(name)}
    values = {name: known for name, known in finite.items() if known is not None}
    for combination in itertools.product(*values.values()):
        with suppress(ConfigError):
            yield with_params(config, dict(zip(values, combination, strict=True)))


def shapes_of(config: Config, teacher: PretrainedConfig) -> dict[str, PretrainedConfig]:
    """The shapes that the space can give a student, by their keys; those that cannot be are left out."""
    shapes: dict[str, PretrainedConfig] = {}
    for student in {made.student: None for made in combinations(config, lambda name: name.startswith("student."))}:
        with suppress(ConfigError):  # such a trial is rejected
            shaped = student_config(teacher, student)
            shapes.setdefault(shape_key(shaped), shaped)
    return shapes


def measure_shapes(context: Context, teacher: PretrainedConfig) -> list[Shape]:
    """Size of every shape of the space and, where the sweep asks for it, latency; rank 0 measures, alone."""
    sweep = sweep_of(context.config)
    configs = shapes_of(context.config, teacher)
    shapes = {key: Shape(shape_name(one), key, count_parameters(one)) for key, one in configs.items()}
    if "latency_ms" in {*sweep.objectives, *sweep.constraints} and context.group.is_first:
        bounds = sweep.constraints.get("num_parameters")
        possible = [key for key, shape in shapes.items() if bounds is None or within(shape.num_parameters, bounds)]
        for start in range(0, len(possible), MODELS_AT_ONCE):
            keys = possible[start : start + MODELS_AT_ONCE]
            for key, latency in time_models(context, {key: configs[key] for key in keys}).items():
                shapes[key] = replace(shapes[key], latency=latency)
    return list(context.group.broadcast(list(shapes.values())))


def time_models(context: Context, configs: dict[str, PretrainedConfig]) -> dict[str, dict[str, Any]]:
    """Latency of models of these shapes with random weights, which take as long as trained ones."""
    inputs = context.latency_inputs()
    models = {
        name: new_model(config, seed=0, attn_implementation=context.attention) for name, config in configs.items()
    }
    for model in models.values():
        torch.nn.Module.to(model, context.device.torch_device)
    times = measure_models({name: (model, *inputs) for name, model in models.items()}, dtype=context.device.dtype)
    if busy := busy_note(times.values()):
        context.report.notes.append(busy)
    return times


def shape_name(config: PretrainedConfig) -> str:
    """A shape as a reader knows it."""
    if isinstance(config, ConvConfig):
        return f"{config.num_hidden_layers} conv layers, width {config.hidden_size}, kernel {config.kernel_size}"
    if is_staged(config):
        return f"{config.model_type} of {depth(config)} layers, width {width(config)}"
    return (
        f"{config.model_type} of {config.num_hidden_layers} layers, width {config.hidden_size}, "
        f"{config.num_attention_heads} heads, inner width {intermediate(config)[1]}"
    )


NO_SHAPE = ("_name_or_path", "transformers_version", "dtype", "torch_dtype")
"""Fields of a config that say where it is from, or in what precision, but not what is computed."""


def shape_key(config: PretrainedConfig) -> str:
    """What models of the same size and speed have in common: their whole config, but for dropout and its origin."""
    plain = json.loads(config.to_json_string(use_diff=False))
    without = {*NO_SHAPE, *dropout_fields(config)}
    text = json.dumps({name: value for name, value in plain.items() if name not in without}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def share_with_pool(job: Job, show: Show, stop: Stop) -> Shared:
    """What all trials of a sweep share, the signals recorded by a pool."""

    run = PooledRun(job, show, stop)
    teacher = run.teacher([*combinations(job.config, decides_signals)])
    wanted = find_unrecorded(run.context, teacher, shared_signals(run.context, teacher))
    if wanted:
        with run.pool(teacher, feeds=False) as pool:
            run.record(pool, teacher, wanted)
    return run.completed(run_workers(job, show, stop, share))
