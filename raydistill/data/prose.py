"""Which columns of a table hold free text, and which of them is the one that a row is about, by their first cells."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

MIN_LETTERS = 20
"""A column of texts has more in the mean."""
MIN_DIFFERENT = 0.1
"""Share of the cells that differ from all others; names of categories come again and again."""
AHEAD = 2.0
"""So many times as many words as the next column's make one column the evident one: a body beside its title has."""
_DENSE = re.compile(r"[\u0e00-\u0eff\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
"""Letters of scripts that put no spaces between words, or one letter a syllable; about two are a word."""
_NO_WORDS = re.compile(
    r"(?:[\W\d_]|(?<![^\W\d_])(?:mon|tue|wed|thu|fri|sat|sun|jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*"
    r"|(?<![^\W\d_])(?:am|pm|gmt|utc|t|z|\w+://\S+)(?![^\W\d_]))+",
    re.IGNORECASE,
)
"""Dates, numbers and addresses of the web, alone or several of them."""


def is_text(cells: Sequence[Any]) -> bool:
    """Whether these are free texts: of many letters in the mean, mostly several words each, mostly different; neither
    dates, numbers, addresses nor names of categories, nor objects written as JSON."""
    texts = [cell.strip() for cell in cells if isinstance(cell, str) and cell.strip()]
    letters = sum(len(text) + len(_DENSE.findall(text)) for text in texts)
    worded = [text for text in texts if num_words(text) > 1 and not _NO_WORDS.fullmatch(text) and text[0] not in "{["]
    is_varied = len({*texts}) > MIN_DIFFERENT * len(texts)
    return letters > MIN_LETTERS * len(texts) and len(worded) > len(texts) / 2 and is_varied


def num_words(text: str) -> int:
    return len(text.split()) + len(_DENSE.findall(text)) // 2


def free_texts(cells: Mapping[str, Sequence[Any]]) -> list[str]:
    """The columns that hold free text; only one where it is evident that it is meant: its cells have ``AHEAD`` times as
    many words as any other's, empty ones counted."""
    words = {
        name: sum(num_words(cell) for cell in few if isinstance(cell, str))
        for name, few in cells.items()
        if is_text(few)
    }
    ranked = sorted(words, key=lambda name: -words[name])
    is_evident = len(ranked) > 1 and words[ranked[0]] >= AHEAD * words[ranked[1]]
    return ranked[:1] if is_evident else list(words)
