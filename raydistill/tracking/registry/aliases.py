"""Moving ``champion`` and ``previous``, one registry call at a time: whatever is killed in between, the name keeps a
champion, and the next command ends what was begun.

MLflow's aliases have no history, so every promoted version carries a tag with the version that it replaced.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from raydistill.errors import TrackingError
from raydistill.tracking.runs import open_client, reported

if TYPE_CHECKING:
    from mlflow import MlflowClient

CHAMPION, PREVIOUS = "champion", "previous"
REPLACED = "raydistill.replaced"
PROMOTED = "raydistill.promoted"
ROLLED_BACK = "raydistill.rolled_back"


@dataclass(frozen=True)
class Move:
    """What a rollback did; ``was`` equals ``now`` where it only ended an earlier command that was cut short, and is
    None where the champion's version had been deleted."""

    was: int | None
    now: int
    previous: int | None


def move_champion(name: str, version: int, old: int | None, uri: str) -> None:
    """Make a version the champion instead of ``old``, which becomes ``previous``.

    ``previous`` moves first: killed before the last step, both aliases name the old champion, which is still in place.
    Raises TrackingError where another process has moved the alias; MLflow has no compare-and-set, so two that move it
    within the same milliseconds are told apart afterwards only.
    """
    with reported(uri):
        client = open_client(uri)
        _expect(name, old, _alias(client, name, CHAMPION))
        client.set_model_version_tag(name, str(version), REPLACED, "" if old is None else str(old))
        if old is not None:
            client.set_registered_model_alias(name, PREVIOUS, str(old))
        _expect(name, old, _alias(client, name, CHAMPION))
        client.set_registered_model_alias(name, CHAMPION, str(version))
        client.set_model_version_tag(name, str(version), PROMOTED, _now())
        _expect(name, version, _alias(client, name, CHAMPION))


def move_back(name: str, uri: str) -> Move:
    """Undo the last promotion: ``previous`` becomes champion, and what that one had replaced becomes ``previous``.

    Raises TrackingError where there is nothing to go back to.
    """
    with reported(uri):
        client = open_client(uri)
        champion, previous = _alias(client, name, CHAMPION), _alias(client, name, PREVIOUS)
        if champion is None and previous is None:
            raise TrackingError(f"{name} has no champion, so there is nothing to roll back.")
        if champion is None:  # its version was deleted, and the alias with it
            assert previous is not None
            client.set_registered_model_alias(name, CHAMPION, str(previous))
            return Move(None, previous, _set_previous(client, name, previous))
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
        client.set_model_version_tag(name, str(champion), REPLACED, "")  # or promotions of old versions make a circle
        client.set_model_version_tag(name, str(champion), ROLLED_BACK, _now())
    return Move(champion, target, now_previous)


def expect_champion(name: str, wanted: int | None, uri: str) -> None:
    """Raises TrackingError where the champion is another version by now."""
    with reported(uri):
        _expect(name, wanted, _alias(open_client(uri), name, CHAMPION))


def _expect(name: str, wanted: int | None, found: int | None) -> None:
    if wanted != found:
        was, is_now = ("none" if version is None else f"version {version}" for version in (wanted, found))
        raise TrackingError(
            f"The champion of {name} was moved by another process: it was {was} and is now {is_now}. Look with "
            f"`raydistill registry {name}`, then run the same command again."
        )


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
