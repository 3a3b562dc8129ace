"""Files that were read once are not read again while they stay as they were: ``verified.json`` beside them notes what
they hold.

What tells that a file is as it was is its size and

- on a disk the time of its last change of any kind (ctime) beside that of its content (mtime). The kernel sets ctime at
  each write, truncation and renaming, and no program can set it back, as ``cp -p``, ``rsync -t`` and ``touch`` do with
  mtime. It moves in ticks of a few ms (NFS: as its server has it; FAT: 2 s), so a file that had changed less than
  SETTLED_SECONDS before it was read is not noted: it might change once more within the same tick.
- behind a URL the ETag, generation or checksum that the store gives each version of an object, beside its time. Where
  there is none of them only times are left, and the same holds for them as on a disk.

What has no such fact is read every time. Nothing tells of bits that rot on a disk below an unchanged file, of what a
program writes through a memory map before the kernel has noticed, or of a clock that an administrator sets back; NFS
may tell of another machine's change up to a minute late. Removing ``verified.json`` lets all be read.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime
from typing import Any

from raydistill.errors import ArtifactError
from raydistill.storage.faults import Missing
from raydistill.storage.manifest import MANIFEST, FileInfo
from raydistill.storage.storage import Storage

NOTE = "verified.json"
SETTLED_SECONDS = 2.0
VERSIONS = ("ETag", "etag", "generation", "md5Hash", "crc32c", "VersionId", "version_id")
"""What stores call that which no two versions of an object share."""
TIMES = ("mtime", "LastModified", "last_modified", "updated", "created")


class Verified:
    """The files below a place, but for its manifest, as they are now, and what the note says of those that are as they
    were."""

    def __init__(self, storage: Storage, *parts: str) -> None:
        self.storage, self.parts = storage, parts
        self.looked_at = time.time()
        self.marks = self._marks()
        self.known = {name: info for name, (info, mark) in self._noted().items() if self.marks.get(name) == mark}
        """What files hold that need not be read."""

    def unread(self, names: Collection[str] | None = None) -> list[str]:
        """Files that must be read, all or of these."""
        return [name for name in self.marks if name not in self.known and (names is None or name in names)]

    def note(self, read: Mapping[str, FileInfo | None]) -> None:
        """Remember what files held that were read since; of those that have changed meanwhile, or just before, nothing.

        A note that cannot be written costs the next one a reading, and is no error.
        """
        self.known |= {name: info for name, info in read.items() if info is not None}
        now = self._marks()
        same = {name for name in self.known if self.marks[name] is not None and now.get(name) == self.marks[name]}
        noted = {name: [asdict(self.known[name]), self.marks[name]] for name in sorted(same)}
        if noted.keys() & read.keys():
            with suppress(ArtifactError):
                self.storage.write_json(noted, *self.parts, NOTE)

    def _noted(self) -> dict[str, tuple[FileInfo, str]]:
        with suppress(Missing, ValueError, TypeError, AttributeError, ArtifactError):
            noted = self.storage.read_json(*self.parts, NOTE)
            return {name: (FileInfo(**info), str(mark)) for name, (info, mark) in noted.items()}
        return {}

    def _marks(self) -> dict[str, str | None]:
        """Of each file what changes with its content; None where nothing can be relied on."""
        found = self.storage.infos(*self.parts)
        return {name: self._mark(name, info) for name, info in found.items() if name not in (NOTE, MANIFEST)}

    def _mark(self, name: str, info: Mapping[str, Any]) -> str | None:
        if self.storage.is_local:
            try:
                about = os.stat(self.storage.path(*self.parts, name))
            except FileNotFoundError:
                return None
            mark, changed = f"{about.st_size} {about.st_mtime_ns} {about.st_ctime_ns}", about.st_ctime
        else:
            facts = {fact: str(info[fact]) for fact in ("size", *VERSIONS, *TIMES) if info.get(fact)}
            mark, changed = " ".join(f"{fact}={value}" for fact, value in facts.items()), changed_at(info)
            if not facts.keys().isdisjoint(VERSIONS):
                return mark
        return mark if changed <= self.looked_at - SETTLED_SECONDS else None


def changed_at(info: Mapping[str, Any]) -> float:
    """Time of the last change, s since 1970, from any file system's description of a file; now where it has none."""
    value = next((info[name] for name in TIMES if info.get(name)), None)
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    if isinstance(value, datetime):
        return value.timestamp()
    return float(value) if value is not None else time.time()


def read_file(storage: Storage, *parts: str) -> FileInfo | None:
    """Size and checksum of what a file holds; None where it is gone."""
    try:
        content = storage.read_bytes(*parts)
    except Missing:
        return None
    return FileInfo(len(content), hashlib.sha256(content).hexdigest())


def contents(storage: Storage, *parts: str, names: Collection[str] | None = None) -> dict[str, FileInfo]:
    """What the files below a place hold, all or those of these names; only what has changed since is read."""
    look = Verified(storage, *parts)
    look.note({name: read_file(storage, *parts, name) for name in look.unread(names)})
    return look.known
