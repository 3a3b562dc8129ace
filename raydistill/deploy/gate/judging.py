"""The facts a gate is judged on, measured now: challenger and champion on the same rows, and what their runs kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raydistill.config.gate import Gate
from raydistill.deploy.opening import open_folder
from raydistill.deploy.paired import compare_paired, other_tokens
from raydistill.deploy.predictor import Predictor
from raydistill.deploy.testset import TestRows, spoken
from raydistill.errors import DataError, ModelError, RaydistillError
from raydistill.evaluate.evidence import read_kept_predictions, read_seen
from raydistill.evaluate.rules import Facts, Retention, compared_metric
from raydistill.evaluate.scoreboard import Scoreboard
from raydistill.storage.storage import Storage
from raydistill.tracking.registry.versions import Version, resolve_model_uri

CHALLENGER, CHAMPION = "challenger", "champion"
TEACHER = "teacher"


def open_both(
    challenger: Version, champion: Version | None, storage: Storage, scratch: Path, *, force: bool = False
) -> tuple[dict[str, Predictor], list[str]]:
    """Download the models into ``scratch`` and open them; and why one is left out.

    Raises ModelError for a version that cannot be opened, or a champion for another kind of problem; with
    ``force`` such a champion is left out.
    """
    models: dict[str, Predictor] = {}
    notes = []
    for role, version in ((CHALLENGER, challenger), (CHAMPION, champion)):
        if version is None:
            continue
        (folder := scratch / role).mkdir()
        try:
            model = open_folder(resolve_model_uri(uri_of(version), storage, folder))
            check_kind(model, models.get(CHALLENGER))
            models[role] = model
        except RaydistillError as error:
            said = f"The {role}, version {version.version} of {version.name}, cannot be used: {error}"
            if role == CHALLENGER or not force:
                raise ModelError(said) from error
            notes.append(said)
    return models, notes


def check_kind(model: Predictor, other: Predictor | None) -> None:
    """Raises ModelError where two models are for other kinds of problems, or guess other tokens: no metric is common to
    them."""
    if other is None:
        return
    if why := other_tokens(model, other):
        raise ModelError(
            f"it {why} the challenger, so their figures are of other tokens, which cannot be compared. Train the "
            "challenger as the champion was, or register it under a name of its own."
        )
    if other.task.type != model.task.type:
        raise ModelError(
            f"it is for {spoken(model.task)}, the challenger for {spoken(other.task)}. Register each kind of problem "
            "under a name of its own."
        )


def measure(
    gate: Gate,
    challenger: Version,
    champion: Version | None,
    models: Mapping[str, Predictor],
    rows: TestRows,
    uri: str,
) -> tuple[Facts, dict[str, Any], list[str]]:
    """Measure both models on ``rows``, which were read for the challenger, paired and in turns.

    Facts for the rules, the summary of the paired comparison behind them, and sentences for people.
    """
    if not rows.num_rows:
        raise DataError(f"{rows.source} has no labelled row in {rows.split}, so nothing can be judged.")
    labels = {role: model.task.outputs for role, model in models.items()}
    alike = {role for role, names in labels.items() if same_outputs(names, labels[CHALLENGER])}
    roles = [role for role in (CHAMPION, CHALLENGER) if role in alike]
    paired = compare_paired({role: models[role] for role in roles}, rows, num_samples=gate.bootstrap_samples)
    summary, run_id = paired.summary, challenger.run_id
    own = summary["models"][CHALLENGER]
    seen = read_seen(run_id, uri) if run_id else None
    metric = compared_metric(gate, summary["data"]["task"], own["metrics"])
    facts = Facts(
        challenger=own,
        chance=paired.board.chance(CHALLENGER),
        task=summary["data"]["task"],
        champion=summary["models"].get(CHAMPION),
        pair=summary["pairs"][0] if summary["pairs"] else None,
        labels=labels[CHALLENGER],
        champion_labels=labels.get(CHAMPION),
        retention=find_retention(metric, gate.bootstrap_samples, run_id, uri) if run_id else None,
        leaked=None if seen is None else seen.leaked(rows.hashes),
        num_rows=rows.num_rows,
    )
    return facts, summary, [*summary["notes"], *_champion_leak(champion, rows, uri)]


def same_outputs(a: Sequence[str], b: Sequence[str]) -> bool:
    """The name of a single output says nothing."""
    return set(a) == set(b) or len(a) == len(b) == 1


def find_retention(metric: str, num_samples: int, run_id: str, uri: str) -> Retention | None:
    """On the test rows of the run, as both were predicted then; None where it keeps no teacher's."""
    kept = read_kept_predictions(run_id, uri)
    if kept is None or TEACHER not in kept.outputs:
        return None
    both = {name: kept.outputs[name] for name in (TEACHER, "student")}
    board = Scoreboard(kept.tasks, both, kept.targets, num_samples=num_samples, wanted={metric})
    return Retention(**board.retention(TEACHER, "student", metric), num_rows=board.num_rows)


def _champion_leak(champion: Version | None, rows: TestRows, uri: str) -> list[str]:
    seen = read_seen(champion.run_id, uri) if champion is not None and champion.run_id else None
    count = 0 if seen is None else sum(seen.leaked(rows.hashes).values())
    if not count:
        return []
    return [
        f"{count:,} of these rows stood in the champion's training or validation rows: the comparison favours the "
        "champion."
    ]


def uri_of(version: Version) -> str:
    return f"models:/{version.name}/{version.version}"
