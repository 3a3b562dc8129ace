"""The ``sweep`` section of the config: what a search may change, how it goes about it, and what it may cost."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from raydistill.config.metrics import metric
from raydistill.config.section import Mistake, Section
from raydistill.config.tasks import SECTIONS

FACTS = ("num_parameters", "latency_ms")
"""What is known of a shape untrained; less of it is better."""
MEASURES = (
    *dict.fromkeys(f"validation/{name}" for section in SECTIONS.values() for name in section.tuning_metrics),
    *FACTS,
)
"""What a sweep may look at: metrics on validation rows at the best epoch, those of all tasks, and ``FACTS``."""


def wanted(measure: str) -> Literal["max", "min"]:
    """Which way a measure is better."""
    return "min" if measure in FACTS or metric(measure.removeprefix("validation/")).lower_is_better else "max"


class Distribution(Section):
    """The values that a sweep may give a setting: exactly one of these."""

    choice: tuple[Any, ...] | None = Field(default=None, min_length=1)
    """Any values that the setting takes, whole sections included."""
    uniform: tuple[float, float] | None = None
    """[low, high]: any number between."""
    loguniform: tuple[float, float] | None = None
    """[low, high], low above 0: any number between, every order of magnitude as often."""
    integer: tuple[int, int] | None = None
    """[low, high]: a whole number, both ends included."""

    def mistakes(self) -> list[Mistake]:
        given = self.model_dump(exclude_none=True)
        if len(given) != 1:
            text = f"names {', '.join(given) or 'nothing'}; write one of {', '.join(type(self).model_fields)}."
            return [((), text)]
        (name, content) = next(iter(given.items()))
        if name == "choice":
            return []
        low, high = content
        if low >= high:
            return [((name,), f"runs from {low:g} to {high:g}; write [low, high] with low below high.")]
        if name == "loguniform" and low <= 0:
            return [((name,), f"begins at {low:g}; a logarithmic range begins above 0.")]
        return []


class Bounds(Section):
    """What a measure may be."""

    min: float | None = None
    """Lowest value that is allowed."""
    max: float | None = None
    """Highest value that is allowed."""

    def mistakes(self) -> list[Mistake]:
        if self.min is None and self.max is None:
            return [((), "bounds nothing; write {max: ...}, {min: ...} or both.")]
        if self.min is not None and self.max is not None and self.min > self.max:
            return [((), f"min {self.min:g} is above max {self.max:g}.")]
        return []


class Sweep(Section):
    """A search: trials are the config with other values of ``space``; they share data, teacher and its outputs."""

    space: dict[str, Distribution] = Field(min_length=1)
    """Dotted names of settings of the student's training, and what each may be."""
    search: Literal["grid", "random", "bayesian", "evolution"] = "bayesian"
    """``bayesian``: Optuna's TPE; ``evolution``: NSGA-II; ``grid``: every combination of choices and integers."""
    scheduler: Literal["none", "asha", "pbt"] = "asha"
    """``asha`` stops trials that lag behind others at the same validation; ``pbt`` lets them take over the weights of
    better ones and vary their settings."""
    num_trials: int | None = Field(default=None, ge=1)
    """Trials to train, 20 by default, or the whole grid. Combinations that a constraint rejects and repeats of an
    earlier trial cost nothing and do not count."""
    objectives: dict[str, Literal["max", "min"]] = Field(default={})
    """validation/<metric>, num_parameters or latency_ms; by default the task's main metric. One gives a best trial,
    several a Pareto front. The scheduler goes by the first validation metric."""
    constraints: dict[str, Bounds] = Field(default={})
    """A combination whose parameters or latency lie outside is rejected before it trains, a trial whose metric does is
    not chosen."""
    final_seeds: int = Field(default=3, ge=1)
    """Fresh seeds with which the best trial, and the ends and the knee of a front, are trained again."""
    max_concurrent_trials: int | None = Field(default=None, ge=1)
    """None: as many as the cluster holds."""
    max_trials: int | None = Field(default=None, ge=1)
    """Combinations to look at in all, rejected ones and repeats included; 10 times num_trials by default."""
    max_hours: float | None = Field(default=None, gt=0)
    """No new trial begins after so many hours, and running ones end at their next validation."""
    patience: int | None = Field(default=None, ge=1)
    """Stop when so many finished trials in a row have not improved the best value or moved the front."""
    grace_period: int = Field(default=1, ge=1)
    """Validations before ``asha`` may stop a trial."""
    reduction_factor: int = Field(default=2, ge=2)
    """``asha`` lets one in so many trials go on at each of its rungs."""
    perturbation_interval: int = Field(default=1, ge=1)
    """Validations between two exchanges of ``pbt``."""

    def mistakes(self) -> list[Mistake]:
        found: list[Mistake] = []
        for place in ("objectives", "constraints"):
            for name in getattr(self, place):
                if name not in MEASURES:
                    found.append(((place, name), f"is not measured. Known: {', '.join(MEASURES)}."))
        for name, direction in self.objectives.items():
            if direction != wanted(name):
                found.append((("objectives", name), f"{direction} would look for the worst; write {wanted(name)}."))
        if self.objectives and not any(name.startswith("validation/") for name in self.objectives):
            found.append((("objectives",), "names no validation metric; without one nothing needs to be trained."))
        if self.search == "grid":
            for name, values in self.space.items():
                if values.choice is None and values.integer is None:
                    found.append((("space", name), "is a range, which has no grid; write choice or integer."))
        if self.scheduler == "pbt":
            text = "changes what is trained, and pbt changes settings while it trains; search without pbt."
            found += [(("space", name), text) for name in self.space if not may_change(name)]
            for name, values in self.space.items():
                others = [
                    one for one in values.choice or () if isinstance(one, bool) or not isinstance(one, int | float)
                ]
                if others and may_change(name):
                    text = f"pbt changes numbers while it trains, and {others[0]!r} is no number; search without pbt."
                    found.append((("space", name), text))
        return found


def may_change(name: str) -> bool:
    """Whether a setting can take another value while a student trains: weights and temperatures of losses, rates."""
    last = name.rpartition(".")[2]
    return name.startswith("stages.") and last in ("weight", "temperature", "learning_rate", "weight_decay")
