"""Whether an export is good: on real rows, against the torch model that it was made from, both in one process."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from raydistill.deploy.classifier import Classifier
from raydistill.deploy.export import EXACT
from raydistill.deploy.paired import label_ids, latency_ratio, measure_speed, speed_section
from raydistill.deploy.testset import TestRows
from raydistill.errors import ConfigError, ModelError, nearest
from raydistill.evaluate import compare
from raydistill.evaluate.intervals import intervals
from raydistill.evaluate.metrics import METRICS, Array
from raydistill.evaluate.results import strict_json
from raydistill.evaluate.verdict import UNITLESS, figure

LOGIT_TOLERANCE = 1e-3
"""float32 on another runtime: six families of tiny models differ by 2e-6 at most, a MiniLM of six layers by 5e-6."""
SHAPE_TOLERANCES = {"onnx-int8": 0.1, "torch-int8": 0.05, "safetensors-bf16": 0.05}
"""How much a row's logits may depend on its batch, as a share of the spread of all logits (below 1: of 1).

Six families of tiny models and a MiniLM: onnx-int8 0.026 at most (one scale for a batch's activations), torch-int8
0.013, bfloat16 0.005. A mask or a size that the export lost shows as more.
"""
LOWER_IS_BETTER = ("log_loss", "calibration_error")
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
        if not math.isfinite(self.margin):
            raise ConfigError(f"--margin {self.margin} is no number to compare with. 0.01 is one point.")
        if self.margin < 0:
            raise ConfigError(f"--margin {self.margin} is below 0: no export is better than its model on purpose.")


@dataclass(frozen=True, eq=False)
class Base:
    """What the exports are compared to: logits (N, C) of the torch model, labels (N,) and the metric that it has."""

    logits: Array
    labels: Array
    metric: dict[str, float | None]
    notice: str | None
    """What had to be assumed to match the data's labels to the model's."""


def measure_base(source: Classifier, rows: TestRows, demand: Demand, seed: int = 0) -> Base:
    """Raises ModelError where the model is broken, DataError where the rows do not fit it, ConfigError for a metric
    that these rows do not define."""
    labels, notice = label_ids(rows.labels, source.labels, rows.class_names)
    logits = source.logits(rows.texts)
    if not finite(logits):
        lost = int((~np.isfinite(logits).all(axis=1)).sum())
        raise ModelError(
            f"The model's own logits of {lost} of {rows.num_rows:,} rows are not finite, so no export of it can be "
            "good. Train it again, with a lower learning rate for example."
        )
    return Base(logits, labels, own_metric(logits, labels, demand.metric, seed), notice)


def check_exports(
    classifiers: Mapping[str, Classifier],
    rows: TestRows,
    demand: Demand,
    base: Base,
    *,
    latency: bool = True,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Measure the classifier ``torch`` and every export on the same rows, and judge the exports.

    Each gets {runtime, bytes, metric {value, low, high}, latency_ms, throughput, latency_setting}, an export also
    {difference {value, low, high} (export - torch, paired), largest_logit_difference, agreement, good,
    reasons, notes, latency_ratio (export ÷ torch, one row, median over the rounds)}. What is not finite is null.
    ``base``: of the classifier ``torch`` on these rows. Raises ModelError where an export cannot compute at all.
    """
    logits = {name: base.logits if name == TORCH else one.logits(rows.texts) for name, one in classifiers.items()}
    speeds, rounds = measure_speed(classifiers, rows.texts) if latency else ({}, {})
    found = {}
    for name, classifier in classifiers.items():
        found[name] = {
            "runtime": classifier.runtime,
            "bytes": classifier.num_bytes,
            "metric": own_metric(logits[name], base.labels, demand.metric, seed) if finite(logits[name]) else None,
            **speed_section(speeds.get(name)),
        }
        if name != TORCH:
            found[name] |= judge(name, base.logits, logits[name], base.labels, demand, seed)
            reasons = [*found[name]["reasons"], *judge_shapes(name, classifier, rows, logits[name])]
            found[name] |= {"good": not reasons, "reasons": reasons}
            found[name]["latency_ratio"] = latency_ratio(rounds[TORCH], rounds[name]) if latency else None
    checked: dict[str, dict[str, Any]] = strict_json(found)
    return checked


def judge_shapes(form: str, classifier: Classifier, rows: TestRows, logits: Array) -> list[str]:
    """Reasons to refuse where single rows, or a short padded batch, give other logits than all rows (N, C) did."""
    order = np.argsort([len("".join(text)) for text in rows.texts], kind="stable")
    picked = order[[0, len(order) // 2, -1]]
    texts = [rows.texts[row] for row in picked]
    alone = np.concatenate([classifier.logits(texts[:1]), classifier.logits(texts[-1:])])
    differences = {
        "one row alone": np.abs(alone - logits[picked[[0, -1]]]).max(),
        "a padded batch of 3 rows": np.abs(classifier.logits(texts) - logits[picked]).max(),
    }
    spread = max(float(np.ptp(logits)), 1.0)
    limit = LOGIT_TOLERANCE if form in EXACT else SHAPE_TOLERANCES[form] * spread
    return [
        f"In {name} a logit differs by {difference:.2g} from the same row's in a large batch, more than {limit:.2g}."
        for name, difference in differences.items()
        if finite(logits) and not difference <= limit
    ]


def finite(logits: Array) -> bool:
    return bool(np.isfinite(logits).all())


def own_metric(logits: Array, labels: Array, metric: str, seed: int) -> dict[str, float | None]:
    found = intervals(logits, labels, NUM_SAMPLES, seed)[metric]
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
    return figure(metric, value) + ("" if metric in UNITLESS else " points")
