"""What a config leaves to be chosen (``auto``): one place, from the models and the data, each choice with its reason.

Nothing that a sweep may change is looked at, so that a trial's settings give ``distill`` the same student.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

from raydistill.config.loading import load_config
from raydistill.config.losses import Kind
from raydistill.config.sweep import Sweep
from raydistill.config.syntax import as_yaml
from raydistill.config.teacher import FEWEST_PAIRED, pair_group
from raydistill.config.tree import Config
from raydistill.pipeline.recipes import teacher_speaks

TEACHER_STEPS, STUDENT_STEPS = 150, 300
"""Fewer optimizer steps leave a teacher that is tuned on pairs near chance, and a student short of it. A teacher whose
weights are all tuned gets no fewer than the baseline beside it: with 150 it was 5 and 11 points below the baseline on
names and job titles of 1,000 labelled rows, now it is 1 and 6."""
FEWEST_EPOCHS, MOST_TEACHER_EPOCHS, MOST_STUDENT_EPOCHS = 3, 30, 20
"""Bounds of the least length."""
LONGEST = 8
"""Times as many steps where validation gains all the while."""
MOST_EPOCHS = 120
"""But no more passes over the rows."""
FEW_LABELS, FEW_CLASSES = 1000, 8
"""A teacher of so many labelled rows is better trained on their pairs; of more classes too few rows of a batch make
pairs with equal labels."""
FEW_VALIDATION = 100
"""Labelled validation rows; on fewer an accuracy of 85 % has a standard error above 3.5 points."""
PAIRS_RATE = 0.5
"""Of the usual learning rate, for pairs of rows."""
MAX_ATTEMPTS = 3
FEWEST_TOKENS, MULTIPLE = 16, 8
RATES = ((768, 1e-4), (1024, 5e-5))
"""Learning rate of an encoder narrower than so many hidden units."""
LOWEST_RATE = 2e-5
LIGHT_RATE = 1e-3
"""Of a student of type conv, all of which but the embeddings is new."""


def usual_rate(width: int) -> float:
    """Of an encoder whose states are so wide."""
    return next((rate for below, rate in RATES if width < below), LOWEST_RATE)


@dataclass(frozen=True)
class Facts:
    """What choices are made from."""

    has_head: bool
    """Whether the teacher has a trained head; looked at where it is open how it is tuned."""
    is_foreign: bool
    """Whether its class is none of transformers'."""
    kind: Kind
    """What a prediction of the task is."""
    num_outputs: int
    width: int
    """Of the teacher's hidden states."""
    teacher_layers: int
    student_layers: int | None
    """None: of a student of stages, which has those of its checkpoint."""
    num_rows: int
    """Of the training split, as the next."""
    num_labeled: int
    num_tokens: int
    """Tokens that 99 % of the training rows need."""
    limit: int
    """Tokens that the models and the tokenizer take at most."""
    num_patches: int | None = None
    """Of a picture, where rows are such."""
    has_units: bool = False
    """Whether a row has several predictions."""
    usual_length: int | None = None
    """Tokens that a row should have at most, as longer texts lose nothing."""
    num_copies: int = 1
    num_labeled_copies: int = 1
    """Rows that are trained on for each of these."""
    metric: tuple[str, str] | None = None
    """What should pick the best epoch where the task's first metric says little of these rows, and why."""

    @property
    def rate(self) -> float:
        """The usual learning rate."""
        return usual_rate(self.width)

    @property
    def why(self) -> str:
        """Why it is that one."""
        return f"the teacher's width is {self.width}"


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
    tuning: Any = config.lead.finetune
    section = f"teacher.{''.join(f'members.{name}.' for name in [*config.members][:1])}finetune"
    if tuning == "auto":
        tuning = None if facts.has_head else {}
        why = "it has a trained head" if facts.has_head else "it has no trained head"
        why += "" if facts.has_head or facts.num_patches is None else " for these classes"
        found.append(Choice(section, tuning, why))
    if config.student.num_layers == "auto":
        is_open = facts.student_layers is None
        why = "it is as its checkpoint" if is_open else f"the teacher has {facts.teacher_layers}"
        found.append(Choice("student.num_layers", facts.student_layers, why))
    if config.evaluate.metric is None and facts.metric is not None:
        found.append(Choice("evaluate.metric", *facts.metric))
    batch = config.train.global_batch_size
    if tuning is not None:
        found += finetune_choices(section, tuning, facts, batch)
    for name, stage in config.stages.items():
        alone = facts.num_labeled_copies * facts.num_labeled
        rows = facts.num_copies * facts.num_rows if teacher_speaks(stage) else alone
        each = ceil(max(rows, 1) / batch)
        steps = (each, least_epochs(each, STUDENT_STEPS, MOST_STUDENT_EPOCHS), STUDENT_STEPS)
        is_light = config.student.type == "conv"
        rate, why = (LIGHT_RATE, "the student's layers are new") if is_light else (facts.rate, facts.why)
        is_open = not stage.needs_end and not is_searched(config.sweep, name)
        found += training_choices(f"stages.{name}", stage, steps, rate, why, is_open)
    return load_config(config, [f"{choice.name}={json.dumps(choice.value)}" for choice in found]), found


