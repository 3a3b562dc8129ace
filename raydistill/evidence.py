"""What a finished run leaves for later judgements: per-row predictions on test, and which rows the student has seen.

Both are artefacts of the MLflow run, so that a comparison needs neither the teacher nor the storage of the run; only
the texts themselves stay in storage, with the run's data artefact.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raydistill.artifacts import Artifact
from raydistill.config import Columns, Data
from raydistill.errors import ArtifactError, ConfigError, TrackingError
from raydistill.evaluate.compare import Predictions, read_predictions
from raydistill.evaluate.testset import TestRows, prepared_rows, read_test_rows
from raydistill.registry import existing_store, run_file, run_tags, version_named
from raydistill.registry.versions import find_run
from raydistill.storage import Missing, Storage
from raydistill.tracking import RUN_KEY

FOLDER = "evaluation"
PREDICTIONS = "predictions-test.parquet"
SEEN = "seen-rows.parquet"
SEEN_SPLITS = ("train", "validation")


def write_evidence(data: Artifact, evaluation: Artifact, folder: Path) -> None:
    """Put the predictions on test rows and the hashes of training and validation rows into ``folder``/evaluation.

    seen-rows.parquet: hash (16 bytes, the hexadecimal one of ``data.draft.row_hashes`` in binary) and split; 17 bytes
    a row.
    """
    target = folder / FOLDER
    target.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(evaluation.local() / PREDICTIONS, target / PREDICTIONS)
    hashes: list[bytes] = []
    splits: list[str] = []
    for split in SEEN_SPLITS:
        with pa.memory_map(str(data.local() / f"{split}.arrow")) as file:
            found = pa.ipc.open_file(file).read_all().column("hash").to_pylist()
        hashes += [bytes.fromhex(value) for value in found]
        splits += [split] * len(found)
    table = pa.table({"hash": pa.array(hashes, pa.binary(16)), "split": pa.array(splits).dictionary_encode()})
    pq.write_table(table, target / SEEN, compression="zstd", use_dictionary=["split"])


@dataclass(frozen=True, eq=False)
class Seen:
    """The rows that a run was trained and selected on: an Arrow table of hash and split."""

    table: pa.Table

    def leaked(self, hashes: Sequence[str]) -> dict[str, int]:
        """How many of these rows (hexadecimal hashes) the run has seen, by split."""
        wanted = pa.array([bytes.fromhex(value) for value in set(hashes)], pa.binary(16))
        found = self.table.filter(pc.is_in(self.table.column("hash"), value_set=wanted))
        split_of = dict(zip(found.column("hash").to_pylist(), found.column("split").to_pylist(), strict=True))
        counts = Counter(split_of.get(bytes.fromhex(value)) for value in hashes)
        return {split: counts[split] for split in SEEN_SPLITS}


def read_seen(run_id: str, uri: str) -> Seen | None:
    """The rows that a run was trained and selected on; None where it keeps no hashes."""
    with tempfile.TemporaryDirectory(prefix="raydistill-") as scratch:
        path = run_file(run_id, f"{FOLDER}/{SEEN}", Path(scratch), uri)
        return None if path is None else Seen(_read(path))


def read_kept_predictions(run_id: str, uri: str) -> Predictions | None:
    """Logits of teacher, student and baseline on the run's test rows; None where it keeps none."""
    with tempfile.TemporaryDirectory(prefix="raydistill-") as scratch:
        path = run_file(run_id, f"{FOLDER}/{PREDICTIONS}", Path(scratch), uri)
        return None if path is None else read_predictions(path.parent, "test")


def find_test_rows(model: str, data: Data | None, split: str, storage: str) -> TestRows:
    """The rows to measure ``model`` on: those of ``data``, or of the run that it comes from.

    ``model``: ``runs:/…``, ``models:/…`` or the folder of a student in ``storage``. Raises ConfigError where the run or
    its data cannot be found; then only ``data`` helps.
    """
    if data is not None:
        return read_named_rows(data, split, columns_of(model, storage))
    place = Storage(storage)
    run_key = run_key_of(model, place)
    if run_key is None:
        raise ConfigError(
            f"{model} comes from no run of the storage {place.show()}, so there are no test rows of its own. Name "
            "labelled rows with --data, or the run's storage with --storage."
        )
    return run_rows(run_key, split, place)


def read_named_rows(data: Data, split: str, names: Columns) -> TestRows:
    """The rows of ``data``, whose columns have these names where it has such columns and names none itself."""
    own = {role: name for role, name in data.columns if name is not None}
    known = data.model_copy(update={"columns": names.model_copy(update=own)})
    if known != data:
        with suppress(ConfigError):  # the run's own data had other names
            return read_test_rows(known, split)
    return read_test_rows(data, split)


def columns_of(model: str, storage: str) -> Columns:
    """How the columns were named in the data of the run that a model comes from; no names where it cannot be told."""
    place = Storage(storage)
    if not model.startswith(("models:/", "runs:/")):
        run_key = _run_of_folder(Path(model), place)
        try:
            config = place.read_json("runs", run_key, "results.json")["config"] if run_key else {}
        except Missing:
            config = {}
        return Columns(**config.get("data", {}).get("columns", {}))
    uri = existing_store(place)
    run_id = run_id_of(model, uri)
    run = find_run(run_id, uri) if run_id else None
    params = run.data.params if run is not None else {}
    named = {role: params.get(f"data.columns.{role}") for role in Columns.model_fields}
    return Columns(**{role: name for role, name in named.items() if name != "null"})


def run_rows(run_key: str, split: str, storage: Storage) -> TestRows:
    """The rows of a split that a run prepared. Raises ConfigError where storage has them no more."""
    try:
        made = storage.read_json("runs", run_key, "run.json")["artifacts"]
    except Missing:
        made = []
    for name in made:
        kind, _, key = name.partition("/")
        if kind == "data" and Artifact(storage, kind, key).exists():
            return prepared_rows(Artifact(storage, kind, key), split)
    raise ConfigError(
        f"The data of run {run_key} is not in the storage {storage.show()}. Name labelled rows with --data, or the "
        "run's storage with --storage."
    )


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
        raise TrackingError(f"{model}: there is no such run. `raydistill runs` lists them.")
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


def _read(path: Path) -> pa.Table:
    try:
        return pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise ArtifactError(
            f"{path.name} of the run cannot be read: {error}. Run the distillation again to write it."
        ) from error
