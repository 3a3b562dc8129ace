"""Commands to begin with: init, doctor, schema, losses."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raydistill.cli.commands import app
from raydistill.cli.console import CommandResult
from raydistill.cli.options import Json, StorageUrl
from raydistill.config.tree import STORAGE
from raydistill.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


@app.command()
def init(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Lists what there is without it.")] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", help="Write a config for this table, folder, pkg://…, URL or hub data set."),
    ] = None,
    teacher: Annotated[
        str | None, typer.Option("--teacher", metavar="MODEL", help="With --data: a folder, pkg://… or a hub name.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Override data, task or teacher: task.type=text_regression."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="The file to write; in this folder by default.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite what is there.")] = False,
    json: Json = False,
) -> CommandResult:
    """List the recipes and other files that come with raydistill, copy one, or write a config for your own data."""
    from raydistill.cli import starters

    if data is not None:
        if name is not None:
            raise ConfigError(f"Either a file to copy ({name}) or --data, which writes a config of its own, not both.")
        return write_config(data, overrides or [], teacher, out, force)
    if teacher is not None or overrides:
        raise ConfigError("--teacher and --set say what to write for --data, which is missing. Add --data FILE.")
    if name is None:
        known = starters.list_starters()
        found: dict[str, list[dict[str, str]]] = {"recipes": [], "others": []}
        for starter, one in known.items():
            found["recipes" if one.is_recipe else "others"].append({"name": starter, "about": one.about})

        def show(console: Console) -> None:
            width = max(map(len, known))
            for key, one in known.items():
                print(f"{key:{width}}  {one.about}")
            print("\nA config for your own data: raydistill init --data FILE")

        return CommandResult(lambda: found, show)
    target, command = starters.copy_starter(name, out, force)
    return CommandResult(
        lambda: {"written": str(target), "command": command},
        lambda console: print(f"{target} written. Next: {command}"),
    )


def write_config(data: str, overrides: list[str], teacher: str | None, out: Path | None, force: bool) -> CommandResult:
    """Write a config for data of one's own, and say what is in it."""
    from raydistill.cli import starters
    from raydistill.cli.proposal import about, name_of, propose, surveyed
    from raydistill.config.loading import data_config

    target = out or Path(f"{name_of(data)}.yaml")
    if target.exists() and not force:  # before the texts are read
        raise starters.already_there(target)
    text, survey = propose(data_config(data, overrides, has_teacher=True), teacher)
    starters.write_new(target, text, force)
    command = f"raydistill plan {quote(str(target))}"

    def show(console: Console) -> None:
        for line in about(survey):
            print(line.removeprefix("# ").removeprefix("#"))
        print(f"{target} written. Next: {command}")

    return CommandResult(lambda: {"written": str(target), "command": command, "data": surveyed(survey)}, show)


@app.command()
def doctor(
    storage: StorageUrl = STORAGE,
    address: Annotated[
        str | None,
        typer.Option("--address", metavar="ADDRESS", help="A Ray cluster: HOST:PORT, auto, or http://HEAD:8265."),
    ] = None,
    json: Json = False,
) -> CommandResult:
    """Check this machine: packages, storage, memory, threads, GPU, tracking. Exits 1 if a check fails.

    With --address check every node of a cluster: versions, storage that all have in common, tracking, GPUs, clocks,
    disk, shared memory, token. HOST:PORT and auto are for a machine of that cluster; http://HEAD:8265 for any other:
    the check runs there as a job.
    """
    from raydistill.cli.doctor.checks import print_checks
    from raydistill.cli.doctor.health import examine

    if address is not None and "://" in address:
        from raydistill.cli.commands.remote import submit

        return submit(["doctor", "--storage", storage], address)
    checks, reports = examine(storage, address)
    nodes = {"nodes": reports} if address is not None else {}
    failed = any(check.state == "fail" for check in checks)
    return CommandResult(
        lambda: {"ok": not failed, "checks": [vars(check) for check in checks], **nodes},
        lambda console: print_checks(console, checks),
        exit_code=int(failed),
    )


@app.command()
def schema(json: Json = False) -> CommandResult:
    """Print the JSON schema of the config, for editors."""
    from json import dumps

    from raydistill.config.tree import Config

    found = Config.model_json_schema()
    return CommandResult(lambda: found, lambda console: print(dumps(found, indent=2)))


@app.command()
def losses(json: Json = False) -> CommandResult:
    """List the loss types with their settings."""
    from raydistill.config.schema import list_losses

    found = list_losses()

    def show(console: Console) -> None:
        def tell(settings: dict[str, dict[str, Any]]) -> None:
            for setting, value in settings.items():
                line = f"    {setting}: {value['default']}    {value['about']}"
                console.print(line, markup=False, style="dim", soft_wrap=True)

        shared = {"weight": found["task"]["settings"]["weight"]}
        console.print("All of them have")
        tell(shared)
        for name, loss in found.items():
            console.print(f"[bold]{name}[/]  {loss['about']}", soft_wrap=True)
            tell({setting: value for setting, value in loss["settings"].items() if setting not in shared})
        console.print(table_of_losses(found))

    return CommandResult(lambda: {"losses": found}, show)


def table_of_losses(found: dict[str, dict[str, Any]]) -> Table:
    """What each loss compares, and for which tasks."""
    from rich.table import Table

    tasks = list(dict.fromkeys(task for loss in found.values() for task in loss["tasks"]))
    table = Table("loss", "compares", "for", box=None)
    table.columns[0].no_wrap = True
    for name, loss in found.items():
        missing = [task for task in tasks if task not in loss["tasks"]]
        named = f"all but {', '.join(missing)}" if len(missing) < len(loss["tasks"]) else ", ".join(loss["tasks"])
        table.add_row(name, loss["compares"], named.replace("_", " ") if missing else "all tasks")
    return table