def is_searched(sweep: Sweep | None, stage: str) -> bool:
    """Whether trials differ in the length of a stage, or take each other's weights over at its steps."""
    return sweep is not None and (sweep.scheduler == "pbt" or f"stages.{stage}.num_epochs" in sweep.space)


def length_choice(facts: Facts) -> Choice:
    if facts.num_patches is not None:
        return Choice("data.max_length", facts.num_patches, "so many patches has a picture")
    wanted = max(FEWEST_TOKENS, MULTIPLE * ceil(facts.num_tokens / MULTIPLE))
    if facts.usual_length is not None and facts.usual_length < min(wanted, facts.limit):
        return Choice("data.max_length", facts.usual_length, "longer texts are cut into pieces, of which none is lost")
    if wanted <= facts.limit:
        return Choice("data.max_length", wanted, "99 % of the texts stay whole")
    rest = "are read in windows" if facts.has_units else "lose their end"
    return Choice("data.max_length", facts.limit, f"the models take no more, longer texts {rest}")


def finetune_choices(section: str, settings: Any, facts: Facts, batch: int) -> list[Choice]:
    """How the teacher is fine-tuned; ``settings`` {}: nothing is set."""
    found = []
    method = getattr(settings, "method", "auto")
    if method == "auto":
        method, why = method_choice(facts, batch)
        found.append(Choice(f"{section}.method", method, why))
    if method == "probe":
        return found
    is_open = getattr(settings, "learning_rate", "auto") == "auto"
    if method == "full" and is_open and getattr(settings, "max_attempts", None) is None:
        found.append(Choice(f"{section}.max_attempts", MAX_ATTEMPTS, "its learning rate is open"))
    rate = facts.rate * (PAIRS_RATE if method == "contrastive" else 1.0)
    each = ceil(max(facts.num_labeled_copies * facts.num_labeled, 1) / batch)
    wanted = least = TEACHER_STEPS
    if method == "full":
        wanted, least = STUDENT_STEPS, max(STUDENT_STEPS, baseline_steps(facts, batch))
    steps = (each, least_epochs(each, least, MOST_TEACHER_EPOCHS), wanted)
    return found + training_choices(section, settings, steps, rate, facts.why)


def baseline_steps(facts: Facts, batch: int) -> int:
    """At least so many has a student that learns from all rows, and so the baseline, where nothing is set."""
    each = ceil(max(facts.num_copies * facts.num_rows, 1) / batch)
    return each * least_epochs(each, STUDENT_STEPS, MOST_STUDENT_EPOCHS)


def least_epochs(each: int, wanted: int, most: int) -> int:
    """Epochs of ``each`` steps for so many steps as are wanted, within bounds."""
    return min(max(FEWEST_EPOCHS, ceil(wanted / each)), most)


def method_choice(facts: Facts, batch: int) -> tuple[str, str]:
    labels, is_text = f"{facts.num_labeled:,} labels", facts.num_patches is None
    if facts.has_head or facts.is_foreign:
        return "full", "it has a trained head" if facts.has_head else "it brings its own code"
    if (
        facts.kind != "categorical"
        or facts.has_units
        or facts.num_patches is not None
        or facts.num_outputs > FEW_CLASSES
        or pair_group(batch) < FEWEST_PAIRED
    ):
        return "full", f"{labels}, and no pairs can be made of such {'targets' if is_text else 'rows'}"
    return ("contrastive" if facts.num_labeled <= FEW_LABELS else "full"), labels


def training_choices(
    section: str, settings: Any, steps: tuple[int, int, int], rate: float, why: str, is_open: bool = True
) -> list[Choice]:
    """Length and learning rate of the teacher's fine-tuning or of a stage; ``settings`` {}: nothing is set.

    ``steps``: optimizer steps of an epoch, the least epochs, and the steps of which LONGEST times as many are the most.
    ``is_open``: it goes on while validation gains; otherwise the least length is the length.
    """
    found = []
    if getattr(settings, "num_epochs", "auto") == "auto":
        (each, usual, wanted), least = steps, getattr(settings, "min_epochs", None)
        epochs, limit = ceil(least or usual), ""
        if (least is not None or is_open) and (longest := min(LONGEST * wanted // each, MOST_EPOCHS)) > epochs:
            epochs, limit = longest, " at most"
            if least is None:
                found.append(Choice(f"{section}.min_epochs", usual, f"{usual * each:,} steps, more while they pay"))
        found.append(Choice(f"{section}.num_epochs", epochs, f"{epochs * each:,} steps{limit}"))
    if getattr(settings, "learning_rate", "auto") == "auto":
        found.append(Choice(f"{section}.learning_rate", rate, why))
    return found


def told(choices: Sequence[Choice]) -> list[str]:
    """A note on what was chosen, or none."""
    values = [f"{c.name} {as_yaml(c.value)} ({c.why})" for c in choices if isinstance(c.value, int | float | str)]
    return [f"Chosen, as the config leaves it open: {', '.join(values)}."] if values else []


def few_rows(num_validation: int) -> list[str]:
    """A note where labelled validation rows are too few to tell one epoch from the next, or none."""
    if num_validation >= FEW_VALIDATION:
        return []
    return [
        f"{num_validation} labelled validation rows hardly tell one epoch from the next: of the best one, and those "
        "after it that are no worse than chance explains, the latest was kept."
    ]
