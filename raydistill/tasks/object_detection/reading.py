"""Objects in pictures in the forms that tables and files have them, as one: the class of each and where it is.

A row's cell is a list of objects {bbox, category[, area, iscrowd]}, or an object of such lists, as Hugging Face's data
sets have them; bbox is COCO's: left, top, width and height in pixels of the picture as it is seen, turned as its EXIF
says. An empty list says that there is nothing to find, null that the row is not labelled. What is marked as a crowd,
many objects that nobody has told apart, is none to find: see ``scoring``.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from raydistill.errors import DataError, did_you_mean
from raydistill.tasks.mistakes import Wrong, refuse
from raydistill.tasks.targets import Array, Ragged, Targets, decoded, shown

CLASS, BOX, AREA, SIZE = 0, slice(1, 5), 5, slice(6, 8)
"""Columns of a target: class; cx, cy, w, h, 0 to 1 of the picture; pixels that the object covers, and the picture's
width and height in pixels. Of a picture without objects and crowds there is one, of class ``NOTHING``; a crowd of
objects of class c has ``CROWD`` - c, so that what is not below 0 is an object."""
NUM_COLUMNS = 8
NOTHING, CROWD = -1, -2
NAMES = ("category", "categories", "label", "labels", "category_id", "class", "name")
"""Under which an object may have its class."""
PLACED = pa.struct(
    [("name", pa.large_string()), ("box", pa.list_(pa.float64())), ("area", pa.float64()), ("is_crowd", pa.bool_())]
)
GIVEN = pa.struct([*PLACED, ("is_share", pa.bool_())])
"""An object as it is given; ``is_share``: its box is center, width and height as shares of the picture, as YOLO has
it."""
FORM = pa.struct([("width", pa.int32()), ("height", pa.int32()), ("objects", pa.list_(PLACED))])
"""A label, once the picture is known: box as in a target. Null where a row is not labelled."""
MARGIN = 1.0
"""Pixels by which a box may lie outside its picture: it is cut off there."""
ROTATED = 5
"""From this EXIF orientation on width and height change places."""


def given(column: pa.ChunkedArray, what: str, names: Sequence[str] | None) -> pa.ChunkedArray:
    """A raw column as lists of ``GIVEN``, of nulls alone as ``FORM``; ``names``: of a ClassLabel. Raises DataError."""
    column = decoded(column)
    if pa.types.is_null(column.type):
        return column.cast(FORM)
    rows: list[list[dict[str, Any]] | None] = []
    wrong: dict[str, list[int]] = {}
    for number, cell in enumerate(column.to_pylist(), 1):
        try:
            rows.append(objects_of(cell, names))
        except Wrong as error:
            wrong.setdefault(str(error), []).append(number)
    refuse(wrong, what)
    return pa.chunked_array([pa.array(rows, pa.list_(GIVEN))])


def objects_of(cell: Any, names: Sequence[str] | None) -> list[dict[str, Any]] | None:
    """The objects of a cell as ``GIVEN``; None for no label. Raises Wrong."""
    if isinstance(cell, str):  # as CSV files have it
        try:
            cell = json.loads(cell) if cell.strip() else None
        except ValueError:
            raise Wrong(f"its objects are {cell[:40]!r}, which is no JSON.") from None
    if cell is None:
        return None
    if isinstance(cell, Mapping):
        lists = {key: values for key, values in cell.items() if isinstance(values, list)}
        if len({len(values) for values in lists.values()}) > 1:
            raise Wrong("its lists " + ", ".join(f"{key} ({len(one)})" for key, one in lists.items()) + " differ.")
        cell = [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)]
    if not isinstance(cell, list) or not all(isinstance(one, Mapping) for one in cell):
        raise Wrong("its objects are no list of {bbox, category}.")
    return [object_of(one, number, names) for number, one in enumerate(cell, 1)]


def object_of(one: Mapping[str, Any], number: int, names: Sequence[str] | None) -> dict[str, Any]:
    """An object as ``GIVEN``; ``number``: of the row's, from 1. Raises Wrong."""
    label = next((one[key] for key in NAMES if one.get(key) is not None), None)
    if isinstance(label, int | float) and names is not None:
        if not 0 <= label < len(names):
            raise Wrong(f"object {number} is of class {label}, and there are 0 to {len(names) - 1}.")
        label = names[int(label)]
    if label is None or not str(label).strip():
        raise Wrong(f"object {number} has no category.")
    box = one.get("share", one.get("bbox"))
    if not isinstance(box, list) or len(box) != 4 or not all(isinstance(side, int | float) for side in box):
        raise Wrong(f"object {number}, {label}, has the bbox {box}, not four numbers: left, top, width, height.")
    about = {"area": one.get("area"), "is_crowd": bool(one.get("iscrowd")), "is_share": "share" in one}
    return {"name": str(label).strip(), "box": box, **about}


def placed(table: pa.Table, where: str) -> pa.Table:
    """A table of pictures (``image``, null where it cannot be read, ``name``) with its column ``label`` in ``FORM``.

    Raises DataError for boxes that are not in their picture, by the picture's name and the object's number.
    """
    if "label" not in table.column_names or table.schema.field("label").type == FORM:
        return table
    rows: list[dict[str, Any] | None] = []
    wrong: dict[str, list[str]] = {}
    columns = (table.column(name).to_pylist() for name in ("image", "name", "label"))
    for content, name, objects in zip(*columns, strict=True):
        if content is None or objects is None:
            rows.append(None)
            continue
        width, height = size_of(content)
        try:
            found = [placed_object(one, number, width, height) for number, one in enumerate(objects, 1)]
            rows.append({"width": width, "height": height, "objects": found})
        except Wrong as error:
            wrong.setdefault(str(error), []).append(name)
    refuse(wrong, where, "picture")
    return table.set_column(table.column_names.index("label"), "label", pa.array(rows, FORM))


