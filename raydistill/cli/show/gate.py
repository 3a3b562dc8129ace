"""A verdict and a registered model's versions on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from math import isfinite
from typing import TYPE_CHECKING, Any

from raydistill.cli.show.runs import main_figure
from raydistill.config.metrics import capitalized, metric
from raydistill.evaluate.figure import ABSENT, Figure
from raydistill.evaluate.rules import title_of
from raydistill.tracking.registry.aliases import PROMOTED, ROLLED_BACK
from raydistill.tracking.registry.verdicts import VERDICT
from raydistill.tracking.registry.versions import Version

if TYPE_CHECKING:
    from rich.console import Console

STYLES = {"passed": "green", "failed": "bold red", "skipped": "dim", "off": "dim"}


def print_verdict(console: Console, verdict: Mapping[str, Any]) -> None:
    """Every rule with value, limit and verdict, then the sentence."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    if verdict["rules"]:
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
        table.add_column("rule")
        for heading in ("value", "limit"):
            table.add_column(heading, justify="right", no_wrap=True)
        table.add_column("verdict", no_wrap=True)
        for rule in verdict["rules"]:
            cell = Text(title_of(rule["name"]))
            why = rule["why"] if rule["verdict"] != "off" else ""
            cell.append(f"\n{rule['about']}" + (f": {why}" if why else ""), style="dim")
            shown, style = rule["shown"], STYLES[rule["verdict"]]
            table.add_row(cell, shown["value"], shown["limit"], Text(rule["verdict"], style=style))
        console.print(table)
        print_comparison(console, verdict["comparison"])
        for note in verdict["notes"]:
            console.print(f"- {note}", markup=False)
        console.print()
    console.print(verdict["sentence"], markup=False)


def print_comparison(console: Console, summary: Mapping[str, Any]) -> None:
    """On what, and under which conditions, the models were measured."""
    data = summary["data"]
    main = data["task"]["main_metric"]
    reached = ", ".join(f"{name} {Figure.of(main, m['metrics'][main]).text}" for name, m in summary["models"].items())
    text = f"{metric(main).words} on {data['num_rows']:,} rows of {data['source']}: {reached}."
    text = capitalized(text)
    console.print(text, markup=False, style="dim")


def print_versions(console: Console, name: str, versions: Sequence[Version]) -> None:
    """A line a version, newest first."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for heading in ("v", "aliases", "score", "retention", "params", "MB", "ms", "gate", "registered"):
        left = heading in ("aliases", "gate", "registered")
        width = 10 if heading == "aliases" else None  # "challenger"
        table.add_column(heading, justify="left" if left else "right", no_wrap=width is None, min_width=width)
    for version in versions:
        table.add_row(*(Text(cell) for cell in version_cells(version)))
    console.print(table)
    found = [main_figure(version.tags, "test/") for version in versions]
    titles = " or ".join(dict.fromkeys(metric(score[0]).title for score in found if score is not None))
    told = f" ({titles})" if titles else ""
    notice = f"Of test rows at registration: score{told}, retention in % of the teacher's; ms: latency of one row."
    console.print(notice, style="dim")
    for version in versions:
        if version.tags.get(VERDICT) == "forced":
            reason = version.tags.get(f"{VERDICT}_reason", "")
            console.print(f"Version {version.version} was forced: {reason}", markup=False)


def version_cells(version: Version) -> list[str]:
    tags = version.tags
    name, score = main_figure(tags, "test/") or ("", "")
    return [
        str(version.version),
        ", ".join(version.aliases),
        metric(name).text(float(score)) if is_number(score) else ABSENT,
        number(tags.get(f"retention/{name}"), 100, "{:.1f}"),
        number(tags.get("num_parameters"), 1e-6, "{:.1f}M"),
        number(tags.get("bytes"), 1e-6, "{:.1f}"),
        number(tags.get("latency_ms/p50"), 1, "{:.2f}"),
        tags.get(VERDICT, ABSENT),
        datetime.fromtimestamp(version.created / 1000, UTC).strftime("%Y-%m-%d"),
    ]


def number(text: str | None, factor: float, form: str) -> str:
    return form.format(factor * float(text)) if text is not None and is_number(text) else ABSENT


def is_number(text: str) -> bool:
    try:
        return isfinite(float(text))
    except ValueError:
        return False


def describe_version(version: Version) -> dict[str, Any]:
    """A version as JSON: figures from its tags, its aliases, the last verdict."""
    tags = version.tags
    figures = {name: float(value) for name, value in tags.items() if "." not in name and is_number(value)}
    verdict = {
        key.removeprefix(f"{VERDICT}_") if key != VERDICT else "verdict": value
        for key, value in tags.items()
        if key == VERDICT or key.startswith(f"{VERDICT}_")
    }
    return {
        "version": version.version,
        "aliases": list(version.aliases),
        "run_id": version.run_id,
        "created": datetime.fromtimestamp(version.created / 1000, UTC).isoformat(timespec="seconds"),
        "figures": figures,
        "gate": verdict or None,
        "promoted": tags.get(PROMOTED),
        "rolled_back": tags.get(ROLLED_BACK),
    }
