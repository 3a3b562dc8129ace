"""Pareto front, ends, knee and finalists: against a brute force and numbers worked out by hand."""

import math
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydistill.config.sweep import Sweep
from raydistill.search import front
from raydistill.search.ledger import Trial

TWO = {"validation/accuracy": "max", "latency_ms": "min"}
THREE = TWO | {"num_parameters": "min"}


def sweep(objectives: dict[str, Any] | None = None, **more: Any) -> Sweep:
    content = {"space": {"student.num_layers": {"choice": [1, 2]}}, "objectives": objectives or TWO, **more}
    return Sweep.model_validate(content)


def trial(number: int, accuracy: float, latency: float = 1.0, size: float = 1.0, state: str = "completed") -> Trial:
    facts = {"latency_ms": latency, "num_parameters": size}
    return Trial(number, {}, state, facts=facts, values={"validation/accuracy": accuracy})


def numbers(trials: list[Trial]) -> list[int]:
    return [found.number for found in trials]


def beats(a: Trial, b: Trial, objectives: dict[str, str]) -> bool:
    """a is as good everywhere, and better somewhere."""
    signs = [(1 if way == "max" else -1, name) for name, way in objectives.items()]
    gains = [sign * (a.measures[name] - b.measures[name]) for sign, name in signs]
    return min(gains) >= 0 and max(gains) > 0


few = st.integers(0, 4).map(float)
many_trials = st.lists(st.tuples(few, few, few), max_size=12).map(
    lambda rows: [trial(number, *row) for number, row in enumerate(rows)]
)


@given(trials=many_trials, objectives=st.sampled_from([{"validation/accuracy": "max"}, TWO, THREE]), dice=st.randoms())
def test_front_is_what_a_brute_force_finds(
    trials: list[Trial], objectives: dict[str, Any], dice: random.Random
) -> None:
    expected = {}
    for one in trials:
        if not any(beats(other, one, objectives) for other in trials):
            expected.setdefault(tuple(one.measures[name] for name in objectives), one.number)
    dice.shuffle(trials)
    found = front.pareto_front(trials, objectives)
    assert set(numbers(found)) == set(expected.values())
    accuracies = [one.measures["validation/accuracy"] for one in found]
    assert accuracies == sorted(accuracies, reverse=True)


@given(
    trials=many_trials, new=st.tuples(few, few, few), objectives=st.sampled_from([{"validation/accuracy": "max"}, TWO])
)
def test_moved_is_when_the_values_on_the_front_change(
    trials: list[Trial], new: tuple[float, float, float], objectives: dict[str, Any]
) -> None:
    def values(of: list[Trial]) -> set[tuple[float, ...]]:
        found = front.pareto_front(of, objectives)
        return {tuple(one.measures[name] for name in objectives) for one in found}

    later = trial(99, *new)
    assert front.moved(trials, later, sweep(objectives)) == (values(trials) != values([*trials, later]))


def test_with_one_objective_only_a_strictly_better_trial_moves() -> None:
    only = sweep({"validation/log_loss": "min"})
    before = [Trial(0, {}, "completed", values={"validation/log_loss": 0.5})]
    for loss, state, expected in [(0.5, "completed", False), (0.49, "completed", True), (0.4, "stopped", False)]:
        assert front.moved(before, Trial(1, {}, state, values={"validation/log_loss": loss}), only) is expected
    assert front.moved([], before[0], only)


def test_trials_without_a_value_are_left_out() -> None:
    trials = [trial(0, math.nan), trial(1, 0.5, latency=math.inf), Trial(2, {}, "completed"), trial(3, 0.1)]
    assert numbers(front.pareto_front(trials, TWO)) == [3]
    assert front.pareto_front([], TWO) == []
    assert front.end(trials[:3], TWO, "latency_ms") is None


def test_an_end_goes_by_its_objective_then_the_others_then_the_number() -> None:
    trials = [trial(0, 0.9, 2.0), trial(3, 0.9, 1.0), trial(1, 0.9, 1.0), trial(2, 0.8, 0.1)]
    found = front.end(trials, TWO, "validation/accuracy")
    assert found is not None
    assert found.number == 1


