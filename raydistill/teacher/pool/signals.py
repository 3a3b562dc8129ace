"""Signals from a pool of teachers, as a training worker asks for them: ahead of the student, by a budget of bytes."""

from __future__ import annotations

import itertools
import time
from collections import Counter, deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
from torch import Tensor
from transformers import PreTrainedConfig

from raydistill.data.batches import Batch
from raydistill.errors import RaydistillError, TeacherError
from raydistill.models.signals import Signal, State
from raydistill.teacher.pool.packing import unpack
from raydistill.teacher.pool.teachers import LOST, Complaint, is_final, was_preempted
from raydistill.teacher.signals import Signals

WAIT_SECONDS = 1.0
REFRESH_SECONDS = 2.0
MAX_FAILURES = 3
"""Teachers that may fail at one micro-batch: one of them may have a bad device, or too small a one."""
MAX_DEATHS = 10
"""Teachers that may die of one micro-batch, preemptions apart: what kills every teacher ends the run."""


@dataclass(frozen=True)
class PoolFeed:
    """What a training worker is handed; picklable."""

    directory: Any
    max_ahead_bytes: int

    def signals(
        self,
        needs: Collection[Signal],
        teacher: PreTrainedConfig,
        lengths: np.ndarray,
        rank: int,
        states: Sequence[State] = (),
    ) -> PoolSignals:
        """What the teachers say about rows of the training split; ``lengths``: tokens of each of its rows; ``states``:
        those of teachers that read pictures."""
        widths = {signal: signal.width(teacher, states) for signal in needs}
        return PoolSignals(self.directory, widths, lengths, self.max_ahead_bytes, rank, states)

    def close(self) -> None:
        """Say that no more signals will be asked for."""
        self.directory.close.remote()


@dataclass(eq=False)
class Request:
    """A micro-batch whose signals are wanted."""

    row_ids: np.ndarray
    bytes: int
    teacher: int = -1
    answer: Any = None
    """Ray's promise; None while no teacher has it."""
    values: dict[Signal, Tensor] | None = None
    deaths: int = 0
    failures: int = 0


