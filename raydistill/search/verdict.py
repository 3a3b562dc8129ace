"""What a sweep showed, the decision first, in short sentences to quote: no gain is claimed that seeds could make."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raydistill.config.metrics import capitalized
from raydistill.config.metrics import metric as facts
from raydistill.evaluate.report.scales import spoken
from raydistill.search.front import first_validation

SAME = "the same as"


def verdict(summary: Mapping[str, Any]) -> str:
    """Whether the search paid off, then what the winner reaches and what was searched: one fact a sentence, means over
    its seeds. From the content of sweep.json."""
    if summary["winner"] is None:
        counts = ", ".join(f"{count} {state}" for state, count in summary["counts"].items() if count) or "none"
        return f"No winner: no trial was trained to its end within the constraints. Trials: {counts}."
    decision, own = _decision(summary)
    reached, *rest = _reached(summary)
    return " ".join([*decision, reached, *own, *rest, *_searched(summary)])


def _decision(summary: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The winner's mean against the trial of the config's own values, and what these reach."""
    number, name = summary["winner"]["trial"], first_validation(summary["objectives"])
    if summary["winner"]["params"] == summary["default"]:
        return [f"The search found nothing better than the config's own values (trial {number})."], []
    metric, sign = name.removeprefix("validation/"), 1 if summary["objectives"][name] == "max" else -1
    finalist = _finalist(summary)
    own = next((one for one in summary["finalists"] if "default" in one["roles"]), None)
    if own is None or own["validation"][metric]["mean"] is None:
        why = "the config's own values were not trained again"
        return [f"Trial {number} won.", f"What the search gained is not known: {why}."], []
    theirs, found = own["validation"][metric], finalist["validation"][metric]
    gain = sign * (found["mean"] - theirs["mean"])
    change = _change(metric, gain)
    compared = f"trial {number} is {change} the config's own values"
    if gain < 0:  # the winner has the best mean of all that keep the constraints
        decision = [f"Trial {number} won within the constraints, which the config's own values break."]
    elif change == SAME:
        decision = [f"No gain: trial {number} is as good as the config's own values."]
    elif found["sd"] is None or theirs["sd"] is None:
        decision = [f"{capitalized(compared)}.", "How much of that is due to the seed is not known."]
    elif _may_be_luck(found, theirs, num_seeds=len(finalist["seeds"])):
        decision = [f"No gain is certain: {compared}.", "The seed alone may explain that (95 %)."]
    else:
        decision = [f"The search paid off: {compared}."]
    return decision, [f"The config's own values reach {_spread(metric, theirs)} there."]


def _may_be_luck(*groups: Mapping[str, float], num_seeds: int) -> bool:
    """Whether Welch's t test leaves it open that two groups of as many seeds have one mean."""
    from scipy.stats import ttest_ind_from_stats

    told = [number for group in groups for number in (group["mean"], group["sd"], num_seeds)]
    return bool(ttest_ind_from_stats(*told, equal_var=False).pvalue >= 0.05)


def _reached(summary: Mapping[str, Any]) -> list[str]:
    name = first_validation(summary["objectives"])
    metric, sign = name.removeprefix("validation/"), 1 if summary["objectives"][name] == "max" else -1
    finalist = _finalist(summary)
    validation, test, search = (
        finalist["validation"][metric],
        finalist["test"].get(metric),
        finalist["search"].get(name),
    )
    seeds = len(finalist["seeds"])
    of = f"the mean of {seeds} fresh seeds" if seeds > 1 else "with one fresh seed"
    told = [f"The winner reaches {_spread(metric, validation)} {spoken(metric)} on validation, {of}."]
    if test is None or test["mean"] is None:
        told.append("On test it is not known.")
    else:
        told.append(f"On test it reaches {_spread(metric, test)}.")
    if test is not None and test["mean"] is not None and search is not None:
        change = _change(metric, sign * (test["mean"] - search))
        told.append(f"That is {change} what the search saw on validation ({facts(metric).said(search)}).")
    return told + _facts(summary)


def _facts(summary: Mapping[str, Any]) -> list[str]:
    """Size and speed of the winner, where the sweep cares about them."""
    search, texts = _finalist(summary)["search"], []
    cared = [*summary["objectives"], *summary["constraints"]]
    if "num_parameters" in cared and search.get("num_parameters") is not None:
        texts.append(f"{search['num_parameters']:,} parameters")
    if "latency_ms" in cared and search.get("latency_ms") is not None:
        texts.append(f"a latency of {search['latency_ms']:.3g} ms")
    return [f"It has {' and '.join(texts)}."] if texts else []


def _searched(summary: Mapping[str, Any]) -> list[str]:
    rejected, size = summary["counts"]["rejected"], len(summary["front"])
    trained = len(summary["trials"]) - rejected
    how = summary["search"] if summary["scheduler"] == "none" else f"{summary['search']}, {summary['scheduler']}"
    text = (
        f"{trained} trial{'s' if trained != 1 else ''} searched for {' and '.join(map(spoken, summary['objectives']))}"
    )
    told = [f"{text} ({how})."]
    if len(summary["objectives"]) > 1:
        told.append(f"{size} of them form the Pareto front." if size > 1 else "The winner is best in every objective.")
    if rejected:
        told.append(f"{rejected} more {'were' if rejected > 1 else 'was'} rejected untrained.")
    return told


def _finalist(summary: Mapping[str, Any]) -> Mapping[str, Any]:
    number = summary["winner"]["trial"]
    return next(finalist for finalist in summary["finalists"] if finalist["trial"] == number)


def _change(metric: str, gain: float) -> str:
    """How far above 0 is a gain, whichever way the metric counts."""
    size = facts(metric).amount(abs(gain))
    if not any(digit in size for digit in "123456789"):
        return SAME
    return f"{size} {'better' if gain > 0 else 'worse'} than"


def _spread(metric: str, value: Mapping[str, float | None]) -> str:
    about, mean, sd = facts(metric), value["mean"], value["sd"]
    assert mean is not None
    if sd is None:
        return about.said(mean)
    return f"{about.text(mean)} ± {about.said(sd)}"
