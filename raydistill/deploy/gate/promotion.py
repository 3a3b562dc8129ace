"""Promotion and rollback: a challenger becomes the champion when every rule of the gate holds, or by force."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from raydistill.config.data import Data
from raydistill.config.gate import Gate
from raydistill.config.tree import STORAGE
from raydistill.deploy.gate.judging import CHALLENGER, measure, open_both, uri_of
from raydistill.deploy.gate.page import write_gate_report
from raydistill.deploy.own_rows import find_test_rows
from raydistill.errors import ConfigError, TrackingError, UnknownName
from raydistill.evaluate.results import strict_json
from raydistill.evaluate.rules import Ruling, in_words, judge
from raydistill.storage.board import Show
from raydistill.storage.locks import lock
from raydistill.storage.redaction import redact_tree
from raydistill.storage.storage import Storage
from raydistill.tracking.registry.aliases import CHAMPION, Move, expect_champion, move_back, move_champion
from raydistill.tracking.registry.students import COMPLETE
from raydistill.tracking.registry.verdicts import amend_verdict, store_verdict
from raydistill.tracking.registry.versions import Version, known_versions, list_versions, open_store
from raydistill.tracking.runs import RUN_KEY

SCHEMA = 2


def promote(
    name: str,
    *,
    version: int | None = None,
    gate: Gate | None = None,
    data: Data | None = None,
    split: str = "test",
    storage: str = STORAGE,
    force: bool = False,
    reason: str | None = None,
    dry_run: bool = False,
    progress: Show = lambda entry: None,
) -> dict[str, Any]:
    """Judge a version (default: the alias ``challenger``) against the champion, and make it the champion if it passes.

    The rows are those of ``data``, or the test rows of the challenger's run. Returns the verdict: ``verdict`` is
    ``passed``, ``refused``, ``forced`` or ``unchanged`` (it is the champion already), ``moved`` whether the alias has
    moved, ``rules`` every rule with value and limit, ``comparison`` as ``deploy.paired`` measured it. It is stored
    with the version and as an MLflow run, unless ``dry_run``. Raises RaydistillError.
    """
    if force and not (reason or "").strip():
        raise ConfigError("--force needs --reason: it is kept with the version.")
    if reason is not None and not force:
        raise ConfigError("--reason is kept for a promotion by --force only; add --force, or leave it out.")
    place, rules = Storage(storage), gate or Gate()
    uri = open_store(place)
    waiting = {"phase": "wait", "note": f"another process works on {name}"}
    with lock(place, "promotions", name, waiting=lambda: progress(waiting)):
        found = known_versions(name, uri)
        challenger, champion = pick(name, found, version), with_alias(found, CHAMPION)
        if champion is not None and champion.version == challenger.version:
            told = f"Version {challenger.version} of {name} is the champion already; nothing was measured."
            return describe(challenger, champion, "unchanged", told)
        with TemporaryDirectory(prefix="raydistill-") as scratch:
            models, notes = open_both(challenger, champion, place, Path(scratch), force=force)
            rows = find_test_rows(uri_of(challenger), models[CHALLENGER].task, data, split, storage)
            note = f"version {challenger.version} on {rows.num_rows:,} rows{_against(champion)}"
            progress({"phase": "measure", "note": note})
            facts, summary, more = measure(rules, challenger, champion, models, rows, uri)
        rulings = judge(rules, facts)
        failed = [ruling for ruling in rulings if ruling.verdict == "failed"]
        decision = "passed" if not failed else "forced" if force else "refused"
        verdict = describe(
            challenger,
            champion,
            decision,
            sentence(challenger, champion, rulings, decision, reason),
            reason=reason,
            rules=[ruling.to_json() for ruling in rulings],
            gate=rules.model_dump(mode="json"),
            comparison=summary,
            retention=None if facts.retention is None else asdict(facts.retention),
            notes=[*notes, *more],
        )
        if dry_run:
            return verdict
        with lock(place, "registry", name, waiting=lambda: progress(waiting)):  # short, so that a rollback can begin
            check_unchanged(name, challenger, champion, uri)
            verdict["run_id"] = record(verdict, challenger, uri, place)
            if decision != "refused":
                move_champion(name, challenger.version, champion.version if champion else None, uri)
                verdict |= {"moved": True, "previous": champion.version if champion else None}
                verdict["sentence"] += _moved(champion)
                record(verdict, challenger, uri, place)
    return verdict


def rollback(name: str, *, storage: str = STORAGE, progress: Show = lambda entry: None) -> dict[str, Any]:
    """Make the version that the champion replaced the champion again. Raises TrackingError where there is none."""
    place = Storage(storage)
    uri = open_store(place)
    waiting = {"phase": "wait", "note": f"another process moves the champion of {name}"}
    with lock(place, "registry", name, waiting=lambda: progress(waiting)):
        known_versions(name, uri)
        move = move_back(name, uri)
    return {"name": name, **asdict(move), "sentence": describe_move(name, move)}


def describe_move(name: str, move: Move) -> str:
    before = f"version {move.previous} is previous" if move.previous is not None else "there is no previous version"
    if move.was == move.now:
        return (
            f"An earlier promotion or rollback of {name} was cut short and is ended now: version {move.now} is the "
            f"champion, {before}."
        )
    if move.was is None:
        return f"The champion of {name} had been deleted: version {move.now} is the champion now; {before}."
    return f"Version {move.now} of {name} is the champion again instead of version {move.was}; {before}."


def with_alias(found: list[Version], alias: str) -> Version | None:
    return next((version for version in found if alias in version.aliases), None)


def pick(name: str, found: list[Version], number: int | None) -> Version:
    """The version to judge. Raises TrackingError for one that is not there or was not registered to its end."""
    chosen = with_alias(found, CHALLENGER) if number is None else next((v for v in found if v.version == number), None)
    listed = ", ".join(str(version.version) for version in found[:10])
    if chosen is None:
        what = "alias challenger" if number is None else f"version {number}"
        raise UnknownName(f"{name} has no {what}. Its versions: {listed}. Name one with --version.")
    if COMPLETE not in chosen.tags and RUN_KEY in chosen.tags:  # other tools' versions have neither
        raise TrackingError(
            f"Version {chosen.version} of {name} was not registered to its end. Run the command that made it again: "
            "it completes the version."
        )
    return chosen


def check_unchanged(name: str, challenger: Version, champion: Version | None, uri: str) -> None:
    """TrackingError where the registry is not as it was judged: MLflow has no compare-and-set."""
    expect_champion(name, champion.version if champion else None, uri)
    if challenger.version not in {version.version for version in list_versions(name, uri)}:
        raise TrackingError(
            f"Version {challenger.version} of {name} was deleted while it was judged, so nothing was moved. "
            f"`raydistill registry {name}` lists what there is."
        )


def describe(
    challenger: Version, champion: Version | None, decision: str, sentence: str, **measured: Any
) -> dict[str, Any]:
    """The verdict as JSON, schema 2; without ``measured`` of a version for which nothing was measured or moved."""
    content: dict[str, Any] = {
        "schema": SCHEMA,
        "name": challenger.name,
        "version": challenger.version,
        "champion": champion.version if champion else None,
        "verdict": decision,
        "sentence": sentence,
        **{"reason": None, "moved": False, "previous": None},
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        **{"rules": [], "gate": None, "comparison": None, "retention": None, "notes": [], "run_id": None},
    }
    found: dict[str, Any] = strict_json(content | measured)
    return found


def sentence(
    challenger: Version, champion: Version | None, rulings: list[Ruling], decision: str, reason: str | None
) -> str:
    """The judgement for people; what it led to is added once it has happened."""
    subject = f"Version {challenger.version} of {challenger.name}"
    failed = "; ".join(in_words(ruling) for ruling in rulings if ruling.verdict == "failed")
    if decision == "refused":
        stays = f"version {champion.version} stays the champion" if champion else "there is still no champion"
        return f"{subject} is refused, {stays}: {failed}."
    if decision == "forced":
        return f"{subject} is let through by force, against the gate ({failed}). Reason: {reason}."
    return f"{subject} passes every rule."


def _moved(champion: Version | None) -> str:
    before = f", version {champion.version} is kept as previous" if champion else ", the first one"
    return f" It is the champion now{before}."


def record(verdict: Mapping[str, Any], challenger: Version, uri: str, place: Storage) -> str:
    """Store the verdict and its report, a second time once the champion has moved; the id of its MLflow run."""
    with TemporaryDirectory(prefix="raydistill-") as scratch:
        folder = Path(scratch)
        (folder / "gate.json").write_text(
            json.dumps(redact_tree(verdict), indent=2, ensure_ascii=False), encoding="utf-8"
        )
        write_gate_report(verdict, folder / "gate.html")
        if verdict["moved"]:
            return amend_verdict(verdict, folder, uri)
        return store_verdict(verdict, challenger, folder, uri, place)


def _against(champion: Version | None) -> str:
    return f", against version {champion.version}" if champion else "; there is no champion to compare with"
