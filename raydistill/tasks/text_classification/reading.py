"""Class names and class ids: which classes there are, in which order, and what each row's label is."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raydistill.errors import ConfigError, DataError, ModelError, did_you_mean
from raydistill.tasks.numbers import first_row
from raydistill.tasks.targets import decoded, is_string, none_if_empty, shown
from raydistill.tasks.text_classification.classes import check_classes

LARGEST = 2.0**53
"""From here on floats are no whole numbers one after another: two classes could be one."""
_INTEGER = re.compile(r"-?[0-9]+")
Ids = npt.NDArray[np.int64]


def encode_labels(
    raw: Mapping[str, pa.ChunkedArray], own: tuple[str, ...] | None, wanted: Sequence[str] | None
) -> tuple[tuple[str, ...], dict[str, Ids], list[str], list[str]]:
    """Find the classes of the label columns of each split, and each row's; ``own``: the data's own order.

    Returns their names in the order of the logits, class ids by split (-1: no label), notes, doubts about the labels.
    The order is ``wanted`` (task.labels), else the data's own (ClassLabel), else sorted, integers by value. Integer
    labels 0…C-1 beside C other ``wanted`` names stand for these names. Raises DataError when a label is unknown, fewer
    than two classes occur in training or they cannot be meant, ConfigError when ``wanted`` cannot be.
    """
    seen = {name: count for name, count in _counts(raw["train"]).items() if name is not None}
    everywhere = seen.keys() | {name for column in raw.values() for name in _counts(column) if name is not None}
    names, value_set, notes = _order(seen, everywhere, own, wanted)
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
    there = {*present.tolist()}
    absent = [name for i, name in enumerate(names) if i not in there]
    if absent:
        notes.append(f"No training row has the label {shown(absent)}.")
    counts = dict(zip(names, np.bincount(ids["train"][ids["train"] >= 0], minlength=len(names)).tolist(), strict=True))
    listed = wanted is not None or own is not None
    doubts = check_classes({name: count for name, count in counts.items() if count}, configured=listed)
    return names, ids, notes, doubts


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
            f"all classes in task.labels, as strings, with or without '-1'. Found: {shown(sorted(everywhere))}."
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
        f"{shown(sorted(counts))}. {did_you_mean(first, known)} "
        "Correct the labels, or list all classes in task.labels."
    )


def encode_for(column: pa.ChunkedArray, outputs: Sequence[str], names: Sequence[str] | None) -> tuple[Ids, list[str]]:
    """Class ids of other data's labels for a model of these ``outputs``, -1 where there is none; what was assumed.

    ``names``: all classes of the data, in its own order. A label -1 is none beside 0, or alone, where the data does not
    name it as a class. Raises ModelError where a label is unknown to the model.
    """
    labels, notes = column.to_pylist(), []
    if means_none(labels, names):
        labels = [None if label == "-1" else label for label in labels]
        notes.append("The label -1 counts as none.")
    found = {label for label in labels if label is not None}
    place, told = known_places(found, outputs, names or known_classes(found))
    return np.array([-1 if label is None else place[label] for label in labels], np.int64), notes + told


def known_places(
    found: Collection[str], outputs: Sequence[str], names: Sequence[str]
) -> tuple[dict[str, int], list[str]]:
    """Which of a model's ``outputs`` each label ``found`` in data is, by name or position; what had to be assumed.

    ``names``: all labels of the data; it may hold some of the model's only. Numbers 0…C-1 beside C other names stand
    for these, as in ``encode_labels``. Raises ModelError where a label is unknown to the model.
    """
    from raydistill.models.head import output_order

    own = {name: i for i, name in enumerate(outputs)}
    positions = {str(i): i for i in range(len(outputs))}
    if own.keys() >= set(found):
        return own, []
    if positions.keys() >= set(found) and not any(_INTEGER.fullmatch(name) for name in outputs):
        said = f"The data's labels are numbers, so 0 to {len(own) - 1} were taken for the model's labels in their order"
        return positions, [f"{said}: {', '.join(outputs)}."]
    try:
        order, notice = output_order(outputs, names)
    except ModelError as error:
        unknown = sorted(set(found) - own.keys())
        raise ModelError(
            f"The data has labels the model does not know: {', '.join(unknown[:5])}. Model: {', '.join(outputs)}. "
            "Rename them in the data, or in id2label of the model's config.json."
        ) from error
    return dict(zip(names, order, strict=True)), [notice] if notice else []


def means_none(labels: Sequence[str | None], names: Sequence[str] | None) -> bool:
    """Whether "-1" is no class here: the data names none so, and its other labels, if any, begin at 0.

    -1 beside 1 alone are two classes.
    """
    found = {label for label in labels if label is not None}
    return "-1" in found and "-1" not in (names or ()) and (found == {"-1"} or "0" in found)


def known_classes(found: Collection[str]) -> tuple[str, ...]:
    """The classes that occur, integers by value."""
    return tuple(sorted(found, key=int) if all(map(_INTEGER.fullmatch, found)) else sorted(found))


def class_column(column: pa.ChunkedArray, what: str, class_names: Sequence[str] | None = None) -> pa.ChunkedArray:
    """Labels as strings: integers in decimal, whole floats as integers, ClassLabel ids by name, empty cells null."""
    column = decoded(column)
    kind = column.type
    if pa.types.is_null(kind):
        return column.cast(pa.large_string())
    if pa.types.is_integer(kind):
        return _named(column, class_names, what) if class_names else column.cast(pa.large_string())
    if pa.types.is_boolean(kind):
        return pc.if_else(column, "True", "False").cast(pa.large_string())
    if pa.types.is_floating(kind):
        return _whole(column, what)
    if not is_string(kind):
        raise DataError(f"{what} holds {kind}; text classification needs one class a row, a string or an integer.")
    column = none_if_empty(column)
    # pandas writes integer labels as 1.0 as soon as one cell of the column is empty
    if pc.all(pc.match_substring_regex(column, r"^-?[0-9]+\.0$"), min_count=1).as_py():
        column = pc.replace_substring(column, ".0", "", max_replacements=1)
    return column


def _whole(column: pa.ChunkedArray, what: str) -> pa.ChunkedArray:
    column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
    if odd := first_row(pc.greater_equal(pc.abs(column), LARGEST), column):
        raise DataError(
            f"{what} holds {odd}, which is no number of a class. Leave out such rows, or write classes as strings."
        )
    if pc.any(pc.not_equal(pc.floor(column), column)).as_py():
        raise DataError(
            f"{what} holds fractions; did you mean regression? Then set task.type=text_regression. If these "
            "numbers are classes, write them as strings."
        )
    return column.cast(pa.int64()).cast(pa.large_string())


def _named(column: pa.ChunkedArray, class_names: Sequence[str], what: str) -> pa.ChunkedArray:
    highest = pc.max(column).as_py()
    if highest is not None and highest >= len(class_names):
        raise DataError(f"{what} holds class {highest}, but only {len(class_names)} class names go with it.")
    column = pc.if_else(pc.less(column, 0), pa.scalar(None, column.type), column)
    return pc.take(pa.array(class_names, pa.large_string()), column.combine_chunks())
