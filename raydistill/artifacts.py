"""Artefacts: content-addressed folders ``<storage>/<kind>/<key>/`` that are whole once their manifest.json is there.

The key hashes the recipe. The manifest is written last and names every file with size and checksum and the content
digests of the parents; readers believe nothing else. Storage itself is storage.py, what frees it is cache.py.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from raydistill.errors import ArtifactError
from raydistill.faults import Damaged, Missing, explain, is_disk_full, is_transient
from raydistill.ownership import Owner, lock
from raydistill.storage import STAGING, Storage, check_name

__all__ = [
    "FORMAT_VERSION",
    "MANIFEST",
    "Artifact",
    "Damaged",
    "FileInfo",
    "Manifest",
    "Missing",
    "Owner",
    "Storage",
    "file_digest",
    "folder_digest",
    "recipe_key",
]

FORMAT_VERSION = 2
"""Goes into every key: raise it when the content of any artefact changes meaning, and all of them are made anew."""
MANIFEST = "manifest.json"
KINDS = ("tables", "data", "tokens", "teacher", "signals", "student", "baseline", "evaluation")
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


@dataclass(frozen=True)
class Artifact:
    """One artefact of a storage, there or not yet; picklable."""

    storage: Storage
    kind: str
    key: str

    def __post_init__(self) -> None:
        for name in (self.kind, self.key):
            if not KEY.fullmatch(name):
                raise ArtifactError(
                    f"{name!r} is not a kind or key of an artefact. Use KIND/KEY as `raydistill cache ls` does."
                )

    def __str__(self) -> str:
        return f"{self.kind}/{self.key}"

    def exists(self) -> bool:
        """True once the artefact is whole."""
        return self.storage.exists(self.kind, self.key, MANIFEST)

    def manifest(self) -> Manifest:
        """The manifest; Missing where the artefact is not whole yet, Damaged where the manifest is."""
        try:
            data = self.storage.read_json(self.kind, self.key, MANIFEST)
        except Missing as error:
            raise Missing(
                f"There is no artefact {self} in {self.storage.show()}. Run the command that makes it."
            ) from error
        try:
            return Manifest.from_json(data)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise self._damaged(MANIFEST, str(error)) from error

    @property
    def digest(self) -> str:
        """Content digest, the identity that children name as their parent."""
        return self.manifest().digest

    def local(self, verify: bool = False) -> Path:
        """Local folder with the files: the artefact's own, or for a URL a copy in the node's cache ($RAYDISTILL_CACHE).

        Sizes are always checked, checksums when a file is downloaded and with ``verify``. Damaged (an
        ArtifactError) names the file that does not fit.
        """
        manifest = self.manifest()
        if not self.storage.is_local:
            from raydistill.cache import local_copy  # cache.py builds on this module

            name = f"{self.kind}-{self.key}-{manifest.digest[:16]}"
            check = partial(self.check_files, manifest)
            return local_copy(name, manifest.bytes, check, partial(self._download, manifest), verify)
        folder = Path(self.storage.path(self.kind, self.key))
        self.check_files(manifest, folder, verify)
        return folder

    def check_files(self, manifest: Manifest, folder: Path, verify: bool) -> None:
        """Compare a local folder's files with the manifest, by size or, with ``verify``, also by content."""
        paths = {name: folder / check_name(name) for name in manifest.files}
        self.check_sizes({name: path.stat().st_size for name, path in paths.items() if path.is_file()}, manifest)
        if verify:
            for name, info in manifest.files.items():
                if file_digest(paths[name]) != info.sha256:
                    raise self._damaged(name, "its content does not fit its checksum")

    def check_sizes(self, sizes: Mapping[str, int], manifest: Manifest) -> None:
        """Compare sizes by file name, bytes, with the manifest's."""
        for name, info in manifest.files.items():
            if name not in sizes:
                raise self._damaged(name, "it is missing")
            if sizes[name] != info.bytes:
                raise self._damaged(name, f"it has {sizes[name]:,} bytes instead of {info.bytes:,}")

    def _download(self, manifest: Manifest, folder: Path) -> None:
        self.check_sizes(self.storage.files(self.kind, self.key), manifest)
        if manifest.files:
            self.storage.download(folder, self.kind, self.key, names=manifest.files)

    @contextmanager
    def write(self, recipe: Mapping[str, Any], parents: Mapping[str, str] | None = None) -> Iterator[Path]:
        """Yield an empty local folder whose files become the artefact at a clean exit; after an error nothing remains.

        Where another process has made the same artefact meanwhile, that one stays and this one's files are dropped.
        """
        staging = self._staging()
        try:
            yield staging
            files = {path.relative_to(staging).as_posix(): path for path in staging.rglob("*") if path.is_file()}
            assert MANIFEST not in files, f"{MANIFEST} is written by write() itself"
            manifest = Manifest.of({name: FileInfo.of(path) for name, path in files.items()}, recipe, parents or {})
            self._commit(staging, manifest)
        except Exception as error:
            if is_disk_full(error) or (isinstance(error, OSError) and is_transient(error)):
                raise explain(error, "write", str(staging)) from error
            raise
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def seal(
        self, files: Mapping[str, FileInfo], recipe: Mapping[str, Any], parents: Mapping[str, str] | None = None
    ) -> None:
        """Write the manifest for files that ``put`` laid into the folder; an artefact that is whole stays as it is."""
        if self.exists():
            return
        manifest = Manifest.of(files, recipe, parents or {})
        self.check_sizes(self.storage.files(self.kind, self.key), manifest)
        self._write_manifest(manifest)

    def put(self, local: Path, name: str) -> FileInfo:
        """Copy one local file into the folder under ``name``, atomically; returns its size and checksum."""
        info = FileInfo.of(local)
        self.storage.upload(local, self.kind, self.key, name)
        return info

    def unseal(self) -> None:
        """Remove the manifest only: the files stay for whoever makes the artefact whole again."""
        self.storage.delete(self.kind, self.key, MANIFEST)

    def names(self) -> list[str]:
        """Names of the files in the folder, sealed or not, without the manifest and files that are being written."""
        return [name for name in self.storage.files(self.kind, self.key) if name != MANIFEST]

    def delete(self) -> None:
        """Remove the artefact; one that is not there is fine."""
        self.unseal()  # first: half of an artefact must not be believed
        self.storage.delete(self.kind, self.key)

    def _staging(self) -> Path:
        """A new folder: on the storage's own disk, so that the commit is one rename, or a temporary one for a URL."""
        folder = Path(self.storage.path(STAGING) if self.storage.is_local else tempfile.gettempdir())
        folder /= f"{self.kind}-{self.key}-{uuid.uuid4().hex[:12]}"
        self.storage.attempt("write", lambda: folder.mkdir(parents=True, exist_ok=True), self.kind, self.key)
        return folder

    def _commit(self, staging: Path, manifest: Manifest) -> None:
        with lock(self.storage, "commit", self.kind, self.key):
            if self.exists():
                return
            if not self.storage.is_local:
                self.storage.delete(self.kind, self.key)  # leftovers of a killed process
                self.storage.upload(staging, self.kind, self.key)
                if not self.exists():  # a process that took over the lock after this one stalled comes first
                    self._write_manifest(manifest)
                return
            self.storage.write_json(manifest.to_json(), STAGING, staging.name, MANIFEST)
            final = Path(self.storage.path(self.kind, self.key))

            def move() -> None:
                final.parent.mkdir(parents=True, exist_ok=True)
                shutil.rmtree(final, ignore_errors=True)  # leftovers of a killed process
                os.rename(staging, final)

            self.storage.attempt("write", move, self.kind, self.key)

    def _write_manifest(self, manifest: Manifest) -> None:
        self.storage.write_json(manifest.to_json(), self.kind, self.key, MANIFEST)

    def _damaged(self, name: str, why: str) -> Damaged:
        return Damaged(
            f"The artefact {self} is damaged: {self.storage.show(self.kind, self.key)}/{name}: {why}. "
            f"Remove it with `raydistill cache rm {self} --force` and run the command again; it is then made anew."
        )


def _combined_digest(checksums: Iterable[tuple[str, str]]) -> str:
    lines = "".join(f"{name}\0{checksum}\n" for name, checksum in sorted(checksums))
    return hashlib.sha256(lines.encode()).hexdigest()
