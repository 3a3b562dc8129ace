"""What an export came to, on the terminal: one table with torch and every format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from raydistill.config.metrics import metric as facts_of
from raydistill.deploy.export.checks import TORCH
from raydistill.evaluate.figure import ABSENT, Figure
from raydistill.evaluate.latency import of_tokens

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def print_export(console: Console, found: Mapping[str, Any]) -> None:
    """The table, its conditions, the reasons of every refusal, and where the folders lie."""
    from rich.text import Text

    console.print(export_table(found))
    console.print(Text(conditions(found), style="dim"))
    for note in found["notes"]:
        console.print(f"- {note}", markup=False)
    for form, section in found["formats"].items():
        for note in section["notes"]:
            console.print(f"- {form}: {note}", markup=False)
    console.print()
    for form, section in found["formats"].items():
        opset = f", opset {section['opset']}" if section["opset"] else ""
        if section["good"]:
            line = Text.assemble((form, "bold"), f" is good: {section['path']} ({section['runtime']}{opset})")
        else:
            line = Text.assemble((f"{form} is refused", "bold red"), f": {' '.join(section['reasons'])}")
            line.append(f" It lies at {section['path']} to look at.")
        console.print(line, soft_wrap=True)


def export_table(found: Mapping[str, Any]) -> Table:
    """Two lines a format, the second with verdict and 95 % intervals; fits 80 columns."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    metric = found["demand"]["metric"]
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("format", no_wrap=True)
    for heading in headings(metric):
        table.add_column(heading, justify="right", no_wrap=heading != metric)
    for form, section in {"torch float32": found[TORCH], **found["formats"]}.items():
        table.add_row(form, *cells(section, metric))
        verdict = {True: Text("  good", style="green"), False: Text("  refused", style="bold red")}
        bounds = [interval(section.get(name), metric) for name in ("metric", "difference")]
        table.add_row(verdict.get(section.get("good"), ""), *(Text(text, style="dim") for text in bounds))
    return table


def headings(metric: str) -> tuple[str, ...]:
    return (facts_of(metric).title, "difference", "outputs", "same", "MB", "ms", "rows/s")


def cells(section: Mapping[str, Any], metric: str) -> list[str]:
    """Metric, its difference, largest difference of an output, agreement, size, latency, speed."""
    value, change = (Figure.of(metric, section.get(name)) for name in ("metric", "difference"))
    largest, same = section.get("largest_difference"), section.get("agreement")
    return [
        value.text,
        f"{'+' if (change.value or 0) > 0 else ''}{change.text}",
        ABSENT if largest is None else f"{largest:.1g}",
        ABSENT if same is None else f"{100 * same:.1f}",
        f"{section['bytes'] / 1e6:.1f}",
        ABSENT if section["latency_ms"] is None else f"{section['latency_ms']['p50']:.2f}",
        ABSENT if section["throughput"] is None else f"{section['throughput']:,.0f}",
    ]


def interval(found: Mapping[str, float | None] | None, metric: str) -> str:
    bounds = Figure.of(metric, found).bounds(", ")
    return f"[{bounds}]" if bounds else ""


def conditions(found: Mapping[str, Any]) -> str:
    """On what, and under which conditions, the numbers were measured."""
    data, demand = found["data"], found["demand"]
    margin = facts_of(demand["metric"]).amount(demand["margin"])
    drawn = f" (drawn from {data['of_rows']:,})" if data["num_rows"] < data["of_rows"] else ""
    text = (
        f"{data['num_rows']:,} rows{drawn} of {data['source']}. Difference: to torch, paired; outputs: "
        f"largest difference; same: agreement with torch, %. Margin {margin}."
    )
    if setting := found[TORCH]["latency_setting"]:
        threads = "1 CPU thread" if setting["threads"] == 1 else f"{setting['threads']} CPU threads"
        text += (
            f" Latency p50 of 1 row, speed at {setting['batch_size']} rows{of_tokens(setting)}, taking "
            f"turns in one process: {threads}."
        )
    return text
