"""``report.html`` of a gate's verdict: what was asked of a version, what was measured, and what became of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raydistill.evaluate.intervals import turned
from raydistill.evaluate.report.comparison import (
    Cell,
    Contender,
    Row,
    answer_pictures,
    cost_rows,
    interval,
    quality_rows,
    side_by_side,
)
from raydistill.evaluate.report.figures import Picture
from raydistill.evaluate.report.render import clean, render, write_page, yaml_text
from raydistill.evaluate.report.scales import ABSENT, scale
from raydistill.evaluate.rules import title_of

MARKS = {"passed": "✓", "failed": "✗", "skipped": "–", "off": "○", "refused": "✗", "forced": "!"}
ORDER = ("failed", "passed", "skipped", "off")


def write_gate_report(verdict: Mapping[str, Any], path: Path) -> None:
    """Write the page of a verdict (schema 1); an older page at that place is replaced at once.

    ConfigError where the place cannot be written.
    """
    write_page(page_text(verdict), path)


def page_text(verdict: Mapping[str, Any]) -> str:
    """The page's HTML."""
    shown = clean(verdict)
    pictures: dict[str, list[Picture]] = {"answers": []}
    compared: dict[str, Any] = {"contenders": [], "groups": [], "pairs": [], "data": None}
    notes = shown["notes"]
    if comparison := shown.get("comparison"):
        contenders, labels = gate_contenders(shown), comparison["data"]["labels"]
        pictures["answers"] = answer_pictures(contenders, len(labels))
        metrics = comparison["data"]["task"]["metrics"]
        groups = [quality_rows(contenders, metrics), difference_rows(comparison, contenders), cost_rows(contenders)]
        compared = {"groups": groups, "pairs": comparison["pairs"], "data": comparison["data"]}
        compared |= side_by_side(contenders, labels)
        notes = [*notes, *comparison["notes"]]
    return render(
        "gate.html",
        pictures,
        package="raydistill.deploy.gate",
        verdict=shown,
        rules=sorted(shown["rules"], key=lambda rule: ORDER.index(rule["verdict"])),
        marks=MARKS,
        titles=title_of,
        notes=list(dict.fromkeys(notes)),
        settings=yaml_text(shown["gate"]),
        **compared,
    )


def gate_contenders(verdict: Mapping[str, Any]) -> list[Contender]:
    """The champion, where there is one, and the challenger."""
    versions = {"champion": verdict["champion"], "challenger": verdict["version"]}
    models = verdict["comparison"]["models"]
    return [
        Contender(
            name,
            name,
            f"version {version}" if version is not None else "",
            models[name],
            models[name]["metrics"],
            is_main=name == "challenger",
        )
        for name, version in versions.items()
        if name in models
    ]


def difference_rows(comparison: Mapping[str, Any], contenders: Sequence[Contender]) -> list[Row]:
    """What the challenger has more than the champion, paired; empty where there is no champion."""
    rows = []
    for pair in comparison["pairs"]:
        for name in comparison["data"]["task"]["metrics"]:
            found = pair["differences"][name]
            figure = found if pair["second"] == "challenger" else turned(found)
            cell = Cell(ABSENT)
            if figure["value"] is not None:
                cell = Cell(scale(name).text(figure["value"]), interval(name, figure))
            unit = scale(name)
            label = f"{unit.name}, {'points' if unit.unit == '%' else 'difference'} above the champion"
            rows.append(Row(label, [cell if one.is_main else Cell("") for one in contenders]))
    return rows
