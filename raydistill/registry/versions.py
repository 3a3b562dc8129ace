"""Versions of a registered model: listed, found by alias, fetched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raydistill.endpoint import sqlite_path, tracking_uri
from raydistill.errors import TrackingError
from raydistill.storage import Storage
from raydistill.tracking import open_client, reported

if TYPE_CHECKING:
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
        found: list[ModelVersion] = []
        token: str | None = None
        while page := client.search_model_versions(
            f"name = '{name}'", order_by=["version_number DESC"], page_token=token
        ):
            found.extend(page)
            token = page.token
            if not token:
                break
        if not found:
            return []
        aliases = client.get_registered_model(name).aliases  # search results have none
        return [_as_version(one, aliases) for one in found]


def version_by_alias(name: str, alias: str, uri: str) -> Version | None:
    """The version that has the alias, or None."""
    return next((version for version in list_versions(name, uri) if alias in version.aliases), None)


def _as_version(one: ModelVersion, aliases: Mapping[str, Any]) -> Version:
    held = tuple(sorted(alias for alias, number in aliases.items() if int(number) == int(one.version)))
    return Version(
        one.name, int(one.version), one.run_id or "", one.source or "", dict(one.tags), held, one.creation_timestamp
    )


def resolve_model_uri(uri: str, storage: Storage) -> Path:
    """The local folder of ``runs:/RUN/PATH``, ``models:/NAME/VERSION`` or ``models:/NAME@ALIAS``, fetched if remote.

    The store is the one that runs of ``storage`` are tracked in. Raises TrackingError where there is no such model.
    """
    address = tracking_uri(storage)
    database = sqlite_path(address)
    if database is not None and not database.is_file():
        raise TrackingError(
            f"{uri}: there is no MLflow store at {database}. Name the storage of the run with --storage, or set "
            "MLFLOW_TRACKING_URI."
        )
    with reported(address):
        client = open_client(address)
        from mlflow.artifacts import download_artifacts

        if uri.startswith("models:/"):  # MLflow looks such names up in a global registry, not in the store it is given
            name, _, version = uri.removeprefix("models:/").strip("/").partition("/")
            if "@" in name:
                name, _, alias = name.partition("@")
                version = client.get_model_version_by_alias(name, alias).version
            if not version:
                raise TrackingError(f"{uri} names no version. Write models:/{name}/VERSION or models:/{name}@ALIAS.")
            uri = client.get_model_version_download_uri(name, version)
        return Path(download_artifacts(artifact_uri=uri, tracking_uri=address))
