"""What `raydistill runs` prints: the runs of a storage's MLflow store with their headline figures, newest first."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from raydistill.cli.show.trials import minutes
from raydistill.config.metrics import metric
from raydistill.config.tasks import SECTIONS
from raydistill.evaluate.report.scales import short_count, visible
from raydistill.storage.locks import is_held
from raydistill.storage.storage import Storage
from raydistill.tracking.listing import COUNTS, KIND, Found, RunStore
from raydistill.tracking.registry.versions import open_store

if TYPE_CHECKING:
    from rich.console import Console

HEADLINE = ("agreement", "num_parameters", "bytes", "latency_ms/p50")
WHOLE = ("num_parameters", "bytes")
FAMILIES = ("test/", "retention/", "best_validation/", "gate/")
"""Metrics that a row has: these, and those that begin so."""
HEADS = ("key", "when", "what", "name", "score", "ret.", "param.", "ms", "size", "took")
NAME = HEADS.index("name")
KEY_LENGTH = 4
ENDINGS = {"FAILED": "failed", "KILLED": "stopped", "SCHEDULED": "waiting"}


def listed(storage: str, experiment: str | None = None, limit: int = 20, trials: bool = False) -> list[dict[str, Any]]:
    """A row a run, a sweep's trials below it with ``trials``; documented at ``row``. Raises TrackingError."""
    place = Storage(storage)
    store = RunStore(open_store(place), experiment)
    found, winners = store.newest(limit)
    rows: list[dict[str, Any]] = []
    for run in found:
        if not run.is_sweep:
            rows.append(row(run, place))
            continue
        children = list(store.trials(run)) if trials or not counts_of(run) else []
        winner = winners.get(run.run_id) or store.winner(run)
        rows.append(row(run, place, winner=winner, trials=counts_of(run) or counts(children)))
        rows += [row(child, place, parent=run) for child in children if trials]
    return rows


def row(
    run: Found,
    storage: Storage,
    *,
    winner: Found | None = None,
    trials: Mapping[str, int] | None = None,
    parent: Found | None = None,
) -> dict[str, Any]:
    """One run in plain values.

    ``kind``: distill, sweep, gate, trial. ``status``: MLflow's, in small letters, or ``lost`` for a run that is said to
    be running and whose process is gone. ``figures``: metrics by their names in MLflow, of a sweep its winner's.
    ``trials``: of a sweep, how many are in which state. ``verdict``: of a gate. ``parent``: run id of a trial's sweep.
    """
    source = winner or run
    seconds = None if run.ended is None else (run.ended - run.started) / 1000
    version = source.tags.get("raydistill.model_version", "")
    return {
        "run_id": run.run_id,
        "experiment": run.experiment,
        "name": run.name,
        "key": run.key,
        "kind": "trial" if parent else "sweep" if run.is_sweep else run.tags.get(KIND, "distill"),
        "status": status(run, storage, parent),
        "started": moment(run.started),
        "ended": None if run.ended is None else moment(run.ended),
        "seconds": seconds,
        "model": source.tags.get("raydistill.model"),
        "model_version": int(version) if re.fullmatch(r"[0-9]{1,18}", version) else None,
        "verdict": run.tags.get("raydistill.verdict"),
        "figures": figures(source.metrics),
        "trials": None if trials is None else dict(trials),
        "parent": parent.run_id if parent else None,
    }


def status(run: Found, storage: Storage, parent: Found | None) -> str:
    """``lost`` needs a key of this storage: of a run somewhere else, and where it cannot be told, ``running``."""
    driver = parent or run
    if run.status == "RUNNING" and driver.key and storage.exists("runs", driver.key):
        return "lost" if is_held(storage, "runs", driver.key, "driver.lock") is False else "running"
    return run.status.lower()


def figures(metrics: Mapping[str, float]) -> dict[str, float]:
    kept = {name: value for name, value in metrics.items() if name in HEADLINE or name.startswith(FAMILIES)}
    finite = {name: kept[name] for name in sorted(kept) if math.isfinite(kept[name])}
    return {name: int(value) if name in WHOLE else value for name, value in finite.items()}


def counts_of(run: Found) -> dict[str, int]:
    """Trials by state of a sweep that has ended; empty before."""
    named = {name.removeprefix(COUNTS): value for name, value in run.metrics.items() if name.startswith(COUNTS)}
    return {state: int(number) for state, number in named.items() if number}


def counts(children: Sequence[Found]) -> dict[str, int]:
    """Trials by state, from their own runs; finals are not among them."""
    searched = [child for child in children if child.name.startswith("trial")]
    return dict(Counter(child.tags.get("raydistill.state", child.status.lower()) for child in searched))


