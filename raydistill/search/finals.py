"""From finished trials to the student that is called best: fresh seeds, test rows once, results, registry."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from raydistill.models.crf import saved_settings
from raydistill.pipeline.assembly import assemble
from raydistill.pipeline.context import Context
from raydistill.pipeline.distill import publish, say_waiting, take_over
from raydistill.pipeline.phases import PhaseResults, run_phases
from raydistill.pipeline.prepare import Clock, Prepared, run_key
from raydistill.pipeline.tfidf import tfidf_outcome
from raydistill.pipeline.worker import run_workers
from raydistill.search.children import adopt
from raydistill.search.front import finalists
from raydistill.search.ledger import Ledger, Trial
from raydistill.search.sharing import Shared
from raydistill.search.sources import OF, FinalSource
from raydistill.search.space import SEED, default_params, fresh_seeds, sweep_of
from raydistill.search.summary import Finalist, SeedOutcome, choose
from raydistill.search.trial import trial_config
from raydistill.search.tuning import TrialResources, run_trials
from raydistill.storage.artifacts import Artifact
from raydistill.storage.board import Show
from raydistill.storage.garbage import refer, referred
from raydistill.storage.locks import lock
from raydistill.storage.ownership import Owner
from raydistill.tracking.runs import RunRef, start_run


class Choice:
    """The finals of a sweep. Without a trial that may be chosen everything here is empty."""

    def __init__(
        self, prepared: Prepared, owner: Owner, shared: Shared, ref: RunRef, stop: threading.Event, show: Show
    ) -> None:
        self.prepared, self.shared, self.ref, self.stop, self.show = prepared, shared, ref, stop, show
        self.sweep = sweep_of(prepared.config)
        parts = ("runs", prepared.run_key)
        self.ledger = Ledger(prepared.storage, parts, owner, name="finals")
        self.candidates: dict[int, Trial] = {}
        self.roles: dict[int, list[str]] = {}
        self.finalists: list[Finalist] = []
        self.winner: tuple[Finalist, SeedOutcome] | None = None
        self.closing: Closing | None = None
        self.notes: list[str] = []

    def train_again(
        self, trials: Ledger, trial_resources: TrialResources, view: Callable[[list[Trial], int], None]
    ) -> None:
        """Train the finalists with fresh seeds: the values they were found by are the luckiest ones."""
        self.roles = finalists(list(trials), self.sweep)
        if self.roles and (own := self._own_values(trials)) is not None:
            self.roles.setdefault(own, []).append("default")  # what a search gained, shown with the same seeds
        self.candidates = {number: trials[number] for number in self.roles}
        seeds = fresh_seeds(self.prepared.config, [trial.params for trial in trials])
        wanted = [(trial, seed) for trial in self.candidates.values() for seed in seeds]
        source = FinalSource(self.ledger, self.shared, self.ref, self.stop, wanted)
        if source.open:
            run_trials(source, trial_resources, lambda: view(list(self.ledger), len(wanted)))
        self.finalists = [self._finalist(number, seeds) for number in self.candidates]
        self.finalists = [finalist for finalist in self.finalists if finalist.seeds]
        self.winner = choose(self.finalists, self.sweep, self.candidates)
        failed = [final for final in self.ledger if final.state == "failed"]
        self.notes += [f"Trial {f.params[OF]} with seed {f.params[SEED]} failed: {f.reason}" for f in failed]

    def _own_values(self, trials: Ledger) -> int | None:
        """The trial of the config's own values, if it trained."""
        default = default_params(self.prepared.config)
        same = [trial.number for trial in trials if trial.params == default and trial.history and not trial.schedule]
        return same[0] if same else None

    def _finalist(self, number: int, seeds: Sequence[int]) -> Finalist:
        """A finalist with its validation values; those on test come later."""
        ended = [f for f in self.ledger if f.params[OF] == number and f.state == "completed"]
        done = [f for f in ended if f.params[SEED] in seeds]  # others are of an earlier session with another budget
        done = [final for final in done if self._artifact(final).exists()]
        outcomes = [
            SeedOutcome(
                seed=int(final.params[SEED] or 0),
                student=str(final.student),
                path=str(self._artifact(final).local() / "model"),
                validation={name.removeprefix("validation/"): value for name, value in final.values.items()},
                test={},
            )
            for final in done
        ]
        return Finalist(number, tuple(self.roles[number]), tuple(outcomes))

    def _artifact(self, final: Trial) -> Artifact:
        return Artifact(self.prepared.storage, "student", str(final.student))

    def evaluate(self, held: ExitStack) -> None:
        """Finish the winner's line and measure all finalists on the test rows.

        The lock of the winner's run stays ``held`` until it is registered: ``distill`` may be told to run it, too.
        """
        if self.winner is None:
            return
        keys = {seed.student for finalist in self.finalists for seed in finalist.seeds}
        students = {key: Artifact(self.prepared.storage, "student", key) for key in keys}
        self.won = self._winner_prepared()
        parts = ("runs", self.won.run_key, "driver.lock")
        held.enter_context(lock(self.won.storage, *parts, waiting=lambda: say_waiting(self.show)))
        self.won_ref = start_run(self.won.config, self.won.storage, self.won.run_key, {"sweep": self.prepared.run_key})
        adopt(self.ref, self.won_ref, "winner")
        refer(self.won.storage, self.prepared.run_key, students.values())
        owner = take_over(self.won)
        job = self.won.job(owner, self.won_ref)
        self.closing = run_workers(job, self.show, self.stop, partial(close, students=students))
        refer(self.won.storage, self.prepared.run_key, referred(self.won.storage, self.won.run_key))
        scores = self.closing.scores
        self.finalists = [
            replace(f, seeds=tuple(measured(seed, scores[seed.student]) for seed in f.seeds)) for f in self.finalists
        ]

    def _winner_prepared(self) -> Prepared:
        """The winner as ``distill`` would be given it, so that it finds the run finished."""
        assert self.winner is not None
        prepared, trial = self.prepared, self.candidates[self.winner[0].trial]
        config = trial_config(prepared.config, trial.course, self.winner[1].seed)
        key = run_key(config, prepared.info.row_digest, prepared.dtype, prepared.teachers)
        return replace(prepared, config=config, run_key=key)

    def register(self, clock: Clock) -> dict[str, Any] | None:
        """Results and registered version of the winner, as after ``distill``."""
        if self.closing is None:
            return None
        tfidf = tfidf_outcome(self.won, clock, self.show)
        results = assemble(self.won, self.won_ref, self.closing.outcome, tfidf, clock)
        results = publish(self.won, self.won_ref, self.closing.outcome, results)
        results["seconds"] |= {"total": clock.total()}
        self.won.storage.write_json(results, "runs", self.won.run_key, "results.json")
        return results


def measured(outcome: SeedOutcome, scores: Scores) -> SeedOutcome:
    return replace(outcome, validation=scores["validation"], test=scores["test"])


Scores = dict[str, dict[str, float]]
"""Split (validation, test) → metric → value."""


@dataclass(frozen=True)
class Closing:
    outcome: PhaseResults
    """Of the winner."""
    scores: dict[str, Scores]
    """Of every finalist's student, by its artefact's key."""


def close(context: Context, students: Mapping[str, Artifact]) -> Closing:
    """Run what is left of the winner's line, and measure ``students`` (by key) on validation and test rows.

    This is the first and only time that a sweep looks at test rows. Every rank runs this.
    """
    outcome = run_phases(context)
    scores: dict[str, Scores] = {}
    with context.report.phase("finalists"):
        for key in sorted(students):  # in the same order on every rank
            model = context.load(students[key].local() / "model", dropout=0.0)
            known = {split: context.labeled(model, split) for split in ("validation", "test")}
            task = context.task.for_model(saved_settings(model)).fitted(*known["validation"])  # what its answers need
            scores[key] = {split: task.scores(*pair).values for split, pair in known.items()}
    return Closing(outcome, scores)
