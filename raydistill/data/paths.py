"""Where data and models lie: ``pkg://`` paths, local paths, URLs, hub names; split names; files and their digests."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raydistill.errors import ConfigError, DataError
from raydistill.storage.manifest import file_digest
from raydistill.storage.redaction import redact

SPLITS = ("train", "validation", "test")
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}


ROBOFLOW = "_annotations.coco.json"
"""Ends the name of a file of COCO's that is not hidden, though its name begins so."""


def split_of(name: str) -> str | None:
    """The split that a relative file name speaks of, as ``train-00000-of-00002.parquet`` or ``dev/part.csv``; or None.

    Raises ConfigError when it speaks of two.
    """
    *folders, file = name.lower().split("/")
    for folder in folders:
        if folder in SPLIT_NAMES:
            return SPLIT_NAMES[folder]
    found = {SPLIT_NAMES[word] for word in re.split(r"[^a-z]+", file.split(".")[0]) if word in SPLIT_NAMES}
    if len(found) > 1:
        raise ConfigError(f"The file name {name} speaks of {' and '.join(sorted(found))}. Rename it to say one split.")
    return found.pop() if found else None


@dataclass(frozen=True)
class DataFile:
    """One file of a source: its name below the source (posix), where it lies, and the file system of a URL."""

    name: str
    path: str
    fs: Any = None

    def open(self) -> Any:
        return open(self.path, "rb") if self.fs is None else self.fs.open(self.path, "rb")

    def beside(self, path: str) -> DataFile:
        """The file of a path from this one's folder on."""
        folder = self.path.rpartition("/")[0] if self.fs is not None else os.path.dirname(self.path)
        return DataFile(path, f"{folder}/{path}" if self.fs is not None else os.path.join(folder, path), self.fs)

    def is_there(self) -> bool:
        return os.path.isfile(self.path) if self.fs is None else bool(self.fs.isfile(self.path))

    def size(self) -> int:
        return os.path.getsize(self.path) if self.fs is None else int(self.fs.size(self.path))

    def digest(self) -> str:
        """SHA-256 of a local file; etag and size of a remote one. DataError when it cannot be read."""
        if self.fs is None:
            try:
                return file_digest(Path(self.path))
            except OSError as error:
                raise DataError(f"{self.path} cannot be read: {error.strerror}. Check its permissions.") from error
        info = self.fs.info(self.path)
        etag = next((info[key] for key in ("ETag", "etag", "md5Hash") if info.get(key)), None) or self.fs.ukey(
            self.path
        )
        return f"{etag}:{info.get('size')}"


def list_files(path: Path | str) -> list[DataFile]:
    """All files below a local folder or a URL, or the one file, sorted by name; hidden ones and ``_…`` are left out.

    Raises ConfigError when a URL cannot be reached or is not there, DataError for a name that is not UTF-8.
    """
    found = _list_local(path) if isinstance(path, Path) else _list_remote(path)
    shown = [f for f in found if f.name.endswith(ROBOFLOW) or not re.search(r"(^|/)[._]", f.name)]
    for file in shown:
        if not file.name.isprintable() and any(0xD800 <= ord(letter) < 0xE000 for letter in file.name):
            raise DataError(f"The file name {file.name!r} is not UTF-8. Rename the file.")
    return sorted(shown, key=lambda f: f.name)


def _list_local(path: Path) -> list[DataFile]:
    if path.is_file():
        return [DataFile(path.name.lstrip("._"), str(path))]
    files = []
    for folder, below_it, names in os.walk(path, followlinks=True):
        # a link to a folder above itself would be walked 40 times over
        below_it[:] = [d for d in below_it if not _is_loop(os.path.join(folder, d))]
        below = os.path.relpath(folder, path).replace(os.sep, "/")
        prefix = "" if below == "." else below + "/"
        files += [DataFile(prefix + name, os.path.join(folder, name)) for name in names]
    return [f for f in files if os.path.isfile(f.path)]


def _is_loop(folder: str) -> bool:
    return os.path.islink(folder) and Path(folder).parent.resolve().is_relative_to(os.path.realpath(folder))


def _list_remote(url: str) -> list[DataFile]:
    from fsspec.core import url_to_fs

    try:
        fs, root = url_to_fs(url)
        fs.invalidate_cache()
        if fs.isfile(root):
            return [DataFile(root.rsplit("/", 1)[-1].lstrip("._"), root, fs)]
        paths = fs.find(root)
    except Exception as error:  # every file system has its own error classes for a wrong bucket, key or host
        raise ConfigError(
            f"{redact(url)} cannot be read: {type(error).__name__}: {redact(str(error))}. "
            f"Check the address and the credentials in the environment."
        ) from error
    if not paths:
        raise ConfigError(f"{redact(url)} does not exist or is an empty folder.")
    root = root.rstrip("/") + "/"
    return [DataFile(path.removeprefix(root), path, fs) for path in paths]
