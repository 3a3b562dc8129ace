"""What is listed, removed and kept, and the bounded copies on a node."""

from __future__ import annotations

import os
import subprocess
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from kit.processes import KEY, OTHER, damage, fill, kill, say_go, start, wait_for

from raydistill.errors import ArtifactError, StaleOwner
from raydistill.pipeline.reporting import Reporter, metrics_path
from raydistill.storage import garbage
from raydistill.storage.artifacts import Artifact
from raydistill.storage.garbage import collect_garbage, list_artifacts, refer, referred, remove_artifact
from raydistill.storage.locks import lock
from raydistill.storage.manifest import file_digest
from raydistill.storage.ownership import Owner
from raydistill.storage.storage import Storage
from raydistill.storage.verified import changed_at


def set_age(storage: Storage, kind: str, key: str, days: float) -> None:
    created = datetime.now(UTC) - timedelta(days=days)
    if storage.exists(kind, key, "manifest.json"):
        data = storage.read_json(kind, key, "manifest.json")
        storage.write_json({**data, "created": created.isoformat()}, kind, key, "manifest.json")
    if storage.is_local:
        folder = Path(storage.path(kind, key))
        for path in [*folder.rglob("*"), folder]:
            os.utime(path, (created.timestamp(), created.timestamp()))


def family(storage: Storage) -> dict[str, Artifact]:
    """data <- tokens <- signals, plus an unrelated teacher; all two days old."""
    made = {"data": fill(Artifact(storage, "data", KEY), "data")}
    made["tokens"] = fill(Artifact(storage, "tokens", KEY), "tokens", {"data": made["data"].digest})
    parents = {"tokens": made["tokens"].digest, "teacher": "0" * 64}
    made["signals"] = fill(Artifact(storage, "signals", KEY), "signals", parents)
    made["teacher"] = fill(Artifact(storage, "teacher", OTHER), "teacher")
    for artifact in made.values():
        set_age(storage, artifact.kind, artifact.key, 2)
    return made


def test_listing_knows_sizes_and_runs(storage: Storage) -> None:
    family(storage)
    storage.write_json({"artifacts": [f"signals/{KEY}"]}, "runs", "one", "run.json")
    storage.write_json({"artifacts": [f"data/{KEY}", "data/gone"]}, "runs", "two", "run.json")
    storage.write_bytes(b"running, has no record yet", "runs", "three", "owner.json")
    rows = list_artifacts(storage)
    assert [(row.kind, row.used_by) for row in rows] == [
        ("data", ("one", "two")),
        ("tokens", ("one",)),
        ("teacher", ()),
        ("signals", ("one",)),
    ]
    assert [row.bytes for row in rows] == [256 + len(row.kind) for row in rows]
    assert all(row.sealed and 1.9 < row.age_seconds / 86_400 < 2.1 for row in rows)


def test_garbage_is_what_no_run_refers_to(storage: Storage) -> None:
    made = family(storage)
    fresh = fill(Artifact(storage, "student", KEY))
    storage.write_json({"artifacts": [f"signals/{KEY}", f"signals/{OTHER}"]}, "runs", "one", "run.json")
    storage.write_bytes(b"x", "signals", OTHER, "interrupted.arrow")
    set_age(storage, "signals", OTHER, 2)
    storage.write_bytes(b"not ours", "data", "holiday", "photo.jpg")
    storage.write_bytes(b"not ours", "mlruns", KEY, "photo.jpg")
    before = storage.files()
    would = collect_garbage(storage, dry_run=True)
    assert storage.files() == before
    assert collect_garbage(storage) == would
    assert [(row.kind, row.key) for row in would] == [("teacher", OTHER)]
    assert not made["teacher"].exists()
    assert all(made[kind].local(verify=True) for kind in ("data", "tokens", "signals"))
    assert [row.kind for row in collect_garbage(storage, older_than_seconds=0)] == ["student"]
    assert not fresh.exists()
    storage.delete("runs", "one")
    assert {row.kind for row in collect_garbage(storage, older_than_seconds=0)} == {"data", "tokens", "signals"}
    assert {name for name in storage.files() if not name.startswith(".")} == {
        "data/holiday/photo.jpg",
        f"mlruns/{KEY}/photo.jpg",
    }


def test_old_leftovers_go_and_young_ones_stay(local: Storage) -> None:
    for key, days in ((KEY, 2), (OTHER, 0.5)):
        local.write_bytes(b"xyz", "signals", key, "shard.arrow")
        local.write_bytes(b"x", ".staging", f"data-{key}", "file")
        set_age(local, "signals", key, days)
        set_age(local, ".staging", f"data-{key}", days)
    assert [(row.kind, row.bytes, row.sealed) for row in collect_garbage(local)] == [
        ("signals", 3, False),
        (".staging", 1, False),
    ]
    assert local.list("signals") == [OTHER]
    assert local.list(".staging") == [f"data-{OTHER}"]


