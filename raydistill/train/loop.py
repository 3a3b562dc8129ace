"""The one training loop, a generator in plain torch: the teacher's fine-tuning, the student and the baseline run it.

``for report in train(setup)`` trains to the end and leaves the best weights in the model. Killed at any moment and
started again, the loop goes on where its last checkpoint was, bit for bit on one thread.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from raydistill.cluster.device import Device
from raydistill.cluster.group import Group
from raydistill.config.section import known
from raydistill.config.training import Optimization
from raydistill.config.training import Train as TrainSettings
from raydistill.data.batches import Batch, BatchPlan, micro_batches, rank_share
from raydistill.data.rows import Rows
from raydistill.errors import ConfigError, Diverged, Interrupted
from raydistill.losses.base import Losses
from raydistill.models.capture import capture
from raydistill.models.pictures import train_mode
from raydistill.models.shared import shared_parameters
from raydistill.teacher.signals import Signals
from raydistill.train.checkpoint import Checkpoints, TrainProgress
from raydistill.train.dropout import RowDropout, has_dropout
from raydistill.train.optimizer import build_optimizer, freeze, set_rates, trainable
from raydistill.train.schedule import Schedule

LOG_STEPS = 10


@dataclass(frozen=True)
class Validation:
    """What a validation found, the same on every rank."""

    metrics: dict[str, float]
    score: float
    """What picks the weights that are kept, higher being better."""
    samples: np.ndarray = field(default_factory=lambda: np.zeros(0))
    """The score on resamples of the rows (S,), the same resamples at every validation of a stage; none: it is taken
    as exact."""
    has_learned: Callable[[], bool] = lambda: True
    """Whether the model is better than one that sees no row; computed where it is asked for, as the next."""
    main: Callable[[], tuple[float, np.ndarray]] | None = None
    """The main metric as a score, and its resamples, by which an open end is decided; None: what picks the weights."""


@dataclass(frozen=True)
class Setup:
    """Everything one stage of training needs. ``row_ids`` are the rows of ``rows`` that it trains on."""

    name: str
    model: PreTrainedModel
    losses: Losses
    signals: Signals
    rows: Rows
    row_ids: np.ndarray
    schedule: Schedule
    optimization: Optimization
    settings: TrainSettings
    seed: int
    validate: Callable[[], Validation]
    checkpoints: Checkpoints
    group: Group
    device: Device
    should_stop: Callable[[], bool] = lambda: False
    should_save: Callable[[], bool] = lambda: False
    """Whether a checkpoint is wanted at once: this rank's node is about to be taken away. Told once a notice."""
    until: int | None = None
    """Leave after this step with a checkpoint: from there on the stage has other settings. None: to the end."""
    save_at_validation: bool = False
    """Also write a checkpoint before each report of a validation."""


@dataclass(frozen=True)
class Report:
    """What the loop says at a yield: metrics of the steps since the last one, and of a validation."""

    step: int
    num_steps: int
    """Where the end is open, those of a stage that gains no more from here on."""
    metrics: dict[str, float]
    validated: bool
    finished: bool = False
    """The stage's last one."""
    kept: bool = False
    """A validation whose weights are those to keep until a later one's are."""


def train(setup: Setup) -> Iterator[Report]:
    """Train ``setup.model`` and yield a report now and then; at the stage's end the model holds the best weights.

    Raises Interrupted, after writing a checkpoint, when any rank is asked to stop; Diverged when the loss is no longer
    finite.
    """
    check_batch_size(setup.losses, setup.settings)
    stage = StageRun(setup)
    progress = stage.restore()
    if not progress.finished:
        yield from stage.run(progress)
    if progress.finished:
        setup.checkpoints.load_best(setup.model)
    setup.model.eval()


def check_batch_size(losses: Losses, settings: TrainSettings) -> None:
    if settings.global_batch_size % losses.group_size:
        raise ConfigError(
            f"train.global_batch_size: {settings.global_batch_size} is not a multiple of {losses.group_size}, the "
            "number of rows that the losses compare with each other. Choose a multiple."
        )


