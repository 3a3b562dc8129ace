"""Metrics by step: training appends to a local file of JSON lines, a thread sends them on and never disturbs it."""

from __future__ import annotations

import io
import json
import logging
import math
import os
import re
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from raydistill.errors import RaydistillError, StaleOwner

if TYPE_CHECKING:
    from raydistill.storage.ownership import Owner

logger = logging.getLogger(__name__)

NAME_LENGTH = 250
BATCH_POINTS = 500  # MLflow takes at most 1000 at a time; 1000 cost 70 ms in local sqlite, up to 0.9 s over HTTP
POLL_SECONDS = 1.0
MAX_DELAY_SECONDS = 30.0


class Point(NamedTuple):
    """One value of one metric; ``timestamp`` in milliseconds since 1970."""

    key: str
    value: float
    timestamp: int
    step: int


class Store(Protocol):
    """Where the points end up; its methods raise TrackingError while it is away."""

    def last_steps(self) -> dict[str, int]: ...
    def send(self, points: list[Point]) -> None: ...
    def close(self) -> None: ...


class Writer:
    """:meth:`log` appends to a local file and returns; a daemon thread sends the file's content to the store.

    Neither an outage nor a wrong value raises or waits in :meth:`log`. The thread retries with back-off and goes on
    beyond the last (key, step) that the store has, so that a restarted run's repeated steps appear once. ``nan`` is
    sent, ``inf`` stays in the file. Once a newer process owns the run nothing more is sent.
    """

    def __init__(self, store: Store, path: Path, owner: Owner | None = None) -> None:
        path = Path(path)
        self._journal, self._sender = Journal(path), Sender(store, path)
        self._store, self._owner = store, owner
        self._stop = threading.Event()
        self._deadline = math.inf
        self._thread = threading.Thread(target=self._run, name="raydistill-tracker", daemon=True)
        self._thread.start()

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Append to the file and return; it takes about 0.01 ms."""
        self._journal.append(metrics, step)

    def close(self, timeout: float = 30.0) -> int:
        """Send what can be sent within ``timeout`` seconds; the number of values that only the file has."""
        self._journal.flush()
        self._deadline = time.monotonic() + timeout
        self._stop.set()
        self._thread.join(timeout)
        self._journal.close()
        return self._sender.count_left()

    def _run(self) -> None:
        delay = POLL_SECONDS
        try:
            while True:
                stopping = self._stop.is_set()
                sent = self._try_to_send(is_first_failure=delay == POLL_SECONDS)
                if stopping and (sent or time.monotonic() >= self._deadline):
                    return
                delay = POLL_SECONDS if sent else min(2 * delay, MAX_DELAY_SECONDS)
                if stopping:
                    time.sleep(0.5)
                else:
                    self._stop.wait(delay)
        except StaleOwner as error:
            logger.warning("No longer the writer of this run: %s", error)
        finally:
            self._store.close()

    def _try_to_send(self, is_first_failure: bool) -> bool:
        try:
            if self._owner is not None:
                self._owner.check()
            self._sender.send()
        except StaleOwner:
            raise
        except (RaydistillError, OSError) as error:
            if is_first_failure:
                logger.warning("Metrics wait in %s and are sent later. %s", self._journal.path, error)
            return False
        return True


class Sender:
    """Sends a file's points to a store, each (key, step) once, from wherever the store stands."""

    def __init__(self, store: Store, path: Path) -> None:
        self._store, self._path = store, path
        self._offset = 0
        self._last: dict[str, int] = {}
        self._is_sure = False

    def send(self) -> int:
        """Send everything that is in the file now; the number of values sent. Raises TrackingError."""
        if not self._is_sure:
            self._last = self._store.last_steps()
        self._is_sure = False  # until all went well: after a failure nobody knows what was stored
        num_sent = 0
        while True:
            points, end = read_points(self._path, self._offset, BATCH_POINTS)
            if end == self._offset:
                break
            fresh, ahead = select_new(points, self._last)
            if fresh:
                self._store.send(fresh)
            self._last, self._offset = ahead, end
            num_sent += len(fresh)
        self._is_sure = True
        return num_sent

    def count_left(self) -> int:
        """Values in the file that the store is not known to have."""
        points, _ = read_points(self._path, self._offset, sys.maxsize)
        return len(select_new(points, self._last)[0])


