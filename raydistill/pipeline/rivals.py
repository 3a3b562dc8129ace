"""The present champion and challenger beside a run's student, by the predictions that runs keep: no model is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from raydistill.evaluate.compare import Predictions
from raydistill.evaluate.figure import Figure
from raydistill.evaluate.results import ModelOutcome
from raydistill.evaluate.scoreboard import Scoreboard
from raydistill.tasks.targets import units_of
from raydistill.tracking.registry.aliases import CHAMPION
from raydistill.tracking.registry.students import CHALLENGER
from raydistill.tracking.registry.versions import Version, run_tags, version_by_alias

if TYPE_CHECKING:
    from raydistill.tasks import Task
    from raydistill.tracking.runs import RunRef

SWEEP = "raydistill.sweep"
"""Tag of the run of a sweep's winner."""


def find_champion(
    name: str | None, ref: RunRef, test: Predictions, task: Task
) -> tuple[ModelOutcome | None, list[str]]:
    """The champion of the registered model ``name`` on the rows of ``test``, its outputs in the order of ``task``.

    None without a champion; None and a sentence where the champion's run has not seen these very rows as its test rows,
    or is of another task or other labels. Its speed is not known here: ``promote`` measures it. Raises TrackingError.
    """
    version = None if name is None else find_rival(name, CHAMPION, ref)
    if version is None:
        return None, []
    found = kept_predictions(version, ref, test, task)
    if found is None or not {"num_parameters", "bytes"} <= version.tags.keys():
        return None, [
            f"The champion, version {version.version} of {name}, is not in the table: its run does not hold its "
            f"predictions of these test rows and labels. `raydistill promote {name}` measures both on the same rows."
        ]
    outcome = ModelOutcome(
        path=f"models:/{version.name}/{version.version}",
        num_parameters=int(float(version.tags["num_parameters"])),
        num_bytes=int(float(version.tags["bytes"])),
        task=found.tasks["student"],
        test=found.outputs["student"],
        more={"version": version.version},
    )
    return outcome, []


def why_not_challenger(name: str, ref: RunRef, results: Mapping[str, Any], test: Predictions) -> str | None:
    """Why the student should leave the alias ``challenger`` where it is; None where it may have it.

    It stays behind at chance, where it is measurably worse than the present challenger on the same test rows (``test``
    has the student's predictions), and where that one won a sweep and is not reached. Raises TrackingError.
    """
    student, task, uri = results["student"], results["task"], ref.tracking_uri
    if student["chance"]["reason"] in ("constant", "floor"):
        return f"the student is {task['guessing']}: {student['chance']['why']}"
    present = find_rival(name, CHALLENGER, ref)
    theirs = None if present is None else kept_predictions(present, ref, test, test.tasks["student"])
    if present is None or theirs is None:
        return None
    main = task["main_metric"]
    board = Scoreboard(
        {"own": test.tasks["student"], "other": theirs.tasks["student"]},
        {"own": test.outputs["student"], "other": theirs.outputs["student"]},
        test.targets,
        example_ids=test.example_ids,
        wanted={main},
    )
    own, other = (Figure.of(main, board.intervals(name)[main]) for name in ("own", "other"))
    ahead = Figure.of(main, board.differences("own", "other")[main]).gained
    won = SWEEP in (run_tags(present.run_id, uri) or {}) and SWEEP not in (run_tags(ref.run_id, uri) or {})
    return why_behind(
        f"version {present.version}, {'which won a sweep' if won else 'which has it'},", own, other, ahead, won
    )


def why_behind(holder: str, own: Figure, other: Figure, ahead: Figure, won: bool) -> str | None:
    """Why a student with its ``own`` value stays behind ``holder`` with the ``other`` one, which is ``ahead`` by so
    much; None where it need not: it is not measurably worse, or as good as one that ``won`` a sweep.

    Where neither value is defined, or the holder's is not, nobody is shown to be better.
    """
    if own.value is None and other.value is not None:
        return f"its {own.about.words} is not defined on the test rows, on which {holder} has {other.said}"
    if not (ahead.low is not None and ahead.low > 0) and not (won and ahead.value is not None and ahead.value > 0):
        return None
    about = ahead.about
    bounds = f" (95 % interval {ahead.bounds()})" if ahead.bounds() else ""
    return f"on the same test rows {holder} has the better {about.words}, by {about.amount(ahead.value)}{bounds}"


def find_rival(name: str, alias: str, ref: RunRef) -> Version | None:
    """The version of another run that has the alias."""
    version = version_by_alias(name, alias, ref.tracking_uri)
    return None if version is None or version.run_id in (None, "", ref.run_id) else version


def kept_predictions(version: Version, ref: RunRef, test: Predictions, task: Task) -> Predictions | None:
    """What the version's run said of the rows of ``test``, in the order of ``task``; None where it cannot be told, and
    where it hid other tokens."""
    from raydistill.evaluate.evidence import read_kept_predictions  # it loads torch

    kept = read_kept_predictions(version.run_id, ref.tracking_uri)
    found = None if kept is None else kept.aligned(test.hashes, task)
    if found is None or not task.Settings.over_vocabulary:
        return found
    hidden, own = (units_of(one.targets.values) for one in (found, test))
    return found if np.array_equal(hidden, own) else None
