"""What a rank has at hand while it works through the phases: the job, its group, the rows, models."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
from transformers import PreTrainedConfig, PreTrainedModel

from raydistill.cluster.device import Device
from raydistill.cluster.group import Group
from raydistill.config.losses import SequenceHead
from raydistill.config.metrics import score
from raydistill.config.plugins import register
from raydistill.config.tree import Config
from raydistill.data.perturbations import perturbed_splits
from raydistill.data.rows import SWAPPED, Rows
from raydistill.evaluate.bootstrap import bootstrap
from raydistill.evaluate.compare import has_learned
from raydistill.evaluate.figure import Figure
from raydistill.evaluate.predict import predict
from raydistill.models.crf import saved_settings
from raydistill.models.embedding import set_head_of
from raydistill.models.folder import settle
from raydistill.models.head import EMBEDDING
from raydistill.models.load import load_model, read_config
from raydistill.models.precision import attention_implementation
from raydistill.models.signals import BEGINS, LABELS, SECOND, UNITS, Signal
from raydistill.models.student import build_student
from raydistill.pipeline.defaults import FEW_VALIDATION
from raydistill.pipeline.job import Job
from raydistill.pipeline.recipes import Recorded, TeacherIdentity
from raydistill.pipeline.reporting import Reporter
from raydistill.storage.artifacts import Artifact
from raydistill.storage.board import Board
from raydistill.tasks import task_of
from raydistill.tasks.scores import Scores
from raydistill.tasks.targets import Values, units_of
from raydistill.teacher.cached import RecordedSignals
from raydistill.train.checkpoint import WORST, Checkpoints
from raydistill.train.loop import Validation

if TYPE_CHECKING:  # it loads Ray
    from raydistill.teacher.pool.signals import PoolFeed

GPU_INFERENCE_FACTOR = 4
"""A forward pass without gradient takes so many times the tokens of a training micro-batch in the same memory."""

CPU_INFERENCE_TOKENS = 4096
"""On a CPU larger batches fall out of the cache: recording took 9 ms a row at 32,768 tokens, 2.2 ms at 4,096."""

NUM_RESAMPLES, RESAMPLED_ROWS = 200, 20_000
"""Of the validation rows, to tell a better epoch from a luckier one; of more rows luck moves a metric by 0.3 points."""


def resampled(scores: Scores, metric: str) -> tuple[float, np.ndarray]:
    """A metric as a score, higher being better, and the same on resamples of the rows; none of very many rows."""
    value = scores.values[metric]
    if scores.num_rows > RESAMPLED_ROWS:
        return score(metric, {metric: value}), np.zeros(0)
    found = bootstrap({"model": scores}, None, NUM_RESAMPLES, seed=0, wanted={metric})["model"][metric]
    return score(metric, {metric: value}), score(metric, {metric: 1.0}) * np.nan_to_num(found, nan=value)


class Splits(dict[str, Rows]):
    """The tokenised splits, each opened when it is first asked for: trials of a sweep never open the test rows."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self.job = job

    def __missing__(self, split: str) -> Rows:
        self[split] = Rows.open(self.job.tokens_of(split).local(), split)
        return self[split]


