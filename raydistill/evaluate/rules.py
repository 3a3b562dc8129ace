"""What a challenger has to hold: the settings of a gate, and the judgement of each rule on measured facts.

A rule that cannot be measured does not pass. Rules against the champion are skipped where there is none, those on
single labels or on probabilities where the task has none.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from raydistill.config.gate import Gate
from raydistill.config.metrics import Metric, metric
from raydistill.errors import ConfigError
from raydistill.evaluate.figure import Figure

NOT_KNOWN = "not known"
NUM_NAMED = 3
"""Labels that a sentence names; tables have all of them."""
TITLES = {"above_chance": "better than guessing"}


def title_of(name: str) -> str:
    """A rule's name for people."""
    return TITLES.get(name, name.replace("_", " "))


@dataclass(frozen=True)
class Retention:
    """As ``Metric.retention`` on the test rows of its run; ``low`` and ``high``: paired 95 % bootstrap interval."""

    value: float | None
    low: float | None
    high: float | None
    num_rows: int


@dataclass(frozen=True)
class Facts:
    """What a gate is judged on."""

    challenger: Mapping[str, Any]
    """As ``models`` of a paired comparison's summary."""
    chance: Mapping[str, Any]
    """As ``evaluate.compare.chance`` returns it."""
    task: Mapping[str, Any]
    """As ``evaluate.scoreboard.describe_task`` returns it."""
    champion: Mapping[str, Any] | None = None
    pair: Mapping[str, Any] | None = None
    """Champion (first) against challenger (second), as ``pairs`` of a paired comparison's summary."""
    labels: tuple[str, ...] = ()
    champion_labels: tuple[str, ...] | None = None
    """None: there is no champion."""
    retention: Retention | None = None
    leaked: Mapping[str, int] | None = None
    """Split -> test rows that stand in it; None: the run keeps no row hashes."""
    num_rows: int = 0


@dataclass(frozen=True)
class Ruling:
    """One rule with what was measured; ``shown`` is value and limit as text."""

    name: str
    about: str
    value: float | None
    limit: float | None
    shown: dict[str, str]
    verdict: Literal["passed", "failed", "skipped", "off"]
    why: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def judge(gate: Gate, facts: Facts) -> list[Ruling]:
    """Every rule, in the order in which a person wants to read them."""
    rules: tuple[Callable[[Gate, Facts], Ruling], ...] = (
        judge_labels,
        judge_rows,
        judge_leak,
        judge_chance,
        judge_retention,
        judge_inferiority,
        judge_latency,
        judge_bytes,
        judge_classes,
        judge_calibration,
    )
    return [rule(gate, facts) for rule in rules]


def compared_metric(gate: Gate, task: Mapping[str, Any], known: Collection[str]) -> str:
    """What retention and non-inferiority compare, of the metrics ``known`` of a task. ConfigError where it lacks it."""
    name: str = gate.metric or task["main_metric"]
    if name not in known:
        raise ConfigError(
            f"The gate compares {name}, which {task['type'].replace('_', ' ')} does not have. Leave metric out to "
            f"compare {task['main_metric']}, or name another of: "
            f"{', '.join(n for n in known if metric(n).is_retained)}."
        )
    return name


def judge_labels(gate: Gate, facts: Facts) -> Ruling:
    about = "the champion's labels"
    if facts.champion_labels is None:
        return skipped("labels", about, "there is no champion")
    if not facts.challenger.get("per_class"):
        return skipped("labels", about, "the task has no labels")
    before, now = set(facts.champion_labels), set(facts.labels)
    gone, new = sorted(before - now), sorted(now - before)
    said = [f"it lacks {', '.join(gone)}"] if gone else []
    said += [f"it adds {', '.join(new)}"] if new else []
    shown = {"value": f"{len(now)} label{'s' * (len(now) != 1)}", "limit": "the same"}
    found = float(len(gone) + len(new))
    return Ruling("labels", about, found, 0.0, shown, "failed" if said else "passed", "; ".join(said))


def judge_rows(gate: Gate, facts: Facts) -> Ruling:
    limit, found = gate.min_rows, facts.num_rows
    few = limit is not None and found < limit
    why = "on so few a worse challenger may pass by luck; more with --data" if few else ""
    return ruling("rows", "labelled rows it is judged on", found, "{:,}".format, limit, "{:,}".format, why)


