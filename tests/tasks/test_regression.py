"""Scores of regression: metrics against scipy and scikit-learn, resampled ones against both, floor and answers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.scores import (
    assert_interval_is_scipy_s,
    assert_values_are,
    assert_weights_count_rows,
)
from scipy import stats
from sklearn import metrics as library

from raydistill.config.tasks import TextRegression as Settings
from raydistill.evaluate.compare import chance
from raydistill.evaluate.intervals import intervals
from raydistill.tasks import task_of
from raydistill.tasks.regression import RegressionScores, TextRegression

METRICS = ("pearson", "spearman", "r2", "rmse", "mae")


def rows(num_rows: int, noise: float = 0.7, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Outputs (N, 1) that know something of the targets (N,), with ties on both sides."""
    rng = np.random.default_rng(seed)
    targets = np.round(rng.normal(3, 1.5, num_rows), 1)
    return np.round(targets + noise * rng.normal(size=num_rows), 1)[:, None], targets


def library_values(outputs: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    answers = outputs[:, 0]
    is_constant = not np.ptp(answers) or not np.ptp(targets)
    return {
        "pearson": 0.0 if is_constant else stats.pearsonr(answers, targets).statistic,
        "spearman": 0.0 if is_constant else stats.spearmanr(answers, targets).statistic,
        "r2": library.r2_score(targets, answers) if np.ptp(targets) else math.nan,
        "rmse": library.root_mean_squared_error(targets, answers),
        "mae": library.mean_absolute_error(targets, answers),
    }


@settings(max_examples=60)
@given(data=st.data(), num_rows=st.integers(1, 12))
def test_values_are_the_libraries(data: st.DataObject, num_rows: int) -> None:
    number = st.lists(st.sampled_from([-3.0, 0.0, 0.1, 4.0]), min_size=num_rows, max_size=num_rows)
    outputs, targets = np.array(data.draw(number))[:, None], np.array(data.draw(number))
    assert_values_are(RegressionScores(outputs, targets), library_values(outputs, targets))
    assert set(METRICS) == set(Settings.metrics)


def test_weights_count_rows() -> None:
    outputs, targets = rows(50)
    assert_weights_count_rows(lambda drawn: RegressionScores(outputs[drawn], targets[drawn]), 50)


def test_targets_far_from_0_lose_no_digits() -> None:
    """A sum of squares minus a square of sums would: 1e6 ± 1 leaves 4 of 16 digits."""
    outputs, targets = rows(60)
    assert_weights_count_rows(lambda drawn: RegressionScores(outputs[drawn] + 1e6, targets[drawn] + 1e6), 60)
    assert_values_are(RegressionScores(outputs + 1e6, targets + 1e6), library_values(outputs + 1e6, targets + 1e6))


def test_resamples_of_equal_targets_have_no_r2() -> None:
    scores = RegressionScores(np.array([[0.1], [0.2]]), np.array([0.1, 0.7]))
    counts = np.array([[3.0, 7.0, 0.0], [0.0, 0.0, 3.0]], np.float32)
    assert np.isnan(scores.weighted(counts)["r2"]).all()


@pytest.mark.parametrize("metric", METRICS)
def test_interval_equals_scipy_bootstrap(metric: str) -> None:
    outputs, targets = rows(60)
    assert_interval_is_scipy_s(lambda drawn: RegressionScores(outputs[drawn], targets[drawn]), 60, metric)


def test_r2_of_constant_targets_has_no_interval() -> None:
    scores = RegressionScores(np.arange(10.0)[:, None], np.full(10, 4.0))
    assert intervals(scores, 50)["r2"] == {"value": None, "low": None, "high": None}


def test_a_model_that_does_not_look_is_called_that() -> None:
    outputs, targets = rows(300)
    mean = f"{targets.mean():.4g}"

    def chance_of(answers: np.ndarray) -> dict:
        scores = RegressionScores(answers, targets)
        return chance(intervals(scores, 300), scores.floor())

    good = chance_of(outputs)
    assert (good["at_chance"], good["reason"], good["metric"], good["value"]) == (False, None, "r2", 0)
    constant = chance_of(np.full((300, 1), 2.5))
    assert (constant["reason"], constant["why"]) == ("constant", "it answers 2.5 for every row")
    noise = chance_of(np.random.default_rng(1).normal(size=(300, 1)))
    assert (noise["at_chance"], noise["reason"]) == (True, "floor")
    assert f"always answering the mean, {mean}" in noise["why"]
    shifted = chance_of(outputs + 9)  # far off, and yet in the right order
    assert (shifted["at_chance"], shifted["reason"]) == (True, "floor_only")
    assert "Pearson correlation" in shifted["why"]


def test_the_picture_s_points_span_the_targets() -> None:
    outputs, targets = rows(2000)
    points = RegressionScores(outputs, targets).details()["scatter"]
    assert len(points) == 500
    assert (points[0][0], points[-1][0]) == (targets.min(), targets.max())
    known = set(zip(targets.tolist(), outputs[:, 0].tolist(), strict=True))
    assert {tuple(point) for point in points} <= known


def test_agreement_disagreements_and_errors_are_in_the_target_s_unit() -> None:
    task = TextRegression(3.0, 1.5)
    a, b = np.array([[1.0], [2], [4]]), np.array([[2.0], [4], [8]])
    assert task.agreement(a, b) == pytest.approx(1)
    assert task.agreement(a, -b) == pytest.approx(-1)
    assert task.disagreements(a, b).tolist() == [1, 2, 4]
    assert task.errors(a, np.array([1.0, 3, 4])).tolist() == [0, 1, 0]
    assert task.spoken(a) == [("1", None), ("2", None), ("4", None)]
    assert task.spoken_target(2.5) == "2.5"


def test_units_of_training_are_undone() -> None:
    task = TextRegression(3.0, 1.5)
    assert task.restored(np.array([[0.0], [-2.0]], np.float32)).tolist() == [[3.0], [0.0]]
    again = task_of(task.facts())
    assert again.facts() == task.facts()
    assert again.reordered([0]) is again


def test_the_loss_is_the_squared_error_in_units_of_training() -> None:
    task = TextRegression(3.0, 2.0)
    outputs = torch.tensor([[0.0], [1.0], [-0.5]], dtype=torch.bfloat16)
    values = task.loss_values(outputs, torch.tensor([3.0, 3.0, 7.0], dtype=torch.float64))
    assert values.dtype == torch.float32
    assert values.tolist() == pytest.approx([0.0, 1.0, 6.25])
