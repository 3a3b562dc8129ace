"""The `raydistill` command: parses, then imports what the command needs. --help loads neither torch nor ray."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import cast

import typer

from raydistill.cli.commands import app, distillation, models, registry, remote, setup, storage
from raydistill.cli.console import INTERRUPTED, CommandResult, run

GROUPS = (distillation, models, registry, remote, setup, storage)
"""Each adds its commands to app; --help shows them in this order."""


def invoke(arguments: Sequence[str]) -> CommandResult | int | None:
    """Parse and call a command. Raises KeyboardInterrupt for Ctrl-C, which typer hands back as Abort or as 130."""
    try:
        outcome = app(list(arguments) or ["--help"], prog_name="raydistill", standalone_mode=False)
    except typer.Abort:
        raise KeyboardInterrupt from None
    if outcome == INTERRUPTED:
        raise KeyboardInterrupt
    return cast("CommandResult | int | None", outcome)


def execute(arguments: Sequence[str]) -> int:
    """Run one command line in this process and return its exit code."""
    return run(invoke, arguments, typer.BadParameter.__bases__[0])  # click's UsageError, wherever typer has it from


def main() -> None:
    """Entry point of the `raydistill` script."""
    sys.exit(execute(sys.argv[1:]))
