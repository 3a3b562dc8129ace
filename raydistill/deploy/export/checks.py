"""Whether an export is good: on real rows, against the torch model that it was made from, both in one process."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from raydistill.config.metrics import metric as facts_of
from raydistill.deploy.export import EXACT
from raydistill.deploy.paired import latency_ratio, measure_speed, speed_section
from raydistill.deploy.predictor import Predictor, num_letters
from raydistill.deploy.testset import TestRows
from raydistill.errors import ConfigError, ModelError, nearest
from raydistill.evaluate.figure import Figure
from raydistill.evaluate.results import strict_json
from raydistill.evaluate.scoreboard import Scoreboard, describe_task
from raydistill.tasks.base import Task
from raydistill.tasks.targets import Ragged, Values, concatenated, units_of

TOLERANCE = 1e-3
"""float32 on another runtime, in ``Task.unit``: six families of tiny models differ by 2e-6 at most, a MiniLM of six
layers by 5e-6."""
SHAPE_TOLERANCES = {"onnx-int8": 0.1, "torch-int8": 0.05, "safetensors-bf16": 0.05}
"""How much a row's outputs may depend on its batch, as a share of the spread of all outputs (below ``Task.unit``: of
that).

Six families of tiny models and a MiniLM: onnx-int8 0.026 at most (one scale for a batch's activations), torch-int8
0.013, bfloat16 0.005. A mask or a size that the export lost shows as more.
"""
NUM_SAMPLES = 1000
TORCH = "torch"


def measure_base(source: Predictor, rows: TestRows, metric: str | None) -> tuple[Values, str]:
    """The outputs (N, C) of the torch model, which the exports are compared to, and the metric to go by: ``metric``, or
    the main one of these rows.

    Raises ModelError where the model is broken, DataError where the rows do not fit it, ConfigError for a metric that
    its task does not have, or these rows do not define.
    """
    outputs = source.outputs(rows.texts, rows.targets.values)
    if lost := num_lost(outputs):
        raise ModelError(
            f"The model's own outputs of {lost} of {rows.num_rows:,} rows are not finite, so no export of it can be "
            "good. Train it again, with a lower learning rate for example."
        )
    scores = source.task.scores(outputs, rows.targets.values)
    values, metric = scores.values, metric or describe_task(source.task, [scores])["main_metric"]
    if metric not in values:
        near = nearest(metric, values)
        hint = f"did you mean {near}? " if near else ""
        raise ConfigError(f"--metric {metric}: not known; {hint}Known: {', '.join(values)}.")
    if not math.isfinite(values[metric]):
        raise ConfigError(f"--metric {metric} is not defined on these rows. Take another, or other rows.")
    return outputs, metric


def check_exports(
    predictors: Mapping[str, Predictor],
    rows: TestRows,
    metric: str,
    margin: float,
    base: Values,
    *,
    latency: bool = True,
) -> dict[str, dict[str, Any]]:
    """Measure the model ``torch`` and every export on the same rows, and judge the exports: ``metric`` may get worse by
    ``margin`` at most.

    Each gets {runtime, bytes, metric {value, low, high}, latency_ms, throughput, latency_setting}, an export also
    {difference {value, low, high} (export - torch, paired), largest_difference (of an output), agreement, good,
    reasons, notes, latency_ratio (export ÷ torch, one row, median over the rounds)}. What is not finite is null.
    ``base``: outputs of the model ``torch`` on these rows. Raises ModelError where an export cannot compute at all.
    """
    outputs = {
        name: base if name == TORCH else one.outputs(rows.texts, rows.targets.values)
        for name, one in predictors.items()
    }
    sound = {name: found for name, found in outputs.items() if not num_lost(found)}
    board = Scoreboard(dict.fromkeys(sound, rows.task), sound, rows.targets, num_samples=NUM_SAMPLES, wanted={metric})
    speeds, rounds = measure_speed(predictors, rows.texts) if latency else ({}, {})
    found = {}
    for name, predictor in predictors.items():
        found[name] = {
            "runtime": predictor.runtime,
            "bytes": predictor.num_bytes,
            "metric": board.intervals(name)[metric] if name in sound else None,
            **speed_section(speeds.get(name)),
        }
        if name != TORCH:
            judged = judge(name, board, metric, margin) if name in sound else refused(num_lost(outputs[name]))
            reasons = [*judged["reasons"], *judge_shapes(name, predictor, rows, outputs[name])]
            ratio = latency_ratio(rounds[TORCH], rounds[name]) if latency else None
            found[name] |= {**judged, "good": not reasons, "reasons": reasons, "latency_ratio": ratio}
    checked: dict[str, dict[str, Any]] = strict_json(found)
    return checked


def num_lost(outputs: Values) -> int:
    """Rows whose outputs are not finite."""
    lost = ~np.isfinite(units_of(outputs)).all(axis=1)
    return len(np.unique(outputs.rows[lost])) if isinstance(outputs, Ragged) else int(lost.sum())


def largest_difference(task: Task, a: Values, b: Values) -> float:
    """Between two outputs of the same rows."""
    return float(np.abs(task.measured(a) - task.measured(b)).max())


def refused(lost: int) -> dict[str, Any]:
    """As ``judge``, of an export that has no outputs for some rows."""
    compared = dict.fromkeys(("difference", "largest_difference", "agreement"))
    return {**compared, "reasons": [f"The outputs of {lost} rows are not finite."], "notes": []}


def judge(form: str, board: Scoreboard, metric: str, margin: float) -> dict[str, Any]:
    """The fields of an export in ``check_exports`` that say how it compares to torch."""
    task, base, outputs = board.tasks[TORCH], board.outputs[TORCH], board.outputs[form]
    difference = board.differences(TORCH, form)[metric]
    largest = largest_difference(task, outputs, base)
    reasons, notes = judge_metric(difference, metric, margin)
    if form in EXACT:
        limit = TOLERANCE * task.unit(base)
        if largest > limit:
            reasons.append(f"An output differs by {largest:.2g}, more than {limit:.2g}: the same model would not.")
        answers = board.scores[TORCH].right is not None  # else every difference counts as a disagreement
        changed = int((task.disagreements(base, outputs) > 0).sum()) if answers else 0
        if changed:
            reasons.append(f"{changed} of {len(base)} rows get another answer; the same model would give the same.")
    compared = {"difference": difference, "largest_difference": largest, "agreement": board.agreement(TORCH, form)}
    return {**compared, "reasons": reasons, "notes": notes}


def judge_shapes(form: str, predictor: Predictor, rows: TestRows, outputs: Values) -> list[str]:
    """Reasons to refuse where single rows, or a short padded batch, give other outputs than all rows (N, C) did."""
    if num_lost(outputs):
        return []  # a reason of its own
    order = np.argsort([num_letters(text) for text in rows.texts], kind="stable")
    picked = order[[0, len(order) // 2, -1]]
    texts, values = [rows.texts[row] for row in picked], rows.targets.values[picked]
    alone = concatenated([predictor.outputs([texts[i]], values[[i]]) for i in (0, -1)])
    differences = {
        "one row alone": largest_difference(rows.task, alone, outputs[picked[[0, -1]]]),
        "a padded batch of 3 rows": largest_difference(rows.task, predictor.outputs(texts, values), outputs[picked]),
    }
    unit, spread = rows.task.unit(outputs), float(np.ptp(rows.task.measured(outputs)))
    limit = TOLERANCE * unit if form in EXACT else SHAPE_TOLERANCES[form] * max(spread, unit)
    return [
        f"In {name} an output differs by {difference:.2g} from the same row's in a large batch, more than {limit:.2g}."
        for name, difference in differences.items()
        if not difference <= limit
    ]


def judge_metric(difference: Mapping[str, float | None], metric: str, margin: float) -> tuple[list[str], list[str]]:
    """Reasons to refuse, and a note where the rows are too few to be sure; ``difference`` is export - torch."""
    facts, figure = facts_of(metric), Figure.of(metric, difference)
    if figure.value is None:
        return [f"How it compares is not known: {figure.why}."], []
    sign = -1.0 if facts.lower_is_better else 1.0
    # Shares are counts of rows divided by their number: a fall of exactly one point must not fail by rounding.
    if -sign * figure.value > margin + 1e-9:
        verb = "rises" if facts.lower_is_better else "falls"
        limit = f"more than the margin of {facts.amount(margin)}"
        return [f"The {facts.words} {verb} by {facts.amount(abs(figure.value))}, {limit}."], []
    if figure.low is None or figure.high is None:
        return [], [f"These rows cannot rule out that it gets worse: {figure.why}; more rows would."]
    worst = min(sign * figure.low, sign * figure.high)
    if -worst > margin:
        return [], [
            f"These rows cannot rule out that the {facts.words} gets worse by {facts.amount(-worst)} (95 % interval); "
            "more rows would."
        ]
    return [], []
