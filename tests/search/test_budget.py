"""What plan says of a sweep's cost: trials, finals and hours, by hand and in the lines of a plan."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from kit.tiny import tiny_config
from kit.toy import sweep_config
from rich.console import Console

from raydistill.cli.show.plan import print_estimate, print_plan
from raydistill.config.tree import Config
from raydistill.errors import ConfigError
from raydistill.models.shape import count_parameters
from raydistill.pipeline.plan import make_plan
from raydistill.pipeline.timing import Machine
from raydistill.search.budget import add_up, estimate, num_finals, num_trials
from raydistill.search.space import sweep_of

COMPUTER = Machine(device="cpu", cpus=4, threads=1, gpus=0.0, concurrency=4)
ON_GPUS = Machine(device="cpu", cpus=4, threads=1, gpus=2.0, concurrency=4)


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., Config]:
    return partial(sweep_config, tmp_path)


def test_the_sum_by_hand(config: Any) -> None:
    made = config(num_trials=8, final_seeds=3, evaluate__baseline=True, evaluate__latency=False)
    found = add_up(made, COMPUTER, 60.0, 10.0)
    assert (found["trials"], found["concurrency"]) == (8, 4)
    assert found["final_trainings"] == 6  # the best trial and the config's own values, three seeds each
    assert 3600 * found["hours"] == pytest.approx(60 + 8 * 10 / 4 + 6 * 10 / 4 + 10)
    assert found["gpu_hours"] is None
    assert add_up(made, ON_GPUS, 60.0, 10.0)["gpu_hours"] == pytest.approx(2 * (60 + 80 + 60 + 10) / 3600)
    short = add_up(config(num_trials=8, max_hours=0.001, final_seeds=1), COMPUTER, 0, 10)
    assert 3600 * short["hours"] == pytest.approx(3.6 + 2 * 10 / 2 + 10)  # the baseline at the end
    few = add_up(config(num_trials=2, final_seeds=1), COMPUTER, 0, 10)
    assert few["concurrency"] == 2  # no more at a time than there are


def test_how_many_trials_and_finals(config: Any) -> None:
    finite = {"student.num_layers": {"choice": [1, 2, 4]}, "stages.distill.schedule": {"choice": ["linear", "cosine"]}}
    both = {"validation/accuracy": "max", "latency_ms": "min"}
    assert num_trials(sweep_of(config())) == 20
    assert num_trials(sweep_of(config(num_trials=50, max_trials=30))) == 30
    assert num_trials(sweep_of(config(finite))) == 6
    assert num_trials(sweep_of(config(finite, search="grid", num_trials=4))) == 4
    assert num_finals(sweep_of(config(final_seeds=2))) == 4
    assert num_finals(sweep_of(config(final_seeds=2, objectives=both))) == 8


def test_plan_tells_shapes_and_times(config: Any) -> None:
    sizes = {n: count_parameters(tiny_config("bert", n)) for n in (1, 2, 4)}
    made = config(constraints={"num_parameters": {"max": sizes[2]}}, num_trials=5)
    plan = make_plan(made, estimate=estimate)
    found = plan["sweep"]
    assert (found["shapes"], found["rejected_shapes"], found["trials"], found["size"]) == (3, 1, 5, None)
    assert 0 < found["trial_seconds"] < 60
    assert found["measured_on"].startswith("cpu, ")
    console = Console(record=True, width=80, file=io.StringIO())
    print_plan(console, plan)
    text = console.export_text()
    assert "sweep      5 trials: bayesian, scheduler none" in text
    assert "3 student sizes, 1 of them rejected by num_parameters" in text
    assert max(map(len, text.splitlines())) <= 80
    assert "sweep" not in make_plan(made.model_copy(update={"sweep": None}), estimate=estimate)


def test_a_space_without_a_possible_shape_ends_the_plan(config: Any) -> None:
    with pytest.raises(ConfigError, match=r"sweep\.constraints\.num_parameters: leaves no student"):
        make_plan(config(constraints={"num_parameters": {"max": 10}}), estimate=estimate)
    with pytest.raises(ConfigError, match=r"sweep\.space\.data\.max_length"):
        make_plan(config({"data.max_length": {"choice": [8, 16]}}), estimate=estimate)


def test_hours_of_gpus_are_printed_where_there_are_any(config: Any) -> None:
    found = add_up(config(), ON_GPUS, 0.0, 3600.0)
    about = {"search": "random", "scheduler": "asha", "size": 1234, "shapes": 1, "rejected_shapes": 0}
    about |= {"teacher_seconds": 0.0, "trial_seconds": 3600.0}
    console = Console(record=True, width=80, file=io.StringIO())
    print_estimate(console, {**about, **found, "measured_on": "cpu"})
    text = console.export_text()
    assert "20 trials of 1,234 combinations" in text
    assert "1 student size;" in text
    assert "teacher there already, a trial of the config ≈ 1 h 00 min" in text
    assert "GPU hours" in text
