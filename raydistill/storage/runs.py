"""Runs in storage, by what people call them: the beginning of a key, or of their MLflow run's id."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from raydistill.errors import ConfigError
from raydistill.storage.storage import Storage

MIN_ID = 6  # characters of an MLflow run's id
RUN = "run:"
LINKS = (RUN, "runs:/", "models:/")
"""Beginnings of the names of models that runs have made."""


def only(fitting: Sequence[str], name: str, where: str) -> str:
    """The one key that a name means. Raises ConfigError where there are none or several."""
    if len(fitting) == 1:
        return fitting[0]
    which = f"{len(fitting)} runs begin with {name!r}: {', '.join(fitting[:5])}" if fitting else f"No run {name!r}"
    raise ConfigError(f"{which} in {where}. Name one by the beginning of its key; `raydistill runs` lists them.")


def named(storage: Storage, known: Iterable[str], name: str) -> list[str]:
    """The key of that name; without one keys that begin with it; if none does, those of MLflow runs whose id does."""
    known = list(known)  # a sweep's key begins those of the sweeps that --fresh began beside it
    fitting = [name] if name in known else [key for key in known if key.startswith(name)]
    if fitting or len(name) < MIN_ID:
        return fitting
    return [key for key in known if (run_id(storage, key) or "").startswith(name)]


def run_id(storage: Storage, key: str) -> str | None:
    """The id of a run in MLflow."""
    parts = ("runs", key, "run.json")
    return storage.read_json(*parts).get("run_id") if storage.exists(*parts) else None