def test_what_ray_left_of_killed_drivers_goes_and_a_living_one_s_stays(storage: Storage) -> None:
    run, sweep, other = "a" * 20, f"{'b' * 20}-2", "c" * 20
    owners = {key: [Owner.acquire(storage, "runs", key).number for _ in range(2)][-1] for key in (run, sweep, other)}
    assert {*owners.values()} == {2}
    living = [f"{run}-2-1", f"{run}-2-3", f"{sweep}-2-trial", f"{sweep}-2-trial-00000-0a1b2c3d"]
    # storage may be a folder in which the user keeps other things
    foreign = ["notes", f"{run}", f"{'d' * 20}-copy", f"{run}-1-trial-2"]
    dead = [f"{run}-1-1", f"{sweep}-1-final", f"{other}-2-1", f"{'e' * 20}-1-1"]
    dead += [f"{sweep}-1-trial-00003-ffffffff", f"{sweep}-1-final-123456-99999999"]
    for name in (*living, *foreign, *dead):
        storage.write_bytes(b"state", "ray", name, "file")
    assert collect_garbage(storage) == []  # all of it young
    with lock(storage, "runs", run, "driver.lock"), lock(storage, "runs", sweep, "driver.lock"):
        gone = collect_garbage(storage, older_than_seconds=0)
        assert {(row.kind, row.key, row.bytes) for row in gone} == {("ray", name, 5) for name in dead}
        assert {*storage.list("ray")} == {*living, *foreign}
    assert {row.key for row in collect_garbage(storage, older_than_seconds=0)} == {*living}


def test_garbage_collection_stops_at_a_damaged_run(local: Storage) -> None:
    family(local)
    local.write_bytes(b"{", "runs", "one", "run.json")
    with pytest.raises(ArtifactError, match=r"run\.json is damaged"):
        collect_garbage(local, older_than_seconds=0)
    assert len(local.list("data")) == 1


