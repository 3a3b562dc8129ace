"""What a rank tells others: its progress, the run's metrics, the artefacts that the run refers to, times and notes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raydistill.cluster.group import Group
from raydistill.errors import Interrupted
from raydistill.pipeline.job import Job
from raydistill.storage.artifacts import Artifact
from raydistill.storage.board import Board
from raydistill.storage.garbage import refer
from raydistill.storage.storage import Storage
from raydistill.tracking.journal import metric_prefix
from raydistill.tracking.runs import Tracker
from raydistill.train.loop import Report


def metrics_path(storage: Storage, *run_parts: str) -> Path:
    """Return the local file that holds a run's metrics until MLflow has them."""
    if storage.is_local:
        return Path(storage.path(*run_parts, "metrics.jsonl"))
    cache = Path(os.environ.get("RAYDISTILL_CACHE") or "~/.cache/raydistill").expanduser()
    return cache.joinpath(*run_parts, "metrics.jsonl")


class Reporter:
    """One rank's reports on a job; ``observed`` is called on every rank after each report of a training loop."""

    def __init__(
        self, job: Job, group: Group, board: Board, observed: Callable[[dict[str, Any]], None] = lambda metrics: None
    ) -> None:
        self.job, self.group, self.board, self.observed = job, group, board, observed
        self.config = job.config
        self.seconds: dict[str, float] = {}
        self.reused: list[str] = []
        self.notes: list[str] = []
        self.series = ""
        """Of the models that are trained now: their metrics are prefixed by it."""
        self.attempt = 1
        """Of the teacher's training, which may be begun again."""
        self._made: set[Artifact] = set()
        self._tracker: Tracker | None = None
        self._loop = ("", 0, 0.0)
        self._referred = [job.data, job.tokens, *([job.perturbed] if job.perturbed is not None else [])]

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a phase and show it; a request to stop is obeyed before it begins."""
        if self.group.any(self.board.should_stop()):
            raise Interrupted(f"The run was stopped before phase {name}; everything finished so far is kept.")
        started = time.perf_counter()
        if self.group.is_first:
            self.board.post(name, 0, 0, "", 0.0, force=True)
        yield
        self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - started, 3)

    def has(self, artifact: Artifact, name: str) -> bool:
        """Whether storage holds the artefact, as rank 0 sees it; noted as reused, unless it was made in this run."""
        self._refer(artifact)
        present: bool = self.group.broadcast(artifact.exists() if self.group.is_first else None)
        name += f" ({self.series})" if self.series else ""
        if not present:
            self._made.add(artifact)
        elif name not in self.reused and artifact not in self._made:
            self.reused.append(name)
        return present

    def _refer(self, artifact: Artifact) -> None:
        """Write that the run refers to the artefact, before it is used: ``raydistill cache gc`` keeps it then."""
        if self.group.is_first and not self.job.folder and artifact not in self._referred:
            self._referred.append(artifact)
            self.job.owner.check()
            refer(self.job.storage, self.job.run_key, self._referred, self.job.run.run_id if self.job.run else None)

    def observe(self, kind: str, report: Report, offset: int) -> None:
        """Track and show a report. The student's metrics keep their plain names, others are prefixed."""
        prefix = self._prefix(kind)
        metrics = {f"{prefix}{name}": value for name, value in report.metrics.items()}
        if self.group.is_first:
            if self.tracker is not None:
                self.tracker.log(metrics, report.step + offset)
            rate = self._steps_per_second(kind, report.step)
            key = f"validation/{self.config.epoch_metric}"
            note = f"{key.split('/')[1]} {report.metrics[key]:.4f}" if key in report.metrics else ""
            loss = f"loss {report.metrics['train/loss']:.4f}"
            note = " ".join(filter(None, [self.series, note or loss]))
            self.board.post(kind, report.step, report.num_steps, "steps", rate, note, force=report.validated)
        if report.validated:
            self.observed(metrics)

    def _prefix(self, kind: str, attempt: int | None = None) -> str:
        """``attempt``: by default the present one."""
        if attempt is None:
            attempt = self.attempt if kind == "teacher" else 1
        return metric_prefix(self.series, "" if kind == "student" else kind, attempt=attempt)

    def _steps_per_second(self, kind: str, step: int) -> float:
        """Steps a second since the first report of the loop that ``kind`` runs now."""
        now = time.perf_counter()
        if self._loop[0] != kind or step <= self._loop[1]:
            self._loop = (kind, step, now)
            return 0.0
        return (step - self._loop[1]) / max(now - self._loop[2], 1e-9)

    def recording_progress(self, split: str) -> Callable[[int, int, float], None]:
        def post(done: int, total: int, rate: float) -> None:
            if self.group.is_first:
                self.board.post("record", done, total, "rows", rate, split, force=done == total)

        return post

    def verifying_progress(self, split: str) -> Callable[[int, int], None]:
        def post(done: int, total: int) -> None:
            if self.group.is_first:
                self.board.post("verify", done, total, "shards", 0.0, split, force=done == total)

        return post

    @property
    def tracker(self) -> Tracker | None:
        """The run's one writer: on rank 0 only."""
        if self._tracker is None and self.job.run is not None and self.group.is_first:
            self._tracker = Tracker(
                self.job.run,
                metrics_path(self.job.storage, *self.job.run_parts),
                owner=self.job.owner,
                system_metrics=self.config.tracking.system_metrics and not self.job.folder,
            )
        return self._tracker

    def flush(self) -> None:
        if self._tracker is not None:
            left = self._tracker.close(timeout=2.0 if self.board.should_stop() else 10.0)
            self._tracker = None
            if left == 0 and not self.job.storage.is_local:  # the node's cache never drops what MLflow lacks
                metrics_path(self.job.storage, *self.job.run_parts).unlink(missing_ok=True)

    def replay(self, kind: str, history: list[dict[str, Any]]) -> None:
        """Track the history of a model that an earlier run trained; what the run has already is not sent again."""
        for entry in history:
            prefix = self._prefix(kind, entry.get("attempt"))
            metrics = {f"{prefix}{name}": v for name, v in entry.items() if "/" in name}
            if self.tracker is not None:
                self.tracker.log(metrics, entry["step"])
