"""Texts, pairs of texts, and pairs with a score, as one form of targets."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raydistill.errors import DataError
from raydistill.tasks.mistakes import MOST_ROWS
from raydistill.tasks.numbers import as_numbers, no_numbers
from raydistill.tasks.targets import Array, Targets, decoded, is_string, none_if_empty

FORM = pa.struct([("score", pa.float64()), ("first", pa.int64()), ("second", pa.int64())])
"""Of a label column: the score of a pair, null where there is none; a number for each text, equal for equal texts."""
SCORE, FIRST, SECOND = 0, 1, 2
KNOWN = 3
"""Columns of targets; behind them stand the teacher's vectors of the row's texts, once it has spoken."""
NO_SCORE = -np.inf
"""In place of a score; rows without one are equal in that, which NaN would not be."""


def aligned(columns: Mapping[str, pa.ChunkedArray], where: str) -> dict[str, pa.ChunkedArray]:
    """Raw columns by role as texts and a column of ``FORM``. Of one text a row there is no score: classes of a folder,
    or labels of another task, say nothing of it."""
    texts = {role: columns[role] for role in ("text", "text_pair") if role in columns}
    if any(not is_string(decoded(column).type) for column in texts.values()):
        return texts  # refused elsewhere, by name
    ids = [_ids(column) for column in texts.values()]
    num_rows = len(ids[0])
    score = pa.nulls(num_rows, pa.float64())
    if len(ids) == 2 and "label" in columns:
        score = _scores(columns["label"], where)
    second = ids[1] if len(ids) == 2 else np.full(num_rows, -1, np.int64)
    label = pa.StructArray.from_arrays([score, pa.array(ids[0]), pa.array(second)], fields=list(FORM))
    return {**texts, "label": pa.chunked_array([label])}


def _scores(column: pa.ChunkedArray, where: str) -> pa.Array:
    """Numbers, null where there is none. Raises DataError that names the first rows that hold something else."""
    column = decoded(column)
    if pa.types.is_boolean(column.type) or pa.types.is_nested(column.type):
        raise DataError(f"{where}: the score of a pair has to be a number; the column holds {column.type}.")
    if is_string(column.type):
        column = none_if_empty(column)
        wrong = no_numbers(column)
        if wrong.any():
            rows = np.flatnonzero(wrong)
            named = ", ".join(f"row {row + 1} holds {column[int(row)].as_py()[:50]!r}" for row in rows[:MOST_ROWS])
            raise DataError(
                f"{where}: the score of a pair has to be a number, but {named}"
                f"{', …' if len(rows) > MOST_ROWS else ''} ({len(rows):,} of {len(column):,} rows). Write numbers with "
                "a decimal point, leave the cell empty, or name another column: data.columns.label."
            )
    column = as_numbers(column, f"{where} has a score of")
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _ids(column: pa.ChunkedArray) -> Array:
    """A number for each text: 48 bits of its hash, which a float64 holds exactly."""
    texts = (text or "" for text in decoded(column).to_pylist())
    return np.array([int.from_bytes(hashlib.blake2b(t.encode(), digest_size=6).digest()) for t in texts], np.int64)


def has_scores(column: pa.ChunkedArray) -> bool:
    return bool(pc.any(pc.is_valid(pc.struct_field(column, "score"))).as_py())


def targets_of(column: pa.ChunkedArray, scored: bool) -> Targets:
    """A column of ``FORM`` as targets (N, 3). Where pairs have scores those without one have no label; elsewhere the
    label of every row is what the teacher says of it."""
    parts = [pc.struct_field(column, name) for name in ("score", "first", "second")]
    values = np.stack([part.cast(pa.float64()).fill_null(NO_SCORE).to_numpy() for part in parts], axis=1)
    values = values.reshape(len(column), KNOWN)
    return Targets(values, np.isfinite(values[:, SCORE]) if scored else np.ones(len(values), bool))
