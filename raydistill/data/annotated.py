"""Folders of pictures beside files that say what is in them: COCO's JSON, and text files as YOLO's tools have them.

``coco``: any JSON files with images, annotations and categories, the pictures anywhere in the folder. ``yolo``: a text
file a picture, of the same name in a folder ``labels`` in place of ``images`` or beside it, a line an object: the
number of its class, center, width and height as shares of the picture. The classes are named in data.yaml or
classes.txt. A picture without a text file has no objects.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import yaml

from raydistill.config.tasks import TaskSection
from raydistill.data.columns import canonical
from raydistill.data.location import Location, is_picture
from raydistill.data.paths import DataFile, split_of
from raydistill.data.tables import readable
from raydistill.errors import DataError

CLASS_FILES = ("classes.txt", "obj.names")


@dataclass(frozen=True)
class Listed(DataFile):
    """A file whose paths of pictures are looked for in the whole folder: ``others`` by the last part of their names."""

    others: Mapping[str, Sequence[DataFile]] = field(default_factory=dict)

    def beside(self, path: str) -> DataFile:
        """The one file whose name ends so; of several that in this one's folder, or in one that its name speaks of, as
        instances_train2017.json does of train2017. DataError where that is not one."""
        path = path.removeprefix("./")
        found = [one for one in self.others.get(PurePosixPath(path).name, ()) if f"/{one.name}".endswith(f"/{path}")]
        if len(found) > 1:
            own = f"{self.name.rpartition('/')[0]}/{path}".lstrip("/")
            near = [one for one in found if one.name == own]
            found = near or [one for one in found if PurePosixPath(one.name).parent.name in self.name] or found
        if len(found) > 1:
            raise DataError(
                f"{self.name} names the picture {path}, which may be {found[0].name} or {found[1].name}. Write the "
                "path from the folder on as its file_name."
            )
        return found[0] if found else super().beside(path)


def listed(files: Sequence[DataFile], all_files: Sequence[DataFile]) -> tuple[DataFile, ...]:
    """Files that name pictures of the whole folder."""
    others: dict[str, list[DataFile]] = {}
    for one in filter(lambda one: is_picture(one.name), all_files):
        others.setdefault(PurePosixPath(one.name).name, []).append(one)
    return tuple(Listed(one.name, one.path, one.fs, others) for one in files)


def coco_location(found: Location) -> Location:
    """The JSON files of a folder, as tables of pictures with their objects; beside COCO's instances_… its captions and
    keypoints are left out. Raises DataError where there is none."""
    files = [one for one in found.files if one.name.lower().endswith(".json")]
    files = [one for one in files if "instances" in PurePosixPath(one.name).name.lower()] or files
    if not files:
        raise DataError(f"{found.name} has no JSON file that says what is in its pictures.")
    return Location("jsonl", found.root, listed(files, found.files))


def read_yolo(found: Location, task: TaskSection) -> tuple[dict[str, pa.Table], tuple[str, ...], list[str]]:
    """Tables by split, as ``columns.canonical`` makes them; the classes in their order; notes. Raises DataError."""
    names = class_names(found)
    texts = {one.name: one for one in found.files if one.name.endswith(".txt")}
    pictures = [one for one in found.files if is_picture(one.name)]
    if not pictures:
        raise DataError(f"{found.name} has no pictures.")
    splits = {one.name: split_of(f"{one.name.rpartition('/')[0]}/-") for one in pictures}
    by_split: dict[str, list[tuple[DataFile, list[dict[str, Any]]]]] = {}
    used, ignored = set(), []
    for one in pictures:
        split = splits[one.name] or (None if any(splits.values()) else "train")
        if split is None:
            ignored.append(one.name)
            continue
        text = next((texts[name] for name in text_names(one.name) if name in texts), None)
        used.add(text.name if text else None)
        by_split.setdefault(split, []).append((one, [] if text is None else list(objects_in(text, names))))
    tables, root = {}, listed([DataFile("-", "-")], found.files)[0]
    for split, rows in by_split.items():
        raw = pa.table({"image": [one.name for one, _ in rows], "objects": pa.array([own for _, own in rows], OBJECTS)})
        tables[split] = canonical(raw, {"image": "image", "label": "objects"}, found.name, names, task, root)
    notes = [f"Ignored, as others name their split and these do not: {some(ignored)}."] if ignored else []
    alone = sorted(name for name in texts.keys() - used if "labels" in name.split("/"))
    return tables, names, notes + ([f"Text files without a picture: {some(alone)}."] if alone else [])


OBJECTS = pa.list_(pa.struct([("category", pa.string()), ("share", pa.list_(pa.float64()))]))


def text_names(picture: str) -> Iterator[str]:
    """Where the text file of a picture may lie."""
    own = PurePosixPath(picture).with_suffix(".txt")
    parts = list(own.parts)
    for place in range(len(parts) - 2, -1, -1):
        if parts[place] == "images":
            yield "/".join([*parts[:place], "labels", *parts[place + 1 :]])
            break
    yield str(own)


def objects_in(file: DataFile, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The objects of a text file. Raises DataError for a line that is none."""
    with readable(file.name, "text"), file.open() as raw:
        lines = raw.read().decode("utf-8-sig").splitlines()
    for number, line in enumerate(lines, 1):
        cells = line.split()
        if not cells:
            continue
        where = f"{file.name}, line {number}"
        try:
            label, *box = (float(cell) for cell in cells)
        except ValueError:
            raise DataError(
                f"{where} is {line[:60]!r}; write five numbers: class, center x and y, width, height."
            ) from None
        if len(box) != 4 or not all(map(math.isfinite, box)):
            more = " Outlines are not read: write their boxes." if len(box) > 4 else ""
            raise DataError(f"{where} has {len(cells)} numbers, not five: class, center x and y, width, height.{more}")
        if label != int(label) or not 0 <= label < len(names):
            raise DataError(f"{where} is of the class {cells[0]}, and there are 0 to {len(names) - 1}.")
        yield {"category": names[int(label)], "share": box}


def class_names(found: Location) -> tuple[str, ...]:
    """As data.yaml, or a file with a class a line, has them. Raises DataError where neither is there, or says so."""
    for file in found.files:
        last = PurePosixPath(file.name).name.lower()
        if last not in CLASS_FILES and not last.endswith((".yaml", ".yml")):
            continue
        with readable(file.name, "text"), file.open() as raw:
            text = raw.read().decode("utf-8-sig")
        if last in CLASS_FILES:
            return tuple(line.strip() for line in text.splitlines() if line.strip())
        try:
            names = (yaml.safe_load(text) or {}).get("names")
        except (yaml.YAMLError, AttributeError) as error:
            raise DataError(f"{file.name} is no YAML with names: {str(error).splitlines()[0]}. Mend it.") from error
        if isinstance(names, Mapping) and sorted(names) == list(range(len(names))):
            names = [names[i] for i in range(len(names))]
        if isinstance(names, list) and names:
            return tuple(map(str, names))
    raise DataError(
        f"{found.name} does not name its classes. Write `names: [cat, dog]` into data.yaml, or a class a line into "
        "classes.txt, in the order of their numbers."
    )


def some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
