"""Artefacts are whole or not there, on a local disk and on S3, whoever is killed at whatever moment."""

from __future__ import annotations

import errno
import json
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydistill import artifacts, cache, ownership
from raydistill.artifacts import Artifact, FileInfo, Owner, Storage, file_digest, folder_digest, recipe_key
from raydistill.cache import collect_garbage, list_artifacts, remove_artifact
from raydistill.errors import ArtifactError, RaydistillError, StaleOwner

KEY = "0123456789abcdef0123"
OTHER = "fedcba98765432100123"


@pytest.fixture
def local(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "storage"))


@pytest.fixture
def remote(s3_storage_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Storage]:
    """A fresh prefix on S3, with an own node cache."""
    monkeypatch.setenv("RAYDISTILL_CACHE", str(tmp_path / "node-cache"))
    yield Storage(f"{s3_storage_url}/{uuid.uuid4().hex}")
    for descriptor in cache._IN_USE.values():
        os.close(descriptor)
    cache._IN_USE.clear()


@pytest.fixture(params=["local", "memory", "remote"])
def storage(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    monkeypatch.setenv("RAYDISTILL_CACHE", str(tmp_path / "node-cache"))
    if request.param == "memory":
        return Storage(f"memory://{uuid.uuid4().hex}")
    return request.getfixturevalue(request.param)


def fill(artifact: Artifact, text: str = "content", parents: dict[str, str] | None = None) -> Artifact:
    with artifact.write({"text": text}, parents) as folder:
        (folder / "a.txt").write_text(text)
        (folder / "sub").mkdir()
        (folder / "sub" / "b.bin").write_bytes(bytes(range(256)))
    return artifact


def start(script: str, *args: str) -> subprocess.Popen[str]:
    """Run a script in another process; it says "ready" when the interesting moment has come."""
    code = "import os, sys, time\nfrom raydistill.artifacts import Storage, Owner\n" + textwrap.dedent(script)
    return subprocess.Popen(
        [sys.executable, "-c", code, *args], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def wait_for(process: subprocess.Popen[str], word: str = "ready") -> None:
    assert process.stdout is not None
    assert process.stdout.readline().strip() == word


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def reordered(value: object) -> object:
    if isinstance(value, dict):
        return {name: reordered(value[name]) for name in reversed(value)}
    return [reordered(item) for item in value] if isinstance(value, list) else value


@given(st.dictionaries(st.text(), json_values, max_size=4))
def test_key_ignores_order_and_survives_a_json_round_trip(recipe: dict[str, object]) -> None:
    key = recipe_key(recipe)
    assert len(key) == 20
    assert set(key) <= set("0123456789abcdef")
    assert recipe_key(reordered(recipe)) == key  # type: ignore[arg-type]
    assert recipe_key(json.loads(json.dumps(recipe))) == key


def test_key_is_stable_and_sensitive(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = {"epochs": 3, "data": {"digest": "ab", "split": (0.1, 0.2)}, "dtype": "float32"}
    assert recipe_key(recipe) == "c2b326ec57091e585cc5"
    variants = [
        {**recipe, "epochs": 4},
        {**recipe, "epochs": "3"},
        {**recipe, "dtype": None},
        {**recipe, "more": None},
        {**recipe, "data": {"digest": "ab", "split": (0.2, 0.1)}},
    ]
    assert len({recipe_key(variant) for variant in [recipe, *variants]}) == 6
    monkeypatch.setattr(artifacts, "FORMAT_VERSION", artifacts.FORMAT_VERSION + 1)
    assert recipe_key(recipe) != "c2b326ec57091e585cc5"
    with pytest.raises(ValueError):
        recipe_key({"rate": float("nan")})
    with pytest.raises(TypeError):
        recipe_key({"path": Path("x")})


def test_folder_digest_sees_names_and_content_but_not_times(tmp_path: Path) -> None:
    def digest(**files: str) -> str:
        folder = tmp_path / uuid.uuid4().hex
        for name, text in files.items():
            path = folder / name.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return folder_digest(folder)

    base = digest(a="1", s__b="2")
    assert digest(s__b="2", a="1") == base
    assert len({base, digest(a="2", s__b="1"), digest(a="1", s__c="2"), digest(a="12", s__b=""), digest(a="1")}) == 5


def test_write_then_read_everywhere(storage: Storage) -> None:
    artifact = storage.artifact("data", KEY)
    assert not artifact.exists()
    assert artifact.names() == []
    fill(artifact, parents={"source": "d" * 64})
    assert artifact.exists()
    assert artifact.names() == ["a.txt", "sub/b.bin"]
    manifest = artifact.manifest()
    assert manifest.files["sub/b.bin"].bytes == 256
    assert manifest.bytes == 263
    assert (manifest.parents, manifest.recipe, manifest.format) == ({"source": "d" * 64}, {"text": "content"}, 1)
    folder = artifact.local(verify=True)
    assert (folder / "a.txt").read_text() == "content"
    assert manifest.files["a.txt"].sha256 == file_digest(folder / "a.txt")
    (folder / "manifest.json").unlink(missing_ok=True)
    assert folder_digest(folder) == manifest.digest
    artifact.delete()
    artifact.delete()
    assert not artifact.exists()
    assert artifact.names() == []


def test_equal_content_has_an_equal_digest_and_the_first_commit_wins(storage: Storage) -> None:
    first, twin, other = (storage.artifact(kind, KEY) for kind in ("data", "tokens", "teacher"))
    assert fill(first).digest == fill(twin).digest != fill(other, "another").digest
    created = first.manifest()
    fill(first, "made again, differently")
    assert first.manifest() == created
    assert (first.local(verify=True) / "a.txt").read_text() == "content"


def test_commits_race_inside_the_body(storage: Storage) -> None:
    artifact = storage.artifact("data", KEY)
    with artifact.write({}) as folder:
        (folder / "a.txt").write_text("slow")
        fill(storage.artifact("data", KEY), "quick")
    assert (artifact.local(verify=True) / "a.txt").read_text() == "quick"


def test_an_exception_inside_write_leaves_nothing(storage: Storage) -> None:
    artifact = storage.artifact("data", KEY)
    with pytest.raises(KeyError, match="own"), artifact.write({}) as folder:
        (folder / "a.txt").write_text("half")
        raise KeyError("own")
    assert not folder.exists()
    assert not artifact.exists()
    assert storage.files() == {}


def test_leftovers_without_manifest_are_replaced(storage: Storage) -> None:
    artifact = storage.artifact("data", KEY)
    storage.write_bytes(b"of a killed process", "data", KEY, "old.txt")
    assert not artifact.exists()
    fill(artifact)
    assert artifact.names() == ["a.txt", "sub/b.bin"]


def test_put_then_seal(storage: Storage, tmp_path: Path) -> None:
    artifact = storage.artifact("signals", KEY)
    files: dict[str, FileInfo] = {}
    for index in range(3):
        shard = tmp_path / "shard"
        shard.write_bytes(bytes([index]) * 1000)
        files[f"shard-{index}.arrow"] = artifact.put(shard, f"shard-{index}.arrow")
    assert artifact.names() == sorted(files)
    assert not artifact.exists()
    with pytest.raises(ArtifactError, match=r"shard-9.arrow"):
        artifact.seal({**files, "shard-9.arrow": files["shard-0.arrow"]}, {})
    artifact.seal(files, {"signal": "logits"}, {"teacher": "t"})
    artifact.seal({}, {"signal": "another"})
    assert artifact.manifest().recipe == {"signal": "logits"}
    assert (artifact.local(verify=True) / "shard-2.arrow").read_bytes() == b"\2" * 1000


def damage(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "truncated":
        path.write_bytes(data[:-1])
    elif how == "flipped":
        data[100] ^= 1
        path.write_bytes(data)
    else:
        path.unlink()


@pytest.mark.parametrize("how", ["truncated", "flipped", "missing"])
def test_damage_is_found_and_named(local: Storage, how: str) -> None:
    artifact = fill(local.artifact("data", KEY))
    damage(Path(local.path("data", KEY, "sub", "b.bin")), how)
    if how == "flipped":
        assert artifact.local()
    with pytest.raises(ArtifactError, match=rf"sub/b\.bin.*raydistill cache rm data/{KEY}"):
        artifact.local(verify=how == "flipped")


@pytest.mark.parametrize("how", ["truncated", "flipped", "missing"])
def test_damage_on_s3_is_found_at_download(remote: Storage, tmp_path: Path, how: str) -> None:
    artifact = fill(remote.artifact("data", KEY))
    copy = tmp_path / "copy"
    remote.download(copy, "data", KEY, "sub", "b.bin")
    damage(copy, how)
    remote.delete("data", KEY, "sub", "b.bin")
    if how != "missing":
        remote.upload(copy, "data", KEY, "sub", "b.bin")
    with pytest.raises(ArtifactError, match=rf"sub/b\.bin.*raydistill cache rm data/{KEY}"):
        artifact.local()
    assert [path.name for path in (tmp_path / "node-cache").iterdir()] == ["locks"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"files": {"a": 1}}', b"\xff\xfe"])
def test_a_damaged_manifest_is_an_error_with_a_way_out(local: Storage, content: bytes) -> None:
    fill(local.artifact("data", KEY))
    local.write_bytes(content, "data", KEY, "manifest.json")
    with pytest.raises(ArtifactError, match=r"manifest\.json.*damaged|damaged.*manifest\.json"):
        local.artifact("data", KEY).local()


def test_a_changed_manifest_does_not_fit_its_digest(local: Storage) -> None:
    fill(local.artifact("data", KEY))
    data = local.read_json("data", KEY, "manifest.json")
    data["files"]["a.txt"]["sha256"] = "0" * 64
    local.write_json(data, "data", KEY, "manifest.json")
    with pytest.raises(ArtifactError, match="digest does not fit"):
        local.artifact("data", KEY).manifest()


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "../x", "/abs", "a\\b", ".hidden", "a\0b", "a b"])
def test_kinds_and_keys_cannot_leave_the_storage(storage: Storage, name: str) -> None:
    for kind, key in ((name, KEY), ("data", name)):
        with pytest.raises(ArtifactError, match="not a kind or key"):
            storage.artifact(kind, key)


@pytest.mark.parametrize("name", ["..", "a/../../b", "", "/etc/passwd", "a//b", "a\\..\\b"])
def test_parts_and_file_names_cannot_leave_the_storage(local: Storage, tmp_path: Path, name: str) -> None:
    source = tmp_path / "source"
    source.write_text("x")
    for action in (
        lambda: local.write_bytes(b"x", name),
        lambda: local.delete(name),
        lambda: local.artifact("data", KEY).put(source, name),
        lambda: local.artifact("data", KEY).seal({name: FileInfo(1, "0")}, {}),
    ):
        with pytest.raises(ArtifactError, match="not a name inside"):
            action()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


WRITE = """
    with Storage(sys.argv[1]).artifact("data", sys.argv[2]).write({}) as folder:
        for index in range(20):
            (folder / f"{index}.bin").write_bytes(os.urandom(20_000))
        print("ready", flush=True)
        sys.stdin.readline()
"""


@pytest.mark.parametrize("place", ["local", "remote"])
def test_two_processes_write_the_same_artefact_at_once(request: pytest.FixtureRequest, place: str) -> None:
    storage: Storage = request.getfixturevalue(place)
    processes = [start(WRITE, storage.url, KEY) for _ in range(2)]
    for process in processes:
        wait_for(process)
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    assert [process.wait(60) for process in processes] == [0, 0]
    for process in processes:
        process.communicate()
    artifact = storage.artifact("data", KEY)
    assert len(list(artifact.local(verify=True).glob("*.bin"))) == 20
    assert storage.list(".staging") == []


def test_a_process_killed_inside_write_leaves_nothing_believed(local: Storage) -> None:
    process = start(WRITE, local.url, KEY)
    wait_for(process)
    kill(process)
    assert not local.artifact("data", KEY).exists()
    assert len(local.list(".staging")) == 1
    assert collect_garbage(local) == []
    assert [row.kind for row in collect_garbage(local, older_than_seconds=0)] == [".staging"]
    assert local.list(".staging") == []
    fill(local.artifact("data", KEY))
    assert local.artifact("data", KEY).local(verify=True)


COMMIT = """
    storage = Storage(sys.argv[1])
    for index in range(1000):
        with storage.artifact("data", f"{index:020d}").write({}) as folder:
            for name in "abcde":
                (folder / name).write_bytes(os.urandom(100_000))
        if index == 0:
            print("ready", flush=True)
"""


@pytest.mark.parametrize("place", ["local", "remote"])
@pytest.mark.parametrize("delay", [0.05, 0.12, 0.2])
def test_every_artefact_of_a_killed_process_is_whole_or_not_there(
    request: pytest.FixtureRequest, place: str, delay: float
) -> None:
    storage: Storage = request.getfixturevalue(place)
    process = start(COMMIT, storage.url)
    wait_for(process)
    time.sleep(delay)
    kill(process)
    rows = list_artifacts(storage)
    assert len([row for row in rows if not row.sealed]) <= 1
    whole = [row for row in rows if row.sealed]
    assert whole
    assert all(len(list(storage.artifact("data", row.key).local(verify=True).iterdir())) >= 5 for row in whole)


PUT = """
    from pathlib import Path
    source = Path(sys.argv[3])
    source.write_bytes(b"x" * 50_000_000)
    print("ready", flush=True)
    while True:
        Storage(sys.argv[1]).artifact("signals", sys.argv[2]).put(source, "shard.arrow")
"""


@pytest.mark.parametrize("delay", [0.0, 0.03, 0.1])
def test_a_file_put_by_a_killed_process_is_whole_or_not_there(local: Storage, tmp_path: Path, delay: float) -> None:
    process = start(PUT, local.url, KEY, str(tmp_path / "source"))
    wait_for(process)
    time.sleep(delay)
    kill(process)
    assert set(local.files("signals", KEY).items()) <= {("shard.arrow", 50_000_000)}


HOLD = """
    with Storage(sys.argv[1]).lock("name", waiting=lambda: print("waiting", flush=True)):
        print("ready", flush=True)
        sys.stdin.readline()
    print("freed", flush=True)
"""


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiters of this process give up a silent lease after 1 s."""
    monkeypatch.setattr(ownership, "LEASE_SECONDS", 1.0)
    monkeypatch.setattr(ownership, "POLL_SECONDS", 0.05)


@pytest.mark.parametrize("place", ["local", "remote"])
def test_a_lock_admits_one_process_at_a_time(request: pytest.FixtureRequest, place: str) -> None:
    storage: Storage = request.getfixturevalue(place)
    first = start(HOLD, storage.url)
    wait_for(first)
    second = start(HOLD, storage.url)
    wait_for(second, "waiting")
    time.sleep(0.7)
    assert first.stdin is not None
    assert second.stdout is not None
    released = time.monotonic()
    first.stdin.write("go\n")
    first.stdin.flush()
    wait_for(first, "freed")
    wait_for(second, "ready")
    assert time.monotonic() - released < 3
    second.communicate("go\n")
    first.communicate()


@pytest.mark.parametrize("place", ["local", "remote"])
@pytest.mark.usefixtures("impatient")
def test_a_lock_is_free_once_its_holder_is_killed(request: pytest.FixtureRequest, place: str) -> None:
    storage: Storage = request.getfixturevalue(place)
    process = start(HOLD, storage.url)
    wait_for(process)
    kill(process)
    calls: list[str] = []
    begin = time.monotonic()
    with storage.lock("name", waiting=lambda: calls.append("waiting")):
        assert time.monotonic() - begin < 5
    assert calls == ([] if storage.is_local else ["waiting"])


@pytest.mark.usefixtures("impatient")
def test_a_stalled_lease_holder_notices_that_it_lost_the_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage(f"memory://{uuid.uuid4().hex}")
    with pytest.raises(ArtifactError, match="stood still"), storage.lock("name"):  # its first beat is due after 4 s
        monkeypatch.setattr(ownership, "HEARTBEAT_SECONDS", 0.1)
        with storage.lock("name"):
            pass
    with storage.lock("name"), storage.lock("another"):
        assert len(storage.list(".locks", "name")) == 1


@pytest.mark.usefixtures("impatient")
def test_a_lease_with_a_heartbeat_is_not_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage(f"memory://{uuid.uuid4().hex}")
    monkeypatch.setattr(ownership, "HEARTBEAT_SECONDS", 0.1)

    def give_up() -> None:
        raise TimeoutError

    with storage.lock("name"):
        begin = time.monotonic()
        waiter = ownership.Lease(storage, "name")
        monkeypatch.setattr(ownership.time, "sleep", lambda _: give_up() if time.monotonic() > begin + 2 else None)
        with pytest.raises(TimeoutError), waiter.held():
            pass


def test_the_newest_owner_makes_the_others_stale(storage: Storage) -> None:
    first = Owner.acquire(storage, "runs", "r1")
    first.check()
    other_run = Owner.acquire(storage, "runs", "r2")
    second = pickle.loads(pickle.dumps(Owner.acquire(storage, "runs", "r1")))
    assert (first.number, second.number, other_run.number) == (1, 2, 1)
    second.check()
    other_run.check()
    with pytest.raises(StaleOwner, match="number 2.*number 1"):
        first.check()
    storage.delete("runs", "r2")
    with pytest.raises(StaleOwner, match="removed"):
        other_run.check()


def test_owners_acquired_at_once_have_different_numbers(local: Storage) -> None:
    script = 'print(Owner.acquire(Storage(sys.argv[1]), "runs", "r").number)'
    outputs = [start(script, local.url) for _ in range(4)]
    assert sorted(int(process.communicate(timeout=60)[0]) for process in outputs) == [1, 2, 3, 4]


def test_storage_artifact_and_owner_travel(storage: Storage) -> None:
    artifact = pickle.loads(pickle.dumps(fill(storage.artifact("data", KEY))))
    assert artifact == storage.artifact("data", KEY)
    assert artifact.storage == storage
    assert hash(artifact.storage) == hash(storage)
    assert artifact.digest == storage.artifact("data", KEY).digest


def test_storage_reads_what_it_wrote(storage: Storage, tmp_path: Path) -> None:
    assert storage.list("runs") == []
    storage.write_json({"b": [1, None], "a": "ä"}, "runs", "r", "run.json")
    assert storage.read_json("runs", "r", "run.json") == {"a": "ä", "b": [1, None]}
    assert storage.list("runs") == ["r"]
    tree = tmp_path / "tree"
    (tree / "deep").mkdir(parents=True)
    (tree / "one").write_text("1")
    (tree / "deep" / "two").write_text("22")
    storage.upload(tree, "runs", "r", "last")
    storage.upload(tree / "one", "runs", "r", "alone")
    assert storage.files("runs", "r", "last") == {"deep/two": 2, "one": 1}
    assert storage.list("runs", "r") == ["alone", "last", "run.json"]
    storage.download(tmp_path / "back", "runs", "r", "last")
    assert folder_digest(tmp_path / "back") == folder_digest(tree)
    storage.download(tmp_path / "file", "runs", "r", "alone")
    assert (tmp_path / "file").read_text() == "1"
    storage.delete("runs", "r", "last")
    storage.delete("runs", "r", "last")
    assert storage.list("runs", "r") == ["alone", "run.json"]
    assert not storage.exists("runs", "r", "last")
    for missing in (lambda: storage.read_bytes("no"), lambda: storage.download(tmp_path / "no", "no")):
        with pytest.raises(artifacts.Missing):
            missing()


def test_a_reader_sees_what_another_process_wrote_a_moment_ago(remote: Storage) -> None:
    reader = Storage(remote.url)
    for index in range(3):
        assert len(reader.list("runs")) == index
        assert not reader.exists("runs", f"r{index}")
        remote.write_bytes(b"x", "runs", f"r{index}", "run.json")
        assert reader.exists("runs", f"r{index}")


def test_relative_and_home_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert Storage("some/storage/").url == str(tmp_path / "some" / "storage")
    assert Storage("~/storage").url == str(tmp_path / "home" / "storage")
    assert Storage(f"file://{tmp_path}/x").url == str(tmp_path / "x")
    assert Storage("memory://x/").is_local is False


def test_check_passes_and_leaves_nothing(storage: Storage) -> None:
    storage.check()
    assert storage.files() == {}


def test_unusable_storage_is_an_artifact_error(tmp_path: Path, s3_storage_url: str) -> None:
    (tmp_path / "file").write_text("x")
    for url, word in (
        (str(tmp_path / "file"), "file lies where a folder"),
        (str(tmp_path / "file" / "below"), "file lies where a folder"),
        ("s3://no-such-bucket/x", "bucket must exist"),
        ("/proc/raydistill", "storage"),
    ):
        with pytest.raises(ArtifactError, match=word):
            Storage(url).check()
    with pytest.raises(ArtifactError, match="nosuch"):
        Storage("nosuch://x")


@pytest.mark.parametrize(
    "raised",
    [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), ValueError("I/O error: No space left on device (os error 28)")],
)
def test_a_full_disk_names_the_way_out(storage: Storage, raised: Exception) -> None:
    with pytest.raises(ArtifactError, match="disk is full.*cache gc"), storage.artifact("data", KEY).write({}):
        raise raised
    assert storage.files() == {}


def test_a_real_full_disk_and_missing_permission(local: Storage) -> None:
    with (
        pytest.raises(ArtifactError, match="disk is full"),
        local.artifact("data", KEY).write({}),
        open("/dev/full", "w") as file,
    ):
        file.write("x" * 100_000)
    for error, words in (
        (PermissionError(errno.EACCES, "denied"), "permission"),
        (OSError(errno.EROFS, "read-only"), "permission"),
    ):
        assert words in str(artifacts.explain(error, "write", "/x"))


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
    made = {"data": fill(storage.artifact("data", KEY), "data")}
    made["tokens"] = fill(storage.artifact("tokens", KEY), "tokens", {"data": made["data"].digest})
    parents = {"tokens": made["tokens"].digest, "teacher": "0" * 64}
    made["signals"] = fill(storage.artifact("signals", KEY), "signals", parents)
    made["teacher"] = fill(storage.artifact("teacher", OTHER), "teacher")
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
    fresh = fill(storage.artifact("student", KEY))
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


def test_garbage_collection_stops_at_a_damaged_run(local: Storage) -> None:
    family(local)
    local.write_bytes(b"{", "runs", "one", "run.json")
    with pytest.raises(ArtifactError, match=r"run\.json is damaged"):
        collect_garbage(local, older_than_seconds=0)
    assert len(local.list("data")) == 1


def test_remove_refuses_what_a_run_refers_to(storage: Storage) -> None:
    made = family(storage)
    storage.write_json({"artifacts": [f"tokens/{KEY}"]}, "runs", "one", "run.json")
    for name in (f"tokens/{KEY}", f"data/{KEY}"):
        with pytest.raises(ArtifactError, match="one.*--force"):
            remove_artifact(storage, name)
    assert remove_artifact(storage, f"signals/{KEY}").bytes == 263
    assert remove_artifact(storage, f"data/{KEY}", force=True).used_by == ("one",)
    assert [kind for kind, artifact in made.items() if artifact.exists()] == ["tokens", "teacher"]
    for name in ("data/nothing", "../x", "data", ""):
        with pytest.raises(ArtifactError, match="cache ls"):
            remove_artifact(storage, name)


def copies(folder: Path) -> set[str]:
    return {path.name.split("-")[0] for path in folder.iterdir() if path.name != "locks"}


def test_the_node_cache_downloads_once_and_heals_itself(remote: Storage) -> None:
    artifact = fill(remote.artifact("data", KEY))
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
    Storage(sys.argv[1]).artifact(sys.argv[2], sys.argv[3]).local()
    print("ready", flush=True)
    sys.stdin.readline()
"""


def test_the_node_cache_is_bounded_and_spares_what_is_in_use(
    remote: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYDISTILL_CACHE_BYTES", "850")  # three copies of 263 bytes
    kinds = ["data", "tokens", "teacher", "signals", "student"]
    for kind in kinds:
        fill(remote.artifact(kind, KEY), "content" if kind == "data" else f"{kind:7.7}")
    holder = start(USE, remote.url, "data", KEY)
    wait_for(holder)
    root = tmp_path / "node-cache"
    for kind in kinds[1:3]:
        assert start(USE, remote.url, kind, KEY).communicate("go\n")[0] == "ready\n"
    assert copies(root) == {"data", "tokens", "teacher"}
    assert start(USE, remote.url, "tokens", KEY).communicate("go\n")[0] == "ready\n"  # now teacher is the oldest
    remote.artifact("signals", KEY).local()
    assert copies(root) == {"data", "tokens", "signals"}
    kill(holder)
    remote.artifact("student", KEY).local()
    assert copies(root) == {"tokens", "signals", "student"}
    monkeypatch.setenv("RAYDISTILL_CACHE_BYTES", "much")
    with pytest.raises(ArtifactError, match="RAYDISTILL_CACHE_BYTES is 'much'"):
        remote.artifact("teacher", KEY).local()


def test_two_processes_fill_the_node_cache_at_once(remote: Storage) -> None:
    fill(remote.artifact("data", KEY))
    processes = [start(USE, remote.url, "data", KEY) for _ in range(3)]
    assert [process.communicate("go\n", timeout=60)[0] for process in processes] == ["ready\n"] * 3
    assert remote.artifact("data", KEY).local(verify=True)


def test_every_error_is_one_message(local: Storage) -> None:
    with pytest.raises(RaydistillError) as caught:
        local.artifact("data", KEY).local()
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    assert f"data/{KEY}" in str(caught.value)
