"""The facts a gate is judged on, measured now: challenger and champion on the same rows, and what their runs kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from raydistill.config.gate import Gate
from raydistill.deploy.opening import open_folder
from raydistill.deploy.paired import PairedComparison, compare_paired
from raydistill.deploy.predictor import Predictor
from raydistill.deploy.testset import TestRows, spoken
from raydistill.errors import DataError, ModelError, RaydistillError
from raydistill.evaluate.evidence import read_kept_predictions, read_seen
from raydistill.evaluate.rules import Facts, Retention, compared_metric
from raydistill.evaluate.scoreboard import Scoreboard
from raydistill.storage.storage import Storage
from raydistill.tasks import Task
from raydistill.tracking.registry import Version, resolve_model_uri

CHALLENGER, CHAMPION = "challenger", "champion"
TEACHER = "teacher"
NOT_KEPT = "the run keeps no predictions of its teacher"


@dataclass(frozen=True, eq=False)
class Measured:
    """Facts for the rules, the paired comparison behind them, and sentences for people."""

    facts: Facts
    paired: PairedComparison
    retention: Retention | None
    notes: list[str]


@dataclass(frozen=True)
class Entrants:
    """The versions that a gate compares, the models of those that can be opened, and why one is left out."""

    challenger: Version
    champion: Version | None
    models: Mapping[str, Predictor]
    notes: tuple[str, ...]

    @property
    def task(self) -> Task:
        """What the challenger is for, which says how rows are read."""
        return self.models[CHALLENGER].task


@contextmanager
def entrants(
    challenger: Version, champion: Version | None, storage: Storage, *, force: bool = False
) -> Iterator[Entrants]:
    """Download and open both models; their files are there until the block ends.

    Raises ModelError for a version that cannot be opened, or a champion for another kind of problem; with
    ``force`` such a champion is left out.
    """
    notes = []
    with ExitStack() as stack:
        models: dict[str, Predictor] = {}
        for role, version in ((CHALLENGER, challenger), (CHAMPION, champion)):
            if version is None:
                continue
            scratch = Path(stack.enter_context(TemporaryDirectory(prefix="raydistill-")))
            try:
                model = open_folder(resolve_model_uri(_uri(version), storage, scratch))
                check_kind(model, models.get(CHALLENGER))
                models[role] = model
            except RaydistillError as error:
                said = f"The {role}, version {version.version} of {version.name}, cannot be used: {error}"
                if role == CHALLENGER or not force:
                    raise ModelError(said) from error
                notes.append(said)
        yield Entrants(challenger, champion, models, tuple(notes))


def check_kind(model: Predictor, other: Predictor | None) -> None:
    """Raises ModelError where two models are for other kinds of problems: no metric is common to them."""
    if other is not None and other.task.type != model.task.type:
        raise ModelError(
            f"it is for {spoken(model.task)}, the challenger for {spoken(other.task)}. Register each kind of problem "
            "under a name of its own."
        )


def measure(gate: Gate, entered: Entrants, rows: TestRows, uri: str) -> Measured:
    """Measure both models on ``rows``, which were read for the challenger, paired and in turns."""
    if not rows.num_rows:
        raise DataError(f"{rows.source} has no labelled row in {rows.split}, so nothing can be judged.")
    labels = {role: model.task.outputs for role, model in entered.models.items()}
    roles = [role for role in (CHAMPION, CHALLENGER) if same_outputs(labels.get(role, ()), labels[CHALLENGER])]
    paired = compare_paired({r: entered.models[r] for r in roles}, rows, num_samples=gate.bootstrap_samples)
    summary, run_id = paired.summary, entered.challenger.run_id
    seen = read_seen(run_id, uri) if run_id else None
    retention, why = find_retention(gate, paired, run_id, uri)
    facts = Facts(
        challenger=summary["models"][CHALLENGER],
        chance=paired.board.chance(CHALLENGER),
        task=summary["data"]["task"],
        champion=summary["models"].get(CHAMPION),
        pair=summary["pairs"][0] if summary["pairs"] else None,
        labels=labels[CHALLENGER],
        champion_labels=labels.get(CHAMPION),
        retention=retention,
        why_no_retention=why,
        leaked=None if seen is None else seen.leaked(rows.hashes),
        num_rows=rows.num_rows,
    )
    notes = [*entered.notes, *summary["notes"], *_champion_leak(entered.champion, rows, uri)]
    return Measured(facts, paired, retention, notes)


def same_outputs(a: Sequence[str], b: Sequence[str]) -> bool:
    """The name of a single output says nothing."""
    return set(a) == set(b) or len(a) == len(b) == 1


def find_retention(gate: Gate, paired: PairedComparison, run_id: str | None, uri: str) -> tuple[Retention | None, str]:
    """Challenger ÷ teacher: on the rows at hand where the run keeps the teacher's predictions of all of them, else on
    the run's own test rows as both were predicted then. None, with the reason, where it keeps none."""
    kept = read_kept_predictions(run_id, uri) if run_id else None
    if kept is None or TEACHER not in kept.outputs:
        return None, NOT_KEPT
    rows, now = paired.rows, paired.board
    tasks, outputs, targets = kept.tasks, kept.outputs, kept.targets
    student, where = "student", "its run's own test rows, as predicted then"
    if (then := kept.aligned(rows.hashes, rows.task)) is not None:
        student, targets, where = CHALLENGER, rows.targets, "evaluated now"
        tasks = {TEACHER: then.tasks[TEACHER], CHALLENGER: now.tasks[CHALLENGER]}
        outputs = {TEACHER: then.outputs[TEACHER], CHALLENGER: now.outputs[CHALLENGER]}
    known = paired.summary["models"][CHALLENGER]["metrics"]
    metric = compared_metric(gate, paired.summary["data"]["task"], known)
    both = {name: outputs[name] for name in (TEACHER, student)}
    board = Scoreboard(tasks, both, targets, num_samples=gate.bootstrap_samples, wanted={metric})
    return Retention(**board.ratio(TEACHER, student, metric), num_rows=board.num_rows, where=where), ""


def _champion_leak(champion: Version | None, rows: TestRows, uri: str) -> list[str]:
    seen = read_seen(champion.run_id, uri) if champion is not None and champion.run_id else None
    count = 0 if seen is None else sum(seen.leaked(rows.hashes).values())
    if not count:
        return []
    return [
        f"{count:,} of these rows stood in the champion's training or validation rows: the comparison favours the "
        "champion."
    ]


def _uri(version: Version) -> str:
    return f"models:/{version.name}/{version.version}"
