"""The report of a gate's verdict: what it says, in which order, that it is safe, and that a browser draws it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kit.browser import HOSTILE, Tags, assert_fetches_nothing, assert_harmless, browse, figures_of, traces

from raydistill.deploy.gate import page as gate
from raydistill.deploy.gate.page import write_gate_report
from raydistill.evaluate.results import strict_json
from raydistill.evaluate.scoreboard import Scoreboard, describe_task
from raydistill.tasks import Targets, TextClassification, TextRegression
from raydistill.tasks.multi_label import MultiLabelClassification

LABELS = ("business", "politics", "sports")
TASKS = {
    "classes": TextClassification(LABELS),
    "numbers": TextRegression(),
    "several labels": MultiLabelClassification(LABELS, (0.5, 0.4, 0.6)),
}


def classes(dice: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    labels = dice.integers(0, 3, 300)
    return labels, np.eye(3)[labels]


def numbers(dice: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    values = dice.normal(size=300)
    return values, values[:, None]


def several_labels(dice: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    rows = (dice.random((300, 3)) < 0.4).astype(np.int8)
    return rows, rows - 0.5


PROBLEMS = {"classes": classes, "numbers": numbers, "several labels": several_labels}
"""Targets, and outputs that are right, of 300 rows."""
SPEED = {"batch_size": 32, "length": 16, "repeats": 40, "threads": 2, "device": "cpu"}


def make_rule(name: str, verdict: str, value: str = "1.0", limit: str = "<= 2.0", why: str = "") -> dict[str, Any]:
    shown = {"value": value, "limit": limit}
    return {"name": name, "about": f"what {name} is", "value": 1.0, "limit": 2.0, "shown": shown} | {
        "verdict": verdict,
        "why": why,
    }


def make_comparison(with_champion: bool = True, swapped: bool = False, kind: str = "classes") -> dict[str, Any]:
    """As ``deploy.paired`` measures it; the challenger is better."""
    dice = np.random.default_rng(1)
    strengths = {"champion": 1.0, "challenger": 2.5} if with_champion else {"challenger": 2.5}
    if swapped:
        strengths = dict(reversed(strengths.items()))
    values, wanted = PROBLEMS[kind](dice)
    outputs = {n: s * wanted + dice.normal(size=wanted.shape) for n, s in strengths.items()}
    targets, task = Targets(values, np.ones(len(values), bool)), TASKS[kind]
    board = Scoreboard(dict.fromkeys(outputs, task), outputs, targets, num_samples=200)
    models = {
        name: {
            **{"path": f"/models/{name}", "runtime": "torch", "max_length": 16, "num_parameters": 10_000_000},
            **{"bytes": 40_000_000, "latency_ms": {"p50": 3.25, "p95": 4.5}, "throughput": 900.0},
            "latency_setting": SPEED,
            "metrics": board.intervals(name),
            **board.details(name),
        }
        for name in outputs
    }
    first, *others = outputs
    about = {"labels": task.outputs, "task": describe_task(task)}
    data = {"source": "the run's own data (data/abc)", "split": "test", "num_rows": 300, **about}
    summary = {"data": data, "bootstrap": {"samples": 200, "level": 0.95}, "models": models}
    pairs = [board.pair(first, second) for second in others]
    return strict_json(summary | {"pairs": pairs, "notes": ["3 rows were left out."]})


def make_verdict(**changes: Any) -> dict[str, Any]:
    rules = [
        make_rule("labels", "passed", "same", "same"),
        make_rule("retention", "failed", "92.1 %", ">= 95.0 %", "its interval begins at 90.2 %"),
        make_rule("latency", "skipped", "–", "–", "there is no champion"),
        make_rule("bytes", "off", "62.5 MB", "none", "switched off"),
        make_rule("calibration", "passed", "0.061", "<= 0.15"),
    ]
    verdict = {
        **{"schema": 2, "name": "bbc-news", "version": 3, "champion": 2, "verdict": "refused", "moved": False},
        "sentence": "Version 3 of bbc-news is refused, version 2 stays the champion: it keeps too little.",
        **{"reason": None, "previous": None, "time": "2026-11-24T22:14:07+00:00", "rules": rules},
        "gate": {"metric": "accuracy", "min_retention": 0.95, "token": "hunter2"},
        "comparison": make_comparison(),
        "retention": {"value": 0.921, "low": 0.902, "high": 0.944, "num_rows": 300},
        "notes": ["Rows of the run.", "3 rows were left out."],
    }
    return json.loads(json.dumps(verdict | changes))


def write(verdict: dict[str, Any], folder: Path) -> str:
    write_gate_report(verdict, folder / "gate.html")
    return (folder / "gate.html").read_text("utf-8")


def test_what_the_page_says(tmp_path: Path) -> None:
    verdict = make_verdict()
    page = write(verdict, tmp_path)
    text = Tags(page).text
    for part in (
        "bbc-news version 3 ✗ refused",
        "Against champion version 2, 2026-11-24 22:14:07",
        verdict["sentence"],
        "Against champion version 2",
        "2 passed 1 failed 1 skipped 1 off",
        "300 of test, from the run's own data (data/abc)",
        "its interval begins at 90.2 %",
        "min_retention: 0.95",
    ):
        assert part in text, part
    assert text.index(verdict["sentence"]) < text.index("what retention is")
    assert text.count("3 rows were left out.") == 1
    assert "hunter2" not in page


def test_failed_rules_come_first_each_with_value_limit_and_verdict(tmp_path: Path) -> None:
    text = Tags(write(make_verdict(), tmp_path)).text
    rules = text[text.index("Rules verdict rule") :]
    places = [rules.index(f"{name} what") for name in ("retention", "labels", "calibration", "latency", "bytes")]
    assert places == sorted(places)
    assert "✗ failed retention what retention is 92.1 % >= 95.0 % its interval" in rules
    assert "✓ passed calibration what calibration is 0.061 <= 0.15" in rules
    assert "– skipped latency" in rules
    assert "○ off bytes" in rules


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"verdict": "passed", "moved": True, "previous": 2}, ["✓ passed"]),
        ({"verdict": "forced", "moved": True, "reason": "on call"}, ["! forced", "on call"]),
        ({"champion": None, "comparison": make_comparison(False)}, ["No champion yet", "The model"]),
    ],
)
def test_what_became_of_the_version(tmp_path: Path, changes: dict[str, Any], parts: list[str]) -> None:
    text = Tags(write(make_verdict(**changes), tmp_path)).text
    for part in parts:
        assert part in text, part


def test_verdict_without_a_comparison(tmp_path: Path) -> None:
    page = write(make_verdict(comparison=None, retention=None), tmp_path)
    assert figures_of(page) == {}
    for part in ("models", "confusion", "classes"):
        assert f'<section id="{part}"' not in page
    assert "what retention is" in Tags(page).text


@pytest.mark.parametrize("swapped", [False, True])
def test_differences_are_the_challenger_s(swapped: bool) -> None:
    comparison = make_comparison(swapped=swapped)
    verdict = make_verdict(comparison=comparison)
    contenders = gate.gate_contenders(verdict)
    assert [(one.name, one.note, one.is_main) for one in contenders] == [
        ("champion", "version 2", False),
        ("challenger", "version 3", True),
    ]
    accuracy = {one.name: one.figures["accuracy"]["value"] for one in contenders}
    row = gate.difference_rows(comparison, contenders)[0]
    gain = 100 * (accuracy["challenger"] - accuracy["champion"])
    assert gain > 5
    assert [cell.text for cell in row.cells] == ["", f"{gain:.1f}"]
    low, high = map(float, row.cells[1].detail.split(" to "))
    assert low < gain < high
    page = gate.page_text(verdict)
    mcnemar = comparison["pairs"][0]["mcnemar"]
    better = mcnemar["only_first" if swapped else "only_second"]
    assert better > mcnemar["only_second" if swapped else "only_first"]
    assert f"{better} rows are right with the challenger alone" in Tags(page).text


@pytest.mark.parametrize(
    ("kind", "said", "unsaid"),
    [
        ("numbers", ["Pearson correlation", "RMSE"], ["accuracy", "McNemar"]),
        ("several labels", ["micro F1", "≥ 0.40"], ["accuracy"]),
    ],
)
def test_pages_of_other_tasks(kind: str, said: list[str], unsaid: list[str], tmp_path: Path) -> None:
    verdict = make_verdict(comparison=make_comparison(kind=kind), gate={"metric": None, "min_retention": 0.95})
    text = Tags(write(verdict, tmp_path)).text
    for part in said:
        assert part in text, part
    for part in unsaid:
        assert part not in text, part


def hostile(node: Any, name: str = "") -> Any:
    """Hostile text wherever text is free."""
    if isinstance(node, dict):
        return {key: hostile(child, key) for key, child in node.items()}
    if isinstance(node, list):
        return [hostile(child, name) for child in node]
    fixed = ("verdict", "first", "second", "time", "device", "metric", "metrics", "main_metric", "type")
    return node + HOSTILE if isinstance(node, str) and name not in fixed else node


def test_hostile_text_is_text(tmp_path: Path) -> None:
    page = write(hostile(make_verdict(reason="because")), tmp_path)
    assert_harmless(page)
    dom, console = browse(tmp_path / "gate.html")
    assert "<title>owned" not in dom
    assert console == ""


def test_a_browser_draws_it_without_a_network(tmp_path: Path) -> None:
    verdict = make_verdict()
    page = write(verdict, tmp_path)
    assert_fetches_nothing(page)
    dom, console = browse(tmp_path / "gate.html")
    assert console == ""
    drawn = figures_of(page)["reliability"]
    assert dom.count('class="trace scatter') == len(drawn["data"]) == 3
    bins = verdict["comparison"]["models"]["champion"]["reliability"]
    shown = next(points for name, points in traces(drawn).items() if name.startswith("champion"))
    assert [x for x, _ in shown] == pytest.approx([100 * entry["confidence"] for entry in bins])
