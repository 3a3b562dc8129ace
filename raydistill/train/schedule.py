"""How long a stage trains, and at which learning rate: a length that is known, or as long as validation pays.

All of it follows from the step and from what validations found, so that a killed stage goes on as if it had not been.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from raydistill.config.section import known
from raydistill.config.training import Optimization
from raydistill.train.checkpoint import TrainProgress

SHORT_EPOCH_STEPS = 20
"""Epochs shorter than this are validated together: of 5 steps, a validation and its weights cost more than learning."""
NUM_VALIDATIONS = 12
"""But no stage is validated less often than this for that reason."""
OPEN_VALIDATIONS = 6
"""A stage whose end is open is validated so often in its least steps, if these are few epochs: gains show in time."""
DECAY_SHARE = 1 / 3
"""Of the steps of a stage whose end is open: over the last third the rate falls."""
CLEAR = 2.0
"""Standard errors that a gain must have to be no chance."""


@dataclass(frozen=True)
class Schedule:
    """Length of a stage in optimizer steps, and how many lie between two validations."""

    num_steps: int
    """Where the end is open, the most."""
    validate_steps: int
    min_steps: int | None = None
    """The end is open: after a warm-up the rate is constant, and begins to fall when validation no longer gains, at the
    earliest so that this many steps are taken. None: the length is known."""
    decay_share: float = DECAY_SHARE
    """Of all steps where the end is open, those over which the rate falls."""

    @classmethod
    def of_epochs(cls, num_rows: int, global_batch_size: int, settings: Optimization) -> Schedule:
        """Validation after each epoch, or after several short ones."""
        steps_per_epoch = math.ceil(num_rows / global_batch_size)
        num_steps, fewest = (
            max(1, round(epochs * steps_per_epoch)) for epochs in (known(settings.num_epochs), settings.fewest_epochs)
        )
        together = max(1, min(SHORT_EPOCH_STEPS, fewest // NUM_VALIDATIONS) // steps_per_epoch)
        validate_steps = min(together * steps_per_epoch, num_steps)
        if fewest >= num_steps:
            return cls(num_steps, validate_steps)
        often = max(1, fewest // OPEN_VALIDATIONS)
        return cls(
            num_steps, min(validate_steps, often), fewest, 0.0 if settings.schedule == "constant" else DECAY_SHARE
        )

    @property
    def fewest_steps(self) -> int:
        """Those that are taken at least."""
        return self.min_steps or self.num_steps

    @property
    def latest_decay(self) -> int:
        """The step before which the rate begins to fall at the latest."""
        return self.num_steps - round(self.decay_share * self.num_steps)

    def end(self, decay_from: int | None) -> int:
        """The number of steps, where the rate falls from ``decay_from`` on."""
        if decay_from is None or self.min_steps is None:
            return self.num_steps
        return min(self.num_steps, max(self.min_steps, math.ceil(decay_from / (1 - self.decay_share))))

    def expected(self, progress: TrainProgress) -> int:
        """The number of steps if validation gained no more from here on."""
        if self.min_steps is None or progress.decay_from is not None:
            return self.end(progress.decay_from)
        return self.end(progress.step)

    def is_enough(self, progress: TrainProgress) -> bool:
        """Whether the rate is to fall from this validation on: the second half of the steps so far has gained nothing.

        A gain is one of the best score of that half over the best of the first by more than ``CLEAR`` standard errors
        of their difference, from the same resamples of the rows. A model that has not learned anything goes on.
        """
        step = progress.step
        if self.min_steps is None or progress.decay_from is not None or step >= self.latest_decay:
            return False
        if self.end(step + self.validate_steps) <= self.min_steps or not progress.has_learned:
            return False
        early, late = ([entry for entry in progress.trail if (entry[0] > step / 2) == half] for half in (False, True))
        if not early:
            return False
        (_, before, low), (_, now, high) = (max(entries, key=lambda entry: entry[1]) for entries in (early, late))
        error = float(np.std(np.array(high) - np.array(low))) if low and high else 0.0
        return now - before <= CLEAR * error

    def learning_rate(self, step: int, decay_from: int | None, settings: Optimization) -> float:
        """The learning rate of ``step`` (from 0): linear warm-up, constant where the end is open, then
        ``settings.schedule`` down to 0."""
        highest = known(settings.learning_rate)
        start = warmup_steps = math.ceil(self.fewest_steps * settings.warmup_ratio)
        if step < warmup_steps:
            return highest * (step + 1) / warmup_steps
        if self.min_steps is not None:
            start = max(start, self.latest_decay if decay_from is None else decay_from)
        done = max(0, step - start) / max(self.end(decay_from) - start, 1)
        match settings.schedule:
            case "constant":
                return highest
            case "linear":
                return highest * (1 - done)
            case "cosine":
                return highest * 0.5 * (1 + math.cos(math.pi * done))
