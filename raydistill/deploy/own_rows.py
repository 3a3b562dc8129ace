"""The test rows of the run that a model comes from, or rows that the user names."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from raydistill.config.data import Columns, Data
from raydistill.config.section import Section
from raydistill.config.tasks import TaskSection
from raydistill.deploy.testset import TestRows, prepared_rows, read_test_rows
from raydistill.errors import ConfigError, UnknownName
from raydistill.evaluate.compare import read_predictions
from raydistill.storage.artifacts import Artifact
from raydistill.storage.faults import Missing
from raydistill.storage.storage import Storage
from raydistill.tasks import Task
from raydistill.tracking.registry.versions import existing_store, find_run, run_tags, version_named
from raydistill.tracking.runs import RUN_KEY


def find_test_rows(model: str, task: Task, data: Data | None, split: str, storage: str) -> TestRows:
    """The rows to measure ``model`` on, which is of ``task``: those of ``data``, or of the run that it comes from.

    ``model``: ``runs:/…``, ``models:/…`` or the folder of a student in ``storage``. Raises ConfigError where the run or
    its data cannot be found; then only ``data`` helps.
    """
    if data is not None:
        section = section_of(model, task, storage)
        data = data.model_copy(update={"symmetric": data.symmetric or has_symmetric_pairs(model, storage)})
        return read_named_rows(data, task, split, columns_of(model, storage), section)
    place = Storage(storage)
    run_key = run_key_of(model, place)
    if run_key is None:
        raise ConfigError(
            f"{model} comes from no run of the storage {place.show()}, so there are no test rows of its own. Name "
            "labelled rows with --data, or the run's storage with --storage."
        )
    with suppress(Missing):
        names = place.read_json("runs", run_key, "run.json")["artifacts"]
        made = [Artifact(place, *name.partition("/")[::2]) for name in names]
        for data_of_run in (one for one in made if one.kind == "data" and one.exists()):
            rows = prepared_rows(data_of_run, task, split)
            return taught(rows, made) if task.is_taught else rows
    raise ConfigError(
        f"The data of run {run_key} is not in the storage {place.show()}. Name labelled rows with --data, or the run's "
        "storage with --storage."
    )


def taught(rows: TestRows, made: list[Artifact]) -> TestRows:
    """The rows with what the teacher said of them in the run that made these artefacts, where it is kept."""
    for one in made:
        if one.kind == "evaluation" and one.exists() and (one.local() / f"predictions-{rows.split}.parquet").is_file():
            kept = read_predictions(one.local(), rows.split)
            place = {value: row for row, value in enumerate(kept.hashes)}
            if place.keys() >= set(rows.hashes):
                return replace(rows, targets=kept.targets.take(np.array([place[value] for value in rows.hashes])))
    return rows


def read_named_rows(data: Data, task: Task, split: str, names: Columns, section: TaskSection) -> TestRows:
    """The rows of ``data``, whose columns have these names where it has such columns and names none itself."""
    own = {role: name for role, name in data.columns if name is not None}
    known = data.model_copy(update={"columns": names.model_copy(update=own)})
    if known != data:
        with suppress(ConfigError):  # the run's own data had other names
            return read_test_rows(known, task, split, section)
    return read_test_rows(data, task, split, section)


def columns_of(model: str, storage: str) -> Columns:
    """How the columns were named in the data of the run that a model comes from; no names where it cannot be told."""
    return Columns(**settings_of(model, storage, "data.columns", Columns))


def has_symmetric_pairs(model: str, storage: str) -> bool:
    """Whether both orders of a pair are one row to the run that a model comes from; False where it cannot be told."""
    return str(settings_of(model, storage, "data", Data).get("symmetric")).lower() == "true"


def section_of(model: str, task: Task, storage: str) -> TaskSection:
    """The section ``task`` of the run that a model comes from, which says how its labels are written."""
    kind = task.Settings
    found = settings_of(model, storage, "task", kind)
    return kind(**found) if found.get("type") == task.type else kind()


def settings_of(model: str, storage: str, section: str, kind: type[Section]) -> dict[str, Any]:
    """What the config of the run that a model comes from says in a section, of the fields that ``kind`` has: other
    releases may have written others. Empty where it cannot be told."""
    place = Storage(storage)
    found: dict[str, Any] = {}
    if model.startswith(("models:/", "runs:/")):
        uri = existing_store(place)
        run_id = run_id_of(model, uri)
        run = find_run(run_id, uri) if run_id else None
        params = run.data.params if run is not None else {}
        # lists are JSON there, and may be cut: what the labels are the model itself tells
        own = {name: value for name, value in params.items() if value != "null" and value[:1] + value[-1:] != "[]"}
        found = {n.removeprefix(f"{section}."): value for n, value in own.items() if n.startswith(f"{section}.")}
    elif run_key := _run_of_folder(Path(model), place):
        with suppress(Missing):
            found = place.read_json("runs", run_key, "results.json")["config"]
            for name in section.split("."):
                found = found.get(name, {})
    return {name: value for name, value in found.items() if name in kind.model_fields}


def run_key_of(model: str, storage: Storage) -> str | None:
    """Key of the run that made a model; None where it cannot be told."""
    if not model.startswith(("models:/", "runs:/")):
        return _run_of_folder(Path(model), storage)
    uri = existing_store(storage)
    if model.startswith("models:/") and (key := version_named(model, uri).tags.get(RUN_KEY)):
        return key
    run_id = run_id_of(model, uri)
    tags = run_tags(run_id, uri) if run_id else {}
    if tags is None and model.startswith("runs:/"):
        raise UnknownName(f"{model}: there is no such run. `raydistill runs` lists them.")
    return (tags or {}).get(RUN_KEY)


def run_id_of(model: str, uri: str) -> str | None:
    """MLflow's id of the run that ``models:/…`` or ``runs:/…`` comes from; None for a version without a run, and for
    any other name. Raises TrackingError where there is no such version."""
    if model.startswith("models:/"):
        return version_named(model, uri).run_id or None
    return model.removeprefix("runs:/").strip("/").partition("/")[0] if model.startswith("runs:/") else None


def _run_of_folder(folder: Path, storage: Storage) -> str | None:
    """The newest run that refers to ``<storage>/student/<key>/model``, or to a teacher's or baseline's folder."""
    if not storage.is_local:
        return None
    root = Path(storage.root).resolve()
    parts = folder.resolve().relative_to(root).parts if folder.resolve().is_relative_to(root) else ()
    if len(parts) < 2:
        return None
    name = "/".join(parts[:2])
    runs = [key for key in storage.list("runs") if storage.exists("runs", key, "run.json")]
    users = [key for key in runs if name in storage.read_json("runs", key, "run.json").get("artifacts", ())]
    return max(users, key=lambda key: storage.fs.modified(storage.path("runs", key, "run.json")), default=None)
