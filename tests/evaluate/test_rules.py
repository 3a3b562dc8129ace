"""The rules of a gate on facts that are known, and the file that sets them."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from raydistill.config.gate import Gate
from raydistill.config.loading import load_gate
from raydistill.config.metrics import METRICS
from raydistill.errors import ConfigError
from raydistill.evaluate.intervals import tango
from raydistill.evaluate.rules import (
    Facts,
    Retention,
    Ruling,
    compared_metric,
    judge,
    judge_inferiority,
    megabytes,
    signed,
    title_of,
)

OFF = {
    "min_retention": None,
    "non_inferiority_margin": None,
    "max_latency_ratio": None,
    "max_bytes": None,
    "min_class_recall": None,
    "max_calibration_error": None,
    "max_leaked_rows": None,
    "min_rows": None,
    "above_chance": False,
}


def model(**changes: Any) -> dict[str, Any]:
    """As in a comparison: accuracy 0.9, every class found for 80 % or more, well calibrated, 4 ms, 50 MB."""
    accuracy = {"value": 0.9, "low": 0.87, "high": 0.93}
    recalls = {"art": 0.8, "sport": 0.95}
    return {
        "metrics": {
            "accuracy": accuracy,
            "macro_f1": accuracy,
            "calibration_error": {"value": 0.05, "low": 0.03, "high": 0.08},
        },
        "per_class": [{"name": name, "recall": recall, "support": 200} for name, recall in recalls.items()],
        "latency_ms": {"p50": 4.0, "p95": 5.0},
        "bytes": 50_000_000,
    } | changes


def pair(value: float, low: float, high: float, latency_ratio: float = 1.05) -> dict[str, Any]:
    mcnemar = {"only_first": 12, "only_second": 10, "p": 0.83}
    accuracy = {"value": value, "low": low, "high": high}
    return {"differences": {"accuracy": accuracy}, "mcnemar": mcnemar, "latency_ratio": latency_ratio}


GOOD = Facts(
    challenger=model(),
    chance={
        "at_chance": False,
        "reason": None,
        "why": "",
        "metric": "accuracy",
        "value": 0.5,
        "answer": 'always answering "art"',
    },
    task={"type": "text_classification", "main_metric": "accuracy"},
    champion=model(latency_ms={"p50": 3.8, "p95": 5.0}),
    pair=pair(-0.005, -0.015, 0.006),
    labels=("art", "sport"),
    champion_labels=("sport", "art"),
    retention=Retention(0.97, 0.95, 0.99, 400),
    leaked={"train": 0, "validation": 0},
    num_rows=400,
)


def at_chance(reason: str, why: str) -> dict[str, Any]:
    return {**GOOD.chance, "at_chance": True, "reason": reason, "why": why}


ONE_CLASS = at_chance("constant", 'it answers "art" for every row')
AT_FLOOR = at_chance("floor", "its accuracy reaches down to it")
SKEWED = at_chance("floor_only", "its accuracy reaches down to it, although MCC 0.3 shows that it learned something")


def judged(facts: Facts, gate: Gate | None = None) -> dict[str, Ruling]:
    return {ruling.name: ruling for ruling in judge(gate or Gate(), facts)}


@pytest.mark.parametrize(
    ("rule", "facts", "said"),
    [
        ("labels", replace(GOOD, champion_labels=("art", "tax")), "it lacks tax; it adds sport"),
        ("rows", replace(GOOD, num_rows=199), "by luck"),
        ("leaked_rows", replace(GOOD, leaked={"train": 3, "validation": 1}), "3 in train, 1 in validation"),
        ("leaked_rows", replace(GOOD, leaked=None), "keeps no hashes"),
        ("above_chance", replace(GOOD, chance=ONE_CLASS), "for every row"),
        ("above_chance", replace(GOOD, chance=AT_FLOOR), "reaches"),
        ("retention", replace(GOOD, retention=Retention(0.949, 0.92, 0.97, 400)), "92.0 % to 97.0 %"),
        ("retention", replace(GOOD, retention=None), "keeps no predictions of a teacher"),
        ("retention", replace(GOOD, retention=Retention(None, None, None, 400)), "not above 0"),
        ("non_inferiority", replace(GOOD, pair=pair(-0.005, -0.021, 0.01)), "10 against 12, McNemar's p 0.83"),
        ("latency", replace(GOOD, pair=pair(-0.005, -0.015, 0.006, 1.26)), "medians 4.00 and 3.80 ms"),
        ("class_recall", replace(GOOD, challenger=model(per_class=[
            {"name": "art", "recall": 0.49, "support": 40}, {"name": "sport", "recall": 1.0, "support": 40}
        ])), "art 49.0 % of 40 rows"),
        ("calibration", replace(GOOD, challenger=model(metrics={
            **model()["metrics"], "calibration_error": {"value": 0.16, "low": 0.1, "high": 0.2}
        })), ""),
    ],
)  # fmt: skip
def test_each_rule_fails_alone_and_says_why(rule: str, facts: Facts, said: str) -> None:
    found = judged(facts)
    assert [name for name, ruling in found.items() if ruling.verdict == "failed"] == [rule]
    assert said in found[rule].why
    assert found[rule].shown["value"]
    assert found[rule].shown["limit"]


@pytest.mark.parametrize(
    ("setting", "limit", "rule", "facts"),
    [
        ("min_retention", 0.97, "retention", GOOD),
        ("non_inferiority_margin", 0.015, "non_inferiority", GOOD),
        ("max_latency_ratio", 1.05, "latency", GOOD),
        ("max_bytes", 50_000_000, "bytes", GOOD),
        ("min_class_recall", 0.8, "class_recall", GOOD),
        ("max_calibration_error", 0.05, "calibration", GOOD),
        ("min_rows", 400, "rows", GOOD),
        ("max_leaked_rows", 2, "leaked_rows", replace(GOOD, leaked={"train": 2, "validation": 0})),
    ],
)
def test_a_value_at_its_limit_passes_and_one_beyond_does_not(
    setting: str, limit: float, rule: str, facts: Facts
) -> None:
    ruling = judged(facts, Gate(**{setting: limit}))[rule]
    assert ruling.verdict == "passed"
    assert ruling.value == pytest.approx(ruling.limit)
    step = 0.001 if isinstance(limit, float) else 1
    stricter = limit + step if setting.startswith("min") else limit - step
    assert judged(facts, Gate(**{setting: stricter}))[rule].verdict == "failed"


def test_a_label_of_few_rows_vetoes_nothing() -> None:
    entries = [("art", 0.9, 200), ("tax", 0.4, 10), ("law", 0.0, 9), ("ads", 0.0, 2), ("pop", 0.0, 0)]
    per_class = [{"name": name, "recall": recall, "support": rows} for name, recall, rows in entries]
    facts = replace(GOOD, challenger=model(per_class=per_class))
    found = judged(facts)["class_recall"]
    assert (found.verdict, found.value) == ("failed", 0.4)
    assert found.why == "tax 40.0 % of 10 rows; with fewer than 10 rows, so not judged: law, ads, pop"
    assert judged(facts, Gate(min_class_rows=11))["class_recall"].verdict == "passed"
    assert judged(facts, Gate(min_class_rows=1))["class_recall"].value == 0.0
    nothing = judged(replace(GOOD, challenger=model(per_class=per_class[2:])))["class_recall"]
    assert (nothing.verdict, nothing.why) == ("skipped", "no label has 10 rows or more")


def test_of_many_weak_labels_the_three_weakest_are_named() -> None:
    per_class = [{"name": f"label {n}; a", "recall": (n * 7 % 15) / 50, "support": 20} for n in range(15)]
    per_class += [{"name": f"rare {n}", "recall": 0.0, "support": 1} for n in range(6)]
    facts = replace(GOOD, challenger=model(per_class=[*per_class, {"name": "art", "recall": 1.0, "support": 20}]))
    weak = "label 0; a 0.0 % of 20 rows, label 13; a 2.0 % of 20 rows, label 11; a 4.0 % of 20 rows and 12 more"
    rare = "with fewer than 10 rows, so not judged: rare 0, rare 1, rare 2 and 3 more"
    found = judged(facts)["class_recall"]
    assert found.why == f"{weak}; {rare}"
    four = judged(facts, Gate(min_class_recall=0.07))["class_recall"]
    assert four.why.startswith(weak.replace("12 more", "1 more"))


def test_without_a_champion_or_with_other_labels_nothing_is_compared() -> None:
    """What is said of a first version stands in ``gate_rulings.txt``."""
    found = judged(replace(GOOD, champion=None, pair=None, champion_labels=("art", "tax")))
    assert found["labels"].verdict == "failed"
    assert {found[name].verdict for name in ("non_inferiority", "latency")} == {"skipped"}
    assert found["latency"].why == "the champion has other labels"
    assert {judged(replace(GOOD, **{gone: None}))["latency"].verdict for gone in ("champion", "pair")} == {"skipped"}


BAD = replace(
    GOOD,
    challenger=model(
        per_class=[
            {"name": "art", "recall": 0.25, "support": 1200},
            {"name": "sport", "recall": 0.4, "support": 30},
            {"name": "tax", "recall": 0.0, "support": 0},
            {"name": "law", "recall": 0.0, "support": 0},
        ],
        metrics={**model()["metrics"], "calibration_error": {"value": 0.16, "low": 0.1, "high": 0.2}},
    ),
    chance=AT_FLOOR,
    pair=pair(-0.03, -0.0512, -0.01, 1.5),
    labels=("art", "sport", "law", "ads"),
    champion_labels=("art", "tax", "sport", "pop", "net"),
    retention=Retention(0.5, 0.4, 0.6, 1200),
    leaked={"train": 1300, "validation": 2},
    num_rows=12_000,
)
NOT_KNOWN = replace(
    GOOD,
    leaked=None,
    retention=Retention(None, None, None, 400),
    pair={
        **GOOD.pair,  # type: ignore[dict-item]
        "latency_ratio": None,
        "differences": {"macro_f1": {"value": None, "low": None, "high": None}},
    },
    chance=SKEWED,
)
FIRST = replace(
    GOOD,
    champion=None,
    pair=None,
    champion_labels=None,
    retention=Retention(0.97, None, 0.99, 150),
    num_rows=150,
    chance=ONE_CLASS,
)
F1 = Gate(metric="macro_f1")


NUMBERS = replace(
    GOOD,
    task={"type": "text_regression", "main_metric": "pearson"},
    challenger={
        "metrics": {
            "pearson": {"value": 0.9, "low": 0.88, "high": 0.92},
            "r2": {"value": 0.8, "low": 0.77, "high": 0.83},
            "rmse": {"value": 0.3, "low": 0.25, "high": 0.35},
        },
        "latency_ms": {"p50": 4.0, "p95": 5.0},
        "bytes": 50_000_000,
    },
    chance={**GOOD.chance, "metric": "r2", "value": 0.0, "answer": "always answering the mean, 3"},
    pair={
        "differences": {"pearson": {"value": -0.004, "low": -0.015, "high": 0.006}},
        "mcnemar": None,
        "latency_ratio": 1.05,
    },
    labels=("value",),
    champion_labels=("LABEL_0",),
)
"""Of a regression: no classes, no probabilities, nothing right or wrong."""


MASKED = replace(
    NUMBERS,
    task={"type": "masked_language_modeling", "main_metric": "masked_accuracy"},
    challenger={
        **NUMBERS.challenger,
        "metrics": {
            "masked_accuracy": {"value": 0.3, "low": 0.28, "high": 0.32},
            "perplexity": {"value": 96.04, "low": 80.0, "high": 118.0},
        },
    },
    champion={"metrics": {"perplexity": {"value": 95.2, "low": 79.0, "high": 117.0}}, "latency_ms": {"p50": 3.8}},
    chance={**GOOD.chance, "metric": "masked_accuracy", "value": 0.1, "answer": "always guessing the same token"},
    pair={
        "differences": {"perplexity": {"value": 0.84, "low": -0.6, "high": 2.4}},
        "ratios": {"perplexity": {"value": 1.00882, "low": 0.9931, "high": 1.0249}},
        "mcnemar": None,
        "latency_ratio": 1.05,
    },
    labels=(),
    champion_labels=(),
    retention=Retention(0.96, 0.93, 0.99, 400),
)
"""Of a gate that compares perplexity."""
PERPLEXITY = Gate(metric="perplexity", min_retention=0.97)
NO_RATIO = replace(
    MASKED,
    pair={**MASKED.pair, "ratios": {"perplexity": {"value": None, "low": None, "high": None}}},
    retention=Retention(None, None, None, 400),
)


def test_less_of_an_amount_is_better() -> None:
    """Retention falls as the student has more; what the margin allows is a share of what the champion has."""
    for margin, verdict in ((0.0249, "passed"), (0.0248, "failed"), (0.0, "failed"), (None, "off")):
        gate = Gate(metric="perplexity", non_inferiority_margin=margin)
        found = judged(MASKED, gate)
        assert (found["retention"].verdict, found["non_inferiority"].verdict) == ("passed", verdict), margin
        assert found["non_inferiority"].value == 1.0249
        assert found["non_inferiority"].limit == (None if margin is None else pytest.approx(1 + margin))
    below = replace(MASKED, pair={**MASKED.pair, "ratios": {"perplexity": {"value": 0.8, "low": 0.7, "high": 0.9}}})
    assert judged(below, Gate(metric="perplexity", non_inferiority_margin=0.0))["non_inferiority"].verdict == "passed"


def test_the_main_metric_is_compared_unless_the_gate_names_another_that_the_task_has() -> None:
    for name, expected in ((None, "pearson"), ("r2", "r2")):
        assert compared_metric(Gate(metric=name), NUMBERS.task, NUMBERS.challenger["metrics"]) == expected
    with pytest.raises(
        ConfigError, match=r"compares accuracy, which text regression does not have.*pearson, r2, rmse\."
    ):
        judged(NUMBERS, Gate(metric="accuracy"))
    for name, said in (("acuracy", ""), ("log_loss", "near 0"), ("calibration_error", "near 0")):
        with pytest.raises(ConfigError, match=f"metric: '{name}' is not compared.*{said}.* Known: accuracy, .*perplex"):
            load_gate({"metric": name})


@pytest.mark.parametrize(("labels", "text"), [(("art",), "1 label"), (("art", "tax"), "2 labels")])
def test_one_label_is_no_plural(labels: tuple[str, ...], text: str) -> None:
    found = judged(replace(GOOD, labels=labels, champion_labels=labels))["labels"]
    assert (found.verdict, found.shown["value"]) == ("passed", text)


def test_what_a_person_reads_of_every_rule() -> None:
    """Names, figures, limits and reasons, of models that are good, bad, not comparable, and the first ones."""
    lines = []
    for title, facts, gate in (
        ("good", GOOD, Gate(max_bytes=60_000_000, min_rows=400)),
        ("bad", BAD, Gate(max_bytes=40_000_000)),
        ("bad, all rules off", BAD, Gate(**OFF)),
        ("not known", NOT_KNOWN, F1),
        ("not known, all rules off", NOT_KNOWN, F1.model_copy(update=OFF)),
        ("no champion", FIRST, Gate()),
        ("numbers", NUMBERS, Gate()),
        ("an amount", MASKED, PERPLEXITY),
        ("an amount without a ratio", NO_RATIO, PERPLEXITY),
        ("an amount, no champion", replace(MASKED, champion=None, pair=None, champion_labels=None), PERPLEXITY),
    ):
        lines.append(f"# {title}")
        for name, r in judged(facts, gate).items():
            figures = f"{r.shown['value']} ({r.value}), limit {r.shown['limit']} ({r.limit})"
            lines.append(f"{name} | {r.about} | {figures} | {r.verdict} | {r.why}".rstrip())
    assert lines == (Path(__file__).parent / "gate_rulings.txt").read_text().splitlines()


def test_names_and_differences_as_people_read_them() -> None:
    """A rule's name without underscores; differences rounded once, with their sign, and no minus before nothing."""
    names = ("above_chance", "retention", "leaked_rows", "bytes")
    expected = ["better than guessing", "retention", "leaked rows", "bytes"]
    assert [title_of(name) for name in names] == expected
    assert megabytes(1e12) == "1,000,000.0 MB"
    shares = [signed(METRICS["accuracy"], share) for share in (-0.0004, 0.12749, -0.021)]
    assert shares == ["+0.0", "+12.7", "-2.1"]
    assert [signed(METRICS["mcc"], value) for value in (-0.0004, 0.5)] == ["+0.000", "+0.500"]


