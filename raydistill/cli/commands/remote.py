"""Commands that run others on a cluster: submit, jobs, stop, logs."""

from __future__ import annotations

import os
import re
import secrets
import shlex
import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raydistill.cli.commands import app
from raydistill.cli.console import CommandResult, Progress, stderr_console
from raydistill.cli.options import Json
from raydistill.errors import ConfigError, Interrupted, RaydistillError
from raydistill.storage.redaction import harmless, redact

if TYPE_CHECKING:
    from rich.console import Console

Address = Annotated[
    str,
    typer.Option("--address", metavar="URL", envvar="RAY_API_SERVER_ADDRESS", help="The dashboard: http://HEAD:8265"),
]
JobId = Annotated[str, typer.Argument(metavar="ID", help="As submit prints it and jobs lists it.")]


@app.command(context_settings={"ignore_unknown_options": True})
def submit(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="CONFIG | COMMAND ARGUMENTS…", help="distill, sweep, evaluate, promote or doctor, as here."
        ),
    ],
    address: Address,
    detach: Annotated[bool, typer.Option("--detach", help="Do not follow the job: print its id and end.")] = False,
    env: Annotated[
        list[str] | None,
        typer.Option("--env", metavar="NAME=VALUE", help="A variable for the job; no secrets. Repeatable."),
    ] = None,
    shared: Annotated[
        list[str] | None,
        typer.Option("--shared", metavar="FOLDER", help="A folder that is the same on every node. Repeatable."),
    ] = None,
    name: Annotated[str | None, typer.Option("--id", help="The job's id; default: made up.")] = None,
    json: Json = False,
) -> CommandResult:
    """Run a command on a Ray cluster: check, send this project, follow the job, end with its result and exit code."""
    from raydistill.cli.submit import jobs as server
    from raydistill.cli.submit import project as packing
    from raydistill.cli.submit import refusals, request

    commands: Any = typer.main.get_command(app)
    wanted = request.parse(commands.commands, words)
    url, variables = server.server_address(address), env or []
    root = packing.open_project(wanted.sends_project())
    found = refusals.examine(wanted, root, shared or [], refusals.parse_environment(variables), url)
    if name is not None and not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,99}", name, re.ASCII):
        raise ConfigError(f"--id {name!r}: use letters, digits, dots, dashes and underscores, at most 100.")
    job_id = name or f"{wanted.name}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    selection = packing.NOTHING
    try:
        storage = wanted.storage().local
        kept = storage.resolve() if storage is not None else None
        if wanted.sends_project():
            selection = packing.select(root, found.files, kept)
    except ConfigError as error:
        found.problems.append(str(error))
    try:
        client = server.connect(url)
    except RaydistillError as error:
        if not found.problems:
            raise
        found.problems.append(str(error))
    if found.problems:
        raise ConfigError(refusal(found.problems))
    entry = request.entry_point(wanted.words(found.changes))
    say_sending(url, job_id, selection, found.warnings)
    with packing.staged(root, selection) as folder:
        server.submit(client, job_id, entry, folder, found.environment, wanted.name)
    if detach:
        told = {"id": job_id, "address": redact(url), "entrypoint": entry}
        return CommandResult(lambda: told, lambda console: print(f"{job_id} submitted. {how_to_follow(job_id, url)}"))
    if uri := found.environment.get("MLFLOW_TRACKING_URI"):
        os.environ["MLFLOW_TRACKING_URI"] = uri  # for the lines to type next
    return followed(client, job_id, url, wanted.name)


@app.command()
def jobs(
    address: Address,
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many of the newest.")] = 20,
    json: Json = False,
) -> CommandResult:
    """List the jobs of a cluster, newest first: id, status, command, when, how long, exit code."""
    from raydistill.cli.submit import jobs as server

    rows = server.list_jobs(server.connect(server.server_address(address)))[:limit]
    return CommandResult(lambda: {"jobs": rows}, lambda console: print_jobs(console, rows))


@app.command()
def stop(job: JobId, address: Address, json: Json = False) -> CommandResult:
    """Stop a job: it writes a checkpoint first, and the same command goes on from there. Waits until it has ended."""
    from raydistill.cli.submit import jobs as server

    stopped = server.stop(server.connect(server.server_address(address)), job)
    return CommandResult(lambda: stopped, lambda console: print(stopped["message"]))


@app.command()
def logs(
    job: JobId,
    address: Address,
    follow: Annotated[
        bool, typer.Option("--follow", help="Until the job ends; then its result and exit code.")
    ] = False,
    json: Json = False,
) -> CommandResult:
    """Print what a job has said so far, without its result in JSON."""
    from raydistill.cli.submit import answers
    from raydistill.cli.submit import jobs as server

    url = server.server_address(address)
    client = server.connect(url)
    info = server.look(client, job)
    if follow:
        return followed(client, job, url, (info.metadata or {}).get(server.COMMAND, ""))
    lines: list[str] = []
    result = answers.read(server.read_log(client, job), lines.append).result
    if result is not None and isinstance(error := result.get("error"), dict):
        lines.append(f"error: {redact(str(error.get('message')))}")
    told = {**server.describe(info), "log": "\n".join(lines), "result": result}
    return CommandResult(lambda: told, lambda console: print("\n".join(map(harmless, lines))))


def refusal(problems: list[str]) -> str:
    if len(problems) == 1:
        return f"Nothing was sent. {problems[0]}"
    return f"Nothing was sent: {len(problems)} problems\n" + "\n".join(f"  - {text}" for text in problems)


def say_sending(url: str, job_id: str, selection: Any, warnings: list[str]) -> None:
    for warning in warnings:
        stderr_console().print(harmless(f"warning: {warning}"), style="yellow", markup=False)
    left = ", ".join(f"{count} {reason}" for reason, count in sorted(selection.left_out.items()))
    kept = f" (not: {left})" if left else ""
    text = f"job {job_id} at {redact(url)}: {len(selection.files)} files, {selection.num_bytes / 1e6:.2f} MB{kept}"
    stderr_console().print(harmless(text), style="dim", markup=False)


def how_to_follow(job_id: str, url: str) -> str:
    rest = f"{shlex.quote(job_id)} --address {shlex.quote(redact(url))}"
    return f"Follow it: raydistill logs {rest} --follow   Stop it: raydistill stop {rest}"


def followed(client: Any, job_id: str, url: str, command: str) -> CommandResult:
    """Show the job's log until it ends; its result. Ctrl-C leaves the job alone and raises Interrupted."""
    from raydistill.cli.submit import answers
    from raydistill.cli.submit import jobs as server

    transcript = answers.Transcript(lambda line: print(harmless(line), file=sys.stderr, flush=True))
    try:
        with Progress() as progress:
            info = server.follow(client, job_id, transcript, progress)
    except KeyboardInterrupt:
        raise Interrupted(f"Job {job_id} goes on; only the following has ended. {how_to_follow(job_id, url)}") from None
    return answers.outcome(server.describe(info), command, transcript)


def print_jobs(console: Console, rows: list[dict[str, Any]]) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    if not rows:
        print("No job was submitted to this cluster.")
        return
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for title in ("id", "status", "command", "started", "seconds", "exit"):
        table.add_column(title, justify="right" if title in ("seconds", "exit") else "left", overflow="fold")
    for row in rows:
        started = time.strftime("%Y-%m-%d %H:%M", time.localtime(row["started"])) if row["started"] else "-"
        cells = [row["id"], row["status"], row["command"], started, row["seconds"], row["exit_code"]]
        table.add_row(*(Text("-" if cell is None else str(cell)) for cell in cells))
    console.print(table)
