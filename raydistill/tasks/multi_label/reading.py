"""Labels of rows in the forms that tables have them, as one: a list of names a row, null where it has no label.

A cell is a list of names, or a text with a separator between them, or the text of a list, as CSV files have it. An
empty list says that a row has none of the labels; null, an empty text and a list of nulls say nothing. Lists of 0 and 1
of one length, a place each label, stand for the names that the config or the column has in that order.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import pyarrow as pa

from raydistill.config.tasks import MultiLabelClassification as Settings
from raydistill.errors import ConfigError, DataError
from raydistill.tasks.mistakes import refuse
from raydistill.tasks.targets import decoded, is_string, shown

FORM = pa.list_(pa.large_string())
Cell = list[Any] | None


def label_lists(settings: Settings, column: pa.ChunkedArray, what: str, names: Sequence[str] | None) -> pa.ChunkedArray:
    """A raw column in ``FORM``; ``names``: of a ClassLabel. Raises DataError, ConfigError for what are no labels."""
    column = decoded(column)
    if pa.types.is_null(column.type):
        return column.cast(FORM)
    if is_string(column.type):
        rows = [of_text(cell, settings.separator) for cell in column.to_pylist()]
    elif not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
        raise DataError(f"{what} holds {column.type}; multi-label classification needs lists of labels, or texts.")
    elif pa.types.is_nested(column.type.value_type):
        raise DataError(f"{what} holds lists of {column.type.value_type}. Give each row a list of names.")
    else:
        rows = column.to_pylist()
    if are_places(rows):
        rows = from_places(rows, settings.labels or names, what)
    else:
        rows = [None if row is None else from_names(row, names, what) for row in rows]
    return pa.chunked_array([pa.array(rows, FORM)])


def of_text(cell: str | None, separator: str) -> Cell:
    """The items of a cell of text; None where it has none."""
    text = (cell or "").strip()
    if text.startswith("[") and text.endswith("]"):
        for parse in (json.loads, ast.literal_eval):  # as JSON has lists, or as pandas writes them
            with suppress(ValueError, SyntaxError):  # a name in brackets
                found: list[Any] = parse(text)
                if all(item is None or isinstance(item, str | int | float) for item in found):
                    return found
    return [item.strip() for item in text.split(separator) if item.strip()] or None


def from_names(row: Sequence[Any], names: Sequence[str] | None, what: str) -> Cell:
    """The names of a row, each once; None where it holds nothing but nulls. Numbers are places in ``names``."""
    known = [item for item in row if not is_missing(item)]
    return list(dict.fromkeys(name_of(item, names, what) for item in known)) if known or not row else None


def name_of(item: Any, names: Sequence[str] | None, what: str) -> str:
    if isinstance(item, float) and item.is_integer():  # as pandas has them where a cell of a list is empty
        item = int(item)
    if names is None or not isinstance(item, int):
        return str(item).strip()
    if not 0 <= item < len(names):
        raise ConfigError(f"{what} holds label {item}, but only {len(names)} names go with it.")
    return names[item]


def is_missing(item: Any) -> bool:
    return item is None or item != item or (isinstance(item, str) and not item.strip())


FLAGS = {"0": False, "1": True, "0.0": False, "1.0": True, "False": False, "True": True}
"""Whether a label is there, by what stands at its place."""


def are_places(rows: Sequence[Cell]) -> bool:
    """Whether lists say of each label whether it is there: they hold 0 and 1, are all of one length, and have one of
    the two again and again, as lists of names or of numbers of labels never do."""
    full = [[str(item) for item in row if not is_missing(item)] for row in rows if row]
    if len({len(row) for row in rows if row}) != 1 or not all(item in FLAGS for row in full for item in row):
        return False
    return any(len(set(row)) < len(row) for row in full)


def from_places(rows: Sequence[Cell], names: Sequence[str] | None, what: str) -> list[Cell]:
    """Rows of 0 and 1 as the names of the places where there is 1."""
    width = max(len(row) for row in rows if row)
    if names is None or len(names) != width:
        named = "nothing names them" if names is None else f"there are {len(names)} names ({shown(names)})"
        raise DataError(
            f"{what} holds rows of {width} numbers 0 and 1, a place for each label, and {named}. List the labels in "
            "task.labels in the order of the places, or write the names of each row's labels instead."
        )
    found: list[Cell] = []
    wrong: dict[str, list[int]] = {}
    for number, row in enumerate(rows, 1):
        known = [item for item in row or () if not is_missing(item)]
        if row and 0 < len(known) < width:
            wrong.setdefault("a place is neither 0 nor 1; write null for the whole row", []).append(number)
        is_given = row is not None and (bool(known) or not row)
        found.append([n for n, item in zip(names, known, strict=False) if FLAGS[str(item)]] if is_given else None)
    refuse(wrong, what)
    return found
