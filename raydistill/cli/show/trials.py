"""The table of a sweep's trials, as large as a terminal allows: best first, what runs always in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from raydistill.evaluate.report.scales import ABSENT, cut, scale, setting, short_names, visible
from raydistill.search import front
from raydistill.search.ledger import Trial

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

STYLES = {"completed": "green", "running": "cyan", "stopped": "yellow", "failed": "red", "waiting": "dim"}
STATES = ("completed", "stopped", "running", "waiting", "failed", "rejected")
MARK = "★"
MAX_CELL = 14  # characters of a setting's value: a number has at most 9, a loss section is told by its beginning
MAX_VALUES = 6
GAP = 2  # spaces between two columns
FRAME_LINES = 8  # of the screen: heading of up to three lines, its rule, three lines below the table, the prompt


@dataclass(frozen=True)
class State:
    """What an entry says of the search."""

    phase: str
    trials: Sequence[Trial]
    """In the order of the table: best first, then those without a value."""
    objectives: Mapping[str, Any]
    total: int
    elapsed: float
    left: float | None
    marked: frozenset[int]
    """The best trial, or the Pareto front, of those completed within the constraints."""
    names: Mapping[str, str] = field(default_factory=dict)
    """Dotted name of a setting -> short name."""

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> State:
        objectives, limits = entry["objectives"], entry.get("constraints") or {}
        given: Sequence[Trial] = entry["trials"]
        ranked = front.ranked([t for t in given if t.state not in ("failed", "rejected")], objectives)
        placed = {trial.number for trial in ranked}
        others = [trial for trial in given if trial.number not in placed]
        order = ("running", "waiting", "completed", "stopped", "failed", "rejected")
        others.sort(key=lambda trial: (order.index(trial.state), trial.number))
        able = [
            trial
            for trial in ranked
            if trial.state == "completed" and all(front.within(trial.measures.get(n), b) for n, b in limits.items())
        ]
        return cls(
            phase=entry["phase"],
            trials=[*ranked, *others],
            objectives=objectives,
            total=entry["total"],
            elapsed=entry["elapsed"],
            left=entry.get("left"),
            marked=frozenset(trial.number for trial in front.pareto_front(able, objectives)),
            names=short_names(dict.fromkeys(name for trial in given for name in trial.params)),
        )


def draw(state: State, width: int, height: int) -> Group:
    """The table, as large as the screen allows, over lines on the whole search, on what has no place, on failures."""
    from rich.console import Group
    from rich.text import Text

    failed = [trial for trial in state.trials if trial.state == "failed"]
    rows, num_hidden = fit_rows(state.trials, height - FRAME_LINES - bool(failed) - bool(by_validation(state)))
    grid, left_out = fill(state, rows, width)
    missing = [f"{num_hidden} trials"] * bool(num_hidden) + left_out
    below = [
        Text(f"{state.phase}  {bar(num_trained(state), state.total, 20)} {overview(state)}", "bold"),
        Text(tally(state), "dim"),
    ]
    if values := by_validation(state):
        below.append(Text(values, "cyan"))
    if missing:
        below.append(Text(f"not shown: {', '.join(missing)}", "dim"))
    if failed:
        last = max(failed, key=lambda trial: trial.number)
        below.append(Text(f"trial {last.number} failed: {first_line(last.reason)}", "red"))
    for line in below:
        line.truncate(width, overflow="ellipsis")
    return Group(grid, *below)


def fit_rows(trials: Sequence[Trial], room: int) -> tuple[list[Trial], int]:
    """The best trials, with a place for each running one in up to half the rows, and how many are left out.

    Rejected ones have no row.
    """
    shown = [trial for trial in trials if trial.state != "rejected"]
    room = max(room, 3)
    if len(shown) <= room:
        return shown, 0
    running = {trial.number for trial in [t for t in shown if t.state == "running"][: room // 2]}
    free = room - len(running)
    best = {trial.number for trial in [t for t in shown if t.number not in running][:free]}
    return [trial for trial in shown if trial.number in running | best], len(shown) - room


def fill(state: State, rows: Sequence[Trial], width: int) -> tuple[Table, list[str]]:
    """The table of these rows, and the short names of the settings for which the screen is too narrow."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    columns: list[tuple[str, list[Text]]] = [
        ("trial", [Text(f"{MARK if t.number in state.marked else ' '}{t.number:>3}") for t in rows]),
        ("state", [Text(t.state, STYLES.get(t.state, "")) for t in rows]),
        ("progress", [Text(done(t), "cyan" if t.state == "running" else "dim") for t in rows]),
    ]
    for name in state.objectives:
        values = [scale(name).text(trial.measures.get(name)) for trial in rows]
        columns.append((scale(name).label.replace(",\N{NO-BREAK SPACE}", ",\n"), [Text(value) for value in values]))
    left_out = []
    for name, short in state.names.items():
        new = (heading(short), [Text(cell(trial, name)) for trial in rows])
        if needed([*columns, new]) <= width:
            columns.append(new)
        else:
            left_out.append(short)
    grid = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for title, _ in columns:
        is_text = title in ("trial", "state", "progress")
        grid.add_column(title, justify="left" if is_text else "right", no_wrap=True, vertical="bottom")
    for number, trial in enumerate(rows):
        style = "bold" if trial.number in state.marked else None
        grid.add_row(*(cells[number] for _, cells in columns), style=style)
    return grid, left_out


