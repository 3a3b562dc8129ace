"""How long a stage trains, and at which learning rate: a length that is known, or as long as validation gains.

A stage whose end is open begins as one of its least length, so that where this is enough it is the same stage. After
two thirds of it, a validation decides: the stage ends there, or it is extended. An extended one takes the highest rate
again, until validation gains no more, and then lets it fall over the last third. All of it follows from the step and
from what validations found, so that a killed stage goes on as if it had not been.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

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
"""Of the steps of an extended stage: over the last third the rate falls."""
CLEAR, STILL = 1.5, 1.0
"""Standard errors that a gain must have for a stage to be extended, and for an extended one to go on. Of stages that
gain no more, 4 % see the first and 15 % the second (300 drawn ones each, of 100 to 1,000 rows). An extended stage is
looked at many times, of which one that sees no gain ends it."""


@dataclass(frozen=True)
class Schedule:
    """Length of a stage in optimizer steps, and how many lie between two validations."""

    num_steps: int
    """Where the end is open, the most."""
    validate_steps: int
    min_steps: int | None = None
    """The end is open: the least. None: the length is known."""
    decay_share: float = DECAY_SHARE
    """Of all steps of an extended stage, those over which the rate falls."""

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
        """The step before which the rate of an extended stage begins to fall at the latest."""
        return self.num_steps - round(self.decay_share * self.num_steps)

    def end(self, progress: TrainProgress) -> int:
        """The number of steps by what is decided so far."""
        if progress.extended_from is None:
            return self.fewest_steps
        if progress.decay_from is None:
            return self.num_steps
        return min(self.num_steps, max(self.fewest_steps, math.ceil(progress.decay_from / (1 - self.decay_share))))

    def expected(self, progress: TrainProgress) -> int:
        """The number of steps if validation gained no more from here on."""
        if self.is_open(progress) and progress.extended_from is not None:
            return self.end(replace(progress, decay_from=progress.step))
        return self.end(progress)

    def is_open(self, progress: TrainProgress) -> bool:
        """Whether a validation is still to decide on the end."""
        return self.min_steps is not None and progress.decay_from is None

    def is_early(self, progress: TrainProgress) -> bool:
        """Whether a model may owe to its first weights that it does not answer as one that sees no row."""
        return 2 * progress.step < self.fewest_steps

    def decide(self, progress: TrainProgress) -> None:
        """Note in ``progress``, at a validation, that the stage is extended or that its rate is to fall."""
        is_due = progress.step + self.validate_steps > (1 - DECAY_SHARE) * self.fewest_steps
        if not self.is_open(progress) or not is_due or progress.step >= self.num_steps:
            return
        is_late = progress.extended_from is not None and progress.step >= self.latest_decay
        if is_late or not (self.gains(progress) or not progress.has_learned):
            progress.decay_from, progress.trail = progress.step, []
        elif progress.extended_from is None:
            progress.extended_from = progress.step

    def gains(self, progress: TrainProgress) -> bool:
        """Whether as many steps again are expected to gain more than chance.

        The gain of the second half of the steps so far is its best score less that of the second quarter. If gains
        shrink from doubling to doubling at one rate, as along a power law, the next is this gain times its ratio to the
        one before; they are taken not to grow. It is clear above ``CLEAR``, or ``STILL``, standard errors of the
        difference of the two scores, from the same resamples of the rows.
        """
        step = progress.step
        parts = [
            [entry for entry in progress.trail if low * step < entry[0] <= high * step]
            for low, high in ((0, 1 / 4), (1 / 4, 1 / 2), (1 / 2, 1))
        ]
        early, middle, late = (max(part, key=lambda entry: entry[1], default=None) for part in parts)
        if middle is None or late is None:
            return early is None or late is None or late[1] > early[1]
        gain = late[1] - middle[1]
        error = float(np.std(np.array(late[2]) - np.array(middle[2]))) if middle[2] and late[2] else 0.0
        before = gain if early is None else middle[1] - early[1]
        ratio = min(1.0, gain / before) if before > 0 else 1.0
        least = CLEAR if progress.extended_from is None else STILL
        return gain > 0 and ratio * gain > least * error

    def learning_rate(self, step: int, progress: TrainProgress, settings: Optimization) -> float:
        """The learning rate of ``step`` (from 0): linear warm-up, then ``settings.schedule`` down to 0; of an extended
        stage a second warm-up from the rate that it had, and a constant rate before it falls."""
        highest, extended = known(settings.learning_rate), progress.extended_from
        warmup_steps = math.ceil(self.fewest_steps * settings.warmup_ratio)
        if step < warmup_steps:
            return highest * (step + 1) / warmup_steps
        if extended is None or step < extended:
            return highest * self._falling(step, warmup_steps, self.fewest_steps, settings)
        if step < extended + warmup_steps:
            low = self._falling(extended, warmup_steps, self.fewest_steps, settings)
            return highest * (low + (1 - low) * (step - extended + 1) / warmup_steps)
        start = self.latest_decay if progress.decay_from is None else progress.decay_from
        start = max(start, extended + warmup_steps)
        return highest * self._falling(step, start, self.end(progress), settings)

    @staticmethod
    def _falling(step: int, start: int, end: int, settings: Optimization) -> float:
        """Share of the highest rate at ``step``, where it falls from ``start`` to ``end``."""
        done = max(0, step - start) / max(end - start, 1)
        match settings.schedule:
            case "constant":
                return 1.0
            case "linear":
                return 1 - done
            case "cosine":
                return 0.5 * (1 + math.cos(math.pi * done))
