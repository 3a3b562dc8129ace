"""What makes a folder an artefact: its key, a hash of the recipe, and its manifest with sizes and checksums."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from raydistill.storage.storage import check_name

FORMAT_VERSION = 4
"""Goes into every key: raise it when the content of any artefact changes meaning, and all of them are made anew."""
MANIFEST = "manifest.json"
KINDS = ("tables", "data", "tokens", "teacher", "layers", "signals", "student", "baseline", "tfidf", "evaluation")
KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
"""What a kind or key looks like: one name, not hidden."""


def recipe_key(recipe: Mapping[str, Any]) -> str:
    """Key of an artefact: 20 hex characters over the canonical JSON of its recipe and the format version.

    The order of keys does not count. Values must be JSON; TypeError or ValueError (NaN) otherwise.
    """
    text = json.dumps(
        {"format": FORMAT_VERSION, "recipe": recipe}, sort_keys=True, separators=(",", ":"), allow_nan=False
    )
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_digest(folder: Path, without: Collection[str] = ()) -> str:
    """SHA-256 over the sorted (relative posix path, content) of all files in a folder but those of ``without``, hex."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return _combined_digest((name, file_digest(path)) for name, path in files.items() if name not in without)


@dataclass(frozen=True)
class FileInfo:
    """Size and SHA-256 (hex) of one file of an artefact."""

    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> FileInfo:
        return cls(path.stat().st_size, file_digest(path))


@dataclass(frozen=True)
class Manifest:
    """What makes a folder an artefact: its files, where they come from, and the digest of it all."""

    digest: str
    """Over file names and checksums; equal to ``folder_digest`` of the files."""
    files: dict[str, FileInfo]
    parents: dict[str, str]
    """Role -> content digest of what this artefact was made from."""
    recipe: dict[str, Any]
    format: int
    created: str
    """UTC, ISO 8601."""

    @classmethod
    def of(cls, files: Mapping[str, FileInfo], recipe: Mapping[str, Any], parents: Mapping[str, str]) -> Manifest:
        ordered = {check_name(name): files[name] for name in sorted(files)}
        digest = _combined_digest((name, info.sha256) for name, info in ordered.items())
        created = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(digest, ordered, dict(parents), dict(recipe), FORMAT_VERSION, created)

    @classmethod
    def from_json(cls, data: Any) -> Manifest:
        """Inverse of ``to_json``; KeyError, TypeError or ValueError where the data is no whole manifest."""
        files = {str(name): FileInfo(int(info["bytes"]), str(info["sha256"])) for name, info in data["files"].items()}
        manifest = cls(**{**data, "files": files})
        if manifest.digest != _combined_digest((name, info.sha256) for name, info in files.items()):
            raise ValueError("its digest does not fit its files")
        return manifest

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def bytes(self) -> int:
        """Size of all files together."""
        return sum(info.bytes for info in self.files.values())


def _combined_digest(checksums: Iterable[tuple[str, str]]) -> str:
    lines = "".join(f"{name}\0{checksum}\n" for name, checksum in sorted(checksums))
    return hashlib.sha256(lines.encode()).hexdigest()
