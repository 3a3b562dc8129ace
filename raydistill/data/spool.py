"""Columns that are made some rows at a time: they grow in files, so that memory does not grow with the corpus."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa

from raydistill.tasks.targets import Array, Ragged, Values, as_column


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
