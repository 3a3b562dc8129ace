"""The classes with their counts: what cannot be meant is refused, and what is doubtful is said."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Mapping

import numpy as np

from raydistill.errors import DataError
from raydistill.tasks.targets import Array, shown

MANY = 20
"""So many classes somebody has named; more that are numbers, or mostly single rows, are amounts, ids or texts."""
FEW_ROWS = 5


def balanced_weights(counts: Mapping[str, int]) -> Array:
    """Rows ÷ (classes · rows of the class), scikit-learn's: 1 on average over the rows. 1 for a class without."""
    rows = np.array(list(counts.values()))
    return np.where(rows > 0, rows.sum() / ((rows > 0).sum() * np.maximum(rows, 1)), 1.0)


def check_classes(counts: Mapping[str, int], *, configured: bool) -> list[str]:
    """Doubts about the classes of the training rows, a sentence each; ``counts``: labelled rows by class.

    Raises DataError for what cannot be meant, unless ``configured``: somebody has listed the classes.
    """
    wrong: list[str] = []
    doubts: list[str] = []
    if twins := look_alikes(counts):
        pairs = "; ".join(" and ".join(f"{name!r} ({counts[name]:,} rows)" for name in group) for group in twins[:3])
        wrong.append(f"Classes that differ in case or spaces only: {pairs}. Write each in one way.")
    is_many, single = len(counts) > MANY, [name for name, count in counts.items() if count == 1]
    mostly_single = 2 * len(single) >= len(counts)
    numbers = [number for name in counts if (number := _number(name)) is not None]
    has_fractions = any(number != int(number) for number in numbers)
    if len(numbers) == len(counts) and (is_many or has_fractions):
        sentence = (
            f"The {len(counts):,} labels are numbers ({shown(list(counts), 3)}): did you mean "
            "regression? Then set task.type=text_regression. "
            "Otherwise name another column in data.columns.label, or write a few ranges as classes."
        )
        (wrong if mostly_single or (is_many and has_fractions) else doubts).append(sentence)
    elif is_many and mostly_single:
        wrong.append(
            f"{len(single):,} of the {len(counts):,} classes have a single row ({shown(single, 3)}): is it a column of "
            "ids or texts? Name the column of the class in data.columns.label."
        )
    if wrong and not configured:
        raise DataError(" ".join([*wrong, "If every one of them is a class, list all in task.labels."]))
    if small := sorted((name for name in counts if counts[name] < FEW_ROWS), key=counts.__getitem__):
        rare = ", ".join(f"{name!r} ({counts[name]})" for name in small[:5]) + (", …" if len(small) > 5 else "")
        doubts.append(
            f"Classes of fewer than {FEW_ROWS} labelled rows: {rare}. Such a class is hardly learned and its figures "
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


def class_summary(per_class: Mapping[str, int], what: str = "classes") -> str:
    """The classes with their labelled rows in a line, the largest first."""
    largest = sorted(per_class, key=lambda name: -per_class[name])
    first = ", ".join(f"{_cut(name)} {per_class[name]:,}" for name in largest[:5])
    return f"{len(per_class):,} {what}: {first}" + (", …" if len(largest) > 5 else "")


def _cut(name: str) -> str:
    return name if len(name) <= 40 else f"{name[:39]}…"
