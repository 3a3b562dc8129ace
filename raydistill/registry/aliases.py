"""Moving ``champion`` and ``previous``, one registry call at a time: whatever is killed in between, the name keeps a
champion, and the next command ends what was begun.

MLflow's aliases have no history, so every promoted version carries a tag with the version that it replaced.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from raydistill.errors import TrackingError
from raydistill.tracking import open_client, reported

if TYPE_CHECKING:
    from mlflow import MlflowClient

CHAMPION, PREVIOUS = "champion", "previous"
REPLACED = "raydistill.replaced"
PROMOTED = "raydistill.promoted"
ROLLED_BACK = "raydistill.rolled_back"


@dataclass(frozen=True)
class Move:
    """What a rollback did; ``was`` equals ``now`` where it only ended an earlier command that was cut short."""

    was: int
    now: int
    previous: int | None


def move_champion(name: str, version: int, uri: str) -> int | None:
    """Make a version the champion and the old champion ``previous``; the old one, or None. Raises TrackingError.

    ``previous`` moves first: killed before the last step, both aliases name the old champion, which is still in place.
    """
    with reported(uri):
        client = open_client(uri)
        old = _alias(client, name, CHAMPION)
        if old == version:
            return None
        client.set_model_version_tag(name, str(version), REPLACED, "" if old is None else str(old))
        if old is not None:
            client.set_registered_model_alias(name, PREVIOUS, str(old))
        client.set_registered_model_alias(name, CHAMPION, str(version))
        client.set_model_version_tag(name, str(version), PROMOTED, _now())
    return old


def move_back(name: str, uri: str) -> Move:
    """Undo the last promotion: ``previous`` becomes champion, and what that one had replaced becomes ``previous``.

    Raises TrackingError where there is nothing to go back to.
    """
    with reported(uri):
        client = open_client(uri)
        champion, previous = _alias(client, name, CHAMPION), _alias(client, name, PREVIOUS)
        if champion is None:
            raise TrackingError(f"{name} has no champion, so there is nothing to roll back.")
        if previous == champion:  # a promotion or rollback was cut short: the champion is the right one already
            return Move(champion, champion, _set_previous(client, name, champion))
        target = previous if previous is not None else _replaced(client, name, champion)
        if target is None:
            raise TrackingError(
                f"{name} has no version before its champion (version {champion}), so there is nothing to roll back to."
            )
        if not _exists(client, name, target):
            raise TrackingError(
                f"Version {target} of {name}, which the champion (version {champion}) replaced, has been deleted. "
                f"Promote another one: raydistill promote {name} --version N."
            )
        client.set_registered_model_alias(name, CHAMPION, str(target))
        now_previous = _set_previous(client, name, target)
        client.set_model_version_tag(name, str(champion), ROLLED_BACK, _now())
    return Move(champion, target, now_previous)


def _set_previous(client: MlflowClient, name: str, champion: int) -> int | None:
    """Let ``previous`` name the version that the champion once replaced; without one it goes away."""
    older = _replaced(client, name, champion)
    if older is None or not _exists(client, name, older):
        client.delete_registered_model_alias(name, PREVIOUS)
        return None
    client.set_registered_model_alias(name, PREVIOUS, str(older))
    return older


def _replaced(client: MlflowClient, name: str, version: int) -> int | None:
    tag = client.get_model_version(name, str(version)).tags.get(REPLACED)
    return int(tag) if tag else None


def _alias(client: MlflowClient, name: str, alias: str) -> int | None:
    version = client.get_registered_model(name).aliases.get(alias)
    return None if version is None else int(version)


def _exists(client: MlflowClient, name: str, version: int) -> bool:
    return bool(client.search_model_versions(f"name = '{name}' and version_number = '{version}'"))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
