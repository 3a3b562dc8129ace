"""What a run showed, in sentences to quote: no gain is claimed that its interval does not show."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import Any

from raydistill.config.metrics import Metric, metric
from raydistill.evaluate import rules
from raydistill.evaluate.divergence import divergence_of
from raydistill.evaluate.figure import Figure
from raydistill.evaluate.robustness import fragile_sentence

BASELINE_STARTS = {"same": "the same weights as the student", "pretrained": "the weights before fine-tuning"}
"""What a student without a teacher starts from: value of ``evaluate.baseline.start`` -> words."""


def verdict(results: Mapping[str, Any]) -> str:
    """Whether the teacher was worth it, then what the student reaches of its teacher, where it is more fragile, and of
    the champion, from results.json."""
    student, teacher, guessing = results["student"], results["teacher"], results["task"]["guessing"]
    if _at_chance(student):
        third = f"The student is {guessing}: {student['chance']['why']}."
        third += " Nor is its teacher any better; mend that first." if _at_chance(teacher) else ""
    elif _at_chance(teacher):
        third = f"The teacher itself is {guessing}, so there is little to learn from it: {teacher['chance']['why']}."
    else:
        third = _kept(results)
    rivals = (_gain(results), _weak_teacher(results), _over_seeds(results), _against_words(results))
    own = (third, fragile_sentence(results))
    told = (_diverged(results), *rivals, *own, _against_champion(results))
    return " ".join(s for s in told if s)


def _at_chance(model: Mapping[str, Any]) -> bool:
    return bool(model["chance"]["at_chance"])


def _main(results: Mapping[str, Any]) -> tuple[str, Metric]:
    name = results["task"]["main_metric"]
    return name, metric(name)


def _reached(results: Mapping[str, Any], model: str) -> Figure:
    name = results["task"]["main_metric"]
    return Figure.of(name, results[model]["test"][name])


def _ahead(results: Mapping[str, Any], model: str) -> Figure:
    """What the student has more than a model."""
    name = results["task"]["main_metric"]
    return Figure.of(name, results["differences"][f"student_minus_{model}"][name])


def _kept(results: Mapping[str, Any]) -> str:
    (name, about), ratios = _main(results), results["ratios"]
    retention, own, other = results["retention"].get(name), _reached(results, "student"), _reached(results, "teacher")
    if why := own.why or other.why:
        text = f"What the student keeps of its teacher is not known ({why}),"
    elif retention is None or about.is_amount:
        text = f"The student's {about.words} is {own.said}, its teacher's {other.said},"
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


def _diverged(results: Mapping[str, Any]) -> str:
    """What of all else says little, as a training diverged."""
    words = {"teacher": "teacher", "student": "student", "baseline": "student without a teacher"}
    found = {words[name]: divergence_of(results[name]) for name in words if results[name] is not None}
    told = (f"The training of the {who} diverged: {one.why}; {one.advice}." for who, one in found.items() if one)
    return " ".join(told)


def _gain(results: Mapping[str, Any]) -> str:
    baseline = results["baseline"]
    if baseline is None:
        return "Whether the teacher is worth it is not known: no student was trained without it (evaluate.baseline)."
    ahead = _ahead(results, "baseline")
    if ahead.why:
        return f"Whether the teacher is worth it is not known: {ahead.why}."
    reached = f"{ahead.about.words} {_reached(results, 'student').said} with it, "
    reached += f"{_reached(results, 'baseline').text} without"
    reached += ", which is no better than guessing" if _at_chance(baseline) else ""
    reached = f"{reached} ({ahead.difference})"
    if ahead.is_better:
        return f"The teacher is worth it: {reached}."
    if ahead.is_worse:
        return f"The teacher does harm here: {reached}."
    return f"The teacher brings no measurable gain: {reached}."


def _weak_teacher(results: Mapping[str, Any]) -> str:
    """Said where the teacher is worse than the student without it, which no student makes up for, and the way out."""
    name = results["task"]["main_metric"]
    ahead = Figure.of(name, (results["differences"].get("teacher_minus_baseline") or {}).get(name))
    if not ahead.is_worse or _at_chance(results["teacher"]):
        return ""
    trained = results["curves"].get("teacher") or [{"step": 0}]
    steps = trained[-1]["step"], results["baseline"]["steps"] or 0
    tuning = results["config"].get("teacher", {}).get("finetune")
    return weak_teacher(ahead, _reached(results, "teacher"), _reached(results, "baseline"), steps, tuning)


def weak_teacher(
    ahead: Figure, teacher: Figure, baseline: Figure, steps: tuple[int, int], tuning: Mapping[str, Any] | None
) -> str:
    """That a teacher is worse than the student without it, and what to set.

    ``ahead``: what it has more. ``steps``: that it and the baseline took. ``tuning``: its settings, if it was tuned.
    """
    told = f"The teacher is worse than the student without it: {ahead.about.words} {teacher.said} "
    told += f"against {baseline.text} ({ahead.difference})."
    taken, other = steps
    if not taken or not other or not tuning:
        return told
    told += f" It was fine-tuned for {taken:,} steps, the student without it for {other:,}"
    least, rate = tuning.get("min_epochs"), tuning.get("learning_rate")
    if least is not None and taken >= other:
        rate_text = f", now {rate:g}" if isinstance(rate, int | float) else ""
        return f"{told}: try another learning rate (teacher.finetune.learning_rate{rate_text}) or another teacher."
    setting, epochs = ("num_epochs", tuning.get("num_epochs")) if least is None else ("min_epochs", least)
    longer = f"={ceil(epochs * max(2.0, other / taken))}" if isinstance(epochs, int | float) else ""
    return f"{told}: train it longer (--set teacher.finetune.{setting}{longer})."


def _over_seeds(results: Mapping[str, Any]) -> str:
    """The means over the seeds, where several were trained."""
    seeds, (name, about) = results.get("seeds"), _main(results)
    if seeds is None:
        return ""
    told = f"{about.words} {about.said_around(seeds['student']['test'][name])}"
    if seeds["baseline"]:
        told += f" with the teacher, {about.around(seeds['baseline']['test'][name])} without"
    return f"Over {seeds['num']} seeds, mean ± standard deviation: {told}."


def _against_words(results: Mapping[str, Any]) -> str:
    """Said where a linear model on words does as well as the student, as far as the test rows can tell."""
    if results.get("tfidf") is None:
        return ""
    ahead, words = _ahead(results, "tfidf"), _reached(results, "tfidf")
    if ahead.is_better or ahead.why:  # why is said already, of the student alone
        return ""
    verb = "is better than" if ahead.is_worse else "does as well as"
    return f"A linear model on TF-IDF {verb} the student: {words.about.words} {words.said} ({ahead.difference})."


def _against_champion(results: Mapping[str, Any]) -> str:
    if results["champion"] is None:
        return ""
    ahead, reached = _ahead(results, "champion"), _reached(results, "champion")
    if ahead.why:
        return f"Whether the student is better than the champion is not known: {ahead.why}."
    word = "better" if ahead.is_better else "worse" if ahead.is_worse else "not measurably different"
    return f"The champion reaches {reached.text}: the student is {word} ({ahead.difference})."
