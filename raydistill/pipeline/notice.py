"""Notice that a node is about to be taken away, as spot markets give it, and when to write a checkpoint for it."""

from __future__ import annotations

import time
from collections.abc import Callable

LAST_SECONDS = 10.0
"""So long before the end the last checkpoint is begun. Training goes on to the end: steps after it are repeated."""


class Notice:
    """When a checkpoint is due: at once where notice comes, and once more shortly before the node goes.

    ``deadline`` returns None while there is no notice; else when the node goes, in seconds since the epoch, or 0 where
    that is not known. ``clock`` gives the present in the same way.
    """

    def __init__(self, deadline: Callable[[], float | None], clock: Callable[[], float] = time.time) -> None:
        self.deadline, self.clock = deadline, clock
        self._seen: float | None = None
        self._is_last = False

    def is_due(self) -> bool:
        """Whether to write a checkpoint now; True twice a notice at most."""
        deadline = self.deadline()
        if deadline is None:
            return False
        is_near = 0 < deadline <= self.clock() + LAST_SECONDS
        if deadline == self._seen and (self._is_last or not is_near):
            return False
        self._seen, self._is_last = deadline, is_near
        return True
