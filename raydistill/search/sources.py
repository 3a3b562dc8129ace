"""Where a sweep's trials come from: the search, then the finals; results go to their ledger and to MLflow."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, cast

from raydistill.config.tree import Config
from raydistill.errors import RaydistillError, TrackingError
from raydistill.pipeline.reporting import metrics_path
from raydistill.search.children import finish_child, start_child
from raydistill.search.ledger import Ledger, Schedule, State, Trial, read_schedule
from raydistill.search.proposals import Proposals
from raydistill.search.sharing import Shared
from raydistill.search.space import SEED
from raydistill.search.trial import FOLDER, TrialSpec, kept_values, trial_config
from raydistill.storage.artifacts import Artifact
from raydistill.storage.garbage import refer
from raydistill.tracking.runs import RunRef, drain

logger = logging.getLogger(__name__)

MAX_FAULTS = 3
"""Trials in a row that may fail for what is no fault of theirs, each after ``train.max_failures`` restarts."""
OF = "sweep.trial"
"""The finalist's number: a final's ledger entry has it, and its own seed, beside the finalist's settings."""


class TrialSource:
    """Hands out the trials of one group, and writes what becomes of them to its ledger and to their MLflow runs; a
    tracking server that is away disturbs no trial."""

    kind: ClassVar[str]
    is_over = False
    """Whether running trials should end at their next validation."""

    def __init__(self, ledger: Ledger, shared: Shared, parent: RunRef, stop: threading.Event) -> None:
        self.ledger, self.shared, self.parent, self.stop = ledger, shared, parent, stop
        self._runs: dict[int, RunRef] = {}
        self._times = {trial.number: {e["validation"]: e["seconds"] for e in trial.history} for trial in ledger}
        """Seconds at each validation: a resumed trial tells them one by one, and its history is short until then."""
        self._before: dict[int, float] = {}
        """Seconds that lie behind a trial's present actor."""
        self._faults: list[str] = []
        """Why the last trials failed, in a row, that are not to blame."""

    def next(self) -> Trial | None:
        raise NotImplementedError

    @property
    def is_exhausted(self) -> bool:
        """Whether no trial will be handed out any more."""
        raise NotImplementedError

    def spec(self, trial: Trial) -> TrialSpec:
        """What the trial's actor is told."""
        schedule, seed = self._settings(trial)
        name = trial_name(self.kind, trial)
        run = self._start(trial, trial_config(self.shared.job.config, schedule, seed), name)
        run_id = run.run_id if run else None
        self.ledger.update(trial.number, run_id=run_id or trial.run_id)
        return TrialSpec(trial.number, name, schedule, seed, run_id)

    def _settings(self, trial: Trial) -> tuple[Schedule, int | None]:
        """What is trained, and the seed where it is not the config's own."""
        return trial.course, None

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

    def report(self, number: int, entry: Mapping[str, Any]) -> None:
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
        values = kept_values(history)
        changes: dict[str, Any] = {"history": history, "values": values, "seconds": told["seconds"]}
        if told.get("setup_seconds"):
            changes["setup_seconds"] = told["setup_seconds"]
        if len(schedule) > 1:
            changes["schedule"] = schedule
            changes["params"] = trial.params | schedule[-1][1]
        self.ledger.update(number, **changes)

    def check_faults(self) -> None:
        """RaydistillError where trial after trial fails for what is wrong with nodes or with storage."""
        if len(self._faults) >= MAX_FAULTS:
            raise RaydistillError(
                f"{len(self._faults)} trials in a row failed for what is no fault of theirs, the last so: "
                f"{self._faults[-1]} Mend that; the same command goes on with these trials from their checkpoints."
            )

    def end(self, number: int, state: State, **changes: Any) -> None:
        """Note how a trial ended, end its MLflow run, and drop the checkpoints of one that will not go on.

        What was noted first stands: Tune tells the end of a trial a second time where it fails to stop its actor.
        """
        if self.ledger[number].has_ended:
            return
        trial = self._note_end(number, state, **changes)
        self._faults = [*self._faults, trial.reason or ""] if trial.is_blameless else []
        if state != "completed" and not trial.is_blameless:  # a completed one's went when its student was published
            job = self.shared.job
            job.storage.delete("runs", job.run_key, FOLDER, trial_name(self.kind, trial), "student")
        run = self._runs.pop(number, None)
        if run is None:
            return
        status = "FAILED" if state == "failed" else "FINISHED"
        try:
            finish_child(run, status, values=trial.measures, tags={"state": state, "reason": trial.reason or ""})
        except TrackingError as error:
            logger.warning("The end of trial %s is not tracked. %s", number, error)

    def _note_end(self, number: int, state: State, **changes: Any) -> Trial:
        return self.ledger.update(number, state=state, **changes)


