"""Waiting for room on a cluster: what is missing is said at once and every minute, and it ends."""

from __future__ import annotations

from typing import Any

import pytest
from kit.nodes import node, train

from raydistill.cluster import waiting
from raydistill.cluster.room import Node
from raydistill.cluster.waiting import Waiting
from raydistill.errors import RaydistillError
from raydistill.search.driver import waits_for_room
from raydistill.search.ledger import Trial


class Scene:
    """A cluster and a clock that the test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> None:
        self.nodes: list[Node] = []
        self.is_pending, self.now = False, 0.0
        self.notes: list[str] = []
        monkeypatch.setattr(waiting, "known_nodes", lambda: self.nodes)
        monkeypatch.setattr(waiting, "is_pending", lambda wanted: self.is_pending)
        settings = {"num_workers": 2, **settings}
        self.waiting = Waiting(
            train(**settings),
            {"CPU": 8.0, "GPU": 1.0},
            lambda entry: self.notes.append(entry["note"]),
            clock=lambda: self.now,
        )

    def look(self, now: float, is_waiting: bool = True) -> bool:
        self.now = now
        return self.waiting.look(is_waiting)


def test_what_fits_nowhere_is_said_at_once_and_every_minute_until_it_is_there(monkeypatch):
    scene = Scene(monkeypatch)
    scene.nodes = [node(8, 1)]
    assert {scene.look(second) for second in range(121)} == {True}
    lack = "The workers need 2 × (8 CPU, 1 GPU); 1 node with 8 CPU, 1 GPU hold 1 of them. Waiting, "
    assert scene.notes == [f"{lack}{left} minutes more (train.max_wait_minutes)" for left in (60, 59, 58)]
    scene.nodes = [node(8, 1), Node("trainer", {"CPU": 8.0, "GPU": 1.0}, 3, is_there=False)]  # that may come
    assert not scene.look(200.0)
    assert len(scene.notes) == 3


def test_what_others_hold_is_said_once_it_takes_longer_than_a_start(monkeypatch):
    scene = Scene(monkeypatch)
    scene.nodes, scene.is_pending = [node(16, 2)], True
    assert not scene.look(0.0)
    assert scene.look(10.0)
    assert scene.notes == [
        "The workers need 2 × (8 CPU, 1 GPU): others on the cluster have their place, or nodes are still to come. "
        "Waiting, 60 minutes more (train.max_wait_minutes)"
    ]
    assert not scene.look(11.0, is_waiting=False)
    assert not scene.look(12.0)  # a second wait begins anew


def test_it_gives_up_after_the_setting(monkeypatch):
    scene = Scene(monkeypatch, max_wait_minutes=2)
    for second in range(120):
        scene.look(second)
    with pytest.raises(RaydistillError, match=r"hold 0 of them\. The run gave up after 2 minutes \(train\.max_wait_mi"):
        scene.look(120)


def test_a_loss_later_is_waited_for_as_long(monkeypatch):
    scene = Scene(monkeypatch, max_wait_minutes=1)
    assert scene.look(0.0)
    assert not scene.look(50.0, is_waiting=False)
    assert scene.look(100.0)
    assert scene.look(159.0)
    with pytest.raises(RaydistillError):
        scene.look(160.0)


def test_the_least_of_an_elastic_group_is_enough(monkeypatch):
    scene = Scene(monkeypatch, num_workers=4, min_workers=1)
    scene.nodes = [node(8, 1)]
    assert not scene.look(0.0)


def test_zero_minutes_refuse_at_once(monkeypatch):
    with pytest.raises(RaydistillError, match="no node hold 0 of them"):
        Scene(monkeypatch, max_wait_minutes=0).look(0.0)


@pytest.mark.parametrize(
    ("states", "workers", "waits"),
    [
        (["waiting", "waiting"], 1, True),
        (["running", "waiting"], 1, False),
        (["completed", "failed"], 1, False),
        ([], 1, False),
        (["running", "waiting"], 2, True),  # its actor is there, its workers may not be
        (["reported", "running"], 2, False),
        (["completed", "waiting"], 2, True),
    ],
)
def test_a_sweep_waits_while_no_trial_has_begun(states, workers, waits):
    trials = [
        Trial(number, {}, state="running" if state == "reported" else state, history=[{}] * (state == "reported"))
        for number, state in enumerate(states)
    ]
    assert waits_for_room(trials, workers) is waits
