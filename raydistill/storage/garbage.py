"""What storage holds and what frees it: ``raydistill cache ls | rm | gc``."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from raydistill.errors import ArtifactError, UnknownName
from raydistill.storage.artifacts import Artifact
from raydistill.storage.faults import Damaged, Missing
from raydistill.storage.locks import POLL_SECONDS, is_held, lock
from raydistill.storage.manifest import KEY, KINDS, MANIFEST, Manifest
from raydistill.storage.storage import STAGING, Storage
from raydistill.storage.verified import changed_at

DAY_SECONDS = 86_400.0
TURN_SECONDS = 10.0
"""Runs that want to refer to something wait for garbage collection no longer than this and one removal."""


RAY = "ray"
"""Where Ray keeps its own files of a run, or a sweep: below ``<key>-<number of the owner>-<group>``. A group has a
number, in a run; or is that of all trials, or finals, of a sweep, or of one with several workers,
``trial-<number>-<8 hex digits>``."""
RAY_FOLDER = re.compile(r"(?P<run>[0-9a-f]{20}(?:-\d+)?)-(?P<owner>\d+)-(?:\d+|[a-z]+(?:-\d{5,}-[0-9a-f]{8})?)")


@dataclass(frozen=True)
class Row:
    """One line of ``cache ls``: an artefact, an unsealed leftover (``sealed`` false), a staging folder or Ray's."""

    kind: str
    key: str
    bytes: int
    created: str
    """UTC, ISO 8601; of an unsealed one the time of its last change."""
    used_by: tuple[str, ...] = ()
    """Keys of the runs that refer to it, directly or through a child's parents."""
    sealed: bool = True

    @property
    def age_seconds(self) -> float:
        return time.time() - datetime.fromisoformat(self.created).timestamp()


def list_artifacts(storage: Storage, known: dict[str, Manifest] | None = None) -> list[Row]:
    """Every artefact and unsealed leftover of a storage with the runs that refer to it, sorted by kind and key.

    Manifests that are ``known``, by KIND/KEY, are not read again; those that are read are added. ArtifactError where a
    run.json is damaged: what that run refers to is then unknown.
    """
    rows: dict[str, Row] = {}
    manifests = {} if known is None else known
    for kind in KINDS:
        for key in filter(KEY.fullmatch, storage.list(kind)):
            name = f"{kind}/{key}"
            try:
                if name not in manifests:
                    manifests[name] = Artifact(storage, kind, key).manifest()
                rows[name] = Row(kind, key, manifests[name].bytes, manifests[name].created)
            except (Missing, Damaged):  # not ArtifactError: what cannot be read just now is no leftover
                if re.fullmatch("[0-9a-f]{20}", key):  # storage may be a folder in which the user keeps other things
                    rows[name] = _unsealed(storage, kind, key)
    used_by = _references(storage, manifests)
    return [replace(row, used_by=tuple(sorted(used_by.get(name, ())))) for name, row in rows.items()]


def refer(storage: Storage, run_key: str, artifacts: Iterable[Artifact], run_id: str | None = None) -> None:
    """Let garbage collection keep artefacts, there or not yet, for a run: before they are made, or waited for.

    What is there once this has returned, stays. What the run refers to already stays, as does its ``run_id`` in MLflow
    where none is given.
    """
    parts, wanted = ("runs", run_key, "run.json"), set(map(str, artifacts))

    def change() -> dict[str, Any] | None:
        try:
            before = storage.read_json(*parts)
        except Missing:
            before = {}
        names = sorted({*before.get("artifacts", ()), *wanted})
        record = {**before, "run_id": run_id or before.get("run_id"), "artifacts": names}
        return record if record != before else None

    if change() is not None:
        with _references_settled(storage):
            if (record := change()) is not None:
                storage.write_json(record, *parts)


def referred(storage: Storage, run_key: str) -> list[Artifact]:
    """What a run refers to, there or not."""
    try:
        names = storage.read_json("runs", run_key, "run.json").get("artifacts", ())
    except Missing:
        return []
    return [Artifact(storage, *name.split("/")) for name in names]


def remove_artifact(storage: Storage, name: str, force: bool = False) -> Row:
    """Remove the artefact ``KIND/KEY``; ArtifactError if it is not there or if a run refers to it and not ``force``."""
    with _references_settled(storage):
        row = next((row for row in list_artifacts(storage) if f"{row.kind}/{row.key}" == name), None)
        if row is None:
            raise UnknownName(f"There is no artefact {name!r} in {storage.show()}. `raydistill cache ls` lists them.")
        if row.used_by and not force:
            raise ArtifactError(
                f"{name} stays: {len(row.used_by)} run(s) refer to it ({', '.join(row.used_by[:3])}). "
                "Add --force to remove it all the same; it is made anew when such a run needs it again."
            )
        Artifact(storage, row.kind, row.key).delete()
    return row


