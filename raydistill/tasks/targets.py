"""What is to be predicted, row by row, and the forms that a label column may have; rows of any number of units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Array = NDArray[Any]
ROWS = 1 << 16
"""Of many that are looked at together."""
Values: TypeAlias = Any
"""An Array (N, …), or a Ragged."""


@dataclass(frozen=True, eq=False)
class Ragged:
    """Numbers of rows that have any number of units each, words say: ``flat`` (M, …) holds those of all rows one after
    another, ``lengths`` (N,) int64 how many each has. Rows are picked, and columns of units, as in an array."""

    flat: Array
    lengths: NDArray[np.int64]
    places: Array | None = None
    """Begin and end in the row's text of each unit, (M, 2), where models have units of their own, tokens say."""
    texts: pa.Array | None = None
    """Of the rows, (N,), where what is said of them is a part of their text."""

    @classmethod
    def of(cls, rows: Sequence[Array], like: Array) -> Ragged:
        """Rows given one by one; ``like``: units (0, …) of their form."""
        return cls(np.concatenate([like, *rows]), np.array([len(row) for row in rows], np.int64))

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """Where each row begins in ``flat``, (N,)."""
        return np.cumsum(self.lengths) - self.lengths

    @property
    def rows(self) -> NDArray[np.int64]:
        """The row of each unit, (M,)."""
        return np.repeat(np.arange(len(self)), self.lengths)

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self), *self.flat.shape[1:])

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, key: Any) -> Any:
        """A row's units (m, …) by its number; several rows by numbers, a mask or a slice, as a Ragged; ``[rows,
        columns]`` of their units."""
        rows, columns = key if isinstance(key, tuple) else (key, slice(None))
        if isinstance(rows, int | np.integer):
            start = self.starts[rows]
            units = self.flat[start : start + self.lengths[rows]]
            return units if columns == slice(None) else units[:, columns]
        picked = np.arange(len(self))[rows]
        units = self._units(picked)
        return Ragged(
            self.flat[units] if columns == slice(None) else self.flat[units][:, columns],
            self.lengths[picked],
            None if self.places is None else self.places[units],
            None if self.texts is None else self.texts.take(pa.array(picked)),
        )

    def put(self, rows: Array, flat: Array) -> None:
        """Set the units of some rows, by their numbers."""
        self.flat[self._units(rows)] = flat

    def _units(self, rows: Array) -> Array:
        lengths = self.lengths[rows]
        return np.arange(lengths.sum()) + np.repeat(self.starts[rows] - (np.cumsum(lengths) - lengths), lengths)

    def largest(self, values: Array) -> Array:
        """The largest of the values (M,), none below 0, of each row's units, (N,)."""
        found = np.zeros(len(self))
        np.maximum.at(found, self.rows, values)
        return found

    def joined(self, groups: Array) -> Ragged:
        """Rows that stand together and are of one group (N,), ascending, as one, with the text of the first."""
        first = np.flatnonzero(np.diff(groups, prepend=groups[:1] - 1))
        lengths = np.add.reduceat(self.lengths, first) if len(first) else self.lengths
        return Ragged(self.flat, lengths, self.places, None if self.texts is None else self.texts.take(pa.array(first)))


def units_of(values: Values) -> Array:
    """All numbers, a row or a unit each: (N, …), or (M, …) of a Ragged."""
    return values.flat if isinstance(values, Ragged) else values


def concatenated(parts: Sequence[Values]) -> Values:
    """Rows of several, one after another."""
    if isinstance(parts[0], Ragged):
        has_places, has_texts = parts[0].places is not None, parts[0].texts is not None
        return Ragged(
            np.concatenate([part.flat for part in parts]),
            np.concatenate([part.lengths for part in parts]),
            np.concatenate([part.places for part in parts]) if has_places else None,
            pa.concat_arrays([part.texts for part in parts]) if has_texts else None,
        )
    return np.concatenate(parts)


def as_column(values: Values, dtype: Any = None) -> pa.Array:
    """A column of numbers, of lists of one length, or of lists of such lists; ``dtype``: of the numbers. Of ragged ones
    that have places or texts, these stand beside them in a struct."""
    flat = np.ascontiguousarray(units_of(values), dtype)
    column = pa.array(flat.ravel())
    if flat.ndim > 1:
        column = pa.FixedSizeListArray.from_arrays(column, flat.shape[1])
    if isinstance(values, Ragged):
        ends = np.concatenate(([0], np.cumsum(values.lengths)))
        column = pa.LargeListArray.from_arrays(pa.array(ends), column)
        more = {} if values.places is None else {"places": as_column(Ragged(values.places, values.lengths))}
        more |= {} if values.texts is None else {"text": values.texts}
        if more:
            return pa.StructArray.from_arrays([column, *more.values()], ["units", *more])
    return column


