"""What holds for the scores of every task: metrics are the library's, resampled ones too; intervals are scipy's."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest
from scipy import stats

from raydistill.evaluate.bootstrap import bootstrap, resample
from raydistill.evaluate.intervals import interval
from raydistill.tasks.scores import Scores

Make = Callable[[np.ndarray], Scores]
"""Scores of some rows, by their numbers."""


def assert_weights_count_rows(make: Make, num_rows: int, num_samples: int = 30) -> None:
    """``weighted`` of bootstrap weights gives what ``values`` gives of the rows drawn so often."""
    weights = next(resample(np.arange(num_rows) // 2, num_samples, seed=1))
    scores = make(np.arange(num_rows))
    resampled = scores.weighted(weights)
    assert set(resampled) == set(scores.values)
    for s in range(num_samples):
        expected = make(np.repeat(np.arange(num_rows), weights[:, s].astype(int))).values
        for name, value in expected.items():
            assert resampled[name][s] == pytest.approx(value, abs=2e-6, rel=1e-6, nan_ok=True), name


def assert_values_are(scores: Scores, expected: Mapping[str, float]) -> None:
    assert set(scores.values) == set(expected)
    for name, value in expected.items():
        assert scores.values[name] == pytest.approx(value, abs=1e-6, rel=1e-6, nan_ok=True), name


def assert_interval_is_scipy_s(make: Make, num_rows: int, metric: str, method: str = "percentile") -> None:
    """``method``: ``percentile``, or ``basic`` of a metric that resampling inflates."""

    def statistic(index: np.ndarray) -> float:
        return float(make(index).weighted(np.ones((len(index), 1), np.float32))[metric][0])

    rng = np.random.default_rng(5)
    rows = np.arange(num_rows)
    expected = stats.bootstrap((rows,), statistic, vectorized=False, n_resamples=200, method=method, rng=rng)
    scores = make(rows)
    samples = bootstrap({"model": scores}, None, 200, 5)["model"]
    ours = interval(scores.values[metric], samples[metric], inflated=method == "basic")
    low, high = expected.confidence_interval
    assert ours["low"] == pytest.approx(min(max(low, 0) if method == "basic" else low, ours["value"]), abs=1e-6)
    assert ours["high"] == pytest.approx(max(high, ours["value"]), abs=1e-6)
