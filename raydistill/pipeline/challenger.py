"""Whether a run's student may take the alias ``challenger``, by the predictions that runs keep: no model is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from raydistill.evaluate.compare import Predictions, paired_difference
from raydistill.evaluate.verdict import GUESSING, points, why_chance
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
    student, uri = results["student"], ref.tracking_uri
    if student["chance"]["reason"] in ("one_class", "accuracy"):
        return f"the student is {GUESSING}: {why_chance(student)}"
    present = version_by_alias(name, CHALLENGER, uri)
    if present is None or not present.run_id or present.run_id == ref.run_id:
        return None
    from raydistill.evaluate.evidence import read_kept_predictions  # it loads torch

    kept = read_kept_predictions(present.run_id, uri)
    if kept is None or set(kept.class_names) != set(test.class_names):
        return None
    other = kept.of_rows("student", test.hashes, test.class_names)
    if other is None:
        return None
    known = test.labels >= 0
    own, other, labels, ids = (found[known] for found in (test.logits["student"], other, test.labels, test.example_ids))
    found = paired_difference("accuracy", own, other, labels, example_ids=ids)
    value, low, high = (found[key] for key in ("value", "low", "high"))
    assert value is not None
    assert low is not None
    assert high is not None
    won = SWEEP in (run_tags(present.run_id, uri) or {}) and SWEEP not in (run_tags(ref.run_id, uri) or {})
    if high >= 0 and not (won and value < 0):
        return None
    holder = f"version {present.version}, {'which won a sweep' if won else 'which has it'}"
    return (
        f"on the same test rows {holder}, is right more often by {points(-value)} points "
        f"(95 % interval {points(-high)} to {points(-low)})"
    )
