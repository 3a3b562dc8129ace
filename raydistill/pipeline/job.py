"""What the driver hands to every worker."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from raydistill.config.plugins import Plugin
from raydistill.config.tree import Config
from raydistill.data.paths import SPLITS
from raydistill.data.rows import SWAPPED
from raydistill.models.folder import Names
from raydistill.storage.artifacts import Artifact
from raydistill.storage.ownership import Owner
from raydistill.storage.storage import Storage
from raydistill.tracking.runs import RunRef


@dataclass(frozen=True)
class TeacherJob:
    """One of the teachers: the config that it alone would have, and the rows in its own tokens."""

    name: str
    """In ``teacher.members``; empty where the config has a single teacher."""
    weight: float
    config: Config
    tokens: Artifact
    source_digest: str
    """Of the model as it is named."""


@dataclass(frozen=True)
class Job:
    """What the driver hands to every worker; plain values, no weights."""

    config: Config
    run_key: str
    storage: Storage
    owner: Owner
    data: Artifact
    task: dict[str, Any]
    """The task's facts."""
    dtype: str
    run: RunRef | None
    teachers: tuple[TeacherJob, ...]
    """One or more; the student reads the tokens of the first."""
    plugins: tuple[Plugin, ...] = ()
    """Losses and tasks of the user's own."""
    models: Names = field(default_factory=dict)
    """What the models' names have led to in the driver."""
    folder: tuple[str, ...] = ()
    """Where below the run folder a trial of a sweep keeps its checkpoints and metrics."""
    perturbed: Artifact | None = None
    """Tokens of the test rows written otherwise; None where ``evaluate.robustness`` is off."""

    @property
    def tokens(self) -> Artifact:
        """The rows as the student, and its first teacher, read them."""
        return self.teachers[0].tokens

    def tokens_of(self, split: str) -> Artifact:
        """Where the rows of a split lie."""
        return self.tokens if split.removesuffix(SWAPPED) in SPLITS or self.perturbed is None else self.perturbed

    @property
    def run_parts(self) -> tuple[str, ...]:
        return ("runs", self.run_key, *self.folder)

    @property
    def board_parts(self) -> tuple[str, ...]:
        """Where the driver's request to stop lies: trials of a sweep obey the same one."""
        return ("runs", self.run_key)
