"""Ctrl-C and SIGTERM: a wish to stop that the run obeys at its next step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from raydistill.board import Show
from raydistill.errors import Interrupted


class Stop(threading.Event):
    """The wish to stop. While ``is_obeyed`` the run looks at it after every step; otherwise it ends the run at once."""

    is_obeyed = False


@contextmanager
def stoppable(show: Show) -> Iterator[Stop]:
    """Turn SIGINT and SIGTERM into a ``Stop``; a second signal ends the run at once. Raises Interrupted."""
    stop = Stop()

    def obey(signum: int, frame: object) -> None:
        if stop.is_set() or not stop.is_obeyed:
            raise Interrupted("The run was stopped; everything finished so far is kept.")
        stop.set()
        show({"phase": "stop", "note": "a checkpoint is written at the next step; once more ends the run at once"})

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {signum: signal.signal(signum, obey) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    except Interrupted as error:
        raise Interrupted(f"{error} The same command goes on from there.") from error
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
