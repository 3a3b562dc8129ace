"""The texts and labels of a source as Arrow tables by split, and what identifies its content without parsing it.

A source is a file, a folder, a URL or a hub name; ``data.format`` says which kind, ``auto`` finds out:

- ``text_folder``: a folder a class, one text file a document; train/validation/test folders may lie above the classes;
- ``parquet``, ``csv`` (and .tsv), ``jsonl`` (and .json): one file, or a folder whose file or folder names say the
  split (train | validation, valid, val, dev | test); where no name says a split all files are training rows;
- ``datasets``: a folder of ``save_to_disk``; ``hub``: ``owner/name`` or ``owner/name:configuration``.

The order of rows is the sorted order of the files' names, then the order within the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from raydistill.config.data import Columns, Data
from raydistill.config.tasks import TaskSection
from raydistill.data.columns import canonical
from raydistill.data.hub import hub_commit, load_hub, load_saved, split_tables
from raydistill.data.location import SUFFIXES, Location, document_labels, locate, source_identity, unlabeled_section
from raydistill.data.paths import DataFile, split_of
from raydistill.data.tables import read_documents, read_table, readable
from raydistill.errors import ConfigError, DataError
from raydistill.storage.paths import resolve_path

__all__ = ["Source", "read_source", "read_unlabeled", "resolve_path", "source_identity"]


@dataclass(frozen=True)
class Source:
    """Tables by split, columns text[, text_pair][, label]: label as ``Task.column`` has it, null for none."""

    tables: dict[str, pa.Table]
    label_names: tuple[str, ...] | None = None
    """Labels in the order that the data itself gives (ClassLabel); None: the data has no order of its own."""
    notes: list[str] = field(default_factory=list)
    skipped: dict[str, int] = field(default_factory=dict)
    """Rows that could not be read, by reason."""


def read_source(data: Data, task: TaskSection, *, needs_train: bool = True) -> Source:
    """All splits the source has, labels as ``task`` reads them.

    Raises DataError for content that cannot be read, ConfigError for a wrong name. Without ``needs_train`` a training
    split may be absent, and the name of a single file says its split too.
    """
    found = locate(data)
    if found.kind == "text_folder":
        source = _read_text_folder(found, task)
    elif found.kind in SUFFIXES:
        source = _read_tables(found, data.columns, "data.path", task, needs_train)
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
    return source


def read_unlabeled(data: Data, task: TaskSection) -> Source | None:
    """The texts of ``data.unlabeled``, all its splits as one table ``train`` without labels; None when it is not set.

    Also takes what has no labels at all: a .txt file with a text a line, or a folder of text files.
    """
    if data.unlabeled is None:
        return None
    found = locate(unlabeled_section(data))
    columns = data.columns.model_copy(update={"label": None})
    if found.kind in ("text_folder", "text"):
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
    return Source({"train": joined}, None, source.notes, source.skipped)


def _read_text_folder(found: Location, task: TaskSection) -> Source:
    places = document_labels([file.name for file in found.files])
    outside = [file.name for file, place in zip(found.files, places, strict=True) if place is None]
    if len(outside) == len(found.files):
        raise DataError(
            f"{found.name} has no class folders. A text_folder is a folder a class, one text file a document."
        )
    by_split: dict[str, list[tuple[DataFile, str | None]]] = {}
    for file, place in zip(found.files, places, strict=True):
        if place is not None:
            by_split.setdefault(place[0], []).append((file, place[1]))
    notes = [f"Ignored, as they lie outside the class folders: {_listed(outside)}."] if outside else []
    tables, broken = {}, []
    for split, documents in by_split.items():
        table, unreadable = read_documents(documents, labeled=True)
        tables[split] = canonical(table, {"text": "text", "label": "label"}, found.name, None, task)
        broken += unreadable
    return Source(tables, None, notes + _not_utf8(broken), {"not UTF-8": len(broken)} if broken else {})


def _read_tables(found: Location, columns: Columns, role: str, task: TaskSection, needs_train: bool = True) -> Source:
    is_alone = len(found.files) == 1
    splits = ["train" if is_alone and needs_train else _named_split(file.name, is_alone) for file in found.files]
    notes = []
    if not any(splits):
        splits = ["train"] * len(splits)
    ignored = [file.name for file, split in zip(found.files, splits, strict=True) if split is None]
    if ignored:
        notes.append(f"Ignored, as other files name their split and these do not: {_listed(ignored)}.")
    tables: dict[str, list[pa.Table]] = {}
    names: set[tuple[str, ...]] = set()
    used: dict[str, str] = {}
    num_headers = 0
    for file, split in zip(found.files, splits, strict=True):
        if split is None:
            continue
        need_label = role == "data.path" and split == "train"
        table, own_names, chosen, repeated = read_table(file, found.kind, columns, need_label, task)
        num_headers += repeated
        tables.setdefault(split, []).append(table)
        used = chosen | used
        names |= {own_names} if own_names else set()
    if len(names) > 1:
        raise DataError(f"The files of {found.name} name their classes differently: {sorted(names)}.")
    notes.append(f"Columns of {role}: " + ", ".join(f"{what} = {name}" for what, name in used.items()) + ".")
    joined = {split: _joined(parts, found.name) for split, parts in tables.items()}
    if num_headers:
        notes.append(f"{num_headers:,} row{'s' * (num_headers > 1)} of {role} skipped: a repeated header.")
    return Source(joined, next(iter(names), None), notes, {"repeated header": num_headers} if num_headers else {})


def _named_split(name: str, is_alone: bool) -> str | None:
    """The split that a file's name speaks of; a file on its own may speak of several, which then says nothing."""
    try:
        return split_of(name)
    except ConfigError:
        if is_alone:
            return None
        raise


def _read_datasets(found: Location, columns: Columns, revision: str | None, role: str, task: TaskSection) -> Source:
    loaded = load_hub(found.name, hub_commit(found.name, revision)) if found.kind == "hub" else load_saved(found.root)
    tables, names, notes = split_tables(loaded, columns, role, task)
    return Source(tables, names, notes)


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
