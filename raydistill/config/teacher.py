"""The ``teacher`` section: which model, how it is fine-tuned, and how its outputs reach the student."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from raydistill.config.losses import SequenceHead
from raydistill.config.section import Mistake, OrAuto, Section, known
from raydistill.config.training import Optimization, Resources

FEWEST_PAIRED = 4
"""Rows that a contrastive training compares with each other at least."""


def pair_group(global_batch_size: int) -> int:
    """Rows of a batch that a contrastive training compares with each other."""
    return math.gcd(global_batch_size, 16)


class Finetune(Optimization):
    """Training of the teacher on the labelled rows; its probabilities are calibrated on the validation rows."""

    method: OrAuto[Literal["full", "probe", "contrastive"]] = "auto"
    """``full``: all weights, by the task's loss; ``probe``: a linear head on the mean of the frozen states, in seconds;
    ``contrastive``: rows with the same label are drawn together, then such a head. ``auto``: by the number of
    labels; ``full`` with a length or learning rate of your own."""
    max_attempts: int | None = Field(default=None, ge=1)
    """A ``full`` training that learns nothing is begun again, with another order of the rows and half the learning
    rate, until there were so many. By default 3, and 1 with a learning rate of your own."""

    head: SequenceHead = "softmax"
    """Of a tagger of words, see ``student.head``."""
    metric: str | None = None
    """Validation metric that picks the teacher's best epoch; by default one of its soft targets (log loss, RMSE): they
    are what a student learns, and at equal accuracy an early epoch's near-uniform ones teach little."""

    @property
    def epochs(self) -> float:
        """Passes over the labelled rows with a gradient; a probe makes none."""
        return 0.0 if self.method == "probe" else known(self.num_epochs)


class Pool(Section):
    """Teachers in actors of their own, on other devices and nodes than the training workers. They may come and go."""

    min: int = Field(default=1, ge=1)
    """Work begins when so many teachers are there; later it goes on with one."""
    max: int = Field(default=1, ge=1)
    """So many are asked for; an autoscaler brings nodes for them."""
    resources: Resources | None = None
    """What each teacher asks for, for example {GPU: 0.5}; by default one GPU where the cluster has some, else a CPU.
    Where there are nodes with the resource ``teacher``, teachers are placed on those."""
    accelerator_type: str | None = Field(default=None, min_length=1)
    """A kind of GPU by Ray's name, for example L4."""
    max_ahead_bytes: int = Field(default=64 * 2**20, ge=0)
    """Outputs that teachers may have ready for each training worker; beyond that they wait for the student."""

    def mistakes(self) -> list[Mistake]:
        return [(("min",), f"{self.min} is above max ({self.max}).")] if self.min > self.max else []


@dataclass(frozen=True)
class Mode:
    """How the teacher's signals reach the student."""

    name: str
    needs_recording: bool = False
    """Those of the training rows are recorded before a student trains."""
    needs_pool: bool = False
    """Teacher actors compute ahead of the student, which trains at the same time."""
    keeps_teacher: bool = False
    """The teacher's module stays in each training worker."""


MODES = {
    mode.name: mode
    for mode in (
        Mode("cached", needs_recording=True),
        Mode("online", keeps_teacher=True),
        Mode("pool", needs_pool=True),
    )
}


class ModelTeacher(Section):
    """A classifier, or an encoder that is fine-tuned first, and how its outputs reach the student."""

    type: Literal["model"] = "model"
    model: str = Field(min_length=1)
    """A folder, ``pkg://package/path`` or a hub name: a fine-tuned classifier, or a plain encoder with ``finetune``."""
    revision: str | None = None
    """Commit, tag or branch of a hub model."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Only for models whose code you have read; the student has it, too."""
    finetune: OrAuto[Finetune | None] = "auto"
    """Fine-tune the model on the labelled rows first; the best epoch by validation is kept. ``auto``: an encoder
    without a trained head."""
    allow_chance: bool = False
    """Go on with a teacher that is no better than chance on the validation rows, instead of ending the run."""
    mode: Literal["auto", "cached", "online", "pool"] = "auto"
    """``cached``: record its outputs once; ``online``: run it beside the student; ``pool``: teacher actors compute
    ahead of it; ``auto``: by ``max_cache_bytes``."""
    pool: Pool | None = None
    """Teacher actors: they record (``cached``) or compute ahead of the student (``pool``)."""
    max_cache_bytes: int = Field(default=20_000_000_000, ge=0)
    """Up to this size ``auto`` records outputs that are wider than logits."""

    @property
    def has_actors(self) -> bool:
        """Whether teachers may run in actors of their own."""
        return self.pool is not None or self.feeds_student

    @property
    def feeds_student(self) -> bool:
        """Whether it is settled that teacher actors work at the same time as the student."""
        return self.mode in MODES and MODES[self.mode].needs_pool

    def choose_mode(self, total: int) -> tuple[Mode, str]:
        """The mode, and why; ``total``: bytes that all signals of the training rows would take."""
        if self.mode != "auto":
            return MODES[self.mode], f"teacher.mode: {self.mode}"
        if total <= self.max_cache_bytes:
            return MODES["cached"], f"its outputs take {total:,} bytes, within teacher.max_cache_bytes"
        wide = "online" if self.pool is None else "pool"
        return MODES[wide], f"its outputs would take {total:,} bytes, more than teacher.max_cache_bytes"


Teacher = ModelTeacher
