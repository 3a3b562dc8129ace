"""What plan says of a sweep's cost: how it is counted, and that it is near what training takes."""

from __future__ import annotations

import io
import time
from typing import Any

import pytest
import torch
from rich.console import Console
from tiny import tiny_config
from toy import toy_config

from raydistill.config import Config
from raydistill.data.prepare import DataInfo, SplitCounts
from raydistill.data.size import Size
from raydistill.errors import ConfigError
from raydistill.loading import load_config
from raydistill.planning import make_plan, print_plan
from raydistill.search import estimate
from raydistill.search.estimate import asha_share, cost, num_finals, num_trials, num_validations, print_estimate
from raydistill.search.shared import count_parameters
from raydistill.search.space import sweep_of
from raydistill.search.timing import (
    Machine,
    Sample,
    Speed,
    Step,
    fit,
    grown,
    machine,
    threads,
    time_student,
    time_teacher,
    training,
)
from raydistill.train.device import Device
from raydistill.train.loop import train

SPACE = {
    "stages.distill.losses.kd.temperature": {"uniform": [1, 8]},
    "student.num_layers": {"choice": [1, 2, 4]},
}
SPLIT_ROWS = {
    "train": SplitCounts(1000, 200, {}),
    "validation": SplitCounts(100, 100, {}),
    "test": SplitCounts(100, 100, {}),
}
SIZE = Size(
    DataInfo(("a", "b", "c"), SPLIT_ROWS, has_pairs=False, removed={}, skipped={}, notes=(), doubts=()),
    {"train": 12_000, "validation": 1200, "test": 1200},
    {"train": 0, "validation": 0, "test": 0},
    is_estimate=False,
)
SPEED = Speed(
    teacher_row=1e-3,
    teacher_step=0.1,
    online_row=0.0,
    smallest=(1000, Step(0.01, 1e-3)),
    largest=(3000, Step(0.03, 5e-3)),
)
COMPUTER = Machine(device="cpu", cpus=4, threads=1, gpus=0.0, concurrency=4)
LABELS = ("film", "money", "sport")


@pytest.fixture
def config(tmp_path: Any) -> Any:
    """A function that gives a config with a sweep; ``changes`` are dotted names with __, those of ``sweep`` plain."""

    def make(space: dict[str, Any] | None = None, **changes: Any) -> Config:
        about = {name: changes.pop(name) for name in list(changes) if "__" not in name}
        content = toy_config(tmp_path, **{"train__num_workers": 1, **changes})
        return load_config({**content, "sweep": {"space": space or SPACE, "scheduler": "none", **about}})

    return make


def test_it_grows_with_trials_and_steps_and_shrinks_with_concurrency(config: Any) -> None:
    def seconds(trials: int, mean: float = 10.0, **changes: Any) -> list[float]:
        machine = Machine(**{**vars(COMPUTER), **changes})
        return list(cost(config(num_trials=trials), SIZE, machine, 0.0, mean)["search_seconds"])

    assert seconds(40) == pytest.approx([2 * s for s in seconds(20)])
    assert seconds(20, 30.0) == pytest.approx([3 * s for s in seconds(20)])
    assert seconds(20, concurrency=2) == pytest.approx([2 * s for s in seconds(20)])
    assert seconds(2) == [10.0, 10.0]  # no more at a time than there are
    once = estimate.trial_seconds(config(stages__distill__num_epochs=2), 2000, SIZE, SPEED)
    assert estimate.trial_seconds(config(stages__distill__num_epochs=6), 2000, SIZE, SPEED) == pytest.approx(3 * once)


def test_a_trial_by_hand(config: Any) -> None:
    # 2 epochs of 1000 rows in batches of 16: 126 steps; 2000 parameters lie halfway: 20 ms a step and 3 ms a row,
    # of which a validation of 100 rows takes a third.
    made = config(stages__distill__num_epochs=2)
    assert estimate.trial_seconds(made, 2000, SIZE, SPEED) == pytest.approx(126 * 0.02 + 2000 * 3e-3 + 2 * 100 * 1e-3)
    online = Speed(**{**vars(SPEED), "online_row": 1e-2})
    more = estimate.trial_seconds(made, 2000, SIZE, online) - estimate.trial_seconds(made, 2000, SIZE, SPEED)
    assert more == pytest.approx(2000 * 1e-2)


