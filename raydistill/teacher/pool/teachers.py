"""The pool itself, in the driver: actors that are asked for, watched, and replaced when they die."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raydistill.cluster.placement import has_place
from raydistill.cluster.resources import described
from raydistill.config.teacher import Pool
from raydistill.errors import ArtifactError, RaydistillError
from raydistill.storage.board import Show

PING_SECONDS = 2.0
SILENT_SECONDS = 10.0
"""A teacher that is there within this time is not worth a word: actor and weights take 4 to 8 s."""
REMIND_SECONDS = 30.0
RETRY_SECONDS = 5.0
LOADING_SECONDS = 300.0
"""Teachers that find room at once may take so long to load."""
QUIET_SECONDS, HUNG_SECONDS = 600.0, 3600.0
"""A teacher answers once it has done the work before, at most two shards: a large one on a few CPUs may need half an
hour for them. One that is quiet so long is told of, then taken for hung."""
HUNG_LOADING_SECONDS = 1800.0
"""The same of one that has a place and loads: 18 GB at 10 MB/s."""
SLOWEST_TIMES = 10
"""Nor is one taken for hung before it was quiet so many times longer than any teacher of the pool yet."""
MAX_FAILED_STARTS = 3
"""Teachers that fail to load one after another, none being there: the next would fail as well."""
MAX_LOST_STARTS = 10
"""Teachers that are lost while they load, as by a kernel that has no memory for them; nodes may be lost, too."""

LOST = (
    ray.exceptions.ActorUnschedulableError,
    ray.exceptions.LocalRayletDiedError,
    ray.exceptions.OutOfMemoryError,
    ray.exceptions.RayActorError,
    ray.exceptions.RuntimeEnvSetupError,
    ray.exceptions.ObjectLostError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.WorkerCrashedError,
)
"""What is raised for the work of a teacher, or of a node, that is gone."""


def was_preempted(error: BaseException) -> bool:
    """Whether a teacher is gone because its node was taken away: no fault of what it worked on, as may be the end of a
    node without notice, whose memory may have been too small."""
    return isinstance(error, ray.exceptions.RayActorError) and error.preempted


def is_final(error: BaseException) -> bool:
    """Whether a teacher's error would meet every other one as well; storage may be away for a single node."""
    return isinstance(error, RaydistillError) and not isinstance(error, ArtifactError)


@dataclass(frozen=True)
class Complaint:
    """A teacher failed at its work, in words; ``is_last``: no other is to try."""

    number: int
    text: str
    is_last: bool


class Directory:
    """Where training workers ask for the teachers that are there; an actor, on the driver's node."""

    def __init__(self) -> None:
        self._teachers: dict[int, Any] = {}
        self._is_open = True
        self._complaints: list[Complaint] = []

    def publish(self, teachers: dict[int, Any]) -> None:
        self._teachers = teachers

    def teachers(self) -> dict[int, Any]:
        """Handles of the teachers by number; a number is never used again."""
        return self._teachers

    def close(self) -> None:
        self._is_open = False

    def complain(self, complaint: Complaint) -> None:
        self._complaints.append(complaint)

    def take_news(self) -> tuple[bool, list[Complaint]]:
        """Whether workers still need teachers, and the complaints since this was last asked."""
        complaints, self._complaints = self._complaints, []
        return self._is_open, complaints


@dataclass
class Member:
    """One teacher that was asked for."""

    number: int
    actor: Any
    answer: Any
    """What it was asked last: to open, later whether it is alive."""
    is_ready: bool = False
    asked_at: float = 0.0
    is_told_of: bool = False
    """Whether it was said that it does not answer."""
    placed_at: float | None = None
    """Since when it is known to have a place, in which it loads."""
    looked_at: float = -math.inf
    """When that was last asked."""


