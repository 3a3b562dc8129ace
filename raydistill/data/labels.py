"""Class names and class ids: which classes there are, in which order, and what each row's label is."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raydistill.data.classes import check_classes
from raydistill.data.sources import Source
from raydistill.errors import ConfigError, DataError, did_you_mean

_INTEGER = re.compile(r"-?[0-9]+")
Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Encoded:
    """Class names in the order of the logits, class ids by split (-1: no label), notes, and doubts about the labels."""

    names: tuple[str, ...]
    ids: dict[str, Ids]
    notes: list[str]
    doubts: list[str]


def encode_labels(source: Source, wanted: Sequence[str] | None) -> Encoded:
    """Find the classes of a source, and each row's.

    The order is ``wanted`` (task.labels), else the data's own (ClassLabel), else sorted, integers by value. Integer
    labels 0…C-1 beside C other ``wanted`` names stand for these names. Raises DataError when a label is unknown, fewer
    than two classes occur in training or they cannot be meant, ConfigError when ``wanted`` cannot be.
    """
    raw = {split: _label_column(table) for split, table in source.tables.items()}
    seen = {name: count for name, count in _counts(raw["train"]).items() if name is not None}
    everywhere = seen.keys() | {name for column in raw.values() for name in _counts(column) if name is not None}
    names, value_set, notes = _order(seen, everywhere, source.label_names, wanted)
    ids = {}
    for split, column in raw.items():
        found = pc.index_in(column, value_set=pa.array(value_set, pa.large_string()))
        unknown = column.filter(pc.and_(pc.is_valid(column), pc.is_null(found)))
        unknown = unknown.filter(pc.not_equal(unknown, "-1")) if _minus_one_is_none(everywhere, wanted) else unknown
        if len(unknown):
            _refuse_unknown(split, unknown, value_set, wanted is not None)
        ids[split] = pc.fill_null(found, -1).to_numpy().astype(np.int64)
    present = np.unique(ids["train"][ids["train"] >= 0])
    if len(present) < 2:
        had = f"only the class {names[present[0]]!r}" if len(present) else "no label at all"
        raise DataError(
            f"The training rows have {had}. Text classification needs two classes or more; check the labels."
        )
    absent = [name for i, name in enumerate(names) if i not in set(present.tolist())]
    if absent:
        notes.append(f"No training row has the label {_shown(absent)}.")
    counts = dict(zip(names, np.bincount(ids["train"][ids["train"] >= 0], minlength=len(names)).tolist(), strict=True))
    listed = wanted is not None or source.label_names is not None
    doubts = check_classes({name: count for name, count in counts.items() if count}, configured=listed)
    return Encoded(names, ids, notes, doubts)


def _label_column(table: pa.Table) -> pa.ChunkedArray:
    if "label" in table.column_names:
        return table.column("label")
    return pa.chunked_array([pa.nulls(table.num_rows, pa.large_string())])


def _counts(column: pa.ChunkedArray) -> dict[str | None, int]:
    return {entry["values"]: entry["counts"] for entry in pc.value_counts(column).to_pylist()}


def _order(
    seen: Mapping[str, int], everywhere: set[str], own: tuple[str, ...] | None, wanted: Sequence[str] | None
) -> tuple[tuple[str, ...], list[str], list[str]]:
    """Class names, the label that stands for each in the data, and notes."""
    integers = all(_INTEGER.fullmatch(name) for name in everywhere)
    if wanted is not None:
        if len(set(wanted)) != len(wanted) or len(wanted) < 2:
            raise ConfigError(f"task.labels is {list(wanted)}. Name every class once, two or more.")
        positions = [str(i) for i in range(len(wanted))]
        numbered = {name for name in everywhere if name != "-1"} <= set(positions)
        if integers and everywhere and numbered and not any(_INTEGER.fullmatch(name) for name in wanted):
            return tuple(wanted), positions, [f"The labels 0 to {len(wanted) - 1} stand for task.labels in that order."]
        return tuple(wanted), list(wanted), []
    if own is not None:
        return own, list(own), []
    if integers and {"-1", "0"} <= everywhere:
        raise DataError(
            "The labels are integers from -1, so -1 can be a class or mean that there is no label. Say which: list "
            f"all classes in task.labels, as strings, with or without '-1'. Found: {_shown(sorted(everywhere))}."
        )
    names = sorted(seen, key=int) if integers else sorted(seen)
    return tuple(names), names, []


def _minus_one_is_none(everywhere: set[str], wanted: Sequence[str] | None) -> bool:
    return wanted is not None and "-1" not in wanted and all(_INTEGER.fullmatch(name) for name in everywhere)


def _refuse_unknown(split: str, unknown: pa.ChunkedArray, known: Sequence[str], configured: bool) -> None:
    counts = {str(name): count for name, count in _counts(unknown).items()}
    first = sorted(counts)[0]
    rows = sum(counts.values())
    where = "task.labels" if configured else "the labels of the training rows"
    raise DataError(
        f"{rows} {split} row{'s have labels that are' if rows > 1 else ' has a label that is'} not among {where}: "
        f"{_shown(sorted(counts))}. {did_you_mean(first, known)} "
        "Correct the labels, or list all classes in task.labels."
    )


def _shown(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names[:5]) + (", …" if len(names) > 5 else "")
