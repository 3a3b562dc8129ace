"""The texts and labels of a source as Arrow tables by split, and what identifies its content without parsing it.

A source is a file, a folder, a URL or a hub name; ``data.format`` says which kind, ``auto`` finds out:

- ``text_folder``: a folder a class, one text file a document; train/validation/test folders may lie above the classes;
- ``image_folder``: the same of pictures;
- ``coco``, ``yolo``: pictures, and beside them what is in them, see ``annotated``;
- ``parquet``, ``csv`` (and .tsv), ``jsonl`` (and .json): one file, or a folder whose file or folder names say the
  split (train | validation, valid, val, dev | test); where no name says a split all files are training rows;
- raw text, where a task needs no more: any folder of text files, a document each, or one .txt, see ``documents``;
- ``datasets``: a folder of ``save_to_disk``; ``hub``: ``owner/name`` or ``owner/name:configuration``.

The order of rows is the sorted order of the files' names, then the order within the file.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, TypeAlias

import pyarrow as pa

from raydistill.config.data import OF_OBJECTS, Columns, Data
from raydistill.config.tasks import TaskSection
from raydistill.data import documents
from raydistill.data.annotated import coco_location, read_yolo
from raydistill.data.columns import canonical, guessed
from raydistill.data.hub import first_cells_of, hub_commit, load_hub, load_saved, read_split
from raydistill.data.location import (
    SUFFIXES,
    Location,
    document_labels,
    is_picture,
    locate,
    source_identity,
    unlabeled_section,
)
from raydistill.data.paths import DataFile, split_of
from raydistill.data.pictures import at_once, sound
from raydistill.data.recognition import cells_of
from raydistill.data.tables import REPEATED, paths_in, read_documents, read_table, readable
from raydistill.errors import ConfigError, DataError
from raydistill.storage.paths import resolve_path
from raydistill.tasks import kind_of

__all__ = ["Source", "read_source", "read_unlabeled", "resolve_path", "source_identity"]


Part: TypeAlias = Any  # (pa.Table, its class names or None, columns that were chosen by role)


@dataclass(frozen=True)
class Source:
    """Tables by split, columns text[, text_pair][, label]: label as ``Task.column`` has it, null for none."""

    tables: dict[str, pa.Table]
    label_names: tuple[str, ...] | None = None
    """Labels in the order that the data itself gives (ClassLabel); None: the data has no order of its own."""
    notes: list[str] = field(default_factory=list)
    skipped: dict[str, int] = field(default_factory=dict)
    """Rows that could not be read, by reason."""
    columns: dict[str, str] = field(default_factory=dict)
    """Of a table: the columns that were chosen, by role."""


def read_source(data: Data, task: TaskSection, *, needs_train: bool = True) -> Source:
    """All splits the source has, labels as ``task`` reads them.

    Raises DataError for content that cannot be read, ConfigError for a wrong name. Without ``needs_train`` a training
    split may be absent, and the name of a single file says its split too.
    """
    found = locate(data)
    check_folder(found, task)
    if found.kind == "image_folder":
        source = _read_image_folder(found, task)
    elif kind_of(task).reads_documents and found.kind in ("text_folder", "text", "lines"):
        source = _read_corpus(found)
    elif found.kind == "text_folder":
        source = _read_text_folder(found, task)
    elif found.kind == "yolo":
        source = Source(*read_yolo(found, task))
    elif found.kind in SUFFIXES or found.kind == "coco":
        tables = coco_location(found) if found.kind == "coco" else found
        source = _read_tables(tables, data.columns, "data.path", task, needs_train)
    elif found.kind in ("datasets", "hub"):
        source = _read_datasets(found, data.columns, data.revision, "data.path", task)
    else:
        raise ConfigError(
            f"{found.name} holds texts without labels. Name it in data.unlabeled; data.path needs labels."
        )
    if needs_train and source.tables and "train" not in source.tables:
        raise DataError(
            f"{found.name} has no training split, only {', '.join(source.tables)}. Add a file or folder train."
        )
    if not any(table.num_rows for table in source.tables.values()):
        raise DataError(f"{found.name} holds no rows.")
    return _with_faults_told(source)


def check_folder(found: Location, task: TaskSection) -> None:
    """ConfigError for a folder of texts where the task reads pictures, and the other way round."""
    holds_objects, kind = found.kind in OF_OBJECTS, kind_of(task).type
    if (holds_objects or found.kind == "image_folder") and not task.reads_pictures:
        fit = "object_detection" if holds_objects else "image_classification"
        way_out = f"Set task.type: {fit}, or name a folder of texts."
        raise ConfigError(f"{found.name} holds pictures, and {kind} reads texts. {way_out}")
    if holds_objects and task.kind != "boxes":
        raise ConfigError(f"{found.name} says which objects are in its pictures. Set task.type: object_detection.")
    if task.reads_pictures and found.kind in ("text_folder", "text", "lines", "conll"):
        raise ConfigError(
            f"{found.name} holds no pictures, which {kind} reads. Name a folder of pictures (a class a folder), or a "
            "table with a column of pictures or of their paths."
        )


def named_pictures(data: Data, task: TaskSection) -> str | None:
    """Digest over the files that the rows of tables name, where these are paths of pictures; None without any."""
    sections = [data, *([unlabeled_section(data)] if data.unlabeled is not None else [])] if task.reads_pictures else []
    total, named = hashlib.sha256(), False
    for found in map(locate, sections):
        for table in found.files if found.kind in SUFFIXES else ():
            for path in paths_in(table, found.kind, data.columns, task):
                file, named = table.beside(path), True
                digest = file.digest() if file.is_there() else None
                total.update(f"{path}\0{digest}\n".encode("utf-8", "surrogateescape"))
    return total.hexdigest() if named else None


def read_unlabeled(data: Data, task: TaskSection) -> Source | None:
    """The texts of ``data.unlabeled``, all its splits as one table ``train`` without labels; None when it is not set.

    Also takes what has no labels at all: a .txt file with a text a line, or a folder of text files.
    """
    if data.unlabeled is None:
        return None
    found = locate(unlabeled_section(data))
    check_folder(found, task)
    columns = data.columns.model_copy(update={"label": None})
    if found.kind in ("image_folder", *OF_OBJECTS):
        pictures = [(file, None) for file in found.files if is_picture(file.name)]
        source = Source({"train": read_pictures(pictures)})
    elif found.kind in ("text_folder", "text"):
        table, broken = read_documents([(file, None) for file in found.files], labeled=False)
        source = Source({"train": table}, None, _not_utf8(broken), {"not UTF-8": len(broken)} if broken else {})
    elif found.kind == "lines":
        source = Source({"train": _read_lines(found.files[0])})
    elif found.kind in SUFFIXES:
        source = _read_tables(found, columns, "data.unlabeled", task)
    else:
        source = _read_datasets(found, columns, None, "data.unlabeled", task)
    texts = [[name for name in table.column_names if name != "label"] for table in source.tables.values()]
    tables = [table.select(names) for table, names in zip(source.tables.values(), texts, strict=True)]
    joined = _joined(tables, "data.unlabeled")
    if not joined.num_rows:
        raise DataError(f"data.unlabeled: {found.name} holds no rows.")
    return _with_faults_told(Source({"train": joined}, None, source.notes, source.skipped))


def _with_faults_told(source: Source) -> Source:
    """The source with a note on pictures that cannot be read, instead of the column that says why."""
    faults = [fault for t in source.tables.values() if "fault" in t.column_names for fault in t["fault"].drop_null()]
    if not faults:
        return source
    told = " ".join(fault.as_py() for fault in faults[:3])
    more = f" And {len(faults) - 3:,} more." if len(faults) > 3 else ""
    return replace(source, notes=[*source.notes, f"Pictures that cannot be read: {told}{more}"])


def read_pictures(files: Sequence[tuple[DataFile, str | None]]) -> pa.Table:
    """Files as rows image (null where it cannot be read), name, fault, and label, the class that each comes with."""

    def content(file: DataFile) -> bytes:
        with readable(file.name, "picture"), file.open() as raw:
            found: bytes = raw.read()
            return found

    names = [file.name for file, _ in files]
    images, faults = sound(at_once(content, [file for file, _ in files]), names)
    labels = pa.array([label for _, label in files], pa.large_string())
    return pa.table({"image": images, "name": pa.array(names, pa.large_string()), "fault": faults, "label": labels})


def _read_image_folder(found: Location, task: TaskSection) -> Source:
    if task.kind == "boxes":
        raise DataError(
            f"{found.name} holds pictures, and nothing says which objects are in them. Put COCO's JSON beside them, "
            "text files as YOLO has them in a folder labels, or a table with columns image and objects."
        )
    by_split, notes = _documents(found, [file for file in found.files if is_picture(file.name)], "image_folder")
    tables = {}
    for split, pictures in by_split.items():
        table = read_pictures(pictures)
        labels = kind_of(task).column(task, table.column("label"), found.name, None)
        tables[split] = table.set_column(table.column_names.index("label"), "label", labels)
    return Source(tables, None, notes)


def _documents(
    found: Location, files: Sequence[DataFile], kind: str
) -> tuple[dict[str, list[tuple[DataFile, str | None]]], list[str]]:
    """The files of each split with the class that each has; a note on those that lie outside."""
    places = document_labels([file.name for file in files])
    inside = {file.name for file, place in zip(files, places, strict=True) if place is not None}
    outside = [file.name for file in found.files if file.name not in inside]
    if len(outside) == len(found.files):
        what = "picture" if kind == "image_folder" else "text file"
        raise DataError(f"{found.name} has no class folders. A {kind} is a folder a class, one {what} a document.")
    by_split: dict[str, list[tuple[DataFile, str | None]]] = {}
    for file, place in zip(files, places, strict=True):
        if place is not None:
            by_split.setdefault(place[0], []).append((file, place[1]))
    also = " or are no pictures" if kind == "image_folder" else ""
    return by_split, ([f"Ignored, as they lie outside the class folders{also}: {_listed(outside)}."] if outside else [])


def _read_text_folder(found: Location, task: TaskSection) -> Source:
    by_split, notes = _documents(found, found.files, "text_folder")
    tables, broken = {}, []
    for split, files in by_split.items():
        table, unreadable = read_documents(files, labeled=True)
        tables[split] = canonical(table, {"text": "text", "label": "label"}, found.name, None, task)
        broken += unreadable
    return Source(tables, None, notes + _not_utf8(broken), {"not UTF-8": len(broken)} if broken else {})


def _read_corpus(found: Location) -> Source:
    """The documents of a folder, a file each; or those of one file."""
    if found.kind == "lines":
        return Source({"train": documents.read_paragraphs(found.files[0])})
    read = {split: documents.read_files(files) for split, files in documents.by_split(found.files).items()}
    broken = [name for _, names in read.values() for name in names]
    if broken and not any(table.num_rows for table, _ in read.values()):
        raise DataError(f"{found.name} holds no UTF-8 text: {_listed(broken)}. Save the documents as UTF-8 .txt files.")
    skipped = {"not UTF-8": len(broken)} if broken else {}
    return Source({split: table for split, (table, _) in read.items()}, None, _not_utf8(broken), skipped)


def _read_tables(found: Location, columns: Columns, role: str, task: TaskSection, needs_train: bool = True) -> Source:
    is_alone = len(found.files) == 1
    files = {file.name: file for file in found.files}
    splits = {name: "train" if is_alone and needs_train else _named_split(name, is_alone) for name in files}
    skipped: Counter[str] = Counter()
    cells = cache(lambda: cells_of(files[first_of(splits)], found.kind))

    def read(name: str, need_label: bool) -> Part:
        if kind_of(task).reads_documents:
            return documents.read_text_column(files[name], found.kind, columns, task, cells)
        *part, left_out = read_table(files[name], found.kind, columns, need_label, task, cells)
        skipped.update(left_out)
        return part

    source = _joined_splits(splits, read, role, found.name)
    source.notes.extend(told_guesses(source.columns, columns, task))
    for why, count in skipped.items():
        what = f"a {why}" if why == REPEATED else why
        source.notes.append(f"{count:,} row{'s' * (count > 1)} of {role} skipped: {what}.")
        source.skipped[why] = count
    return source


def _read_datasets(found: Location, columns: Columns, revision: str | None, role: str, task: TaskSection) -> Source:
    loaded = load_hub(found.name, hub_commit(found.name, revision)) if found.kind == "hub" else load_saved(found.root)
    named = dict(loaded) if isinstance(loaded, dict) else {"train": loaded}
    splits = {name: split_of(name) for name in sorted(named)}
    cells = cache(lambda: first_cells_of(named[first_of(splits)]))

    def read(name: str, need_label: bool) -> Part:
        return read_split(named[name], columns, f"split {name} of {role}", need_label, task, cells)

    source = _joined_splits(splits, read, role, found.name)
    source.notes.extend(told_guesses(source.columns, columns, task))
    return source


def first_of(splits: Mapping[str, str | None]) -> str:
    """The part by whose cells columns are recognised, in all parts alike: one with training rows, if any."""
    return next((name for name, split in splits.items() if split == "train"), next(iter(splits)))


def told_guesses(chosen: Mapping[str, str], columns: Columns, task: TaskSection) -> list[str]:
    """A sentence on each column that was recognised by what it holds."""
    return [
        f"No column has a usual name for the {role}; {name} was taken by what its cells hold. If another is meant, set "
        f"data.columns.{role}."
        for role, name in guessed(chosen, columns, task).items()
    ]


def _joined_splits(
    splits: Mapping[str, str | None], read: Callable[[str, bool], Part], role: str, where: str
) -> Source:
    """What ``read`` gives of each part of a source, by name and whether it needs labels, put together by split; where
    no name says a split all are training rows."""
    if not any(splits.values()):
        splits = dict.fromkeys(splits, "train")
    ignored = [name for name, split in splits.items() if split is None]
    notes = [f"Ignored, as others name their split and these do not: {_listed(ignored)}."] if ignored else []
    tables: dict[str, list[pa.Table]] = {}
    classes: set[tuple[str, ...]] = set()
    used: dict[str, str] = {}
    for name, split in splits.items():
        if split is not None:
            table, own_classes, chosen = read(name, role == "data.path" and split == "train")
            tables.setdefault(split, []).append(table)
            used = chosen | used
            classes |= {own_classes} if own_classes else set()
    if len(classes) > 1:
        raise DataError(f"The parts of {where} name their classes differently: {sorted(classes)}.")
    notes.append(f"Columns of {role}: " + ", ".join(f"{what} = {name}" for what, name in used.items()) + ".")
    joined = {s: _joined(parts, where) for s, parts in tables.items()}
    return Source(joined, next(iter(classes), None), notes, columns=used)


def _named_split(name: str, is_alone: bool) -> str | None:
    """The split that a file's name speaks of; a file on its own may speak of several, which then says nothing."""
    try:
        return split_of(name)
    except ConfigError:
        if is_alone:
            return None
        raise


def _read_lines(file: DataFile) -> pa.Table:
    with readable(file.name, "text"), file.open() as raw:
        lines = raw.read().decode("utf-8-sig").split("\n")
    return pa.table({"text": pa.array([line.removesuffix("\r") for line in lines if line.strip()], pa.large_string())})


def _joined(tables: Sequence[pa.Table], where: str) -> pa.Table:
    if len({"text_pair" in table.column_names for table in tables}) > 1:
        raise DataError(f"Some files of {where} have a second text, others do not. Name the columns in data.columns.")
    return pa.concat_tables(tables, promote_options="default")


def _not_utf8(names: Sequence[str]) -> list[str]:
    if not names:
        return []
    count = f"{len(names)} document{'s were' if len(names) > 1 else ' was'} skipped"
    return [f"{count}, not UTF-8: {_listed(names)}."]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
