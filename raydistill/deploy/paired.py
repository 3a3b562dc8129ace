"""Finished models against each other on the same rows, now: metrics, paired differences, latency in turns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from raydistill.deploy.classifier import Classifier
from raydistill.deploy.testset import TestRows
from raydistill.errors import ModelError
from raydistill.evaluate import compare, metrics
from raydistill.evaluate.intervals import difference_intervals, model_intervals
from raydistill.evaluate.latency import busy_note, quietest, summarize, time_calls
from raydistill.evaluate.metrics import Array
from raydistill.evaluate.results import strict_json
from raydistill.models.labels import label_order

BATCH_ROWS = 32


@dataclass(frozen=True, eq=False)
class PairedComparison:
    """What was measured; ``summary`` is JSON, see ``compare_paired``."""

    rows: TestRows
    class_names: tuple[str, ...]
    """Order of all logits: the first model's own."""
    labels: Array
    """(N,) int64."""
    logits: dict[str, Array]
    """Model name -> (N, C)."""
    summary: dict[str, Any]


def compare_paired(
    classifiers: Mapping[str, Classifier],
    rows: TestRows,
    *,
    num_samples: int = 1000,
    seed: int = 0,
    latency: bool = True,
) -> PairedComparison:
    """Measure every classifier on the same rows, and each of them paired with the first.

    The summary: ``data`` {source, split, num_rows, labels}; ``bootstrap`` {samples, level}; ``models`` {name: {path,
    runtime, max_length, num_parameters, bytes, latency_ms {p50, p95}, throughput, latency_setting (null without
    latency), metrics {metric: {value, low, high}}, per_class, confusion, reliability}}; ``pairs``: a list of {first,
    second, differences {metric: {value, low, high}} (second - first, paired), agreement, mcnemar
    {only_first, only_second, p}, latency_ratio (second ÷ first; null without latency, or on different devices)};
    ``notes``. Raises ModelError where labels of models
    or data do not fit together.
    """
    names = list(classifiers)
    first = classifiers[names[0]]
    notes = list(rows.notes)
    labels, notice = label_ids(rows.labels, first.labels, rows.class_names)
    notes += [notice] if notice else []
    logits = {}
    for name, classifier in classifiers.items():
        order, notice = own_order(name, classifier.labels, names[0], first.labels)
        notes += [notice] if notice else []
        logits[name] = classifier.logits(rows.texts)[:, list(order)]
    samples = metrics.bootstrap(logits, labels, None, num_samples, seed)
    values = {name: metrics.classification_metrics(found, labels) for name, found in logits.items()}
    speeds, rounds = measure_speed(classifiers, rows.texts) if latency else ({}, {})
    ratios, notice = latency_ratios(classifiers, rounds) if latency else ({}, None)
    notes += [note for note in (notice, busy_note(speeds.values())) if note]
    models = {
        name: {
            "path": str(classifier.folder),
            "runtime": f"{classifier.runtime}, {classifier.device.type}",
            "max_length": classifier.max_length,
            "num_parameters": classifier.num_parameters,
            "bytes": classifier.num_bytes,
            **speed_section(speeds.get(name)),
            "metrics": model_intervals(values[name], samples[name], len(labels)),
            "per_class": metrics.per_class(logits[name], labels, first.labels),
            "confusion": metrics.confusion(logits[name], labels, len(first.labels)),
            "reliability": metrics.reliability(logits[name], labels),
        }
        for name, classifier in classifiers.items()
    }
    pairs = [
        pair_section(names[0], name, logits, labels, values, samples) | {"latency_ratio": ratios.get(name)}
        for name in names[1:]
    ]
    data = {"source": rows.source, "split": rows.split, "num_rows": rows.num_rows, "labels": list(first.labels)}
    bootstrap = {"samples": num_samples, "level": metrics.LEVEL}
    summary = {"data": data, "bootstrap": bootstrap, "models": models, "pairs": pairs, "notes": notes}
    return PairedComparison(rows, first.labels, labels, logits, strict_json(summary))


def pair_section(
    first: str,
    second: str,
    logits: Mapping[str, Array],
    labels: Array,
    values: Mapping[str, Mapping[str, float]],
    samples: Mapping[str, Mapping[str, Array]],
) -> dict[str, Any]:
    """Two models on the same rows; ``samples`` are their metrics on the same resamples."""
    differences = difference_intervals(first, second, logits, labels, values, samples, len(labels))
    return {
        "first": first,
        "second": second,
        "differences": differences,
        "agreement": compare.agreement(logits[first], logits[second]),
        "mcnemar": compare.mcnemar(logits[first], logits[second], labels),
    }


