"""The board: progress and the request to stop, each for the owner it is meant for."""

from __future__ import annotations

import signal
import threading

import pytest

from raydistill.errors import Interrupted
from raydistill.pipeline.stopping import stoppable
from raydistill.storage.board import Board
from raydistill.storage.ownership import Owner
from raydistill.storage.storage import Storage


def test_a_request_to_stop_reaches_its_owner_only(tmp_path):
    storage, run = Storage(str(tmp_path)), ("runs", "r")
    old = Board(storage, run, Owner.acquire(storage, *run))
    old.request_stop()
    new = Board(storage, run, Owner.acquire(storage, *run))
    assert old.should_stop()
    assert not new.should_stop()


def test_progress_of_an_earlier_owner_is_not_shown(tmp_path):
    storage, run = Storage(str(tmp_path)), ("runs", "r")
    first = Board(storage, run, Owner.acquire(storage, *run))
    first.post("record", 3, 10, "rows", 1.5, "train", force=True)
    entry = first.read()
    assert entry is not None
    assert (entry["phase"], entry["done"], entry["total"], entry["rate"]) == ("record", 3, 10, 1.5)
    assert Board(storage, run, Owner.acquire(storage, *run)).read() is None


def test_progress_is_throttled(tmp_path):
    storage, run = Storage(str(tmp_path)), ("runs", "r")
    board = Board(storage, run, Owner.acquire(storage, *run))
    board.interval_s = 60.0
    for done in range(5):
        board.post("record", done, 10, "rows", 0.0)
    assert (board.read() or {})["done"] == 0


def stop_twice(said: list[str]) -> None:
    with stoppable(lambda entry: said.append(entry["phase"])) as stop:
        stop.is_obeyed = True
        signal.raise_signal(signal.SIGINT)
        assert stop.is_set()
        said.append("still running")
        signal.raise_signal(signal.SIGTERM)


def test_a_signal_is_obeyed_at_the_next_step_and_a_second_one_at_once():
    said: list[str] = []
    with pytest.raises(Interrupted, match="The same command goes on from there"):
        stop_twice(said)
    assert said == ["stop", "still running"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_signal_ends_what_does_not_look_at_it():
    with pytest.raises(Interrupted), stoppable(lambda entry: None):
        signal.raise_signal(signal.SIGTERM)


def test_in_another_thread_signals_stay_with_the_program():
    before = signal.getsignal(signal.SIGINT)

    def work() -> None:
        with stoppable(lambda entry: None):
            assert signal.getsignal(signal.SIGINT) is before

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
