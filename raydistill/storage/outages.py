"""Storage that is away for a while: what is tried again and for how long, who is told, and what ends the waiting.

Only a storage that has answered this process before is waited for: a wrong endpoint, or one without network, is told
at once. What a full disk, missing rights or a missing file say is true for longer, and is never tried again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from raydistill.errors import Interrupted
from raydistill.storage.faults import is_transient, number_set
from raydistill.storage.redaction import redact

Result = TypeVar("Result")
logger = logging.getLogger(__name__)

RETRY_SECONDS = 120.0
"""Default of RAYDISTILL_STORAGE_RETRY_SECONDS: how long one request is tried again; 0: never."""
MAX_PAUSE_SECONDS = 4.0
"""Pauses between two tries grow up to this, so a storage that is back is noticed within as long."""
HANGING_SECONDS = 8.0
"""A call that lasts longer after a request to stop is given up: botocore waits 15 s for an answer, several times."""


class Outages:
    """What this process knows of its storages; there is one, :data:`OUTAGES`."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        """A request to stop, which ends all waiting."""
        self.tell: Callable[[str], None] = logger.warning
        self.notes: list[str] = []
        self._answered: set[str] = set()
        self._since: dict[str, float] = {}
        self._gave_up: dict[str, float] = {}
        self._lock = threading.Lock()
        self._busy_since: float | None = None

    @contextmanager
    def obeying(self, stop: threading.Event, tell: Callable[[str], None]) -> Iterator[None]:
        """In the body a request to stop ends the waiting with Interrupted, and ``tell`` hears of outages."""
        before = self.stop, self.tell
        self.stop, self.tell = stop, tell
        try:
            yield
        finally:
            self.stop, self.tell = before

    def take_notes(self) -> list[str]:
        """A sentence for each outage that ended since this was last asked."""
        notes, self.notes = self.notes, []
        return notes

    def know(self, url: str) -> None:
        """The storage has answered, here or in the process that this one was started by."""
        self._answered.add(url)

    def is_hanging(self) -> bool:
        """Whether the main thread has waited for one request for longer than HANGING_SECONDS."""
        since = self._busy_since
        return since is not None and time.monotonic() - since > HANGING_SECONDS

    def attempt(self, call: Callable[[], Result], url: str) -> Result:
        """Return what ``call`` returns; try again while the storage ``url`` is away. Raises what it raised last, or
        Interrupted where the run is asked to stop meanwhile."""
        in_main = threading.current_thread() is threading.main_thread()
        if in_main:
            self._busy_since = time.monotonic()
        try:
            result = call()
        except Exception as error:
            seconds = self._patience(url, error)
            if seconds == 0:
                raise
            self._begin(url, error, seconds)
            result = self._again(call, url, seconds)
        finally:
            if in_main:
                self._busy_since = None
        if url in self._since:
            self._end(url)
        self._answered.add(url)
        return result

    def _patience(self, url: str, error: Exception) -> float:
        """Seconds for which to try again; none soon after another request has given the storage up."""
        if url not in self._answered or not is_transient(error) or _once.get():
            return 0.0
        seconds = number_set("RAYDISTILL_STORAGE_RETRY_SECONDS", RETRY_SECONDS)
        return 0.0 if time.monotonic() - self._gave_up.get(url, float("-inf")) < seconds else seconds

    def _again(self, call: Callable[[], Result], url: str, seconds: float) -> Result:
        import tenacity

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(is_transient),
            stop=tenacity.stop_any(tenacity.stop_after_delay(seconds), tenacity.stop_when_event_set(self.stop)),
            wait=tenacity.wait_random_exponential(multiplier=0.5, max=MAX_PAUSE_SECONDS),
            sleep=tenacity.sleep_using_event(self.stop),
            reraise=True,
        )
        try:
            self.stop.wait(0.2)
            return retrying(call)
        except Exception as error:
            if not is_transient(error):
                raise
            if self.stop.is_set():
                raise Interrupted(STOPPED) from error
            self._since.pop(url, None)
            self._gave_up[url] = time.monotonic()
            raise

    def _begin(self, url: str, error: Exception, seconds: float) -> None:
        with self._lock:
            if url in self._since:
                return
            self._since[url] = time.monotonic()
        reason = redact(str(error)).split("\n")[0][:200]
        self.tell(f"the storage {redact(url)} does not answer; tried again for up to {seconds:g} s ({reason})")

    def _end(self, url: str) -> None:
        with self._lock:
            since = self._since.pop(url, None)
        if since is not None:
            away = time.monotonic() - since
            self.notes.append(f"The storage {redact(url)} did not answer for {away:.0f} s; the run waited for it.")
            self.tell(f"the storage {redact(url)} answers again, after {away:.0f} s")


STOPPED = "The run was stopped while its storage did not answer; the last checkpoint is kept."
OUTAGES = Outages()
_once: ContextVar[bool] = ContextVar("once", default=False)


@contextmanager
def tried_once() -> Iterator[None]:
    """In the body nothing is tried again: for checks, and for writers that come back themselves, as heartbeats do."""
    token = _once.set(True)
    try:
        yield
    finally:
        _once.reset(token)


def connection_options(url: str) -> dict[str, Any]:
    """Options for fsspec: S3's own client tries again less often than its default, 5 times 5, which takes a minute."""
    if not url.startswith(("s3://", "s3a://")):
        return {}
    from fsspec.config import conf

    return {} if "config_kwargs" in conf.get("s3", {}) else {"config_kwargs": {"retries": {"max_attempts": 1}}}