class PoolSignals(Signals):
    """Asks the teachers that the directory knows; the work of one that dies goes to another.

    A step's signals are asked for one step before it at the latest, and earlier while all that was asked for in advance
    stays within ``max_ahead_bytes``. ``widths`` and ``lengths`` as of ``PoolFeed.signals``. Not for several threads.
    """

    def __init__(
        self,
        directory: Any,
        widths: Mapping[Signal, int],
        lengths: np.ndarray,
        max_ahead_bytes: int,
        rank: int,
        states: Sequence[State] = (),
    ) -> None:
        self._rank, self._states = rank, states
        self.directory, self.widths, self.lengths, self.max_ahead_bytes = directory, widths, lengths, max_ahead_bytes
        self.needs = frozenset(widths)
        self._teachers: dict[int, Any] = {}
        self._gone: set[int] = set()
        self._load: Counter[int] = Counter()
        self._used: dict[int, int] = {}
        """When, in requests, a teacher was last asked."""
        self._turns = itertools.count(1)
        self._refreshed_at = -1e9
        self._asked: Any = None
        self._steps: Iterator[list[np.ndarray]] = iter(())
        self._next: list[np.ndarray] | None = None
        self._ahead: deque[list[Request]] = deque()
        self._current: list[Request] = []

    def foresee(self, steps: Iterator[list[np.ndarray]]) -> None:
        self._steps, self._next = steps, next(steps, None)
        self._ahead.clear()
        self._current = []

    def wait(self, parts: Sequence[np.ndarray]) -> bool:
        if not same_rows(self._current, parts):
            self._turn_to(parts)
        self._look_ahead()
        return self._collect(self._current, WAIT_SECONDS)

    def read(self, batch: Batch) -> dict[Signal, Tensor]:
        row_ids = batch.row_ids
        found = next((r for r in self._current if np.array_equal(r.row_ids, row_ids)), None)
        request = found or self._request(row_ids)
        while not self._collect([request], WAIT_SECONDS):
            pass
        if found is not None:
            self._current.remove(found)
        assert request.values is not None
        return request.values

    def _turn_to(self, parts: Sequence[np.ndarray]) -> None:
        """Make these the present step's requests: those that were sent ahead, or new ones."""
        if not self._ahead:
            self._send_step()
        while self._ahead and not same_rows(self._ahead[0], parts):
            self._ahead.popleft()  # a step in which this rank has no rows is not asked about
        self._current = self._ahead.popleft() if self._ahead else [self._request(row_ids) for row_ids in parts]

    def _look_ahead(self) -> None:
        """Send the next step's requests, and more while their bytes allow."""
        while self._next is not None:
            waiting = sum(request.bytes for step in self._ahead for request in step)
            size = sum(map(self._bytes, self._next))
            if self._ahead and waiting + size > self.max_ahead_bytes:
                return
            self._send_step()

    def _send_step(self) -> None:
        if self._next is not None:
            self._ahead.append([self._request(row_ids) for row_ids in self._next])
            self._next = next(self._steps, None)

    def _bytes(self, row_ids: np.ndarray) -> int:
        """Of the signals of these rows, in float32."""
        rows, tokens = len(row_ids), int(self.lengths[row_ids].sum())
        return sum(
            4 * width * (signal.num_positions(rows, tokens, self._states) if signal.is_token_level else rows)
            for signal, width in self.widths.items()
        )

    def _request(self, row_ids: np.ndarray) -> Request:
        request = Request(row_ids, self._bytes(row_ids))
        self._send(request)
        return request

    def _send(self, request: Request) -> None:
        """Give the request to the teacher with the least to do; it stays here where there is none."""
        if not self._teachers:
            self._refresh()
        if self._teachers:
            request.teacher = min(self._teachers, key=self._preference)
            self._load[request.teacher] += 1
            self._used[request.teacher] = next(self._turns)
            actor = self._teachers[request.teacher]
            request.answer = actor.signals.remote(request.row_ids, self.needs)

    def _preference(self, number: int) -> tuple[int, int, int]:
        """Least of the teacher to ask: with the least to do for this rank, then that it has not asked for longest. Each
        rank begins with another one."""
        return self._load[number], self._used.get(number, 0), (number - self._rank) % len(self._teachers)

    def _collect(self, requests: Sequence[Request], seconds: float) -> bool:
        """Wait up to so many seconds for the answers; whether all are there."""
        until = time.monotonic() + seconds
        while True:
            self._refresh()
            missing = [request for request in requests if request.values is None]
            if not missing:
                return True
            for request in missing:
                if request.answer is None:
                    self._send(request)
            left = until - time.monotonic()
            asked = {request.answer: request for request in missing if request.answer is not None}
            if left <= 0:
                return False
            if not asked:
                time.sleep(min(left, 0.2))
                continue
            for answer in ray.wait(list(asked), num_returns=len(asked), timeout=min(left, 0.5))[0]:
                self._take(asked[answer])

    def _take(self, request: Request) -> None:
        if request.teacher in self._teachers:
            self._load[request.teacher] -= 1
        answer, request.answer = request.answer, None
        try:
            request.values = unpack(ray.get(answer))
        except ray.exceptions.RayTaskError as error:
            self._complain(request, error)
        except ray.exceptions.ActorUnavailableError:
            self._drop(request.teacher)  # the directory names it again, if it is only the network
        except LOST as error:
            request.deaths += not was_preempted(error)
            if request.deaths >= MAX_DEATHS:
                raise TeacherError(
                    f"{request.deaths} teachers died of the same {len(request.row_ids)} rows, the last so: {error}. "
                    "If it is for memory, lower train.tokens_per_micro_batch or raise teacher.pool.resources."
                ) from error
            self._gone.add(request.teacher)
            self._drop(request.teacher)

    def _complain(self, request: Request, error: ray.exceptions.RayTaskError) -> None:
        """Have the driver replace a teacher that failed at a request, which goes to another, or end the run."""
        cause = error.cause
        text = (
            str(cause)
            if isinstance(cause, RaydistillError)
            else f"A teacher failed: {type(cause).__name__}: {cause}. For memory lower train.tokens_per_micro_batch or "
            "raise teacher.pool.resources."
        )
        request.failures += 1
        is_last = is_final(cause) or request.failures >= MAX_FAILURES
        self.directory.complain.remote(Complaint(request.teacher, text, is_last))
        if is_last:
            raise TeacherError(text) from error
        self._gone.add(request.teacher)
        self._drop(request.teacher)

    def _refresh(self) -> None:
        """Ask the directory who is there, now and then, without waiting for it while some teacher is known."""
        if self._asked is None:
            if time.monotonic() - self._refreshed_at < (REFRESH_SECONDS if self._teachers else 0.2):
                return
            self._asked = self.directory.teachers.remote()
        if not ray.wait([self._asked], timeout=0 if self._teachers else 0.2)[0]:
            return
        answer, self._asked, self._refreshed_at = self._asked, None, time.monotonic()
        try:
            known = ray.get(answer)
        except ray.exceptions.ActorDiedError as error:
            raise TeacherError("The driver of this run, which looks after the teachers, is gone.") from error
        except LOST:
            return  # the network: those that are known still answer
        teachers = {number: actor for number, actor in known.items() if number not in self._gone}
        for number in self._teachers.keys() - teachers.keys():
            self._drop(number)
        self._teachers = teachers

    def _drop(self, number: int) -> None:
        """Nothing more goes to this teacher, and what it has not answered goes to others."""
        self._teachers.pop(number, None)
        self._load.pop(number, None)
        for request in [*self._current, *(request for step in self._ahead for request in step)]:
            if request.teacher == number and request.answer is not None and request.values is None:
                if ray.wait([request.answer], timeout=0, fetch_local=False)[0]:
                    continue  # answered, or failed: it tells by itself
                request.answer = None
                self._send(request)


def same_rows(requests: Sequence[Request], parts: Sequence[np.ndarray]) -> bool:
    return len(requests) == len(parts) and all(
        np.array_equal(request.row_ids, row_ids) for request, row_ids in zip(requests, parts, strict=True)
    )
