"""What a sweep showed, in two sentences to quote: no gain is claimed that seeds alone could make."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from raydistill.evaluate.verdict import points
from raydistill.search.front import first_validation

SHARES = ("accuracy", "macro_f1")
"""Metrics that are said in percent."""


def verdict(summary: Mapping[str, Any]) -> str:
    """What was searched and what won; the winner's means over its seeds, against the config's own values and the
    search. From the content of sweep.json."""
    if summary["winner"] is None:
        return _nothing(summary)
    return f"{_searched(summary)} {_reached(summary)}"


def _nothing(summary: Mapping[str, Any]) -> str:
    counts = ", ".join(f"{count} {state}" for state, count in summary["counts"].items() if count) or "none"
    if summary["finalists"]:
        return f"No winner: no finalist could be trained again. Trials: {counts}."
    return f"No winner: no trial was trained to its end within the constraints. Trials: {counts}."


def _searched(summary: Mapping[str, Any]) -> str:
    rejected, winner = summary["counts"]["rejected"], summary["winner"]
    trained = len(summary["trials"]) - rejected
    how = summary["search"] if summary["scheduler"] == "none" else f"{summary['search']}, {summary['scheduler']}"
    how += f"; {rejected} more rejected untrained" if rejected else ""
    won = f"trial {winner['trial']} won"
    if len(summary["objectives"]) > 1:
        size = len(summary["front"])
        won += f" among the finalists of a front of {size}" if size > 1 else ", best in every objective"
    if winner["params"] == summary["default"]:
        won += ": the config's own values, so the search found nothing better"
    goals = " and ".join(summary["objectives"])
    return f"{trained} trial{'s' if trained != 1 else ''} ({how}) searched for {goals}: {won}{_facts(summary)}."


def _facts(summary: Mapping[str, Any]) -> str:
    """Size and speed of the winner, where the sweep cares about them."""
    search, texts = _finalist(summary)["search"], []
    cared = [*summary["objectives"], *summary["constraints"]]
    if "num_parameters" in cared and search.get("num_parameters") is not None:
        texts.append(f"{search['num_parameters']:,} parameters")
    if "latency_ms" in cared and search.get("latency_ms") is not None:
        texts.append(f"{search['latency_ms']:.3g} ms")
    return f" ({', '.join(texts)})" if texts else ""


def _reached(summary: Mapping[str, Any]) -> str:
    name = first_validation(summary["objectives"])
    metric, sign = name.removeprefix("validation/"), 1 if summary["objectives"][name] == "max" else -1
    finalist = _finalist(summary)
    validation, test, search = finalist["validation"][metric], finalist["test"].get(metric), finalist["search"][name]
    seeds = len(finalist["seeds"])
    text = f"With {seeds} fresh seed{'s' if seeds > 1 else ''} it reaches {_spread(metric, validation)} {metric}"
    text += f" on validation{_gain(summary, name, sign)}"
    if test is None or test["mean"] is None:
        return f"{text}; on test it is not known."
    change = _change(metric, sign * (test["mean"] - search))
    shown = _amount(metric, search)
    return f"{text}, and {_spread(metric, test)} on test, {change} the {shown} that the search saw on validation."


def _gain(summary: Mapping[str, Any], name: str, sign: int) -> str:
    """The winner's mean against the trial of the config's own values; nothing to say where that is the winner."""
    if summary["winner"]["params"] == summary["default"]:
        return ""
    metric, finalist = name.removeprefix("validation/"), _finalist(summary)
    own = next((found for found in summary["finalists"] if "default" in found["roles"]), None)
    if own is None or own["validation"][metric]["mean"] is None:
        return " (the config's own values were not trained again, so what the search gained is not known)"
    (theirs, spread), (mean, sd) = own["validation"][metric].values(), finalist["validation"][metric].values()
    gain = sign * (mean - theirs)
    text = (
        f", {_change(metric, gain)} the config's own values with as many ({_spread(metric, own['validation'][metric])})"
    )
    if sd is None or spread is None:
        return f"{text}, how much of it is due to the seed is not known"
    from scipy.special import stdtrit

    # Welch's t interval of the difference of two means; both groups have as many seeds
    num_seeds = len(finalist["seeds"])
    error = math.sqrt((sd**2 + spread**2) / num_seeds)
    freedom = (num_seeds - 1) * (sd**2 + spread**2) ** 2 / (sd**4 + spread**4) if error else 1.0
    within = abs(gain) <= stdtrit(freedom, 0.975) * error
    return f"{text}, which the seed alone may explain (95 %)" if within else text


def _finalist(summary: Mapping[str, Any]) -> Mapping[str, Any]:
    number = summary["winner"]["trial"]
    return next(finalist for finalist in summary["finalists"] if finalist["trial"] == number)


def _change(metric: str, gain: float) -> str:
    """How far above 0 is a gain, whichever way the metric counts."""
    size = f"{points(abs(gain))} points" if metric in SHARES else f"{abs(gain):.3f}"
    if not any(digit in size for digit in "123456789"):
        return "the same as"
    return f"{size} {'better' if gain > 0 else 'worse'} than"


def _spread(metric: str, value: Mapping[str, float | None]) -> str:
    mean, sd = value["mean"], value["sd"]
    assert mean is not None
    if sd is None:
        return _amount(metric, mean)
    return f"{points(mean)} ± {points(sd)} %" if metric in SHARES else f"{mean:.3f} ± {sd:.3f}"


def _amount(metric: str, value: float) -> str:
    return f"{points(value)} %" if metric in SHARES else f"{value:.3f}"