def placed_object(one: Mapping[str, Any], number: int, width: int, height: int) -> dict[str, Any]:
    """An object as ``PLACED`` in a picture of this size, cut off at its borders. Raises Wrong."""
    what, sides = f"object {number}, {one['name']},", one["box"]
    if not all(map(math.isfinite, sides)):
        raise Wrong(f"{what} has the box {sides}, which are no numbers.")
    if one["is_share"]:
        x, y, w, h = (share * side for share, side in zip(sides, (width, height) * 2, strict=True))
        x, y = x - w / 2, y - h / 2
    else:
        x, y, w, h = sides
    if w <= 0 or h <= 0:
        raise Wrong(f"{what} is {w:g} x {h:g} pixels large. Leave it out, or mend its box.")
    over = {"left": -x, "top": -y, "right": x + w - width, "bottom": y + h - height}
    side = max(over, key=over.__getitem__)
    if over[side] > MARGIN:
        raise Wrong(
            f"{what} reaches {over[side]:g} pixels beyond the {side} of its picture of {width} x {height} pixels. "
            "Boxes are left, top, width and height of the picture as it is seen, turned as its EXIF says."
        )
    left, top, right, bottom = max(x, 0.0), max(y, 0.0), min(x + w, width), min(y + h, height)
    if right <= left or bottom <= top:
        raise Wrong(f"{what} lies outside its picture of {width} x {height} pixels.")
    box = [(left + right) / 2 / width, (top + bottom) / 2 / height, (right - left) / width, (bottom - top) / height]
    area = one["area"] if one["area"] is not None and one["area"] > 0 else (right - left) * (bottom - top)
    return {"name": one["name"], "box": box, "area": area, "is_crowd": one["is_crowd"]}


def size_of(content: bytes) -> tuple[int, int]:
    """Width and height of a picture as it is seen; only its head is read."""
    from PIL import ExifTags, Image

    with Image.open(io.BytesIO(content)) as stored:
        width, height = stored.size
        is_turned = stored.getexif().get(ExifTags.Base.Orientation, 1) >= ROTATED
    return (height, width) if is_turned else (width, height)


def names_in(column: pa.ChunkedArray) -> set[str]:
    """The classes of the objects of a column of ``FORM``."""
    return {one["name"] for row in column.to_pylist() if row for one in row["objects"]}


def targets_of(column: pa.ChunkedArray, place: Mapping[str, int]) -> Targets:
    """Targets, Ragged (M, 8), of a column of ``FORM``; ``place``: the number of each class."""
    cells = column.to_pylist()
    rows = [rows_of(cell, place) for cell in cells if cell is not None]
    lengths = np.zeros(len(cells), np.int64)
    labeled = np.array([cell is not None for cell in cells], bool)
    lengths[labeled] = [len(units) for units in rows]
    return Targets(Ragged(np.concatenate([np.zeros((0, NUM_COLUMNS), np.float32), *rows]), lengths), labeled)


def rows_of(cell: Mapping[str, Any], place: Mapping[str, int]) -> Array:
    """The units of a labelled picture."""
    size = (cell["width"], cell["height"])
    classes = [(CROWD - place[one["name"]]) if one["is_crowd"] else place[one["name"]] for one in cell["objects"]]
    units = [(own, *one["box"], one["area"], *size) for own, one in zip(classes, cell["objects"], strict=True)]
    return np.array(units or [(NOTHING, 0, 0, 0, 0, 0, *size)], np.float32)


def objects(targets: Ragged) -> Ragged:
    """Targets without crowds, and the units that say that there is nothing."""
    return only(targets, targets.flat[:, CLASS] >= 0)


def crowds(targets: Ragged) -> Ragged:
    """The crowds alone, with the classes of their objects."""
    return only(*with_crowds(targets))


def with_crowds(targets: Ragged) -> tuple[Ragged, Array]:
    """Objects and crowds, these with the classes of their objects, and which are crowds, (M,)."""
    classes = targets.flat[:, CLASS]
    is_crowd, flat = classes <= CROWD, targets.flat.copy()
    flat[is_crowd, CLASS] = CROWD - classes[is_crowd]
    is_there = classes != NOTHING
    return only(Ragged(flat, targets.lengths), is_there), is_crowd[is_there]


def only(targets: Ragged, kept: Array) -> Ragged:
    """The same rows with some of their units (M,)."""
    return Ragged(targets.flat[kept], np.bincount(targets.rows[kept], minlength=len(targets)))


def classes_of(
    columns: Mapping[str, pa.ChunkedArray], names: Sequence[str] | None, wanted: Sequence[str] | None
) -> tuple[str, ...]:
    """The classes: ``wanted`` (task.labels), else the data's own ``names``, else those of the training rows, sorted.
    DataError for an object of another class."""
    seen = {split: names_in(column) for split, column in columns.items()}
    order = tuple(wanted or names or sorted(seen["train"]))
    unknown = sorted(set().union(*seen.values()) - set(order))
    if unknown and order:
        where = "task.labels" if wanted else "the classes of the training pictures"
        raise DataError(
            f"Some objects are of classes that are not among {where}: {shown(unknown)}. "
            f"{did_you_mean(unknown[0], order)} Correct them, or list all classes in task.labels."
        )
    return order