class Context:
    """One rank's tools, and its ``report`` to others. ``should_save`` says that this rank requests a checkpoint now;
    ``observed`` as of ``Reporter``."""

    def __init__(
        self,
        job: Job,
        group: Group,
        device: Device,
        board: Board,
        observed: Callable[[dict[str, Any]], None] = lambda metrics: None,
        should_save: Callable[[], bool] = lambda: False,
    ) -> None:
        register(*job.plugins)
        settle(job.models)
        self.job, self.group, self.device = job, group, device
        self.config = job.config
        self.should_save = should_save
        self.report = Reporter(job, group, board, observed)
        self.task = task_of(job.task)
        self.teacher_model: PreTrainedModel | None = None
        self.feed: PoolFeed | None = None
        """Teachers in actors of their own, in ``teacher.mode: pool``."""
        self._recorded: dict[tuple[str, ...], RecordedSignals] = {}

    @cached_property
    def teachers(self) -> list[Context]:
        """The tools to make each teacher with: of several own ones, which tell of it in the same report."""
        if len(self.job.teachers) == 1:
            return [self]
        found = []
        for one in self.job.teachers:
            own = replace(self.job, config=one.config, teachers=(one,))
            found.append(Context(own, self.group, self.device, self.board, should_save=self.should_save))
            found[-1].report = self.report
        return found

    def take_up(self, job: Job, board: Board) -> None:
        """Turn to another trial of the same sweep: rows, recorded signals and the teacher's module stay loaded."""
        self.report.flush()
        self.job, self.config = job, job.config
        self.report = Reporter(job, self.group, board, self.report.observed)

    def turn_to(self, config: Config, series: str) -> None:
        """Go on with this config, which differs in its seed; its checkpoints and metrics are kept under ``series``."""
        self.config, self.report.series = config, series

    @property
    def board(self) -> Board:
        return self.report.board

    @cached_property
    def rows(self) -> Splits:
        return Splits(self.job)

    @cached_property
    def perturbed(self) -> list[str]:
        """The splits of perturbed test rows; empty where ``evaluate.robustness`` is off."""
        return [] if self.job.perturbed is None else perturbed_splits(self.job.perturbed)

    def recorded(self, artifacts: dict[Signal, Artifact]) -> RecordedSignals:
        """Signals of the training rows from the store, mapped once. A trial verifies their checksums, which other runs
        have done when they looked what is recorded; but for a node's own copies of what lies behind a URL."""
        keys = tuple(artifact.key for artifact in artifacts.values())
        if keys not in self._recorded:
            num_rows = self.rows["train"].num_rows
            verify = bool(self.job.folder) or not self.job.storage.is_local
            self._recorded[keys] = RecordedSignals(artifacts, num_rows, verify=verify)
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

    def read_config(self, folder: Path) -> PreTrainedConfig:
        """The config of a model in ``folder``, with what the vectors of a sentence encoder are."""
        config = read_config(folder, self.config.lead.trust_remote_code)
        if self.task.head_kind == EMBEDDING:
            set_head_of(config, folder, self.task.head)
        return config

    def load(
        self,
        folder: Path,
        *,
        dropout: float | None,
        pooled: bool = False,
        sequences: SequenceHead | None = None,
        seed: int | None = None,
    ) -> PreTrainedModel:
        return load_model(
            folder,
            self.task.head,
            dropout=dropout,
            attn_implementation=self.attention,
            trust_remote_code=self.config.lead.trust_remote_code,
            pooled=pooled,
            sequences=sequences,
            seed=self.config.seed if seed is None else seed,
        )

    def untaught(self, start: PreTrainedModel, config: Config, seed: int) -> PreTrainedModel:
        """The student of a config as it is cut from ``start``, before any training."""
        return build_student(
            start,
            config.student,
            seed=seed,
            attn_implementation=self.attention,
            sample=self.rows["train"].sample(),
        )

    def teacher(self, teacher: TeacherIdentity) -> PreTrainedModel:
        """Return the teacher's module, from memory where it is still there."""
        if self.teacher_model is None:
            self.teacher_model = self.load(teacher.folder, dropout=0.0)
        return self.teacher_model

    def checkpoints(self, *parts: str) -> Checkpoints:
        kind, *stage = parts
        series = f"-{self.report.series}" if self.report.series else ""
        return Checkpoints(self.job.storage, (*self.job.run_parts, kind + series, *stage), self.job.owner)

    def history(self, kind: str, stage: str) -> list[dict[str, Any]]:
        return self.group.broadcast(self.checkpoints(kind, stage).history() if self.group.is_first else None)

    def predict(self, model: PreTrainedModel, split: str, *, may_stop: bool = True, one_order: bool = False) -> Values:
        """A model's outputs for the examples of a split, (N, C) in the targets' unit, on every rank: where
        ``data.symmetric`` is on those of both orders in the mean, or of one alone. Interrupted where it is to stop."""
        should_stop = self.board.should_stop if may_stop else lambda: False
        options: Any = {"tokens": self.inference_tokens, "device": self.device, "group": self.group}
        options["signal"] = self.task.answer_signal
        orders = [split] if one_order else self.orders(split)
        return self._answers(
            {one: predict(model, self.rows[one], **options, should_stop=should_stop) for one in orders}
        )

    def recorded_outputs(self, recorded: Recorded, split: str) -> Values:
        """The same of the teacher's, from the store."""
        found = {}
        for one in self.orders(split):
            num_rows = self.rows[one].num_rows
            signals = RecordedSignals(recorded[one], num_rows).rows(np.arange(num_rows))
            found[one] = signals[self.task.answer_signal].numpy()
        return self._answers(found)

    def _answers(self, outputs: dict[str, np.ndarray]) -> Values:
        """Outputs in training's units of the orders of a split as those of its examples."""
        return self.task.averaged([self.rows[one].by_example(self.task.restored(own)) for one, own in outputs.items()])

    def orders(self, split: str) -> list[str]:
        """Where a model's answers to a split come from: it, and where ``data.symmetric`` is on its pairs the other way
        round. Of training rows both are in one."""
        return [split, split + SWAPPED] if self.config.data.symmetric and split != "train" else [split]

    def validate(self, model: PreTrainedModel, metric: str) -> Validation:
        """Metrics on the validation rows, of which ``metric`` picks the weights; the training loop around it obeys a
        request to stop, with a checkpoint. Where what the model says leaves it undefined, that is the worst score."""
        outputs, targets = self.labeled(model, "validation", may_stop=False)
        # with 10 of them a student that was right on 66 % of the test rows was at chance on these for 2,375 steps
        tells = len(units_of(targets)) >= FEW_VALIDATION  # of words, a few rows have as many
        scores = self.task.for_model(saved_settings(model)).fitted(outputs, targets).scores(outputs, targets)
        metrics = {name: value for name, value in scores.values.items() if not math.isnan(value)}
        if metric not in metrics:
            why = Figure.of(metric, None).why.replace("on these rows", "on the validation rows")
            self.report.notes.append(f"At one validation or more {why}; such weights count as the worst.")
            return Validation(metrics, WORST, has_learned=lambda: not tells)
        main = self.config.epoch_metric
        told: Any = {"has_learned": partial(has_learned, scores)} if tells else {}
        if main != metric and main in metrics:
            told["main"] = partial(resampled, scores, main)
        return Validation(metrics, *resampled(scores, metric), **told)

    def labeled(
        self, model: PreTrainedModel, split: str, *, may_stop: bool = True, one_order: bool = False
    ) -> tuple[Values, Values]:
        """A model's outputs on the labelled rows of a split, and their targets, on every rank."""
        targets, _ = self.rows[split].examples
        outputs = self.predict(model, split, may_stop=may_stop, one_order=one_order)
        return outputs[targets.labeled], targets.values[targets.labeled]

    def hashes(self, split: str) -> list[str]:
        """Row hashes of a split, in row order."""
        with pa.memory_map(str(self.job.data.local() / f"{split}.arrow")) as source:
            return pa.ipc.open_file(source).get_batch(0).column("hash").to_pylist()

    def latency_inputs(self) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Fixed shapes: one row, and 32, of the validation split's median length."""
        rows = self.rows["validation"]
        order = np.argsort(rows.lengths, kind="stable")
        middle = len(order) // 2
        many = order[max(0, middle - 16) : middle + 16]
        one, several = (rows.inputs(ids) for ids in (order[middle : middle + 1], np.resize(many, 32)))
        for inputs in (one, several):
            for name in (UNITS, BEGINS, LABELS, SECOND):  # a pair is as long as one text of its tokens
                inputs.pop(name, None)
        return self.device.move(one), self.device.move(several)
