"""What a run's processes tell each other through storage: how far it is, and that it should stop."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from raydistill.storage.faults import Missing
from raydistill.storage.ownership import Owner
from raydistill.storage.storage import Storage

LOCAL_INTERVAL_S = 0.2
REMOTE_INTERVAL_S = 3.0
"""A write to an object store takes up to 0.1 s: so seldom that neither side notices it."""
REMOTE_LOOK_S = 1.0
"""Looking takes 0.02 to 0.05 s; a request to stop should be seen soon: clouds and users wait some 10 s for it."""


Show = Callable[[Mapping[str, Any]], None]
"""Gets ``phase`` and, where they say something, ``done``, ``total``, ``unit``, ``rate`` (units a second), ``note``."""


class Board:
    """Progress, written by rank 0 and read by the driver; and the driver's request to stop, read by every rank.

    A request to stop names the owner it is meant for, so that one left by an earlier process stops nobody.
    """

    def __init__(
        self,
        storage: Storage,
        run: tuple[str, ...],
        owner: Owner,
        *,
        listener: Show | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> None:
        """``listener`` and ``stop``: the driver itself, where it is this very process."""
        self.storage, self.run, self.owner = storage, run, owner
        self.listener, self.stop = listener, stop
        self.interval_s = LOCAL_INTERVAL_S if storage.is_local else REMOTE_INTERVAL_S
        self.look_s = LOCAL_INTERVAL_S if storage.is_local else REMOTE_LOOK_S
        self._posted_at = self._looked_at = -1e9
        self._stop = False

    def post(
        self, phase: str, done: int, total: int, unit: str, rate: float, note: str = "", force: bool = False
    ) -> None:
        """Say how far ``phase`` is; ``rate`` in units a second. Throttled unless forced."""
        now = time.monotonic()
        if force or now - self._posted_at >= self.interval_s:
            self._posted_at = now
            entry = {"phase": phase, "done": done, "total": total, "unit": unit, "rate": rate, "note": note}
            if self.listener is not None:
                self.listener(entry)
            else:
                self.storage.write_json({**entry, "owner": self.owner.number}, *self.run, "progress.json")

    def clear(self) -> None:
        """Forget how far an earlier worker group of this run was."""
        self.storage.delete(*self.run, "progress.json")

    def read(self, name: str = "progress.json") -> dict[str, Any] | None:
        """What was last written for this owner."""
        with suppress(Missing):
            entry: dict[str, Any] = self.storage.read_json(*self.run, name)
            return entry if entry.get("owner") == self.owner.number else None
        return None

    def request_stop(self) -> None:
        self.storage.write_json({"owner": self.owner.number}, *self.run, "stop.json")

    def withdraw_stop(self) -> None:
        self.storage.delete(*self.run, "stop.json")

    def should_stop(self) -> bool:
        if self.stop is not None:
            return self.stop()
        now = time.monotonic()
        if not self._stop and now - self._looked_at >= self.look_s:
            self._looked_at = now
            self._stop = self.read("stop.json") is not None
        return self._stop
