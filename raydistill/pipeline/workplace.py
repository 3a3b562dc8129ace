"""What a rank has at hand while it works through the phases: the job, its group, the rows, and what it tells others."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from transformers import PreTrainedConfig, PreTrainedModel

from raydistill.cluster.device import Device
from raydistill.cluster.group import Group
from raydistill.config.tree import Config
from raydistill.data.rows import Rows
from raydistill.errors import Interrupted
from raydistill.evaluate.metrics import classification_metrics
from raydistill.evaluate.predict import predict
from raydistill.models.load import load_classifier, read_config
from raydistill.models.precision import attention_implementation
from raydistill.pipeline.recipes import TeacherIdentity
from raydistill.storage.artifacts import Artifact
from raydistill.storage.board import Board
from raydistill.storage.garbage import refer
from raydistill.storage.ownership import Owner
from raydistill.storage.storage import Storage
from raydistill.tasks import make_task
from raydistill.teacher.cached import RecordedSignals
from raydistill.teacher.signals import Feed
from raydistill.tracking.runs import RunRef, Tracker
from raydistill.train.checkpoint import Checkpoints
from raydistill.train.loop import Report

GPU_INFERENCE_FACTOR = 4
"""A forward pass without gradient takes so many times the tokens of a training micro-batch in the same memory."""

CPU_INFERENCE_TOKENS = 4096
"""On a CPU larger batches fall out of the cache: recording took 9 ms a row at 32,768 tokens, 2.2 ms at 4,096."""


@dataclass(frozen=True)
class Job:
    """What the driver hands to every worker; plain values, no weights."""

    config: Config
    run_key: str
    storage: Storage
    owner: Owner
    data: Artifact
    tokens: Artifact
    labels: tuple[str, ...]
    dtype: str
    run: RunRef | None
    folder: tuple[str, ...] = ()
    """Where below the run folder a trial of a sweep keeps its checkpoints and metrics."""

    @property
    def run_parts(self) -> tuple[str, ...]:
        return ("runs", self.run_key, *self.folder)

    @property
    def board_parts(self) -> tuple[str, ...]:
        """Where the driver's request to stop lies: trials of a sweep obey the same one."""
        return ("runs", self.run_key)


def metrics_path(storage: Storage, *run_parts: str) -> Path:
    """Return the local file that holds a run's metrics until MLflow has them."""
    if storage.is_local:
        return Path(storage.path(*run_parts, "metrics.jsonl"))
    cache = Path(os.environ.get("RAYDISTILL_CACHE") or "~/.cache/raydistill").expanduser()
    return cache.joinpath(*run_parts, "metrics.jsonl")


class Splits(dict[str, Rows]):
    """The tokenised splits, each opened when it is first asked for: trials of a sweep never open the test rows."""

    def __init__(self, tokens: Artifact) -> None:
        super().__init__()
        self.tokens = tokens

    def __missing__(self, split: str) -> Rows:
        self[split] = Rows.open(self.tokens.local(), split)
        return self[split]


