"""Commands on registered models: registry, promote, rollback."""

from __future__ import annotations

from typing import Annotated

import typer

from raydistill.cli.commands import app
from raydistill.cli.console import REFUSED, CommandResult, Progress
from raydistill.cli.options import DataOverrides, DataPath, Json, ModelName, SplitName, StorageUrl
from raydistill.config.tree import STORAGE


@app.command()
def registry(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Lists the models without it.")] = None,
    storage: StorageUrl = STORAGE,
    json: Json = False,
) -> CommandResult:
    """List the versions of a registered model: figures, aliases, the gate's verdicts."""
    from raydistill.cli.show import gate as table
    from raydistill.storage.storage import Storage
    from raydistill.tracking.registry.versions import known_versions, model_names, open_store

    uri = open_store(Storage(storage))
    if name is None:
        names = model_names(uri)
        return CommandResult(
            lambda: {"models": names}, lambda console: print("\n".join(names) or "No model is registered.")
        )
    found = known_versions(name, uri)
    return CommandResult(
        lambda: {"name": name, "versions": [table.describe_version(version) for version in found]},
        lambda console: table.print_versions(console, name, found),
    )


@app.command()
def promote(
    name: ModelName,
    version: Annotated[int | None, typer.Option("--version", min=1, help="Default: the alias challenger.")] = None,
    gate: Annotated[str | None, typer.Option("--gate", metavar="FILE", help="Rules; default: built in.")] = None,
    data: DataPath = None,
    split: SplitName = "test",
    overrides: DataOverrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Judge only: store nothing, move nothing.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Promote even if a rule fails; needs --reason.")] = False,
    reason: Annotated[str | None, typer.Option("--reason", help="Why the gate is overruled; it is stored.")] = None,
    storage: StorageUrl = STORAGE,
    json: Json = False,
) -> CommandResult:
    """Judge a version against the champion on the same rows, and make it the champion if every rule of the gate holds.

    Exits with 3 where a rule fails; nothing has moved then.
    """
    from raydistill.config.loading import load_gate, optional_data

    rules, settings = load_gate(gate) if gate else None, optional_data(data, overrides)
    from raydistill.deploy.gate.promotion import promote as work

    with Progress() as progress:
        verdict = work(
            name,
            version=version,
            gate=rules,
            data=settings,
            split=split,
            storage=storage,
            force=force,
            reason=reason,
            dry_run=dry_run,
            progress=progress,
        )
    from raydistill.cli.show.gate import print_verdict

    refused = REFUSED if verdict["verdict"] == "refused" else 0
    return CommandResult(lambda: verdict, lambda console: print_verdict(console, verdict), refused)


@app.command()
def rollback(name: ModelName, storage: StorageUrl = STORAGE, json: Json = False) -> CommandResult:
    """Make the version that the champion replaced the champion again."""
    from raydistill.deploy.gate.promotion import rollback as work

    with Progress() as progress:
        moved = work(name, storage=storage, progress=progress)
    return CommandResult(lambda: moved, lambda console: print(moved["sentence"]))