def judge_leak(gate: Gate, facts: Facts) -> Ruling:
    about, found = "test rows that it was trained or selected on", None
    why = "its run keeps no hashes of its rows, so this is not known"
    if facts.leaked is not None:
        found = sum(facts.leaked.values())
        why = ", ".join(f"{count:,} in {split}" for split, count in facts.leaked.items() if count)

    def shown(count: int) -> str:
        return f"{count:,} of {facts.num_rows:,}"

    return ruling("leaked_rows", about, found, shown, gate.max_leaked_rows, "{:,}".format, why, at_most=True)


def judge_chance(gate: Gate, facts: Facts) -> Ruling:
    chance = facts.chance
    found = Figure.of(chance["metric"], facts.challenger["metrics"][chance["metric"]])
    about, low = found.about, found.low
    told = f"{about.words}, lower end of the interval, against {chance['answer']}"
    if not gate.above_chance:
        return ruling("above_chance", told, low, about.said, None, about.said)
    shown = {"value": NOT_KNOWN if low is None else about.said(low), "limit": f"> {about.said(chance['value'])}"}
    passed = low is not None and (not chance["at_chance"] or chance["reason"] == "floor_only")
    why = chance["why"] or found.why
    return Ruling("above_chance", told, low, chance["value"], shown, "passed" if passed else "failed", why)


def judge_retention(gate: Gate, facts: Facts) -> Ruling:
    name = compared_metric(gate, facts.task, facts.challenger["metrics"])
    found, value, unit = facts.retention, None, metric(name)
    lacks, low = "its run keeps no predictions of a teacher", "the teacher's own is not above 0, or not defined"
    about = f"{unit.words} ÷ its teacher's"
    if unit.is_amount:
        about, low = f"its teacher's {unit.words} ÷ its own (less is better)", not_above("its own")
    why = lacks if found is None else low
    if found is not None and found.value is not None:
        value, why = found.value, f"{found.num_rows:,} test rows of its run"
        if found.low is not None and found.high is not None:
            why = f"95 % interval {percent(found.low)} to {percent(found.high)}, {why}"
    return ruling("retention", about, value, percent, gate.min_retention, percent, why)


def judge_inferiority(gate: Gate, facts: Facts) -> Ruling:
    name = compared_metric(gate, facts.task, facts.challenger["metrics"])
    unit, margin = metric(name), gate.non_inferiority_margin
    if unit.is_amount:
        return judge_ratio(name, gate, facts)
    about = f"{unit.words} - champion's, lower end of the interval"
    if facts.pair is None:
        return skipped("non_inferiority", about, no_champion(facts))
    difference, test = Figure.of(name, facts.pair["differences"][name]), facts.pair["mcnemar"]
    low, points, why = difference.low, " points" if unit.is_share else "", difference.why
    if not why:
        ends = (signed(unit, end) for end in (difference.value, low, difference.high))
        why = "difference {}, 95 % interval {} to {}".format(*ends)
        if test is not None:
            why += f"; right on rows where the other errs: {test['only_second']:,} against {test['only_first']:,}"
            why += f", McNemar's p {test['p']:.2g}"

    def text(value: float) -> str:
        return f"{signed(unit, value)}{points}"

    return ruling("non_inferiority", about, low, text, None if margin is None else -margin, text, why)


def judge_ratio(name: str, gate: Gate, facts: Facts) -> Ruling:
    """Non-inferiority in an amount: it may be larger than the champion's by a share of that."""
    unit, margin = metric(name), gate.non_inferiority_margin
    about = f"{unit.words} ÷ champion's (less is better), upper end of the interval"
    if facts.champion is None or facts.pair is None:
        return skipped("non_inferiority", about, no_champion(facts))
    ratio, why = facts.pair["ratios"][name], not_above("the champion's")
    if (high := ratio["high"]) is not None:
        own, other = (unit.text(model["metrics"][name]["value"]) for model in (facts.challenger, facts.champion))
        why = f"{own} against {other}, ratio {ratio['value']:.3f}, 95 % interval {ratio['low']:.3f} to {high:.3f}"
    limit = None if margin is None else 1 + margin
    return ruling("non_inferiority", about, high, "{:.3f}".format, limit, "{:g}".format, why, at_most=True)


def not_above(whose: str) -> str:
    """Why there is no ratio, and the way out."""
    return f"{whose} is 0 in a part of the rows, or not defined, so there is no ratio; name another metric"