class Workplace:
    """One rank's tools. ``observed`` is called on every rank after each report of a training loop; ``should_save`` says
    there that this rank requests a checkpoint now."""

    def __init__(
        self,
        job: Job,
        group: Group,
        device: Device,
        board: Board,
        observed: Callable[[dict[str, Any]], None] = lambda metrics: None,
        should_save: Callable[[], bool] = lambda: False,
    ) -> None:
        self.job, self.group, self.device = job, group, device
        self.config = job.config
        self.observed, self.should_save = observed, should_save
        self.board = board
        self.task = make_task(job.config.task, job.labels)
        self.seconds: dict[str, float] = {}
        self.reused: list[str] = []
        self.notes: list[str] = []
        self.teacher_model: PreTrainedModel | None = None
        self.feed: Feed | None = None
        """Teachers in actors of their own, in ``teacher.mode: pool``."""
        self._tracker: Tracker | None = None
        self._recorded: dict[tuple[str, ...], RecordedSignals] = {}
        self._loop = ("", 0, 0.0)
        self._referred = [job.data, job.tokens]

    def take_up(self, job: Job, board: Board) -> None:
        """Turn to another trial of the same sweep: rows, recorded signals and the teacher's module stay loaded."""
        self.flush()
        self.job, self.config, self.board = job, job.config, board
        self.seconds, self.reused, self.notes = {}, [], []
        self._loop = ("", 0, 0.0)

    @cached_property
    def rows(self) -> Splits:
        return Splits(self.job.tokens)

    def recorded(self, artifacts: dict[str, Artifact]) -> RecordedSignals:
        """Signals of the training rows from the store, mapped once. A trial verifies their checksums, which other runs
        have done when they looked what is recorded."""
        keys = tuple(artifact.key for artifact in artifacts.values())
        if keys not in self._recorded:
            num_rows = self.rows["train"].num_rows
            self._recorded[keys] = RecordedSignals(artifacts, num_rows, verify=bool(self.job.folder))
        return self._recorded[keys]

    @cached_property
    def attention(self) -> str:
        length = int(np.quantile(self.rows["train"].lengths, 0.95))
        return attention_implementation(self.device.torch_device.type, self.device.dtype, length)

    @property
    def inference_tokens(self) -> int:
        if self.device.torch_device.type == "cpu":
            return CPU_INFERENCE_TOKENS
        return GPU_INFERENCE_FACTOR * self.config.train.tokens_per_micro_batch

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a phase and show it; a request to stop is obeyed before it begins."""
        if self.group.sum([float(self.board.should_stop())])[0]:
            raise Interrupted(f"The run was stopped before phase {name}; everything finished so far is kept.")
        started = time.perf_counter()
        if self.group.is_first:
            self.board.post(name, 0, 0, "", 0.0, force=True)
        yield
        self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - started, 3)

    def has(self, artifact: Artifact, name: str) -> bool:
        """Whether storage holds the artefact, as rank 0 sees it; noted as reused."""
        self._refer(artifact)
        present: bool = self.group.broadcast(artifact.exists() if self.group.is_first else None)
        if present and name not in self.reused:
            self.reused.append(name)
        return present

    def _refer(self, artifact: Artifact) -> None:
        """Write that the run refers to the artefact, before it is used: ``raydistill cache gc`` keeps it then."""
        if self.group.is_first and not self.job.folder and artifact not in self._referred:
            self._referred.append(artifact)
            self.job.owner.check()
            refer(self.job.storage, self.job.run_key, self._referred, self.job.run.run_id if self.job.run else None)

    def read_config(self, folder: Path) -> PreTrainedConfig:
        return read_config(folder, self.config.teacher.trust_remote_code)

    def load(self, folder: Path, *, dropout: float | None) -> PreTrainedModel:
        return load_classifier(
            folder,
            self.job.labels,
            dropout=dropout,
            attn_implementation=self.attention,
            trust_remote_code=self.config.teacher.trust_remote_code,
            seed=self.config.seed,
        )

    def teacher(self, teacher: TeacherIdentity) -> PreTrainedModel:
        """Return the teacher's module, from memory where it is still there."""
        if self.teacher_model is None:
            self.teacher_model = self.load(teacher.folder, dropout=0.0)
        return self.teacher_model

    def checkpoints(self, *parts: str) -> Checkpoints:
        return Checkpoints(self.job.storage, (*self.job.run_parts, *parts), self.job.owner)

    def history(self, kind: str, stage: str) -> list[dict[str, Any]]:
        return self.group.broadcast(self.checkpoints(kind, stage).history() if self.group.is_first else None)

    def predict(self, model: PreTrainedModel, split: str, *, may_stop: bool = True) -> np.ndarray:
        """Logits of a split, (num_rows, classes), on every rank. Interrupted where it is to stop."""
        return predict(
            model,
            self.rows[split],
            tokens=self.inference_tokens,
            device=self.device,
            group=self.group,
            should_stop=self.board.should_stop if may_stop else lambda: False,
        )

    def validate(self, model: PreTrainedModel) -> dict[str, float]:
        """Metrics on the validation rows; the training loop around it obeys a request to stop, with a checkpoint."""
        metrics = classification_metrics(
            self.predict(model, "validation", may_stop=False), self.rows["validation"].labels
        )
        return {name: value for name, value in metrics.items() if not math.isnan(value)}

    def observe(self, kind: str, report: Report, offset: int) -> None:
        """Track and show a report. The student's metrics keep their plain names, others are prefixed."""
        prefix = "" if kind == "student" else f"{kind}/"
        metrics = {f"{prefix}{name}": value for name, value in report.metrics.items()}
        if self.group.is_first:
            if self.tracker is not None:
                self.tracker.log(metrics, report.step + offset)
            rate = self._steps_per_second(kind, report.step)
            key = f"validation/{self.config.evaluate.metric}"
            note = f"{key.split('/')[1]} {report.metrics[key]:.4f}" if report.validated else ""
            loss = f"loss {report.metrics['train/loss']:.4f}"
            self.board.post(kind, report.step, report.num_steps, "steps", rate, note or loss, force=report.validated)
        if report.validated:
            self.observed(metrics)

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

    def hashes(self, split: str) -> list[str]:
        """Row hashes of a split, in row order."""
        with pa.memory_map(str(self.job.data.local() / f"{split}.arrow")) as source:
            return pa.ipc.open_file(source).get_batch(0).column("hash").to_pylist()

    def replay(self, kind: str, history: list[dict[str, Any]]) -> None:
        """Track the history of a model that an earlier run trained; what the run has already is not sent again."""
        prefix = "" if kind == "student" else f"{kind}/"
        for entry in history:
            metrics = {f"{prefix}{name}": v for name, v in entry.items() if name not in ("step", "validated")}
            if self.tracker is not None:
                self.tracker.log(metrics, entry["step"])

    def latency_inputs(self) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Fixed shapes: one row, and 32, of the validation split's median length."""
        rows = self.rows["validation"]
        order = np.argsort(rows.lengths, kind="stable")
        middle = len(order) // 2
        many = order[max(0, middle - 16) : middle + 16]
        return (
            self.device.move(rows.inputs(order[middle : middle + 1])),
            self.device.move(rows.inputs(np.resize(many, 32))),
        )
