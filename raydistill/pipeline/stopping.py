"""Ctrl-C and SIGTERM: a request to stop that the run obeys at its next step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from raydistill.errors import Interrupted
from raydistill.storage.board import Show
from raydistill.storage.outages import OUTAGES, STOPPED

SIGNALS = (signal.SIGINT, signal.SIGTERM)
LOOK_SECONDS = 1.0
"""After a request to stop it is looked this often whether the run hangs in a request to its storage."""


class Stop(threading.Event):
    """The request to stop. While ``is_obeyed`` the run looks at it after every step; otherwise the run ends at once."""

    is_obeyed = False

    def __init__(self, show: Show) -> None:
        super().__init__()
        self.show = show

    def listen(self) -> None:
        """Take the signals. To be called again after ``ray.init``, whose own handler ends the process at SIGTERM."""
        if threading.current_thread() is threading.main_thread():
            for signum in SIGNALS:
                signal.signal(signum, self._obey)

    def _obey(self, signum: int, frame: object) -> None:
        if self.is_set() or not self.is_obeyed:
            raise Interrupted("The run was stopped; everything finished so far is kept.")
        self.set()
        self.show({"phase": "stop", "note": "a checkpoint is written at the next step; once more ends the run at once"})
        signal.signal(signal.SIGALRM, self._look)
        signal.setitimer(signal.ITIMER_REAL, LOOK_SECONDS, LOOK_SECONDS)

    def _look(self, signum: int, frame: object) -> None:
        if OUTAGES.is_hanging():
            raise Interrupted(STOPPED)


@contextmanager
def stoppable(show: Show) -> Iterator[Stop]:
    """Turn SIGINT and SIGTERM into a ``Stop``; a second signal ends the run at once. Raises Interrupted."""
    stop = Stop(show)
    with OUTAGES.obeying(stop, lambda note: show({"phase": "wait", "note": note})):
        if threading.current_thread() is not threading.main_thread():
            yield stop
            return
        before = {signum: signal.getsignal(signum) for signum in (*SIGNALS, signal.SIGALRM)}
        stop.listen()
        try:
            yield stop
        except Interrupted as error:
            raise Interrupted(f"{error} The same command goes on from there.") from error
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            for signum, handler in before.items():
                signal.signal(signum, handler)
