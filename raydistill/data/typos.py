"""Words, in the case of others, and as they are typed in a hurry."""

from __future__ import annotations

import random
import re

TYPO_SHARE = 0.1
"""One word in ten: 10 to 15 % of the queries that people type into a search engine hold an error (Cucerzan and Brill
2004), which here a text of one or two words does."""
WORD = re.compile(r"[^\W\d_]{2,}")
_KEYBOARD = ("qwertyuiop", "asdfghjkl", "zxcvbnm")


def _neighbours() -> dict[str, str]:
    """The letters beside each letter; a key lies between the two above it, as rows are shifted by half a key."""
    place = {(row, i): key for row, keys in enumerate(_KEYBOARD) for i, key in enumerate(keys)}
    beside = ((0, -1), (0, 1), (-1, 0), (-1, 1), (1, -1), (1, 0))
    return {key: "".join(place.get((row + r, i + c), "") for r, c in beside) for (row, i), key in place.items()}


NEIGHBOURS = _neighbours()


def in_case(word: str, other: str) -> str:
    """Another word, with a capital where the word has one."""
    return other.upper() if word.isupper() else other.capitalize() if word[0].isupper() else other


def with_typos(text: str, draw: random.Random) -> str:
    """A text of which each word has a typo with probability ``TYPO_SHARE``."""
    return WORD.sub(lambda word: typo(word[0], draw) if draw.random() < TYPO_SHARE else word[0], text)


def typo(word: str, draw: random.Random) -> str:
    """A word of two letters or more with one typo, of the kinds that change it each as likely."""
    places = {
        "swap": [i for i in range(len(word) - 1) if word[i] != word[i + 1]],
        "drop": range(len(word)),
        "double": range(len(word)),
        "neighbour": [i for i, letter in enumerate(word) if letter.lower() in NEIGHBOURS],
    }
    kind = draw.choice([kind for kind, found in places.items() if found])
    i = draw.choice(places[kind])
    letter, before, after = word[i], word[:i], word[i + 1 :]
    if kind == "swap":
        return before + after[0] + letter + after[1:]
    if kind == "drop":
        return before + after
    if kind == "double":
        return before + 2 * letter + after
    other = draw.choice(NEIGHBOURS[letter.lower()])
    return before + (other if letter.islower() else other.upper()) + after
