"""The results table on the terminal; ``results.json`` itself is made in ``evaluate.results``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from raydistill.cli.console import REFUSED
from raydistill.cli.show.labels import print_labels
from raydistill.config.metrics import metric
from raydistill.evaluate.decision import decision_line
from raydistill.evaluate.figure import ABSENT, Figure
from raydistill.evaluate.latency import of_tokens
from raydistill.evaluate.report.scales import scale, visible
from raydistill.evaluate.robustness import WORDS, listed, same_sentences
from raydistill.evaluate.verdict import BASELINE_STARTS
from raydistill.tasks import task_of

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from raydistill.config.tree import Config

Model = Mapping[str, Any]
MODELS = ("teacher", "student", "baseline", "tfidf", "champion")


def results_table(results: Mapping[str, Any]) -> Table:
    """Rows are metrics, columns the models of results.json that are there; fits 80 columns with all five."""
    from rich import box
    from rich.table import Table

    models: dict[str, Model] = {name: found for name in MODELS if (found := results.get(name)) is not None}
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("test", no_wrap=True)
    for name, model in models.items():
        style = "bold" if name == "student" else None
        heading = _heading(name, model)
        heading = heading.replace(" ", "\n") if len(models) > 3 else heading
        table.add_column(heading, justify="right", style=style, no_wrap=True, vertical="bottom")
    for label, cells in _rows(models, results):
        table.add_row(label, *cells, style="dim" if label.startswith(" ") else None)
    return table


def print_results(console: Console, results: Mapping[str, Any]) -> None:
    """Print the verdict, the table and its conditions."""
    from rich.text import Text

    console.print(Text(results["verdict"]))
    console.print()
    console.print(results_table(results))
    console.print(Text(conditions(results), style="dim"))


def _heading(name: str, model: Model) -> str:
    if name == "baseline":
        steps = f"{model['steps']:,} steps" if model["steps"] is not None else "steps unknown"
        return f"without teacher\n{steps}"
    if name == "tfidf":
        return "TF-IDF,\nlinear"
    if name == "champion" and model["version"] is not None:
        return f"champion\nversion {model['version']}"
    return name


def _rows(models: Mapping[str, Model], results: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    from rich.filesize import decimal

    task, share = results["task"], scale("agreement")
    main, *others = task["metrics"]
    about, teacher = metric(main), results["teacher"]["test"][main]["value"]
    between = ",\n" if len(models) > 3 else ", "
    rows = [
        (about.title, [_reached(m, main) for m in models.values()]),
        ("  95 % interval", [_bounds(main, m["test"][main], between) for m in models.values()]),
    ]
    if seeds := results.get("seeds"):
        spreads = {name: seeds[name]["test"][main] for name in ("student", "baseline") if seeds[name]}
        around = {name: about.around(found).replace(" ± ", f"{between[1:]}± ") for name, found in spreads.items()}
        rows.append((f"  {seeds['num']} seeds, mean", [around.get(name, ABSENT) for name in models]))
    for name in others:
        rows.append((metric(name).title, [Figure.of(name, m["test"][name]).text for m in models.values()]))
    rows += _perturbed_rows(models, results.get("robustness"), between)
    agreements = [ABSENT if n == "teacher" else share.text(m["agreement"]) for n, m in models.items()]
    rows.append(("agreement, %", agreements))
    if about.is_retained:
        kept = [
            None if n == "teacher" else about.retention(m["test"][main]["value"], teacher) for n, m in models.items()
        ]
        shares = [ABSENT if one is None else share.text(one) for one in kept]
        rows.append(("retention, %", shares))
    rows.append(("parameters", [_count(m["num_parameters"]) for m in models.values()]))
    rows.append(("size", [decimal(m["bytes"]) for m in models.values()]))
    if any(m["latency_ms"] for m in models.values()):
        speeds = [ABSENT if m["throughput"] is None else f"{m['throughput']:,.0f}" for m in models.values()]
        rows += [(f"latency {q}, ms", [_latency(m, q) for m in models.values()]) for q in ("p50", "p95")]
        rows.append(("rows a second", speeds))
    return rows


def _perturbed_rows(
    models: Mapping[str, Model], found: Mapping[str, Any] | None, between: str
) -> list[tuple[str, list[str]]]:
    """The main metric on the test rows written otherwise, and below it the interval of its change."""
    rows: list[tuple[str, list[str]]] = []
    if found is None:
        return rows
    about = metric(found["metric"])
    for name, one in found["perturbations"].items():
        if one["models"] is not None:
            known = [one["models"].get(model) for model in models]
            title = f"{WORDS[name]}, %" if about.is_share else WORDS[name]
            rows.append((title, [Figure.of(found["metric"], m).text for m in known]))
            if all(m is None or m.get("same_part") for m in known):
                parts = [Figure.of(found["metric"], m and m["same_part"]).text for m in known]
                rows.append(("  that part before", parts))
            # without brackets, as two signs take their place: all models fit
            changes = [Figure.of(found["metric"], m and m["change"]).bounds(between) or ABSENT for m in known]
            rows.append(("  change, 95 %", changes))
    return rows


def _reached(model: Model, main: str) -> str:
    value = Figure.of(main, model["test"][main]).text
    return f"* {value}" if model["chance"]["at_chance"] else value


def _bounds(name: str, found: Mapping[str, float | None], between: str) -> str:
    bounds = Figure.of(name, found).bounds(between)
    return f"[{bounds}]" if bounds else ABSENT


def _latency(model: Model, quantile: str) -> str:
    return ABSENT if model["latency_ms"] is None else f"{model['latency_ms'][quantile]:.2f}"


def _count(number: int) -> str:
    return f"{number / 1e6:.1f} M" if number >= 1e5 else f"{number:,}"


def conditions(results: Mapping[str, Any]) -> str:
    """On what, and under which conditions, the table's numbers were measured."""
    about = metric(results["task"]["main_metric"])
    text = f"{results['data']['labeled']['test']:,} labelled test rows. Agreement with the teacher"
    text += f"; retention: share of its {about.words}." if about.is_retained else "."
    if baseline := results["baseline"]:
        start = BASELINE_STARTS.get(baseline["start"], "weights not known")
        how = "trained on labels alone, from" if baseline["steps"] else "not trained, as nothing has a label:"
        text += f" Without teacher: {how} {start}."
    if words := results.get("tfidf"):
        text += f" TF-IDF: {words['model']} on words and pairs of words, fitted to {words['num_rows']:,} labelled rows."
    if found := results.get("robustness"):
        about_rows = f"{about.words} on the test rows so written, and the interval of its change"
        names = [WORDS[name] for name, one in found["perturbations"].items() if one["models"] is not None]
        text += f" {listed(names)}: {about_rows}." if names else ""
        text += "".join(f" {sentence}" for sentence in same_sentences(found))
    if any(m and m["chance"]["at_chance"] for m in map(results.get, MODELS)):
        text += f" *: {results['task']['guessing']}."
    setting = next(
        (m["latency_setting"] for m in (results["student"], results["teacher"]) if m["latency_setting"]), None
    )
    if setting is not None:
        device = f"{setting['threads']} CPU threads" if setting["device"] == "cpu" else setting["device"]
        text += f" Latency of 1 row, speed at {setting['batch_size']} rows{of_tokens(setting)}: "
        text += f"{device}, {setting['dtype']}."
    return text


