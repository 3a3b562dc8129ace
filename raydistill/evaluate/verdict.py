"""What a run showed, the decision first, in sentences to quote: no gain is claimed that its interval does not show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raydistill.config.metrics import Metric, metric
from raydistill.evaluate import rules
from raydistill.evaluate.intervals import gain
from raydistill.evaluate.robustness import fragile_sentence

BASELINE_STARTS = {"same": "the same weights as the student", "pretrained": "the weights before fine-tuning"}
"""What a student without a teacher starts from: value of ``evaluate.baseline.start`` -> words."""


def verdict(results: Mapping[str, Any]) -> str:
    """Whether the teacher was worth it, whether the gate would pass, then what the student reaches of its teacher, and
    where it is more fragile, and of the champion, from results.json."""
    student, teacher, guessing = results["student"], results["teacher"], results["task"]["guessing"]
    if _at_chance(student):
        third = f"The student is {guessing}: {student['chance']['why']}."
        third += " Nor is its teacher any better; mend that first." if _at_chance(teacher) else ""
    elif _at_chance(teacher):
        third = f"The teacher itself is {guessing}, so there is little to learn from it: {teacher['chance']['why']}."
    else:
        third = _kept(results)
    rivals, own = (_gain(results), _over_seeds(results), _against_words(results)), (third, fragile_sentence(results))
    told = (*rivals, _gate(results), *own, _against_champion(results))
    return " ".join(s for s in told if s)


def _gate(results: Mapping[str, Any]) -> str:
    """Whether a gate with its defaults would pass the student, by the rules that need neither a champion nor other
    rows."""
    student, num_rows = results["student"], results["data"]["labeled"]["test"]
    retention = results["retention"].get(results["task"]["main_metric"])
    facts = rules.Facts(
        {"metrics": student["test"], "per_class": student.get("per_class", ())},
        student["chance"],
        results["task"],
        retention=rules.Retention(retention, None, None, num_rows),
        num_rows=num_rows,
    )
    own = (rules.judge_rows, rules.judge_chance, rules.judge_retention, rules.judge_classes, rules.judge_calibration)
    failed = [found for rule in own if (found := rule(rules.Gate(), facts)).verdict == "failed"]
    if not failed:
        return "The gate would pass it, as far as it does not depend on a champion."
    why = (f"{found.about} {found.shown['value']}, limit {found.shown['limit']}{_named(found)}" for found in failed)
    return f"The gate would refuse it: {'; '.join(why)}."


def _named(found: Any) -> str:
    """The outputs that fail, where it is them."""
    return f" ({found.why.partition(';')[0]})" if found.name == "class_recall" else ""


def _at_chance(model: Mapping[str, Any]) -> bool:
    return bool(model["chance"]["at_chance"])


def _main(results: Mapping[str, Any]) -> tuple[str, Metric]:
    name = results["task"]["main_metric"]
    return name, metric(name)


def _kept(results: Mapping[str, Any]) -> str:
    (name, about), ratios = _main(results), results["ratios"]
    retention = results["retention"].get(name)
    if retention is None or about.is_amount:
        own, others = (about.said(results[side]["test"][name]["value"]) for side in ("student", "teacher"))
        text = f"The student's {about.words} is {own}, its teacher's {others},"
    else:
        verb = "keeps" if retention <= 1 else "reaches"
        text = f"The student {verb} {rules.percent(retention)} of its teacher's {about.words}"
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
    name, about = _main(results)
    difference = results["differences"]["student_minus_baseline"][name]
    reached = f"{about.said(results['student']['test'][name]['value'])} with it, "
    reached += f"{about.text(baseline['test'][name]['value'])} without"
    reached += ", which is no better than guessing" if _at_chance(baseline) else ""
    reached = f"{about.words} {reached} ({_interval(about, difference)})"
    found = gain(name, difference)
    if found["low"] > 0:
        return f"The teacher is worth it: {reached}."
    if found["high"] < 0:
        return f"The teacher does harm here: {reached}."
    return f"The teacher brings no measurable gain: {reached}."


def _over_seeds(results: Mapping[str, Any]) -> str:
    """The means over the seeds, where several were trained."""
    seeds, (name, about) = results.get("seeds"), _main(results)
    if seeds is None:
        return ""
    reached = [about.around(seeds[model]["test"][name]) for model in ("student", "baseline") if seeds[model]]
    reached[0] += " %" if about.is_share else ""
    without = f" with the teacher, {reached[1]} without" if len(reached) > 1 else ""
    return f"Over {seeds['num']} seeds, mean ± standard deviation: {about.words} {reached[0]}{without}."


def _against_words(results: Mapping[str, Any]) -> str:
    """Said where a linear model on words does as well as the student, as far as the test rows can tell."""
    words = results.get("tfidf")
    if words is None:
        return ""
    name, about = _main(results)
    difference = results["differences"]["student_minus_tfidf"][name]
    found = gain(name, difference)
    reached = f"{about.words} {about.said(words['test'][name]['value'])} ({_interval(about, difference)})"
    if found["high"] < 0:
        return f"A linear model on TF-IDF is better than the student: {reached}."
    return "" if found["low"] > 0 else f"A linear model on TF-IDF does as well as the student: {reached}."


def _against_champion(results: Mapping[str, Any]) -> str:
    champion = results["champion"]
    if champion is None:
        return ""
    name, about = _main(results)
    difference = results["differences"]["student_minus_champion"][name]
    found = gain(name, difference)
    word = "better" if found["low"] > 0 else "worse" if found["high"] < 0 else "not measurably different"
    reached = about.text(champion["test"][name]["value"])
    return f"The champion reaches {reached}: the student is {word} ({_interval(about, difference)})."


def _interval(about: Metric, difference: Mapping[str, float]) -> str:
    low, high = (about.text(difference[end]) for end in ("low", "high"))
    return f"difference {about.amount(difference['value'])}, 95 % interval {low} to {high}"
