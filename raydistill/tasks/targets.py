"""What is to be predicted, row by row, and the forms that a label column may have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Targets:
    """What is to be predicted, a row each: ``values`` (N, …); without meaning where not ``labeled`` (N,)."""

    values: Array
    labeled: NDArray[np.bool_]

    @classmethod
    def none(cls, num_rows: int, like: Targets) -> Targets:
        """Rows without a label, to be joined with ``like``."""
        return cls(np.zeros((num_rows, *like.values.shape[1:]), like.values.dtype), np.zeros(num_rows, bool))

    @classmethod
    def of_arrow(cls, column: pa.Array) -> Targets:
        """Read what ``to_arrow`` wrote."""
        labeled = column.is_valid().to_numpy(zero_copy_only=False)
        if pa.types.is_fixed_size_list(column.type):
            flat = column.flatten() if not column.null_count else column.values
            values = flat.to_numpy(zero_copy_only=False).reshape(len(column), -1)
        else:
            values = column.fill_null(0).to_numpy(zero_copy_only=False)
        return cls(values, labeled)

    def to_arrow(self) -> pa.Array:
        """A column of numbers, or of lists of one length; null where a row is not labelled."""
        mask = pa.array(~self.labeled)
        if self.values.ndim == 1:
            return pa.array(self.values, mask=~self.labeled)
        flat = pa.array(np.ascontiguousarray(self.values).ravel())
        return pa.FixedSizeListArray.from_arrays(flat, self.values.shape[1], mask=mask)

    def __len__(self) -> int:
        return len(self.labeled)

    def take(self, rows: Array) -> Targets:
        """Some rows, by their numbers or a mask."""
        return Targets(self.values[rows], self.labeled[rows])

    def only(self, kept: NDArray[np.bool_]) -> Targets:
        """The same rows, of which only those ``kept`` (N,) stay labelled."""
        return Targets(self.values, self.labeled & kept)

    def plus(self, other: Targets) -> Targets:
        return Targets(np.concatenate([self.values, other.values]), np.concatenate([self.labeled, other.labeled]))

    def ids(self) -> NDArray[np.int64]:
        """A number for each row, equal for equal targets and in their order, -1 for a row without a label."""
        ids = np.full(len(self), -1, np.int64)
        if self.labeled.any():
            _, found = np.unique(self.values[self.labeled], axis=0, return_inverse=True)
            ids[self.labeled] = found.ravel()
        return ids


def shown(names: Sequence[str], most: int = 5) -> str:
    """The first names in quotes."""
    return ", ".join(map(repr, names[:most])) + (", …" if len(names) > most else "")


def is_string(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def decoded(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column whose values stand in it, not in a dictionary."""
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def none_if_empty(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column of texts without the spaces around them, null where there is no text."""
    column = pc.utf8_trim_whitespace(column.cast(pa.large_string()))
    return pc.if_else(pc.equal(column, ""), pa.scalar(None, pa.large_string()), column)
