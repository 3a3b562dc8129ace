"""The last worker group of a sweep: the winner goes the straight line to its end, and finalists meet the test rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from raydistill.artifacts import Artifact
from raydistill.evaluate.metrics import classification_metrics
from raydistill.phases import Outcome, run_phases
from raydistill.workplace import Workplace

Scores = dict[str, dict[str, float]]
"""Split (validation, test) → metric → value."""


@dataclass(frozen=True)
class Closing:
    outcome: Outcome
    """Of the winner."""
    scores: dict[str, Scores]
    """Of every finalist's student, by its artefact's key."""


def close(place: Workplace, students: Mapping[str, Artifact]) -> Closing:
    """Run what is left of the winner's line, and measure ``students`` (by key) on validation and test rows.

    This is the first and only time that a sweep looks at test rows. Every rank runs this.
    """
    outcome = run_phases(place)
    scores: dict[str, Scores] = {}
    with place.phase("finalists"):
        for key in sorted(students):  # in the same order on every rank
            model = place.load(students[key].local() / "model", dropout=0.0)
            scores[key] = {}
            for split in ("validation", "test"):
                logits = place.predict(model, split)
                scores[key][split] = classification_metrics(logits, place.rows[split].labels)
    return Closing(outcome, scores)
