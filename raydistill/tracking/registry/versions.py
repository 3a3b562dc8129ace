"""Versions of a registered model: listed, found by alias, fetched."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raydistill.errors import UnknownName
from raydistill.storage.redaction import redact
from raydistill.storage.storage import Storage
from raydistill.tracking.endpoint import sqlite_path, tracking_uri
from raydistill.tracking.runs import all_pages, open_client, prepare_store, reported

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion


@dataclass(frozen=True)
class Version:
    """One registered student; ``created`` in milliseconds since 1970."""

    name: str
    version: int
    run_id: str
    source: str
    tags: dict[str, str]
    aliases: tuple[str, ...]
    created: int


def list_versions(name: str, uri: str) -> list[Version]:
    """All versions of a registered model in the store ``uri``, newest first; none where the name is unknown."""
    with reported(uri):
        client = open_client(uri)
        order = ["version_number DESC"]
        found = list(all_pages(client.search_model_versions, f"name = '{name}'", order_by=order))
        if not found:
            return []
        aliases = client.get_registered_model(name).aliases  # search results have none
        return [_as_version(one, aliases) for one in found]


def model_names(uri: str) -> list[str]:
    """Names of the registered models in the store ``uri``, sorted."""
    with reported(uri):
        return sorted(model.name for model in all_pages(open_client(uri).search_registered_models))


def version_by_alias(name: str, alias: str, uri: str) -> Version | None:
    """The version that has the alias, or None."""
    return next((version for version in list_versions(name, uri) if alias in version.aliases), None)


def aliases_of(one: ModelVersion, aliases: Mapping[str, Any]) -> tuple[str, ...]:
    """The aliases of a version among those of its registered model, sorted."""
    return tuple(sorted(alias for alias, number in aliases.items() if int(number) == int(one.version)))


def _as_version(one: ModelVersion, aliases: Mapping[str, Any]) -> Version:
    number, held = int(one.version), aliases_of(one, aliases)
    return Version(one.name, number, one.run_id or "", one.source or "", dict(one.tags), held, one.creation_timestamp)


def version_named(uri: str, store: str) -> Version:
    """The version that ``models:/NAME/VERSION`` or ``models:/NAME@ALIAS`` names. Raises TrackingError."""
    name, _, number = uri.removeprefix("models:/").strip("/").partition("/")
    name, _, alias = name.partition("@")
    if not number and not alias:
        raise UnknownName(f"{uri} names no version. Write models:/{name}/VERSION or models:/{name}@ALIAS.")
    found = list_versions(name, store)
    for version in found:
        if alias in version.aliases if alias else str(version.version) == number:
            return version
    what = f"alias {alias!r}" if alias else f"version {number!r}"
    if not found:
        raise UnknownName(f"{uri}: there is no registered model {name!r} at {redact(store)}.")
    raise UnknownName(f"{uri}: {name} has no {what}. `raydistill registry {name}` lists what it has.")


def run_tags(run_id: str, uri: str) -> dict[str, str] | None:
    """Tags of a run; None where there is no such run. Raises TrackingError."""
    run = find_run(run_id, uri)
    return None if run is None else dict(run.data.tags)


def find_run(run_id: str, uri: str) -> Run | None:
    """MLflow's run; None where there is no such run. Raises TrackingError."""
    with reported(uri):
        from mlflow.exceptions import MlflowException

        try:
            return open_client(uri).get_run(run_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise


def run_file(run_id: str, path: str, into: Path, uri: str) -> Path | None:
    """A copy below ``into`` of one file among a run's artefacts; None where it has no such file."""
    with reported(uri):
        client = open_client(uri)
        folder = path.rpartition("/")[0]
        if path not in {file.path for file in client.list_artifacts(run_id, folder or None)}:
            return None
        return Path(client.download_artifacts(run_id, path, str(into)))


def existing_store(storage: Storage) -> str:
    """Address of the store that runs of ``storage`` are tracked in; TrackingError where there is none yet."""
    address = tracking_uri(storage)
    database = sqlite_path(address)
    if database is not None and not database.is_file():
        raise UnknownName(
            f"There is no MLflow store at {database}. Name the storage of the runs with --storage, or set "
            "MLFLOW_TRACKING_URI."
        )
    return address


def open_store(storage: Storage) -> str:
    """Address of the store beside a storage, which has to be there and to answer. Raises TrackingError."""
    uri = existing_store(storage)
    prepare_store(uri)
    return uri


def known_versions(name: str, uri: str) -> list[Version]:
    """All versions of a registered model, newest first; TrackingError, with the names there are, where it has none."""
    found = list_versions(name, uri)
    if not found:
        names = model_names(uri)
        place, way_out = redact(uri), "`registry.name` in a config registers the student of a run."
        if not names:
            raise UnknownName(f"There is no registered model {name!r}: none is registered at {place}. {way_out}")
        raise UnknownName(
            f"There is no registered model {name!r} with a version at {place}. It has {', '.join(names[:10])}. "
            f"{way_out}"
        )
    return found


def resolve_model_uri(uri: str, storage: Storage, into: Path | None = None) -> Path:
    """A local copy of ``runs:/RUN/PATH``, ``models:/NAME/VERSION`` or ``models:/NAME@ALIAS``.

    It lies below ``into``, or in a temporary folder that goes when the process ends. The store is the one that runs of
    ``storage`` are tracked in. Raises TrackingError where there is no such model.
    """
    address = existing_store(storage)
    with reported(address):
        client = open_client(address)
        from mlflow.artifacts import download_artifacts

        if uri.startswith("models:/"):  # MLflow looks such names up in a global registry, not in the store it is given
            version = version_named(uri, address)
            uri = client.get_model_version_download_uri(version.name, str(version.version))
        elif find_run(uri.removeprefix("runs:/").partition("/")[0], address) is None:
            raise UnknownName(f"{uri}: there is no such run. `raydistill runs` lists them.")
        if into is None:
            into = Path(tempfile.mkdtemp(prefix="raydistill-"))
            atexit.register(shutil.rmtree, into, ignore_errors=True)
        return Path(download_artifacts(artifact_uri=uri, tracking_uri=address, dst_path=str(into)))
