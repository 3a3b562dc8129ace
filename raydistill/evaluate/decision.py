"""Whether to ship a student: the first line of all that a run ends with, with one reason and what to do next."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import Any

from raydistill.config.metrics import metric
from raydistill.evaluate import rules
from raydistill.evaluate.divergence import divergence_of
from raydistill.evaluate.figure import Figure

SHIP, NOT, UNKNOWN = "ship", "do not ship", "cannot tell yet"
MOST_HELD_OUT = 0.5
"""Share of the rows beyond which it is better to label more than to hold more out."""


def decide(results: Mapping[str, Any]) -> dict[str, str]:
    """{decision: ship, do not ship or cannot tell yet, reason: a sentence, next: a sentence with a command or setting}.

    By the rules of the default gate that need neither a champion nor other rows, and by the champion where the run was
    compared with it; ``results``: those of results.json.
    """
    if (diverged := divergence_of(results["student"])) is not None:
        return _decision(NOT, f"The student's training diverged: {diverged.why}.", f"To mend it, {diverged.advice}.")
    failed = {ruling.name: ruling for ruling in _rulings(results) if ruling.verdict == "failed"}
    too_few = failed.pop("rows", None)
    if too_few is not None and "above_chance" not in failed:
        rows = f"{too_few.shown['value']} labelled row{'s' * (too_few.value != 1)}"
        reason = f"The student was tested on {rows}; the gate needs at least {too_few.limit:,.0f}."
        return _decision(UNKNOWN, reason, _more_rows(results))
    for ruling in failed.values():
        return _decision(NOT, _reason(ruling, results), _way_out(ruling, results))
    if (worse := _below_champion(results)) is not None:
        return _decision(NOT, worse, "The champion stays.")
    name, num_rows = _registered(results), results["data"]["labeled"]["test"]
    step = f"`raydistill promote {name}`" if name else "set registry.name, so that the student is registered"
    reason = (
        f"On {num_rows:,} labelled test rows the student passes each rule of the default gate that needs no champion."
    )
    return _decision(SHIP, reason, f"Next: {step}.")


def decision_of(results: Mapping[str, Any]) -> tuple[str, str]:
    """The decision and the sentences on it; of results from before there were any, too."""
    found = results.get("decision") or decide(results)
    return f"{found['decision'].capitalize()}.", f"{found['reason']} {found['next']}"


def decision_line(results: Mapping[str, Any]) -> str:
    return " ".join(decision_of(results))


def _decision(decision: str, reason: str, step: str) -> dict[str, str]:
    return {"decision": decision, "reason": reason, "next": step}


def _rulings(results: Mapping[str, Any]) -> list[rules.Ruling]:
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
    return [rule(rules.Gate(), facts) for rule in own]


def _reason(ruling: rules.Ruling, results: Mapping[str, Any]) -> str:
    value, limit = ruling.shown["value"], ruling.shown["limit"].lstrip("<>= ")
    words = metric(results["task"]["main_metric"]).words
    if ruling.name == "above_chance":
        return f"The student is {results['task']['guessing']}: {ruling.why}."
    if ruling.value is None:
        return f"A rule of the gate cannot be measured, {ruling.about}: {ruling.why}."
    if ruling.name == "retention":
        return f"The student keeps {value} of its teacher's {words}; the gate asks for at least {limit}."
    if ruling.name == "class_recall":
        return f"The student misses a label too often (recall: {ruling.why}); the gate asks for at least {limit}."
    return f"The student's {ruling.about} is {value}; the gate allows at most {limit}."


def _way_out(ruling: rules.Ruling, results: Mapping[str, Any]) -> str:
    config = results["config"]
    stage, layers = next(iter(config.get("stages", {"distill": {}}))), config.get("student", {}).get("num_layers")
    if (diverged := divergence_of(results["teacher"])) is not None:
        return f"Its teacher's training diverged ({diverged.why}); to mend that first, {diverged.advice}."
    if ruling.name == "above_chance" and results["teacher"]["chance"]["at_chance"]:
        return "Its teacher is no better; mend that first, by more labels or epochs (teacher.finetune.num_epochs)."
    if ruling.name in ("above_chance", "retention"):
        more = f" (--set student.num_layers={layers + 1})" if isinstance(layers, int) else ""
        return f"Try more layers{more} or more epochs (stages.{stage}.num_epochs)."
    if ruling.name == "class_recall":
        return "Label more rows of it, or lower min_class_recall in a gate of your own."
    return "Rely on its answers more than on its scores, or raise max_calibration_error in a gate of your own."


def _registered(results: Mapping[str, Any]) -> str | None:
    name: str | None = results["config"].get("registry", {}).get("name")
    return name


def _more_rows(results: Mapping[str, Any]) -> str:
    """How the gate gets the rows that it needs."""
    name, split = _registered(results), results["config"].get("data", {}).get("split", {}).get("test")
    found, least, ways = results["data"]["labeled"]["test"], rules.Gate().min_rows, []
    if isinstance(split, float) and found and least is not None:
        share = ceil(100 * split * least / found) / 100
        ways += [f"hold more out (--set data.split.test={share:g})"] if share <= MOST_HELD_OUT else []
    ways += ["label more rows"] if not ways else []
    ways += [f"name others (`raydistill promote {name} --data FILE`)"] if name else []
    text = " or ".join(ways)
    return f"{text[0].upper()}{text[1:]}."


def _below_champion(results: Mapping[str, Any]) -> str | None:
    """A sentence where the champion is better beyond chance."""
    name = results["task"]["main_metric"]
    if results["champion"] is None:
        return None
    ahead = Figure.of(name, results["differences"]["student_minus_champion"][name])
    if not ahead.is_worse:
        return None
    own, other = (Figure.of(name, results[model]["test"][name]) for model in ("student", "champion"))
    return f"The champion is better beyond chance: {ahead.about.words} {other.said} against {own.said}."
