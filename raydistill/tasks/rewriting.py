"""Rows written otherwise, of which the parts that are predicted keep their labels: each part is rewritten by itself.

What is done to a piece of text is a function: ``data.perturbations`` gives one for each row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from raydistill.tasks.targets import Array, Ragged

Rewrite = Callable[[str], str]


def unit_by_unit(texts: Sequence[str], units: Ragged, rewrites: Sequence[Rewrite]) -> tuple[list[str], Ragged]:
    """Texts whose units, (M, K) with begin and end in the text first, are rewritten each by itself, and the units at
    their new places; what stands between them stays."""
    written, places = [], units.flat.copy()
    for row, (text, rewrite) in enumerate(zip(texts, rewrites, strict=True)):
        made, last = "", 0
        for number, (begin, end) in enumerate(units[row][:, :2].tolist(), int(units.starts[row])):
            made += text[last:begin]
            places[number, 0] = len(made)
            made += rewrite(text[begin:end])
            places[number, 1], last = len(made), end
        written.append(made + text[last:])
    return written, Ragged(places, units.lengths)


def first_half(texts: Sequence[str], units: Ragged) -> tuple[list[str], Ragged]:
    """Texts up to the end of the first half of their units, rounded up, and those units."""
    kept = first_units(units, (units.lengths + 1) // 2)
    ends = [int(kept[row][-1, 1]) if kept.lengths[row] else len(text) for row, text in enumerate(texts)]
    return [text[:end] for text, end in zip(texts, ends, strict=True)], kept


def first_units(rows: Ragged, lengths: Array) -> Ragged:
    """Of each row the first so many units."""
    place = np.arange(len(rows.flat)) - np.repeat(rows.starts, rows.lengths)
    return Ragged(rows.flat[place < np.repeat(lengths, rows.lengths)], lengths)


def moved(text: str, place: int, rewrite: Rewrite) -> int:
    """Where a place in a text lies once the text is rewritten, letter by letter; below 0 it is none."""
    return place if place < 0 else len(rewrite(text[:place]))