class Journal:
    """Appends to one file, from any thread; a line cut off by a killed writer is closed first and later ignored.

    What cannot be written, to a full disk or one that is away, waits in memory for the next line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._file: io.FileIO | None = None
        self._waiting = b""
        self._broken = False

    def append(self, metrics: Mapping[str, float], step: int) -> None:
        """Write one line and return; never raises: what cannot be written is reported to the log, once."""
        try:
            values = {key: float(value) for key, value in metrics.items()}
            line = json.dumps({"step": int(step), "time": time.time_ns() // 1_000_000, "metrics": values})
        except (TypeError, ValueError) as error:
            self._report(f"Metrics of step {step} were not written: {error}")
            return
        self._write(line.encode() + b"\n")

    def flush(self) -> None:
        """Write what waits in memory, if that can be done now."""
        self._write(b"")

    def close(self) -> None:
        self.flush()
        if self._file is not None:
            self._file.close()

    def _write(self, line: bytes) -> None:
        with self._lock:
            self._waiting += line
            try:
                file = self._open()
                while self._waiting:  # of a disk that is filling up the beginning of a line may fit
                    self._waiting = self._waiting[file.write(self._waiting) or 0 :]
            except OSError as error:
                self._report(f"Metrics wait in memory, as {self.path} cannot be written: {error}")

    def _open(self) -> io.FileIO:
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            torn = _is_torn(self.path)
            self._file = io.FileIO(self.path, "ab")
            if torn:
                self._waiting = b"\n" + self._waiting
        return self._file

    def _report(self, what: str) -> None:
        if not self._broken:
            logger.warning(what)
        self._broken = True


def metric_prefix(*parts: str, attempt: int = 1) -> str:
    """What the names of a model's metrics begin with. A training that is begun again counts its steps anew: under the
    names of the first ``attempt`` one curve would be drawn over the other, without the steps that both have."""
    named = (*parts, f"attempt-{attempt}" if attempt > 1 else "")
    return "".join(f"{part}/" for part in named if part)


def write_history(path: Path, histories: Mapping[str, Iterable[Mapping[str, float]]]) -> None:
    """Write what models' training reported as a metrics file: the writer's own may lie on a node that is gone.

    ``histories``: reports by model, each with its ``step`` and, from the second on, its ``attempt``; the student's
    names are plain, others get a prefix.
    """
    journal = Journal(path)
    for kind, history in histories.items():
        for report in history:
            prefix = metric_prefix("" if kind == "student" else kind, attempt=int(report.get("attempt", 1)))
            metrics = {f"{prefix}{k}": v for k, v in report.items() if "/" in k}
            journal.append(metrics, int(report["step"]))
    journal.close()


def read_points(path: Path, offset: int, at_least: int) -> tuple[list[Point], int]:
    """Points of whole lines from a byte offset on, until there are ``at_least`` so many; and the offset to go on at."""
    points: list[Point] = []
    if not path.exists():
        return points, offset
    with path.open("rb") as file:
        file.seek(offset)
        while len(points) < at_least and (line := file.readline()).endswith(b"\n"):
            offset += len(line)
            points.extend(_parse(line))
    return points, offset


def select_new(points: Iterable[Point], last: Mapping[str, int]) -> tuple[list[Point], dict[str, int]]:
    """Points beyond the last known step of their key, and the last steps once these are stored.

    A resumed run repeats steps since its checkpoint; the first value of a (key, step) is the one that counts.
    """
    ahead, fresh = dict(last), []
    for point in points:
        if point.step > ahead.get(point.key, -1):
            ahead[point.key] = point.step
            fresh.append(point)
    return fresh, ahead


def metric_name(name: str) -> str:
    """The name as MLflow takes it: letters, digits and ``_ - . : /`` and space, no empty or dotted path part."""
    parts = (part for part in re.sub(r"[^\w.\- :/]", "_", name).split("/") if part not in ("", ".", ".."))
    return "/".join(parts)[:NAME_LENGTH] or "_"


def _parse(line: bytes) -> Iterator[Point]:
    try:
        record = json.loads(line)
        timestamp, step, metrics = int(record["time"]), int(record["step"]), dict(record["metrics"])
    except (ValueError, KeyError, TypeError):
        return  # cut off by a kill; the resumed run logs these steps again
    for key, value in metrics.items():
        if not math.isinf(value):  # MLflow would turn it into 1.8e308, which flattens every chart; nan it keeps
            yield Point(metric_name(key), float(value), timestamp, step)


def _is_torn(path: Path) -> bool:
    if not path.exists() or path.stat().st_size == 0:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"
