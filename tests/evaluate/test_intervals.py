"""Score intervals against independent computations, and that few rows never make a certainty."""

import numpy as np
import pytest
from scipy import optimize, stats

from raydistill.config.metrics import METRICS
from raydistill.evaluate.intervals import Z, gain, interval, intervals, tango, turned, wilson
from raydistill.evaluate.scoreboard import Scoreboard
from raydistill.tasks import Targets, Task, TextClassification
from raydistill.tasks.multi_label import MultiLabelClassification
from raydistill.tasks.scores import Scores


def of_answers(scores: Scores) -> list[str]:
    """Its metrics of right and wrong answers."""
    return [name for name, value in scores.values.items() if METRICS[name].bounds and np.isfinite(value)]


@pytest.mark.parametrize(("right", "num"), [(0, 3), (2, 2), (17, 30), (638, 638), (561, 638)])
def test_wilson_equals_scipy(right: int, num: int) -> None:
    expected = stats.binomtest(right, num).proportion_ci(method="wilson")
    assert wilson(right / num, num) == pytest.approx((expected.low, expected.high), abs=1e-9)


def score(only_first: int, only_second: int, num: int, difference: float) -> float:
    """Tango's statistic from its definition: the nuisance parameter by numeric maximum likelihood."""
    rest = num - only_first - only_second

    def loss(first: float) -> float:
        shares = np.array([first, first + difference, 1 - 2 * first - difference])
        counts = np.array([only_first, only_second, rest])
        return -float(sum(c * np.log(max(s, 1e-300)) for c, s in zip(counts, shares, strict=True) if c))

    low, high = max(0.0, -difference), (1 - difference) / 2
    first = optimize.minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-12}).x
    variance = num * (2 * first + difference - difference**2)
    return (only_second - only_first - num * difference) / np.sqrt(variance)


@pytest.mark.parametrize(("only_first", "only_second", "num"), [(7, 1, 21), (3, 0, 40), (12, 10, 400), (30, 55, 638)])
def test_tango_solves_the_score_equation(only_first: int, only_second: int, num: int) -> None:
    low, high = tango(only_first, only_second, num)
    assert score(only_first, only_second, num, low) == pytest.approx(Z, abs=2e-3)
    assert score(only_first, only_second, num, high) == pytest.approx(-Z, abs=2e-3)
    assert tango(only_second, only_first, num) == pytest.approx((-high, -low))


def test_tango_equals_a_published_example() -> None:
    # airway hyper-responsiveness of 21 children: Fagerland, Lydersen and Laake (2014)
    assert tango(7, 1, 21) == pytest.approx((-0.517, -0.026), abs=5e-4)
    assert tango(0, 0, 30) == pytest.approx((-(Z**2) / (30 + Z**2), Z**2 / (30 + Z**2)))


def perfect(kind: str, num_rows: int) -> tuple[Task, np.ndarray, np.ndarray]:
    """A task, and outputs and targets of a model that is right on all of few rows."""
    truth = np.eye(2, dtype=int)[np.arange(num_rows) % 2]
    if kind == "labels":
        return MultiLabelClassification(("a", "b")), 4.0 * truth - 2, truth
    return TextClassification(("a", "b")), truth.astype(float), truth.argmax(axis=1)


@pytest.mark.parametrize("kind", ["classes", "labels"])
def test_two_right_rows_of_two_prove_little(kind: str) -> None:
    task, outputs, targets = perfect(kind, 2)
    scores = task.scores(outputs, targets)
    found = intervals(scores, 100)
    assert scores.share_metrics
    for name in scores.share_metrics:
        assert found[name]["high"] == 1
    for name in of_answers(scores):
        assert found[name]["low"] < 0.5, name


@pytest.mark.parametrize("kind", ["classes", "labels"])
def test_models_that_never_differ_on_few_rows_may_differ_elsewhere(kind: str) -> None:
    task, outputs, targets = perfect(kind, 30)
    pair = dict.fromkeys("ab", outputs)
    board = Scoreboard(dict.fromkeys("ab", task), pair, Targets(targets, np.ones(30, bool)), num_samples=100)
    found = board.differences("a", "b")
    for name in of_answers(board.scores["a"]):
        assert found[name]["low"] < -0.1 < 0.1 < found[name]["high"], name


def test_a_gain_is_above_0_where_a_metric_is_better() -> None:
    lower = {"value": -0.2, "low": -0.3, "high": 0.1}
    assert gain("accuracy", lower) == lower
    assert gain("rmse", lower) == turned(lower) == {"value": 0.2, "low": -0.1, "high": 0.3}
    assert turned(turned(lower)) == lower
    assert turned({"value": None, "low": None, "high": None}) == {"value": None, "low": None, "high": None}


def test_accuracy_covers_the_truth_as_often_as_it_says_on_few_rows() -> None:
    """Exactly, over all counts: 30 rows, 95 % right. The bootstrap covers it in 78 %."""
    counts = np.arange(31)
    covered = [low <= 0.95 <= high for low, high in (wilson(k / 30, 30) for k in counts)]
    assert 0.93 < stats.binom.pmf(counts, 30, 0.95) @ covered < 0.99


def test_a_defined_value_is_shown_where_no_resample_has_one() -> None:
    nothing = np.full(100, np.nan)
    assert interval(0.8, nothing) == {"value": 0.8, "low": None, "high": None}
    assert interval(np.nan, nothing) == {"value": None, "low": None, "high": None}
    assert interval(0.8, np.append(nothing, [0.7, 0.9])) == {"value": 0.8, "low": 0.705, "high": 0.895}


def test_what_resampling_inflates_is_turned_around_its_value() -> None:
    """The basic interval: by as much as resamples lie above the value the truth may lie below it."""
    samples = np.repeat([0.25, 0.5], 50)
    assert interval(0.375, samples, inflated=True) == {"value": 0.375, "low": 0.25, "high": 0.5}
    assert interval(0.25, samples, inflated=True) == {"value": 0.25, "low": 0.0, "high": 0.25}
    assert interval(0.125, samples, inflated=True) == {"value": 0.125, "low": 0.0, "high": 0.125}
    assert interval(0.875, samples, inflated=True) == {"value": 0.875, "low": 0.875, "high": 1.0}
    assert interval(0.375, np.repeat([0.0, 1.0], 50), inflated=True) == {"value": 0.375, "low": 0.0, "high": 0.75}
