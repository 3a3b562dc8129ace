"""Texts of any length as rows of at most so many tokens, for tasks with several predictions a text: nothing is cut off.

Windows of a long text overlap. Each unit, a word say, belongs to the window in which it is farthest from a border, so
that every one has exactly one row, and rows put together again have no seams.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raydistill.errors import ConfigError
from raydistill.tasks.targets import Array, Ragged, as_column

TEXTS_PER_CALL = 1000
"""Of the tokenizer: bounds its memory."""
FAR = 10**9


def encode_windows(
    tokenizer: Any, texts: Sequence[str], units: Ragged, max_length: int, overlap: int, pad: int
) -> dict[str, pa.Array]:
    """Columns input_ids[, token_type_ids], unit (the position in its row of the first token of each unit), target (its
    values) and example_id (the text), of the windows of all texts in their order.

    ``units``: of the texts, (M, K), begin and end in the text first. Raises ConfigError for an ``overlap`` that leaves
    no room.
    """
    room = max_length - tokenizer.num_special_tokens_to_add()
    if overlap >= room:
        raise ConfigError(
            f"task.stride is {overlap}, but of data.max_length ({max_length}) only {room} tokens are the text's. Lower "
            "the one, or raise the other."
        )
    ids: list[list[int]] = []
    types: list[list[int]] = []
    places: list[Array] = []
    values: list[Array] = []
    examples: list[int] = []
    for start in range(0, len(texts), TEXTS_PER_CALL):
        part = slice(start, start + TEXTS_PER_CALL)
        encoded = tokenizer(
            list(texts[part]),
            truncation=True,
            max_length=max_length,
            stride=overlap,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
            return_attention_mask=False,
            verbose=False,
        )
        kinds = encoded.get("token_type_ids") or []
        for text, windows in _by_text(encoded):
            own = units[start + text]
            owner, place = owners(own, windows)
            for i, window in enumerate(windows):
                kept = owner == i
                if not kept.any() and len(windows) > 1:
                    continue
                row = encoded["input_ids"][window.index]
                ids.append(row or [pad])
                types += [kinds[window.index] or [0]] if kinds else []
                places.append(place[kept].astype(np.int32))
                values.append(own[kept])
                examples.append(start + text)
    columns = {"input_ids": pa.array(ids, pa.list_(pa.int32()))}
    if types:
        columns["token_type_ids"] = pa.array(types, pa.list_(pa.int32()))
    columns["unit"] = as_column(Ragged.of(places, np.zeros(0, np.int32)))
    columns["target"] = as_column(Ragged.of(values, units.flat[:0]))
    columns["example_id"] = pa.array(examples, pa.int64())
    return columns


class Window:
    """The text's own tokens of one row: their places in it, and where they begin and end in the text."""

    def __init__(self, index: int, offsets: Sequence[tuple[int, int]], special: Sequence[int]) -> None:
        self.index = index
        self.places = np.flatnonzero(np.asarray(special) == 0)
        self.offsets = np.asarray(offsets, np.int64).reshape(-1, 2)[self.places]


def _by_text(encoded: Any) -> Iterator[tuple[int, list[Window]]]:
    """The windows of each text, in the order of the text."""
    found: dict[int, list[Window]] = {}
    rows = zip(
        encoded["overflow_to_sample_mapping"], encoded["offset_mapping"], encoded["special_tokens_mask"], strict=True
    )
    for index, (text, offsets, special) in enumerate(rows):
        found.setdefault(text, []).append(Window(index, offsets, special))
    for text, windows in found.items():
        yield text, sorted(windows, key=lambda window: int(window.offsets[0, 0]) if len(window.offsets) else 0)


def owners(units: Array, windows: Sequence[Window]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The window of each unit (m,), the one in which its first token is farthest from a border inside the text, and
    that token's place in its row.

    A unit that the tokenizer made nothing of has the next token, or else the last one.
    """
    begins = units[:, 0]
    margins = np.full((len(windows), len(units)), -1)
    places = np.zeros((len(windows), len(units)), np.int64)
    for i, window in enumerate(windows):
        is_first, is_last, count = i == 0, i == len(windows) - 1, len(window.places)
        if not count:  # nothing but special tokens: the first one speaks for all
            margins[i] = 0
            continue
        first = np.searchsorted(window.offsets[:, 1], begins, side="right")
        inside = (first < count) | is_last
        first = np.minimum(first, count - 1)
        inside &= (window.offsets[0, 0] <= begins) | is_first
        left, right = (FAR if is_first else first), (FAR if is_last else count - 1 - first)
        margins[i] = np.where(inside, np.minimum(left, right), -1)
        places[i] = window.places[first]
    owner = margins.argmax(axis=0)
    return owner, places[owner, np.arange(len(units))]