class SearchSource(TrialSource):
    """Trials that the searcher proposes."""

    kind = "trial"

    def __init__(
        self, ledger: Ledger, shared: Shared, parent: RunRef, stop: threading.Event, proposals: Proposals
    ) -> None:
        super().__init__(ledger, shared, parent, stop)
        self.proposals = proposals

    def next(self) -> Trial | None:
        return None if self.stop.is_set() else self.proposals.next()

    def _note_end(self, number: int, state: State, **changes: Any) -> Trial:
        return self.proposals.end(number, state, **changes)

    @property
    def is_exhausted(self) -> bool:
        return self.stop.is_set() or self.proposals.is_exhausted

    @property
    def is_over(self) -> bool:  # type: ignore[override]
        return self.proposals.stopped_by == "max_hours"


class FinalSource(TrialSource):
    """The finalists' settings once more, each with fresh seeds."""

    kind = "final"

    def __init__(
        self, ledger: Ledger, shared: Shared, parent: RunRef, stop: threading.Event, wanted: list[tuple[Trial, int]]
    ) -> None:
        """``wanted``: finalist and seed; what the ledger has completed already is not trained again."""
        super().__init__(ledger, shared, parent, stop)
        known = {(final.params[OF], final.params[SEED]): final for final in ledger}
        finals = [
            known.get((trial.number, seed))
            or ledger.add({**trial.params, SEED: seed, OF: trial.number}, facts=trial.facts, schedule=trial.schedule)
            for trial, seed in wanted
        ]
        self.open = [final.number for final in finals if not self._is_done(final)]

    def _is_done(self, final: Trial) -> bool:
        return final.state == "completed" and self._student(final).exists()

    def _student(self, final: Trial) -> Artifact:
        return Artifact(self.shared.job.storage, "student", str(final.student))

    def next(self) -> Trial | None:
        return self.ledger[self.open.pop(0)] if self.open and not self.stop.is_set() else None

    def _settings(self, trial: Trial) -> tuple[Schedule, int | None]:
        own = {name: value for name, value in trial.params.items() if name not in (SEED, OF)}
        return trial.schedule or ((0, own),), cast("int", trial.params[SEED])

    def _note_end(self, number: int, state: State, **changes: Any) -> Trial:
        final = super()._note_end(number, state, **changes)
        if state == "completed":
            job = self.shared.job
            refer(job.storage, job.run_key, [self._student(final)])
        return final

    @property
    def is_exhausted(self) -> bool:
        return self.stop.is_set() or not self.open


def trial_name(kind: str, trial: Trial) -> str:
    return f"{kind}-{trial.number:05d}"


def settle(source: type[TrialSource], ledger: Ledger, shared: Shared, parent: RunRef) -> None:
    """Send what the trials' writers could not, while the tracking server was away, and drop their folders."""
    job = shared.job
    for trial in ledger:
        parts = ("runs", job.run_key, FOLDER, trial_name(source.kind, trial))
        metrics = metrics_path(job.storage, *parts)
        if trial.run_id is not None and metrics.exists():
            drain(replace(parent, run_id=trial.run_id), metrics)
        if trial.has_ended and not trial.is_blameless:
            job.storage.delete(*parts)
