"""A worker group seen from outside: how its ranks reach each other, end together, and how the driver watches them."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from kit.ranks import run_ranks
from kit.tiny import save_tiny
from safetensors.torch import load_file
from torch import nn

from raydistill.cluster import group as group_module
from raydistill.cluster.connection import has_gpu
from raydistill.cluster.device import Device
from raydistill.cluster.group import Group
from raydistill.errors import ArtifactError, Interrupted, RaydistillError
from raydistill.pipeline import worker
from raydistill.pipeline.worker import await_end, backend, notes_on_device
from raydistill.storage.board import REMOTE_LOOK_S, Board
from raydistill.storage.ownership import Owner
from raydistill.storage.storage import Storage


def come(alone: int) -> tuple[bool, bool]:
    group = Group()
    together = group.all_come("first", 20.0)
    return together, group.all_come("second", 0.5) if group.rank == alone else group.all_come("third", 0.1)


def test_a_rank_that_comes_alone_is_told_so(tmp_path: Path) -> None:
    assert run_ranks(come, 2, tmp_path, 1) == [(True, False), (True, False)]
    assert Group().all_come("error", 0.0)


def parameters_of(rank: int) -> list[nn.Parameter]:
    """Gradients that both ranks have, one has, none has; of two kinds; 24, 24, 16, -, 16 and 12 bytes."""
    shapes = [(2, 3), (3, 2), (2,), (4,), (4,), (3,)]
    dtypes = [torch.float32, torch.float32, torch.float64, torch.float32, torch.float32, torch.float32]
    made = [nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape, dtype in zip(shapes, dtypes, strict=True)]
    for i, ranks in enumerate([(0, 1), (0,), (0, 1), (), (1,), (0, 1)]):
        if rank in ranks:
            made[i].grad = torch.arange(made[i].numel(), dtype=dtypes[i]).view_as(made[i]) + 10 * i + 100 * rank
    return made


def collectives(folder: Path) -> dict[str, Any]:
    """What each rank gets from each collective."""
    group = Group()
    found: dict[str, Any] = {"first": group.is_first, "size": group.size}
    found["sum"] = group.sum([2.0**53 - 2 if group.is_first else 1.0, 0.5])
    found["broadcast"] = group.broadcast({"of": group.rank})
    found["gather"] = group.gather(f"rank {group.rank}")
    calls: list[int] = []
    reduce = torch.distributed.all_reduce
    for name, limit in (("one bucket", group_module.BUCKET_BYTES), ("buckets", 40)):
        parameters = parameters_of(group.rank)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.distributed, "all_reduce", lambda flat: (calls.append(len(flat)), reduce(flat))[1])
            patch.setattr(group_module, "BUCKET_BYTES", limit)
            group.sum_gradients(iter(parameters))
        found[name] = [None if p.grad is None else p.grad.tolist() for p in parameters]
        found[f"{name}, numbers a call"] = calls.copy()
        calls.clear()
    model = nn.BatchNorm1d(2)
    with torch.no_grad():
        for tensor in (model.weight, model.running_mean):
            tensor.fill_(group.rank + 1)  # type: ignore[operator]
    group.synchronize(model)
    found["synchronized"] = {name: value.tolist() for name, value in model.state_dict().items()}
    if group.rank == 1:
        time.sleep(0.3)
        (folder / "late").touch()
    group.barrier()
    found["waited"] = (folder / "late").exists()
    return found


def test_collectives_of_two_ranks(tmp_path: Path) -> None:
    first, second = run_ranks(collectives, 2, tmp_path, tmp_path)
    assert (first.pop("first"), second.pop("first")) == (True, False)
    assert first == second
    assert first["size"] == 2
    assert first["sum"] == [2.0**53 - 1, 1.0]
    assert first["broadcast"] == {"of": 0}
    assert first["gather"] == ["rank 0", "rank 1"]
    both = [[p.grad for p in parameters_of(rank)] for rank in (0, 1)]
    summed = [sum(g for g in pair if g is not None) for pair in zip(*both, strict=True)]
    for name in ("one bucket", "buckets"):
        assert first[name] == [None if isinstance(total, int) else total.tolist() for total in summed]
    assert first["one bucket, numbers a call"] == [6, 6 + 6 + 4 + 3, 2]  # who has what; then one call a dtype
    assert first["buckets, numbers a call"] == [6, 6 + 6, 2, 4 + 3]
    assert first["synchronized"] == {
        **{"weight": [1.0, 1.0], "bias": [0.0, 0.0], "running_mean": [1.0, 1.0], "running_var": [1.0, 1.0]},
        "num_batches_tracked": 0,
    }
    assert first["waited"]


def meetings(group: Group) -> int:
    return torch.distributed.distributed_c10d._get_default_store().add(f"meetings/{group.rank}", 0)


def waits(seconds: float) -> dict[str, Any]:
    """What each rank gets where rank 0 is at work for longer than a collective may last."""
    torch.distributed.distributed_c10d._set_pg_timeout(timedelta(seconds=1.0))
    group, model = Group(), nn.Linear(1, 1)
    calls = {
        "any": lambda: group.any(group.is_first),
        "barrier": group.barrier,
        "broadcast": lambda: group.broadcast(group.rank),
        "gather": lambda: group.gather(group.rank),
        "synchronize": lambda: group.synchronize(model),
        "meet": group.meet,
    }
    found = {}
    for name, call in calls.items():
        if group.is_first and name in ("any", "gather"):
            time.sleep(seconds)
        found[name] = call(), meetings(group)
        group = Group()  # another one of the same processes
    group_module.HUNG_SECONDS, group_module.TELL_SECONDS = 0.6, 0.1
    if group.is_first:
        for _ in range(10):
            time.sleep(0.1)
            group.at_work()
    group.meet()
    try:
        if not group.is_first:
            group.meet()
    except RaydistillError as error:
        found["hung"] = str(error)
    group.all_come("end", 20.0)
    return found


def test_ranks_wait_for_each_other_longer_than_a_collective_may_last(tmp_path: Path) -> None:
    first, second = run_ranks(waits, 2, tmp_path, 1.4)
    assert second.pop("hung").startswith("Worker 0 has not got on for 0.0 hours, so it is taken for hung.")
    assert first == second
    results, met = zip(*first.values(), strict=True)
    assert results == (True, None, 0, [0, 1], None, None)
    assert met == (1, 2, 3, 4, 5, 6)


def test_one_process_needs_no_collective() -> None:
    group, parameter = Group(), nn.Parameter(torch.ones(2))
    assert (group.rank, group.size, group.is_first, group.device) == (0, 1, True, torch.device("cpu"))
    assert group.sum((1.5, 2)) == [1.5, 2]
    assert group.broadcast("x") == "x"
    assert group.gather("x") == ["x"]
    group.barrier()
    group.synchronize(nn.Linear(2, 2))
    group.sum_gradients([parameter])
    assert parameter.grad is None


@pytest.mark.parametrize(("kind", "expected"), [("nccl", "meta"), ("gloo", "cpu")])
def test_only_nccl_speaks_from_device_to_device(kind: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "get_backend", lambda: kind)
    assert Group(torch.device("meta"))._communication_device() == torch.device(expected)


@pytest.mark.parametrize(
    ("gpus", "num_workers", "expected"),
    [
        (0.0, 2, "gloo"),
        (1.0, 2, "nccl"),
        (0.5, 1, "nccl"),
        (0.5, 2, "gloo"),  # nccl: "Duplicate GPU detected"
        (2.0, 2, "nccl"),
    ],
)
@pytest.mark.parametrize("has_nccl", [True, False])
def test_workers_that_share_a_gpu_do_without_nccl(
    gpus: float, num_workers: int, expected: str, has_nccl: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever torch the driver has: on a head without GPUs it is often one for CPUs."""
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: has_nccl)
    assert backend(gpus, num_workers) == expected


