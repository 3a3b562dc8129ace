"""What a finished run leaves for later judgements: per-row predictions on test, and which rows the student has seen.

Both are artefacts of the MLflow run, so that a comparison needs neither the teacher nor the storage of the run; only
the texts themselves stay in storage, with the run's data artefact.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raydistill.errors import ArtifactError
from raydistill.evaluate.compare import Predictions, read_predictions
from raydistill.storage.artifacts import Artifact
from raydistill.tracking.registry.versions import run_file

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
    target.mkdir()
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
        if path is None:
            return None
        try:
            return Seen(pq.read_table(path))
        except (OSError, pa.ArrowException) as error:
            raise ArtifactError(
                f"{path.name} of the run cannot be read: {error}. Run the distillation again to write it."
            ) from error


def read_kept_predictions(run_id: str, uri: str) -> Predictions | None:
    """Outputs of teacher, student and baseline on the run's test rows; None where it keeps none."""
    with tempfile.TemporaryDirectory(prefix="raydistill-") as scratch:
        path = run_file(run_id, f"{FOLDER}/{PREDICTIONS}", Path(scratch), uri)
        return None if path is None else read_predictions(path.parent, "test")
