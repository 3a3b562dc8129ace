"""What a stage of training is told, and the ``train`` section: workers, batches, precision, checkpoints."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from raydistill.config.losses import Loss, Schedule, largest
from raydistill.config.section import Mistake, Name, OrAuto, Section, known

Positive = Annotated[float, Field(gt=0)]


class Optimization(Section):
    """Length and optimizer settings of one stage of training."""

    num_epochs: OrAuto[Positive] = "auto"
    """Passes over the training rows; 0.5 is half of one. ``auto``: by the number of rows; the most where
    ``min_epochs`` is set."""
    min_epochs: Positive | None = None
    """The end is open: from so many passes on, a stage ends once validation gains no more than chance explains, after
    ``num_epochs`` at the latest. Its learning rate is constant after the warm-up and falls over the last third."""
    learning_rate: OrAuto[Positive] = "auto"
    """AdamW's, where the warm-up ends. ``auto``: by the width of the teacher."""
    weight_decay: float = Field(default=0.01, ge=0)
    """AdamW's, of all weights but biases and norms."""
    warmup_ratio: float = Field(default=0.1, ge=0, le=1)
    """Share of the steps over which the learning rate rises from 0."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rate falls after the warm-up."""
    freeze: tuple[str, ...] = ()
    """Glob patterns of parameter names that are not trained, for example ``*embeddings*``; one that begins with ``!``
    makes an exception of earlier ones: ``['*', '!classifier*']`` trains nothing but the head."""

    @property
    def fewest_epochs(self) -> float:
        """Passes that are made at least."""
        return known(self.num_epochs) if self.min_epochs is None else self.min_epochs

    def mistakes(self) -> list[Mistake]:
        if self.min_epochs is None or self.num_epochs == "auto" or self.min_epochs <= self.num_epochs:
            return []
        return [(("min_epochs",), f"{self.min_epochs:g} is above num_epochs ({self.num_epochs:g}).")]


class Change(Section):
    """New values of a stage's settings from a step on."""

    step: int = Field(ge=1)
    """Optimizer steps of the stage after which the new values hold."""
    set: dict[str, float] = Field(min_length=1)
    """learning_rate, weight_decay, losses.<name>.weight, losses.<name>.temperature: new value."""


class Stage(Optimization):
    """One stage of the student's training: its losses, length and optimizer settings."""

    losses: dict[Name, Loss] = Field(default={}, min_length=1, validate_default=True)
    """Named loss terms; the name is the metric key ``train/loss/<name>``. By default ``kd``, the teacher's predictions,
    and ``task``."""
    changes: tuple[Change, ...] = ()
    """Settings that take other values on the way, by rising step: the schedule that a ``pbt`` sweep found."""

    @property
    def needs_end(self) -> bool:
        """Whether its end must be known before it begins: a setting changes over its length."""
        settings = (getattr(loss, name, None) for loss in self.losses.values() for name in ("weight", "temperature"))
        return bool(self.changes) or any(isinstance(value, Schedule) for value in settings)

    def mistakes(self) -> list[Mistake]:
        silent = all(largest(loss.weight) == 0 for loss in self.losses.values())
        found = super().mistakes()
        found += [(("losses",), "every weight is 0, so nothing would be learned.")] if silent else []
        if self.min_epochs is not None and self.needs_end:
            text = "leaves the end of the stage open, over whose length a loss changes. Leave it out."
            found.append((("min_epochs",), text))
        steps = [change.step for change in self.changes]
        if steps != sorted(set(steps)):
            found.append((("changes",), f"steps must rise, got {', '.join(map(str, steps))}."))
        settings = {"learning_rate", "weight_decay"} | {
            f"losses.{name}.{setting}"
            for name, loss in self.losses.items()
            for setting in ("weight", "temperature")
            if hasattr(loss, setting)
        }
        for name in sorted({name for change in self.changes for name in change.set} - settings):
            text = f"{name} cannot change on the way; what can: {', '.join(sorted(settings))}."
            found.append((("changes",), text))
        for change in self.changes:
            for name, value in change.set.items():
                least = name.rpartition(".")[2]
                if value < 0 or (value == 0 and least in ("learning_rate", "temperature")):
                    text = f"{name} becomes {value:g} at step {change.step}; it must be positive."
                    found.append((("changes",), text))
        return found


Resources = dict[str, Annotated[float, Field(ge=0)]]


def without_gpu(setting: str, resources: Resources | None, accelerator_type: str | None) -> list[Mistake]:
    """Resources that ask for no GPU beside a kind of GPU: on such a node all would be computed on its CPUs."""
    if accelerator_type is None or resources is None or resources.get("GPU"):
        return []
    text = (
        f"asks for no GPU, but accelerator_type for a node with {accelerator_type}. Add GPU: 1, or leave "
        "accelerator_type out."
    )
    return [((setting,), text)]


class Train(Section):
    """How training runs: workers, batches, checkpoints."""

    num_workers: int = Field(default=1, ge=0)
    """Ray Train workers; 0 runs everything in the calling process without Ray."""
    min_workers: int | None = Field(default=None, ge=1)
    """Elastic training: begin, or go on, with so many workers while the cluster has no room for ``num_workers``."""
    resources_per_worker: Resources | None = None
    """For example {CPU: 4, GPU: 1}; by default one GPU where the cluster has some, else an even share of the CPUs."""
    accelerator_type: str | None = Field(default=None, min_length=1)
    """A kind of GPU by Ray's name, for example A100."""
    max_wait_minutes: float = Field(default=60, ge=0)
    """So long a run waits while the cluster has no room for the least of its workers, or its teachers."""
    max_failures: int = Field(default=3, ge=0)
    """How often a worker group that lost a worker is started again."""
    global_batch_size: int = Field(default=32, ge=1)
    """Rows an optimizer step sees, over all workers."""
    tokens_per_micro_batch: int = Field(default=8192, ge=1)
    """Tokens (padding included) of one forward pass on one worker; changes speed and memory, not the result."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute dtype of teacher and student; ``auto``: bfloat16 where the device is fast at it."""
    checkpoint_steps: int = Field(default=100, ge=1)
    """Steps between two checkpoints: at most so many are repeated after a crash."""
    early_stopping: int | None = Field(default=None, ge=1)
    """Stop after this many validations without a better score; there is one an epoch, or for several of few steps."""
    max_grad_norm: float | None = Field(default=1.0, gt=0)
    """Gradients with a larger norm are scaled down to it. None: never."""
    seed: int | None = Field(default=None, ge=0, lt=2**31)
    """Seed of student and baseline: order of the rows, dropout, random starts. None: that of the config. With another
    one data and teacher stay what they are."""

    def mistakes(self) -> list[Mistake]:
        found = without_gpu("resources_per_worker", self.resources_per_worker, self.accelerator_type)
        if self.min_workers is not None and self.min_workers > self.num_workers:
            found.append((("min_workers",), f"{self.min_workers} is above num_workers ({self.num_workers})."))
        return found
