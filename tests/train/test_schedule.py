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


def decided(*scores: float, noise: float = 0.0, learned: bool = True, **more: int) -> TrainProgress:
    """What a validation after these decides of a stage of 90 to 400 steps; two thirds of the least are 60."""
    progress = TrainProgress(10 * len(scores), trail=trail(*scores, noise=noise), has_learned=learned, **more)
    Schedule(400, 10, 90).decide(progress)
    return progress


@pytest.mark.parametrize(
    ("scores", "noise", "goes_on"),
    [
        ((0.5, 0.6, 0.7, 0.8, 0.9, 1.0), 0.0, True),
        ((0.5, 0.6, 0.9, 0.9, 0.9, 0.9), 0.0, False),  # the second half has gained nothing
        ((0.5, 0.6, 0.7, 0.8, 0.9, 1.0), 0.05, True),  # 0.3 of 0.07
        ((0.5, 0.6, 0.7, 0.7, 0.75, 0.8), 0.05, False),  # 0.1 of 0.07 is chance
        ((0.1, 0.5, 0.6, 0.6, 0.7, 0.75), 0.025, False),  # 0.15 after 0.5: the next is expected to be 0.045 of 0.035
        ((0.5, 0.5, 0.6, 0.6, 0.7, 0.75), 0.02, True),  # after 0.1: it is expected to be 0.15
        ((0.0, 0.0, 0.0, 0.0, 0.0, 0.0), 0.0, False),
    ],
)
def test_a_stage_goes_on_where_as_many_steps_again_are_expected_to_gain(scores, noise, goes_on) -> None:
    progress = decided(*scores, noise=noise)
    assert (progress.extended_from, progress.decay_from) == ((60, None) if goes_on else (None, 60))
    assert Schedule(400, 10, 90).end(progress) == (400 if goes_on else 90)
    assert Schedule(400, 10, 90).expected(progress) == 90  # if it ended from here on, the least would be reached
    assert bool(progress.trail) is goes_on  # a checkpoint needs it no longer
    blind = decided(*scores, noise=noise, learned=False)
    assert (blind.extended_from, blind.decay_from) == (60, None)


def test_the_end_is_decided_once_and_not_too_early() -> None:
    early = decided(0.5, 0.5, 0.5, 0.5)
    assert early.decay_from is early.extended_from is None
    assert Schedule(400, 10, 90).end(early) == Schedule(400, 10, 90).expected(early) == 90
    flat = [0.5] * 12
    assert decided(*flat, extended_from=60).decay_from == 120
    assert decided(*flat, extended_from=60, decay_from=100).decay_from == 100
    slow = [*[0.5] * 3, *[0.7] * 3, *[0.8] * 6]  # the next gain is expected to be 0.05
    assert decided(*slow, noise=0.025).decay_from == 120  # of 0.035, too little for more steps
    assert decided(*slow, noise=0.025, extended_from=60).decay_from is None  # but enough to go on
    assert decided(*slow, noise=0.05, extended_from=60).decay_from == 120
    rising = [index / 100 for index in range(27)]
    assert decided(*rising, extended_from=60).decay_from == 270  # the last third would begin three steps before
    assert decided(*rising[:26], extended_from=60).decay_from is None


@pytest.mark.parametrize("shape", ["linear", "cosine", "constant"])
def test_a_stage_that_is_not_extended_has_the_rates_of_its_least_length(shape: str) -> None:
    settings = Optimization.model_validate({"learning_rate": 0.3, "warmup_ratio": 0.1, "schedule": shape})
    for progress in (TrainProgress(), TrainProgress(decay_from=60)):
        rates = [Schedule(300, 10, 90).learning_rate(step, progress, settings) for step in range(90)]
        assert rates == [Schedule(90, 10).learning_rate(step, TrainProgress(), settings) for step in range(90)]


@pytest.mark.parametrize(("decay_from", "end"), [(None, 300), (80, 120), (81, 122), (200, 300), (250, 300)])
def test_the_rate_of_an_extended_stage_rises_again_and_falls_over_the_last_third(decay_from, end) -> None:
    schedule, progress = Schedule(300, 10, 90), TrainProgress(extended_from=60, decay_from=decay_from)
    settings = Optimization(learning_rate=0.3, warmup_ratio=0.1)
    assert schedule.end(progress) == end
    rates = [schedule.learning_rate(step, progress, settings) for step in range(end)]
    assert rates[:60] == [Schedule(90, 10).learning_rate(step, TrainProgress(), settings) for step in range(60)]
    again = 0.3 * (90 - 60) / (90 - 9)
    assert rates[60:69] == pytest.approx([again + (0.3 - again) * (step + 1) / 9 for step in range(9)])
    start = 200 if decay_from is None else decay_from
    assert rates[68:start] == pytest.approx([0.3] * (start - 68))
    assert rates[start:] == pytest.approx([0.3 * (end - step) / (end - start) for step in range(start, end)])


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
    assert [Schedule(6, 6).learning_rate(step, TrainProgress(), settings) for step in range(6)] == pytest.approx(
        rates
    )  # 1.5 steps: 2 of warm-up
    last = rates[-1] if schedule == "constant" else 0.0
    assert Schedule(6, 6).learning_rate(6, TrainProgress(), settings) == pytest.approx(last)


def test_a_stage_may_be_warm_up_alone() -> None:
    settings = Optimization(learning_rate=0.3, warmup_ratio=1.0)
    rates = [Schedule(3, 3).learning_rate(step, TrainProgress(), settings) for step in range(4)]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.3])
