"""Where a sweep's trials come from: the search, then the finals; results go to their ledger and to MLflow."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from raydistill.config.tree import Config
from raydistill.errors import TrackingError
from raydistill.pipeline.reporting import metrics_path
from raydistill.search.children import finish_child, start_child
from raydistill.search.ledger import Ledger, Params, Schedule, State, Trial, read_schedule
from raydistill.search.proposals import Proposals
from raydistill.search.sharing import Shared
from raydistill.search.space import SEED
from raydistill.search.trial import FOLDER, TrialSpec, best_values, trial_config
from raydistill.storage.artifacts import Artifact
from raydistill.storage.garbage import refer
from raydistill.tracking.runs import RunRef, drain

logger = logging.getLogger(__name__)

OF = "sweep.trial"
"""The finalist's number: a final's ledger entry has it, and its own seed, beside the finalist's settings."""


class TrialTracker:
    """The ledger and the MLflow children of one group of trials; a tracking server that is away disturbs no trial."""

    def __init__(self, ledger: Ledger, shared: Shared, parent: RunRef, kind: str) -> None:
        """``kind``: ``trial`` or ``final``."""
        self.ledger, self.shared, self.parent, self.kind = ledger, shared, parent, kind
        self.metric = shared.job.config.epoch_metric
        self._runs: dict[int, RunRef] = {}
        self._times = {trial.number: {e["validation"]: e["seconds"] for e in trial.history} for trial in ledger}
        """Seconds at each validation: a resumed trial tells them one by one, and its history is short until then."""
        self._before: dict[int, float] = {}
        """Seconds that lie behind a trial's present actor."""

    def spec(self, trial: Trial, schedule: Schedule, seed: int | None = None) -> TrialSpec:
        """What the trial's actor is told."""
        name = f"{self.kind}-{trial.number:05d}"
        run = self._start(trial, trial_config(self.shared.job.config, schedule, seed), name)
        self.ledger.update(trial.number, run_id=run.run_id if run else trial.run_id)
        return TrialSpec(trial.number, name, schedule, seed, run)

    def _start(self, trial: Trial, config: Config, name: str) -> RunRef | None:
        try:
            run = start_child(self.parent, config, f"{self.shared.job.run_key}/{name}", name, facts=trial.facts)
        except TrackingError as error:
            logger.warning("Trial %s is not tracked. %s", trial.number, error)
            return None
        self._runs[trial.number] = run
        return run

    def start(self, number: int) -> None:
        """A place was found for the trial."""
        self.ledger.update(number, state="running", started=time.time())

    def report(self, number: int, entry: Mapping[str, Any]) -> Trial:
        """Note a validation; one that a resumed trial tells again is known already, and keeps its time."""
        trial = self.ledger[number]
        told = dict(entry)
        schedule = read_schedule(told.pop("schedule", ()))
        known = [past for past in trial.history if past["validation"] < told["validation"]]
        times = self._times.setdefault(number, {})
        if told["seconds"] == 0.0:
            told["seconds"] = self._before[number] = times.get(told["validation"], 0.0)
        else:  # the actor counts from its own start
            told["seconds"] += self._before.get(number, 0.0)
        times[told["validation"]] = told["seconds"]
        history = (*known, told)
        values = best_values(history, self.metric)
        changes: dict[str, Any] = {"history": history, "values": values, "seconds": told["seconds"]}
        if told.get("setup_seconds"):
            changes["setup_seconds"] = told["setup_seconds"]
        if len(schedule) > 1:
            changes["schedule"] = schedule
            changes["params"] = schedule[-1][1]
        return self.ledger.update(number, **changes)

    def end(self, number: int, state: State) -> None:
        """End the MLflow run, and drop the checkpoints of a trial that will not go on."""
        trial = self.ledger[number]
        if state != "completed":  # a completed one's went when its student was published
            job = self.shared.job
            job.storage.delete("runs", job.run_key, FOLDER, f"{self.kind}-{number:05d}", "student")
        run = self._runs.pop(number, None)
        if run is None:
            return
        status = "FAILED" if state == "failed" else "FINISHED"
        try:
            finish_child(run, status, values=trial.measures, tags={"state": state, "reason": trial.reason or ""})
        except TrackingError as error:
            logger.warning("The end of trial %s is not tracked. %s", number, error)

    def settle(self) -> None:
        """Send what the trials' writers could not, while the tracking server was away, and drop their folders."""
        job = self.shared.job
        for trial in self.ledger:
            parts = ("runs", job.run_key, FOLDER, f"{self.kind}-{trial.number:05d}")
            metrics = metrics_path(job.storage, *parts)
            if trial.run_id is not None and metrics.exists():
                drain(replace(self.parent, run_id=trial.run_id), metrics)
            if trial.has_ended:
                job.storage.delete(*parts)