def print_distilled(console: Console, results: Mapping[str, Any], config: Config) -> None:
    """Print everything that a distillation ends with: notes, table, verdict, and the lines to type next."""
    print_found(console, results)
    print_next_steps(console, results, config)


def example_of(results: Mapping[str, Any]) -> str:
    """What `raydistill predict` may be given for a run's student."""
    task = task_of(results["task"]["facts"])
    if task.reads_pictures:
        return "--file picture.jpg"
    return '--text "…"' if not task.pair_columns else "--file questions.csv"


def print_found(console: Console, results: Mapping[str, Any]) -> None:
    """Print what a distillation found: the decision, notes, labels, verdict and table."""
    from rich.text import Text

    console.print(Text(visible(decision_line(results)), style="bold"))
    console.print()
    for note in results.get("notes", []):  # skipped and removed rows, choices made, findings of the pre-flight
        console.print(f"- {note}", markup=False)
    per_class = results["data"]["per_class"]
    print_labels(console, per_class)
    if any(per_class.values()):
        console.print()
    print_results(console, results)


def registered(name: str, results: Mapping[str, Any]) -> str:
    """Under which name and version a student was registered, and whether it is the challenger."""
    taken = (results.get("challenger") or {}).get("taken", True)
    alias = "alias challenger" if taken else "without the alias challenger"
    return f"Registered as {name} version {results['model_version']}, {alias}."


def refusal(results: Mapping[str, Any]) -> int:
    """The exit code of a run: that of a gate that refused where its student was to be registered, and is not."""
    wanted = (results["config"].get("registry") or {}).get("name")
    return REFUSED if wanted and results["model_version"] is None else 0


def print_next_steps(console: Console, results: Mapping[str, Any], config: Config) -> None:
    """Print the lines to type next."""
    from raydistill.config.tree import STORAGE
    from raydistill.errors import TrackingError
    from raydistill.storage.redaction import redact
    from raydistill.storage.storage import Storage
    from raydistill.tracking.endpoint import sqlite_path, tracking_uri
    from raydistill.tracking.runs import page_of

    name = None if results["model_version"] is None else config.registry.name
    if results.get("report"):
        console.print(f"\nReport: {results['report']}", markup=False, soft_wrap=True)
    if name is not None:
        console.print(f"\n{registered(name, results)} Next:", markup=False)
    else:
        console.print("\nNext:")
    console.print(
        f"  raydistill predict {results['student']['path']} {example_of(results)}", markup=False, soft_wrap=True
    )
    if name is not None:
        place = "" if config.storage == STORAGE else f" --storage {redact(config.storage)}"
        console.print(f"  raydistill promote {name}{place}", markup=False, soft_wrap=True)
    # a machine that only submits may lack the package that opens the storage's URL
    uri = redact(os.environ.get("MLFLOW_TRACKING_URI") or tracking_uri(Storage(config.storage)))
    if (database := sqlite_path(uri)) is not None:
        page = ""
        if database.is_file():
            with suppress(TrackingError):
                page = f"   # http://127.0.0.1:5000/{page_of(uri, results['run_id'])}"
        console.print(f"  mlflow ui --backend-store-uri {uri}{page}", markup=False, soft_wrap=True)
