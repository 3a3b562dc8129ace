"""Columns of numbers, as numbers or as texts, and how rows are stratified by them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raydistill.errors import DataError
from raydistill.tasks.targets import Array

NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
AMOUNT = re.compile(
    r"[+-]?([$€£¥₹]|USD|EUR|GBP|CHF)\s?[0-9][0-9.,' ]*|[+-]?[0-9][0-9.,' ]*\s?([$€£¥₹]|USD|EUR|GBP|CHF)"
)
"""Of money; which of its signs is the decimal one differs by country."""
NUM_STRATA = 10
LARGEST = 3.4e38
"""Of single precision."""


def are_amounts(cells: Sequence[Any]) -> bool:
    """Whether these are amounts of money, as texts."""
    known = [cell.strip() for cell in cells if isinstance(cell, str) and cell.strip()]
    return bool(known) and all(AMOUNT.fullmatch(cell) for cell in known)


def no_numbers(column: pa.ChunkedArray) -> Array:
    """Which cells of a column of texts are no numbers, (N,) bool; empty ones, null, are not meant."""
    is_number = pc.match_substring_regex(column, f"^{NUMBER.pattern}$")
    found: Array = pc.invert(pc.fill_null(is_number, True)).to_numpy()
    return found


def first_row(where: pa.ChunkedArray, column: pa.ChunkedArray) -> str:
    """The first cell of a column for which ``where`` is true, with its row; empty where there is none."""
    row = pc.index(where, pa.scalar(True)).as_py()
    return f"{column[row].as_py():g} in row {row + 1:,}" if row >= 0 else ""


def as_numbers(column: pa.ChunkedArray, what: str) -> pa.ChunkedArray:
    """A column as float64, null for NaN. Raises DataError, which begins with ``what``, for an infinite one and for what
    is none in the single precision that models compute in."""
    column = column.cast(pa.float64())
    if odd := first_row(pc.greater(pc.abs(column), LARGEST), column):
        raise DataError(f"{what} {odd}, which is infinite or too large to learn. Leave out such rows.")
    return pc.if_else(pc.is_nan(column), pa.scalar(None, pa.float64()), column)


def group_means(known: Array, groups: Array) -> Array:
    """Of each number (N,) the mean of those of its group (N,); of equal ones exactly what they are."""
    _, first, group = np.unique(groups, return_index=True, return_inverse=True)
    begin = known[first]
    means: Array = begin + np.bincount(group, known - begin[group]) / np.bincount(group)
    return means[group]


def tenths(known: Array) -> Array:
    """In which tenth of them, by size, numbers (N,) are; equal ones are together."""
    found: Array = np.searchsorted(np.sort(known), known) * NUM_STRATA // max(len(known), 1)
    return found
