"""Where data and models lie: ``pkg://`` paths, local paths, URLs, hub names; split names; files and their digests."""

from __future__ import annotations

import difflib
import importlib.util
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raydistill.errors import ConfigError, DataError
from raydistill.lineage import redact

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
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?(:[\w.-]+)?")
_FILE_SUFFIX = re.compile(r"\.(parquet|pq|csv|tsv|jsonl|ndjson|json|txt|arrow|safetensors|zip|gz)$", re.IGNORECASE)


def nearest(name: str, known: Iterable[str]) -> str:
    """A sentence for an error message: the names most like ``name``, or some of those that exist."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    if close:
        return f"Did you mean {' or '.join(repr(c) for c in close)}?"
    shown = ", ".join(known[:10]) + (", …" if len(known) > 10 else "")
    return f"There are: {shown}." if known else "There is nothing."


def is_url(name: str) -> bool:
    return "://" in name and not name.startswith("pkg://")


def resolve_path(name: str) -> Path | None:
    """The absolute local path that ``name`` stands for; None when it is a URL or can only be a hub name.

    ``pkg://package/path`` is found without importing the package and cannot leave it. Raises ConfigError when the
    name is written as a path but nothing is there.
    """
    if name.startswith("pkg://"):
        return _package_path(name)
    if name.startswith("file://"):
        name = name.removeprefix("file://")
    if is_url(name):
        return None
    if not name or "\0" in name:
        raise ConfigError(f"{name!r} is not a path. Name a file, a folder, pkg://package/path or a hub name.")
    path = Path(os.path.abspath(os.path.expanduser(name)))
    if os.path.exists(path):  # unlike Path.exists, False for a name that is too long
        return path
    if _HUB_NAME.fullmatch(name) and not _FILE_SUFFIX.search(name):
        return None
    raise ConfigError(f"{name} does not exist. {names_beside(path)}")


def _package_path(name: str) -> Path:
    package, _, rest = name.removeprefix("pkg://").partition("/")
    try:
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
    except ValueError:  # __main__ and the like have no spec
        spec = None
    if spec is None or not spec.submodule_search_locations:
        from importlib.metadata import packages_distributions

        raise ConfigError(
            f"{name}: no package {package!r} is installed here. {nearest(package, packages_distributions())} "
            f"Install the package, or write the path of a file or folder."
        )
    root = Path(next(iter(spec.submodule_search_locations))).resolve()
    path = (root / rest.lstrip("/")).resolve()
    if not path.is_relative_to(root):
        raise ConfigError(f"{name} leaves the package {package!r}. A pkg:// path must stay inside its package.")
    if not path.exists():
        raise ConfigError(f"{name} does not exist in the package {package!r}. {names_beside(path)}")
    return path


def names_beside(path: Path) -> str:
    """Names beside the first part of ``path`` that is missing."""
    parent, missing = path.parent, path.name
    while not parent.exists() and parent != parent.parent:
        parent, missing = parent.parent, parent.name
    if not parent.is_dir():
        return f"{parent} is a file."
    try:
        names = [entry for entry in os.listdir(parent) if not entry.startswith(".")]
    except OSError as error:
        return f"{parent} cannot be read ({error.strerror})."
    return f"In {parent}: {nearest(missing, names)}"


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

    def size(self) -> int:
        return os.path.getsize(self.path) if self.fs is None else int(self.fs.size(self.path))

    def digest(self) -> str:
        """SHA-256 of a local file; etag and size of a remote one. DataError when it cannot be read."""
        if self.fs is None:
            from raydistill.artifacts import file_digest

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
    shown = [f for f in found if not any(part.startswith((".", "_")) for part in f.name.split("/"))]
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