def test_what_a_run_begins_to_refer_to_after_the_listing_stays(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = family(storage)
    listed = garbage._staging

    def refer_then(storage: Storage) -> list[garbage.Row]:
        refer(storage, "one", [made["signals"]])  # its parents stay, too
        monkeypatch.setattr(garbage, "_staging", listed)
        return listed(storage)

    monkeypatch.setattr(garbage, "_staging", refer_then)
    assert [row.kind for row in collect_garbage(storage)] == ["teacher"]
    assert all(made[kind].exists() for kind in ("data", "tokens", "signals"))


def test_what_a_run_finds_after_it_has_referred_to_it_stays(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    made = family(storage)
    found: list[bool] = []
    delete = Storage.delete

    def run() -> None:
        refer(storage, "one", [made["signals"]])
        found.append(made["signals"].exists())

    def delete_slowly(self: Storage, *parts: str) -> None:
        if thread.ident is None and parts[0] == "data":
            thread.start()
            thread.join(0.3)
        delete(self, *parts)

    thread = threading.Thread(target=run)
    monkeypatch.setattr(Storage, "delete", delete_slowly)
    collect_garbage(storage)
    thread.join(10)
    assert found == [made["signals"].exists()]


def test_remove_refuses_what_a_run_refers_to(storage: Storage) -> None:
    made = family(storage)
    storage.write_json({"artifacts": [f"tokens/{KEY}"]}, "runs", "one", "run.json")
    for name in (f"tokens/{KEY}", f"data/{KEY}"):
        with pytest.raises(ArtifactError, match=r"one.*--force"):
            remove_artifact(storage, name)
    assert remove_artifact(storage, f"signals/{KEY}").bytes == 263
    assert remove_artifact(storage, f"data/{KEY}", force=True).used_by == ("one",)
    assert [kind for kind, artifact in made.items() if artifact.exists()] == ["tokens", "teacher"]
    for name in ("data/nothing", "../x", "data", ""):
        with pytest.raises(ArtifactError, match="cache ls"):
            remove_artifact(storage, name)


def test_a_run_only_adds_to_what_it_refers_to(storage: Storage) -> None:
    made = family(storage)
    refer(storage, "one", [made["signals"]], "in-mlflow")
    refer(storage, "one", [made["teacher"], Artifact(storage, "student", KEY)])  # by the driver; not there yet
    assert storage.read_json("runs", "one", "run.json")["run_id"] == "in-mlflow"
    assert {artifact.kind for artifact in referred(storage, "one")} == {"signals", "teacher", "student"}
    assert collect_garbage(storage) == []
    assert referred(storage, "another") == []


def copies(folder: Path) -> set[str]:
    return {path.name.split("-")[0] for path in folder.iterdir() if path.name != "locks"}


def test_the_node_cache_downloads_once_and_heals_itself(remote: Storage) -> None:
    artifact = fill(Artifact(remote, "data", KEY))
    folder = artifact.local()
    inode = (folder / "a.txt").stat().st_ino
    assert (artifact.local(verify=True) / "a.txt").stat().st_ino == inode
    damage(folder / "sub" / "b.bin", "truncated")
    assert file_digest(artifact.local() / "sub" / "b.bin") == artifact.manifest().files["sub/b.bin"].sha256
    damage(folder / "sub" / "b.bin", "flipped")
    assert file_digest(artifact.local(verify=True) / "sub" / "b.bin") == artifact.manifest().files["sub/b.bin"].sha256
    artifact.delete()
    fill(artifact, "refitted")
    assert (artifact.local() / "a.txt").read_text() == "refitted"


USE = """
    artifact = Artifact(Storage(sys.argv[1]), sys.argv[2], sys.argv[3])
    print("started", flush=True)
    sys.stdin.readline()
    artifact.local(verify=True)
    print("ready", flush=True)
    sys.stdin.readline()
"""


def use(storage: Storage, kind: str) -> subprocess.Popen[str]:
    """A process that has a copy of the artefact and holds it until it ends."""
    process = start(USE, storage.url, kind, KEY)
    wait_for(process, "started")
    say_go(process)
    wait_for(process)
    return process


def test_the_node_cache_is_bounded_and_spares_what_is_in_use(
    remote: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYDISTILL_CACHE_BYTES", "850")  # three copies of 263 bytes
    kinds = ["data", "tokens", "teacher", "signals", "student"]
    for kind in kinds:
        fill(Artifact(remote, kind, KEY), "content" if kind == "data" else f"{kind:7.7}")
    holder = use(remote, "data")
    root = tmp_path / "node-cache"
    for kind in kinds[1:3]:
        kill(use(remote, kind))
    assert copies(root) == {"data", "tokens", "teacher"}
    kill(use(remote, "tokens"))  # now teacher is the oldest
    Artifact(remote, "signals", KEY).local()
    assert copies(root) == {"data", "tokens", "signals"}
    kill(holder)
    Artifact(remote, "student", KEY).local()
    assert copies(root) == {"tokens", "signals", "student"}
    journal = metrics_path(remote, "runs", "abc")
    others = [journal, root / "logs" / "crash.log"]  # what MLflow lacks still, and what a user has not read
    for path in others:
        path.parent.mkdir(parents=True)
        path.write_bytes(bytes(900))
        os.utime(path.parent, (0, 0))
    Artifact(remote, "teacher", KEY).local()
    assert all(path.exists() for path in others)
    assert copies(root) == {"signals", "student", "teacher", "runs", "logs"}
    monkeypatch.setenv("RAYDISTILL_CACHE_BYTES", "much")
    with pytest.raises(ArtifactError, match="RAYDISTILL_CACHE_BYTES is 'much'"):
        Artifact(remote, "tokens", KEY).local()


def test_processes_that_fill_the_node_cache_at_once_download_once(remote: Storage, tmp_path: Path) -> None:
    with Artifact(remote, "data", KEY, {}).write() as folder:
        for index in range(20):
            (folder / f"{index}.bin").write_bytes(bytes(100_000))
    processes = [start(USE, remote.url, "data", KEY) for _ in range(3)]
    for process in processes:
        wait_for(process, "started")
    for process in processes:
        say_go(process)
    for process in processes:
        wait_for(process)
        kill(process)
    assert copies(tmp_path / "node-cache") == {"data"}
    assert Artifact(remote, "data", KEY).local(verify=True)


@pytest.mark.parametrize("name", ["mtime", "LastModified", "updated", "created"])
def test_every_file_system_tells_when_a_file_waschanged_at(name: str) -> None:
    """By a name of its own; a file whose age is not known counts as new, and would never be collected."""
    changed = datetime.now(UTC) - timedelta(days=3)
    assert changed_at({"size": 1, name: changed}) == changed.timestamp()
    assert changed_at({name: changed.isoformat()}) == changed.timestamp()
    assert changed_at({"size": 1}) == pytest.approx(datetime.now(UTC).timestamp(), abs=5)


def test_who_was_taken_over_refers_to_nothing_any_more(local: Storage) -> None:
    artifact = fill(Artifact(local, "teacher", KEY), "teacher")
    job: Any = SimpleNamespace(
        config=None, storage=local, run_key="r1", run=None, folder=(), data=artifact, tokens=artifact, perturbed=None
    )
    job.owner = Owner.acquire(local, "runs", "r1")
    Owner.acquire(local, "runs", "r1")
    group: Any = SimpleNamespace(is_first=True, broadcast=lambda value: value)
    with pytest.raises(StaleOwner):
        Reporter(job, group, None).has(Artifact(local, "student", OTHER), "student")  # type: ignore[arg-type]
    assert referred(local, "r1") == []
