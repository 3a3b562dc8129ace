"""What `raydistill cache` prints: artefacts as plain rows, and their table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from raydistill.cache import Row, collect_garbage, list_artifacts, remove_artifact
from raydistill.storage import Storage

if TYPE_CHECKING:
    from rich.console import Console


def listed(storage: str) -> list[dict[str, Any]]:
    return [as_dict(row) for row in list_artifacts(Storage(storage))]


def removed(storage: str, name: str, force: bool) -> dict[str, Any]:
    return as_dict(remove_artifact(Storage(storage), name, force))


def collected(storage: str, dry_run: bool, older_than_hours: float) -> list[dict[str, Any]]:
    rows = collect_garbage(Storage(storage), dry_run, older_than_seconds=older_than_hours * 3600)
    return [as_dict(row) for row in rows]


def as_dict(row: Row) -> dict[str, Any]:
    return {
        "name": f"{row.kind}/{row.key}",
        "bytes": row.bytes,
        "created": row.created,
        "used_by": list(row.used_by),
        "whole": row.sealed,
    }


def print_rows(console: Console, rows: Sequence[Mapping[str, Any]]) -> None:
    """One line an artefact and the sum."""
    from rich.filesize import decimal

    for row in rows:
        runs = f"{len(row['used_by'])} run(s)" if row["used_by"] else "unused" if row["whole"] else "not finished"
        print(f"{row['name']:40}  {decimal(row['bytes']):>10}  {row['created'][:19]}  {runs}")
    console.print(f"{len(rows)} artefacts, {decimal(sum(row['bytes'] for row in rows))}", style="dim")


def print_freed(console: Console, rows: Sequence[Mapping[str, Any]], dry_run: bool) -> None:
    """What went, or would go."""
    from rich.filesize import decimal

    for row in rows:
        print(f"{row['name']:40}  {decimal(row['bytes']):>10}")
    verb = "would be freed" if dry_run else "freed"
    console.print(f"{decimal(sum(row['bytes'] for row in rows))} {verb}", style="dim")
