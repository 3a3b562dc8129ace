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


def best(trials: Sequence[Trial], objectives: Objectives) -> Trial | None:
    """The best trial by the first objective, ties by the others in their order, then the smallest number."""
    return next(iter(ranked(trials, objectives)), None)


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
    """The best trial by one of the objectives."""
    return best(front, {name: objectives[name], **objectives})


def knee(front: Sequence[Trial], objectives: Objectives) -> Trial | None:
    """The trial furthest out beyond the plane through the front's ends, where more of one objective costs most.

    Every objective is scaled to [0, 1] by the front's own range. None with fewer than three trials or two objectives
    that differ, and where no trial lies beyond the plane: all that is between the ends is then a bad bargain.
    """
    values = points(front, objectives)
    if len(front) < 3:
        return None
    spread = values.max(axis=0) - values.min(axis=0)
    scaled = ((values - values.min(axis=0)) / np.where(spread > 0, spread, 1.0))[:, spread > 0]
    if scaled.shape[1] < 2:
        return None
    names = [name for name, width in zip(objectives, spread, strict=True) if width > 0]
    numbers = [trial.number for trial in front]
    ends = [numbers.index(trial.number) for name in names if (trial := end(front, objectives, name)) is not None]
    distances = beyond(scaled, scaled[ends])
    distances[ends] = 0.0
    # 1e-9: trials on the plane itself differ from it by rounding only
    return front[int(distances.argmax())] if distances.max() > 1e-9 else None


def beyond(values: NDArray[np.float64], ends: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N,) signed distance of points (N, M) from the plane through M ends, positive towards better values.

    Where the ends span no plane that falls in every direction (one trial is best in two of three objectives), the plane
    is that of equal sums through the end with the largest sum.
    """
    normal: NDArray[np.float64] = np.ones(values.shape[1])
    offset = float(ends.sum(axis=1).max())
    if np.linalg.matrix_rank(ends) == len(normal):
        solved = np.linalg.solve(ends, np.ones(len(normal)))
        if (solved > 0).all():
            normal, offset = solved.astype(np.float64), 1.0
    return np.asarray((values @ normal - offset) / np.linalg.norm(normal))


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
