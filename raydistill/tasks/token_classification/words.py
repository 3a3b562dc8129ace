"""Words of a text, by their places in it, and the schemes by which labels of words say entities."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from raydistill.tasks.targets import Array

OUTSIDE = "O"
WORD_TYPE = np.int32
"""Of units (M, 3): begin and end in the text, label."""
_SINGLE = r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]"
"""Letters of scripts without spaces between words: each is a word of its own."""
FINE = rf"{_SINGLE}|(?:(?!{_SINGLE})\w)+|[^\w\s]"
"""Letters and digits together, and each other character alone: New, York, -, based."""
WHOLE = rf"{_SINGLE}|(?:(?!{_SINGLE})\w)+(?:[-.,'’&/@_:](?:(?!{_SINGLE})\w)+)*|[^\w\s]"
"""The same, but words with signs inside are whole, as corpora have them: U.S, 3.5, Jean-Luc, don't."""
_BIO = re.compile(r"[BILESUM]-.+")
_TO_IOB2 = {"S": "B", "U": "B", "E": "I", "L": "I", "M": "I"}


def split(text: str, pattern: str = FINE, borders: Sequence[int] = ()) -> Array:
    """Begin and end of each word that a pattern finds, (m, 2); cut at ``borders`` (of annotated spans), too."""
    from raydistill.models.scorer import word_places  # it also runs where raydistill is not

    places, at = word_places(text, pattern), sorted(set(borders))
    cut: list[tuple[int, int]] = []
    for start, end in places:
        inside = at[bisect_right(at, start) : bisect_left(at, end)] if at else []
        cut += pairwise([start, *inside, end])
    return np.array(cut, WORD_TYPE).reshape(-1, 2)


def is_prefixed(tags: Sequence[str]) -> bool | None:
    """Whether these labels say by a prefix (B-, I-, …) where an entity begins; None where only some do."""
    found = {_BIO.fullmatch(tag) is not None for tag in tags if tag != OUTSIDE}
    return None if len(found) > 1 else True in found


def to_iob2(tags: Sequence[str], *, is_iob1: bool = False) -> list[str]:
    """A row's labels of any scheme with prefixes as IOB2; of IOB1 an I- that continues nothing begins an entity."""
    made: list[str] = []
    for tag in tags:
        if tag != OUTSIDE:
            prefix, kind = tag[:1], tag[2:]
            prefix = _TO_IOB2.get(prefix, prefix)
            if is_iob1 and prefix == "I" and not continues(made, kind):
                prefix = "B"
            tag = f"{prefix}-{kind}"
        made.append(tag)
    return made


def stray(tags: Sequence[str]) -> int | None:
    """The first word whose I- continues no entity of its type; None where there is none."""
    wrong = (i for i, tag in enumerate(tags) if tag[:2] == "I-" and not continues(tags[:i][-1:], tag[2:]))
    return next(wrong, None)


def continues(before: Sequence[str], kind: str) -> bool:
    """Whether an I- of this type may follow."""
    return bool(before) and before[-1] != OUTSIDE and before[-1][2:] == kind


class Scheme:
    """What labels mean: ``iob2``, ``io`` (neighbours with one label are one entity), ``words`` (each word is one)."""

    def __init__(self, name: str, outputs: Sequence[str]) -> None:
        self.name = name
        bare = [tag[2:] if name == "iob2" and tag != OUTSIDE else tag for tag in outputs]
        self.plain = dict(zip(outputs, bare, strict=True))
        """Each label without its prefix."""
        self.types = tuple(dict.fromkeys(kind for kind in bare if kind != OUTSIDE))
        """Types of entities, in the order of the labels."""
        place = {kind: i for i, kind in enumerate(self.types)}
        self._type = np.array([place.get(kind, -1) for kind in bare], np.int64)
        self._begins = np.array([name == "words" or (name == "iob2" and tag[:2] == "B-") for tag in outputs])

    @classmethod
    def of(cls, outputs: Sequence[str]) -> str:
        """The scheme that labels speak of."""
        return "iob2" if is_prefixed(outputs) else "io" if OUTSIDE in outputs else "words"

    def entities(self, tags: Array, rows: Array) -> tuple[Array, Array, Array]:
        """First word, the word after the last, and type of each entity, of the labels (M,) of words in ``rows`` (M,).

        Strict: under IOB2 an I- that continues no entity of its type belongs to none.
        """
        kind, begins = self._type[tags], self._begins[tags]
        linked = np.zeros(len(tags), bool)
        linked[1:] = (kind[1:] == kind[:-1]) & (kind[1:] >= 0) & (rows[1:] == rows[:-1]) & ~begins[1:]
        starts = np.flatnonzero(~linked)
        ends = np.append(starts[1:], len(tags))
        kept = (kind[starts] >= 0) & (begins[starts] | (self.name == "io"))
        return starts[kept], ends[kept], kind[starts][kept]