def test_a_gpu_that_is_not_used_is_told() -> None:
    """As where the nodes' image has a torch for CPUs: the run is a slow one, and of another dtype than it need be."""
    (note,) = notes_on_device(Device("cpu", "bfloat16"), [0])
    assert note.startswith("Workers were given GPUs that their torch cannot use, and computed on CPUs.")
    assert notes_on_device(Device("cuda:0", "bfloat16"), [0]) == notes_on_device(Device("cpu", "float32"), []) == []


class Workers:
    """Stands for Ray's worker group: each worker answers as its own torch would."""

    def __init__(self, *have_nccl: bool) -> None:
        self.have_nccl = have_nccl

    def execute(self, question: Any) -> list[Any]:
        return list(self.have_nccl) if question is torch.distributed.is_nccl_available else ["10.0.0.1"]


@pytest.mark.parametrize(
    ("wanted", "have_nccl", "taken"),
    [
        ("nccl", (True, True), "nccl"),
        ("nccl", (True, False), "gloo"),  # the image of one node has a torch for CPUs
        ("gloo", (True, True), "gloo"),
    ],
)
def test_the_workers_own_torch_says_whether_there_is_nccl(
    wanted: str, have_nccl: tuple[bool, ...], taken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from raydistill.cluster.hosts import Backend, HostsConfig

    started: list[str] = []
    monkeypatch.setattr(Backend.__mro__[1], "on_start", lambda self, group, config: started.append(config.backend))
    Backend().on_start(Workers(*have_nccl), HostsConfig(backend=wanted))
    assert started == [taken]


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


def watch(board: Board, stop: threading.Event, ends_after: int, **more: Any) -> list[str]:
    """The phases that are shown until the group ends, which it does when it was looked at so often."""
    fitting: Future[None] = Future()
    shown: list[str] = []
    looks = iter(range(1000))

    def look() -> None:
        if next(looks) == ends_after:
            fitting.set_result(None)

    await_end(fitting, board, lambda entry: shown.append(entry["phase"]), stop, look, **more)
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


def test_the_time_to_stop_grows_with_the_checkpoint(tmp_path: Path, monkeypatch: Any) -> None:
    """Of the largest of the models that a run begins with; where one alone is known, of that."""
    small, large = save_tiny(tmp_path / "small", "bert"), save_tiny(tmp_path / "large", "bert", num_layers=6)
    weights = sum(tensor.numel() for tensor in load_file(large / "model.safetensors").values())
    lead = SimpleNamespace(model=str(small), revision=None, trust_remote_code=False)
    teacher = SimpleNamespace(config=SimpleNamespace(lead=lead))
    job: Any = SimpleNamespace(teachers=(teacher,), models={(str(large), None, False): None})
    assert worker.stop_seconds(job) == worker.STOP_SECONDS
    monkeypatch.setattr(worker, "CHECKPOINT_BYTES_PER_SECOND", 12 * weights / 90)
    assert worker.stop_seconds(job) == pytest.approx(90)
    board, stop = make_board(tmp_path), threading.Event()
    board.answers = [{"phase": "train"}]
    stop.set()
    monkeypatch.setattr(worker, "STOP_SECONDS", 0.1)
    assert watch(board, stop, 3, patience=90.0) == ["train"] * 4  # the group ends by itself, with its checkpoint


def test_a_group_that_has_not_begun_is_not_waited_for(tmp_path: Path) -> None:
    board, stop = make_board(tmp_path), threading.Event()
    stop.set()
    with pytest.raises(Interrupted, match="before its workers started"):
        watch(board, stop, 900)


def test_a_request_to_stop_is_looked_for_more_often_than_progress_is_written(tmp_path: Path) -> None:
    storage = Storage("memory://group-test")
    board = Board(storage, ("runs", "r"), Owner.acquire(storage, "runs", "r"))
    assert board.look_s == REMOTE_LOOK_S < board.interval_s
