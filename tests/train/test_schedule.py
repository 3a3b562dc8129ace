"""How long a stage trains, and at which rate."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from raydistill.config.training import Optimization
from raydistill.train.checkpoint import TrainProgress
from raydistill.train.schedule import Schedule


def of_epochs(num_rows: int, num_epochs: float, **more: Any) -> Schedule:
    return Schedule.of_epochs(num_rows, 32, Optimization(num_epochs=num_epochs, **more))


def test_a_schedule_counts_steps_not_epochs():
    assert of_epochs(100, 3) == Schedule(12, 4)
    assert of_epochs(100, 0.5) == Schedule(2, 2)
    assert of_epochs(3, 1) == Schedule(1, 1)


@pytest.mark.parametrize(
    ("rows", "epochs", "expected"),
    [
        (150, 30, Schedule(150, 10)),
        (150, 200, Schedule(1000, 20)),
        (150, 12, Schedule(60, 5)),
        (640, 99, Schedule(1980, 20)),
    ],
)
def test_short_epochs_are_validated_together_but_a_stage_at_least_twelve_times(rows, epochs, expected):
    assert of_epochs(rows, epochs) == expected


def test_an_open_schedule_has_least_and_most_steps() -> None:
    assert of_epochs(150, 200, min_epochs=30) == Schedule(1000, 10, 150)
    assert of_epochs(150, 30, min_epochs=30) == of_epochs(150, 30)
    # epochs of 57 steps: six validations in the least of three, so that a gain shows before they are over
    assert of_epochs(1794, 26, min_epochs=3) == Schedule(26 * 57, 28, 171)
    assert of_epochs(150, 200, min_epochs=30, schedule="constant").decay_share == 0


def trail(*scores: float, noise: float = 0.0) -> list[tuple[int, float, list[float]]]:
    """A validation every ten steps, with independent resamples."""
    draw = np.random.default_rng(0)
    return [(10 * (i + 1), s, (s + noise * draw.standard_normal(200)).tolist()) for i, s in enumerate(scores)]


@pytest.mark.parametrize(
    ("scores", "noise", "is_enough"),
    [
        ((0.5, 0.6, 0.7, 0.8, 0.9, 1.0), 0.0, False),
        ((0.5, 0.6, 0.9, 0.9, 0.9, 0.9), 0.0, True),
        ((0.5, 0.6, 0.7, 0.8, 0.9, 1.0), 0.05, False),  # 0.3 of 0.07
        ((0.5, 0.6, 0.7, 0.7, 0.75, 0.8), 0.05, True),  # 0.1 of 0.07
        ((0.5, 0.6, 0.7, 0.8, 0.9), 0.0, False),  # too early: 60 steps would be fewer than the least
        ((0.9, 0.9, 0.9, 0.9, 0.9), 0.0, False),
    ],
)
def test_it_is_enough_when_the_second_half_has_gained_nothing_clear(scores, noise, is_enough) -> None:
    schedule = Schedule(400, 10, 90)
    progress = TrainProgress(10 * len(scores), trail=trail(*scores, noise=noise), has_learned=True)
    assert schedule.is_enough(progress) is is_enough
    progress.has_learned = False
    assert not schedule.is_enough(progress)
    progress.has_learned, progress.decay_from = True, 10
    assert not schedule.is_enough(progress)


@pytest.mark.parametrize(("decay_from", "end"), [(None, 300), (60, 90), (61, 92), (80, 120), (200, 300), (250, 300)])
def test_the_rate_falls_over_the_last_third(decay_from: int | None, end: int) -> None:
    schedule = Schedule(300, 10, 90)
    settings = Optimization(learning_rate=0.3, warmup_ratio=0.1)
    assert schedule.end(decay_from) == end
    rates = [schedule.learning_rate(step, decay_from, settings) for step in range(end)]
    assert rates[:9] == pytest.approx([0.3 * (step + 1) / 9 for step in range(9)])
    start = 200 if decay_from is None else decay_from
    assert set(rates[9:start]) == {0.3}
    falling = [0.3 * (end - step) / (end - start) for step in range(start, end)]
    assert rates[start:] == pytest.approx(falling)


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("linear", [0.1, 0.2, 0.2, 0.15, 0.1, 0.05]),
        ("cosine", [0.1, 0.2, 0.2, 0.2 * 0.8535534, 0.1, 0.2 * 0.1464466]),
        ("constant", [0.1, 0.2, 0.2, 0.2, 0.2, 0.2]),
    ],
)
def test_a_schedule_falls_from_the_rate_to_zero(schedule: str, rates: list[float]) -> None:
    settings = Optimization.model_validate({"learning_rate": 0.2, "warmup_ratio": 0.25, "schedule": schedule})
    assert [Schedule(6, 6).learning_rate(step, None, settings) for step in range(6)] == pytest.approx(
        rates
    )  # 1.5 steps: 2 of warm-up
    last = rates[-1] if schedule == "constant" else 0.0
    assert Schedule(6, 6).learning_rate(6, None, settings) == pytest.approx(last)


def test_a_stage_may_be_warm_up_alone() -> None:
    settings = Optimization(learning_rate=0.3, warmup_ratio=1.0)
    rates = [Schedule(3, 3).learning_rate(step, None, settings) for step in range(4)]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.3])
