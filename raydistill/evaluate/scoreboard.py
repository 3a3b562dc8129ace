"""Several models on the same rows: what each scores, and how they differ, all from the same resamples."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from itertools import permutations
from typing import Any

import numpy as np

from raydistill.config.metrics import metric
from raydistill.evaluate.bootstrap import bootstrap
from raydistill.evaluate.compare import chance
from raydistill.evaluate.intervals import Interval, corrected, interval, model_intervals, num_examples, tango
from raydistill.tasks.base import Task
from raydistill.tasks.scores import Scores
from raydistill.tasks.statistics import mcnemar
from raydistill.tasks.targets import Array, Targets


class Scoreboard:
    """Scores of several models on the labelled ones of the same rows.

    ``tasks``: of each model, with its own thresholds. ``outputs``: of each model (N, C), all in the order of the tasks'
    outputs. Rows of one example, by ``example_ids`` (N,), are resampled together. ``own``: targets of models that read
    the same rows in other words. Of metrics that are not ``wanted`` the slow ones may be left out. Raises DataError or
    ModelError for what no metric can be computed from.
    """

    def __init__(
        self,
        tasks: Mapping[str, Task],
        outputs: Mapping[str, Array],
        targets: Targets,
        *,
        example_ids: Array | None = None,
        num_samples: int = 1000,
        seed: int = 0,
        wanted: Collection[str] | None = None,
        own: Mapping[str, Targets] | None = None,
    ) -> None:
        kept, read = targets.labeled, dict.fromkeys(outputs, targets) | dict(own or {})
        self.tasks, self.outputs = tasks, outputs
        self.scores = {
            name: tasks[name].scores(found[kept], read[name].values[kept]) for name, found in outputs.items()
        }
        ids = None if example_ids is None else example_ids[kept]
        self.num_rows = int(kept.sum())
        self.num_examples = num_examples(ids, self.num_rows)
        self.samples = bootstrap(self.scores, ids, num_samples, seed, wanted=wanted)

    def intervals(self, name: str) -> dict[str, Interval]:
        """Metric -> {value, low, high} of a model, 95 %."""
        return model_intervals(self.scores[name], self.samples[name], self.num_examples)

    def differences(self, first: str, second: str) -> dict[str, Interval]:
        """Metric -> {value, low, high} of second - first, paired.

        Pairing takes out what the rows do to both models alike, so these are narrower than the two models' own
        intervals suggest.
        """
        one, other = self.scores[first], self.scores[second]
        samples = self.samples[second]
        found = {m: interval(other.values[m] - one.values[m], samples[m] - s) for m, s in self.samples[first].items()}
        if one.right is None or other.right is None:
            return found
        only = [float((a & ~b).mean()) * self.num_examples for a, b in permutations((one.right, other.right))]
        return corrected(found, one.share_metrics, tango(only[0], only[1], self.num_examples), paired=True)

    def ratio(self, first: str, second: str, name: str) -> Interval:
        """{value, low, high} of second ÷ first in a metric, paired; all None where the first one's is not above 0, and
        where an amount is not in every resample: the upper end would then be too low."""
        below, samples = self.scores[first].values[name], self.samples[first][name]
        if not below > 0 or (metric(name).is_amount and not (samples > 0).all()):
            return {"value": None, "low": None, "high": None}
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = self.samples[second][name] / samples
        return interval(self.scores[second].values[name] / below, ratios)

    def retention(self, teacher: str, student: str, name: str) -> Interval:
        """``Metric.retention`` of two models, paired."""
        return self.ratio(student, teacher, name) if metric(name).is_amount else self.ratio(teacher, student, name)

    def agreement(self, first: str, second: str) -> float:
        """On all rows, labelled or not."""
        return self.tasks[first].agreement(self.outputs[first], self.outputs[second], self.tasks[second])

    def mcnemar(self, first: str, second: str) -> dict[str, Any] | None:
        """See ``tasks.statistics.mcnemar``; None where answers are not right or wrong."""
        one, other = self.scores[first].right, self.scores[second].right
        return None if one is None or other is None else mcnemar(one, other)

    def pair(self, first: str, second: str) -> dict[str, Any]:
        """Two models against each other: {first, second, differences (second - first), ratios (second ÷ first, of
        amounts), agreement, mcnemar}."""
        return {
            "first": first,
            "second": second,
            "differences": self.differences(first, second),
            "ratios": {name: self.ratio(first, second, name) for name in self.samples[first] if metric(name).is_amount},
            "agreement": self.agreement(first, second),
            "mcnemar": self.mcnemar(first, second),
        }

    def chance(self, name: str) -> dict[str, Any]:
        """Whether a model is no better than one that does not look; see ``compare.chance``."""
        return chance(self.intervals(name), self.scores[name].floor())

    def details(self, name: str) -> dict[str, Any]:
        """``per_class``, ``confusion``, ``reliability``, ``scatter``: those of them that the task has."""
        return self.scores[name].details()


def describe_task(task: Task, found: Iterable[Scores] = ()) -> dict[str, Any]:
    """What pages and tables have to know of a task: {type, metrics (shown, the main one first), main_metric, guessing,
    facts}, and ``counted``, what ``per_class`` has the number of where it is not rows.

    ``found``: of models on the rows that are spoken of; metrics that none of them has are left out, unless
    these are all.
    """
    known = {name for scores in found for name, value in scores.values.items() if not np.isnan(value)}
    metrics = [name for name in task.shown_metrics if name in known] or [*task.shown_metrics]
    counted = {"counted": task.counted} if task.counted != "rows" else {}
    return {
        "type": task.type,
        "metrics": metrics,
        "main_metric": metrics[0],
        "guessing": task.guessing,
        "facts": task.facts(),
        **counted,
    }
