"""Rows whose labels cannot be read: all are looked at, and then refused together, by their numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from raydistill.errors import DataError

MOST_ROWS = 3


class Wrong(Exception):
    """What is wrong with a row, for its reader to collect; no user ever sees one."""


def refuse(wrong: Mapping[str, Sequence[int | str]], where: str, what: str = "row") -> None:
    """DataError that names rows by their numbers, or what else there is by its name, the most frequent reason first."""
    if not wrong:
        return
    count = sum(map(len, wrong.values()))
    ordered = sorted(wrong.items(), key=lambda entry: -len(entry[1]))[:MOST_ROWS]
    told = [
        f"{what}{'s' * (len(rows) > 1)} {', '.join(map(str, rows[:MOST_ROWS]))}{', …' * (len(rows) > MOST_ROWS)}: "
        + why.rstrip(".")
        for why, rows in ordered
    ]
    raise DataError(f"{count:,} {what}{'s' * (count > 1)} of {where} cannot be used; {'; '.join(told)}.")
