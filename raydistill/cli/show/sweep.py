"""A sweep on the terminal: its trials while they run, a line each where nobody looks, and the finalists at its end."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from raydistill.cli.console import Progress, stderr_console
from raydistill.cli.show.trials import MARK, Search, by_validation, draw, first_line, overview, tally
from raydistill.evaluate.report.scales import duration, scale, setting, short_names, visible
from raydistill.search.ledger import Trial

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table as Grid


class Table:
    """Shows a sweep on stderr: a live table on a terminal, elsewhere a line for every trial that ends.

    An entry with ``trials`` is the state of the search: also ``total`` (trials planned), ``elapsed`` and ``left``
    (seconds, None while unknown), ``objectives`` and, if there are any, ``constraints`` (name -> Bounds). All others go
    to ``console.Progress``.
    """

    LINE_SECONDS = 30.0

    def __init__(self, console: Console | None = None) -> None:
        from rich.console import Console

        self.console = console or Console(stderr=True, highlight=False)
        self.progress = Progress()
        self.progress.console = console or stderr_console()
        self.live: Live | None = None
        self.began = time.time()
        self.ended: set[int] = set()
        self.last_line = -self.LINE_SECONDS
        self.phase = ""

    def __call__(self, entry: Mapping[str, Any]) -> None:
        if "trials" not in entry:
            self.stop_live()
            self.progress(entry)
            return
        self.progress.__exit__()
        self.progress.status = None
        self.progress.last_phase = entry["phase"]
        if self.console.is_terminal:
            self.show_live(entry)
        else:
            self.show_lines(entry)

    def __enter__(self) -> Table:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop_live()
        self.progress.__exit__()

    def show_live(self, entry: Mapping[str, Any]) -> None:
        from rich.live import Live

        drawn = draw(Search.of(entry), self.console)
        if self.live is None:
            # what the command itself prints goes to stdout and must not be led to this console
            self.live = Live(console=self.console, refresh_per_second=4, redirect_stdout=False)
            self.live.start()
        self.live.update(drawn)

    def stop_live(self) -> None:
        if self.live is not None:
            self.live.stop()
            self.live = None

    def show_lines(self, entry: Mapping[str, Any]) -> None:
        """A line for each trial that ended since the last entry, and one or two on all of them now and then.

        Trials of an earlier run of the same sweep are in the sum only.
        """
        search = Search.of(entry)
        for trial in search.trials:
            if trial.has_ended and trial.number not in self.ended:
                self.ended.add(trial.number)
                if self.phase or trial.started >= self.began:
                    self.write(ending(search, trial))
        now = time.time() - self.began
        if search.phase != self.phase or now - self.last_line >= self.LINE_SECONDS:
            self.phase, self.last_line = search.phase, now
            self.write(f"{search.phase}: {overview(search)}; {tally(search)}")
            if values := by_validation(search):
                self.write(values)

    def write(self, text: str) -> None:
        self.console.print(f"{time.time() - self.began:7.1f} s  {text}", style="dim", markup=False, soft_wrap=True)


def amounts(trial: Trial, objectives: Mapping[str, Any]) -> str:
    found = [name for name in objectives if name in trial.measures]
    return ", ".join(f"{scale(name).name} {scale(name).amount(trial.measures[name])}" for name in found)


def settings(params: Mapping[str, Any], names: Mapping[str, str]) -> str:
    return ", ".join(f"{names[name]} {setting(visible(value))}" for name, value in params.items())


def ending(search: Search, trial: Trial) -> str:
    """One line on a trial that has ended: how, its values and its settings, or why there are none."""
    text = f"trial {trial.number} {trial.state}"
    if trial.state in ("failed", "rejected"):
        return f"{text}: {first_line(trial.reason)} ({settings(trial.params, search.names)})"
    took = "reused" if trial.reused else duration(trial.seconds)
    at = f" at {trial.history[-1]['step']:,} of {trial.history[-1]['num_steps']:,} steps" if trial.history else ""
    best = " BEST" if trial.number in search.marked and len(search.objectives) == 1 else ""
    return (
        f"{text}{at if trial.state == 'stopped' else ''}  {amounts(trial, search.objectives)}{best}  "
        f"({settings(trial.params, search.names)}) {took}"
    )


def print_sweep(console: Console, summary: Mapping[str, Any]) -> None:
    """Print what a sweep found: notes, verdict, finalists, and the lines to type next."""
    from rich.text import Text

    for note in summary.get("notes", []):
        console.print(Text(f"- {visible(note)}"))
    console.print(Text(visible(summary["verdict"])))
    if summary["finalists"]:
        console.print()
        console.print(finalists_table(summary))
        names = short_names(summary["space"])
        for finalist in summary["finalists"]:
            console.print(Text(f"trial {finalist['trial']}  {settings(finalist['params'], names)}", style="dim"))
        seeds = len(summary["finalists"][0]["seeds"])
        console.print(Text(f"Means over {seeds} fresh seed{'s' * (seeds > 1)}. Test rows were read for these alone."))
        console.print("Lost on test: how much worse than the search saw it on validation.")
    print_next_steps(console, summary)


def finalists_table(summary: Mapping[str, Any]) -> Grid:
    """A row a finalist, the winner first: mean ± standard deviation of each validation objective, and the shape."""
    from rich import box
    from rich.table import Table as Grid
    from rich.text import Text

    from raydistill.search.report.page import lost, role_text, spread_text

    winner = (summary["winner"] or {}).get("trial")
    metrics = [name for name in summary["objectives"] if name.startswith("validation/")]
    shapes = [
        name for name in ("num_parameters", "latency_ms") if any(name in f["search"] for f in summary["finalists"])
    ]
    grid = Grid(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    grid.add_column("trial", no_wrap=True, vertical="bottom")
    grid.add_column("role", vertical="bottom")
    for name in metrics:
        for title in (f"validation\n{scale(name).label}", "test", "lost\non test"):
            grid.add_column(title, justify="right", no_wrap=True, vertical="bottom")
    for name in shapes:
        grid.add_column(scale(name).label, justify="right", no_wrap=True, vertical="bottom")
    for finalist in sorted(summary["finalists"], key=lambda finalist: finalist["trial"] != winner):
        won = finalist["trial"] == winner
        cells = [f"{MARK if won else ' '}{finalist['trial']:>3}", ", ".join(map(role_text, finalist["roles"]))]
        for name in metrics:
            metric = name.removeprefix("validation/")
            cells += [spread_text(name, finalist[split].get(metric)) for split in ("validation", "test")]
            cells.append(lost(name, finalist, summary["objectives"]))
        cells += [scale(name).text(finalist["search"].get(name)) for name in shapes]
        grid.add_row(*map(Text, cells), style="bold" if won else None)
    return grid


def print_next_steps(console: Console, summary: Mapping[str, Any]) -> None:
    from rich.text import Text

    from raydistill.cli.show.results import example_of, registered
    from raydistill.search.report.page import command
    from raydistill.storage.redaction import redact

    def say(text: str) -> None:
        console.print(Text(text), soft_wrap=True)

    winner, results = summary["winner"], summary.get("results") or {}
    version = results.get("model_version")
    if version is not None:
        name = (summary["config"].get("registry") or {}).get("name")
        for note in results["notes"]:
            if "alias challenger" in note:
                say(f"- {note}")
        say(f"\n{registered(str(name), results)} Next:")
    else:
        say("\nNext:")
    storage = redact(str(summary["config"]["storage"]))
    say(f"  raydistill report {summary['sweep_key']} --storage {shlex.quote(storage)} --out report.html")
    if winner is not None:
        given = example_of(results) if results.get("task") else '--text "…"'
        say(f"  raydistill predict {shlex.quote(winner['path'])} {given}")
        say("  " + str(command(summary)).replace("\\\n  ", ""))
    elif summary["counts"].get("failed"):
        say("  the same command with --retry-failed, once what made them fail is mended")
