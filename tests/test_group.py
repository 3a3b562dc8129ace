"""A worker group seen from outside: how its ranks reach each other, end together, and how the driver watches them."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch
from toy import run_ranks

from raydistill.artifacts import Owner, Storage
from raydistill.board import REMOTE_LOOK_S, Board
from raydistill.cluster import has_gpu
from raydistill.errors import ArtifactError, Interrupted
from raydistill.train import worker
from raydistill.train.group import Group
from raydistill.train.worker import await_end, backend


def come(alone: int) -> tuple[bool, bool]:
    group = Group()
    together = group.all_come("first", 20.0)
    return together, group.all_come("second", 0.5) if group.rank == alone else group.all_come("third", 0.1)


def test_a_rank_that_comes_alone_is_told_so(tmp_path: Path) -> None:
    assert run_ranks(come, 2, tmp_path, 1) == [(True, False), (True, False)]
    assert Group().all_come("error", 0.0)


@pytest.mark.parametrize(
    ("gpus", "num_workers", "has_nccl", "expected"),
    [
        (0.0, 2, True, "gloo"),
        (1.0, 2, True, "nccl"),
        (1.0, 2, False, "gloo"),
        (0.5, 1, True, "nccl"),
        (0.5, 2, True, "gloo"),  # nccl: "Duplicate GPU detected"
        (2.0, 2, True, "nccl"),
    ],
)
def test_workers_that_share_a_gpu_do_without_nccl(
    gpus: float, num_workers: int, has_nccl: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: has_nccl)
    assert backend(gpus, num_workers) == expected


@pytest.mark.parametrize(("sees", "given", "expected"), [(True, [], False), (True, [0], True), (False, [], False)])
def test_what_asked_for_no_gpu_uses_none(
    sees: bool, given: list[int], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: sees)
    monkeypatch.setattr("ray.get_gpu_ids", lambda: given)
    assert has_gpu() is expected


class Away(Board):
    """A board whose storage fails now and then."""

    answers: list[Any]

    def read(self) -> dict[str, Any] | None:
        answer = self.answers.pop(0) if self.answers else None
        if isinstance(answer, Exception):
            raise answer
        return answer


def watch(board: Board, stop: threading.Event, ends_after: int) -> list[str]:
    """The phases that are shown until the group ends, which it does when it was looked at so often."""
    fitting: Future[None] = Future()
    shown: list[str] = []
    looks = iter(range(1000))

    def look() -> None:
        if next(looks) == ends_after:
            fitting.set_result(None)

    await_end(fitting, board, lambda entry: shown.append(entry["phase"]), stop, look)
    return shown


def make_board(folder: Path) -> Away:
    storage = Storage(str(folder))
    board = Away(storage, ("runs", "r"), Owner.acquire(storage, "runs", "r"))
    board.look_s, board.answers = 0.0, []
    return board


def test_progress_that_cannot_be_read_ends_no_run(tmp_path: Path) -> None:
    board = make_board(tmp_path)
    board.answers = [None, {"phase": "train"}, ArtifactError("away"), {"phase": "evaluate"}]
    assert watch(board, threading.Event(), 3) == ["train", "train", "evaluate"]


def test_a_group_that_was_asked_to_stop_is_given_time_and_no_more(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(worker, "STOP_SECONDS", 1.0)
    board, stop = make_board(tmp_path), threading.Event()
    board.answers = [{"phase": "train"}]
    stop.set()
    started = time.monotonic()
    with pytest.raises(Interrupted, match="did not answer in time"):
        watch(board, stop, 900)
    assert time.monotonic() - started >= 1.0
    assert Board(board.storage, board.run, board.owner).should_stop()


def test_a_group_that_has_not_begun_is_not_waited_for(tmp_path: Path) -> None:
    board, stop = make_board(tmp_path), threading.Event()
    stop.set()
    with pytest.raises(Interrupted, match="before its workers started"):
        watch(board, stop, 900)


def test_a_wish_to_stop_is_looked_for_more_often_than_progress_is_written(tmp_path: Path) -> None:
    storage = Storage("memory://group-test")
    board = Board(storage, ("runs", "r"), Owner.acquire(storage, "runs", "r"))
    assert board.look_s == REMOTE_LOOK_S < board.interval_s
