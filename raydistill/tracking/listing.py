"""Runs of a store, read: distillations, sweeps with their trials, gate verdicts; newest first, a page at a time."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

from raydistill.errors import UnknownName, did_you_mean
from raydistill.storage.redaction import redact
from raydistill.tracking.registry.versions import aliases_of
from raydistill.tracking.runs import RUN_KEY, all_pages, open_client, reported

if TYPE_CHECKING:
    from mlflow.entities import Run

PAGE = 50
"""Runs of one request: MLflow reads all their parameters and metrics, 8 ms a run on sqlite."""
PARENT, KIND, SWEEP = "mlflow.parentRunId", "raydistill.kind", "raydistill.sweep"
COUNTS = "trials/"
"""Start of a sweep's metrics that say how many of its trials ended in which state."""
STARTED = "tags.`raydistill.config_hash` LIKE '%'"
"""What ``tracking.start_run`` has started: distillations and sweeps, not trials, nor what other programs log."""
VERDICTS = f"tags.`{KIND}` = 'gate'"


@dataclass(frozen=True)
class Found:
    """One run; times in milliseconds since 1970, ``ended`` None while it is running."""

    run_id: str
    experiment: str
    name: str
    status: str
    started: int
    ended: int | None
    tags: Mapping[str, str]
    metrics: Mapping[str, float]
    is_sweep: bool
    params: Mapping[str, str] = field(default_factory=dict)
    """Every setting by dotted name, as ``--set`` takes it."""

    @property
    def key(self) -> str | None:
        """Its key in storage; a verdict has none."""
        return self.tags.get(RUN_KEY)


class RunStore:
    """The runs of the store ``uri``, in one experiment or in all. Raises TrackingError."""

    def __init__(self, uri: str, experiment: str | None = None) -> None:
        self.uri = uri
        with reported(uri):
            self.client = open_client(uri)
            found = all_pages(self.client.search_experiments)
            self.experiments = {str(one.experiment_id): str(one.name) for one in found}
            if experiment is not None:
                self.experiments = _named(self.experiments, experiment, uri)

    def newest(self, limit: int) -> tuple[list[Found], dict[str, Found]]:
        """The newest distillations, sweeps and verdicts, and the winners among them by the sweep's run id.

        A winner is its sweep's and no row of its own.
        """
        winners: dict[str, Found] = {}

        def own(runs: Iterator[Found]) -> Iterator[Found]:
            for run in runs:
                if PARENT in run.tags:
                    winners[run.tags[PARENT]] = run
                else:
                    yield run

        with reported(self.uri):
            merged = heapq.merge(self._search(STARTED), self._search(VERDICTS), key=lambda run: -run.started)
            found = list(islice(own(merged), limit))
        return found, winners

    def winner(self, sweep: Found) -> Found | None:
        """The run of a sweep's winner, which may be older than the sweep: a distillation of the same settings."""
        with reported(self.uri):
            found = self._search(f"tags.`{PARENT}` = '{sweep.run_id}' AND tags.`{SWEEP}` = '{sweep.key}'")
            return next(found, None)

    def trials(self, sweep: Found) -> Iterator[Found]:
        """Trials and finals of a sweep, newest first."""
        with reported(self.uri):
            for run in self._search(f"tags.`{PARENT}` = '{sweep.run_id}'"):
                if SWEEP not in run.tags:
                    yield run

    def by_key(self, name: str) -> list[Found]:
        """Runs whose key begins with ``name``, newest first; a trial's is its sweep's, a slash, and its own name."""
        begin, slash, trial = name.partition("/")
        with reported(self.uri):
            found = list(self._search(f"tags.`{RUN_KEY}` LIKE '{begin}%{slash}{trial}'"))
        return [run for run in found if ("/" in str(run.key)) == bool(slash)]

    def versions(self, run: Found) -> list[tuple[str, int, tuple[str, ...]]]:
        """The registered versions that came from a run: model, number, aliases."""
        with reported(self.uri):
            found = self.client.search_model_versions(f"run_id = '{run.run_id}'")
            held = {one.name: self.client.get_registered_model(one.name).aliases for one in found}
        return [(one.name, int(one.version), aliases_of(one, held[one.name])) for one in found]

    def forget(self, run: Found, versions: list[tuple[str, int, tuple[str, ...]]]) -> list[str]:
        """Delete a run, its versions, and of a sweep its trials; the ids of what went.

        A sweep's winner, which may be a distillation of its own, is no longer its child.
        """
        with reported(self.uri):
            for model, version, _ in versions:
                self.client.delete_model_version(model, str(version))
            gone = [run.run_id]
            for child in list(self._search(f"tags.`{PARENT}` = '{run.run_id}'")):
                if SWEEP in child.tags:
                    self.client.delete_tag(child.run_id, PARENT)
                    self.client.delete_tag(child.run_id, SWEEP)
                else:
                    gone.append(child.run_id)
            for run_id in reversed(gone):  # the sweep last, by which its trials are found
                self.client.delete_run(run_id)
        return gone

    def _search(self, condition: str) -> Iterator[Found]:
        order = ["attributes.start_time DESC"]
        found = all_pages(self.client.search_runs, list(self.experiments), condition, max_results=PAGE, order_by=order)
        return (_found(run, self.experiments) for run in found)


def _named(experiments: Mapping[str, str], name: str, uri: str) -> dict[str, str]:
    chosen = {key: value for key, value in experiments.items() if value == name}
    if not chosen:
        hint = did_you_mean(name, experiments.values())
        raise UnknownName(f"MLflow at {redact(uri)} has no experiment {name!r}. {hint}")
    return chosen


def _found(run: Run, experiments: Mapping[str, str]) -> Found:
    info, data = run.info, run.data
    kind = data.tags.get(KIND)
    return Found(
        run_id=str(info.run_id),
        experiment=experiments[str(info.experiment_id)],
        name=str(info.run_name or ""),
        status=str(info.status),
        started=int(info.start_time or 0),
        ended=int(info.end_time) if info.end_time and info.status != "RUNNING" else None,
        tags=dict(data.tags),
        metrics=dict(data.metrics),
        is_sweep=kind == "sweep" or (kind is None and any(name.startswith("sweep.") for name in data.params)),
        params=dict(data.params),
    )
