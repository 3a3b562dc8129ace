"""Rules that span several fields of the config; each names the place below its section and the way out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic_core import PydanticCustomError

if TYPE_CHECKING:
    from raydistill.config import Columns, Config, Split, Stage, Student, TextClassification

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
    return [(("losses",), "every weight is 0, so nothing would be learned.")] if silent else []


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


def check_config(config: Config) -> list[Mistake]:
    return [*check_layer_maps(config), *check_baseline(config)]


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