def collect_garbage(storage: Storage, dry_run: bool = False, older_than_seconds: float = DAY_SECONDS) -> list[Row]:
    """Remove, or with ``dry_run`` only list, what no run refers to: artefacts, unsealed leftovers, staging folders.

    Nothing younger than ``older_than_seconds`` goes: a run that is under way may be about to refer to it.
    """
    known: dict[str, Manifest] = {}
    rows = _garbage(storage, older_than_seconds, known)
    if dry_run:
        return rows
    gone: list[Row] = []
    while rows:
        with _references_settled(storage):
            still = {(row.kind, row.key) for row in _garbage(storage, older_than_seconds, known)}
            rows = [row for row in rows if (row.kind, row.key) in still]
            until = time.monotonic() + TURN_SECONDS
            while rows and time.monotonic() < until:
                row = rows.pop(0)
                storage.delete(row.kind, row.key, MANIFEST)
                storage.delete(row.kind, row.key)
                gone.append(row)
        if rows:
            time.sleep(2 * POLL_SECONDS)  # else those that wait for the lock would never find it free
    return gone


@contextmanager
def _references_settled(storage: Storage) -> Iterator[None]:
    """No other process begins to refer to anything, or removes what nothing refers to."""
    with lock(storage, "references"):
        yield


def _garbage(storage: Storage, older_than_seconds: float, known: dict[str, Manifest]) -> list[Row]:
    unused = [row for row in list_artifacts(storage, known) if not row.used_by]
    left = [*unused, *_staging(storage), *_of_ray(storage)]
    return [row for row in left if row.age_seconds >= older_than_seconds]


def _unsealed(storage: Storage, kind: str, key: str) -> Row:
    infos = storage.infos(kind, key)
    times = [changed_at(info) for info in infos.values()]
    if storage.is_local:
        with suppress(FileNotFoundError):
            times.append(os.path.getmtime(storage.path(kind, key)))
    created = datetime.fromtimestamp(max(times, default=time.time()), UTC).isoformat(timespec="seconds")
    return Row(kind, key, sum(int(info["size"] or 0) for info in infos.values()), created, sealed=False)


def _staging(storage: Storage) -> list[Row]:
    return [_unsealed(storage, STAGING, name) for name in storage.list(STAGING)]


def _of_ray(storage: Storage) -> list[Row]:
    """Ray's own folders of runs and sweeps whose driver is gone, as it was killed or another one has taken over."""
    found = []
    for name in storage.list(RAY):
        if (made := RAY_FOLDER.fullmatch(name)) is not None and not _lives(storage, made["run"], int(made["owner"])):
            found.append(_unsealed(storage, RAY, name))
    return found


def _lives(storage: Storage, run_key: str, owner: int) -> bool:
    """Whether the run's owner of this number may still be at work; where that cannot be told it may."""
    try:
        newest = int(storage.read_json("runs", run_key, "owner.json")["number"])
    except Missing:
        return False
    return owner >= newest and is_held(storage, "runs", run_key, "driver.lock") is not False


def _references(storage: Storage, manifests: dict[str, Manifest]) -> dict[str, set[str]]:
    """Artefact ``kind/key`` -> runs that refer to it, closed over the parents' digests."""
    by_digest: dict[str, list[str]] = {}
    for name, manifest in manifests.items():
        by_digest.setdefault(manifest.digest, []).append(name)
    used_by: dict[str, set[str]] = {}
    for run in storage.list("runs"):
        if not storage.exists("runs", run, "run.json"):
            continue
        record = storage.read_json("runs", run, "run.json")
        if not isinstance(record, dict):
            raise ArtifactError(
                f"{storage.show('runs', run, 'run.json')} is damaged: it is no object. Delete that run folder."
            )
        pending: list[str] = [str(name) for name in record.get("artifacts", [])]
        while pending:
            name = pending.pop()
            runs = used_by.setdefault(name, set())
            if run in runs:
                continue
            runs.add(run)
            parents = manifests[name].parents.values() if name in manifests else ()
            pending += [parent for digest in parents for parent in by_digest.get(digest, [])]
    return used_by
