"""What a run takes beside its models' work: preparing rows, starting, evaluating, registering. All of it hangs on the
machine more than on the config, so that what earlier runs in the same storage took says most."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from raydistill.config.tree import Config
from raydistill.errors import ArtifactError
from raydistill.storage.storage import Storage

Range = tuple[float, float]

START_RAY, START_LOCAL = (10.0, 30.0), (2.0, 8.0)
"""Seconds until workers work, imports and MLflow's start included: the least on 8 fast cores, the most on 2."""
PREPARE: Range = (1.0, 5.0)
TFIDF: Range = (0.5, 3.0)
MEASURE: Range = (1.0, 4.0)
"""Of an evaluation: intervals, loading models."""
LATENCY: Range = (2.0, 8.0)
REGISTER: Range = (4.0, 10.0)
ROWS_A_SECOND = (10_000.0, 2_000.0)
"""Read and tokenised."""
MOST_RUNS = 5


def overhead(
    config: Config, storage: Storage, num_rows: int, missing: Collection[str], forward: float
) -> dict[str, Range]:
    """Seconds, at least and at most, of each phase that no model is trained in.

    ``missing``: phases that are not there yet; ``forward``: seconds that models take to answer the held-out rows.
    """
    measured = [MEASURE, *([LATENCY] if config.evaluate.latency else []), (forward, forward)]
    found: dict[str, Range] = {
        "start": START_RAY if config.train.num_workers else START_LOCAL,
        "evaluate": (sum(low for low, _ in measured), sum(high for _, high in measured)),
        "register": REGISTER,
    }
    if config.evaluate.tfidf:
        found["tfidf"] = TFIDF
    found |= earlier(config, storage, found)
    if {"data", "tokens"} & {*missing}:
        low, high = (each + num_rows / rate for each, rate in zip(PREPARE, ROWS_A_SECOND, strict=True))
        found["prepare"] = (low, high)
    return found


def earlier(config: Config, storage: Storage, wanted: Collection[str]) -> dict[str, Range]:
    """The same as a few earlier runs in this storage took it that were started as this one will be."""
    seconds: list[dict[str, Any]] = []
    for key in storage.list("runs"):
        try:
            results = storage.read_json("runs", key, "results.json")
        except ArtifactError:
            continue
        if bool(results["config"]["train"]["num_workers"]) == bool(config.train.num_workers):
            seconds.append(results["seconds"])
        if len(seconds) == MOST_RUNS:
            break
    took = {name: [one[name] for one in seconds if one.get(name)] for name in wanted}
    return {name: (min(values), max(values)) for name, values in took.items() if values}
