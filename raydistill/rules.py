"""Rules that span several fields of the config; each names the place below its section and the way out."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from pydantic_core import PydanticCustomError

if TYPE_CHECKING:
    from raydistill.config import (
        Bounds,
        Columns,
        Config,
        Distribution,
        Pool,
        Split,
        Stage,
        Student,
        Sweep,
        TextClassification,
        Train,
    )

Mistake = tuple[tuple[str, ...], str]
"""Names below the section that checks, and what is wrong there."""


def refuse(mistakes: list[Mistake]) -> None:
    """Raise one validation error that carries every mistake, if there are any."""
    if mistakes:
        text = "; ".join(f"{'.'.join(path)}: {reason}" for path, reason in mistakes)
        raise PydanticCustomError("cross_field", "{text}", {"text": text, "problems": mistakes})


def check_columns(columns: Columns) -> list[Mistake]:
    mistakes: list[Mistake] = []
    if columns.text_pair is not None and columns.text is None:
        text = f"is missing: with text_pair ({columns.text_pair!r}) the first text's column is needed too."
        mistakes.append((("text",), text))
    named = [name for name in (columns.text, columns.text_pair, columns.label) if name is not None]
    if len(named) != len(set(named)):
        mistakes.append(((), f"one column has two roles ({', '.join(named)}); name a column once."))
    return mistakes


def check_split(split: Split) -> list[Mistake]:
    held = split.validation + split.test
    return [((), f"validation and test take {held:g} of the rows; leave some for training.")] if held >= 1 else []


def check_labels(task: TextClassification) -> list[Mistake]:
    if task.labels is None:
        return []
    if len(task.labels) < 2:
        return [(("labels",), f"needs two classes or more, got {len(task.labels)}.")]
    twice = sorted({label for label in task.labels if task.labels.count(label) > 1})
    return [(("labels",), f"names {', '.join(map(repr, twice))} twice.")] if twice else []


def check_stage(stage: Stage) -> list[Mistake]:
    silent = all(loss.weight == 0 for loss in stage.losses.values())
    mistakes: list[Mistake] = [(("losses",), "every weight is 0, so nothing would be learned.")] if silent else []
    steps = [change.step for change in stage.changes]
    if steps != sorted(set(steps)):
        mistakes.append((("changes",), f"steps must rise, got {', '.join(map(str, steps))}."))
    settings = {"learning_rate", "weight_decay"} | {
        f"losses.{name}.{setting}"
        for name, loss in stage.losses.items()
        for setting in ("weight", "temperature")
        if hasattr(loss, setting)
    }
    for name in sorted({name for change in stage.changes for name in change.set} - settings):
        mistakes.append((("changes",), f"{name} cannot change on the way; what can: {', '.join(sorted(settings))}."))
    for change in stage.changes:
        for name, value in change.set.items():
            least = name.rpartition(".")[2]
            if value < 0 or (value == 0 and least in ("learning_rate", "temperature")):
                mistakes.append((("changes",), f"{name} becomes {value:g} at step {change.step}; it must be positive."))
    return mistakes


def check_student(student: Student) -> list[Mistake]:
    mistakes: list[Mistake] = []
    width, heads, layers = student.hidden_size, student.num_heads, student.teacher_layers
    if width and heads and width % heads:
        mistakes.append((("hidden_size",), f"{width} is not divisible by num_heads ({heads}); change one of them."))
    if layers == "auto":
        return mistakes
    place = ("teacher_layers",)
    if not layers:
        mistakes.append((place, "names no layer; write a list such as [0, 2], or auto."))
    if any(layer < 0 for layer in layers):
        mistakes.append((place, f"layers count from 0, got {min(layers)}."))
    if layers and student.num_layers is not None and len(layers) != student.num_layers:
        text = f"names {len(layers)} layers, but student.num_layers is {student.num_layers}; they must agree."
        mistakes.append((place, text))
    if student.start != "teacher_layers":
        mistakes.append((place, f"has no effect with start: {student.start}; remove one of the two."))
    return mistakes


def check_pool(pool: Pool) -> list[Mistake]:
    return [(("min",), f"{pool.min} is above max ({pool.max}).")] if pool.min > pool.max else []


def check_train(train: Train) -> list[Mistake]:
    if train.min_workers is None or train.min_workers <= train.num_workers:
        return []
    return [(("min_workers",), f"{train.min_workers} is above num_workers ({train.num_workers}).")]


def check_config(config: Config) -> list[Mistake]:
    return [*check_layer_maps(config), *check_baseline(config), *check_exchange(config), *check_teachers(config)]


def check_teachers(config: Config) -> list[Mistake]:
    """Teachers in actors of their own need Ray."""
    teacher = config.teacher
    name = "pool" if teacher.pool is not None else "mode"
    if config.train.num_workers > 0 or (teacher.pool is None and teacher.mode != "pool"):
        return []
    text = "teacher actors need Ray, and train.num_workers: 0 works without; set it to 1 or more, or remove this."
    return [(("teacher", name), text)]


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


MEASURES = (
    *("validation/accuracy", "validation/macro_f1", "validation/mcc", "validation/log_loss"),
    *("num_parameters", "latency_ms"),
)
"""What a sweep may look at: metrics on validation rows at the best epoch, and what is known of a shape untrained."""
LOWER_IS_BETTER = ("validation/log_loss", "num_parameters", "latency_ms")


def check_distribution(values: Distribution) -> list[Mistake]:
    given = values.model_dump(exclude_none=True)
    if len(given) != 1:
        text = f"names {', '.join(given) or 'nothing'}; write one of {', '.join(type(values).model_fields)}."
        return [((), text)]
    (name, content) = next(iter(given.items()))
    if name == "choice":
        texts = [json.dumps(value, sort_keys=True, default=str) for value in content]
        twice = sorted({text for text in texts if texts.count(text) > 1})
        return [(("choice",), f"names {', '.join(twice)} twice.")] if twice else []
    low, high = content
    if low >= high:
        return [((name,), f"runs from {low:g} to {high:g}; write [low, high] with low below high.")]
    if name == "loguniform" and low <= 0:
        return [((name,), f"begins at {low:g}; a logarithmic range begins above 0.")]
    return []


def check_bounds(bounds: Bounds) -> list[Mistake]:
    if bounds.min is None and bounds.max is None:
        return [((), "bounds nothing; write {max: ...}, {min: ...} or both.")]
    if bounds.min is not None and bounds.max is not None and bounds.min > bounds.max:
        return [((), f"min {bounds.min:g} is above max {bounds.max:g}.")]
    return []


def check_sweep(sweep: Sweep) -> list[Mistake]:
    """Directions, and what search and scheduler can do with this space."""
    mistakes: list[Mistake] = []
    for place in ("objectives", "constraints"):
        for name in getattr(sweep, place):
            if name not in MEASURES:
                mistakes.append(((place, name), f"is not measured. Known: {', '.join(MEASURES)}."))
    for name, direction in sweep.objectives.items():
        right = "min" if name in LOWER_IS_BETTER else "max"
        if direction != right:
            mistakes.append((("objectives", name), f"{direction} would look for the worst; write {right}."))
    if not any(name.startswith("validation/") for name in sweep.objectives):
        mistakes.append((("objectives",), "names no validation metric; without one nothing needs to be trained."))
    if sweep.search == "grid":
        for name, values in sweep.space.items():
            if values.choice is None and values.integer is None:
                mistakes.append((("space", name), "is a range, which has no grid; write choice or integer."))
    if sweep.scheduler == "pbt":
        mistakes += [
            (("space", name), "changes what is trained, and pbt changes settings while it trains; search without pbt.")
            for name in sweep.space
            if not may_change(name)
        ]
    return mistakes


def may_change(name: str) -> bool:
    """Whether a setting can take another value while a student trains: weights and temperatures of losses, rates."""
    last = name.rpartition(".")[2]
    return name.startswith("stages.") and last in ("weight", "temperature", "learning_rate", "weight_decay")
