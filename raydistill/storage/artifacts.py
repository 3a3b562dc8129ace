"""Artefacts: content-addressed folders ``<storage>/<kind>/<key>/`` that are whole once their manifest.json is there.

The key hashes the recipe. The manifest is written last and names every file with size and checksum and the content
digests of the parents; readers believe nothing else. Storage itself is storage.py, what frees it is garbage.py.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from raydistill.errors import ArtifactError
from raydistill.storage.faults import Damaged, Missing, explain, is_disk_full, is_transient
from raydistill.storage.locks import lock
from raydistill.storage.manifest import KEY, MANIFEST, FileInfo, Manifest, recipe_key
from raydistill.storage.node_cache import local_copy
from raydistill.storage.storage import STAGING, Storage, check_name
from raydistill.storage.verified import NOTE, contents


@dataclass(frozen=True)
class Artifact:
    """One artefact of a storage, there or not yet; picklable."""

    storage: Storage
    kind: str
    key: str
    recipe: Mapping[str, Any] | None = field(default=None, compare=False, repr=False)
    """What determines its content; None where it is named by its key alone, by which it can only be read."""
    parents: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)
    """Role -> content digest of what it is made from."""

    @classmethod
    def of(
        cls, storage: Storage, kind: str, recipe: Mapping[str, Any], parents: Mapping[str, str] | None = None
    ) -> Artifact:
        """The artefact that is made by ``recipe``, JSON, from ``parents``."""
        return cls(storage, kind, recipe_key(recipe), recipe, parents or {})

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

        Sizes are always checked, checksums when a file is downloaded and, unless it is unchanged since they were last
        (verified.py), with ``verify``. Damaged (an
        ArtifactError) names the file that does not fit.
        """
        manifest = self.manifest()
        if not self.storage.is_local:
            name = f"{self.kind}-{self.key}-{manifest.digest[:16]}"
            check = partial(self.check_files, manifest)
            return local_copy(name, manifest.bytes, check, partial(self._download, manifest), verify)
        folder = Path(self.storage.path(self.kind, self.key))
        self.check_files(manifest, folder, verify)
        return folder

    def check_files(self, manifest: Manifest, folder: Path, verify: bool) -> None:
        """Compare a local folder's files with the manifest, by size or, with ``verify``, also by content: what has
        changed since it was last read is read."""
        paths = {name: folder / check_name(name) for name in manifest.files}
        self.check_sizes({name: path.stat().st_size for name, path in paths.items() if path.is_file()}, manifest)
        if verify:
            found = contents(Storage(folder), names=manifest.files)
            for name, info in manifest.files.items():
                if found.get(name) != info:
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
    def write(self) -> Iterator[Path]:
        """Yield an empty local folder whose files become the artefact at a clean exit; after an error nothing remains.

        Where another process has made the same artefact meanwhile, that one stays and this one's files are dropped.
        """
        staging = self._staging()
        try:
            yield staging
            files = {path.relative_to(staging).as_posix(): path for path in staging.rglob("*") if path.is_file()}
            assert MANIFEST not in files, f"{MANIFEST} is written by write() itself"
            self._commit(staging, self._manifest_of({name: FileInfo.of(path) for name, path in files.items()}))
        except Exception as error:
            if is_disk_full(error) or (isinstance(error, OSError) and is_transient(error)):
                raise explain(error, "write", str(staging)) from error
            raise
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def seal(self, files: Mapping[str, FileInfo]) -> None:
        """Write the manifest for files that ``put`` laid into the folder; an artefact that is whole stays as it is."""
        if self.exists():
            return
        manifest = self._manifest_of(files)
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
        """Names of the files in the folder, sealed or not, without manifest, note and files that are being written."""
        return [name for name in self.storage.files(self.kind, self.key) if name not in (MANIFEST, NOTE)]

    def delete(self) -> None:
        """Remove the artefact; one that is not there is fine."""
        self.unseal()  # first: half of an artefact must not be believed
        self.storage.delete(self.kind, self.key)

    def _manifest_of(self, files: Mapping[str, FileInfo]) -> Manifest:
        assert self.recipe is not None, f"{self} is named by its key alone"
        return Manifest.of(files, self.recipe, self.parents)

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
