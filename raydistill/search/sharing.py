"""What all trials of a sweep share: teacher, recorded signals, and what each shape weighs and how long it takes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from transformers import PretrainedConfig

from raydistill.config.sweep import may_change
from raydistill.config.tree import Config
from raydistill.errors import ConfigError
from raydistill.evaluate.latency import busy_note, measure_models
from raydistill.models.fields import intermediate
from raydistill.models.load import new_classifier
from raydistill.models.shape import count_parameters, student_config
from raydistill.pipeline import recipes
from raydistill.pipeline.phases import fit_teacher, record_splits, teacher_mode
from raydistill.pipeline.pooled import PooledRun, find_unrecorded
from raydistill.pipeline.recipes import TeacherIdentity
from raydistill.pipeline.stopping import Stop
from raydistill.pipeline.worker import run_workers
from raydistill.pipeline.workplace import Job, Workplace
from raydistill.search.front import within
from raydistill.search.space import finite_values, sweep_of, with_params
from raydistill.storage.artifacts import Artifact
from raydistill.storage.board import Show

MAX_COMBINATIONS = 1000
MODELS_AT_ONCE = 8
"""Shapes whose latencies are measured in turn, call by call, so that a busy moment hits all of them alike."""


@dataclass(frozen=True)
class Shape:
    """A student's shape, its size, and the latency of one row, alone on the machine, with untrained weights."""

    name: str
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
    signals: dict[str, Artifact]
    """Recorded signals of the training rows: the union over the space."""
    shapes: tuple[Shape, ...]
    rows: int
    """Rows the teacher speaks about: those of the training split."""
    seconds: dict[str, float]
    reused: tuple[str, ...]
    notes: tuple[str, ...]


def share(place: Workplace) -> Shared:
    """Fit the teacher, record the union of the signals, measure the shapes; every rank runs this."""
    teacher = fit_teacher(place)
    with place.phase("record"):
        signals = record_splits(place, teacher, shared_signals(place, teacher))["train"]
    with place.phase("shapes"):
        shapes = measure_shapes(place, place.read_config(teacher.folder))
    place.flush()
    return Shared(
        replace(place.job, run=None),
        teacher,
        signals,
        tuple(shapes),
        place.rows["train"].num_rows,
        place.seconds,
        tuple(place.reused),
        tuple(place.notes),
    )


def shared_signals(place: Workplace, teacher: TeacherIdentity) -> dict[str, frozenset[str]]:
    """Which signals of which split are recorded: of the training rows what any trial may need.

    Signals that are too wide to record come from a teacher in each trial, as a pool feeds one student only.
    """
    needs: set[str] = set()
    for config in signal_configs(place.config):
        mode, _, wanted = teacher_mode(place, teacher, config)
        needs |= wanted if mode == "cached" else set()
    return {"train": frozenset(needs), "validation": frozenset({"logits"})}


def save_shared(shared: Shared) -> None:
    """Keep what a resumed sweep need not make again."""
    teacher = shared.teacher.artifact
    content = {
        "teacher": None if teacher is None else teacher.key,
        "signals": {name: artifact.key for name, artifact in shared.signals.items()},
        "shapes": [asdict(shape) for shape in shared.shapes],
        "rows": shared.rows,
        "seconds": shared.seconds,
        "reused": shared.reused,
        "notes": shared.notes,
    }
    shared.job.storage.write_json(content, *shared.job.run_parts, "shared.json")


def load_shared(job: Job) -> Shared | None:
    """What an earlier session made, where all of it is still in storage."""
    storage = job.storage
    if not storage.exists(*job.run_parts, "shared.json"):
        return None
    content = storage.read_json(*job.run_parts, "shared.json")
    signals = {name: Artifact(storage, "signals", key) for name, key in content["signals"].items()}
    artifact = None if content["teacher"] is None else Artifact(storage, "teacher", content["teacher"])
    if artifact is not None and not artifact.exists():
        return None
    teacher = recipes.identify_teacher(job.config.teacher, artifact)
    if not all(artifact.exists() for artifact in signals.values()):
        return None
    return Shared(
        replace(job, run=None),
        teacher,
        signals,
        tuple(Shape(**shape) for shape in content["shapes"]),
        content["rows"],
        {},  # nothing was computed
        (*content["reused"], "teacher", "signals"),
        tuple(content["notes"]),
    )


