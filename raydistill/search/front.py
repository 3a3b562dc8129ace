"""Which trials are worth having: the Pareto front, its ends and its knee. Numbers only, no search and no training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from raydistill.config.sweep import Bounds, Sweep
from raydistill.search.ledger import Trial

Direction = Literal["max", "min"]
Objectives = Mapping[str, Direction]


def is_eligible(trial: Trial, sweep: Sweep) -> bool:
    """Whether a trial may be chosen: trained to its end, every objective known, every constraint kept.

    What was stopped early is not: its student is not the one that its settings give.
    """
    return trial.state == "completed" and has_values(trial, sweep.objectives) and keeps_constraints(trial, sweep)


def keeps_constraints(trial: Trial, sweep: Sweep) -> bool:
    measures = trial.measures
    return all(within(measures.get(name), bounds) for name, bounds in sweep.constraints.items())


def has_values(trial: Trial, objectives: Objectives) -> bool:
    """Whether every objective is there and finite."""
    return all(math.isfinite(trial.measures.get(name, math.nan)) for name in objectives)


def within(value: float | None, bounds: Bounds) -> bool:
    """Whether a measured value lies inside; one that is missing or NaN does not."""
    if value is None or math.isnan(value):
        return False
    return (bounds.min is None or value >= bounds.min) and (bounds.max is None or value <= bounds.max)


def first_validation(objectives: Objectives) -> str:
    """The objective that training itself improves: schedulers and the choice among finalists go by it."""
    return next(name for name in objectives if name.startswith("validation/"))


def pareto_front(trials: Sequence[Trial], objectives: Objectives) -> list[Trial]:
    """The trials that no other one beats, best by the first objective first.

    A trial is beaten by one that is as good in every objective and better in one. Of equal trials the one with the
    smallest number stays. Trials without a finite value for an objective are left out.
    """
    known = ranked(trials, objectives)
    values = points(known, objectives)
    # In this order nothing is beaten by what comes after it, and an equal trial with a smaller number comes before.
    kept = [i for i, value in enumerate(values) if not (values[:i] >= value).all(axis=1).any()]
    return [known[i] for i in kept]


def ranked(trials: Sequence[Trial], objectives: Objectives) -> list[Trial]:
    """Trials with all their values, best by the first objective first, ties by the others, then the smallest number."""
    known = [trial for trial in trials if has_values(trial, objectives)]
    values = points(known, objectives)
    order = sorted(range(len(known)), key=lambda i: (*(-values[i]), known[i].number))
    return [known[i] for i in order]


def points(trials: Sequence[Trial], objectives: Objectives) -> NDArray[np.float64]:
    """(trials, objectives), turned so that more is better everywhere."""
    signs = np.array([1.0 if direction == "max" else -1.0 for direction in objectives.values()])
    values = [[trial.measures[name] for name in objectives] for trial in trials]
    return signs * np.array(values, dtype=np.float64).reshape(len(trials), len(objectives))


def end(front: Sequence[Trial], objectives: Objectives, name: str) -> Trial | None:
    """The best trial by one of the objectives, ties by the others in their order, then the smallest number."""
    return next(iter(ranked(front, {name: objectives[name], **objectives})), None)


def knee(front: Sequence[Trial], objectives: Objectives) -> Trial | None:
    """The trial between the ends whose objectives, as shares of their ranges on the front, add up to most.

    None where that is no more than at an end: all that is between them is then a bad bargain.
    """
    ends = [end(front, objectives, name) for name in objectives]
    between = [i for i, trial in enumerate(front) if trial not in ends]
    if not between:
        return None
    values = points(front, objectives)
    low, width = values.min(axis=0), np.ptp(values, axis=0)
    sums = ((values - low) / np.where(width > 0, width, 1.0)).sum(axis=1)
    found = max(between, key=lambda i: float(sums[i]))
    # 1e-9: equal sums differ by rounding only
    return front[found] if sums[found] > np.delete(sums, between).max() + 1e-9 else None


def finalists(trials: Sequence[Trial], sweep: Sweep) -> dict[int, list[str]]:
    """Trial numbers and their roles: ``best``, with several objectives also ``best <objective>`` and ``knee``.

    ``best`` goes by the first validation objective. Only eligible trials; empty where there is none.
    """
    front = pareto_front([trial for trial in trials if is_eligible(trial, sweep)], sweep.objectives)
    leading = first_validation(sweep.objectives)
    chosen = [("best", end(front, sweep.objectives, leading))]
    chosen += [(f"best {name}", end(front, sweep.objectives, name)) for name in sweep.objectives if name != leading]
    chosen.append(("knee", knee(front, sweep.objectives)))
    roles: dict[int, list[str]] = {}
    for role, trial in chosen:
        if trial is not None:
            roles.setdefault(trial.number, []).append(role)
    return roles


def moved(before: Sequence[Trial], trial: Trial, sweep: Sweep) -> bool:
    """Whether a trial that ended adds a point to the front of those before it; one objective: is strictly better."""
    if not is_eligible(trial, sweep):
        return False
    values = points([other for other in before if is_eligible(other, sweep)], sweep.objectives)
    return not (values >= points([trial], sweep.objectives)).all(axis=1).any()
