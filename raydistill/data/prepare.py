"""Prepare the data once: read, clean, remove duplicates, cut what is missing, and write one Arrow file a split.

What happens to a row, in this order; every count ends up in info.json, with a sentence in its notes:

1. a row with an empty text or one that repeats the header is skipped, an unlabelled row of validation or test too;
2. a text of test is removed from validation and training, one of validation from training; copies within training are
   kept once, with the mean of their numbers or all their answers, none where other labels disagree; copies within
   validation and test stay, as these rows are given;
3. a missing validation or test split is cut from the labelled training rows, stratified, by a fixed seed; of some
   pairs rows with a common text stay together (``data.split.by``), and unlabelled rows beside held-out ones go;
4. ``data.max_labeled`` hides the labels of the other training rows;
5. ``data.unlabeled`` joins training without labels, and without what stands in any split already.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raydistill.config.plugins import sources_in
from raydistill.config.tree import Config
from raydistill.data.draft import Draft, Part, make_draft, whole
from raydistill.data.location import source_identity
from raydistill.data.paths import SPLITS
from raydistill.data.sources import named_pictures
from raydistill.storage.artifacts import Artifact
from raydistill.storage.locks import lock
from raydistill.storage.manifest import recipe_key
from raydistill.storage.storage import Storage
from raydistill.tasks import Task, task_of

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

INCLUDED = {"columns", "split", "max_labeled", "symmetric"}
"""Settings of the data section that decide what its rows are."""
CHECKS = 7
"""Raised when data is read or judged otherwise: what was prepared before is then prepared, and judged, anew."""


@dataclass(frozen=True)
class SplitCounts:
    """Rows of a prepared split; ``per_class`` counts labelled rows by output; empty where a task has no use for it."""

    rows: int
    labeled: int
    per_class: dict[str, int]


@dataclass(frozen=True)
class DataInfo:
    """info.json of a data artefact."""

    task: dict[str, Any]
    """Facts of the task, see ``tasks.task_of``."""
    summary: str
    """The targets of the training rows in a line."""
    counts: dict[str, SplitCounts]
    has_pairs: bool
    removed: dict[str, int]
    """Duplicates that were removed, by reason."""
    skipped: dict[str, int]
    """Rows that could not be used, by reason."""
    notes: tuple[str, ...]
    """Sentences for the user."""
    doubts: tuple[str, ...] = ()
    """Those of the notes that doubt the labels."""
    sources: dict[str, str] = field(default_factory=dict)
    """Of a task of the user's own the version of its source."""
    row_digest: str = ""
    """SHA-256 over the hashes of all rows: by it others are known to be the very same, also where their tokens are."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of a model's outputs, in their order."""
        return tuple(self.task["outputs"])

    def answered_by(self, config: PreTrainedConfig) -> DataInfo:
        """With the task as models like one of this config answer it."""
        return replace(self, task=task_of(self.task).answered_by(config).facts())


def data_key(config: Config) -> str:
    """Key of the prepared data: content of the sources, what the config does with it, seed; not where it lies."""
    return recipe_key(_recipe(config))


def _recipe(config: Config) -> dict[str, Any]:
    named = named_pictures(config.data, config.task)
    recipe: dict[str, Any] = {
        "source": source_identity(config.data),
        "data": config.data.recipe(include=INCLUDED),
        "task": config.task.recipe(),
        "seed": config.seed,
        "checks": CHECKS,
    }
    sources = sources_in(recipe["task"])
    return recipe | ({"pictures": named} if named else {}) | ({"sources": sources} if sources else {})


def prepare_data(config: Config, storage: Storage) -> Artifact:
    """The data artefact of a config: train.arrow, validation.arrow, test.arrow and info.json; made if it is not there.

    A split is an Arrow file of one record batch: example_id int64, text[, text_pair] or image, name; target (null:
    none), hash.
    Raises DataError or ConfigError for data that cannot be used.
    """
    artifact = Artifact.of(storage, "data", _recipe(config))
    if artifact.exists():
        return artifact
    with lock(storage, "data", artifact.key + ".lock"):
        if not artifact.exists():
            draft = make_draft(config)
            with artifact.write() as folder:
                _write(draft, folder)
    return artifact


def read_info(artifact: Artifact) -> DataInfo:
    """The counts and notes of a data artefact, without fetching its rows."""
    raw = artifact.storage.read_json(artifact.kind, artifact.key, "info.json")
    counts = {split: SplitCounts(**count) for split, count in raw["counts"].items()}
    lists = {name: tuple(raw[name]) for name in ("notes", "doubts")}
    return DataInfo(**{**raw, **lists, "counts": counts})


def _write(draft: Draft, folder: Path) -> None:
    for split in SPLITS:
        write_batch(folder / f"{split}.arrow", _columns(draft.parts[split]))
    text = json.dumps(asdict(info_of(draft)), indent=1, ensure_ascii=False)
    (folder / "info.json").write_text(text, encoding="utf-8")


def info_of(draft: Draft) -> DataInfo:
    """The counts and notes of a draft."""
    return DataInfo(
        task=draft.task.facts(),
        summary=draft.task.summary(draft.parts["train"].targets),
        counts={split: _counts(draft.parts[split], draft.task) for split in SPLITS},
        has_pairs="text_pair" in draft.parts["train"].texts.column_names,
        removed=draft.removed,
        skipped=draft.skipped,
        notes=tuple(draft.notes),
        doubts=tuple(draft.doubts),
        sources=sources_in({"type": draft.task.type}),
        row_digest=hashlib.sha256(b"".join(draft.parts[split].hashes.tobytes() for split in SPLITS)).hexdigest(),
    )


def _columns(part: Part) -> dict[str, pa.Array]:
    texts = {name: whole(part.texts.column(name)) for name in part.texts.column_names}
    return {
        "example_id": pa.array(np.arange(part.num_rows)),
        **texts,
        "target": part.targets.to_arrow(),
        "hash": hash_column(part.hashes),
    }


def hash_column(hashes: npt.NDArray[np.bytes_]) -> pa.LargeStringArray:
    """Hashes (N,) of one length as texts, of any number: pyarrow would make several pieces of 33.5 million and more,
    which no record batch takes."""
    width = hashes.dtype.itemsize
    offsets = np.arange(len(hashes) + 1) * width
    values = np.ascontiguousarray(hashes).view(np.uint8)
    return pa.LargeStringArray.from_buffers(len(hashes), pa.py_buffer(offsets), pa.py_buffer(values))


def write_batch(path: Path, columns: dict[str, pa.Array]) -> None:
    """Write an Arrow IPC file of exactly one record batch, so that a reader gets each column as one view."""
    batch = pa.RecordBatch.from_pydict(columns)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, batch.schema) as writer:
        writer.write_batch(batch)


def _counts(part: Part, task: Task) -> SplitCounts:
    return SplitCounts(part.num_rows, int(part.targets.labeled.sum()), task.counts(part.targets))