@pytest.mark.parametrize("alone", [0.0, 0.01, 0.05])
@pytest.mark.parametrize("num_rows", [Gate().min_rows, 638])
def test_a_challenger_at_the_margin_passes_as_rarely_as_a_95_percent_interval_says(num_rows: int, alone: float) -> None:
    """Exactly, over all counts: the champion alone is right on 2 % of the rows, and either alone on ``alone`` more."""
    gate = Gate()
    margin = gate.non_inferiority_margin
    counts = stats.multinomial(num_rows, [alone + margin, alone, 1 - margin - 2 * alone])
    only_first = np.arange(stats.binom.ppf(1 - 1e-6, num_rows, alone + margin) + 1)
    only_second = np.arange(stats.binom.ppf(1 - 1e-6, num_rows, alone) + 1)
    rate = 0.0
    for a, b in itertools.product(only_first, only_second):
        low, high = tango(a, b, num_rows)
        facts = replace(GOOD, num_rows=num_rows, pair=pair((b - a) / num_rows, low, high))
        if judge_inferiority(gate, facts).verdict == "passed":
            rate += counts.pmf([a, b, num_rows - a - b])
    assert judged(replace(GOOD, num_rows=num_rows), gate)["rows"].verdict == "passed"
    assert rate < 0.03  # nominal: 0.025; the bootstrap's 0.09 on 200 rows


