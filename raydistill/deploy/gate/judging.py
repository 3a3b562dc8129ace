"""The facts a gate is judged on, measured now: challenger and champion on the same rows, and what their runs kept."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from raydistill.config.gate import Gate
from raydistill.deploy.classifier import Classifier
from raydistill.deploy.opening import open_folder
from raydistill.deploy.paired import PairedComparison, compare_paired
from raydistill.deploy.testset import TestRows
from raydistill.errors import DataError, ModelError, RaydistillError
from raydistill.evaluate import metrics
from raydistill.evaluate.compare import chance
from raydistill.evaluate.evidence import read_kept_predictions, read_seen
from raydistill.evaluate.intervals import interval
from raydistill.evaluate.rules import Facts, Retention
from raydistill.storage.storage import Storage
from raydistill.tracking.registry import Version, resolve_model_uri

CHALLENGER, CHAMPION = "challenger", "champion"
NOT_KEPT = "the run keeps no predictions of its teacher"


@dataclass(frozen=True, eq=False)
class Measured:
    """Facts for the rules, the paired comparison behind them, and sentences for people."""

    facts: Facts
    paired: PairedComparison
    retention: Retention | None
    notes: list[str]


def measure(
    gate: Gate,
    challenger: Version,
    champion: Version | None,
    rows: TestRows,
    storage: Storage,
    uri: str,
    *,
    force: bool = False,
) -> Measured:
    """Download both models and measure them on ``rows``, paired and in turns.

    Raises RaydistillError, ModelError for a version that cannot be opened; with ``force`` such a champion is left out.
    """
    if not rows.num_rows:
        raise DataError(f"{rows.source} has no labelled row in {rows.split}, so nothing can be judged.")
    notes = []
    with ExitStack() as stack:
        models: dict[str, Classifier] = {}
        for role, version in ((CHAMPION, champion), (CHALLENGER, challenger)):
            if version is None:
                continue
            scratch = Path(stack.enter_context(TemporaryDirectory(prefix="raydistill-")))
            try:
                models[role] = open_folder(resolve_model_uri(_uri(version), storage, scratch))
            except RaydistillError as error:
                said = f"The {role}, version {version.version} of {version.name}, cannot be opened: {error}"
                if role == CHALLENGER or not force:
                    raise ModelError(said) from error
                notes.append(said)
        labels = {role: tuple(model.labels) for role, model in models.items()}
        comparable = CHAMPION not in labels or set(labels[CHAMPION]) == set(labels[CHALLENGER])
        entrants = models if comparable else {CHALLENGER: models[CHALLENGER]}
        paired = compare_paired(entrants, rows, num_samples=gate.bootstrap_samples)
    summary = paired.summary
    seen = read_seen(challenger.run_id, uri) if challenger.run_id else None
    retention, why = find_retention(gate, paired, challenger, uri)
    own = summary["models"][CHALLENGER]
    facts = Facts(
        challenger=own,
        chance=chance(own["metrics"], paired.logits[CHALLENGER], paired.labels),
        champion=summary["models"].get(CHAMPION),
        pair=summary["pairs"][0] if summary["pairs"] else None,
        labels=labels[CHALLENGER],
        champion_labels=labels.get(CHAMPION),
        retention=retention,
        why_no_retention=why,
        leaked=None if seen is None else seen.leaked(rows.hashes),
        num_rows=rows.num_rows,
    )
    notes += [*summary["notes"], *_champion_leak(champion, rows, uri)]
    return Measured(facts, paired, retention, notes)


def find_retention(gate: Gate, paired: PairedComparison, challenger: Version, uri: str) -> tuple[Retention | None, str]:
    """Challenger ÷ teacher: on the rows at hand where the run keeps the teacher's predictions of all of them, else on
    the run's own test rows as both were predicted then. None, with the reason, where it keeps none."""
    kept = read_kept_predictions(challenger.run_id, uri) if challenger.run_id else None
    if kept is None or "teacher" not in kept.logits:
        return None, NOT_KEPT
    teacher = kept.of_rows("teacher", paired.rows.hashes, paired.class_names)
    if teacher is not None:
        return ratio(gate, paired.logits[CHALLENGER], teacher, paired.labels, "evaluated now"), ""
    labelled = kept.labels >= 0
    student, teacher = kept.logits["student"][labelled], kept.logits["teacher"][labelled]
    return ratio(gate, student, teacher, kept.labels[labelled], "its run's own test rows, as predicted then"), ""


def ratio(gate: Gate, student: np.ndarray, teacher: np.ndarray, labels: np.ndarray, where: str) -> Retention:
    """Retention with its paired bootstrap interval; logits (N, C), labels (N,)."""
    both = {"student": student, "teacher": teacher}
    values = {name: metrics.classification_metrics(found, labels)[gate.metric] for name, found in both.items()}
    if not values["teacher"] > 0:
        return Retention(None, None, None, len(labels), where)
    samples = metrics.bootstrap(both, labels, None, gate.bootstrap_samples, 0, auc=False)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = samples["student"][gate.metric] / samples["teacher"][gate.metric]
    found = interval(values["student"] / values["teacher"], ratios)
    value = found["value"]
    return Retention(value, found["low"], found["high"], len(labels), where)


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
