"""Locks of a storage: a file lock where it is local, a lease where it has no file locks.

A lease is an object ``.locks/<name>/<number>.lease`` with a heartbeat; the highest number holds the lock. Taking it
means creating the next number, which the store grants to one process only, and then seeing no higher one; so two that
see a dead holder at once cannot both take over. That this suffices, also for a process that stalls between any two of
its requests:

- Only who has created a higher number removes a lower one, so the highest number that ever was is always there. A
  listing finds it or a still higher one, even page by page: it goes upwards, and that one came before the removal.
- A number that is created a second time was removed before, by one who had created a higher number. Its second creator
  therefore sees a higher one and holds nothing: a number has one holder at most, however often it is reopened.
- A higher number is created only by one who saw the highest released, or its heartbeat stand still. Whoever was first
  to create that one, and has not looked yet whether a higher one is there, will see it, and hold nothing.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from raydistill.errors import ArtifactError
from raydistill.storage.faults import Missing
from raydistill.storage.outages import tried_once
from raydistill.storage.storage import Storage

LOCKS = ".locks"
HEARTBEAT_SECONDS = 4.0
LEASE_SECONDS = 20.0
"""A holder whose heartbeat stood still for this long, on the waiter's own clock, is dead."""
ABANDONED_SECONDS = 900.0
"""A heartbeat this old by the wall clock is dead at first sight; S3 refuses clocks that differ by more than 900 s."""
POLL_SECONDS = 0.5


@contextmanager
def lock(storage: Storage, *parts: str, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Let one process at a time into the body; ``waiting`` is called once when another one is in there.

    Local storage: an OS file lock, freed at once when its holder dies. URL: a lease.
    """
    if not storage.is_local:
        with Lease(storage, *parts).held(waiting):
            yield
        return
    place = Path(storage.path(LOCKS, *parts) + ".lock")
    file = FileLock(place, mode=0o666)  # the umask decides whether others may share the storage

    def acquire(timeout: float) -> bool:
        place.parent.mkdir(parents=True, exist_ok=True)
        with suppress(Timeout):
            file.acquire(timeout=timeout, poll_interval=0.1)
        return file.is_locked

    if not storage.attempt("lock", lambda: acquire(0), *parts):
        if waiting is not None:
            waiting()
        while not storage.attempt("lock", lambda: acquire(5), *parts):
            pass  # in turns shorter than a request that hangs
    try:
        yield
    finally:
        file.release()


def is_held(storage: Storage, *parts: str) -> bool | None:
    """Whether a process is in the body of ``lock(storage, *parts)`` now; None where that cannot be told.

    Behind a URL it can be told for sure only of a holder that was silent for ABANDONED_SECONDS.
    """
    if not storage.is_local:
        return not _is_free(Lease(storage, *parts)._newest()[1])
    place = storage.path(LOCKS, *parts) + ".lock"
    if not os.path.exists(place):
        return False
    try:
        with FileLock(place, timeout=0, mode=0o666):
            return False
    except Timeout:
        return True
    except OSError:  # another user's lock file
        return None


class Lease:
    """One process's attempt to hold the lock ``parts`` of a storage."""

    def __init__(self, storage: Storage, *parts: str) -> None:
        self.storage = storage
        self.place = (LOCKS, *parts)
        self.holder = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self.number = 0
        self.lost = False
        self._stop = threading.Event()

    @contextmanager
    def held(self, waiting: Callable[[], None] | None = None) -> Iterator[None]:
        """Hold the lease during the body; ArtifactError afterwards if another process had to take it over."""
        self._acquire(waiting)
        beat = threading.Thread(target=self._beat, name="raydistill-lease", daemon=True)
        beat.start()
        try:
            yield
        finally:
            self._stop.set()
            beat.join(HEARTBEAT_SECONDS)
            with suppress(ArtifactError), tried_once():  # of storage that is away the lease ends by itself after 20 s
                self._write(released=True)
        if self.lost:
            raise ArtifactError(
                f"This process stood still for more than {LEASE_SECONDS:.0f} s and another one took over its lock "
                f"{'/'.join(self.place[1:])}. What the other one wrote counts; run the command again."
            )

    def _acquire(self, waiting: Callable[[], None] | None) -> None:
        seen, since = b"", time.monotonic()
        while True:
            asked = time.monotonic()
            number, content = self._newest()
            if content != seen or time.monotonic() - asked > HEARTBEAT_SECONDS:  # storage that is away hides heartbeats
                seen, since = content, time.monotonic()
            if _is_free(content) or time.monotonic() - since > LEASE_SECONDS:
                self.number = number + 1
                if self.storage.create(self._content(), *self._object(self.number)) and self._is_highest():
                    return
                continue
            if waiting is not None:
                waiting()
                waiting = None
            time.sleep(POLL_SECONDS)

    def _is_highest(self) -> bool:
        """Whether no number is above this one, which then holds the lock; those below are removed."""
        numbers = self._numbers()
        if max(numbers, default=0) > self.number:
            return False  # created late, after others had taken this number, left it and removed it
        for old in numbers:
            if old < self.number:
                self.storage.delete(*self._object(old))
        return True

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            with suppress(ArtifactError), tried_once():  # storage is away for a moment: the next beat tries again
                self._write()

    def _newest(self) -> tuple[int, bytes]:
        """Number and content of the newest lease; (0, b"") where nobody ever held it."""
        while True:
            number = max(self._numbers(), default=0)
            if number == 0:
                return 0, b""
            with suppress(Missing):  # a newer holder has just removed it
                return number, self.storage.read_bytes(*self._object(number))

    def _numbers(self) -> list[int]:
        return [int(name.removesuffix(".lease")) for name in self.storage.list(*self.place)]

    def _object(self, number: int) -> tuple[str, ...]:
        return (*self.place, f"{number:09d}.lease")

    def _content(self, released: bool = False) -> bytes:
        return json.dumps({"holder": self.holder, "beat": time.time(), "released": released}).encode()

    def _write(self, released: bool = False) -> None:
        self.lost = self.lost or max(self._numbers(), default=0) > self.number
        if not self.lost:
            self.storage.write_bytes(self._content(released), *self._object(self.number))


def _is_free(content: bytes) -> bool:
    if not content:
        return True
    lease = json.loads(content)
    return bool(lease["released"]) or time.time() - lease["beat"] > ABANDONED_SECONDS
