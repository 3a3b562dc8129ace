"""Where a source lies, of which kind it is, what identifies its content; split and class of a document."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raydistill.config.data import Data
from raydistill.data import pictures
from raydistill.data.hub import hub_commit
from raydistill.data.paths import SPLIT_NAMES, DataFile, list_files
from raydistill.errors import ConfigError, DataError
from raydistill.storage.paths import is_url, resolve_path

SUFFIXES = {
    "parquet": (".parquet", ".pq"),
    "csv": (".csv", ".tsv"),
    "jsonl": (".jsonl", ".ndjson", ".json"),
    "conll": (".conll", ".conllu", ".bio", ".iob", ".iob2"),
}
WITHOUT_LABELS = ("text", "lines")
"""Kinds of sources that are no ``data.format``: a folder of text files, and one such file."""
_UNLABELED_FOLDERS = {"unsup", "unsupervised", "unlabeled", "unlabelled"}


@dataclass(frozen=True)
class Location:
    """A source that was found: its kind (a ``data.format``, or ``text`` and ``lines`` without labels) and its files."""

    kind: str
    root: Path | str
    """A local path, a URL, or a hub name."""
    files: tuple[DataFile, ...] = ()

    @property
    def name(self) -> str:
        return self.root.name if isinstance(self.root, Path) else self.root


def source_identity(data: Data) -> dict[str, Any]:
    """What identifies the content: digest over file names and file digests (etag and size of a URL), or a hub commit.

    Where the files lie plays no part, nor does the name of a single file. Raises ConfigError when nothing is there.
    """
    found = locate(data)
    identity: dict[str, Any] = {"kind": found.kind}
    if found.kind == "hub":
        identity |= {"name": found.name, "commit": hub_commit(found.name, data.revision)}
    else:
        total = hashlib.sha256()
        for file in found.files:
            name = file.name if len(found.files) > 1 else "".join(Path(file.name).suffixes[-2:])
            total.update(f"{name}\0{file.digest()}\n".encode("utf-8", "surrogateescape"))
        identity |= {"num_files": len(found.files), "digest": total.hexdigest()}
    if data.unlabeled is not None:
        identity["unlabeled"] = source_identity(unlabeled_section(data))
    return identity


def unlabeled_section(data: Data) -> Data:
    """The data section as it would be for ``data.unlabeled`` alone; format and revision belong to ``data.path``."""
    # a copy is not validated: an empty name is refused with the rest of the paths
    plain = {"path": data.unlabeled or "", "format": "auto", "revision": None, "unlabeled": None}
    return data.model_copy(update=plain)


def locate(data: Data) -> Location:
    """Find ``data.path`` and its kind. Raises ConfigError, for an empty folder DataError."""
    if data.path == "-":
        raise is_pipe("-")
    path = None if data.format == "hub" else resolve_path(data.path)
    if path is None and not is_url(data.path):
        if data.format not in ("auto", "hub"):
            raise ConfigError(f"{data.path} does not exist, but data.format {data.format} needs a local path or a URL.")
        return Location("hub", data.path)
    root = path if path is not None else data.path
    if isinstance(root, Path) and not (root.is_dir() or root.is_file()):
        raise is_pipe(str(root))
    files = list_files(root)
    if not files:
        raise DataError(f"{root} is an empty folder.")
    single = (
        not root.is_dir() if isinstance(root, Path) else len(files) == 1 and root.rstrip("/").endswith(files[0].name)
    )
    kind = _kind(files, single, str(root)) if data.format == "auto" else data.format
    if single and kind == "coco":
        kind = "jsonl"  # whose objects tell what it is
    if single and kind in ("text_folder", "image_folder", "yolo", "datasets"):
        raise ConfigError(f"{root} is a file, but data.format {kind} is a folder. Set data.format to the file's kind.")
    if kind in SUFFIXES and not single:
        files = [file for file in files if family(file.name) == kind]
        if not files:
            raise ConfigError(f"{root} holds no {' or '.join(SUFFIXES[kind])} files, which data.format {kind} needs.")
    if kind == "datasets":
        files = [file for file in files if not file.name.rsplit("/", 1)[-1].startswith("cache-")]
    return Location(kind, root, tuple(files))


def is_pipe(name: str) -> ConfigError:
    return ConfigError(
        f"{name} is a pipe or a device, and data is read more than once. Write it into a file first, whose name tells "
        "what it is, such as rows.csv or rows.jsonl."
    )


def family(name: str) -> str | None:
    name = name.lower().removesuffix(".gz")
    return next((kind for kind, suffixes in SUFFIXES.items() if name.endswith(suffixes)), None)


def is_picture(name: str) -> bool:
    """Whether a file's name is that of a picture."""
    return name.lower().endswith(pictures.SUFFIXES)


def _kind(files: Sequence[DataFile], single: bool, where: str) -> str:
    names = {file.name for file in files}
    if single:
        kind = "lines" if files[0].name.lower().endswith(".txt") else family(files[0].name)
        if kind is None:
            known = ", ".join(suffix for suffixes in SUFFIXES.values() for suffix in suffixes)
            raise ConfigError(f"{where} is of an unknown file type. Known: {known}, each also .gz. Or set data.format.")
        return kind
    if "dataset_dict.json" in names or {"state.json", "dataset_info.json"} <= names:
        return "datasets"
    kinds = {name: family(name) for name in names}
    if (annotated := _annotated(names)) is not None:
        return annotated
    if not any(kinds.values()) and 2 * sum(map(is_picture, names)) > len(names):
        return "image_folder"
    documents = any("/" in name and kind is None for name, kind in kinds.items())
    families = {kind for kind in kinds.values() if kind}
    if len(families) > 1 or documents:  # a .json beside parquet or csv files, or above class folders, describes them
        families = {kind for name, kind in kinds.items() if kind and not name.lower().endswith(".json")}
    if len(families) > 1:
        raise ConfigError(f"{where} holds {' and '.join(sorted(families))} files. Set data.format to the one to read.")
    if families:
        return families.pop()
    return "text_folder" if any("/" in name for name in names) else "text"


def _annotated(names: Collection[str]) -> str | None:
    """How a folder of pictures says what is in them, where it does: ``coco`` or ``yolo``."""
    if not any(map(is_picture, names)):
        return None
    parts = [name.lower().split("/") for name in names]
    if any("labels" in folders and file.endswith(".txt") for *folders, file in parts):
        return "yolo"
    said = ("annotations", "instances", ".coco.")
    is_coco = any(
        file.endswith(".json") and (folders[-1:] == ["annotations"] or any(word in file for word in said))
        for *folders, file in parts
    )
    return "coco" if is_coco else None


def document_labels(names: Sequence[str]) -> list[tuple[str, str | None] | None]:
    """(split, class) of each document of a text folder by its relative name; None for a file outside class folders.

    The top folders are splits when there are folders below them and all are named so, or train is among them.
    """
    parts = [name.split("/") for name in names]
    tops = {p[0].lower() for p in parts if len(p) > 1}
    deep = {p[0].lower() for p in parts if len(p) > 2}
    is_split = bool(deep) and ("train" in map(SPLIT_NAMES.get, deep) or tops <= SPLIT_NAMES.keys())
    out: list[tuple[str, str | None] | None] = []
    for p in parts:
        split = SPLIT_NAMES.get(p[0].lower()) if is_split else "train"
        folder = p[1:] if is_split else p
        if split is None or len(folder) < 2:
            out.append(None)
        else:
            out.append((split, None if folder[0].lower() in _UNLABELED_FOLDERS else folder[0]))
    return out
