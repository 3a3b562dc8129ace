"""A sweep's trials in MLflow: children of the sweep's run, with the parameter and metric names that a run has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raydistill.config.tree import Config
from raydistill.tracking.lineage import parameters
from raydistill.tracking.listing import COUNTS, PARENT
from raydistill.tracking.runs import RUN_KEY, RunRef, log_figures, log_params, open_client, open_run, reported, set_tags

HEADLINES = {"latency_ms": "latency_ms/p50"}
"""A sweep's names for figures that the run of a ``distill`` has under another one."""


def start_child(parent: RunRef, config: Config, key: str, name: str, *, facts: Mapping[str, float]) -> RunRef:
    """The parent's child run with this key, reopened if there is one. ``facts``: figures known before training.

    Takes about 30 ms on local sqlite. Raises TrackingError.
    """
    with reported(parent.tracking_uri):
        client = open_client(parent.tracking_uri)
        run_id = open_run(client, parent.experiment_id, name, {RUN_KEY: key, PARENT: parent.run_id}, {})
        log_params(client, run_id, parameters(config))
        log_figures(client, run_id, {HEADLINES.get(name, name): value for name, value in facts.items()})
        if config.tracking.tags:
            set_tags(client, run_id, config.tracking.tags)
    return RunRef(parent.tracking_uri, parent.experiment_id, run_id)


def finish_child(ref: RunRef, status: str, *, values: Mapping[str, float], tags: Mapping[str, str]) -> None:
    """End a child run with the metrics of its best epoch, ``best_validation/…``, and its state as a tag."""
    with reported(ref.tracking_uri):
        client = open_client(ref.tracking_uri)
        best = {f"best_{name}": value for name, value in values.items() if name.startswith("validation/")}
        log_figures(client, ref.run_id, best)
        set_tags(client, ref.run_id, {f"raydistill.{name}": text[:5000] for name, text in tags.items() if text})
        client.set_terminated(ref.run_id, status)


def log_summary(parent: RunRef, summary: Mapping[str, Any]) -> None:
    """In the sweep's own run: its trials by state, ``trials/<state>``, and the winner's means over its seeds,
    ``winner/<split>/<metric>``. Raises TrackingError."""
    means: dict[str, Any] = {f"{COUNTS}{state}": float(number) for state, number in summary["counts"].items()}
    if summary["winner"] is not None:
        won = next(found for found in summary["finalists"] if found["trial"] == summary["winner"]["trial"])
        means |= {f"winner/{s}/{m}": v["mean"] for s in ("validation", "test") for m, v in won[s].items()}
    with reported(parent.tracking_uri):
        known = {name: mean for name, mean in means.items() if mean is not None}
        log_figures(open_client(parent.tracking_uri), parent.run_id, known)


def adopt(parent: RunRef, ref: RunRef, name: str) -> None:
    """Make a run the child of another. Raises TrackingError."""
    with reported(parent.tracking_uri):
        set_tags(open_client(parent.tracking_uri), ref.run_id, {PARENT: parent.run_id, "mlflow.runName": name})
