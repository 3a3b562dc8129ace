"""Whether a run's student may take the alias ``challenger``, by the predictions that runs keep: no model is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from raydistill.config.metrics import metric
from raydistill.evaluate.compare import Predictions
from raydistill.evaluate.intervals import gain
from raydistill.evaluate.scoreboard import Scoreboard
from raydistill.tracking.registry import CHALLENGER, run_tags, version_by_alias

if TYPE_CHECKING:
    from raydistill.tracking.runs import RunRef

SWEEP = "raydistill.sweep"
"""Tag of the run of a sweep's winner."""


def why_not_challenger(name: str, ref: RunRef, results: Mapping[str, Any], test: Predictions) -> str | None:
    """Why the student should leave the alias where it is; None where it may have it.

    It stays behind at chance, where it is measurably worse than the present challenger on the same test rows (``test``
    has the student's predictions), and where that one won a sweep and is not reached. Raises TrackingError.
    """
    student, task, uri = results["student"], results["task"], ref.tracking_uri
    if student["chance"]["reason"] in ("constant", "floor"):
        return f"the student is {task['guessing']}: {student['chance']['why']}"
    present = version_by_alias(name, CHALLENGER, uri)
    if present is None or not present.run_id or present.run_id == ref.run_id:
        return None
    from raydistill.evaluate.evidence import read_kept_predictions  # it loads torch

    kept = read_kept_predictions(present.run_id, uri)
    theirs = None if kept is None else kept.aligned(test.hashes, test.tasks["student"])
    if theirs is None:
        return None
    main = task["main_metric"]
    board = Scoreboard(
        {"own": test.tasks["student"], "other": theirs.tasks["student"]},
        {"own": test.outputs["student"], "other": theirs.outputs["student"]},
        test.targets,
        example_ids=test.example_ids,
        wanted={main},
    )
    ahead, low, high = (gain(main, board.differences("own", "other")[main])[key] for key in ("value", "low", "high"))
    won = SWEEP in (run_tags(present.run_id, uri) or {}) and SWEEP not in (run_tags(ref.run_id, uri) or {})
    if low <= 0 and not (won and ahead > 0):
        return None
    about, holder = metric(main), f"version {present.version}, {'which won a sweep' if won else 'which has it'}"
    return (
        f"on the same test rows {holder}, has the better {about.words}, by {about.amount(ahead)} "
        f"(95 % interval {about.text(low)} to {about.text(high)})"
    )
