"""Recording with a pool: the driver hands shards to the teachers that are there, and seals the artefacts."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from raydistill.cluster.group import Group
from raydistill.data.rows import Rows
from raydistill.errors import Interrupted, RaydistillError
from raydistill.models.signals import Signal
from raydistill.storage.artifacts import Artifact
from raydistill.storage.board import Show
from raydistill.storage.ownership import Owner
from raydistill.teacher.pool.teachers import LOST, TeacherPool, is_final, was_preempted
from raydistill.teacher.record import STOPPED, Files, find_missing, find_present, seal
from raydistill.teacher.store import cut_shards
from raydistill.teacher.verify import verify

AT_ONCE = 2
"""Shards a teacher holds: the one it works on and the next, so that it never waits for the driver."""
POLL_SECONDS = 0.2
MAX_FAILURES = 5
"""Teachers that may die of one shard, or fail at it."""
MAX_REFUSALS = 2
"""Teachers that may find storage away, each after waiting for it, or say that what they record does not fit there."""


@dataclass(frozen=True)
class Shard:
    """One shard of a split and the signals that lack it."""

    split: str
    index: int
    rows: int
    wanted: Mapping[Signal, Artifact]


def record_in_pool(
    pool: TeacherPool,
    rows: Mapping[str, Rows],
    wanted: Mapping[str, Mapping[Signal, Artifact]],
    *,
    owner: Owner,
    stop: threading.Event,
    show: Show,
) -> None:
    """Record the ``wanted`` signals of each split of ``rows`` and seal their artefacts.

    What is on storage already is kept; the shard of a teacher that dies goes to another. Raises Interrupted when asked
    to stop; finished shards stay and are not computed again.
    """
    for split, signals in wanted.items():
        shards = cut_shards(rows[split].lengths)
        found = verify([*signals.values()], Group(), should_stop=stop.is_set)
        present = find_present(signals, found)
        missing = find_missing(len(shards), present)
        todo = [Shard(split, i, len(shards[i]), {s: signals[s] for s in lacking}) for i, lacking in missing.items()]
        seal(signals, present, [Recording(pool, todo, [*signals], stop, show).run()], owner)


class Recording:
    """The shards of one split on their way through the pool."""

    def __init__(
        self, pool: TeacherPool, todo: list[Shard], signals: Sequence[Signal], stop: threading.Event, show: Show
    ) -> None:
        self.pool, self.stop, self.show = pool, stop, show
        self.todo = deque(todo)
        self.total = sum(shard.rows for shard in todo)
        self.given: dict[Any, tuple[int, Shard]] = {}
        """Ray's promise → teacher, shard."""
        self.failures: Counter[int] = Counter()
        self.refusals: Counter[int] = Counter()
        self.gone: set[int] = set()
        """Teachers that died or failed; nothing more is given to them."""
        self.made: Files = {signal: {} for signal in signals}

    def run(self) -> Files:
        started, done = time.monotonic(), 0
        while self.todo or self.given:
            if self.stop.is_set():
                raise Interrupted(STOPPED)
            self.pool.supervise()
            self.give()
            if not self.given:
                time.sleep(POLL_SECONDS)
                continue
            for answer in ray.wait(list(self.given), timeout=POLL_SECONDS)[0]:
                done += self.take(answer)
                rate = done / (time.monotonic() - started)
                entry = {"phase": "record", "done": done, "total": self.total, "unit": "rows", "rate": rate}
                self.show({**entry, "note": f"{len(self.pool.ready)} teachers"})
        return self.made

    def give(self) -> None:
        """Hand shards to teachers, to those with the fewest first."""
        holds = Counter(number for number, _ in self.given.values())
        ready = {number: actor for number, actor in self.pool.ready.items() if number not in self.gone}
        while self.todo and ready:
            number = min(ready, key=lambda number: holds[number])
            if holds[number] >= AT_ONCE:
                return
            shard = self.todo.popleft()
            answer = ready[number].record.remote(shard.split, shard.index, dict(shard.wanted))
            self.given[answer] = (number, shard)
            holds[number] += 1

    def take(self, answer: Any) -> int:
        """Note what a teacher has recorded, or put its shard back; the rows that are done now."""
        number, shard = self.given.pop(answer)
        try:
            recorded = ray.get(answer)
        except (ray.exceptions.RayTaskError, *LOST) as error:
            cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
            if is_final(cause):
                raise cause from error
            self.put_back(number, shard, cause)
            return 0
        for signal, (name, info) in recorded.items():
            self.made[signal][name] = info
        return shard.rows

    def put_back(self, number: int, shard: Shard, error: BaseException) -> None:
        """Let another teacher try: this one is gone, or fails. RaydistillError after five of them."""
        self.todo.appendleft(shard)
        if isinstance(error, ray.exceptions.ActorUnavailableError) or number in self.gone:
            return
        self.gone.add(number)
        if was_preempted(error):
            return
        if not isinstance(error, LOST):
            self.pool.replace(number, f"{type(error).__name__}: {error}")
        if isinstance(error, RaydistillError):
            self.refusals[shard.index] += 1
            if self.refusals[shard.index] >= MAX_REFUSALS:
                raise error
            return
        self.failures[shard.index] += 1
        if self.failures[shard.index] >= MAX_FAILURES:
            raise RaydistillError(
                f"{MAX_FAILURES} attempts to record shard {shard.index} of {shard.split} failed, the last with "
                f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}. Give each teacher more room with "
                "teacher.pool.resources. Finished shards are kept; the same command goes on from there."
            ) from error