class TeacherPool:
    """Up to ``pool.max`` teachers. ``supervise`` is called now and then; leaving the context ends them all.

    ``kind(*arguments)`` makes a teacher, in an actor with ``options``. ``max_wait_minutes``: without any teacher.
    """

    def __init__(
        self,
        pool: Pool,
        options: dict[str, Any],
        kind: type,
        arguments: tuple[Any, ...],
        show: Show,
        max_wait_minutes: float = math.inf,
    ) -> None:
        self.pool, self.show, self.max_wait_minutes = pool, show, max_wait_minutes
        self._make: Any = ray.remote(kind).options(max_restarts=0, max_task_retries=0, **options)
        self._arguments = arguments
        asks = {"CPU": options.get("num_cpus", 0), "GPU": options.get("num_gpus", 0), **options.get("resources", {})}
        self._asks = described(asks)
        self._members: list[Member] = []
        self._number = 0
        self._failed_starts = self._lost_starts = 0
        self._slowest = 0.0  # s from a question to the answer, of a teacher that was there
        self._slowest_start = 0.0  # s from its place to being there
        self._begin_at = time.monotonic()  # of asking for the teachers that are missing
        self._has_begun = False
        self._missed_at: float | None = time.monotonic()
        self._said_at = -1e9
        self.directory: Any = None

    def __enter__(self) -> TeacherPool:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self.directory = ray.remote(Directory).options(num_cpus=0, max_restarts=-1, scheduling_strategy=here).remote()
        self._ask_directory()
        self.supervise()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        if self.directory is not None:
            ray.kill(self.directory)
            self.directory = None

    def close(self) -> None:
        """End all teachers: an actor that stays keeps its node from going."""
        for member in self._members:
            ray.kill(member.actor)
        self._members = []
        self.pool = self.pool.model_copy(update={"max": 0})

    @property
    def ready(self) -> dict[int, Any]:
        """The teachers that work can be given to, by number; none before ``pool.min`` are there for the first time."""
        found = {member.number: member.actor for member in self._members if member.is_ready}
        self._has_begun = self._has_begun or len(found) >= self.pool.min
        return found if self._has_begun else {}

    def supervise(self) -> None:
        """Look after the teachers: replace those that are dead or fail, publish the living, end them all once nobody
        needs them.

        Raises RaydistillError where none can be started, or several failed at the same rows.
        """
        before = self.ready
        self._look()
        is_known = self._take_news()
        if time.monotonic() >= self._begin_at:
            while len(self._members) < self.pool.max:
                self._add()
        if (now := self.ready).keys() != before.keys() or not is_known:
            self.directory.publish.remote(now)
        self._tell(now)

    def _ask_directory(self) -> None:
        self._news, self._news_at = self.directory.take_news.remote(), time.monotonic()

    def _take_news(self) -> bool:
        """Read what the directory has to tell; whether it knows the teachers: Ray brings back one that died."""
        news, is_known = None, True
        if ray.wait([self._news], timeout=0)[0]:
            try:
                news = ray.get(self._news)
            except LOST as error:
                logging.getLogger(__name__).warning(
                    "The directory of the teachers is gone: %s", str(error).splitlines()[0]
                )
                is_known = False
        elif time.monotonic() - self._news_at < SILENT_SECONDS:
            return True
        else:
            is_known = False  # a question that was asked while the directory came back may have been lost
        self._ask_directory()
        if news is not None:
            self._read(*news)
        return is_known

    def _read(self, is_open: bool, complaints: list[Complaint]) -> None:
        for complaint in complaints:
            if complaint.is_last:
                raise RaydistillError(complaint.text)
            self.replace(complaint.number, complaint.text)
        if not is_open:
            self.close()

    def replace(self, number: int, reason: str) -> None:
        """End a teacher that fails at its work; another takes its place, perhaps on another device."""
        for member in [member for member in self._members if member.number == number]:
            self._retire(member, reason)

    def _add(self) -> None:
        self._number += 1
        actor = self._make.remote(*self._arguments)
        member = Member(self._number, actor, None)
        self._ask(member)
        self._members.append(member)

    def _ask(self, member: Member) -> None:
        question = member.actor.is_alive if member.is_ready else member.actor.open
        member.answer, member.asked_at = question.remote(), time.monotonic()

    def _look(self) -> None:
        """Read what teachers have answered."""
        asked = {member.answer: member for member in self._members if member.answer is not None}
        answered = ray.wait(list(asked), num_returns=len(asked), timeout=0)[0] if asked else []
        for answer in answered:
            member = asked[answer]
            member.answer = None
            try:
                ray.get(answer)
            except ray.exceptions.ActorUnavailableError:
                continue
            except LOST as error:
                self._retire(member, str(error))
                self._count_lost(member, error)
            except ray.exceptions.RayTaskError as error:
                self._retire(member, str(error))
                self._judge(error)
            else:
                if member.is_ready:
                    self._slowest = max(self._slowest, time.monotonic() - member.asked_at)
                elif member.placed_at is not None:
                    self._slowest_start = max(self._slowest_start, time.monotonic() - member.placed_at)
                member.is_told_of = False
                member.is_ready, self._failed_starts, self._lost_starts = True, 0, 0
        for member in [member for member in self._members if member.answer is not None]:
            if member.is_ready:
                self._judge_silence(member, time.monotonic() - member.asked_at)
            elif (since := self._loads_since(member)) is not None:
                self._judge_loading(member, time.monotonic() - since)
        for member in self._members:
            if member.answer is None and time.monotonic() - member.asked_at >= PING_SECONDS:
                self._ask(member)

    def _judge_silence(self, member: Member, seconds: float) -> None:
        """Tell of a teacher that does not answer, and replace one that hangs."""
        note = f"teacher {member.number} has not answered for {seconds / 60:.0f} minutes"
        if seconds >= max(HUNG_SECONDS, SLOWEST_TIMES * self._slowest):
            self.show({"phase": "teachers", "note": f"{note} and is replaced"})
            self._retire(member, note)
        elif seconds >= max(QUIET_SECONDS, 2 * self._slowest) and not member.is_told_of:
            member.is_told_of = True
            self.show({"phase": "teachers", "note": f"{note}: its work is slow, or it hangs"})

    def _loads_since(self, member: Member) -> float | None:
        """Since when a teacher has loaded; None for one that waits for room, which may take long."""
        now = time.monotonic()
        if member.placed_at is None and now - member.looked_at >= PING_SECONDS:
            member.looked_at = now
            member.placed_at = now if has_place(member.actor) else None
        return member.placed_at

    def _judge_loading(self, member: Member, seconds: float) -> None:
        """The same of a teacher that loads."""
        note = f"teacher {member.number} has been loading for {seconds / 60:.0f} minutes"
        if seconds >= max(HUNG_LOADING_SECONDS, SLOWEST_TIMES * self._slowest_start):
            self.show({"phase": "teachers", "note": f"{note} and is replaced"})
            self._retire(member, note)
            self._count_lost(member, TimeoutError(f"{note}; look at the disk and the network of its node"))
        elif seconds >= max(QUIET_SECONDS, 2 * self._slowest_start) and not member.is_told_of:
            member.is_told_of = True
            self.show({"phase": "teachers", "note": f"{note}: its weights come slowly, or it hangs"})

    def _retire(self, member: Member, reason: str) -> None:
        logging.getLogger(__name__).warning("Teacher %d is gone: %s", member.number, reason.splitlines()[0])
        self._members.remove(member)
        ray.kill(member.actor)
        if not member.is_ready:
            self._begin_at = time.monotonic() + RETRY_SECONDS

    def _count_lost(self, member: Member, error: Exception) -> None:
        """End the run where teacher after teacher is lost while it loads."""
        self._lost_starts += not member.is_ready
        if member.is_ready or self.ready or self._lost_starts < MAX_LOST_STARTS:
            return
        raise RaydistillError(
            f"teacher.pool: {self._lost_starts} teachers in a row were lost while they loaded, the last so: "
            f"{str(error).splitlines()[0]}. If it is for memory, give each more with teacher.pool.resources "
            "(memory: 8.0e+9 asks for 8 GB)."
        ) from error

    def _judge(self, error: ray.exceptions.RayTaskError) -> None:
        """End the run where teachers fail to load again and again, and none is there."""
        self._failed_starts += 1
        if self.ready or self._failed_starts < MAX_FAILED_STARTS:
            return
        cause = error.cause
        if isinstance(cause, RaydistillError):
            raise cause
        raise RaydistillError(
            f"teacher.pool: {self._failed_starts} teachers in a row could not be loaded: {type(cause).__name__}: "
            f"{cause}. Correct teacher.model, or give each more room with teacher.pool.resources."
        ) from error

    def _tell(self, ready: dict[int, Any]) -> None:
        """Say that there is no teacher, in the beginning and then now and again, and that there is one again.

        Raises RaydistillError where there is none for too long.
        """
        now = time.monotonic()
        if ready or not self.pool.max:
            if self._missed_at is not None and self._said_at > self._missed_at:
                self.show({"phase": "teachers", "note": f"{len(ready)} of {self.pool.max} there"})
            self._missed_at = None
            return
        self._missed_at = now if self._missed_at is None else self._missed_at
        there = sum(member.is_ready for member in self._members)
        loading = sum(member.placed_at is not None and not member.is_ready for member in self._members)
        more = f", {loading} more loading" if loading else ""
        missing = f"{there} of at least {self.pool.min} there{more}, each asks for {self._asks}"
        if now - self._missed_at >= max(60 * self.max_wait_minutes, LOADING_SECONDS):
            raise RaydistillError(
                f"teacher.pool: no teachers for {(now - self._missed_at) / 60:.0f} minutes ({missing}); a run waits "
                f"{self.max_wait_minutes:g} for them (train.max_wait_minutes). Add nodes or lower "
                "teacher.pool.resources; the same command goes on from the last checkpoint."
            )
        if now - self._missed_at >= SILENT_SECONDS and now - self._said_at >= REMIND_SECONDS:
            self._said_at = now
            note = (
                f"waiting for a teacher: {missing}. Work goes on once the cluster has room; teacher.pool.resources asks"
            )
            self.show({"phase": "teachers", "note": f"{note} for less"})
