"""Commands that run and look at runs: distill, sweep, plan, report."""

from __future__ import annotations

import time
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from raydistill.cli.commands import app
from raydistill.cli.console import CommandResult, Progress
from raydistill.cli.options import (
    ConfigFile,
    ConfigStorage,
    Json,
    Overrides,
    StorageUrl,
    TeacherModel,
    refuse_table,
    source_of,
    with_storage,
)
from raydistill.config.tree import STORAGE
from raydistill.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

Challenger = Annotated[
    bool,
    typer.Option("--challenger", help="Give the version the alias challenger, also where it is worse or only guesses."),
]


@app.command()
def distill(
    config: ConfigFile,
    teacher: TeacherModel = None,
    overrides: Overrides = None,
    storage: ConfigStorage = None,
    challenger: Challenger = False,
    json: Json = False,
) -> CommandResult:
    """Run one distillation: the same command goes on where it was, and computes nothing twice."""
    started = time.perf_counter()
    from raydistill.config.loading import load_config

    source, changes = source_of(config, teacher), with_storage(overrides, storage, challenger)
    loaded = load_config(source, changes)
    from raydistill.cli.show.results import refusal
    from raydistill.pipeline.distill import distill as work

    with Progress() as progress:
        results = work(loaded, progress=progress, started=started)

    def show(console: Console) -> None:
        from raydistill.cli.show.plan import print_config
        from raydistill.cli.show.results import print_distilled

        print_distilled(console, results, loaded)
        if teacher is not None:
            print_config(console, source, changes, results["choices"])

    return CommandResult(lambda: results, show, refusal(results))


@app.command()
def sweep(
    config: ConfigFile,
    overrides: Overrides = None,
    storage: ConfigStorage = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Begin another sweep instead of going on.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Train the failed trials again.")] = False,
    challenger: Challenger = False,
    json: Json = False,
) -> CommandResult:
    """Search settings of the student: trials share data and teacher. The same command goes on where it was."""
    from raydistill.config.loading import load_config
    from raydistill.search.space import check_space

    refuse_table(
        config,
        f"Write one for it (raydistill init --data {quote(config)}), and add a `sweep` section: what a search varies.",
    )
    loaded = load_config(config, with_storage(overrides, storage, challenger))
    check_space(loaded)  # before anything heavy is loaded
    from raydistill.cli.show.results import refusal
    from raydistill.cli.show.sweep import Table, print_sweep
    from raydistill.search.sweep import sweep as work

    with Table() as table:
        summary = work(loaded, progress=table, fresh=fresh, retry_failed=retry_failed)
    code = refusal(summary["results"]) if summary["winner"] is not None else 1
    return CommandResult(lambda: summary, lambda console: print_sweep(console, summary), code)


@app.command()
def plan(
    config: ConfigFile,
    teacher: TeacherModel = None,
    overrides: Overrides = None,
    storage: ConfigStorage = None,
    check: Annotated[bool, typer.Option("--check", help="Also compute every loss once on a real batch.")] = False,
    cluster: Annotated[
        bool, typer.Option("--cluster", help="Also say where everything would go on the cluster of RAY_ADDRESS.")
    ] = False,
    address: Annotated[
        str | None,
        typer.Option("--address", metavar="HOST:PORT", help="The same for this cluster; auto: the one here."),
    ] = None,
    json: Json = False,
) -> CommandResult:
    """Say what `distill` or `sweep` would do, what is in storage already, how large and how long it gets."""
    from raydistill.config.loading import load_config

    source, changes = source_of(config, teacher), with_storage(overrides, storage)
    loaded = load_config(source, changes)
    state = None
    if cluster or address:
        from raydistill.cluster.placement import read_cluster

        state = read_cluster(address)  # first, because the rest takes longer
    from raydistill.cli.show.plan import print_config, print_forecast, print_plan
    from raydistill.pipeline.plan import make_plan
    from raydistill.search.budget import estimate

    made = make_plan(loaded, check, state, estimate=estimate)
    if state is not None:
        from raydistill.cluster.forecast import forecast

        made["cluster"] = forecast(loaded, made["teacher"]["mode"], state, made.get("sweep", {}).get("trials"))

    def show(console: Console) -> None:
        print_plan(console, made)
        if state is not None:
            print_forecast(console, made["cluster"])
        if teacher is not None:
            print_config(console, source, changes, made["choices"])

    return CommandResult(lambda: made, show)


