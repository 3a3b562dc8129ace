"""95 % intervals of metrics and of paired differences: score intervals where rows are right or wrong, else bootstrap.

The bootstrap knows only the rows it has: two right answers of two would give an accuracy of [1, 1], two models that
never differ a difference of [0, 0], on 30 rows as on 30,000. So accuracies have Wilson's interval (1927) and their
paired differences Tango's (1998), which hold their level on few rows too. ``python jobs/bench/gate.py`` shows it.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt

import numpy as np

from raydistill.evaluate.metrics import LEVEL, METRICS, Array, bootstrap, classification_metrics

Z = 1.959963984540054  # of a normal distribution between its two tails of 2.5 %
Interval = dict[str, float | None]
OF_ANSWERS = tuple(name for name in METRICS if name not in ("log_loss", "calibration_error"))
"""Metrics of right and wrong answers, 1 at best."""


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


def num_examples(example_ids: Array | None, labels: Array) -> int:
    return len(labels) if example_ids is None else len(np.unique(example_ids))


def intervals(
    logits: Array, labels: Array, num_samples: int = 1000, seed: int = 0, example_ids: Array | None = None
) -> dict[str, Interval]:
    """Metric -> {value, low, high} of one model; the bootstrap goes by example, or by row where example_ids is None."""
    samples = bootstrap({"model": logits}, labels, example_ids, num_samples, seed)["model"]
    return model_intervals(classification_metrics(logits, labels), samples, num_examples(example_ids, labels))


def interval(value: float, samples: Array, *, inflated: bool = False) -> Interval:
    """{value, low, high} at 95 % from bootstrap samples (S,); None where the metric is not defined.

    Percentiles, but where resampling inflates a metric as much as sampling itself did (``inflated``: the calibration
    error) the basic (reversed) interval within [0, 1]: percentiles of a perfectly calibrated model would exclude the
    truth. The interval always reaches to the value.
    """
    samples = samples[np.isfinite(samples)]
    if not np.isfinite(value) or len(samples) == 0:
        return {"value": None, "low": None, "high": None}
    low, high = (float(q) for q in np.quantile(samples, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
    if inflated:
        low, high = max(0.0, 2 * value - high), min(1.0, 2 * value - low)
    return {"value": value, "low": min(low, value), "high": max(high, value)}


def model_intervals(values: Mapping[str, float], samples: Mapping[str, Array], num: int) -> dict[str, Interval]:
    """Metric -> {value, low, high} from a model's values on ``num`` examples and its part of ``bootstrap``'s result.

    Rows of one example count as one here: they may all stand or fall together.
    """
    found = {m: interval(values[m], samples[m], inflated=m == "calibration_error") for m in METRICS}
    return corrected(found, wilson(values["accuracy"], num), paired=False)


def difference_intervals(
    first: str,
    second: str,
    logits: Mapping[str, Array],
    labels: Array,
    values: Mapping[str, Mapping[str, float]],
    samples: Mapping[str, Mapping[str, Array]],
    num: int,
) -> dict[str, Interval]:
    """Metric -> {value, low, high} of second - first on the same rows, paired: logits (N, C) and values by model,
    labels (N,), ``samples`` on the same resamples."""
    found = {m: interval(values[second][m] - values[first][m], samples[second][m] - samples[first][m]) for m in METRICS}
    right = [logits[name].argmax(axis=1) == labels for name in (first, second)]
    only = [float((right[i] & ~right[1 - i]).mean()) * num for i in (0, 1)]
    return corrected(found, tango(only[0], only[1], num), paired=True)


def corrected(found: Mapping[str, Interval], accuracy: tuple[float, float], *, paired: bool) -> dict[str, Interval]:
    """The accuracy's interval replaced, and those of the other metrics of answers moved as far out as it was; the MCC's
    twice as far, as its range is twice as long."""
    low, high = found["accuracy"]["low"], found["accuracy"]["high"]
    assert low is not None
    assert high is not None
    down, up = max(0.0, low - accuracy[0]), max(0.0, accuracy[1] - high)
    result = dict(found)
    for name in OF_ANSWERS:
        value, low, high = (found[name][key] for key in ("value", "low", "high"))
        if name == "accuracy" or name.startswith("micro_"):  # with one label a row these are the accuracy
            result[name] = {"value": value, "low": accuracy[0], "high": accuracy[1]}
        elif low is not None and high is not None:
            least, factor = (-1.0, 2.0) if name == "mcc" else (0.0, 1.0)
            limits = (least - 1, 1 - least) if paired else (least, 1.0)
            low, high = max(limits[0], low - factor * down), min(limits[1], high + factor * up)
            result[name] = {"value": value, "low": low, "high": high}
    return result
