"""What `raydistill cache` prints: artefacts as plain rows, and their table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from raydistill.storage.garbage import Row, collect_garbage, list_artifacts, remove_artifact
from raydistill.storage.storage import Storage

if TYPE_CHECKING:
    from rich.console import Console


def listed(storage: str) -> list[dict[str, Any]]:
    return [as_dict(row) for row in list_artifacts(Storage(storage))]


def removed(storage: str, name: str, force: bool) -> dict[str, Any]:
    return as_dict(remove_artifact(Storage(storage), name, force))


def collected(storage: str, dry_run: bool, older_than_hours: float) -> tuple[list[dict[str, Any]], str | None]:
    """What went, or would go; where that is nothing, why."""
    place = Storage(storage)
    rows = collect_garbage(place, dry_run, older_than_seconds=older_than_hours * 3600)
    return [as_dict(row) for row in rows], None if rows else why_nothing(list_artifacts(place), older_than_hours)


def why_nothing(rows: Sequence[Row], older_than_hours: float) -> str:
    """What keeps the artefacts that are there, and what would free them."""
    from rich.filesize import decimal

    if not rows:
        return "There are no artefacts."
    used, young = [row for row in rows if row.used_by], [row for row in rows if not row.used_by]
    runs = len({run for row in used for run in row.used_by})
    told = []
    if young:
        size = decimal(sum(row.bytes for row in young))
        told.append(
            f"{len(young)} unused artefacts ({size}) are younger than {older_than_hours:g} hours: --older-than 0 takes "
            "them, too, if nothing runs."
        )
    if used:
        size = decimal(sum(row.bytes for row in used))
        told.append(
            f"{len(used)} artefacts ({size}) belong to {runs} runs: `raydistill runs` lists them, `raydistill runs rm` "
            "removes one."
        )
    return " ".join(told)


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


def print_freed(
    console: Console, rows: Sequence[Mapping[str, Any]], dry_run: bool = False, why: str | None = None
) -> None:
    """What went, or would go; ``why`` nothing does."""
    from rich.filesize import decimal

    for row in rows:
        print(f"{row['name']:40}  {decimal(row['bytes']):>10}")
    verb = "would be freed" if dry_run else "freed"
    console.print(f"{decimal(sum(row['bytes'] for row in rows))} {verb}", style="dim")
    if why is not None:
        console.print(why, markup=False)