@app.command()
def report(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[RUN_OR_SWEEP]", help="Its key or MLflow run id, or how it begins; the newest."),
    ] = None,
    storage: StorageUrl = STORAGE,
    out: Annotated[Path | None, typer.Option("--out", help="The page to write; report.html.")] = None,
    csv: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Write a sweep's trials as CSV, and no page but --out.")
    ] = None,
    json: Json = False,
) -> CommandResult:
    """Write the page of a finished run or sweep: one file of tables and pictures that needs no network."""
    from raydistill.cli.found import find_finished
    from raydistill.errors import ConfigError
    from raydistill.evaluate.report.page import write_run_report
    from raydistill.evaluate.report.render import write_page
    from raydistill.search.report.page import write_report
    from raydistill.storage.storage import Storage

    found = find_finished(Storage(storage), name)
    if csv is not None:
        if found.kind != "sweep":
            raise ConfigError(f"{found.key} is a run, and --csv is for the trials of a sweep. Name a sweep.")
        from raydistill.search.report.spreadsheet import trials_csv

        write_page(trials_csv(found.content), csv)
    page = out or (None if csv else Path("report.html"))
    if page is not None:
        (write_report if found.kind == "sweep" else write_run_report)(found.content, page)
    written = ", ".join(str(path) for path in (page, csv) if path)
    made = {"written": written, "key": found.key, {"sweep": "summary", "run": "results"}[found.kind]: found.content}
    return CommandResult(lambda: made, lambda console: print(f"{written}: {found.content['verdict']}"))


runs_app = typer.Typer(help="List what ran, remove runs, compare how they were set.", invoke_without_command=True)
app.add_typer(runs_app, name="runs")


@runs_app.callback()
def runs(
    context: typer.Context,
    storage: StorageUrl = STORAGE,
    experiment: Annotated[str | None, typer.Option("--experiment", help="Only this MLflow experiment.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many of the newest.")] = 20,
    trials: Annotated[bool, typer.Option("--trials", help="List the trials of sweeps, too.")] = False,
    json: Json = False,
) -> CommandResult | None:
    """List what ran, newest first: distillations, sweeps and gate verdicts with their headline figures."""
    if (command := context.invoked_subcommand) is not None:
        given = [name for name in context.params if str(context.get_parameter_source(name)).endswith("COMMANDLINE")]
        if given:
            raise ConfigError(f"--{given[0]} stands before {command}; write it behind: raydistill runs {command} …")
        return None
    from raydistill.cli.show import runs as listing

    rows = listing.listed(storage, experiment, limit, trials)
    return CommandResult(lambda: {"runs": rows}, lambda console: listing.print_rows(console, rows))


@runs_app.command("rm")
def runs_rm(
    name: Annotated[str, typer.Argument(metavar="RUN", help="How its key begins, as `runs` lists it.")],
    force: Annotated[bool, typer.Option("--force", help="Also one that is registered: its version goes, too.")] = False,
    storage: StorageUrl = STORAGE,
    json: Json = False,
) -> CommandResult:
    """Remove a run or a sweep, in storage and in MLflow; not while it runs, nor where an alias names its student."""
    from raydistill.cli import past

    removed = past.remove_run(storage, name, force)
    return CommandResult(lambda: {"removed": removed}, lambda console: print(past.describe_removed(removed)))


@runs_app.command("diff")
def runs_diff(
    first: Annotated[
        str, typer.Argument(metavar="RUN", help="How its key begins; a trial: SWEEP/3, as `runs --trials` lists it.")
    ],
    second: Annotated[str, typer.Argument(metavar="RUN", help="The other one.")],
    storage: StorageUrl = STORAGE,
    json: Json = False,
) -> CommandResult:
    """Show what was set differently in two runs, and their figures."""
    from raydistill.cli import past

    found = past.compare_runs(storage, first, second)
    return CommandResult(lambda: found, lambda console: past.print_difference(console, found))