def measure_speed(
    classifiers: Mapping[str, Classifier], texts: Sequence[Any]
) -> tuple[dict[str, dict[str, Any]], dict[str, list[float]]]:
    """Latency and throughput as ``evaluate.latency.measure_models`` gives them, at texts of median length; and the
    seconds of each model's calls with one row, in the order of the rounds."""
    import torch

    order = sorted(range(len(texts)), key=lambda row: len("".join(texts[row])))
    middle = len(order) // 2
    many = [texts[row] for row in order[max(0, middle - BATCH_ROWS // 2) : middle + BATCH_ROWS // 2]]
    many = [many[i % len(many)] for i in range(BATCH_ROWS)]
    inputs = {name: (c.encode([texts[order[middle]]]), c.encode(many)) for name, c in classifiers.items()}
    calls = {
        name: (partial(classifiers[name].forward, one), partial(classifiers[name].forward, batch))
        for name, (one, batch) in inputs.items()
    }
    device = next((c.device for c in classifiers.values() if c.device.type != "cpu"), torch.device("cpu"))
    times, waited = quietest(lambda: time_calls(calls, device))
    speeds = {
        name: summarize(*times[name], *inputs[name])
        | {"waited": waited, "threads": torch.get_num_threads(), "device": classifiers[name].device.type}
        for name in classifiers
    }
    return speeds, {name: row_times for name, (row_times, _) in times.items()}


def latency_ratios(
    classifiers: Mapping[str, Classifier], rounds: Mapping[str, Sequence[float]]
) -> tuple[dict[str, float | None], str | None]:
    """``latency_ratio`` of every model to the first, None for one on another device; then a notice says so."""
    (first, base), *others = classifiers.items()
    elsewhere = [name for name, classifier in others if classifier.device.type != base.device.type]
    ratios = {name: None if name in elsewhere else latency_ratio(rounds[first], rounds[name]) for name, _ in others}
    if not elsewhere:
        return ratios, None
    where = ", ".join(f"{name} on {classifiers[name].device.type}" for name in (first, *elsewhere))
    return ratios, f"Latencies on different devices have no ratio: {where}."


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


def own_order(name: str, found: Sequence[str], first: str, labels: Sequence[str]) -> tuple[tuple[int, ...], str | None]:
    """As ``label_order``, for two finished models: neither can be given other labels by a setting."""
    try:
        return label_order(found, labels)
    except ModelError as error:
        raise ModelError(
            f"The models' labels do not match. {first}: {', '.join(labels)}. {name}: {', '.join(found)}. Compare "
            "models of the same labels, or rename them in id2label of a model's config.json."
        ) from error


def label_ids(labels: Sequence[str], own: Sequence[str], names: Sequence[str]) -> tuple[np.ndarray, str | None]:
    """Class ids in the model's order, by name or position; a notice where the order had to be assumed.

    ``names``: all classes of the data; it may hold some of the model's only. Numbers 0…C-1 beside C other names stand
    for these, as in ``data.labels.encode_labels``. Raises ModelError where a label is unknown to the model.
    """
    ids = {name: index for index, name in enumerate(own)}
    if set(labels) <= set(own):
        return np.array([ids[label] for label in labels], dtype=np.int64), None
    positions = {str(index): index for index in range(len(own))}
    if set(labels) <= set(positions) and not any(name.lstrip("-").isdecimal() for name in own):
        said = f"The data's labels are numbers, so 0 to {len(own) - 1} were taken for the model's labels in their order"
        return np.array([positions[label] for label in labels], dtype=np.int64), f"{said}: {', '.join(own)}."
    try:
        order, notice = label_order(own, names)
    except ModelError as error:
        unknown = sorted(set(labels) - set(own))
        raise ModelError(
            f"The data has labels the model does not know: {', '.join(unknown[:5])}. Model: {', '.join(own)}. Rename "
            "them in the data, or in id2label of the model's config.json."
        ) from error
    place = {name: order[index] for index, name in enumerate(names)}
    return np.array([place[label] for label in labels], dtype=np.int64), notice