@pytest.mark.parametrize(
    ("bounds", "values", "state", "expected"),
    [
        ({}, (0.9, 3.0), "completed", True),
        ({}, (0.9, 3.0), "stopped", False),
        ({}, (math.nan, 3.0), "completed", False),
        ({"latency_ms": {"max": 3.0}}, (0.9, 3.0), "completed", True),
        ({"latency_ms": {"max": 2.9}}, (0.9, 3.0), "completed", False),
        ({"validation/accuracy": {"min": 0.91}}, (0.9, 3.0), "completed", False),
        ({"validation/mcc": {"min": 0.1}}, (0.9, 3.0), "completed", False),  # never measured
    ],
)
def test_eligible(bounds: dict[str, Any], values: tuple[float, float], state: str, expected: bool) -> None:
    assert front.is_eligible(trial(0, *values, state=state), sweep(constraints=bounds)) is expected


@pytest.mark.parametrize(
    ("objectives", "rows", "expected"),
    [
        # scaled to [0, 1], more is better: (1, 0), (0.9, 0.5), (0.5, 0.8), (0, 1), sums 1, 1.4, 1.3, 1
        (TWO, [(0.90, 11.0), (0.89, 6.0), (0.85, 3.0), (0.80, 1.0)], 1),
        # ends (1, 0, .5), (.5, 1, 0), (0, .5, 1), sums 1.5; between them (.6, .6, .6) and (.7, .7, .2)
        (THREE, [(1, 10, 5), (0.5, 0, 10), (0, 5, 0), (0.6, 4, 4), (0.7, 3, 8)], 3),
        # 0 is smallest and fastest, 1 the most accurate; (0, 1, 1), (1, 0, 0), (.9, .9, .9), (.5, .6, .6)
        (THREE, [(0, 0, 0), (1, 10, 10), (0.9, 1, 1), (0.5, 4, 4)], 2),
        (TWO, [(0.9, 3.0), (0.8, 2.0), (0.7, 1.0)], None),  # straight
        (TWO, [(0.9, 3.0), (0.75, 2.0), (0.7, 1.0)], None),  # hollow
        (TWO, [(0.9, 3.0), (0.8, 2.0)], None),
        (TWO, [(0.9, 3.0)], None),
        (TWO, [], None),
    ],
)
def test_knee_by_hand(objectives: dict[str, Any], rows: list[tuple[float, ...]], expected: int | None) -> None:
    trials = [trial(number, *row) for number, row in enumerate(rows)]
    found = front.knee(front.pareto_front(trials, objectives), objectives)
    assert (found and found.number) == expected


@given(trials=many_trials, objectives=st.sampled_from([TWO, THREE]))
def test_finalists_are_eligible_trials_of_the_front(trials: list[Trial], objectives: dict[str, Any]) -> None:
    roles = front.finalists(trials, sweep(objectives))
    assert set(roles) <= set(numbers(front.pareto_front(trials, objectives)))
    given_roles = [role for several in roles.values() for role in several]
    ends = {"best", *(f"best {name}" for name in objectives if name != "validation/accuracy")} if trials else set()
    assert ends <= set(given_roles) <= ends | {"knee"}
    assert len(given_roles) == len(set(given_roles))


def test_finalists_and_their_roles() -> None:
    trials = [trial(0, 0.90, 11.0), trial(1, 0.89, 6.0), trial(2, 0.85, 3.0), trial(3, 0.80, 1.0)]
    trials += [trial(4, 0.99, 1.0, state="stopped"), trial(5, 0.95, 30.0)]
    bounded = sweep({"latency_ms": "min", "validation/accuracy": "max"}, constraints={"latency_ms": {"max": 20}})
    assert front.finalists(trials, bounded) == {0: ["best"], 3: ["best latency_ms"], 1: ["knee"]}
    assert front.finalists(trials, sweep({"validation/accuracy": "max"})) == {5: ["best"]}
    assert front.finalists(trials[3:4], bounded) == {3: ["best", "best latency_ms"]}
    assert front.finalists(trials[4:5], bounded) == {}
