"""Labelled rows that finished models are measured on: from any data, or from what a run prepared.

Labels are names here, not numbers: every model has an order of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import pyarrow as pa

from raydistill.config.data import Data
from raydistill.data.draft import Part, row_hashes
from raydistill.data.prepare import read_info
from raydistill.data.sources import read_source
from raydistill.deploy.classifier import Text
from raydistill.errors import ConfigError, DataError, nearest
from raydistill.storage.artifacts import Artifact


@dataclass(frozen=True, eq=False)
class TestRows:
    """Rows of one split, each with a label."""

    __test__ = False  # no test class of pytest's

    texts: tuple[Text, ...]
    labels: tuple[str, ...]
    """Class name of each row."""
    class_names: tuple[str, ...]
    """All classes of the data, in its own order."""
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
        chosen = np.flatnonzero(kept)
        labels, hashes = (tuple(column[i] for i in chosen) for column in (self.labels, self.hashes))
        return replace(self, texts=tuple(self.texts[i] for i in chosen), labels=labels, hashes=hashes)


def read_test_rows(data: Data, split: str = "test") -> TestRows:
    """The labelled rows of a split; data without splits of its own is taken whole, and a note says so.

    A label -1 is none beside 0, or alone, where the data does not name it as a class. Raises DataError where nothing
    has a label, ConfigError for a split that the data lacks.
    """
    source = read_source(data, needs_train=False)
    notes = list(source.notes)
    if split not in source.tables:
        if len(source.tables) > 1:
            near = nearest(split, source.tables)
            hint = f"did you mean {near}? " if near else ""
            raise ConfigError(f"--split {split}: no such split; {hint}The data has {', '.join(source.tables)}.")
        (only,) = source.tables
        own = "no split of its own" if only == "train" else f"only the split {only!r}"
        notes.append(
            f"The data has {own}, so all its rows were taken instead of {split!r}: the figures are too good where the "
            "model was trained on some of them."
        )
    table = source.tables.get(split, next(iter(source.tables.values())))
    if "label" not in table.column_names:
        raise DataError(
            "The data has no labels, so nothing can be measured. Name the column: --set data.columns.label=…"
        )
    labels = table.column("label").to_pylist()
    absent = means_none(labels, source.label_names)
    labels = [None if absent and label == "-1" else label for label in labels]
    part, _ = Part.of(table, np.arange(table.num_rows))
    kept = np.array([row for row in part.labels if labels[row] is not None], dtype=np.int64)
    if not len(kept):
        raise DataError(f"No row of {split!r} has a label, so nothing can be measured.")
    if len(kept) < len(labels):
        none = " (-1 counts as none)" if absent else ""
        notes.append(f"{len(labels) - len(kept)} rows without a label{none} or text were left out.")
    names = [name for name in ("text", "text_pair") if name in table.column_names]
    texts = table.select(names).take(pa.array(kept))
    wanted = tuple(labels[row] for row in kept)
    hashes = tuple(value.decode() for value in row_hashes(texts.combine_chunks()))
    classes = source.label_names or known_classes(wanted)
    return TestRows(as_texts(texts), wanted, classes, hashes, data.path, split, tuple(notes))


def prepared_rows(data: Artifact, split: str = "test") -> TestRows:
    """The labelled rows of a split that a run prepared."""
    with pa.memory_map(str(data.local() / f"{split}.arrow")) as file:
        table = pa.ipc.open_file(file).read_all()
    info = read_info(data)
    labels = table.column("label").to_numpy()
    table = table.filter(pa.array(labels >= 0))
    names = tuple(info.labels[label] for label in labels[labels >= 0])
    texts = as_texts(table.select([name for name in ("text", "text_pair") if name in table.column_names]))
    hashes = tuple(table.column("hash").to_pylist())
    return TestRows(texts, names, info.labels, hashes, f"the run's own data ({data})", split)


def means_none(labels: Sequence[str | None], names: Sequence[str] | None) -> bool:
    """Whether "-1" is no class here: the data names none so, and its other labels, if any, begin at 0.

    -1 beside 1 alone are two classes.
    """
    found = {label for label in labels if label is not None}
    return "-1" in found and "-1" not in (names or ()) and (found == {"-1"} or "0" in found)


def as_texts(table: pa.Table) -> tuple[Text, ...]:
    """A row as one text, or as a pair where the table has two columns."""
    columns = [[text or "" for text in column.to_pylist()] for column in table.columns]
    return tuple(columns[0]) if len(columns) == 1 else tuple(cast(Text, pair) for pair in zip(*columns, strict=True))


def known_classes(labels: Sequence[str]) -> tuple[str, ...]:
    """The classes that occur, integers by value."""
    found = set(labels)
    return tuple(sorted(found, key=int) if all(name.lstrip("-").isdecimal() for name in found) else sorted(found))