def test_a_challenger_that_never_differs_passes_from_the_default_on() -> None:
    gate = Gate()
    low, high = tango(0, 0, gate.min_rows)
    facts = replace(GOOD, num_rows=gate.min_rows, pair=pair(0.0, low, high))
    assert judged(facts)["non_inferiority"].verdict == "passed"


def test_a_gate_file_is_strict(tmp_path: Path) -> None:
    path = tmp_path / "gate.yaml"
    path.write_text("min_retention: 0.9\nmax_latncy_ratio: 2\nmax_bytes: '12'\nmin_class_recall: 1.5\n")
    with pytest.raises(ConfigError) as caught:
        load_gate(path)
    for said in (
        "line 2: max_latncy_ratio: unknown name; did you mean max_latency_ratio?",
        "line 3: max_bytes: Input should be a valid integer, got '12'.",
        "line 4: min_class_recall: Input should be less than or equal to 1, got 1.5.",
    ):
        assert said in str(caught.value)
    path.write_text("")
    assert load_gate(path) == Gate()
    path.write_text("min_retention: null\nmetric: macro_f1\n")
    assert load_gate(path) == Gate(min_retention=None, metric="macro_f1")
    path.write_text("- 1\n")
    with pytest.raises(ConfigError, match="expected names with values"):
        load_gate(path)
    with pytest.raises(ConfigError, match="nowhere"):
        load_gate(tmp_path / "nowhere.yaml")
