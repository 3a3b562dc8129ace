"""Labelled rows that finished models are measured on: from any data, or from what a run prepared."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import compress
from typing import cast

import numpy as np
import pyarrow as pa

from raydistill.config.data import Data
from raydistill.config.tasks import TaskSection
from raydistill.data.draft import INPUTS, Part
from raydistill.data.pictures import Picture
from raydistill.data.prepare import read_info
from raydistill.data.sources import Source, read_source
from raydistill.deploy.predictor import Text
from raydistill.errors import ConfigError, DataError, ModelError, nearest
from raydistill.storage.artifacts import Artifact
from raydistill.tasks import Targets, Task, task_of


@dataclass(frozen=True, eq=False)
class TestRows:
    """Rows of one split, all of them labelled."""

    __test__ = False  # no test class of pytest's

    texts: tuple[Text, ...]
    targets: Targets
    """In the order of the outputs of ``task``."""
    task: Task
    """Of the finished model that the rows were read for."""
    hashes: tuple[str, ...]
    """As ``data.draft.row_hashes``: equal texts have equal hashes, in any data."""
    source: str
    """Where the rows come from, for people."""
    split: str
    notes: tuple[str, ...] = ()

    @property
    def num_rows(self) -> int:
        return len(self.texts)

    def only(self, kept: np.ndarray) -> TestRows:
        """The rows for which ``kept`` (N,) holds."""
        texts = tuple(compress(self.texts, kept))
        return replace(self, texts=texts, hashes=tuple(compress(self.hashes, kept)), targets=self.targets.take(kept))


def read_test_rows(data: Data, task: Task, split: str = "test", section: TaskSection | None = None) -> TestRows:
    """The labelled rows of a split, for a finished model of ``task``; data without splits of its own is taken whole,
    and a note says so.

    ``section``: of a config, how labels are written. Raises DataError where nothing has a label, ConfigError for a
    split that the data lacks, ModelError for labels that the model does not know.
    """
    source = read_source(data, written_for(task, section or task.Settings()), needs_train=False)
    table, notes = chosen_table(source, split)
    if "label" not in table.column_names and task.needs_labels:
        raise DataError(
            "The data has no labels, so nothing can be measured. Name the column: --set data.columns.label=…"
        )
    numbers = np.arange(table.num_rows)
    part, _ = Part.of(table, Targets(numbers, np.ones(len(numbers), bool)), symmetric=data.symmetric)
    has_label = "label" in table.column_names
    label = table.column("label") if has_label else pa.chunked_array([pa.nulls(table.num_rows)])
    targets, told = task.read_for(label.take(pa.array(part.targets.values)), source.label_names)
    notes += told
    kept = targets.labeled
    if not kept.any():
        raise DataError(f"No row of {split!r} has a label, so nothing can be measured.")
    if kept.sum() < table.num_rows:
        what = "picture that can be read" if task.reads_pictures else "text"
        notes.append(f"{table.num_rows - kept.sum()} rows without a label or {what} were left out.")
    part = part.only(kept)
    hashes = tuple(value.decode() for value in part.hashes)
    return TestRows(as_texts(part.texts), targets.take(kept), task, hashes, data.path, split, tuple(notes))


def written_for(task: Task, section: TaskSection) -> TaskSection:
    """The section, with a model's own labels where it lists none: rows of 0 and 1 stand for them in that order."""
    lists_labels = "labels" in type(section).model_fields and task.outputs and not getattr(section, "labels", None)
    return section.model_copy(update={"labels": task.outputs}) if lists_labels else section


def chosen_table(source: Source, split: str) -> tuple[pa.Table, list[str]]:
    """The table of a split, or the only one that there is; the source's notes, and one where that is another."""
    if split in source.tables:
        return source.tables[split], list(source.notes)
    if len(source.tables) > 1:
        near = nearest(split, source.tables)
        hint = f"did you mean {near}? " if near else ""
        raise ConfigError(f"--split {split}: no such split; {hint}The data has {', '.join(source.tables)}.")
    ((only, table),) = source.tables.items()
    own = "no split of its own" if only == "train" else f"only the split {only!r}"
    note = (
        f"The data has {own}, so all its rows were taken instead of {split!r}: the figures are too good where the "
        "model was trained on some of them."
    )
    return table, [*source.notes, note]


def prepared_rows(data: Artifact, task: Task, split: str = "test") -> TestRows:
    """The labelled rows of a split that a run prepared, for a finished model of ``task``. Raises ModelError where that
    is of another kind."""
    with pa.memory_map(str(data.local() / f"{split}.arrow")) as file:
        table = pa.ipc.open_file(file).read_all()
    own = task_of(read_info(data).task)
    if own.type != task.type:
        raise ModelError(
            f"The run's data is for {spoken(own)}, the model for {spoken(task)}. Name labelled rows with --data."
        )
    found = Targets.of_arrow(table.column("target").combine_chunks())
    targets, notes = task.translate(found.take(found.labeled), own)
    table = table.filter(pa.array(found.labeled))
    texts = as_texts(table.select([name for name in INPUTS if name in table.column_names]))
    hashes = tuple(table.column("hash").to_pylist())
    return TestRows(texts, targets, task, hashes, f"the run's own data ({data})", split, tuple(notes))


def spoken(task: Task) -> str:
    """A kind of problem in words."""
    return task.type.replace("_", " ")


def as_texts(table: pa.Table) -> tuple[Text, ...]:
    """A row as one text, as a pair where the table has two columns, or as a picture."""
    if "image" in table.column_names:
        named = zip(table["name"].to_pylist(), table["image"].to_pylist(), strict=True)
        return tuple(Picture(name, content) for name, content in named)
    columns = [[text or "" for text in column.to_pylist()] for column in table.columns]
    return tuple(columns[0]) if len(columns) == 1 else tuple(cast(Text, pair) for pair in zip(*columns, strict=True))