class StageRun:
    """One stage under way: optimizer, batch plan and running sums around the pure parts."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        torch.nn.Module.to(setup.model, setup.device.torch_device)
        setup.losses.to(setup.device.torch_device)
        kind, _, stage = setup.name.partition(".")
        self.section = "teacher.finetune" if kind == "teacher" else f"stages.{stage}"
        shared = () if kind == "teacher" else shared_parameters(setup.model)  # who was a student may learn all again
        freeze(setup.model, (*setup.optimization.freeze, *shared), f"{self.section}.freeze")
        setup.group.synchronize(setup.model)
        setup.group.synchronize(setup.losses)
        self.parameters = trainable(setup.model, setup.losses)
        self.optimizer = build_optimizer(self.parameters, setup.optimization)
        self.names = list(setup.losses.terms)
        self.has_dropout = has_dropout(setup.model)
        self.log_steps = max(1, min(LOG_STEPS, setup.schedule.fewest_steps // 20))
        self.plan = self._plan()
        self._sums: list[Tensor] = []
        self._counts: list[float] = []
        self._reset_sums()

    def restore(self) -> TrainProgress:
        setup = self.setup
        return setup.checkpoints.load_last(setup.model, setup.losses, self.optimizer) or TrainProgress()

    def run(self, progress: TrainProgress) -> Iterator[Report]:
        """Take the remaining steps; every rank runs this in lockstep."""
        setup, schedule = self.setup, self.setup.schedule
        first, end = progress.step, min(setup.until or schedule.num_steps, schedule.num_steps)
        if first >= end:
            return
        ahead = self._plan()
        setup.signals.foresee(self.parts(ahead, step) for step in range(first, end))
        setup.group.meet()  # each has read checkpoint and signals at its own speed
        with ThreadPoolExecutor(1, thread_name_prefix="collate") as pool:
            pending = pool.submit(self.collate, first)
            for step in range(first, end):
                batches = pending.result()
                counts = self._agree(batches, progress)
                if step + 1 < end:
                    pending = pool.submit(self.collate, step + 1)
                self.take_step(step, batches, counts, progress)
                progress.step = step + 1
                if progress.step % schedule.validate_steps == 0 or progress.step == schedule.end(progress):
                    report = self._validate(progress)
                    if setup.save_at_validation:
                        self._save(progress)
                    yield report
                elif progress.step == 1 or progress.step % self.log_steps == 0:  # the first: before anything is learned
                    yield self._report(progress, {}, validated=False)
                if progress.finished:
                    break
                if progress.step % setup.settings.checkpoint_steps == 0:
                    self._save(progress)
        self._save(progress)

    def collate(self, step: int) -> list[Batch]:
        """Return this rank's micro-batches of a step; runs one step ahead in a thread."""
        setup = self.setup
        epoch = (setup.seed, self.plan.epoch(step)) if setup.signals.knows_batch else None
        return [setup.rows.batch(ids, epoch) for ids in self.parts(self.plan, step)]

    def _plan(self) -> BatchPlan:
        setup = self.setup
        size, rows = setup.settings.global_batch_size, setup.rows
        return BatchPlan(setup.row_ids, rows.lengths, rows.targets.labeled, seed=setup.seed, global_batch_size=size)

    def parts(self, plan: BatchPlan, step: int) -> list[np.ndarray]:
        """Rows (ids) of this rank's micro-batches of a step."""
        setup = self.setup
        group_size, tokens = setup.losses.group_size, setup.settings.tokens_per_micro_batch
        share = rank_share(plan.batch(step), setup.group.rank, setup.group.size, group_size)
        return micro_batches(share, setup.rows.lengths, tokens=tokens, group_size=group_size)

    def take_step(self, step: int, batches: list[Batch], counts: list[float], progress: TrainProgress) -> None:
        """One optimizer step over this rank's micro-batches; ``counts`` are those of the whole global batch."""
        setup = self.setup
        self.accumulate(step, batches, counts)
        self._norm = self._clip()
        self._rate = setup.schedule.learning_rate(step, progress, setup.optimization)
        set_rates(self.optimizer, self._rate, setup.optimization.weight_decay)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _clip(self) -> Tensor:
        """Clip the gradients; the norm before. On a CPU nothing is scaled by 1: it costs 4 % of a step."""
        limit = self.setup.settings.max_grad_norm
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if limit is not None and (norm.device.type != "cpu" or norm > limit):
            torch.nn.utils.clip_grads_with_norm_(self.parameters, limit, norm)
        return norm

    def accumulate(self, step: int, batches: list[Batch], counts: list[float]) -> None:
        """Leave the gradient of the whole global batch on every rank's parameters."""
        setup = self.setup
        train_mode(setup.model)
        setup.losses.at(step / max(setup.schedule.num_steps - 1, 1))
        for batch in batches:
            # What is random goes by step and row: neither ranks, micro-batches nor a restart change what is drawn.
            torch.manual_seed(int(np.random.SeedSequence((setup.seed, step)).generate_state(1)[0]))
            by_row = RowDropout(setup.seed, step, batch.row_ids, setup.device.torch_device)
            with by_row if self.has_dropout else nullcontext():
                total, sums = self._forward(batch, counts)
            if total.requires_grad:
                total.backward()
            self._sums = [a + b for a, b in zip(self._sums, sums, strict=True)]
        self._counts = [a + b for a, b in zip(self._counts, counts, strict=True)]
        setup.group.sum_gradients(self.parameters)

    def _forward(self, batch: Batch, counts: list[float]) -> tuple[Tensor, list[Tensor]]:
        setup = self.setup
        batch = replace(batch, inputs=setup.device.move(batch.inputs))
        teacher = setup.device.move(setup.signals.read(batch))
        with setup.device.autocast():
            student = capture(setup.model, batch.inputs, setup.losses.student_needs, setup.losses.begin(teacher))
        return setup.losses(student, teacher, batch, counts)

    def _agree(self, batches: list[Batch], progress: TrainProgress) -> list[float]:
        """Sum the counts over all ranks, and with them what ranks ask for: to leave, save, or wait at one step."""
        setup = self.setup
        while True:
            waits = not setup.signals.wait([batch.row_ids for batch in batches])
            requests = map(float, (setup.should_stop(), setup.should_save(), waits))
            *counts, stop, save, someone_waits = setup.group.sum([*setup.losses.counts(batches), *requests])
            if stop or save:
                self._save(progress)
            if stop:
                raise Interrupted(
                    f"{setup.name} stopped after step {progress.step} of {setup.schedule.expected(progress)}; "
                    "a checkpoint was written."
                )
            if not someone_waits:
                return counts

    def _validate(self, progress: TrainProgress) -> Report:
        setup, schedule = self.setup, self.setup.schedule
        setup.model.eval()
        found = setup.validate()
        kept = progress.take(found.score, found.samples)
        if kept and setup.group.is_first:
            setup.checkpoints.keep_best(progress.step, found.score, setup.model)
        patience = setup.settings.early_stopping
        if schedule.is_open(progress):
            score, samples = (found.score, found.samples) if found.main is None else found.main()
            if not schedule.is_early(progress):
                progress.has_learned = progress.has_learned or found.has_learned()
            progress.trail.append((progress.step, score, samples.tolist()))
            schedule.decide(progress)
        is_last = progress.step >= schedule.end(progress)
        progress.finished = is_last or (patience is not None and progress.validations_without_gain >= patience)
        metrics = {f"validation/{name}": float(value) for name, value in found.metrics.items()}
        return self._report(progress, metrics, validated=True, kept=kept)

    def _report(
        self, progress: TrainProgress, metrics: dict[str, float], *, validated: bool, kept: bool = False
    ) -> Report:
        sums = self._finite_sums(progress.step)
        means = [value / count if count else 0.0 for value, count in zip(sums, self._counts, strict=True)]
        losses = self.setup.losses.terms.values()
        values = {f"train/loss/{name}": mean for name, mean in zip(self.names, means, strict=True)}
        values["train/loss"] = sum(loss.weight * mean for loss, mean in zip(losses, means, strict=True))
        for name, loss in self.setup.losses.terms.items():
            values |= {f"train/{what}/{name}": value for what, value in loss.scheduled.items()}
        values |= {"train/grad_norm": float(self._norm), "train/learning_rate": self._rate}
        self._reset_sums()
        values |= metrics
        progress.history.append({"step": progress.step, "validated": validated, "kept": kept, **values})
        return Report(progress.step, self.setup.schedule.expected(progress), values, validated, progress.finished, kept)

    def _save(self, progress: TrainProgress) -> None:
        """Checkpoint, written by rank 0; weights that are no longer finite never replace good ones."""
        setup = self.setup
        self._finite_sums(progress.step)
        if setup.group.is_first:
            setup.checkpoints.save_last(progress, setup.model, setup.losses, self.optimizer)
        setup.group.barrier()

    def _finite_sums(self, step: int) -> list[float]:
        """Return the terms' sums over all ranks since the last report; every rank raises where one is not finite."""
        sums = self.setup.group.sum([float(value) for value in self._sums])
        broken = [name for name, value in zip(self.names, sums, strict=True) if not math.isfinite(value)]
        if broken or not math.isfinite(float(self._norm)):
            raise Diverged(
                f"{self.setup.name}: the loss {', '.join(broken) or 'gradient'} is not finite at step {step}. Usually "
                f"the learning rate is too high: lower {self.section}.learning_rate (now "
                f"{known(self.setup.optimization.learning_rate):g}), set train.max_grad_norm, or train.dtype: float32."
            )
        return sums

    def _reset_sums(self) -> None:
        self._sums = [torch.zeros((), device=self.setup.device.torch_device) for _ in self.names]
        self._counts = [0.0 for _ in self.names]
        self._norm, self._rate = torch.zeros(()), 0.0
