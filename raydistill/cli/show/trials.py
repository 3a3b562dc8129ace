"""The table of a sweep's trials, as large as a terminal allows: best first, what runs always in it."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raydistill.evaluate.report.scales import ABSENT, cut, scale, setting, short_names, visible
from raydistill.search import front
from raydistill.search.ledger import Trial

if TYPE_CHECKING:
    from rich.console import Console, Group, RenderableType
    from rich.table import Table

STYLES = {"completed": "green", "running": "cyan", "stopped": "yellow", "failed": "red", "waiting": "dim"}
STATES = ("completed", "stopped", "running", "waiting", "failed", "rejected")
MARK = "★"
MAX_CELL = 14  # characters of a setting's value: a number has at most 9, a loss section is told by its beginning
MAX_VALUES = 6
FRAME_LINES = 8  # of the screen: heading of up to three lines, its rule, three lines below the table, the prompt


@dataclass(frozen=True)
class Search:
    """An entry says this of the search."""

    phase: str
    trials: Sequence[Trial]
    """In the order of the table: best first, then those without a value."""
    objectives: Mapping[str, Any]
    total: int
    elapsed: float
    left: float | None
    marked: frozenset[int]
    """The best trial, or the Pareto front, of those completed within the constraints."""
    names: Mapping[str, str]
    """Dotted name of a setting -> short name."""

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> Search:
        objectives, limits = entry["objectives"], entry.get("constraints") or {}
        given: Sequence[Trial] = entry["trials"]
        ranked = front.ranked([t for t in given if t.state not in ("failed", "rejected")], objectives)
        placed = {trial.number for trial in ranked}
        others = [trial for trial in given if trial.number not in placed]
        able = [
            trial
            for trial in ranked
            if trial.state == "completed" and all(front.within(trial.measures.get(n), b) for n, b in limits.items())
        ]
        return cls(
            phase=entry["phase"],
            trials=[*ranked, *sorted(others, key=lambda trial: (STATES.index(trial.state), trial.number))],
            objectives=objectives,
            total=entry["total"],
            elapsed=entry["elapsed"],
            left=entry.get("left"),
            marked=frozenset(trial.number for trial in front.pareto_front(able, objectives)),
            names=short_names(dict.fromkeys(name for trial in given for name in trial.params)),
        )


def draw(search: Search, console: Console) -> Group:
    """Draw the table as large as the screen allows, over lines on the whole search, what has no place, and failures."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    failed = max((t for t in search.trials if t.state == "failed"), key=lambda trial: trial.number, default=None)
    values = by_validation(search)
    rows, num_hidden = fit_rows(search.trials, console.height - FRAME_LINES - bool(failed) - bool(values))
    grid, left_out = fill(search, rows, console)
    missing = ", ".join([f"{num_hidden} trials"] * bool(num_hidden) + left_out)
    whole = Table.grid("", "", "", padding=(0, 1))
    bar = ProgressBar(max(search.total, 1), num_trained(search), 20)
    whole.add_row(
        Text(f"{search.phase} "), bar, Text(overview(search), no_wrap=True, overflow="ellipsis"), style="bold"
    )
    below = (
        (tally(search), "dim"),
        (values, "cyan"),
        (missing and f"not shown: {missing}", "dim"),
        (failed and f"trial {failed.number} failed: {first_line(failed.reason)}", "red"),
    )
    lines = [Text(text, style, no_wrap=True, overflow="ellipsis") for text, style in below if text]
    return Group(grid, whole, *lines)


