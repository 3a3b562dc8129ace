"""Which combination to try next, and when to stop: Optuna's samplers behind the ledger, which alone is the truth."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from raydistill.config.sweep import Sweep
from raydistill.config.tree import Config
from raydistill.search.front import moved
from raydistill.search.ledger import Ledger, Params, State, Trial, Value
from raydistill.search.space import combination, contains, default_params, space_size, sweep_of
from raydistill.search.study import ask, empty_study, replay, sampler_for, tell

if TYPE_CHECKING:
    import optuna

Limit = Literal["grid", "patience", "num_trials", "max_trials", "max_hours"]

DEFAULT_TRIALS = 20
LOOKS = 10
"""Combinations to look at for each trial that trains, unless ``max_trials`` says otherwise."""
REPEATS = 3
"""Repeats in a row after which a combination nobody had comes by lot: a sampler that has found its optimum in a finite
space would go on naming it."""


@dataclass(frozen=True)
class Verdict:
    """What is known of a combination before it trains."""

    facts: dict[str, float] = field(default_factory=dict)
    """num_parameters, and latency_ms where it is measured."""
    reason: str | None = None
    """Why it is rejected: a constraint that it breaks, or a combination that is impossible."""


class Proposals:
    """The trials of a sweep, one after another, as searcher, constraints and budget would have them.

    Trials that the ledger of a killed sweep has as waiting or running come first, as they are; those that ended are
    taken into the searcher's memory. Repeats, of which the ledger knows nothing, and ``max_hours`` count from here on:
    a resumed sweep gets its hours anew.
    """

    def __init__(
        self,
        config: Config,
        ledger: Ledger,
        judge: Callable[[Params], Verdict],
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.sweep, self.ledger, self.judge, self.clock = sweep_of(config), ledger, judge, clock
        self.size = space_size(self.sweep)
        self.num_trials = planned_trials(self.sweep)
        self.max_trials: int = self.sweep.max_trials or LOOKS * self.num_trials
        self._began = clock()
        # another draw than that of the session before, whose first proposals would come again otherwise
        words = np.random.SeedSequence([config.seed, len(ledger)]).generate_state(2)
        self._rng = np.random.default_rng(words[0])
        self._study = empty_study(config)
        self._study.sampler = sampler_for(self.sweep, self.num_trials, int(words[1]))
        self._open = replay(self._study, self.sweep, ledger)
        self._pending = deque(trial.number for trial in ledger if not trial.has_ended)
        self.replayed = [trial for trial in ledger if trial.state in ("completed", "stopped")]
        """What had completed or been stopped when this sweep began or was resumed."""
        self._seen = {key(trial.params) for trial in ledger}
        self._repeats = self._repeats_in_a_row = 0
        self._grid_index = 0
        default = default_params(config)
        self._default = default if contains(self.sweep, default) else None
        self._finished: list[Trial] = []
        self._unmoved = 0
        for trial in sorted(self.replayed, key=lambda trial: trial.started + trial.setup_seconds + trial.seconds):
            self._weigh(trial)
        self._stopped_by: Limit | None = None

    def next(self) -> Trial | None:
        """The next trial to train, or None where nothing is left to propose, see ``stopped_by``.

        Judges combinations, and writes rejected ones to the ledger, until one may train.
        """
        while not self.is_exhausted:
            if self._pending:
                return self.ledger[self._pending.popleft()]
            asked = self._draw()
            params = dict(asked.params)
            if key(params) in self._seen:
                self._repeats += 1
                self._repeats_in_a_row += 1
                tell(self._study, self.sweep, asked, None)  # an outcome told twice would weigh twice
                continue
            self._repeats_in_a_row = 0
            self._seen.add(key(params))
            verdict = self.judge(params)
            if verdict.reason is None:
                trial = self.ledger.add(params, facts=verdict.facts)
                self._open[trial.number] = asked
                return trial
            trial = self.ledger.add(params, facts=verdict.facts, state="rejected", reason=verdict.reason)
            tell(self._study, self.sweep, asked, trial)
        return None

    @property
    def is_exhausted(self) -> bool:
        """Whether no trial will be handed out any more."""
        return self.stopped_by == "max_hours" or (self.stopped_by is not None and not self._pending)

    @property
    def stopped_by(self) -> Limit | None:
        """What ended the search, ``grid`` for a finite space that was looked at from end to end; None while it goes on.

        Once ended it stays so. Open trials of a resumed sweep are still handed out, but not after ``max_hours``.
        """
        hours = self.sweep.max_hours
        if hours is not None and self.clock() - self._began >= hours * 3600:
            self._stopped_by = "max_hours" if self._pending else self._stopped_by or "max_hours"
        self._stopped_by = self._stopped_by or self._limit()
        return self._stopped_by

    def _limit(self) -> Limit | None:
        if self.size is not None and len(self._seen) >= self.size:
            return "grid"
        if self.sweep.patience is not None and self._unmoved >= self.sweep.patience:
            return "patience"
        if sum(trial.state != "rejected" and not trial.is_blameless for trial in self.ledger) >= self.num_trials:
            return "num_trials"
        return "max_trials" if len(self.ledger) + self._repeats >= self.max_trials else None

    def _draw(self) -> optuna.Trial:
        """The config's own settings first, so that a search can only improve on them; then grid or sampler."""
        if self._default is not None and key(self._default) not in self._seen:
            return ask(self._study, self.sweep, self._default)
        if self.size is not None and self.sweep.search == "grid":
            self._grid_index = self._unseen(self._grid_index, self.size)
            return ask(self._study, self.sweep, combination(self.sweep, self._grid_index))
        if self.size is not None and self._repeats_in_a_row >= REPEATS:
            index = self._unseen(int(self._rng.integers(self.size)), self.size)
            return ask(self._study, self.sweep, combination(self.sweep, index))
        return ask(self._study, self.sweep)

    def _unseen(self, start: int, size: int) -> int:
        """The first combination from `start` on, around the end, that nobody had; there is one."""
        ahead = ((start + offset) % size for offset in range(size))
        return next(index for index in ahead if key(combination(self.sweep, index)) not in self._seen)

    def end(self, number: int, state: State, **changes: Any) -> Trial:
        """Write the end of a trial that `next` handed out to the ledger, and tell the searcher."""
        trial = self.ledger.update(number, state=state, **changes)
        tell(self._study, self.sweep, self._open.pop(number), trial)
        if state in ("completed", "stopped"):
            self._weigh(trial)
        return trial

    def _weigh(self, trial: Trial) -> None:
        """Count the trials in a row, in the order in which they ended, that left the front where it was."""
        self._unmoved = 0 if moved(self._finished, trial, self.sweep) else self._unmoved + 1
        self._finished.append(trial)


def planned_trials(sweep: Sweep) -> int:
    """Trials to train, if the space has so many that may."""
    whole = space_size(sweep) if sweep.search == "grid" else None
    return sweep.num_trials or whole or DEFAULT_TRIALS


def key(params: Mapping[str, Value]) -> str:
    """Equal for equal combinations; by JSON text, as 1, 1.0 and true differ."""
    return json.dumps(params, sort_keys=True)