def moment(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds")


def print_rows(console: Console, rows: Sequence[Mapping[str, Any]]) -> None:
    """A table that fits the terminal, from 80 columns on: the name gives way."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    if not rows:
        console.print("No runs yet. Begin one with: raydistill distill CONFIG", markup=False)
        return
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=0)  # the box's own space is enough
    for column, head in enumerate(HEADS):  # rich narrows columns that may be wrapped
        table.add_column(head, no_wrap=column != NAME, justify="left" if column <= NAME else "right")
    for row in rows:
        texts = (Text(cell, no_wrap=True, overflow="ellipsis") for cell in cells(row))
        table.add_row(*texts, style="dim" if row["kind"] == "trial" else None)
    console.print(table)
    console.print(Text(legend(rows), style="dim"))


def legend(rows: Sequence[Mapping[str, Any]]) -> str:
    kinds = {row["kind"] for row in rows}
    scores = dict.fromkeys(score[0] for row in rows if (score := score_of(row)) is not None)
    words = f" score: {' or '.join(metric(name).title for name in scores)}, on test." if scores else ""
    told = [f"key: its beginning.{words} ret.: retention, in % of the teacher's. ms: median latency of a row."]
    if "sweep" in kinds:
        told.append("sweep N: N trials were trained; the figures are the winner's.")
    if "trial" in kinds:
        told.append("Trials: score on validation; `runs diff SWEEP/0 SWEEP/1` compares them, f0 is a final.")
    if any(row["status"] == "lost" for row in rows):
        told.append("running?: its process is gone; the same command goes on where it was.")
    return " ".join(told)


def cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    """The row's cells in the order of HEADS."""
    from rich.filesize import decimal

    found = row["figures"]
    score = score_of(row)
    share = None if score is None else found.get(f"retention/{score[0]}")
    name = f"{row['model']} {row['model_version']}" if row["model_version"] else row["name"]
    size, latency = found.get("bytes"), found.get("latency_ms/p50")
    return (
        key_cell(row),
        when(row["started"]),
        what(row),
        " ".join(visible(name).split()),
        "" if score is None else metric(score[0]).text(score[1]),
        "" if share is None else f"{100 * share:.1f}",
        short_count(found["num_parameters"]) if "num_parameters" in found else "",
        f"{latency:.{2 if latency < 100 else 0}f}" if latency is not None else "",
        "" if size is None else decimal(size),
        took(row),
    )


def short_key(key: str, length: int = KEY_LENGTH) -> str:
    """How a key begins; of a trial its sweep's, and its number: ``abcd/3``, of a final ``abcd/f0``."""
    sweep, slash, name = key.partition("/")
    kind, _, number = name.partition("-")
    known = number.isdecimal() and kind in ("trial", "final")
    return sweep[:length] + slash + (f"{'f' if kind == 'final' else ''}{int(number)}" if known else name)


def whole_key(name: str) -> str:
    """What ``short_key`` has made of a trial's key, with its name in full; anything else as it is."""
    if (found := re.fullmatch(r"([^/]+)/(f?)([0-9]{1,5})", name)) is None:
        return name
    return f"{found[1]}/{'final' if found[2] else 'trial'}-{int(found[3]):05}"


def key_cell(row: Mapping[str, Any]) -> str:
    """How the key begins; of a trial, which stands below its sweep, what follows on that: ``/3``."""
    short = short_key(visible(row["key"] or ""))
    return {"distill": short, "sweep": short, "trial": "".join(short.partition("/")[1:])}.get(row["kind"], "")


def score_of(row: Mapping[str, Any]) -> tuple[str, float] | None:
    """The main metric of a run's task, on test or a trial's on validation, and its value; None where it has none."""
    return main_figure(row["figures"], "best_validation/" if row["kind"] == "trial" else "test/")


def main_figure(figures: Mapping[str, Any], prefix: str) -> tuple[str, Any] | None:
    """The main metric of the task that figures are of, told by which of them there are, and what stands there: nDCG
    is there of queries with documents alone."""
    mains = ("ndcg_10", *(section.metrics[0] for section in SECTIONS.values()))
    return next(((name, figures[prefix + name]) for name in mains if prefix + name in figures), None)


def what(row: Mapping[str, Any]) -> str:
    trained = sum(number for state, number in (row["trials"] or {}).items() if state not in ("rejected", "waiting"))
    return {"sweep": f"sweep {trained}", "trial": "  trial"}.get(row["kind"], visible(row["kind"]))


def took(row: Mapping[str, Any]) -> str:
    """How it ended: a gate by its verdict, anything else by the time it took, if it came to its end."""
    if row["status"] in ("running", "lost"):
        return "running" + "?" * (row["status"] == "lost")
    if row["status"] != "finished":
        return ENDINGS.get(row["status"].upper(), row["status"])
    if row["verdict"]:
        return str(visible(row["verdict"]))
    if row["seconds"] is None:  # MLflow's own server takes a run's state without its end
        return ""
    return minutes(max(row["seconds"], 0))


def when(started: str) -> str:
    """In local time; the year only where it is another one."""
    time = datetime.fromisoformat(started).astimezone()
    return time.strftime("%m-%d %H:%M" if time.year == datetime.now().year else "%Y-%m-%d")
