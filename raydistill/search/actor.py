"""Trials on Ray: a warm actor that trains one student after another, or a Ray Train group for each trial."""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import wait
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import ray.tune
import torch
from ray.util.queue import Empty, Queue

from raydistill.cluster.connection import has_gpu
from raydistill.cluster.device import Device, keep_freed_memory
from raydistill.cluster.group import Group
from raydistill.errors import Interrupted, RaydistillError
from raydistill.pipeline.context import Context
from raydistill.pipeline.failures import explain
from raydistill.pipeline.worker import OF_ONE_RANK, in_background, make_trainer, outcome_of
from raydistill.search.ledger import Params
from raydistill.search.sharing import Shared
from raydistill.search.trial import FOLDER, TrialBoard, TrialSpec, trial_job, trial_reports
from raydistill.storage.board import Board

SCHEDULE = "schedule.json"
"""In a trial's folder and its checkpoints under pbt: from which step on which settings held."""
LOOK_S = 1.0
"""At this interval a trial looks whether its group has ended without a word."""
END_SECONDS = 60.0
"""Within this time a group that is told to ends: a step, a checkpoint, and its processes."""
OUT_OF_MEMORY = (torch.cuda.OutOfMemoryError, MemoryError)
NODE_FAULTS = (*OF_ONE_RANK, OSError)
"""No fault of a trial's settings. Raised, so that this actor ends and Tune begins the trial again in another."""
FAULT_SECONDS = 10.0
"""For so long an actor with such an error keeps its place: a bad node, which fails at once, would get trial after
trial."""


def ended(error: BaseException) -> dict[str, Any]:
    """The last result of a trial that did not come to its end."""
    if isinstance(error, Interrupted):
        return {"interrupted": True, "done": True}
    reason = str(error)
    if isinstance(error, OUT_OF_MEMORY):
        reason = (
            f"out of memory: {reason.splitlines()[0] if reason else type(error).__name__}. Lower "
            "train.tokens_per_micro_batch, or keep such students out with sweep.constraints.num_parameters."
        )
    return {"failure": reason, "blameless": isinstance(error, NODE_FAULTS), "done": True}


class TrialActor(ray.tune.Trainable):
    """Trains a student alone. Kept by Tune for the next trial: imports, rows, signals and teacher stay loaded."""

    def setup(self, config: dict[str, Any], shared: Shared, num_threads: int, exchanges: bool) -> None:  # type: ignore[override]
        """``exchanges``: under pbt, trials take over each other's checkpoints."""
        keep_freed_memory()
        torch.set_num_threads(num_threads)
        self.shared, self.exchanges = shared, exchanges
        device = Device("cuda" if has_gpu() else "cpu", shared.job.dtype)
        self.context = Context(shared.job, Group(device.torch_device), device, self._board())
        self.reports: Iterator[dict[str, Any]] | None = None
        self._take(config["trial"])

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Put away the last trial; the next one begins with ``step``."""
        self._close()
        self._take(new_config["trial"])
        return True

    def _take(self, plain: dict[str, Any]) -> None:
        self.spec = TrialSpec.from_plain(plain)
        context = (*self._work(), SCHEDULE)
        if self.exchanges and self.shared.job.storage.exists(*context):  # newer than the ledger, if a kill came between
            schedule = self.shared.job.storage.read_json(*context)
            self.spec = TrialSpec.from_plain({**plain, "schedule": schedule})
        self.params: Params = dict(plain["params"])
        """What holds from here on: pbt changes these, and knows nothing of schedules."""

    def step(self) -> dict[str, Any]:
        """Train up to the next validation."""
        try:
            if self.reports is None:
                self.context.take_up(trial_job(self.shared, self.spec), self._board())
                self.reports = trial_reports(self.context, self.shared, save_at_validation=self.exchanges)
            entry = next(self.reports)
        except NODE_FAULTS:
            self._close()
            time.sleep(FAULT_SECONDS)
            raise
        except (RaydistillError, *OUT_OF_MEMORY) as error:
            self._close()
            return ended(error)
        if entry["finished"]:
            self._close()
        return {**entry, "schedule": self.spec.to_plain()["schedule"], "done": entry["finished"]}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """What another trial needs to take over from here (pbt)."""
        storage, parts = self.shared.job.storage, self._work()
        storage.download(Path(checkpoint_dir) / FOLDER, *parts)
        (Path(checkpoint_dir) / SCHEDULE).write_text(json.dumps(self.spec.to_plain()["schedule"]))

    def load_checkpoint(self, checkpoint: str | dict[str, Any] | None) -> None:
        """Take over another trial's weights, optimizer and settings so far; the new settings hold from here on."""
        folder = Path(str(checkpoint))
        storage, parts = self.shared.job.storage, self._work()
        schedule = json.loads((folder / SCHEDULE).read_text())
        if schedule[-1][1] != self.params:
            step = last_step(folder / FOLDER)
            schedule = [entry for entry in schedule if entry[0] < step]  # what was to hold from this step on never did
            schedule.append([step, self.params])
        storage.delete(*parts)
        # before the weights: killed here, the trial takes this schedule from its first step, to the same student
        storage.write_json(schedule, *parts, SCHEDULE)
        storage.upload(folder / FOLDER, *parts)
        self.spec = TrialSpec.from_plain({**self.spec.to_plain(), "schedule": schedule})

    def cleanup(self) -> None:
        self._close()

    def _work(self) -> tuple[str, ...]:
        return trial_job(self.shared, self.spec).run_parts

    def _board(self) -> TrialBoard:
        job = self.shared.job
        return TrialBoard(job.storage, job.board_parts, job.owner)

    def _close(self) -> None:
        """Drop generator and student; metrics that are still in the file are sent."""
        if self.reports is not None:
            self.reports.close()  # type: ignore[attr-defined]  # a generator
            self.reports = None
        self.context.report.flush()


