"""Waiting for room on a cluster, in words: what is missing, at once and then every minute, and its end."""

from __future__ import annotations

import time
from collections.abc import Callable

from raydistill.cluster.placement import known_nodes, least_workers
from raydistill.cluster.resources import SETTING_OF_WORKERS, described, lack
from raydistill.cluster.room import Resources
from raydistill.config.training import Train
from raydistill.errors import RaydistillError
from raydistill.storage.board import Show

SILENT_SECONDS = 10.0
"""What is there within this time is not worth a word."""
REMIND_SECONDS = 60.0


class Waiting:
    """Looks, while workers have not begun, whether nodes hold the least of them; ``look`` is called now and then.

    ``wanted``: what each asks for. ``who``: what they are called. Nodes that an autoscaler has announced count as
    there; Ray's own demand stands meanwhile, for one that has announced nothing. ``clock`` in seconds.
    """

    def __init__(
        self,
        train: Train,
        wanted: Resources,
        show: Show,
        who: str = "workers",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.least, self.limit_s, self.who = least_workers(train), 60 * train.max_wait_minutes, who
        self.wanted, self.show, self.clock = wanted, show, clock
        self.begun_at: float | None = None
        self.lacking_since: float | None = None
        self.look_at = 0.0

    def look(self, is_waiting: bool) -> bool:
        """Whether something is missing, which is said where it is time to.

        Raises RaydistillError after ``train.max_wait_minutes`` of it.
        """
        if not is_waiting:
            self.begun_at = self.lacking_since = None
            return False
        now = self.clock()
        if self.begun_at is None:
            self.begun_at = self.look_at = now
        if now >= self.look_at:
            self._tell(self._lack(now - self.begun_at), now)
        return self.lacking_since is not None

    def _tell(self, lack: str | None, now: float) -> None:
        if lack is None:
            self.lacking_since, self.look_at = None, now + SILENT_SECONDS
            return
        self.lacking_since = now if self.lacking_since is None else self.lacking_since
        left = self.lacking_since + self.limit_s - now
        if left <= 0:
            raise RaydistillError(
                f"{lack} The run gave up after {self.limit_s / 60:g} minutes (train.max_wait_minutes). Add nodes, "
                f"lower {SETTING_OF_WORKERS}, or wait longer. Everything finished so far is kept; the same "
                "command goes on from there."
            )
        self.look_at = now + min(REMIND_SECONDS, left)
        self.show({"phase": "room", "note": f"{lack} Waiting, {left / 60:.0f} minutes more (train.max_wait_minutes)"})

    def _lack(self, seconds: float) -> str | None:
        if (text := lack(f"The {self.who}", self.wanted, self.least, known_nodes())) is not None:
            return text
        if seconds >= SILENT_SECONDS and is_pending(self.wanted):
            asked = f"{self.least} × ({described(self.wanted)})"
            return f"The {self.who} need {asked}: others on the cluster have their place, or nodes are still to come."
        return None


def is_pending(wanted: Resources) -> bool:
    """Whether somebody on this cluster waits for a group of places such as these."""
    from ray.util import placement_group_table

    return any(
        group["state"] in ("PENDING", "RESCHEDULING")
        and any(
            all(abs(bundle.get(name, 0.0) - amount) < 1e-3 for name, amount in wanted.items())
            for bundle in group["bundles"].values()
        )
        for group in placement_group_table().values()
    )