def fit_rows(trials: Sequence[Trial], room: int) -> tuple[list[Trial], int]:
    """Choose the best trials, with a place for each running one in up to half the rows; say how many are left out.

    Rejected ones have no row.
    """
    shown, room = [trial for trial in trials if trial.state != "rejected"], max(room, 3)
    running = [trial.number for trial in shown if trial.state == "running"][: room // 2]
    best = [trial.number for trial in shown if trial.number not in running]
    kept = {*running, *best[: room - len(running)]}
    return [trial for trial in shown if trial.number in kept], len(shown) - len(kept)


def fill(search: Search, rows: Sequence[Trial], console: Console) -> tuple[Table, list[str]]:
    """Return the table of these rows, and the short names of the settings for which the screen is too narrow."""
    shown: list[str] = []
    anywhere = console.options.update(max_width=1000)
    for name in search.names:
        if console.measure(table(search, rows, [*shown, name]), options=anywhere).maximum <= console.width:
            shown.append(name)
    return table(search, rows, shown), [short for name, short in search.names.items() if name not in shown]


def table(search: Search, rows: Sequence[Trial], names: Sequence[str]) -> Table:
    """Show objectives, and the settings of these names."""
    from rich import box
    from rich.table import Column, Table
    from rich.text import Text

    heads = [scale(name).label.replace(",\N{NO-BREAK SPACE}", ",\n") for name in search.objectives]
    heads += [heading(search.names[name]) for name in names]
    columns = [Column(head, no_wrap=True, vertical="bottom") for head in ("trial", "state", "progress")]
    columns += [Column(h, justify="right", no_wrap=True, vertical="bottom") for h in heads]
    grid = Table(*columns, box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for trial in rows:
        is_marked = trial.number in search.marked
        values = [scale(name).text(trial.measures.get(name)) for name in search.objectives]
        grid.add_row(
            f"{MARK if is_marked else ' '}{trial.number:>3}",
            Text(trial.state, STYLES.get(trial.state, "")),
            progress(trial),
            *(Text(text) for text in (*values, *(cell(trial, name) for name in names))),
            style="bold" if is_marked else None,
        )
    return grid


def cell(trial: Trial, name: str) -> str:
    """Write a setting's value, a number with three digits."""
    if name not in trial.params:
        return ABSENT
    value = trial.params[name]
    return f"{value:.3g}" if isinstance(value, float) else cut(setting(visible(value)), MAX_CELL)


def heading(name: str) -> str:
    """Break a short name after dots and underscores into up to three lines."""
    parts = name.replace(".", ". ").replace("_", "_ ")
    lines = textwrap.wrap(parts, 10, break_long_words=False, max_lines=3, placeholder="…")
    return "\n".join(cut(line.replace(" ", ""), MAX_CELL) for line in lines)


def progress(trial: Trial) -> RenderableType:
    """Draw the trial's steps up to its last validation, with the time left, or taken where it has ended."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    if trial.reused or not trial.history:
        return "reused" if trial.reused else ""
    step, num_steps, seconds = (trial.history[-1][name] for name in ("step", "num_steps", "seconds"))
    is_running = trial.state == "running"
    time = f"{minutes(seconds * (num_steps / max(step, 1) - 1))} left" if is_running else minutes(trial.seconds)
    pair = Table.grid(padding=(0, 1))
    pair.add_row(ProgressBar(num_steps, step, 6), time, style="cyan" if is_running else "dim")
    return pair


def minutes(seconds: float) -> str:
    """Write m:ss, from an hour on h:mm:ss."""
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"


def num_trained(search: Search) -> int:
    return sum(trial.has_ended and trial.state != "rejected" for trial in search.trials)


def overview(search: Search) -> str:
    text = f"{num_trained(search)} of {search.total} trials, {minutes(search.elapsed)}"
    return text + (f", about {minutes(search.left)} left" if search.left is not None else "")


def tally(search: Search) -> str:
    """Say how many trials are in which state, and what the star means."""
    counts = {name: sum(trial.state == name for trial in search.trials) for name in STATES}
    text = ", ".join(f"{count} {name}" for name, count in counts.items() if count) or "no trial yet"
    if search.marked:
        text += f"; {MARK} the best" if len(search.objectives) == 1 else f"; {MARK} Pareto front"
    return text


def by_validation(search: Search) -> str:
    """Tell every running trial's last values of the first validation objective; nothing before there are any."""
    name = front.first_validation(search.objectives)
    unit, told = scale(name), []
    for trial in sorted(search.trials, key=lambda trial: trial.number):
        values = [unit.text(report[name]) for report in trial.history if report.get(name) is not None]
        if trial.state == "running" and values:
            told.append(f"{trial.number}: {'… ' * (len(values) > MAX_VALUES)}{' '.join(values[-MAX_VALUES:])}")
    return f"{unit.label.replace(chr(0xA0), ' ')} by validation, trial {'; '.join(told)}" if told else ""


def first_line(reason: str | None) -> str:
    return next(iter(visible(reason or "").strip().splitlines()), "no reason was given")
