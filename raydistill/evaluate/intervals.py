"""95 % intervals of metrics and of paired differences: score intervals where rows are right or wrong, else bootstrap.

The bootstrap knows only the rows it has: two right answers of two would give an accuracy of [1, 1], two models that
never differ a difference of [0, 0], on 30 rows as on 30,000. So shares of right rows have Wilson's interval (1927) and
their paired differences Tango's (1998), which hold their level on few rows too. ``python jobs/bench/gate.py`` shows it.
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Mapping, Sequence
from math import isfinite, sqrt
from typing import Any

import numpy as np

from raydistill.config.metrics import METRICS, metric
from raydistill.evaluate.bootstrap import LEVEL, bootstrap
from raydistill.tasks.scores import Scores
from raydistill.tasks.targets import Array

Z = 1.959963984540054  # of a normal distribution between its two tails of 2.5 %
Interval = dict[str, float | None]
ENDS = {"value": "value", "low": "high", "high": "low"}
"""What becomes of the ends of an interval that is turned round."""


def wilson(share: float, num: float) -> tuple[float, float]:
    """Wilson's score interval of a share of ``num`` independent examples."""
    middle, spread = share + Z**2 / (2 * num), Z * sqrt(share * (1 - share) / num + Z**2 / (4 * num**2))
    return max(0.0, (middle - spread) / (1 + Z**2 / num)), min(1.0, (middle + spread) / (1 + Z**2 / num))


def tango(only_first: float, only_second: float, num: float) -> tuple[float, float]:
    """Tango's score interval of (second - first), the difference of two shares on the same ``num`` examples, of which
    so many have only the one or only the other."""
    from scipy.optimize import brentq

    def score(difference: float) -> float:
        """The statistic under this difference, the nuisance parameter at its maximum likelihood."""
        b = (2 * num - only_second + only_first) * difference - only_first - only_second
        c = -only_first * difference * (1 - difference)
        share = (sqrt(max(b * b - 8 * num * c, 0.0)) - b) / (4 * num)
        variance = num * (2 * share + difference * (1 - difference))
        return (only_second - only_first - num * difference) / sqrt(max(variance, 1e-300))

    value, edge = (only_second - only_first) / num, 1 - 1e-12
    low = brentq(lambda d: score(d) - Z, -edge, value) if value > -edge else -1.0
    high = brentq(lambda d: score(d) + Z, value, edge) if value < edge else 1.0
    return float(low), float(high)


def spread(values: Sequence[float]) -> dict[str, float | None]:
    """Mean and sample standard deviation; None where there are too few values, or one that is not defined."""
    known = values if all(map(isfinite, values)) else ()
    return {
        "mean": statistics.fmean(known) if known else None,
        "sd": statistics.stdev(known) if len(known) > 1 else None,
    }


def turned(found: Mapping[str, Any]) -> dict[str, Any]:
    """{value, low, high} of a difference the other way round."""
    return {to: None if found[of] is None else -found[of] for to, of in ENDS.items()}


def gain(name: str, difference: Mapping[str, Any]) -> Mapping[str, Any]:
    """{value, low, high} of a metric's difference, so that above 0 is better."""
    return turned(difference) if metric(name).lower_is_better else difference


def num_examples(example_ids: Array | None, num_rows: int) -> int:
    return num_rows if example_ids is None else len(np.unique(example_ids))


def intervals(
    scores: Scores, num_samples: int = 1000, seed: int = 0, example_ids: Array | None = None
) -> dict[str, Interval]:
    """Metric -> {value, low, high} of one model; the bootstrap goes by example, or by row where example_ids is None."""
    samples = bootstrap({"model": scores}, example_ids, num_samples, seed)["model"]
    return model_intervals(scores, samples, num_examples(example_ids, scores.num_rows))


def interval(value: float, samples: Array, *, inflated: bool = False, level: float = LEVEL) -> Interval:
    """{value, low, high} at ``level`` from those of the bootstrap samples (S,) in which the metric is defined; ends of
    None where there is none, all None where the metric is not defined.

    Percentiles, but where resampling inflates a metric as much as sampling itself did (``inflated``: the calibration
    error) the basic (reversed) interval within [0, 1]: percentiles of a perfectly calibrated model would exclude the
    truth. The interval always reaches to the value.
    """
    samples = samples[np.isfinite(samples)]
    if not np.isfinite(value) or len(samples) == 0:
        return {"value": value if np.isfinite(value) else None, "low": None, "high": None}
    low, high = (float(q) for q in np.quantile(samples, [(1 - level) / 2, (1 + level) / 2]))
    if inflated:
        low, high = max(0.0, 2 * value - high), min(1.0, 2 * value - low)
    return {"value": value, "low": min(low, value), "high": max(high, value)}


def model_intervals(scores: Scores, samples: Mapping[str, Array], num: int) -> dict[str, Interval]:
    """Metric -> {value, low, high} of a model on ``num`` examples, from its part of ``bootstrap``'s result.

    Rows of one example count as one here: they may all stand or fall together.
    """
    found = {m: interval(scores.values[m], s, inflated=m == "calibration_error") for m, s in samples.items()}
    if scores.right is None:
        return found
    return corrected(found, scores.share_metrics, wilson(float(scores.right.mean()), num), paired=False)


def corrected(
    found: Mapping[str, Interval], shares: Collection[str], exact: tuple[float, float], *, paired: bool
) -> dict[str, Interval]:
    """The interval of the share of right rows, the metrics ``shares``, replaced by the ``exact`` one, and those of the
    other metrics of answers moved as far out as it was; the MCC's twice as far, as its range is twice as long."""
    share = found[next(iter(shares))]
    assert share["low"] is not None
    assert share["high"] is not None
    down, up = max(0.0, share["low"] - exact[0]), max(0.0, exact[1] - share["high"])
    result = dict(found)
    for name, bounds in ((name, METRICS[name].bounds) for name in found):
        value, low, high = (found[name][key] for key in ("value", "low", "high"))
        if name in shares:
            result[name] = {"value": value, "low": exact[0], "high": exact[1]}
        elif bounds is not None and low is not None and high is not None:
            least, most = bounds
            factor = most - least
            limits = (least - most, most - least) if paired else bounds
            low, high = max(limits[0], low - factor * down), min(limits[1], high + factor * up)
            result[name] = {"value": value, "low": low, "high": high}
    return result