def signal_configs(config: Config) -> Iterator[Config]:
    """The config with every combination of the settings that decide which signals are needed.

    Those are shapes, kinds of losses and their layers; weights, temperatures and rates stay the config's own.
    """
    return combinations(config, lambda name: not may_change(name) and not name.startswith("train."))


def combinations(config: Config, decides: Callable[[str], bool]) -> Iterator[Config]:
    """The config with every combination of the finite settings of the space that ``decides`` picks.

    Impossible combinations are left out: such a trial is rejected. Raises ConfigError where there are too many.
    """
    space = sweep_of(config).space
    finite = {name: finite_values(values) for name, values in space.items() if decides(name)}
    values = {name: known for name, known in finite.items() if known is not None}
    if (count := math.prod(map(len, values.values()))) > MAX_COMBINATIONS:
        raise ConfigError(
            f"sweep.space: {', '.join(values)} have {count:,} combinations; each may need its own teacher outputs "
            f"or latency; {MAX_COMBINATIONS:,} are possible. Write fewer choices or narrower ranges of whole numbers."
        )
    for combination in itertools.product(*values.values()):
        with suppress(ConfigError):
            yield with_params(config, dict(zip(values, combination, strict=True)))


def shapes_of(config: Config, teacher: PretrainedConfig) -> dict[str, PretrainedConfig]:
    """The shapes that the space can give a student, by their names; those that cannot be are left out."""
    shapes: dict[str, PretrainedConfig] = {}
    for student in {made.student: None for made in combinations(config, lambda name: name.startswith("student."))}:
        with suppress(ConfigError):  # such a trial is rejected
            shaped = student_config(teacher, student)
            shapes.setdefault(shape_name(shaped), shaped)
    return shapes


def measure_shapes(place: Workplace, teacher: PretrainedConfig) -> list[Shape]:
    """Size of every shape of the space and, where the sweep asks for it, latency; rank 0 measures, alone."""
    sweep = sweep_of(place.config)
    configs = shapes_of(place.config, teacher)
    shapes = {name: Shape(name, count_parameters(shaped)) for name, shaped in configs.items()}
    if "latency_ms" in {*sweep.objectives, *sweep.constraints} and place.group.is_first:
        bounds = sweep.constraints.get("num_parameters")
        possible = [name for name, shape in shapes.items() if bounds is None or within(shape.num_parameters, bounds)]
        for start in range(0, len(possible), MODELS_AT_ONCE):
            names = possible[start : start + MODELS_AT_ONCE]
            for name, latency in time_models(place, {name: configs[name] for name in names}).items():
                shapes[name] = replace(shapes[name], latency=latency)
    return list(place.group.broadcast(list(shapes.values())))


def time_models(place: Workplace, configs: dict[str, PretrainedConfig]) -> dict[str, dict[str, Any]]:
    """Latency of models of these shapes with random weights, which take as long as trained ones."""
    inputs = place.latency_inputs()
    models = {
        name: new_classifier(config, seed=0, attn_implementation=place.attention) for name, config in configs.items()
    }
    for model in models.values():
        torch.nn.Module.to(model, place.device.torch_device)
    times = measure_models({name: (model, *inputs) for name, model in models.items()}, dtype=place.device.dtype)
    if busy := busy_note(times.values()):
        place.notes.append(busy)
    return times


def shape_name(config: PretrainedConfig) -> str:
    """A name that models of the same size and speed have in common."""
    inner = intermediate(config)[1]
    return (
        f"{config.num_hidden_layers} layers, width {config.hidden_size}, {config.num_attention_heads} heads, "
        f"inner width {inner}"
    )


def share_with_pool(job: Job, show: Show, stop: Stop) -> Shared:
    """What all trials of a sweep share, the signals recorded by a pool."""

    run = PooledRun(job, show, stop)
    teacher = run.teacher()
    wanted = find_unrecorded(run.place, teacher, shared_signals(run.place, teacher))
    if wanted:
        with run.pool(teacher, feeds=False) as pool:
            run.record(pool, teacher, wanted)
    return run.completed(run_workers(job, show, stop, share))
