"""Several seeds in one run: the same student, and the same baseline, trained again, and the median one of each taken.

Data, teacher and recorded signals are those of the config's own seed; only what student and baseline draw differs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from raydistill.config.metrics import score
from raydistill.evaluate.compare import read_predictions
from raydistill.evaluate.intervals import spread
from raydistill.evaluate.results import strict_json
from raydistill.pipeline.recipes import seeded, student_seed
from raydistill.storage.artifacts import Artifact

if TYPE_CHECKING:
    from raydistill.pipeline.context import Context

Made = TypeVar("Made")
MODELS = ("student", "baseline")


@dataclass(frozen=True)
class Seeded:
    """What was made with one seed."""

    seed: int
    student: Artifact
    baseline: Artifact | None
    evaluation: Artifact

    def values(self, model: str, split: str) -> dict[str, float]:
        """Every metric of the student or the baseline on the labelled rows of a split."""
        found = read_predictions(self.evaluation.local(), split)
        known = found.targets.labeled
        scores = found.tasks[model].scores(found.outputs[model][known], found.targets.values[known])
        return scores.values


def series_of(index: int, seed: int) -> str:
    """What checkpoints and metrics of a seed are kept under: those of the config's own, the first, have no name."""
    return f"seed-{seed}" if index else ""


def with_seeds(context: Context, make: Callable[[], Made]) -> list[Made]:
    """What ``make`` makes with each seed, the config's own first; every rank runs this."""
    made = []
    for index, config in enumerate(seeded(context.job.config)):
        context.turn_to(config, series_of(index, student_seed(config)))
        made.append(make())
    context.turn_to(context.job.config, "")
    return made


def median(found: list[Seeded], model: str, metric: str) -> int:
    """Which one is the median by a validation metric; of an even number the worse one of the two in the middle."""
    reached = [score(metric, one.values(model, "validation")) for one in found]
    order = sorted(range(len(found)), key=lambda i: -math.inf if math.isnan(reached[i]) else reached[i])
    return order[(len(order) - 1) // 2]


def seeds_section(found: list[Seeded], student: Artifact, baseline: Artifact | None) -> dict[str, Any] | None:
    """``seeds`` of results.json, see there; ``student``, ``baseline``: those that were taken."""
    if not found:
        return None
    section: dict[str, Any] = {"num": len(found), "baseline": None}
    for model, taken in zip(MODELS, (student, baseline), strict=True):
        if taken is None:
            continue
        runs = [one.values(model, "test") for one in found]
        section[model] = {
            "seed": next(one.seed for one in found if getattr(one, model) == taken),
            "test": {metric: spread([values[metric] for values in runs]) for metric in runs[0]},
            "values": [{"seed": one.seed, **values} for one, values in zip(found, runs, strict=True)],
        }
    return dict(strict_json(section))