def judge_latency(gate: Gate, facts: Facts) -> Ruling:
    about = "latency of one row ÷ champion's"
    if facts.champion is None or facts.pair is None:
        return skipped("latency", about, no_champion(facts))
    own, other = (model["latency_ms"]["p50"] for model in (facts.challenger, facts.champion))
    ratio, why = facts.pair["latency_ratio"], "the two models compute on different devices"
    if ratio is not None:
        why = f"medians {own:.2f} and {other:.2f} ms"
    return ruling("latency", about, ratio, "{:.2f}".format, gate.max_latency_ratio, "{:g}".format, why, at_most=True)


def judge_bytes(gate: Gate, facts: Facts) -> Ruling:
    size = facts.challenger["bytes"]
    return ruling("bytes", "size on disk", size, megabytes, gate.max_bytes, megabytes, at_most=True)


def judge_classes(gate: Gate, facts: Facts) -> Ruling:
    about, floor = "recall of the weakest label", gate.min_class_recall
    if not facts.challenger.get("per_class"):
        return skipped("class_recall", about, "the task has no labels")
    what = facts.task.get("counted", "rows")
    judged = [entry for entry in facts.challenger["per_class"] if entry["support"] >= gate.min_class_rows]
    if not judged:
        return skipped("class_recall", about, f"no label has {gate.min_class_rows} {what} or more")
    worst = min(judged, key=lambda entry: entry["recall"])
    below = [entry for entry in judged if floor is not None and entry["recall"] < floor]
    weakest = sorted(below, key=lambda entry: entry["recall"])[:NUM_NAMED] or [worst]
    why = ", ".join(f"{e['name']} {percent(e['recall'])} of {e['support']:,} {what}" for e in weakest)
    why += f" and {len(below) - NUM_NAMED:,} more" if len(below) > NUM_NAMED else ""
    unjudged = [entry["name"] for entry in facts.challenger["per_class"] if entry["support"] < gate.min_class_rows]
    if unjudged:
        more = f" and {len(unjudged) - NUM_NAMED:,} more" if len(unjudged) > NUM_NAMED else ""
        why += f"; with fewer than {gate.min_class_rows} {what}, so not judged: {', '.join(unjudged[:NUM_NAMED])}{more}"
    return ruling("class_recall", about, worst["recall"], percent, floor, percent, why)


def judge_calibration(gate: Gate, facts: Facts) -> Ruling:
    about, limit = "expected calibration error", gate.max_calibration_error
    if "calibration_error" not in facts.challenger["metrics"]:
        return skipped("calibration", about, "the task has none")
    error = Figure.of("calibration_error", facts.challenger["metrics"]["calibration_error"])
    why = "" if error.value is not None else error.why
    return ruling("calibration", about, error.value, "{:.3f}".format, limit, "{:g}".format, why, at_most=True)


def ruling(
    name: str,
    about: str,
    value: float | None,
    shown: Callable[[Any], str],
    limit: float | None,
    text: Callable[[Any], str],
    why: str = "",
    *,
    at_most: bool = False,
) -> Ruling:
    """A value, which ``shown`` writes for people, against a limit, which ``text`` does.

    A value that is not known does not pass; the way out is to switch the rule off by name, by a limit of None.
    """
    told = {"value": NOT_KNOWN if value is None else shown(value), "limit": "none"}
    value = None if value is None else float(value)
    if limit is None:
        return Ruling(name, about, value, None, told, "off", "switched off")
    passed = value is not None and (value <= limit if at_most else value >= limit)
    told |= {"limit": f"{'<=' if at_most else '>='} {text(limit)}"}
    return Ruling(name, about, value, float(limit), told, "passed" if passed else "failed", why)


def in_words(found: Ruling) -> str:
    """A ruling in a sentence: what was measured against its limit, or why that is not known."""
    why = f", as {found.why}" if found.value is None and found.why else ""
    return f"{found.about} {found.shown['value']}{why} ({found.shown['limit']})"


def skipped(name: str, about: str, why: str) -> Ruling:
    return Ruling(name, about, None, None, {"value": "–", "limit": "–"}, "skipped", why)


def no_champion(facts: Facts) -> str:
    return "there is no champion" if facts.champion_labels is None else "the champion has other labels"


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def signed(unit: Metric, difference: float | None) -> str:
    """A difference in the metric's unit, with its sign."""
    text = unit.text(difference)
    return text if difference is None or text.startswith("-") else f"+{text}"


def megabytes(size: float) -> str:
    return f"{size / 1e6:,.1f} MB"
