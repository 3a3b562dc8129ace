"""Which run or sweep a report is wanted of, among those that a storage holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raydistill.errors import ConfigError
from raydistill.storage.runs import named, only

if TYPE_CHECKING:
    from raydistill.storage.storage import Storage

CONTENT = {"sweep": "sweep.json", "run": "results.json"}


@dataclass(frozen=True)
class Found:
    """A finished run or sweep and what its page is drawn from."""

    kind: str
    """``run`` or ``sweep``."""
    key: str
    content: dict[str, Any]


def find_finished(storage: Storage, name: str | None) -> Found:
    """The newest finished run or sweep in storage, or the one whose key, or MLflow run id, begins with ``name``.

    ConfigError where there is none, where several begin so, and for content of another version.
    """
    known = {
        key: kind for key in storage.list("runs") for kind, file in CONTENT.items() if storage.exists("runs", key, file)
    }
    if not known:
        raise ConfigError(
            f"There is no finished run or sweep in {storage.show()}. Run `raydistill distill CONFIG` or `raydistill "
            "sweep CONFIG`, or name the storage of one with --storage."
        )
    fitting = known if name is None else [only(named(storage, known, name), name, storage.show())]
    key = max(fitting, key=lambda key: storage.fs.modified(storage.path("runs", key, CONTENT[known[key]])))
    return Found(known[key], key, read_content(storage, key, known[key]))


def read_content(storage: Storage, key: str, kind: str) -> dict[str, Any]:
    from raydistill.evaluate.results import SCHEMA as RUN_SCHEMA
    from raydistill.search.summary import SCHEMA as SWEEP_SCHEMA

    known = {"run": RUN_SCHEMA, "sweep": SWEEP_SCHEMA}[kind]
    content = storage.read_json("runs", key, CONTENT[kind])
    schema = content.get("schema") if isinstance(content, dict) else None
    if not isinstance(content, dict) or schema != known:
        raise ConfigError(
            f"{storage.show('runs', key, CONTENT[kind])} has schema {schema}, and this version of raydistill reads "
            f"schema {known}. Run the same config again: what is in storage is not computed again."
        )
    return content