class SearchSource:
    """Trials that the searcher proposes."""

    def __init__(self, proposals: Proposals, tracker: TrialTracker, stop: threading.Event) -> None:
        self.proposals, self.tracker, self.stop = proposals, tracker, stop

    def next(self) -> Trial | None:
        return None if self.stop.is_set() else self.proposals.next()

    def spec(self, trial: Trial) -> TrialSpec:
        return self.tracker.spec(trial, trial.course)

    def start(self, number: int) -> None:
        self.tracker.start(number)

    def report(self, number: int, entry: dict[str, Any]) -> None:
        self.tracker.report(number, entry)

    def end(self, number: int, state: State, **changes: Any) -> None:
        self.proposals.end(number, state, **changes)
        self.tracker.end(number, state)

    @property
    def is_exhausted(self) -> bool:
        return self.stop.is_set() or self.proposals.is_exhausted

    @property
    def is_over(self) -> bool:
        return self.proposals.stopped_by == "max_hours"


class FinalSource:
    """The finalists' settings once more, each with fresh seeds."""

    is_over = False

    def __init__(self, wanted: list[tuple[Trial, int]], tracker: TrialTracker, stop: threading.Event) -> None:
        """``wanted``: finalist and seed; what the ledger has completed already is not trained again."""
        self.tracker, self.stop = tracker, stop
        self.numbers: dict[tuple[int, int], int] = {}
        known = {final_key(final.params): final.number for final in tracker.ledger}
        for trial, seed in wanted:
            params = final_params(trial, seed)
            number = known.get(final_key(params))
            if number is None:
                number = tracker.ledger.add(params, facts=trial.facts, schedule=trial.schedule).number
            self.numbers[trial.number, seed] = number
        self.open = [n for n in self.numbers.values() if not self._is_done(tracker.ledger[n])]

    def _student(self, key: str) -> Artifact:
        return Artifact(self.tracker.shared.job.storage, "student", key)

    def _is_done(self, final: Trial) -> bool:
        return final.state == "completed" and final.student is not None and self._student(final.student).exists()

    def next(self) -> Trial | None:
        return self.tracker.ledger[self.open.pop(0)] if self.open and not self.stop.is_set() else None

    def spec(self, trial: Trial) -> TrialSpec:
        params = dict(trial.params)
        seed, _ = params.pop(SEED), params.pop(OF)
        assert isinstance(seed, int)
        schedule = trial.schedule or ((0, params),)
        return self.tracker.spec(trial, schedule, seed)

    def start(self, number: int) -> None:
        self.tracker.start(number)

    def report(self, number: int, entry: dict[str, Any]) -> None:
        self.tracker.report(number, {name: value for name, value in entry.items() if name != "schedule"})

    def end(self, number: int, state: State, **changes: Any) -> None:
        self.tracker.ledger.update(number, state=state, **changes)
        if state == "completed":
            job = self.tracker.shared.job
            refer(job.storage, job.run_key, [self._student(changes["student"])])
        self.tracker.end(number, state)

    @property
    def is_exhausted(self) -> bool:
        return self.stop.is_set() or not self.open


def final_params(trial: Trial, seed: int) -> Params:
    return {**trial.params, SEED: seed, OF: trial.number}


def final_key(params: Params) -> tuple[Any, Any]:
    return params[OF], params[SEED]
