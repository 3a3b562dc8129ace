"""`raydistill compare`: several finished models on the same rows, each against the first, paired."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import TYPE_CHECKING, Any

from raydistill.config.data import Data
from raydistill.config.metrics import metric
from raydistill.config.tree import STORAGE
from raydistill.deploy.opening import open_model
from raydistill.deploy.own_rows import find_test_rows, run_id_of
from raydistill.deploy.paired import compare_paired
from raydistill.errors import ConfigError
from raydistill.evaluate.evidence import read_seen
from raydistill.evaluate.figure import ABSENT, Figure
from raydistill.evaluate.report.scales import scale
from raydistill.storage.storage import Storage
from raydistill.tracking.endpoint import tracking_uri
from raydistill.tracking.registry.versions import run_tags

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def compare_models(
    models: Sequence[str],
    data: Data | None = None,
    split: str = "test",
    *,
    max_length: int | None = None,
    latency: bool = True,
    storage: str = STORAGE,
) -> dict[str, Any]:
    """Measure several models on the same rows: those of ``data``, or the test rows of the first model's run.

    Returns the summary of ``deploy.paired.compare_paired`` with the models' names as given. Raises RaydistillError.
    """
    if len(models) < 2:
        raise ConfigError("A comparison needs two models or more. `raydistill evaluate` measures one.")
    twice = sorted({model for model in models if models.count(model) > 1})
    if twice:
        raise ConfigError(f"{twice[0]} was given twice. Name each model once.")
    if len(models) > len(ascii_uppercase):
        raise ConfigError(f"At most {len(ascii_uppercase)} models can be compared at once; {len(models)} were given.")
    predictors = {model: open_model(model, max_length, storage) for model in models}
    rows = find_test_rows(models[0], predictors[models[0]].task, data, split, storage)
    notes = [note for model in models for note in seen_note(model, rows.hashes, storage)]
    summary = compare_paired(predictors, rows, latency=latency).summary
    return {**summary, "notes": [*summary["notes"], *notes]}


def seen_note(model: str, hashes: Sequence[str], storage: str) -> list[str]:
    """A sentence where a model's run has seen some of the rows; nothing where MLflow does not know its run."""
    uri = tracking_uri(Storage(storage))
    run_id = run_id_of(model, uri)
    if not run_id or run_tags(run_id, uri) is None:
        return []
    seen = read_seen(run_id, uri)
    found = sum(seen.leaked(hashes).values()) if seen is not None else 0
    return [f"{found:,} of these rows stood in the training or validation rows of {model}."] if found else []


def print_comparison(console: Console, summary: Mapping[str, Any]) -> None:
    """A column a model, then what each differs from the first by."""
    letters = dict(zip(summary["models"], ascii_uppercase, strict=False))
    for model, letter in letters.items():
        console.print(f"{letter}  {model}", markup=False, soft_wrap=True)
    console.print()
    console.print(comparison_table(summary, letters))
    data = summary["data"]
    console.print(f"{data['num_rows']:,} rows of {data['source']}, {data['split']}.", markup=False, style="dim")
    for pair in summary["pairs"]:
        console.print(describe_pair(pair, letters, data["task"]["main_metric"]), markup=False)
    for note in summary["notes"]:
        console.print(f"- {note}", markup=False, style="dim")


def comparison_table(summary: Mapping[str, Any], letters: Mapping[str, str]) -> Table:
    """Rows are metrics, columns the models by letter."""
    from rich import box
    from rich.table import Table

    models = list(summary["models"].values())
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column(summary["data"]["split"], no_wrap=True)
    for letter in letters.values():
        table.add_column(letter, justify="right", no_wrap=True)
    for name in summary["data"]["task"]["metrics"]:
        found = [Figure.of(name, model["metrics"][name]) for model in models]
        table.add_row(metric(name).title, *(one.text for one in found))
        if name == summary["data"]["task"]["main_metric"]:
            bounds = (f"[{one.bounds(', ')}]" if one.bounds() else ABSENT for one in found)
            table.add_row("  95 % interval", *bounds, style="dim")
    parameters = (ABSENT if m["num_parameters"] is None else f"{m['num_parameters'] / 1e6:.1f} M" for m in models)
    table.add_row("parameters", *parameters)
    table.add_row("size, MB", *(f"{model['bytes'] / 1e6:,.1f}" for model in models))
    if models[0]["latency_ms"]:
        for quantile in ("p50", "p95"):
            table.add_row(f"latency {quantile}, ms", *(f"{model['latency_ms'][quantile]:.2f}" for model in models))
        table.add_row("rows a second", *(f"{model['throughput']:,.0f}" for model in models))
    table.add_row("runtime", *(model["runtime"] for model in models), style="dim")
    return table


def describe_pair(pair: Mapping[str, Any], letters: Mapping[str, str], name: str) -> str:
    """A sentence on the difference in a metric: no model is called better whose interval does not show it."""
    first, second, test = letters[pair["first"]], letters[pair["second"]], pair["mcnemar"]
    found, agreement = Figure.of(name, pair["differences"][name]), scale("agreement").amount(pair["agreement"])
    word = "better than" if found.is_better else "worse than" if found.is_worse else "not measurably different from"
    text = f"{second} is {word} {first}: difference in {found.about.words} {found.about.amount(found.value)}, "
    text += f"95 % interval {found.bounds()}, agreement {agreement}"
    if found.why:
        text = f"Whether {second} is better than {first} is not known: {found.why}; agreement {agreement}"
    if test is None:
        return f"{text}."
    return (
        f"{text}, McNemar's p {test['p']:.2g} ({test['only_second']:,} rows that only {second} gets right, "
        f"{test['only_first']:,} that only {first} does)."
    )
