"""Who may write into a run folder: its newest owner; and which storage it is."""

from __future__ import annotations

import uuid
from contextlib import suppress
from dataclasses import dataclass

from raydistill.errors import StaleOwner
from raydistill.storage.faults import Missing
from raydistill.storage.locks import lock
from raydistill.storage.storage import Storage


@dataclass(frozen=True)
class Owner:
    """Proof that this process is the run folder's newest one; picklable, handed to the workers."""

    storage: Storage
    folder: tuple[str, ...]
    number: int
    token: str

    @classmethod
    def acquire(cls, storage: Storage, *parts: str) -> Owner:
        """Take over the run folder ``parts``: every earlier owner is stale from now on."""
        with lock(storage, "owner", *parts):
            try:
                previous = int(storage.read_json(*parts, "owner.json")["number"])
            except Missing:
                previous = 0
            owner = cls(storage, parts, previous + 1, uuid.uuid4().hex)
            storage.write_json({"number": owner.number, "token": owner.token}, *parts, "owner.json")
        return owner

    def check(self) -> None:
        """Return if this is still the newest owner; StaleOwner otherwise. One small read."""
        try:
            newest = self.storage.read_json(*self.folder, "owner.json")
        except Missing as error:
            raise StaleOwner(
                f"The run folder {self._place()} was removed while this process used it; it stops."
            ) from error
        if (newest["number"], newest["token"]) != (self.number, self.token):
            raise StaleOwner(
                f"Process number {newest['number']} has taken over the run folder {self._place()} from this one "
                f"(number {self.number}), which therefore writes nothing more. Let the newer one finish."
            )

    def _place(self) -> str:
        return self.storage.show(*self.folder)


def identity(storage: Storage) -> str:
    """What tells a storage from every other one, wherever it is mounted: 32 hex digits, drawn when first asked for."""
    name = "storage.json"
    with suppress(Missing):
        return str(storage.read_json(name)["id"])
    with lock(storage, name):
        if not storage.exists(name):
            storage.write_json({"id": uuid.uuid4().hex}, name)
    return str(storage.read_json(name)["id"])
