"""What plan says of the time of a run: how it is counted, and that it is near what training takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from kit.tiny import tiny_config
from kit.toy import sweep_config

from raydistill.cluster.device import Device
from raydistill.config.tree import Config
from raydistill.data.prepare import DataInfo, SplitCounts
from raydistill.data.size import Size
from raydistill.pipeline import estimate
from raydistill.pipeline.completion import Models
from raydistill.pipeline.resolve import Resolved, ResolvedTeacher
from raydistill.pipeline.status import Phase
from raydistill.pipeline.timing import (
    Sample,
    Speed,
    machine,
    seconds_per_row,
    threads,
    time_student,
    time_teacher,
    training,
)
from raydistill.storage.storage import Storage
from raydistill.tasks import TextClassification
from raydistill.train.loop import train

SPLIT_ROWS = {
    "train": SplitCounts(1000, 200, {}),
    "validation": SplitCounts(100, 100, {}),
    "test": SplitCounts(100, 100, {}),
}
SIZE = Size(
    DataInfo(
        TextClassification("abc").facts(), "", SPLIT_ROWS, has_pairs=False, removed={}, skipped={}, notes=(), doubts=()
    ),
    {"train": 12_000, "validation": 1200, "test": 1200},
    {"train": 0, "validation": 0, "test": 0},
    is_estimate=False,
)
SPEED = Speed({"": 1e-3}, online=0.0, student=3e-3)
ONLINE = Speed({"": 1e-3}, online=1e-2, student=3e-3)
LABELS = ("film", "money", "sport")


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., Config]:
    return partial(sweep_config, tmp_path)


def resolved(config: Config) -> Resolved:
    """With what a count of seconds asks for."""
    unknown: Any = None
    teacher = ResolvedTeacher("", 1.0, config, unknown, Models(tiny_config("bert"), tiny_config("bert"), None))
    return Resolved(config, (), (teacher,), unknown, SIZE.info, unknown, "cpu", "float32")


def phases_of(states: Mapping[str, str]) -> list[Phase]:
    kinds: Any = states
    return [Phase(kind, states[kind], of="logits" if kind == "signal" else "") for kind in kinds]


def test_a_run_by_hand(config: Any) -> None:
    def seconds(speed: Speed = SPEED, **states: str) -> dict[str, float]:
        known = {"teacher": "there", "signal": "there", "student": "to do", "baseline": "to do"} | states
        missing = [phase for phase in phases_of(known) if not phase.is_done]
        return estimate.run_seconds(resolved(config(stages__distill__num_epochs=2)), SIZE, missing, speed)

    # 2 epochs of 1000 rows, after each of which a validation of 100 rows takes a third
    trial = 2000 * 3e-3 + 2 * 100 * 1e-3
    assert seconds() == pytest.approx({"student": trial, "baseline": trial})
    online = seconds(ONLINE)
    assert online == pytest.approx({"student": trial + 2000 * 1e-2, "baseline": trial})  # no teacher beside it
    assert seconds(student="there", baseline="there") == {}
    # 6 epochs of 200 labelled rows at three forward passes a row, 7 validations' worth of 100 rows, 1000 recorded
    first = seconds(teacher="to do", signal="after teacher")
    assert first["teacher"] == pytest.approx((3600 + 700 + 1000) * 1e-3)
    assert seconds(signal="to do")["teacher"] == pytest.approx((1000 + 100) * 1e-3)


def test_the_time_of_a_run_is_the_whole_of_it(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As earlier runs in the storage took to start and to evaluate, where there are some."""
    monkeypatch.setattr(estimate, "measure", lambda *given: SPEED)
    made = config(stages__distill__num_epochs=2)
    states = {"data": "to do", "teacher": "there", "signal": "there", "student": "to do", "baseline": "to do"}

    def planned() -> dict[str, Any]:
        found = estimate.estimate_run(resolved(made), SIZE, "cached", phases_of(states))
        sums = [sum(ends) for ends in zip(*found["seconds"].values(), strict=True)]
        assert [found["total"], found["longest"]] == pytest.approx(sums)
        return found

    first = planned()
    assert {*first["seconds"]} == {"start", "prepare", "student", "baseline", "evaluate", "register", "tfidf"}
    assert first["longest"] > first["total"]
    for key, start in (("a", 41.0), ("b", 47.0)):
        seconds = {"start": start, "evaluate": 3.0, "train": 1000.0, "register": 0.0}
        about = {"config": {"train": {"num_workers": made.train.num_workers}}, "seconds": seconds}
        Storage(made.storage).write_json(about, "runs", key, "results.json")
    other = {"config": {"train": {"num_workers": 1 - made.train.num_workers}}, "seconds": {"start": 900.0}}
    Storage(made.storage).write_json(other, "runs", "c", "results.json")
    again = planned()
    assert again["seconds"] == first["seconds"] | {"start": (41.0, 47.0), "evaluate": (3.0, 3.0)}


def test_the_machine_is_shared_as_a_cluster_of_it(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def on(cpus: int, **changes: Any) -> tuple[int, int, float]:
        found = machine(config(**changes), "cpu", cpus)
        return found.threads, found.concurrency, found.gpus

    assert on(2) == (1, 2, 0.0)
    assert on(16) == (4, 4, 0.0)
    assert on(2, train__num_workers=2) == (2, 1, 0.0)
    assert on(16, train__resources_per_worker={"CPU": 2}) == (2, 8, 0.0)
    assert on(16, max_concurrent_trials=3) == (4, 3, 0.0)
    assert on(4, max_concurrent_trials=40) == (1, 4, 0.0)
    assert on(4, train__resources_per_worker={"CPU": 1, "GPU": 1}) == (1, 4, 1.0)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert on(4, max_concurrent_trials=40) == (1, 40, 0.0)


def test_batches_grow_to_the_limit_and_no_further_than_they_are_quick() -> None:
    asked: list[int] = []
    assert seconds_per_row(asked.append, 24, Device(), unit=3) > 0
    assert sorted(set(asked)) == [3, 12, 24]
    asked.clear()
    slow = seconds_per_row(lambda rows: (asked.append(rows), time.sleep(0.02 * rows))[1], 10_000, Device())
    assert max(asked) <= 32
    assert slow == pytest.approx(0.02, rel=0.1)


def test_timing_leaves_torch_as_it_was_and_writes_nothing(config: Any, tmp_path: Any) -> None:
    torch.manual_seed(5)
    before, number = torch.get_rng_state(), torch.get_num_threads()
    made, teacher = config(), tiny_config("bert")
    sample = Sample(12, TextClassification(LABELS), Device(), 1)
    assert 0 < time_student(made, made.stages["distill"], tiny_config("bert", 2), teacher, sample) < 0.1
    assert 0 < time_teacher(teacher, sample) < 0.1
    with pytest.raises(ZeroDivisionError), threads(number + 1):
        _ = 1 / 0
    assert torch.get_num_threads() == number
    assert torch.equal(torch.get_rng_state(), before)
    assert not (tmp_path / "storage").exists()


def test_a_timed_step_is_one_of_the_loop(config: Any) -> None:
    hidden = {"type": "hidden_mse", "layers": "last"}
    made = config(stages__distill__losses__hidden=hidden)
    sample = Sample(12, TextClassification(LABELS), Device(), 1)
    setup = training(made, made.stages["distill"], tiny_config("bert", 2), tiny_config("bert"), sample)
    (report,) = train(setup)
    assert {"train/loss/kd", "train/loss/task", "train/loss/hidden"} <= report.metrics.keys()
    assert report.metrics["train/loss/kd"] > 0