def test_the_sum_by_hand(config: Any) -> None:
    made = config(num_trials=8, final_seeds=3, evaluate__baseline=True, evaluate__latency=False)
    found = cost(made, SIZE, COMPUTER, 60.0, 10.0)
    assert found["final_trainings"] == 6  # the best trial and the config's own values, three seeds each
    assert found["final_seconds"] == pytest.approx(15 + 10)  # four at a time, then the baseline
    assert found["hours"] == pytest.approx([(60 + 20 + 25) / 3600] * 2)
    assert found["gpu_hours"] is None
    on_gpus = cost(made, SIZE, Machine(**{**vars(COMPUTER), "gpus": 2.0}), 60.0, 10.0)
    assert on_gpus["gpu_hours"] == pytest.approx([2 * (60 + 80 + 60 + 10) / 3600] * 2)
    assert cost(config(num_trials=8, max_hours=0.001), SIZE, COMPUTER, 0, 10)["search_seconds"] == [3.6, 3.6]


def test_the_teacher_by_hand(config: Any) -> None:
    phases = {"teacher": "to do", "signal logits": "after teacher"}

    def seconds(**states: str) -> float:
        made = [{"phase": name, "state": state} for name, state in (phases | states).items()]
        return estimate.teacher_seconds(config(), SIZE, {"phases": made, "steps": {"teacher": 78}}, SPEED)

    # 6 epochs of 200 labelled rows at three forward passes a row, 7 validations' worth of 100 rows, 1000 recorded
    assert seconds() == pytest.approx(78 * 0.1 + (3600 + 700 + 1000) * 1e-3)
    assert seconds(teacher="there") == pytest.approx((1000 + 100) * 1e-3)
    assert seconds(**{"teacher": "there", "signal logits": "there"}) == 0


def test_a_run_by_hand(config: Any) -> None:
    def seconds(speed: Speed = SPEED, **states: str) -> dict[str, float]:
        phases = {"teacher": "there", "signal logits": "there", "student": "to do", "baseline": "to do"} | states
        made = [{"phase": name, "state": state} for name, state in phases.items()]
        plan = {"phases": made, "steps": {"teacher": 78}}
        return estimate.run_seconds(config(), 2000, SIZE, plan, speed)

    trial = 126 * 0.02 + 2000 * 3e-3 + 2 * 100 * 1e-3  # see test_a_trial_by_hand
    assert seconds() == pytest.approx({"student": trial, "baseline": trial})
    first = 78 * 0.1 + (3600 + 700 + 1000) * 1e-3  # see test_the_teacher_by_hand
    assert seconds(teacher="to do", **{"signal logits": "after teacher"})["teacher"] == pytest.approx(first)
    online = seconds(Speed(**{**vars(SPEED), "online_row": 1e-2}))
    assert online == pytest.approx(
        {"student": trial + 2000 * 1e-2, "baseline": trial}
    )  # which has no teacher beside it
    assert seconds(student="there", baseline="there") == {}


@pytest.mark.parametrize(
    ("validations", "grace", "factor", "share"),
    [(8, 1, 2, (1 + 1 / 2 + 2 / 4 + 4 / 8) / 8), (9, 1, 3, (1 + 2 / 3 + 6 / 9) / 9), (4, 4, 2, 1.0), (3, 9, 2, 1.0)],
)
def test_what_asha_may_save(config: Any, validations: int, grace: int, factor: int, share: float) -> None:
    sweep = sweep_of(config(scheduler="asha", grace_period=grace, reduction_factor=factor))
    assert asha_share(validations, sweep) == pytest.approx(share)


def test_asha_gives_a_range(config: Any) -> None:
    made = config(scheduler="asha", stages__distill__num_epochs=8)
    assert num_validations(made, SIZE) == 8
    low, high = cost(made, SIZE, COMPUTER, 0.0, 10.0)["search_seconds"]
    assert (low, high) == pytest.approx((20 * 10 / 4 * 2.5 / 8, 20 * 10 / 4))


def test_how_many_trials_and_finals(config: Any) -> None:
    finite = {"student.num_layers": {"choice": [1, 2, 4]}, "stages.distill.schedule": {"choice": ["linear", "cosine"]}}
    both = {"validation/accuracy": "max", "latency_ms": "min"}
    assert num_trials(sweep_of(config())) == 20
    assert num_trials(sweep_of(config(num_trials=50, max_trials=30))) == 30
    assert num_trials(sweep_of(config(finite))) == 6
    assert num_trials(sweep_of(config(finite, search="grid", num_trials=4))) == 4
    assert num_finals(sweep_of(config(final_seeds=2))) == 4
    assert num_finals(sweep_of(config(final_seeds=2, objectives=both))) == 8


def test_draws_cover_the_space_and_are_always_the_same(config: Any) -> None:
    space = {
        **SPACE,
        "stages.distill.learning_rate": {"loguniform": [1e-5, 1e-3]},
        "train.global_batch_size": {"integer": [8, 10]},
    }
    drawn = list(estimate.draws(config(space)))
    assert drawn == list(estimate.draws(config(space)))
    assert {c.student.num_layers for c in drawn} == {1, 2, 4}
    assert {c.train.global_batch_size for c in drawn} == {8, 9, 10}
    rates = [c.stages["distill"].learning_rate for c in drawn]
    assert min(rates) >= 1e-5
    assert max(rates) <= 1e-3
    assert 30 < sum(rate < 1e-4 for rate in rates) < 70


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