def cell(trial: Trial, name: str) -> str:
    """A setting's value, a number with three digits."""
    if name not in trial.params:
        return ABSENT
    value = trial.params[name]
    return f"{value:.3g}" if isinstance(value, float) else cut(setting(visible(value)), MAX_CELL)


def needed(columns: Sequence[tuple[str, Sequence[Text]]]) -> int:
    """Characters across: the widest cell of every column, and the gaps."""
    widths = [
        max([*map(len, title.splitlines()), *(cell.cell_len for cell in cells)], default=0) for title, cells in columns
    ]
    return sum(widths) + GAP * (len(widths) - 1)


def heading(name: str) -> str:
    """A short name over up to three lines, broken after dots and underscores."""
    parts = name.replace(".", ". ").replace("_", "_ ").split()
    lines = [""]
    for part in parts:
        if lines[-1] and len(lines[-1] + part) > max(9, *map(len, parts)) and len(lines) < 3:
            lines.append("")
        lines[-1] += part
    return "\n".join(cut(line, MAX_CELL) for line in lines)


def bar(amount: float, total: float, width: int) -> str:
    filled = round(width * min(amount / total, 1)) if total else 0
    return "━" * filled + "╌" * (width - filled)


def done(trial: Trial) -> str:
    """A bar of the trial's steps up to its last validation, with the time left, or taken where it has ended."""
    if trial.reused:
        return "reused"
    if not trial.history:
        return ""
    last = trial.history[-1]
    text = bar(last["step"], last["num_steps"], 6)
    if trial.state == "running":
        return f"{text} {minutes(last['seconds'] * (last['num_steps'] / max(last['step'], 1) - 1))} left"
    return f"{text} {minutes(trial.seconds)}"


def minutes(seconds: float) -> str:
    """m:ss, from an hour on h:mm:ss."""
    whole = round(seconds)
    return (
        f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}" if whole >= 3600 else f"{whole // 60}:{whole % 60:02}"
    )


def num_trained(state: State) -> int:
    return sum(trial.has_ended and trial.state != "rejected" for trial in state.trials)


def overview(state: State) -> str:
    text = f"{num_trained(state)} of {state.total} trials, {minutes(state.elapsed)}"
    return text + (f", about {minutes(state.left)} left" if state.left is not None else "")


def tally(state: State) -> str:
    """How many trials are in which state, and what the star means."""
    counts = {name: sum(trial.state == name for trial in state.trials) for name in STATES}
    text = ", ".join(f"{count} {name}" for name, count in counts.items() if count) or "no trial yet"
    if state.marked:
        text += f"; {MARK} the best" if len(state.objectives) == 1 else f"; {MARK} Pareto front"
    return text


def by_validation(state: State) -> str:
    """The last values of the first validation objective of every running trial; empty before there are any."""
    name = front.first_validation(state.objectives)
    unit, told = scale(name), []
    for trial in sorted(state.trials, key=lambda trial: trial.number):
        values = [unit.text(report[name]) for report in trial.history if report.get(name) is not None]
        if trial.state == "running" and values:
            told.append(f"{trial.number}: {'… ' * (len(values) > MAX_VALUES)}{' '.join(values[-MAX_VALUES:])}")
    return f"{unit.label.replace(chr(0xA0), ' ')} by validation, trial {'; '.join(told)}" if told else ""


def first_line(reason: str | None) -> str:
    return next(iter(visible(reason or "").strip().splitlines()), "no reason was given")
