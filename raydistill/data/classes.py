"""The classes with their counts: what cannot be meant is refused, what is doubtful is said, and all of it is shown."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from raydistill.errors import DataError

if TYPE_CHECKING:
    from rich.console import Console

MANY = 20
"""So many classes somebody has named; more that are numbers, or mostly single rows, are amounts, ids or texts."""
FEW_ROWS = 5
SHOWN = 20
"""Rows of the table."""


def check_classes(counts: Mapping[str, int], *, configured: bool) -> list[str]:
    """Doubts about the classes of the training rows, a sentence each; ``counts``: labelled rows by class.

    Raises DataError for what cannot be meant, unless ``configured``: somebody has listed the classes.
    """
    wrong: list[str] = []
    doubts: list[str] = []
    if twins := look_alikes(counts):
        shown = "; ".join(" and ".join(f"{name!r} ({counts[name]:,} rows)" for name in group) for group in twins[:3])
        wrong.append(f"Classes that differ in case or spaces only: {shown}. Write each in one way.")
    is_many, single = len(counts) > MANY, [name for name, count in counts.items() if count == 1]
    mostly_single = 2 * len(single) >= len(counts)
    numbers = [number for name in counts if (number := _number(name)) is not None]
    has_fractions = any(number != int(number) for number in numbers)
    if len(numbers) == len(counts) and (is_many or has_fractions):
        sentence = (
            f"The {len(counts):,} labels are numbers ({_shown(list(counts))}): did you mean regression? There are only "
            "classes here. Name another column in data.columns.label, or write a few ranges as classes."
        )
        (wrong if mostly_single or (is_many and has_fractions) else doubts).append(sentence)
    elif is_many and mostly_single:
        wrong.append(
            f"{len(single):,} of the {len(counts):,} classes have a single row ({_shown(single)}): is it a column of "
            "ids or texts? Name the column of the class in data.columns.label."
        )
    if wrong and not configured:
        raise DataError(" ".join([*wrong, "If every one of them is a class, list all in task.labels."]))
    if small := sorted((name for name in counts if counts[name] < FEW_ROWS), key=counts.__getitem__):
        shown = ", ".join(f"{name!r} ({counts[name]})" for name in small[:5]) + (", …" if len(small) > 5 else "")
        doubts.append(
            f"Classes of fewer than {FEW_ROWS} labelled rows: {shown}. Such a class is hardly learned and its figures "
            "mean little; add rows, or join it with another."
        )
    return wrong + doubts


def look_alikes(names: Iterable[str]) -> list[list[str]]:
    """Groups of names that are the same without regard to case, spaces and Unicode form."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(" ".join(unicodedata.normalize("NFKC", name).casefold().split()), []).append(name)
    return [sorted(group) for group in groups.values() if len(group) > 1]


def _number(name: str) -> float | None:
    try:
        number = float(name.replace(",", ".", 1))
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _shown(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names[:3]) + (", …" if len(names) > 3 else "")


def class_summary(per_class: Mapping[str, int]) -> str:
    """The classes with their labelled rows in a line, the largest first."""
    largest = sorted(per_class, key=lambda name: -per_class[name])
    shown = ", ".join(f"{_cut(name)} {per_class[name]:,}" for name in largest[:5])
    return f"{len(per_class):,} classes: {shown}" + (", …" if len(largest) > 5 else "")


def print_classes(console: Console, per_class: Mapping[str, Mapping[str, int]]) -> None:
    """Print a table of the labelled rows by class and split; of many classes the largest and the smallest."""
    from rich.table import Table
    from rich.text import Text

    names = list(per_class["train"])
    table = Table("class", box=None, pad_edge=False)
    for split in per_class:
        table.add_column(split, justify="right")
    if len(names) > SHOWN:
        names.sort(key=lambda name: -per_class["train"][name])
    for i, name in enumerate(names):
        if len(names) > SHOWN and i == SHOWN // 2:
            table.add_row(f"… {len(names) - SHOWN:,} more", *("…" for _ in per_class))
        if len(names) <= SHOWN or not SHOWN // 2 <= i < len(names) - SHOWN // 2:
            table.add_row(Text(_cut(name)), *(f"{counts.get(name, 0):,}" for counts in per_class.values()))
    console.print(table)


def _cut(name: str) -> str:
    return name if len(name) <= 40 else f"{name[:39]}…"
