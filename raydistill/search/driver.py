"""One session of a sweep: one teacher pass, the search, the finals, the winner. Reads from top to bottom."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from raydistill.cluster.connection import connected
from raydistill.cluster.resources import TRIALS_AT_ONCE, groups_at_once, worker_resources
from raydistill.cluster.waiting import Waiting
from raydistill.config.tree import Config
from raydistill.pipeline.defaults import told
from raydistill.pipeline.distill import take_over, tracked
from raydistill.pipeline.prepare import Clock, Prepared
from raydistill.pipeline.stopping import Stop
from raydistill.pipeline.worker import run_workers
from raydistill.search.children import log_summary
from raydistill.search.finals import Choice
from raydistill.search.front import is_eligible, pareto_front
from raydistill.search.ledger import Ledger, Trial
from raydistill.search.proposals import Proposals
from raydistill.search.report.page import write_report
from raydistill.search.report.spreadsheet import trials_csv
from raydistill.search.schedulers import scheduler_for
from raydistill.search.sharing import Judge, Shared, load_shared, save_shared, share, share_with_pool
from raydistill.search.sources import FinalSource, SearchSource, settle
from raydistill.search.space import sweep_of
from raydistill.search.summary import build_summary
from raydistill.search.tuning import TrialResources, run_trials
from raydistill.storage.board import Show
from raydistill.storage.redaction import redact_tree
from raydistill.tracking.runs import finish_run

TRIALS = "trials.csv"


@dataclass
class Driver:
    """One session of a sweep whose data is prepared."""

    prepared: Prepared
    stop: Stop
    clock: Clock
    show: Show

    def __post_init__(self) -> None:
        self.config, self.storage = self.prepared.config, self.prepared.storage
        self.sweep = sweep_of(self.config)
        self.parts = ("runs", self.prepared.run_key)
        self.owner = take_over(self.prepared)

    def run(self, retry_failed: bool) -> dict[str, Any]:
        with tracked(self.prepared, "sweep") as self.ref, ExitStack() as held:
            self.stop.is_obeyed = True
            self.show({"phase": "start", "note": "Ray"})
            with connected():
                self.stop.listen()
                self.shared = self.share()
                self.resources = self.trial_resources()
                self.ledger = Ledger(self.storage, self.parts, self.owner)
                reopen(self.ledger, retry_failed)
                stopped_by = self.search()
                self.choice = Choice(self.prepared, self.owner, self.shared, self.ref, self.stop, self.show)
                with self.clock.phase("finals", self.quiet):
                    self.choice.train_again(self.ledger, self.resources, partial(self.view, "finals"))
                with self.clock.phase("evaluate", self.quiet):
                    self.choice.evaluate(held)
            self.stop.is_obeyed = False
            with self.clock.phase("register", self.show):
                settle(SearchSource, self.ledger, self.shared, self.ref)
                settle(FinalSource, self.choice.ledger, self.shared, self.ref)
                results = self.choice.register(self.clock)
            return self.summarize(results, stopped_by)

    def share(self) -> Shared:
        """Teacher, signals and shapes: from the session before, or made by one worker group."""
        job = self.prepared.job(self.owner, self.ref)
        shared = load_shared(job)
        if shared is None:
            with self.clock.phase("teacher", self.quiet):
                if self.config.teacher.pool is not None:
                    shared = share_with_pool(job, self.show, self.stop)
                else:
                    shared = run_workers(job, self.show, self.stop, share)
            save_shared(shared)
        return shared

    def trial_resources(self) -> TrialResources:
        """What trials run on; ConfigError where the cluster can never hold one."""
        resources = worker_resources(self.config.train, groups=TRIALS_AT_ONCE, is_trial=True)
        room = groups_at_once(self.config.train, resources)
        limits = [limit for limit in (room, self.sweep.max_concurrent_trials) if limit is not None]
        self.waiting = Waiting(self.config.train, resources, self.show, who="workers of a trial")
        return TrialResources(self.config.train.num_workers, resources, min(limits, default=None))

    def search(self) -> str | None:
        """Train trials until the budget is used up; what ended it."""
        proposals = Proposals(self.config, self.ledger, Judge(self.config, self.shared))
        with self.clock.phase("search", self.quiet):
            if not proposals.is_exhausted:
                run_trials(
                    SearchSource(self.ledger, self.shared, self.ref, self.stop, proposals),
                    self.resources,
                    lambda: self.view("search", list(self.ledger), proposals.num_trials),
                    scheduler_for(self.sweep, proposals.replayed),
                )
        return proposals.stopped_by

    def view(self, phase: str, trials: list[Trial], total: int) -> None:
        """Show how the trials are doing."""
        if self.waiting.look(waits_for_room(trials, self.resources.workers)):
            return
        self.show(
            {
                "phase": phase,
                "trials": trials,
                "total": total,
                "elapsed": time.perf_counter() - self.clock.started,
                "objectives": dict(self.sweep.objectives),
                "constraints": self.sweep.constraints,
                "metric": f"validation/{self.config.epoch_metric}",
                "left": seconds_left(trials, total, self.resources.concurrency or 1),
            }
        )

    def quiet(self, entry: object) -> None:
        """The phases inside show themselves."""

    def summarize(self, results: dict[str, Any] | None, stopped_by: str | None) -> dict[str, Any]:
        """Write ``sweep.json`` and the report, here and in MLflow."""
        trials, choice, shared = list(self.ledger), self.choice, self.shared
        num_teachers = max(1, len(self.config.members))
        eligible = [trial for trial in trials if is_eligible(trial, self.sweep)]
        trained = sum(trial.seconds for trial in trials if not trial.reused)
        seconds = {**self.clock.seconds, **{f"shared/{k}": v for k, v in shared.seconds.items()}, "trials": trained}
        summary = build_summary(
            config=self.config,
            sweep_key=self.prepared.run_key,
            run_id=self.ref.run_id,
            trials=trials,
            front=pareto_front(eligible, self.sweep.objectives),
            finalists=choice.finalists,
            winner=choice.winner,
            results=results,
            shapes=[{"shape": s.name, "num_parameters": s.num_parameters, **(s.latency or {})} for s in shared.shapes],
            seconds={**seconds, "total": self.clock.total()},
            concurrency=self.resources.concurrency,
            stopped_by=stopped_by,
            teacher={
                "passes": num_teachers,
                "passes_saved": num_teachers * (passes(self.config, [*trials, *choice.ledger], shared.rows) - 1),
                "rows": shared.rows,
            },
            notes=[*self.prepared.info.notes, *told(self.prepared.choices), *shared.notes, *choice.notes],
        )
        with tempfile.TemporaryDirectory() as folder:
            report = Path(folder) / "report.html"
            write_report(summary, report)
            self.storage.upload(report, *self.parts, "report.html")
            shown = redact_tree(summary)
            (Path(folder) / "sweep.json").write_text(json.dumps(shown, indent=1))
            (Path(folder) / TRIALS).write_text(trials_csv(shown), encoding="utf-8")
            self.storage.upload(Path(folder) / TRIALS, *self.parts, TRIALS)
            log_summary(self.ref, summary)
            finish_run(self.ref, None, Path(folder), status="FINISHED")
        self.storage.write_json(summary, *self.parts, "sweep.json")  # last: a sweep that has it is finished
        return summary


def waits_for_room(trials: Sequence[Trial], workers: int) -> bool:
    """Whether trials are still to begin and none has; one of several workers counts as running before it has these."""
    running = [trial for trial in trials if trial.state == "running"]
    has_begun = any(trial.history for trial in running) if workers > 1 else bool(running)
    return not has_begun and any(trial.state in ("waiting", "running") for trial in trials)


def reopen(ledger: Ledger, retry_failed: bool) -> None:
    """Let failed trials wait for another attempt; without ``retry_failed`` only those that are not to blame for it."""
    for trial in [trial for trial in ledger if trial.state == "failed" and (retry_failed or trial.is_blameless)]:
        ledger.update(trial.number, state="waiting", reason=None, is_blameless=False)


def seconds_left(trials: list[Trial], total: int, concurrency: int) -> float | None:
    """Estimate from the mean of ended trials; None before there is one."""
    done = [trial.seconds + trial.setup_seconds for trial in trials if trial.state in ("completed", "stopped")]
    if not done:
        return None
    open_trials = total - sum(trial.state in ("completed", "stopped", "failed") for trial in trials)
    return max(open_trials, 0) * sum(done) / len(done) / concurrency


def passes(config: Config, trials: list[Trial], rows: int) -> int:
    """Passes over the training rows that trials made: so often would a teacher inside the loop have run."""
    steps = sum(trial.history[-1]["step"] for trial in trials if trial.history and not trial.reused)
    return round(steps * config.train.global_batch_size / max(rows, 1))
