"""Columns that are made some rows at a time: they grow in files, so that memory does not grow with the corpus."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from raydistill.tasks.targets import Array, Ragged, Values, as_column

BATCH_BYTES = 1 << 22
"""Of texts that are held at a time."""
LARGE_BYTES = 1 << 24
"""Texts up to here are copied in memory."""


def spooled_texts(parts: Iterable[pa.Array]) -> pa.Array:
    """Texts (large_string) put together from parts, as a view of a file without a name, which goes when the view does.
    It lies where Python's ``tempfile`` puts it: TMPDIR."""
    total, ends = 0, [np.zeros(1, np.int64)]
    with tempfile.TemporaryFile() as file:
        for part in chunks(parts):
            values = pa.concat_arrays([part])  # without what lies before and after a slice
            _, offsets, data = values.buffers()
            own = np.frombuffer(offsets, np.int64)[: len(values) + 1] if offsets is not None else ends[0]
            ends.append(total + own[1:] - own[0])
            file.write(memoryview(data)[own[0] : own[-1]] if data is not None else b"")
            total = int(total + own[-1] - own[0])
        file.flush()
        data = np.memmap(file, np.uint8, "r") if total else np.zeros(0, np.uint8)
    offsets = np.concatenate(ends)
    return pa.LargeStringArray.from_buffers(len(offsets) - 1, pa.py_buffer(offsets), pa.py_buffer(data))


def chunks(parts: Iterable[pa.Array | pa.ChunkedArray]) -> Iterable[pa.Array]:
    """All arrays of some columns."""
    for part in parts:
        yield from part.chunks if isinstance(part, pa.ChunkedArray) else [part]


def picked(texts: pa.Table, rows: Any) -> pa.Table:
    """The rows of texts (large_string, a chunk each) for which a mask holds; large ones are in a file then."""
    if texts.nbytes <= LARGE_BYTES:
        return texts.filter(pa.array(rows))
    size = max(1, int(BATCH_BYTES * texts.num_rows / texts.nbytes))
    mask = pa.array(rows)
    return pa.table(
        {
            name: spooled_texts(
                column.chunk(0).slice(start, size).filter(mask.slice(start, size))
                for start in range(0, len(mask), size)
            )
            for name, column in zip(texts.column_names, texts.columns, strict=True)
        }
    )


def spooled(parts: Iterable[Mapping[str, Values]], folder: Path) -> dict[str, pa.Array]:
    """Columns put together from parts, as views of files in ``folder``, which has to stay while they are used."""
    columns: dict[str, Column] = {}
    for part in parts:
        for name, values in part.items():
            columns.setdefault(name, Column(folder / name, values)).add(values)
    return {name: column.whole() for name, column in columns.items()}


class Column:
    """One column, Ragged or an Array, whose numbers stand in a file."""

    def __init__(self, path: Path, like: Values) -> None:
        self.path = path
        self.like = like.flat[:0] if isinstance(like, Ragged) else like[:0]
        self.lengths: list[Array] | None = [] if isinstance(like, Ragged) else None

    def add(self, values: Values) -> None:
        """Append some rows."""
        flat = values
        if isinstance(values, Ragged):
            assert self.lengths is not None
            self.lengths.append(values.lengths)
            flat = values.flat
        with self.path.open("ab") as file:
            np.ascontiguousarray(flat, self.like.dtype).tofile(file)

    def whole(self) -> pa.Array:
        """All rows."""
        flat: Array = self.like
        if self.path.stat().st_size:
            flat = np.memmap(self.path, self.like.dtype, "r").reshape(-1, *self.like.shape[1:])
        return as_column(flat if self.lengths is None else Ragged(flat, np.concatenate(self.lengths)))
