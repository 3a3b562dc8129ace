"""Finished models against each other on the same rows, now: metrics, paired differences, latency in turns."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from raydistill.deploy.predictor import BATCH_ROWS, Predictor, num_letters
from raydistill.deploy.testset import TestRows, spoken
from raydistill.errors import ModelError
from raydistill.evaluate.bootstrap import LEVEL
from raydistill.evaluate.latency import busy_note, quietest, summarize, time_calls
from raydistill.evaluate.results import strict_json
from raydistill.evaluate.scoreboard import Scoreboard, describe_task
from raydistill.models.head import output_order
from raydistill.tasks import Task, task_of
from raydistill.tasks.targets import Values


@dataclass(frozen=True, eq=False)
class PairedComparison:
    """What was measured; ``summary`` is JSON, see ``compare_paired``."""

    board: Scoreboard
    """All outputs in the order of the rows' task."""
    summary: dict[str, Any]


def compare_paired(
    predictors: Mapping[str, Predictor],
    rows: TestRows,
    *,
    num_samples: int = 1000,
    seed: int = 0,
    latency: bool = True,
) -> PairedComparison:
    """Measure every model on the same rows, and each of them paired with the first.

    The summary: ``data`` {source, split, num_rows, labels (names of the outputs), task (see ``describe_task``)};
    ``bootstrap`` {samples, level}; ``models`` {name: {path, runtime, max_length, num_parameters, bytes, latency_ms
    {p50, p95}, throughput, latency_setting (null without latency), metrics {metric: {value, low, high}}, and the
    details of its scores, such as per_class}}; ``pairs``: a list of {first, second, differences {metric: {value, low,
    high}} (second - first, paired), ratios (the same of second ÷ first, of amounts such as perplexity), agreement,
    mcnemar {only_first, only_second, p} (null where answers are not right or wrong), latency_ratio (second ÷ first;
    null without latency, or on different devices)}; ``notes``. Raises ModelError where outputs of models do not fit
    together.
    """
    first, *others = predictors
    tasks, outputs, notices = predict_alike(predictors, rows)
    board = Scoreboard(tasks, outputs, rows.targets, num_samples=num_samples, seed=seed)
    speeds, rounds = measure_speed(predictors, rows.texts) if latency else ({}, {})
    notes = [*rows.notes, *(note for note in (*notices, busy_note(speeds.values())) if note)]
    models = {
        name: {
            "path": str(predictor.folder),
            "runtime": f"{predictor.runtime}, {predictor.device.type}",
            "max_length": predictor.max_length,
            "num_parameters": predictor.num_parameters,
            "bytes": predictor.num_bytes,
            **speed_section(speeds.get(name)),
            "metrics": board.intervals(name),
            **board.details(name),
        }
        for name, predictor in predictors.items()
    }
    device = predictors[first].device.type
    alike = {name for name in others if latency and predictors[name].device.type == device}
    ratios = {name: latency_ratio(rounds[first], rounds[name]) for name in alike}
    pairs = [board.pair(first, name) | {"latency_ratio": ratios.get(name)} for name in others]
    task = {"labels": list(rows.task.outputs), "task": describe_task(rows.task, board.scores.values())}
    data = {"source": rows.source, "split": rows.split, "num_rows": rows.num_rows, **task}
    bootstrap = {"samples": num_samples, "level": LEVEL}
    summary = {"data": data, "bootstrap": bootstrap, "models": models, "pairs": pairs, "notes": notes}
    return PairedComparison(board, strict_json(summary))


def predict_alike(
    predictors: Mapping[str, Predictor], rows: TestRows
) -> tuple[dict[str, Task], dict[str, Values], list[str | None]]:
    """Every model's task, its outputs (N, C) in the order and under the names of the rows' task, and notices."""
    first = next(iter(predictors))
    for name, predictor in predictors.items():
        if why := other_tokens(predictor, predictors[first]):
            raise ModelError(
                f"{name} {why} {first}: their figures are of other tokens, which cannot be compared. Compare models of "
                "one tokenizer and one task.masked_share, at one --max-length, or what they are worth for another task."
            )
    tasks: dict[str, Task] = {}
    outputs: dict[str, Values] = {}
    notices = []
    for name, predictor in predictors.items():
        order, notice = own_order(name, predictor.task, first, rows.task)
        own = predictor.task.reordered(order).facts()
        tasks[name] = task_of({**own, "outputs": list(rows.task.outputs)})
        found = predictor.outputs(rows.texts, rows.targets.values)
        outputs[name] = predictor.task.reordered_outputs(found, order)
        notices.append(notice)
    return tasks, outputs, notices


