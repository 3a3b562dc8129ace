"""Storage: one place, local folder or fsspec URL, that every process of a run reads and writes.

Local writes are atomic (temporary file, then ``os.replace``), remote ones are as object stores are. Listings are never
cached, so that a reader sees what another process wrote a moment ago. A storage that is away for a while is waited for,
see outages.py. Endpoints and credentials are fsspec's own
business; s3fs takes ``AWS_ENDPOINT_URL`` and the ``AWS_*`` credentials from the environment by itself.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import fsspec
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from raydistill.errors import ArtifactError, RaydistillError
from raydistill.storage.faults import Damaged, Missing, explain, is_there, raise_unless_missing
from raydistill.storage.outages import OUTAGES, connection_options, tried_once
from raydistill.storage.redaction import redact

PARTIAL = ".part"
"""End of the name of a file that is being written; such names begin with a dot and are never listed."""
STAGING = ".staging"
Result = TypeVar("Result")
Names = list[str]  # inside Storage the name ``list`` is its method


class Storage:
    """A local folder or a URL such as ``s3://bucket/prefix``; picklable, equal by ``url``."""

    def __init__(self, url: str | os.PathLike[str]) -> None:
        text = os.fspath(url)
        if "://" not in text:
            text = os.path.abspath(os.path.expanduser(text))
        self.url = text.rstrip("/") or "/"
        self.fs: fsspec.AbstractFileSystem
        try:
            self.fs, root = url_to_fs(self.url, use_listings_cache=False, **connection_options(self.url))
        except (ImportError, ValueError, OSError) as error:
            raise ArtifactError(
                f"Cannot open the storage {redact(self.url)}: {redact(str(error))}. Use a local folder or a URL whose "
                "fsspec package is installed (s3:// needs s3fs, gs:// needs gcsfs)."
            ) from error
        self.root: str = str(root).rstrip("/")
        self.is_local = isinstance(self.fs, LocalFileSystem)
        if self.is_local:
            self.url = self.root or "/"

    def __reduce__(self) -> tuple[Callable[[str], Storage], tuple[str]]:
        return known, (self.url,)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Storage) and self.url == other.url

    def __hash__(self) -> int:
        return hash(self.url)

    def __repr__(self) -> str:
        return f"Storage({self.show()!r})"

    def path(self, *parts: str) -> str:
        """Full path for ``self.fs``; a part may hold slashes but can never leave the root (ArtifactError)."""
        for part in parts:
            check_name(part)
        return "/".join([self.root, *parts])

    def show(self, *parts: str) -> str:
        """The place as a user reads it: a local path, or a URL without credentials."""
        full = self.path(*parts)
        return full if self.is_local else redact(str(self.fs.unstrip_protocol(full)))

    def exists(self, *parts: str) -> bool:
        place = self.path(*parts)
        look = partial(is_there, place) if self.is_local else lambda: bool(self.fs.exists(place))
        return self.attempt("look for", look, *parts)

    def read_bytes(self, *parts: str) -> bytes:
        """Content of one file; Missing (an ArtifactError) where there is none."""
        return self.attempt("read", lambda: bytes(self.fs.cat_file(self.path(*parts))), *parts)

    def write_bytes(self, data: bytes, *parts: str) -> None:
        """Write one file: a reader sees the old content or the new one, also after a power cut."""
        place = self.path(*parts)
        if self.is_local:
            self.attempt("write", lambda: _replace(Path(place), partial(_write_synced, data=data)), *parts)
        else:
            self.attempt("write", lambda: self.fs.pipe_file(place, data), *parts)

    def create(self, data: bytes, *parts: str) -> bool:
        """Write one file only if there is none; False when somebody else was first (atomic on S3, GCS and memory)."""

        def create() -> bool:
            try:
                self.fs.pipe_file(self.path(*parts), data, mode="create")
            except OSError as error:  # S3 answers 409 "conflicting operation" to the slower of two simultaneous writers
                if isinstance(error, FileExistsError) or "conflict" in str(error).lower():
                    return False
                raise
            return True

        return self.attempt("write", create, *parts) or self.attempt("read", lambda: self._holds(data, *parts), *parts)

    def read_json(self, *parts: str) -> Any:
        data = self.read_bytes(*parts)
        try:
            return json.loads(data)
        except ValueError as error:
            raise Damaged(
                f"{self.show(*parts)} is damaged: it is not JSON ({error}). Delete that file and run the command again."
            ) from error

    def write_json(self, obj: Any, *parts: str) -> None:
        self.write_bytes(json.dumps(obj, indent=1, allow_nan=False).encode(), *parts)

    def delete(self, *parts: str) -> None:
        """Remove a file or a whole folder; one that is not there is fine."""
        assert parts, "delete() without a place would remove the whole storage"

        def delete() -> None:
            with suppress(FileNotFoundError):
                self.fs.rm(self.path(*parts), recursive=True)

        self.attempt("delete", delete, *parts)

    def list(self, *parts: str) -> Names:
        """Sorted names right below a place, hidden ones left out; empty where there is no such folder."""

        def entries() -> Names:
            try:
                return [str(entry) for entry in self._fresh().ls(self.path(*parts), detail=False)]
            except (FileNotFoundError, NotADirectoryError):
                return []

        names = {PurePosixPath(entry).name for entry in self.attempt("list", entries, *parts)}
        return sorted(name for name in names if name and not name.startswith("."))

    def files(self, *parts: str) -> dict[str, int]:
        """Every file below a place, at any depth: posix path relative to it (``""`` if it is a file) -> bytes."""
        return {name: int(info["size"] or 0) for name, info in self.infos(*parts).items()}

    def infos(self, *parts: str) -> dict[str, dict[str, Any]]:
        """The same as ``files`` with fsspec's own description of each file."""
        base = self.path(*parts)
        options = {"on_error": raise_unless_missing} if self.is_local else {}
        found = self.attempt("list", lambda: self._fresh().find(base, detail=True, **options), *parts)
        named = {str(full)[len(base) + 1 :]: info for full, info in found.items() if not str(full).endswith("/")}
        return {name: info for name, info in sorted(named.items()) if not _is_partial(name)}

    def upload(self, local: Path, *parts: str) -> None:
        """Copy a local file or folder to a place; each file appears whole."""
        pairs = [(p, (*parts, p.relative_to(local).as_posix())) for p in sorted(local.rglob("*")) if p.is_file()]
        if local.is_file():
            pairs = [(local, parts)]
        if self.is_local:
            for source, target in pairs:
                copy = partial(_replace, Path(self.path(*target)), partial(shutil.copyfile, source))
                self.attempt("write", copy, *target)
        elif pairs:
            sources, targets = [str(source) for source, _ in pairs], [self.path(*target) for _, target in pairs]
            self.attempt("write", lambda: self.fs.put(sources, targets), *parts)

    def download(self, local: Path, *parts: str, names: Collection[str] | None = None) -> None:
        """Copy a file, or a folder or the named files in it, to exactly ``local``; Missing where there is nothing."""
        names = [*self.files(*parts)] if names is None else names
        if not names:
            raise Missing(f"There is nothing at {self.show(*parts)}. Check `storage` and the name.")
        targets = [local / check_name(name) if name else local for name in names]
        sources = [self.path(*parts, name) if name else self.path(*parts) for name in names]

        def copy() -> None:
            for folder in {target.parent for target in targets}:
                folder.mkdir(parents=True, exist_ok=True)
            self.fs.get(sources, [str(target) for target in targets])

        self.attempt("copy", copy, *parts, to=local)

    def check(self, *, leave_nothing: bool = False) -> None:
        """Write, read and delete a small file; ArtifactError with the way out where that fails.

        Behind a URL also create it twice, which leases build on: the second one has to be refused. ``leave_nothing``:
        local folders that were not there are removed again.
        """
        staging = Path(self.path(STAGING))
        made = [
            folder for folder in (staging, *staging.parents) if leave_nothing and self.is_local and not folder.exists()
        ]
        marker = (STAGING, f"check-{uuid.uuid4().hex}")
        with tried_once():
            if self.is_local:
                self.write_bytes(b"raydistill", *marker)
            creates_twice = not self.is_local and self.create(b"raydistill", *marker) and self.create(b"two", *marker)
            content = self.read_bytes(*marker)
            self.delete(*marker)
        with suppress(OSError):  # another process uses it by now
            for folder in made:
                folder.rmdir()
        if creates_twice:
            raise ArtifactError(
                f"The storage {self.show()} creates one object twice, so that two processes would hold the same lock. "
                "Either its server ignores If-None-Match (conditional writes): use one that knows them, such as AWS S3 "
                "or a recent MinIO. Or fsspec and its package for this storage are older than 2024.12: upgrade them."
            )
        if content != b"raydistill":
            raise ArtifactError(
                f"The storage {self.show()} returns other bytes than were written. Use another `storage`."
            )

    def _fresh(self) -> fsspec.AbstractFileSystem:
        self.fs.invalidate_cache()  # use_listings_cache=False is ignored by some file systems
        return self.fs

    def attempt(self, action: str, call: Callable[[], Result], *parts: str, to: Path | None = None) -> Result:
        """Call the file system, again while it is away (outages.py). Whatever it raises in the end becomes an
        ArtifactError that names the place and the way out."""
        try:
            return OUTAGES.attempt(call, self.url)
        except RaydistillError:
            raise
        except Exception as error:
            raise explain(error, action, f"{self.show(*parts)}{f' to {to}' if to else ''}") from error

    def _holds(self, data: bytes, *parts: str) -> bool:
        """Whether a file has this content: the answer to a request that went well may have been lost."""
        with suppress(FileNotFoundError):
            return bool(self.fs.cat_file(self.path(*parts)) == data)
        return False


def known(url: str) -> Storage:
    """The storage in another process, which need not make sure once more that it answers."""
    storage = Storage(url)
    OUTAGES.know(storage.url)
    return storage


def check_name(name: str) -> str:
    """Return a relative posix path as it is; ArtifactError where it could leave the folder it is joined to."""
    if not name or "\\" in name or "\0" in name or any(step in ("", ".", "..") for step in name.split("/")):
        raise ArtifactError(f"{name!r} is not a name inside the storage. Use plain names without '..' or empty parts.")
    return name


def _is_partial(name: str) -> bool:
    last = name.rpartition("/")[2]
    return last.startswith(".") and last.endswith(PARTIAL)


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _replace(target: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside ``target``, then move it there in one step."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".{target.name}.{uuid.uuid4().hex}{PARTIAL}"
    try:
        write(temporary)
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
