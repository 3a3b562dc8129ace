"""Storage gives the same answers on a local disk, in memory and on S3, and says the way out of what goes wrong."""

from __future__ import annotations

import errno
import os
import pickle
import time
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from kit.processes import KEY, fill, kill, start, wait_for

from raydistill.cli.doctor.probe import Probe
from raydistill.errors import ArtifactError, ConfigError
from raydistill.storage.artifacts import Artifact
from raydistill.storage.faults import Missing, explain
from raydistill.storage.manifest import FileInfo, folder_digest
from raydistill.storage.paths import resolve_path
from raydistill.storage.storage import Storage


@pytest.mark.parametrize("name", ["..", "a/../../b", "", "/etc/passwd", "a//b", "a\\..\\b"])
def test_parts_and_file_names_cannot_leave_the_storage(local: Storage, tmp_path: Path, name: str) -> None:
    source = tmp_path / "source"
    source.write_text("x")
    for action in (
        lambda: local.write_bytes(b"x", name),
        lambda: local.delete(name),
        lambda: Artifact(local, "data", KEY).put(source, name),
        lambda: Artifact(local, "data", KEY, {}).seal({name: FileInfo(1, "0")}),
    ):
        with pytest.raises(ArtifactError, match="not a name inside"):
            action()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


@pytest.mark.parametrize("name", ["", "a\0b", "file://"])
def test_what_is_no_name_at_all_is_no_path(name: str) -> None:
    with pytest.raises(ConfigError, match="is not a path"):
        resolve_path(name)


PUT = """
    from pathlib import Path
    source = Path(sys.argv[3])
    source.write_bytes(b"x" * 50_000_000)
    print("ready", flush=True)
    while True:
        Artifact(Storage(sys.argv[1]), "signals", sys.argv[2]).put(source, "shard.arrow")
"""


@pytest.mark.parametrize("delay", [0.0, 0.03, 0.1])
def test_a_file_put_by_a_killed_process_is_whole_or_not_there(local: Storage, tmp_path: Path, delay: float) -> None:
    process = start(PUT, local.url, KEY, str(tmp_path / "source"))
    wait_for(process)
    time.sleep(delay)
    kill(process)
    assert set(local.files("signals", KEY).items()) <= {("shard.arrow", 50_000_000)}


def test_all_that_is_written_has_reached_the_disk(local: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: sizes.append(os.fstat(descriptor).st_size))
    local.write_bytes(b"x" * 5, "a", "b")
    assert 5 in sizes


def test_storage_artifact_and_owner_travel(storage: Storage) -> None:
    artifact = pickle.loads(pickle.dumps(fill(Artifact(storage, "data", KEY))))
    assert artifact == Artifact(storage, "data", KEY)
    assert artifact.storage == storage
    assert hash(artifact.storage) == hash(storage)
    assert artifact.digest == Artifact(storage, "data", KEY).digest


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
        with pytest.raises(Missing):
            missing()


def test_a_reader_sees_what_another_process_wrote_a_moment_ago(remote: Storage) -> None:
    other = fsspec.filesystem("s3", skip_instance_cache=True)  # shares no cached listing with ours, like a process
    for index in range(3):
        assert len(remote.list("runs")) == index
        assert not remote.exists("runs", f"r{index}")
        other.pipe_file(remote.path("runs", f"r{index}", "run.json"), b"x")
        assert remote.exists("runs", f"r{index}")
        assert remote.files("runs", f"r{index}") == {"run.json": 1}


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


class Overwriting(MemoryFileSystem):
    """A store that ignores If-None-Match, as fsspec before 2024.12 and some S3-compatible servers do."""

    protocol = "overwriting"
    store: ClassVar[dict[str, Any]] = {}

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        super().pipe_file(path, value, **options)

    def unstrip_protocol(self, name: str) -> str:
        return f"overwriting:/{name}"


def test_a_store_that_creates_one_object_twice_is_refused() -> None:
    fsspec.register_implementation("overwriting", Overwriting, clobber=True)
    storage = Storage("overwriting://place")
    with pytest.raises(ArtifactError, match=r"If-None-Match.*older than 2024\.12"):
        storage.check()
    assert storage.files() == {}
    assert "If-None-Match" in Probe().write(storage.url, ".staging/doctor", "marker")


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
    with pytest.raises(ArtifactError, match=r"disk is full.*cache gc"), Artifact(storage, "data", KEY, {}).write():
        raise raised
    assert storage.files() == {}


def test_a_real_full_disk_and_missing_permission(local: Storage) -> None:
    with (
        pytest.raises(ArtifactError, match="disk is full"),
        Artifact(local, "data", KEY, {}).write(),
        open("/dev/full", "w") as file,
    ):
        file.write("x" * 100_000)
    for error, words in (
        (PermissionError(errno.EACCES, "denied"), "permission"),
        (OSError(errno.EROFS, "read-only"), "permission"),
    ):
        assert words in str(explain(error, "write", "/x"))


def test_a_disk_that_does_not_answer_is_not_an_empty_one(local: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint that "is not there" would be begun anew and deleted."""
    local.write_bytes(b"1", "runs", "a", "last.json")
    assert local.exists("runs", "a", "last.json")
    assert not local.exists("runs", "b", "last.json")
    assert local.files("runs", "b") == {}
    monkeypatch.setenv("RAYDISTILL_STORAGE_RETRY_SECONDS", "0")

    def fail(*arguments: object, **options: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", fail)
        with pytest.raises(ArtifactError, match="Input/output error"):
            local.exists("runs", "a", "last.json")
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", fail)
        with pytest.raises(ArtifactError, match="Input/output error"):
            local.files("runs", "a")