def measure_speed(
    predictors: Mapping[str, Predictor], texts: Sequence[Any]
) -> tuple[dict[str, dict[str, Any]], dict[str, list[float]]]:
    """Latency and throughput as ``evaluate.latency.measure_models`` gives them, at texts of median length; and the
    seconds of each model's calls with one row, in the order of the rounds."""
    import torch

    order = sorted(range(len(texts)), key=lambda row: num_letters(texts[row]))
    middle = len(order) // 2
    many = [texts[row] for row in order[max(0, middle - BATCH_ROWS // 2) : middle + BATCH_ROWS // 2]]
    many = [many[i % len(many)] for i in range(BATCH_ROWS)]
    inputs = {name: (c.encode([texts[order[middle]]]), c.encode(many)) for name, c in predictors.items()}
    calls = {
        name: (partial(predictors[name].forward, one), partial(predictors[name].forward, batch))
        for name, (one, batch) in inputs.items()
    }
    device = next((c.device for c in predictors.values() if c.device.type != "cpu"), torch.device("cpu"))
    times, waited = quietest(lambda: time_calls(calls, device))
    speeds = {
        name: summarize(*times[name], *inputs[name])
        | {"waited": waited, "threads": torch.get_num_threads(), "device": predictors[name].device.type}
        for name in predictors
    }
    return speeds, {name: row_times for name, (row_times, _) in times.items()}


def latency_ratio(first: Sequence[float], second: Sequence[float]) -> float:
    """Median over the rounds of second ÷ first, whose calls follow each other.

    Beside three processes that want the same two cores it stayed within 0.15 of the 1.43 that quiet cores show, where
    the ratio of the two medians went up to 2.1.
    """
    return float(np.median(np.asarray(second) / np.asarray(first)))


def speed_section(speed: Mapping[str, Any] | None) -> dict[str, Any]:
    """A model's three fields on speed; all null where it was not measured."""
    setting = dict(speed or {})
    latency, throughput = setting.pop("latency_ms", None), setting.pop("throughput", None)
    return {"latency_ms": latency, "throughput": throughput, "latency_setting": setting or None}


def other_tokens(model: Predictor, first: Predictor) -> str | None:
    """What makes a model guess other hidden tokens of the same texts than the first one, as the beginning of a
    sentence about it; None where they are the same, or none are hidden."""
    own, other = (one.task.masks(one.tokenizer) for one in (model, first))
    if own is None or other is None:
        return None
    if token_rules(model.tokenizer) != token_rules(first.tokenizer) or own != replace(other, share=own.share):
        return "has another tokenizer than"
    if own.share != other.share:
        return f"hides {100 * own.share:g} % of the tokens of a text, not {100 * other.share:g} % as"
    if model.max_length != first.max_length:
        return f"reads pieces of {model.max_length} tokens, not of {first.max_length} as"
    return None


def token_rules(tokenizer: Any) -> dict[str, Any]:
    """By what a tokenizer makes tokens of a text. Its files differ by the length of rows, too."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    found = tokenizer.get_vocab() if backend is None else json.loads(backend.to_str())
    return {name: rule for name, rule in found.items() if name not in ("truncation", "padding")}


def own_order(name: str, found: Task, first: str, task: Task) -> tuple[tuple[int, ...], str | None]:
    """As ``output_order``, for two finished models: neither can be given other outputs by a setting."""
    if found.type != task.type:
        raise ModelError(f"{first} is for {spoken(task)}, {name} for {spoken(found)}. Compare models of the same kind.")
    try:
        return output_order(found.outputs, task.outputs)
    except ModelError as error:
        raise ModelError(
            f"The models' outputs do not match. {first}: {', '.join(task.outputs)}. {name}: "
            f"{', '.join(found.outputs)}. Compare models of the same outputs, or rename them in id2label of a model's "
            "config.json."
        ) from error
