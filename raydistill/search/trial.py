"""One trial in plain torch: the straight line's training phase, a validation at a time, in an actor that stays warm.

The same function serves a trial that a trial actor trains alone and one that a Ray Train group trains. Nothing here
knows Ray.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from raydistill.config.sweep import wanted
from raydistill.config.training import Change
from raydistill.config.tree import Config
from raydistill.pipeline.context import Context
from raydistill.pipeline.job import Job
from raydistill.pipeline.layers import settle_layers
from raydistill.pipeline.phases import student_artifact, student_reports
from raydistill.pipeline.stages import read_history, stage_history, stage_lengths
from raydistill.pipeline.teaching import teach, teacher_mode
from raydistill.search.front import first_validation
from raydistill.search.ledger import Params, Schedule, read_schedule
from raydistill.search.sharing import Shared
from raydistill.search.space import sweep_of, with_params
from raydistill.storage.board import Board
from raydistill.storage.ownership import Owner
from raydistill.storage.storage import Storage
from raydistill.train.checkpoint import WORST

FOLDER = "work"
"""Below the sweep's run folder: one folder a trial, with its checkpoints and metrics, while it trains."""


@dataclass(frozen=True)
class TrialSpec:
    """What a trial actor is told; ``to_plain`` and back because Tune keeps configs as plain data."""

    number: int
    name: str
    """Folder of the trial below ``work``; finals have names of their own."""
    schedule: Schedule
    """From which step on which settings hold: one entry, at step 0, unless pbt has changed them."""
    seed: int | None = None
    run_id: str | None = None
    """Of its MLflow run, at the address that the sweep's job has: it may hold a password, and Tune keeps what it is
    told in a file of its own."""

    @property
    def params(self) -> Params:
        return self.schedule[-1][1]

    def to_plain(self) -> dict[str, Any]:
        return asdict(self) | {"params": self.params}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> TrialSpec:
        return cls(plain["number"], plain["name"], read_schedule(plain["schedule"]), plain["seed"], plain["run_id"])


def trial_config(config: Config, schedule: Schedule, seed: int | None = None) -> Config:
    """The config that ``distill`` would be given for this trial. Raises ConfigError for an impossible combination."""
    made = with_params(config, schedule[0][1])
    if seed is not None:
        made = made.model_copy(update={"train": made.train.model_copy(update={"seed": seed})})
    if len(schedule) == 1:
        return made
    stages = dict(made.stages)
    for name, stage in stages.items():
        prefix = f"stages.{name}."
        changes = [
            Change(step=step, set={key.removeprefix(prefix): float(value or 0) for key, value in params.items()})
            for step, params in ((s, {k: v for k, v in p.items() if k.startswith(prefix)}) for s, p in schedule[1:])
            if params
        ]
        stages[name] = stage.model_copy(update={"changes": tuple(changes)})
    return made.model_copy(update={"stages": stages})


class TrialBoard(Board):
    """The sweep's request to stop, and when the first step was about to begin; progress is told by reports instead.

    ``own``: where this trial alone is asked to stop.
    """

    first_step_at: float | None = None

    def __init__(self, storage: Storage, run: tuple[str, ...], owner: Owner, own: Board | None = None) -> None:
        super().__init__(storage, run, owner, listener=lambda entry: None)
        self.own = own

    def should_stop(self) -> bool:
        if self.first_step_at is None:
            self.first_step_at = time.perf_counter()
        return super().should_stop() or (self.own is not None and self.own.should_stop())


def trial_job(shared: Shared, spec: TrialSpec) -> Job:
    parent = shared.job.run
    return replace(
        shared.job,
        config=trial_config(shared.job.config, spec.schedule, spec.seed),
        run=None if parent is None or spec.run_id is None else replace(parent, run_id=spec.run_id),
        folder=(FOLDER, spec.name),
    )


def trial_reports(context: Context, shared: Shared, *, save_at_validation: bool = False) -> Iterator[dict[str, Any]]:
    """Train the student of ``context``'s job and yield an entry at every validation; the last one says ``finished``.

    An entry holds ``step``, ``num_steps``, ``seconds`` (of training, in this process), ``setup_seconds``, the metrics,
    ``validation`` (1, 2, …) and ``score`` (best of the first validation objective so far, higher is better). A trial
    that was cut off yields first what it had reported up to its checkpoint; one whose student is in storage yields that
    student's history.
    """
    started = time.perf_counter()
    teach(context, shared.teacher, "validation")
    settle_layers(context, shared.teacher)
    mode, _, needs = teacher_mode(context, shared.teacher, context.config)
    artifact = student_artifact(context, shared.teacher, mode)
    progress = TrialProgress(context, started, first_validation(sweep_of(shared.job.config).objectives))
    if context.group.broadcast(artifact.exists() if context.group.is_first else None):
        history = read_history(artifact)
        context.report.replay("student", history)
        yield from progress.past(history, artifact.key)
        return
    yield from progress.past(stage_history(context, "student", context.config.stages), None)
    signals = {signal: shared.signals[signal] for signal in needs} if mode.needs_recording else {}
    reports = student_reports(
        context, shared.teacher, mode, signals, is_trial=True, save_at_validation=save_at_validation
    )
    for told in reports:
        if not told.report.validated:
            continue
        if told.is_last:
            for _ in reports:  # publishes the student
                pass
        student = artifact.key if told.is_last else None
        yield progress.entry(told.step, told.num_steps, told.report.metrics, told.report.kept, student)


class TrialProgress:
    """Turns reports of the loop into a trial's entries."""

    def __init__(self, context: Context, started: float, objective: str) -> None:
        self.context, self.started = context, started
        self.objective = objective
        self.validations, self.best = 0, WORST

    def past(self, history: list[dict[str, Any]], student: str | None) -> Iterator[dict[str, Any]]:
        """Entries of validations that lie behind; ``student``: the key of the finished student."""
        entries = [entry for entry in history if entry["validated"]]
        lengths = stage_lengths(self.context, "student", self.context.config.stages)
        least = sum(length.fewest_steps for length in lengths.values())
        for index, entry in enumerate(entries):
            metrics = {name: value for name, value in entry.items() if "/" in name}
            done = student if index == len(entries) - 1 else None
            num_steps = entry["step"] if done else max(least, entry["step"])
            yield self.entry(entry["step"], num_steps, metrics, entry["kept"], done, student is not None)

    def entry(
        self,
        step: int,
        num_steps: int,
        metrics: dict[str, float],
        kept: bool,
        student: str | None,
        reused: bool = False,
    ) -> dict[str, Any]:
        self.validations += 1
        value = metrics.get(self.objective, float("nan"))
        self.best = max(self.best, -value if wanted(self.objective) == "min" else value)  # NaN changes nothing
        first = getattr(self.context.board, "first_step_at", None)
        return {
            **metrics,
            "step": step,
            "num_steps": num_steps,
            "validation": self.validations,
            "kept": kept,
            "score": self.best,
            "seconds": 0.0 if first is None else time.perf_counter() - first,
            "setup_seconds": 0.0 if first is None else first - self.started,
            "finished": student is not None,
            "student": student,
            "reused": reused,
        }


def kept_values(history: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Validation metrics of the weights that a trial keeps, from its reports."""
    kept = [entry for entry in history if entry["kept"]]
    return {name: value for name, value in kept[-1].items() if name.startswith("validation/")} if kept else {}
