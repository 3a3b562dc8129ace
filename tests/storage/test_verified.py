"""What was read once is read again only where a file has changed, or might have without a trace."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from raydistill.storage import verified
from raydistill.storage.manifest import FileInfo
from raydistill.storage.storage import Storage
from raydistill.storage.verified import NOTE, Verified, contents


def reads(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Look at all files; names of those that were read."""
    seen: list[str] = []
    read = verified.read_file
    with monkeypatch.context() as patch:
        patch.setattr(verified, "read_file", lambda *place: (seen.append(place[-1]), read(*place))[1])
        found = contents(storage, "signals")
    assert found == {name: read(storage, "signals", name) for name in found}
    return seen


def test_only_what_has_changed_is_read_again(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verified, "SETTLED_SECONDS", 0.05)
    for name in "abc":
        storage.write_bytes(b"content", "signals", name)
    time.sleep(0.1)
    assert reads(storage, monkeypatch) == ["a", "b", "c"]
    assert reads(storage, monkeypatch) == []
    storage.write_bytes(b"kontent", "signals", "b")  # as long as it was
    storage.write_bytes(b"cont", "signals", "c")
    storage.delete("signals", "a")
    time.sleep(0.1)
    assert reads(storage, monkeypatch) == ["b", "c"]
    assert contents(storage, "signals").keys() == {"b", "c"}
    storage.write_bytes(b"{", "signals", NOTE)
    assert reads(storage, monkeypatch) == ["b", "c"]
    assert reads(storage, monkeypatch) == []


@pytest.mark.parametrize("how", ["in place", "another file"])
def test_a_program_that_sets_the_time_back_hides_nothing(
    local: Storage, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verified, "SETTLED_SECONDS", 0.05)
    local.write_bytes(b"content", "signals", "a")
    path = Path(local.path("signals", "a"))
    before = path.stat()
    time.sleep(0.1)
    assert reads(local, monkeypatch) == ["a"]
    assert reads(local, monkeypatch) == []
    if how == "in place":
        path.write_bytes(b"kontent")
    else:
        path.with_name(".b").write_bytes(b"kontent")
        path.with_name(".b").rename(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert reads(local, monkeypatch) == ["a"]


def test_what_changed_a_moment_before_or_since_is_not_noted(local: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one tick of the disk's clock a file may change twice."""
    local.write_bytes(b"content", "signals", "a")
    assert reads(local, monkeypatch) == reads(local, monkeypatch) == ["a"]
    assert not local.exists("signals", NOTE)
    monkeypatch.setattr(verified, "SETTLED_SECONDS", 0.05)
    time.sleep(0.1)
    look = Verified(local, "signals")
    local.write_bytes(b"kontent", "signals", "a")
    look.note({"a": FileInfo(7, "read before")})
    time.sleep(0.1)
    assert reads(local, monkeypatch) == ["a"]


def test_an_object_without_version_or_time_is_read_every_time(local: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    local.write_bytes(b"content", "signals", "a")
    monkeypatch.setattr(verified, "SETTLED_SECONDS", 0.0)
    monkeypatch.setattr(local, "is_local", False)
    for info, expected in (({"size": 7}, ["a"]), ({"size": 7, "ETag": "1"}, []), ({"size": 7, "ETag": "2"}, ["a"])):
        monkeypatch.setattr(local, "infos", lambda *parts, info=info: {"a": info})
        reads(local, monkeypatch) if expected == [] else None
        assert reads(local, monkeypatch) == expected


def test_a_note_that_cannot_be_written_is_no_error(local: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verified, "SETTLED_SECONDS", 0.05)
    local.write_bytes(b"content", "signals", "a")
    time.sleep(0.1)

    def refuse(*place: object) -> None:
        raise verified.ArtifactError("permission denied")

    monkeypatch.setattr(local, "write_json", refuse)
    assert reads(local, monkeypatch) == reads(local, monkeypatch) == ["a"]
