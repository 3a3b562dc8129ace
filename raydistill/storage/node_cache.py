"""A node's copies of what lies behind a URL: bounded, and shared by its processes."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from filelock import FileLock

from raydistill.storage.faults import Damaged, explain, number_set
from raydistill.storage.manifest import KINDS
from raydistill.storage.storage import PARTIAL
from raydistill.storage.verified import NOTE

CACHE_BYTES = 50 * 10**9
"""Default bound of the node's cache; RAYDISTILL_CACHE_BYTES overrides it."""
_IN_USE: dict[Path, int] = {}
"""Copies this process has been given -> descriptor whose shared lock keeps others from evicting them while it lives."""


def local_copy(
    name: str, num_bytes: int, check: Callable[[Path, bool], None], download: Callable[[Path], None], verify: bool
) -> Path:
    """The folder ``name`` on this node, filled by ``download`` unless it is there and ``check(folder, verify)`` passes.

    It is not evicted before this process ends. A copy that raises Damaged is downloaded again; what ``download`` and a
    full check of the new copy raise is passed on.
    """
    root = Path(os.environ.get("RAYDISTILL_CACHE") or "~/.cache/raydistill").expanduser().absolute()
    entry = root / name

    def fits() -> bool:
        if not entry.is_dir():
            return False
        try:
            check(entry, verify)
        except Damaged:
            return False
        return True

    try:
        (root / "locks").mkdir(parents=True, exist_ok=True)
        _keep(entry)
        if not fits():
            with FileLock(root / "locks" / f"{entry.name}.download"):
                if not fits():
                    _fill(entry, num_bytes, check, download)
        os.utime(entry)  # least recently used goes first
    except OSError as error:
        raise explain(error, "use RAYDISTILL_CACHE", str(root)) from error
    return entry


def _fill(entry: Path, num_bytes: int, check: Callable[[Path, bool], None], download: Callable[[Path], None]) -> None:
    partial = entry.with_name(entry.name + PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    _make_room(entry.parent, num_bytes)
    try:
        partial.mkdir()
        download(partial)
        check(partial, True)
        shutil.rmtree(entry, ignore_errors=True)
        os.rename(partial, entry)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _lock_path(entry: Path) -> Path:
    return entry.parent / "locks" / f"{entry.name.removesuffix(PARTIAL)}.use"


def _keep(entry: Path) -> None:
    """Hold a shared lock on a copy until this process ends; the OS frees it, also after kill -9."""
    if entry in _IN_USE:
        return
    descriptor = os.open(_lock_path(entry), os.O_RDWR | os.O_CREAT, 0o666)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    _IN_USE[entry] = descriptor


def _make_room(root: Path, num_bytes: int) -> None:
    """Evict the least recently used copies that no process holds until ``num_bytes`` more fit under the bound.

    Copies that are all in use may exceed it: a run that needs them could not work otherwise. What else lies there,
    metrics that MLflow still lacks and crash logs, is the only one of its kind, and stays.
    """
    with FileLock(root / "locks" / "evict.lock"):
        entries = [entry for entry in root.iterdir() if entry.name.partition("-")[0] in KINDS]
        copies = sorted((_used_and_bytes(entry), entry) for entry in entries)
        excess = sum(size for (_, size), _ in copies) + num_bytes - number_set("RAYDISTILL_CACHE_BYTES", CACHE_BYTES)
        for (_, size), entry in copies:
            if excess > 0 and _evict(entry):
                excess -= size


def _used_and_bytes(entry: Path) -> tuple[float, int]:
    """Time of last use and size of a copy, but for the note of what was read; what vanishes meanwhile, at another
    process's rename, counts nothing."""
    used, size = 0.0, 0
    with suppress(FileNotFoundError):
        used = entry.stat().st_mtime
        for folder, _, names in os.walk(entry):
            size += sum(os.path.getsize(os.path.join(folder, name)) for name in names if name != NOTE)
    return used, size


def _evict(entry: Path) -> bool:
    descriptor = os.open(_lock_path(entry), os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(entry, ignore_errors=True)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True
