"""The cache commands: ls, rm, gc."""

from __future__ import annotations

from typing import Annotated

import typer

from raydistill.cli.commands import app
from raydistill.cli.console import CommandResult
from raydistill.cli.options import Json, StorageUrl
from raydistill.config.tree import STORAGE

cache = typer.Typer(help="Show and free what storage holds.", no_args_is_help=True)
app.add_typer(cache, name="cache")


@cache.command("ls")
def cache_ls(storage: StorageUrl = STORAGE, json: Json = False) -> CommandResult:
    """List the artefacts of a storage and what refers to them."""
    from raydistill.cli.show import artifacts as inventory

    rows = inventory.listed(storage)
    return CommandResult(lambda: {"artifacts": rows}, lambda console: inventory.print_rows(console, rows))


@cache.command("rm")
def cache_rm(
    name: Annotated[str, typer.Argument(metavar="KIND/KEY", help="As `cache ls` shows it.")],
    force: Annotated[bool, typer.Option("--force", help="Even if a run refers to it.")] = False,
    storage: StorageUrl = STORAGE,
    json: Json = False,
) -> CommandResult:
    """Remove one artefact."""
    from raydistill.cli.show import artifacts as inventory

    row = inventory.removed(storage, name, force)
    return CommandResult(lambda: {"removed": [row]}, lambda console: inventory.print_freed(console, [row]))


@cache.command("gc")
def cache_gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    older_than_hours: Annotated[float, typer.Option("--older-than", min=0, help="Hours; younger ones stay.")] = 24.0,
    storage: StorageUrl = STORAGE,
    json: Json = False,
) -> CommandResult:
    """Remove what no run refers to."""
    from raydistill.cli.show import artifacts as inventory

    rows, why = inventory.collected(storage, dry_run, older_than_hours)
    return CommandResult(
        lambda: {"would_remove" if dry_run else "removed": rows, "why_nothing": why},
        lambda console: inventory.print_freed(console, rows, dry_run, why),
    )
