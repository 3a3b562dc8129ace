"""What a config leaves to be chosen (``auto``): one place, from the models and the data, each choice with its reason.

Nothing that a sweep may change is looked at, so that a trial's settings give ``distill`` the same student.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import ceil
from typing import Any

from raydistill.config.loading import load_config
from raydistill.config.syntax import as_yaml
from raydistill.config.tree import Config
from raydistill.pipeline.recipes import teacher_speaks

TEACHER_STEPS, STUDENT_STEPS = 150, 300
"""Fewer optimizer steps leave a teacher near chance, and a student short of it."""
FEWEST_EPOCHS, MOST_TEACHER_EPOCHS, MOST_STUDENT_EPOCHS = 3, 30, 20
FEWEST_TOKENS, MULTIPLE = 16, 8
RATES = ((768, 1e-4), (1024, 5e-5))
"""Learning rate of an encoder narrower than so many hidden units."""
LOWEST_RATE = 2e-5


@dataclass(frozen=True)
class Facts:
    """What choices are made from."""

    has_head: bool
    """Whether the teacher has a trained head."""
    width: int
    """Of the teacher's hidden states."""
    teacher_layers: int
    student_layers: int
    num_rows: int
    """Of the training split, as the next."""
    num_labeled: int
    num_tokens: int
    """Tokens that 99 % of the training rows need."""
    limit: int
    """Tokens that the models and the tokenizer take at most."""
    metric: tuple[str, str] | None = None
    """What should pick the best epoch where the task's first metric says little of these rows, and why."""


@dataclass(frozen=True)
class Choice:
    """A setting by its dotted name, the value that was chosen, and why, in words that follow it."""

    name: str
    value: Any
    why: str


def choose(config: Config, facts: Facts) -> tuple[Config, list[Choice]]:
    """The config without ``auto``, and what was chosen. Raises ConfigError where that does not go together."""
    found: list[Choice] = []
    if config.data.max_length == "auto":
        found.append(length_choice(facts))
    tuning: Any = config.teacher.finetune
    if tuning == "auto":
        tuning = None if facts.has_head else {}
        why = "it has a trained head" if facts.has_head else "it has no trained head"
        found.append(Choice("teacher.finetune", tuning, why))
    if config.student.num_layers == "auto":
        found.append(Choice("student.num_layers", facts.student_layers, f"the teacher has {facts.teacher_layers}"))
    if config.evaluate.metric is None and facts.metric is not None:
        found.append(Choice("evaluate.metric", *facts.metric))
    batch = config.train.global_batch_size
    if tuning is not None:
        rows, most = facts.num_labeled, MOST_TEACHER_EPOCHS
        found += training_choices("teacher.finetune", tuning, facts, rows, batch, TEACHER_STEPS, most)
    for name, stage in config.stages.items():
        rows, most = facts.num_rows if teacher_speaks(stage) else facts.num_labeled, MOST_STUDENT_EPOCHS
        found += training_choices(f"stages.{name}", stage, facts, rows, batch, STUDENT_STEPS, most)
    return load_config(config, [f"{choice.name}={json.dumps(choice.value)}" for choice in found]), found


def length_choice(facts: Facts) -> Choice:
    wanted = max(FEWEST_TOKENS, MULTIPLE * ceil(facts.num_tokens / MULTIPLE))
    if wanted <= facts.limit:
        return Choice("data.max_length", wanted, "99 % of the texts stay whole")
    return Choice("data.max_length", facts.limit, "the models take no more, longer texts lose their end")


def training_choices(
    section: str, settings: Any, facts: Facts, num_rows: int, batch: int, num_steps: int, most: int
) -> list[Choice]:
    """Length and learning rate of the teacher's fine-tuning or of a stage; ``settings`` {}: nothing is set."""
    found = []
    if getattr(settings, "num_epochs", "auto") == "auto":
        each = ceil(max(num_rows, 1) / batch)
        epochs = min(max(FEWEST_EPOCHS, ceil(num_steps / each)), most)
        found.append(Choice(f"{section}.num_epochs", epochs, f"{epochs * each:,} steps over {num_rows:,} rows"))
    if getattr(settings, "learning_rate", "auto") == "auto":
        rate = next((rate for width, rate in RATES if facts.width < width), LOWEST_RATE)
        found.append(Choice(f"{section}.learning_rate", rate, f"the teacher's width is {facts.width}"))
    return found


def told(choices: list[Choice]) -> list[str]:
    """A note on what was chosen, or none."""
    values = [f"{c.name} {as_yaml(c.value)} ({c.why})" for c in choices if isinstance(c.value, int | float | str)]
    return [f"Chosen, as the config leaves it open: {', '.join(values)}."] if values else []
