"""Whether an export is good: on real rows, against the torch model that it was made from, both in one process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from raydistill.classifier import Classifier
from raydistill.errors import ConfigError
from raydistill.evaluate import compare, metrics
from raydistill.evaluate.contest import label_ids, latency_ratio, measure_speed, speed_section
from raydistill.evaluate.metrics import METRICS, Array
from raydistill.evaluate.results import strict_json
from raydistill.evaluate.testset import TestRows
from raydistill.evaluate.verdict import points
from raydistill.formats import EXACT
from raydistill.schema import nearest

LOGIT_TOLERANCE = 1e-3
"""float32 on another runtime: six families of tiny models differ by 2e-6 at most, a MiniLM of six layers by 5e-6."""
LOWER_IS_BETTER = ("log_loss", "calibration_error")
IN_PERCENT = (*(name for name in METRICS if name not in (*LOWER_IS_BETTER, "auc", "mcc")),)
NUM_SAMPLES = 1000
TORCH = "torch"


@dataclass(frozen=True)
class Demand:
    """``metric`` may fall by ``margin`` at most (rise, where lower is better)."""

    metric: str = "accuracy"
    margin: float = 0.01

    def check(self) -> None:
        """Raises ConfigError for a metric that is not known or a margin below zero."""
        if self.metric not in METRICS:
            near = nearest(self.metric, METRICS)
            hint = f"did you mean {near}? " if near else ""
            raise ConfigError(f"--metric {self.metric}: not known; {hint}Known: {', '.join(METRICS)}.")
        if not self.margin >= 0:
            raise ConfigError(f"--margin {self.margin} is below 0: no export is better than its model on purpose.")


def check_exports(
    classifiers: Mapping[str, Classifier], rows: TestRows, demand: Demand, *, latency: bool = True, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Measure the classifier ``torch`` and every export on the same rows, and judge the exports.

    Each gets {runtime, bytes, metric {value, low, high}, latency_ms, throughput, latency_setting}, an export also
    {difference {value, low, high} (export - torch, paired bootstrap), largest_logit_difference, agreement, good,
    reasons, notes, latency_ratio (export ÷ torch, one row, median over the rounds)}. What is not finite is null.
    Raises ModelError or DataError where the rows do not fit the model.
    """
    labels, _ = label_ids(rows.labels, classifiers[TORCH].labels, rows.class_names)
    logits = {name: classifier.logits(rows.texts) for name, classifier in classifiers.items()}
    speeds, rounds = measure_speed(classifiers, rows.texts) if latency else ({}, {})
    found = {}
    for name, classifier in classifiers.items():
        found[name] = {
            "runtime": classifier.runtime,
            "bytes": classifier.num_bytes,
            "metric": own_metric(logits[name], labels, demand.metric, seed) if finite(logits[name]) else None,
            **speed_section(speeds.get(name)),
        }
        if name != TORCH:
            found[name] |= judge(name, logits[TORCH], logits[name], labels, demand, seed)
            found[name]["latency_ratio"] = latency_ratio(rounds[TORCH], rounds[name]) if latency else None
    checked: dict[str, dict[str, Any]] = strict_json(found)
    return checked


def finite(logits: Array) -> bool:
    return bool(np.isfinite(logits).all())


def own_metric(logits: Array, labels: Array, metric: str, seed: int) -> dict[str, float | None]:
    found = metrics.intervals(logits, labels, NUM_SAMPLES, seed)[metric]
    if found["value"] is None:
        raise ConfigError(f"--metric {metric} is not defined on these rows: they lack a class. Take another.")
    return found


def judge(form: str, base: Array, logits: Array, labels: Array, demand: Demand, seed: int = 0) -> dict[str, Any]:
    """The fields of an export in ``check_exports`` that say how it compares to torch; logits (N, C), labels (N,)."""
    if not finite(logits):
        lost = int((~np.isfinite(logits).all(axis=1)).sum())
        compared: dict[str, Any] = {"difference": None, "largest_logit_difference": None, "agreement": None}
        return {**compared, "good": False, "reasons": [f"The logits of {lost} rows are not finite."], "notes": []}
    difference = compare.paired_difference(demand.metric, logits, base, labels, num_samples=NUM_SAMPLES, seed=seed)
    largest, agreement = float(np.abs(logits - base).max()), compare.agreement(base, logits)
    reasons, notes = judge_metric(difference, demand)
    if form in EXACT:
        changed = int((logits.argmax(axis=1) != base.argmax(axis=1)).sum())
        if largest > LOGIT_TOLERANCE:
            reasons.append(
                f"A logit differs by {largest:.2g}, more than {LOGIT_TOLERANCE:g}: the same model would not."
            )
        if changed:
            reasons.append(f"{changed} of {len(labels)} rows get another class; the same model would give the same.")
    compared = {"difference": difference, "largest_logit_difference": largest, "agreement": agreement}
    return {**compared, "good": not reasons, "reasons": reasons, "notes": notes}


def judge_metric(difference: Mapping[str, float | None], demand: Demand) -> tuple[list[str], list[str]]:
    """Reasons to refuse, and a note where the rows are too few to be sure; ``difference`` is export - torch."""
    sign = -1.0 if demand.metric in LOWER_IS_BETTER else 1.0
    value, low, high = (difference[key] for key in ("value", "low", "high"))
    assert value is not None
    assert low is not None
    assert high is not None
    worst, name = min(sign * low, sign * high), demand.metric.replace("_", " ")
    # Shares are counts of rows divided by their number: a fall of exactly one point must not fail by rounding.
    if -sign * value > demand.margin + 1e-9:
        verb = "falls" if sign > 0 else "rises"
        return [
            f"The {name} {verb} by {amount(abs(value), demand.metric)}, more than the margin of "
            f"{amount(demand.margin, demand.metric)}."
        ], []
    if -worst > demand.margin:
        return [], [
            f"These rows cannot rule out that the {name} gets worse by {amount(-worst, demand.metric)} "
            "(95 % interval); more rows would."
        ]
    return [], []


def amount(value: float, metric: str) -> str:
    """A difference of a metric for people: points where the metric is a share."""
    return f"{points(value)} points" if metric in IN_PERCENT else f"{value:.3f}"
