"""One process at a time, and the newest owner only, also after kill -9."""

from __future__ import annotations

import pickle
import time
import uuid
from contextlib import ExitStack

import pytest
from kit.processes import kill, say_go, start, wait_for

from raydistill.errors import ArtifactError, StaleOwner
from raydistill.storage import locks
from raydistill.storage.locks import lock
from raydistill.storage.ownership import Owner
from raydistill.storage.storage import Storage

HOLD = """
    with lock(Storage(sys.argv[1]), "name", waiting=lambda: print("waiting", flush=True)):
        print("ready", flush=True)
        sys.stdin.readline()
    print("freed", flush=True)
"""


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiters of this process give up a silent lease after 1 s."""
    monkeypatch.setattr(locks, "LEASE_SECONDS", 1.0)
    monkeypatch.setattr(locks, "POLL_SECONDS", 0.05)


@pytest.mark.parametrize("place", ["local", "remote"])
def test_a_lock_admits_one_process_at_a_time(request: pytest.FixtureRequest, place: str) -> None:
    storage: Storage = request.getfixturevalue(place)
    first = start(HOLD, storage.url)
    wait_for(first)
    second = start(HOLD, storage.url)
    wait_for(second, "waiting")
    time.sleep(0.7)
    released = time.monotonic()
    say_go(first)
    wait_for(first, "freed")
    wait_for(second, "ready")
    assert time.monotonic() - released < 10  # a lease that was not released would last 20 s
    second.communicate("go\n")
    first.communicate()


@pytest.mark.parametrize("place", ["local", "remote"])
@pytest.mark.usefixtures("impatient")
def test_a_lock_is_free_once_its_holder_is_killed(request: pytest.FixtureRequest, place: str) -> None:
    storage: Storage = request.getfixturevalue(place)
    process = start(HOLD, storage.url)
    wait_for(process)
    kill(process)
    calls: list[str] = []
    begin = time.monotonic()
    with lock(storage, "name", waiting=lambda: calls.append("waiting")):
        assert time.monotonic() - begin < 15
    assert calls == ([] if storage.is_local else ["waiting"])


@pytest.mark.usefixtures("impatient")
def test_a_stalled_lease_holder_notices_that_it_lost_the_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage(f"memory://{uuid.uuid4().hex}")
    order: list[str] = []

    def stall() -> None:
        with lock(storage, "name"):  # its first beat is due after 4 s, which is longer than this waiter's patience
            with lock(storage, "name"):
                order.append("taken over")
            order.append("stalled one goes on")

    with pytest.raises(ArtifactError, match="stood still"):
        stall()
    assert order == ["taken over", "stalled one goes on"]
    with lock(storage, "name"), lock(storage, "another"):
        assert len(storage.list(".locks", "name")) == 1


@pytest.mark.usefixtures("impatient")
def test_a_lease_with_a_heartbeat_is_not_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage(f"memory://{uuid.uuid4().hex}")
    monkeypatch.setattr(locks, "HEARTBEAT_SECONDS", 0.1)

    def give_up() -> None:
        raise TimeoutError

    with lock(storage, "name"):
        begin = time.monotonic()
        waiter = locks.Lease(storage, "name")
        monkeypatch.setattr(locks.time, "sleep", lambda _: give_up() if time.monotonic() > begin + 2 else None)
        with pytest.raises(TimeoutError), waiter.held():
            pass


def test_the_newest_owner_makes_the_others_stale(storage: Storage) -> None:
    first = Owner.acquire(storage, "runs", "r1")
    first.check()
    other_run = Owner.acquire(storage, "runs", "r2")
    second = pickle.loads(pickle.dumps(Owner.acquire(storage, "runs", "r1")))
    assert (first.number, second.number, other_run.number) == (1, 2, 1)
    second.check()
    other_run.check()
    with pytest.raises(StaleOwner, match=r"number 2.*number 1"):
        first.check()
    storage.delete("runs", "r2")
    with pytest.raises(StaleOwner, match="removed"):
        other_run.check()


def test_owners_acquired_at_once_have_different_numbers(local: Storage) -> None:
    script = 'print(*[Owner.acquire(Storage(sys.argv[1]), "runs", "r").number for _ in range(40)])'
    outputs = [start(script, local.url).communicate for _ in range(3)]
    numbers = [int(number) for communicate in outputs for number in communicate(timeout=60)[0].split()]
    assert sorted(numbers) == list(range(1, 121))


@pytest.mark.usefixtures("impatient")
def test_a_number_that_is_created_late_holds_nothing() -> None:
    """A process stalls between looking and creating; others take the number, leave it, and remove it meanwhile."""
    storage, slow = (Storage(f"memory://{name}") for name in [uuid.uuid4().hex] * 2)
    order: list[str] = []
    third = locks.Lease(storage, "name")

    def stall(data: bytes, *parts: str) -> bool:
        del slow.create  # type: ignore[attr-defined]  # stalls once
        with lock(storage, "name"):
            order.append("first")
        with lock(storage, "name"):
            order.append("second")
        others.enter_context(third.held())
        created = slow.create(data, *parts)
        order.append(f"created {parts[-1]}: {created}")
        return created

    def waits() -> None:
        order.append("waits")
        others.close()

    with ExitStack() as others:
        slow.create = stall  # type: ignore[method-assign]
        late = locks.Lease(slow, "name")
        with late.held(waits):
            order.append("late")
    assert order == ["first", "second", "created 000000001.lease: True", "waits", "late"]
    assert (third.number, late.number) == (3, 4)
    assert storage.list(".locks", "name") == ["000000004.lease"]


@pytest.mark.parametrize("age", [0.0, locks.ABANDONED_SECONDS - 60, locks.ABANDONED_SECONDS + 60])
def test_a_lease_whose_heartbeat_is_old_is_free_at_first_sight(age: float) -> None:
    storage = Storage(f"memory://{uuid.uuid4().hex}")
    lease = {"holder": "gone", "beat": time.time() - age, "released": False}
    storage.write_json(lease, locks.LOCKS, "name", "000000001.lease")
    assert locks.is_held(storage, "name") == (age < locks.ABANDONED_SECONDS)
    if age > locks.ABANDONED_SECONDS:
        with lock(storage, "name", waiting=lambda: pytest.fail("it waits for a dead holder")):
            pass