class TrialGroup(ray.tune.Trainable):
    """Trains a student in a Ray Train group of its own, on several workers.

    The group ends before this actor does. Ray would end it, too, but leaves its place on the nodes reserved where a
    cluster has no dashboard, which its cleaner asks: no other group would ever find room.
    """

    def setup(self, config: dict[str, Any], shared: Shared, resources: dict[str, float]) -> None:  # type: ignore[override]
        """``resources``: of each worker, as the driver has planned them, which knows whether the cluster can grow."""
        self.spec = TrialSpec.from_plain(config["trial"])
        self.job = trial_job(shared, self.spec)
        self.reports = Queue(actor_options={"num_cpus": 0})
        start = uuid.uuid4().hex[:8]  # Tune may begin a trial again, and Ray would resume a group of the same name
        name = f"{self.job.run_key}-{self.job.owner.number}-{self.spec.name}-{start}"
        phases = partial(report_trial, shared=shared)
        trainer = make_trainer(self.job, phases, name, resources, [pass_on(self.reports)])
        self.fitting = in_background("ray-train", lambda: outcome_of(trainer))

    def step(self) -> dict[str, Any]:
        """The next validation, or how the trial ended."""
        while not self.fitting.done() or self.reports.qsize():
            with suppress(Empty):
                entry: dict[str, Any] = self.reports.get(timeout=LOOK_S)
                if not entry["finished"]:
                    return entry
                wait([self.fitting])
                return {**entry, "done": True}
        error = self.fitting.exception()
        outcome = self.fitting.result() if error is None else explain(error)
        if isinstance(outcome, BaseException):
            return ended(outcome)
        return {"done": True}

    def cleanup(self) -> None:
        board = Board(self.job.storage, self.job.run_parts, self.job.owner)
        if not self.fitting.done():
            board.request_stop()
            wait([self.fitting], END_SECONDS)
        if self.fitting.done():
            board.withdraw_stop()  # Tune may begin this trial again
        self.reports.shutdown()


def pass_on(reports: Queue) -> Any:
    """Hands what rank 0 reports to the trial."""
    from ray.train import UserCallback

    class PassOn(UserCallback):
        def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
            reports.put(metrics[0])

    return PassOn()


def report_trial(context: Context, shared: Shared) -> None:
    """What each worker of a trial's group runs."""
    import ray.train

    job = context.job
    context.report.observed = lambda metrics: None
    own = Board(job.storage, job.run_parts, job.owner)
    context.report.board = TrialBoard(job.storage, job.board_parts, job.owner, own)
    for entry in trial_reports(context, shared):
        ray.train.report(entry)


def last_step(work: Path) -> int:
    """The step of the checkpoint in a trial's folder; pbt sweeps have one stage."""
    (pointer,) = work.glob("student/*/last.json")
    return int(json.loads(pointer.read_text())["step"])


def threads_of(resources: dict[str, float]) -> int:
    """Threads of a trial: its CPUs, unless the environment says otherwise."""
    return int(os.environ.get("OMP_NUM_THREADS") or max(1, int(resources.get("CPU", 1))))