def of_column(column: pa.Array) -> Values:
    """Read what ``as_column`` wrote; numbers without meaning where it is null."""
    if pa.types.is_struct(column.type):
        parts = {part.name: column.field(part.name) for part in column.type}
        units = of_column(parts["units"])
        places = of_column(parts["places"]).flat if "places" in parts else None
        return Ragged(units.flat, units.lengths, places, parts.get("text"))
    if pa.types.is_large_list(column.type):
        units = column.flatten()
        return Ragged(of_column(units), np.diff(column.offsets.to_numpy()))
    if pa.types.is_fixed_size_list(column.type):
        flat = column.flatten() if not column.null_count else column.values
        return flat.to_numpy(zero_copy_only=False).reshape(len(column), column.type.list_size)
    return column.fill_null(0).to_numpy(zero_copy_only=False)


@dataclass(frozen=True, eq=False)
class Targets:
    """What is to be predicted, a row each: ``values`` (N, …); without meaning where not ``labeled`` (N,).

    Ragged ones are integers (M, K) that also say which units a row without a label has; the last of K is the label, -1
    for none.
    """

    values: Values
    labeled: NDArray[np.bool_]

    @classmethod
    def none(cls, num_rows: int, like: Targets) -> Targets:
        """Rows without a label, to be joined with ``like``."""
        labeled = np.zeros(num_rows, bool)
        if isinstance(like.values, Ragged):
            texts = None if like.values.texts is None else pa.array([""] * num_rows, pa.large_string())
            return cls(Ragged(like.values.flat[:0], np.zeros(num_rows, np.int64), None, texts), labeled)
        return cls(np.zeros((num_rows, *like.values.shape[1:]), like.values.dtype), labeled)

    @classmethod
    def of_arrow(cls, column: pa.Array) -> Targets:
        """Read what ``to_arrow`` wrote."""
        values = of_column(column)
        if isinstance(values, Ragged):
            parts = (values[start : start + ROWS] for start in range(0, len(values), ROWS))
            known = [np.bincount(part.rows[part.flat[:, -1] >= 0], minlength=len(part)) > 0 for part in parts]
            return cls(values, np.concatenate([np.zeros(0, bool), *known]))
        return cls(values, column.is_valid().to_numpy(zero_copy_only=False))

    def to_arrow(self) -> pa.Array:
        """See ``as_column``; null where a row is not labelled, ragged ones are then without their labels."""
        mask = pa.array(~self.labeled)
        if isinstance(self.values, Ragged):
            flat = self.values.flat.copy()
            flat[~self.labeled[self.values.rows], -1] = -1
            return as_column(replace(self.values, flat=flat))
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
        labeled = np.concatenate([self.labeled, other.labeled])
        return Targets(concatenated([self.values, other.values]), labeled)

    def labeled_units(self) -> NDArray[np.bool_]:
        """Which predictions have a target: ``labeled`` (N,), of ragged ones a unit each, (M,)."""
        return self.labeled[self.values.rows] if isinstance(self.values, Ragged) else self.labeled

    def labels(self) -> Array:
        """The label of each row (N,), or unit (M,); without meaning where it has none."""
        return self.values.flat[:, -1].astype(np.int64) if isinstance(self.values, Ragged) else self.values

    @property
    def num_units(self) -> int:
        """How many predictions the rows ask for: one a row, or a unit."""
        return len(units_of(self.values))

    def ids(self) -> NDArray[np.int64]:
        """A number for each row, equal for equal targets (and in the order of those that are not ragged), -1 for a row
        without a label."""
        ids = np.full(len(self), -1, np.int64)
        if isinstance(self.values, Ragged):
            known: dict[bytes, int] = {}
            for row in np.flatnonzero(self.labeled):
                ids[row] = known.setdefault(self.values[row].tobytes(), len(known))
        elif self.labeled.any():
            _, found = np.unique(self.values[self.labeled], axis=0, return_inverse=True)
            ids[self.labeled] = found.ravel()
        return ids


def shown(names: Sequence[str], most: int = 5) -> str:
    """The first names in quotes."""
    return ", ".join(map(repr, names[:most])) + (", …" if len(names) > most else "")


def is_string(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def are_objects(cells: Sequence[Any], key: str) -> bool:
    """Whether cells hold objects with this key, or lists of such; nulls may be among them."""
    known = [cell[:1] if isinstance(cell, list) else [cell] for cell in cells if cell is not None]
    return bool(known) and all(isinstance(one, Mapping) and key in one for cell in known for one in cell)


def decoded(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column whose values stand in it, not in a dictionary."""
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def none_if_empty(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column of texts without the spaces around them, null where there is no text."""
    column = pc.utf8_trim_whitespace(column.cast(pa.large_string()))
    return pc.if_else(pc.equal(column, ""), pa.scalar(None, pa.large_string()), column)
