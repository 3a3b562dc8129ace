"""The labels with their counts on the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from raydistill.evaluate.report.scales import cut
from raydistill.tasks.token_classification.words import OUTSIDE, is_prefixed

if TYPE_CHECKING:
    from rich.console import Console

SHOWN = 20
"""Rows of the table."""
MAX_NAME = 40


def print_labels(console: Console, per_class: Mapping[str, Mapping[str, int]]) -> None:
    """Print a table of the labelled rows by label and split; of many labels the largest and the smallest.

    Nothing where the task does not count them.
    """
    if not any(per_class.values()):
        return
    from rich.table import Table
    from rich.text import Text

    per_class = {split: without_prefix(counts) for split, counts in per_class.items()}
    names = list(per_class["train"])
    table = Table("label", box=None, pad_edge=False)
    for split in per_class:
        table.add_column(split, justify="right")
    if len(names) > SHOWN:
        names.sort(key=lambda name: -per_class["train"][name])
    for i, name in enumerate(names):
        if len(names) > SHOWN and i == SHOWN // 2:
            table.add_row(f"… {len(names) - SHOWN:,} more", *("…" for _ in per_class))
        if len(names) <= SHOWN or not SHOWN // 2 <= i < len(names) - SHOWN // 2:
            table.add_row(Text(cut(name, MAX_NAME)), *(f"{counts.get(name, 0):,}" for counts in per_class.values()))
    console.print(table)


def without_prefix(counts: Mapping[str, int]) -> Mapping[str, int]:
    """Counts of words by what they are part of, where their labels say by B- and I- where an entity begins."""
    if OUTSIDE not in counts or not is_prefixed([*counts]):
        return counts
    found: dict[str, int] = {}
    for name, number in counts.items():
        plain = name if name == OUTSIDE else name[2:]
        found[plain] = found.get(plain, 0) + number
    return found
