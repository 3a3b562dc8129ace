"""What a run showed, the decision first, in sentences to quote: no gain is claimed that its interval does not show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raydistill.evaluate import rules

GUESSING = "no better than guessing the most frequent class"
BASELINE_STARTS = {"same": "the same weights as the student", "pretrained": "the weights before fine-tuning"}
"""What a student without a teacher starts from: value of ``evaluate.baseline.start`` -> words."""


def verdict(results: Mapping[str, Any]) -> str:
    """Whether the teacher was worth it, whether the gate would pass, then what the student reaches of its teacher and
    the champion, from results.json."""
    student, teacher = results["student"], results["teacher"]
    if _at_chance(student):
        third = f"The student is {GUESSING}: {why_chance(student)}."
        third += " Nor is its teacher any better; mend that first." if _at_chance(teacher) else ""
    elif _at_chance(teacher):
        third = f"The teacher itself is {GUESSING}, so there is little to learn from it: {why_chance(teacher)}."
    else:
        third = _kept(results)
    return " ".join(s for s in (_gain(results), _gate(results), third, _against_champion(results)) if s)


def _gate(results: Mapping[str, Any]) -> str:
    """Whether a gate with its defaults would pass the student, by the rules that need neither a champion nor other
    rows."""
    student, retention = results["student"], results["retention"]["accuracy"]
    num_rows = sum(entry["support"] for entry in student["per_class"])
    facts = rules.Facts(
        {"metrics": student["test"], "per_class": student["per_class"]},
        student["chance"],
        retention=rules.Retention(retention, None, None, num_rows, "the test rows"),
        num_rows=num_rows,
    )
    own = (rules.judge_rows, rules.judge_chance, rules.judge_retention, rules.judge_classes, rules.judge_calibration)
    failed = [found for rule in own if (found := rule(rules.Gate(), facts)).verdict == "failed"]
    if not failed:
        return "The gate would pass it, as far as it does not depend on a champion."
    why = (f"{found.about} {found.shown['value']}, limit {found.shown['limit']}{_named(found)}" for found in failed)
    return f"The gate would refuse it: {'; '.join(why)}."


def _named(found: Any) -> str:
    """The classes that fail, where it is them."""
    return f" ({found.why.partition(';')[0]})" if found.name == "class_recall" else ""


def _at_chance(model: Mapping[str, Any]) -> bool:
    return bool(model["chance"]["at_chance"])


def why_chance(model: Mapping[str, Any]) -> str:
    """Why a model of results.json counts as one at chance."""
    chance, accuracy = model["chance"], model["test"]["accuracy"]
    if chance["reason"] == "one_class":
        only = next(entry["name"] for entry in model["per_class"] if entry["predicted"])
        return f'it answers "{only}" for every row'
    text = (
        f"its accuracy of {points(accuracy['value'])} (95 % interval {points(accuracy['low'])} to "
        f"{points(accuracy['high'])}) is not above the {points(chance['majority_share'])} of always answering "
        f'"{chance["majority_class"]}"'
    )
    if chance["reason"] == "accuracy_only":
        text += f", although an MCC of {model['test']['mcc']['value']:.2f} shows that it learned something"
    return text


def _kept(results: Mapping[str, Any]) -> str:
    retention, ratios = results["retention"]["accuracy"], results["ratios"]
    verb = "keeps" if retention <= 1 else "reaches"
    text = f"The student {verb} {points(retention)} % of its teacher's accuracy"
    text += f" at {100 * ratios['num_parameters']:.0f} % of its parameters"
    speed = 1 / ratios["latency_p50"] if ratios["latency_p50"] else None
    if speed is not None and speed >= 1.05:
        text += f" and {speed:.1f}x lower latency"
    elif speed is not None:
        text += f" and {1 / speed:.1f}x higher latency" if speed <= 0.95 else " and the same latency"
    return text + "."


def _gain(results: Mapping[str, Any]) -> str:
    baseline = results["baseline"]
    if baseline is None:
        return "Whether the teacher is worth it is not known: no student was trained without it (evaluate.baseline)."
    difference = results["differences"]["student_minus_baseline"]["accuracy"]
    reached = f"{points(results['student']['test']['accuracy']['value'])} % with it, "
    reached += f"{points(baseline['test']['accuracy']['value'])} without"
    reached += ", which is no better than guessing" if _at_chance(baseline) else ""
    reached += f" ({_interval(difference)})"
    if difference["low"] > 0:
        return f"The teacher is worth it: accuracy {reached}."
    if difference["high"] < 0:
        return f"The teacher does harm here: accuracy {reached}."
    return f"The teacher brings no measurable gain: accuracy {reached}."


def _against_champion(results: Mapping[str, Any]) -> str:
    champion = results["champion"]
    if champion is None:
        return ""
    difference = results["differences"]["student_minus_champion"]["accuracy"]
    word = "better" if difference["low"] > 0 else "worse" if difference["high"] < 0 else "not measurably different"
    reached = points(champion["test"]["accuracy"]["value"])
    return f"The champion reaches {reached}: the student is {word} ({_interval(difference)})."


def _interval(difference: Mapping[str, float]) -> str:
    value, low, high = (points(difference[name]) for name in ("value", "low", "high"))
    return f"difference {value} points, 95 % interval {low} to {high}"


UNITLESS = ("auc", "mcc", "log_loss", "calibration_error")
"""Metrics that are written as they are; all others are shares, written in percent."""


def figure(metric: str, value: float) -> str:
    """A metric's value, or a difference of values, as tables write it: in points, or with three digits."""
    return f"{value:.3f}" if metric in UNITLESS else points(value)


def points(share: float) -> str:
    """A share, or a difference of shares, in percentage points with one digit; never "-0.0"."""
    return f"{round(100 * share, 1) + 0.0:.1f}"
