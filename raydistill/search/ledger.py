"""What a sweep knows of its trials, kept in storage: one small file a trial, so that a killed sweep loses none."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from raydistill.storage.ownership import Owner
from raydistill.storage.storage import Storage

Value = float | int | str | bool | None
"""A setting as the searcher sees it; lists and sections are written as JSON text, see ``space.py``."""
Params = dict[str, Value]

Schedule = tuple[tuple[int, Params], ...]
"""From which step on which settings hold."""

State = Literal["waiting", "running", "completed", "stopped", "failed", "rejected"]
"""``stopped``: by the scheduler or the budget, before its last step; ``rejected``: never trained."""

ENDED = ("completed", "stopped", "failed", "rejected")


@dataclass(frozen=True)
class Trial:
    """One combination of settings and what came of it; times in seconds, ``started`` since 1970."""

    number: int
    params: Params
    state: State = "waiting"
    reason: str | None = None
    """Why it failed or was rejected."""
    facts: dict[str, float] = field(default_factory=dict)
    """num_parameters, and latency_ms where it is measured: known before training."""
    values: dict[str, float] = field(default_factory=dict)
    """Validation metrics at the best epoch so far, named ``validation/<metric>``."""
    history: tuple[dict[str, Any], ...] = ()
    """Reports at validations: ``step``, ``num_steps`` (of the whole training), ``seconds`` (training so far), metrics
    as tracked (train/loss, train/loss/<name>, validation/<metric>)."""
    seconds: float = 0.0
    """Training, validation included."""
    setup_seconds: float = 0.0
    """From the trial's start in its actor to its first step."""
    started: float = 0.0
    run_id: str | None = None
    """The MLflow run."""
    student: str | None = None
    """Key of the student artefact, once completed."""
    schedule: Schedule = ()
    """Under pbt: from which step on which settings held, weights taken over from other trials included."""
    reused: bool = False
    """Nothing was trained: the student was in storage already."""
    is_blameless: bool = False
    """It failed for what is wrong with a node or with storage: its settings may be good, and it goes on from its
    checkpoint in the next session."""

    @property
    def course(self) -> Schedule:
        """The settings from the first step on."""
        return self.schedule or ((0, self.params),)

    @property
    def measures(self) -> dict[str, float]:
        return self.facts | self.values

    @property
    def has_ended(self) -> bool:
        return self.state in ENDED


class Ledger:
    """All trials of a sweep by number, in memory and in ``<sweep>/<name>/<number>.json``."""

    def __init__(
        self, storage: Storage, parts: tuple[str, ...], owner: Owner | None = None, *, name: str = "trials"
    ) -> None:
        self.storage, self.parts, self.owner = storage, (*parts, name), owner
        self._trials: dict[int, Trial] = {}
        for name in storage.list(*self.parts):
            if name.endswith(".json"):
                trial = from_json(storage.read_json(*self.parts, name))
                self._trials[trial.number] = trial

    def __iter__(self) -> Iterator[Trial]:
        return iter([self._trials[number] for number in sorted(self._trials)])

    def __len__(self) -> int:
        return len(self._trials)

    def __getitem__(self, number: int) -> Trial:
        return self._trials[number]

    def add(self, params: Params, **about: Any) -> Trial:
        """Add a trial under the next number, and write it."""
        return self._put(Trial(max(self._trials, default=-1) + 1, params, started=time.time(), **about))

    def update(self, number: int, **changes: Any) -> Trial:
        """Change a trial, and write it."""
        return self._put(replace(self._trials[number], **changes))

    def _put(self, trial: Trial) -> Trial:
        if self.owner is not None:
            self.owner.check()
        self.storage.write_json(asdict(trial), *self.parts, f"{trial.number:05d}.json")
        self._trials[trial.number] = trial
        return trial


def read_schedule(plain: Iterable[Any]) -> Schedule:
    """A schedule out of JSON or of Tune's plain data."""
    return tuple((int(step), dict(params)) for step, params in plain)


def from_json(content: Mapping[str, Any]) -> Trial:
    schedule = read_schedule(content["schedule"])
    return Trial(**{**content, "history": tuple(content["history"]), "schedule": schedule})
