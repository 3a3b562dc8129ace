"""Retention, chance, and kept predictions, which later comparisons need; ``scoreboard`` sets models side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from raydistill.config.metrics import METRICS, metric, score
from raydistill.errors import ArtifactError
from raydistill.tasks import task_of
from raydistill.tasks.base import Task
from raydistill.tasks.scores import Floor, Scores
from raydistill.tasks.targets import Array, Targets, Values, as_column, of_column


def retention(student: Mapping[str, float], teacher: Mapping[str, float]) -> dict[str, float | None]:
    """See ``Metric.retention``; for each metric for which that makes sense."""
    facts = {name: METRICS[name] for name in teacher}
    return {name: one.retention(student[name], teacher[name]) for name, one in facts.items() if one.is_retained}


def chance(intervals: Mapping[str, Mapping[str, float | None]], floor: Floor) -> dict[str, Any]:
    """Whether a model is no better than one that does not look at its input.

    ``at_chance`` holds when the model has a single answer, or when the 95 % interval of ``metric`` includes or lies
    below ``value``, what such a model reaches. ``reason`` says which: ``constant``; ``floor``; ``floor_only`` (not
    above it, but the interval of another metric shows that it has learned something, as with skewed classes); or None.
    ``answer``: what such a model does; ``why``: the reason in words.
    """
    found, (name, null) = intervals[floor.metric], floor.evidence
    low, is_low_good = found["low"], metric(name).lower_is_better
    evidence = intervals[name]["high" if is_low_good else "low"]
    reason, why = None, ""
    if floor.constant is not None:
        reason, why = "constant", f"it answers {floor.constant} for every row"
    elif low is not None and low <= floor.value:
        facts = metric(floor.metric)
        value, low_text, high_text = (facts.text(found[key] or 0.0) for key in ("value", "low", "high"))
        why = f"its {facts.words} of {value} (95 % interval {low_text} to {high_text}) is not above the "
        why += f"{facts.text(floor.value)} of {floor.answer}"
        reason = "floor"
        if evidence is not None and (evidence < null if is_low_good else evidence > null):
            reason = "floor_only"
            shown = metric(name).text(intervals[name]["value"] or 0.0)
            why += f", although {metric(name).words} {shown} shows that it learned something"
    return {
        "at_chance": reason is not None,
        "reason": reason,
        "why": why,
        "metric": floor.metric,
        "value": floor.value,
        "answer": floor.answer,
    }


def has_learned(scores: Scores) -> bool:
    """Whether a model under training is above what one reaches that sees no row, be it by chance, in one of the two
    metrics that tell."""
    floor = scores.floor()
    if floor.constant is not None:
        return False
    told = ((floor.metric, floor.value), floor.evidence)
    return any(score(name, scores.values) > score(name, {name: value}) for name, value in told)


@dataclass(frozen=True, eq=False)
class Predictions:
    """Kept outputs of several models on one split: a later comparison needs neither the models nor the rows."""

    hashes: tuple[str, ...]
    targets: Targets
    example_ids: Array
    """(N,) int64."""
    outputs: dict[str, Values]
    """Model name -> (N, C) float32."""
    tasks: dict[str, Task]
    """Model name -> the task with that model's thresholds, if it has any."""

    def with_words(self, tokenizer: Any) -> Predictions:
        """The same, with tasks that speak of tokens in the words of this tokenizer."""
        return replace(self, tasks={name: task.with_words(tokenizer) for name, task in self.tasks.items()})

    def aligned(self, hashes: Sequence[str], task: Task) -> Predictions | None:
        """Those of these rows, with the outputs in the order of ``task``; None where a row is not among those kept, or
        they are of another kind of problem or have other outputs."""
        place = {value: row for row, value in enumerate(self.hashes)}
        same = all(own.type == task.type and set(own.outputs) == set(task.outputs) for own in self.tasks.values())
        if not same or not place.keys() >= set(hashes):
            return None
        rows = np.array([place[value] for value in hashes], int)
        orders = {name: [own.outputs.index(output) for output in task.outputs] for name, own in self.tasks.items()}
        return Predictions(
            tuple(hashes),
            self.targets.take(rows),
            self.example_ids[rows],
            {
                name: self.tasks[name].reordered_outputs(found[rows], orders[name])
                for name, found in self.outputs.items()
            },
            {name: own.reordered(orders[name]) for name, own in self.tasks.items()},
        )


def write_predictions(
    folder: Path,
    split: str,
    hashes: Sequence[str],
    targets: Targets,
    outputs: Mapping[str, Values],
    tasks: Mapping[str, Task],
    *,
    example_ids: Array | None = None,
) -> Path:
    """Write ``predictions-<split>.parquet``: columns hash, target (without meaning where not labeled: Parquet reads no
    lists of one length with nulls among them), labeled, example_id, ``logits.<model>`` (C floats)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    ids = np.arange(len(targets)) if example_ids is None else example_ids
    columns: dict[str, pa.Array] = {
        "hash": pa.array(list(hashes), pa.string()),
        "target": as_column(targets.values),
        "labeled": pa.array(targets.labeled),
        "example_id": pa.array(np.asarray(ids, dtype=np.int64)),
    }
    for name, values in outputs.items():
        columns[f"logits.{name}"] = as_column(values, np.float32)
    facts = {name: tasks[name].facts() for name in outputs}
    table = pa.table(columns).replace_schema_metadata({"tasks": json.dumps(facts)})
    path = Path(folder) / f"predictions-{split}.parquet"
    pq.write_table(table, path, compression="zstd")
    return path


def read_predictions(folder: Path, split: str) -> Predictions:
    """Read what ``write_predictions`` wrote. Raises ArtifactError when it is missing or damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(folder) / f"predictions-{split}.parquet"
    try:
        table = pq.read_table(path)
        tasks = {name: task_of(facts) for name, facts in json.loads(table.schema.metadata[b"tasks"]).items()}
        hashes, ids = table["hash"].to_pylist(), table["example_id"].to_numpy()
        targets = Targets(of_column(table["target"].combine_chunks()), table["labeled"].to_numpy())
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"Predictions cannot be read from {path}: {error}. Evaluate the model again to write them."
        ) from error
    outputs = {
        name.removeprefix("logits."): of_column(table[name].combine_chunks())
        for name in table.column_names
        if name.startswith("logits.")
    }
    return Predictions(tuple(hashes), targets, ids, outputs, tasks)