def test_steps_lie_on_a_line() -> None:
    found = fit([(1, 0.11), (4, 0.2), (16, 0.26)])
    assert (found.fixed, found.per_row) == pytest.approx((0.1, 0.01))
    assert fit([(8, 0.4)]) == Step(0.0, 0.05)
    assert fit([(1, 0.2), (2, 0.1)]).per_row == 0.0
    assert SPEED.step(1000) == SPEED.smallest[1]
    assert vars(SPEED.step(2000)) == pytest.approx({"fixed": 0.02, "per_row": 3e-3})


def test_batches_grow_to_the_limit_and_no_further_than_they_are_quick() -> None:
    asked: list[int] = []
    found = grown(asked.append, 24, Device(), unit=3)
    assert [rows for rows, _ in found] == [3, 12, 24]
    slow = grown(lambda rows: time.sleep(0.02 * rows), 10_000, Device())
    assert slow[-1][0] <= 32


def test_timing_leaves_torch_as_it_was_and_writes_nothing(config: Any, tmp_path: Any) -> None:
    torch.manual_seed(5)
    before, number = torch.get_rng_state(), torch.get_num_threads()
    made, teacher = config(), tiny_config("bert")
    sample = Sample(12, LABELS, Device(), 1)
    step = time_student(made, made.stages["distill"], tiny_config("bert", 2), teacher, sample)
    assert 0 < step.seconds(1, 16) < 1
    assert 0 < time_teacher(teacher, sample) < 0.1
    with pytest.raises(ZeroDivisionError), threads(number + 1):
        _ = 1 / 0
    assert torch.get_num_threads() == number
    assert torch.equal(torch.get_rng_state(), before)
    assert not (tmp_path / "storage").exists()


def test_a_timed_step_is_one_of_the_loop(config: Any) -> None:
    hidden = {"type": "hidden_mse", "layers": "last"}
    made = config(stages__distill__losses__hidden=hidden)
    sample = Sample(12, LABELS, Device(), 1)
    setup = training(made, made.stages["distill"], tiny_config("bert", 2), tiny_config("bert"), sample)
    (report,) = train(setup)
    assert {"train/loss/kd", "train/loss/task", "train/loss/hidden"} <= report.metrics.keys()
    assert report.metrics["train/loss/kd"] > 0


def test_plan_tells_shapes_and_times(config: Any) -> None:
    sizes = {n: count_parameters(tiny_config("bert", n)) for n in (1, 2, 4)}
    made = config(constraints={"num_parameters": {"max": sizes[2]}}, num_trials=5)
    plan = make_plan(made, estimate=estimate.estimate)
    found = plan["sweep"]
    assert (found["shapes"], found["rejected_shapes"], found["trials"], found["size"]) == (3, 1, 5, None)
    assert 0 < found["trial_seconds"] < 60
    assert found["hours"][0] <= found["hours"][1]
    assert found["measured_on"].startswith("cpu, ")
    console = Console(record=True, width=80, file=io.StringIO())
    print_plan(console, plan)
    text = console.export_text()
    assert "sweep      5 trials: bayesian, scheduler none" in text
    assert "3 student sizes, 1 of them rejected by num_parameters" in text
    assert max(map(len, text.splitlines())) <= 80
    assert "sweep" not in make_plan(made.model_copy(update={"sweep": None}), estimate=estimate.estimate)


def test_a_space_without_a_possible_shape_ends_the_plan(config: Any) -> None:
    with pytest.raises(ConfigError, match=r"sweep\.constraints\.num_parameters: leaves no student"):
        make_plan(config(constraints={"num_parameters": {"max": 10}}), estimate=estimate.estimate)
    with pytest.raises(ConfigError, match=r"sweep\.space\.data\.max_length"):
        make_plan(config({"data.max_length": {"choice": [8, 16]}}), estimate=estimate.estimate)


def test_hours_of_gpus_are_printed_where_there_are_any(config: Any) -> None:
    found = cost(config(scheduler="asha"), SIZE, Machine(**{**vars(COMPUTER), "gpus": 1.0}), 0.0, 3600.0)
    about = {"search": "random", "scheduler": "asha", "size": 1234, "shapes": 1, "rejected_shapes": 0}
    console = Console(record=True, width=80, file=io.StringIO())
    print_estimate(console, {**about, **found, "measured_on": "cpu"})
    text = console.export_text()
    assert "20 trials of 1,234 combinations" in text
    assert "1 student size;" in text
    assert "teacher there already, a trial ≈ 1 h 00 min" in text
    assert "GPU hours" in text
