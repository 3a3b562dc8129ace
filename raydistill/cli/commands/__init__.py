"""The commands of `raydistill`, one module a group; main.py loads them all, each imports what it needs when it runs."""

from __future__ import annotations

import typer

from raydistill.cli.options import Version

app = typer.Typer(
    name="raydistill",
    help="Distil a large transformer into a small one on a Ray cluster.",
    epilog="Exit codes: 0 done, 1 failure, 2 usage or config error, 3 a gate refused, 130 interrupted.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def root(version: Version = False) -> None:
    pass
