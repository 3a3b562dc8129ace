"""What `raydistill runs rm` and `raydistill runs diff` do: past runs removed, or compared by what was set."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from raydistill.cli.show.runs import figures, short_key, whole_key
from raydistill.errors import ArtifactError
from raydistill.evaluate.report.scales import visible
from raydistill.storage.locks import is_held, lock
from raydistill.storage.runs import named, only
from raydistill.storage.storage import Storage
from raydistill.tracking.endpoint import sqlite_path, tracking_uri
from raydistill.tracking.listing import Found, RunStore
from raydistill.tracking.registry.versions import open_store
from raydistill.tracking.runs import is_of

if TYPE_CHECKING:
    from rich.console import Console

LOCK = "driver.lock"


def remove_run(storage: str, name: str, force: bool = False) -> dict[str, Any]:
    """Remove the run or sweep whose key, or MLflow run id, begins with ``name``: its folder and its runs in MLflow.

    The artefacts that it alone refers to are left to ``cache gc``. Refused while it runs, and where a registered
    version came from it; ``force`` deletes such a version, too, unless an alias names it. A sweep's winner stays, as a
    run of its own. Raises ConfigError, ArtifactError, TrackingError.
    """
    place = Storage(storage)
    keys = place.list("runs")
    key = only(named(place, keys, name) if name else [], name, place.show())
    held = is_held(place, "runs", key, LOCK)
    if held or (held is None and not force):
        certain = "is running" if held else "may be running, its lock is another user's"
        raise ArtifactError(f"Run {key} stays: it {certain}. Stop it first; the same command would go on with it.")
    with lock(place, "runs", key, LOCK):
        store = _store(place)
        found = store.by_key(key) if store is not None else []  # of KEY-2, and of other storages at the server, too
        runs = [run for run in found if run.key == key and is_of(place, key, run.run_id, run.tags)]
        held_by = {run.run_id: store.versions(run) for run in runs} if store is not None else {}
        versions = [version for own in held_by.values() for version in own]
        _check_versions(key, versions, force)
        gone = [one for run in runs for one in store.forget(run, held_by[run.run_id])] if store is not None else []
        for file in ("results.json", "sweep.json"):  # first: what has results counts as finished
            place.delete("runs", key, file)
        place.delete("runs", key)
    return {"key": key, "run_ids": gone, "versions": [f"{model} {version}" for model, version, _ in versions]}


def _store(place: Storage) -> RunStore | None:
    """None where nothing was ever tracked: a database that is not there holds no versions."""
    database = sqlite_path(tracking_uri(place))
    return None if database is not None and not database.is_file() else RunStore(open_store(place))


def _check_versions(key: str, versions: list[tuple[str, int, tuple[str, ...]]], force: bool) -> None:
    for model, version, aliases in versions:
        if aliases:
            raise ArtifactError(
                f"Run {key} stays: version {version} of {model}, its student, is the {' and '.join(aliases)}. Promote "
                "or register another one first."
            )
        if not force:
            raise ArtifactError(
                f"Run {key} stays: its student is registered as version {version} of {model}. Add --force to delete "
                "that version, too."
            )


def describe_removed(removed: Mapping[str, Any]) -> str:
    also = "".join(f", version {name.rpartition(' ')[2]} of {name.rpartition(' ')[0]}" for name in removed["versions"])
    return f"Run {removed['key']}{also} removed. `raydistill cache gc` frees what nothing else refers to."


def compare_runs(storage: str, first: str, second: str) -> dict[str, Any]:
    """What was set differently in two runs, sweeps or trials (``SWEEP/trial-00003``), and their figures.

    ``config``: dotted name -> the two values, None where a run lacks the name. ``figures``: metric by its name in
    MLflow -> the two values, a sweep's being its winner's; ``differences``: the second less the first. Raises
    ConfigError, TrackingError.
    """
    place = Storage(storage)
    store = RunStore(open_store(place))
    runs = [_find(store, place, name) for name in (first, second)]
    told = [figures((store.winner(run) or run).metrics if run.is_sweep else run.metrics) for run in runs]
    one, two = ({name: _parsed(value) for name, value in run.params.items()} for run in runs)
    changed = [name for name in sorted(one.keys() | two.keys()) if one.get(name) != two.get(name)]
    return {
        "runs": [{"key": run.key, "run_id": run.run_id, "name": run.name} for run in runs],
        "same_data": runs[0].tags.get("raydistill.data") == runs[1].tags.get("raydistill.data"),
        "config": {name: [one.get(name), two.get(name)] for name in changed},
        "figures": {name: [each.get(name) for each in told] for name in sorted(told[0] | told[1])},
        "differences": {name: told[1][name] - told[0][name] for name in sorted(told[0].keys() & told[1].keys())},
    }


def _find(store: RunStore, place: Storage, name: str) -> Found:
    name = whole_key(name)
    found = store.by_key(name) if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) else []
    if not found:
        found = [run for key in named(place, place.list("runs"), name) for run in store.by_key(key)]
    known = list(dict.fromkeys(str(run.key) for run in found))
    key = name if name in known else only(known, name, place.show())
    return next(run for run in found if run.key == key)


def _parsed(value: str) -> Any:
    """A parameter as it stood in the config; texts are kept as they are."""
    try:
        return json.loads(value)
    except ValueError:
        return value


def print_difference(console: Console, found: Mapping[str, Any]) -> None:
    """The settings that differ, then the figures side by side."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    def table(title: str, rows: Mapping[str, list[Any]], differences: Mapping[str, float] | None = None) -> Table:
        made = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
        made.add_column(title, overflow="fold")
        for run in found["runs"]:
            made.add_column(short_key(str(run["key"]), 12), overflow="fold")
        if differences is not None:
            made.add_column("difference", justify="right")
        for name, values in rows.items():
            last = [] if differences is None else [f"{differences[name]:+.6g}" if name in differences else ""]
            made.add_row(Text(name), *(Text(visible(_shown(value))) for value in values), *last)
        return made

    if not found["same_data"]:
        console.print("They were trained on data of other content.")
    if found["config"]:
        console.print(table("setting", found["config"]))
    else:
        console.print("Nothing was set differently.")
    if found["figures"]:
        console.print(table("figure", found["figures"], found["differences"]))


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return "—" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
