"""The `raydistill` command: parses, then imports what the command needs. --help loads neither torch nor ray."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from raydistill.console import INTERRUPTED, Outcome, Progress, run
from raydistill.options import (
    STORAGE,
    ConfigFile,
    DataOverrides,
    Json,
    MaxLength,
    Model,
    Overrides,
    StorageUrl,
    Version,
)

if TYPE_CHECKING:
    from rich.console import Console

app = typer.Typer(
    name="raydistill",
    help="Distil a large transformer into a small one on a Ray cluster.",
    epilog="Exit codes: 0 done, 1 failure, 2 usage or config error, 3 a gate refused, 130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
cache = typer.Typer(help="Show and free what storage holds.", no_args_is_help=True)
app.add_typer(cache, name="cache")


@app.callback()
def root(version: Version = False) -> None:
    pass


@app.command()
def distill(config: ConfigFile, overrides: Overrides = None, json: Json = False) -> Outcome:
    """Run one distillation: the same command goes on where it was, and computes nothing twice."""
    from raydistill.loading import load_config

    loaded = load_config(config, overrides or [])
    from raydistill.pipeline import distill as work

    with Progress() as progress:
        results = work(loaded, progress=progress)

    def show(console: Console) -> None:
        from raydistill.report import print_next_steps, print_notes, print_results

        print_notes(console, results)
        print_results(console, results)
        print_next_steps(console, results, loaded)

    return Outcome(lambda: results, show)


@app.command()
def sweep(
    config: ConfigFile,
    overrides: Overrides = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Begin another sweep instead of going on.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Train the failed trials again.")] = False,
    json: Json = False,
) -> Outcome:
    """Search settings of the student: trials share data and teacher. The same command goes on where it was."""
    from raydistill.loading import load_config
    from raydistill.search.space import check_space

    loaded = load_config(config, overrides or [])
    check_space(loaded)  # before anything heavy is loaded
    from raydistill.search.sweep import sweep as work
    from raydistill.search.table import Table, print_sweep

    with Table() as table:
        summary = work(loaded, progress=table, fresh=fresh, retry_failed=retry_failed)
    without_winner = int(summary["winner"] is None)
    return Outcome(lambda: summary, lambda console: print_sweep(console, summary), without_winner)


@app.command()
def report(
    name: Annotated[str | None, typer.Argument(metavar="[SWEEP]", help="Its key or how it begins; the newest.")] = None,
    storage: StorageUrl = STORAGE,
    out: Annotated[Path, typer.Option("--out", help="The page to write.")] = Path("report.html"),
    json: Json = False,
) -> Outcome:
    """Write the page of a finished sweep: finalists, Pareto front, importance, learning curves, all trials."""
    from raydistill.search import page
    from raydistill.storage import Storage

    summary = page.find_summary(Storage(storage), name)
    page.write_report(summary, out)
    found = {"written": str(out), "summary": summary}
    return Outcome(lambda: found, lambda console: print(f"{out}: {summary['verdict']}"))


@app.command()
def plan(
    config: ConfigFile,
    overrides: Overrides = None,
    check: Annotated[bool, typer.Option("--check", help="Also compute every loss once on a real batch.")] = False,
    json: Json = False,
) -> Outcome:
    """Say what `distill` or `sweep` would do, what is in storage already, how large and how long it gets."""
    from raydistill.loading import load_config

    loaded = load_config(config, overrides or [])
    if loaded.sweep is not None:
        from raydistill import cluster

        cluster.set_environment()  # trials are timed here with the threads that they will have
    from raydistill import planning

    made = planning.make_plan(loaded, check)
    return Outcome(lambda: made, lambda console: planning.print_plan(console, made))


@app.command()
def evaluate(
    model: Model,
    data: Annotated[str, typer.Option("--data", help="A file, a folder, pkg://… or a hub data set, with labels.")],
    split: Annotated[str, typer.Option("--split", help="Which rows, where the data has splits.")] = "test",
    max_length: MaxLength = None,
    overrides: DataOverrides = None,
    storage: StorageUrl = STORAGE,
    json: Json = False,
) -> Outcome:
    """Measure a classifier on labelled data, with 95 % intervals."""
    from raydistill.loading import load_data

    settings = load_data(data, overrides or [])
    from raydistill import inference

    scores = inference.evaluate_model(model, settings, split, max_length=max_length, storage=storage)
    return Outcome(lambda: scores, lambda console: inference.print_scores(console, scores))


@app.command()
def predict(
    model: Model,
    text: Annotated[list[str] | None, typer.Option("--text", help="A text to classify. Repeatable.")] = None,
    file: Annotated[Path | None, typer.Option("--file", help="A file with one text a line; stdin without it.")] = None,
    pairs: Annotated[bool, typer.Option("--pairs", help="Each text is two, with a tab between.")] = False,
    max_length: MaxLength = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Texts of one forward pass.")] = 32,
    storage: StorageUrl = STORAGE,
    json: Json = False,
) -> Outcome:
    """Label texts: one line each with label, score and text."""
    from raydistill import texts

    lines = texts.read_texts(text, file, sys.stdin)
    inputs = texts.split_pairs(lines) if pairs else lines
    from raydistill import inference

    found = inference.predict_texts(model, inputs, batch_size, max_length=max_length, storage=storage)

    def show(console: Console) -> None:
        for row in found:
            print(f"{row['label']}\t{row['score']:.4f}\t{row['text']}", flush=True)

    return Outcome(lambda: {"model": model, "predictions": list(found)}, show)


@app.command()
def init(
    recipe: Annotated[str | None, typer.Argument(metavar="[RECIPE]", help="Lists the recipes without it.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Where to copy it; ./RECIPE.yaml by default.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite what is there.")] = False,
    json: Json = False,
) -> Outcome:
    """List the recipes that come with raydistill, or copy one to start from."""
    from raydistill import starters

    if recipe is None:
        known = starters.list_recipes()
        found = [{"name": name, "about": about} for name, about in known.items()]
        return Outcome(lambda: {"recipes": found}, lambda console: print_columns(known))
    target = out or Path(f"{recipe}.yaml")
    starters.copy_recipe(recipe, target, force)
    return Outcome(lambda: {"written": str(target)}, lambda console: print(f"{target}: run it with raydistill distill"))


@app.command()
def doctor(storage: StorageUrl = STORAGE, json: Json = False) -> Outcome:
    """Check this machine: packages, storage, memory, threads, GPU, tracking. Exits 1 if a check fails."""
    from raydistill.doctor import examine, print_checks

    checks = examine(storage)
    failed = any(check.state == "fail" for check in checks)
    return Outcome(
        lambda: {"ok": not failed, "checks": [vars(check) for check in checks]},
        lambda console: print_checks(console, checks),
        exit_code=int(failed),
    )


@app.command()
def schema(json: Json = False) -> Outcome:
    """Print the JSON schema of the config, for editors."""
    from json import dumps

    from raydistill.config import Config

    found = Config.model_json_schema()
    return Outcome(lambda: found, lambda console: print(dumps(found, indent=2)))


@app.command()
def losses(json: Json = False) -> Outcome:
    """List the loss types with their settings."""
    from raydistill.schema import list_losses

    found = list_losses()

    def show(console: Console) -> None:
        for name, loss in found.items():
            console.print(f"[bold]{name}[/]  {loss['about']}", soft_wrap=True)
            for setting, value in loss["settings"].items():
                line = f"    {setting}: {value['default']}    {value['about']}"
                console.print(line, markup=False, style="dim", soft_wrap=True)

    return Outcome(lambda: {"losses": found}, show)


def print_columns(rows: dict[str, str]) -> None:
    width = max(map(len, rows), default=0)
    for name, text in rows.items():
        print(f"{name:{width}}  {text}")


@cache.command("ls")
def cache_ls(storage: StorageUrl = STORAGE, json: Json = False) -> Outcome:
    """List the artefacts of a storage and what refers to them."""
    from raydistill import inventory

    rows = inventory.listed(storage)
    return Outcome(lambda: {"artifacts": rows}, lambda console: inventory.print_rows(console, rows))


@cache.command("rm")
def cache_rm(
    name: Annotated[str, typer.Argument(metavar="KIND/KEY", help="As `cache ls` shows it.")],
    force: Annotated[bool, typer.Option("--force", help="Even if a run refers to it.")] = False,
    storage: StorageUrl = STORAGE,
    json: Json = False,
) -> Outcome:
    """Remove one artefact."""
    from raydistill import inventory

    row = inventory.removed(storage, name, force)
    return Outcome(lambda: {"removed": [row]}, lambda console: inventory.print_freed(console, [row], False))


@cache.command("gc")
def cache_gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    older_than_hours: Annotated[float, typer.Option("--older-than", min=0, help="Hours; younger ones stay.")] = 24.0,
    storage: StorageUrl = STORAGE,
    json: Json = False,
) -> Outcome:
    """Remove what no run refers to."""
    from raydistill import inventory

    rows = inventory.collected(storage, dry_run, older_than_hours)
    return Outcome(
        lambda: {"would_remove" if dry_run else "removed": rows},
        lambda console: inventory.print_freed(console, rows, dry_run),
    )


def invoke(arguments: Sequence[str]) -> Outcome | int | None:
    """Parse and call a command. Raises KeyboardInterrupt for Ctrl-C, which typer hands back as Abort or as 130."""
    try:
        outcome = app(list(arguments) or ["--help"], prog_name="raydistill", standalone_mode=False)
    except typer.Abort:
        raise KeyboardInterrupt from None
    if outcome == INTERRUPTED:
        raise KeyboardInterrupt
    return cast("Outcome | int | None", outcome)


def execute(arguments: Sequence[str]) -> int:
    """Run one command line in this process and return its exit code."""
    return run(invoke, arguments, typer.BadParameter.__bases__[0])  # click's UsageError, wherever typer has it from


def main() -> None:
    """Entry point of the `raydistill` script."""
    sys.exit(execute(sys.argv[1:]))
