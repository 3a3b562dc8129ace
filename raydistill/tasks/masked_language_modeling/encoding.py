"""Documents as rows of at most so many tokens: pieces of like length, one after another, of which nothing is dropped.

A document that takes several rows is cut into as few as can hold it, all of one length up to a token, so that no tiny
rest is left. No row holds tokens of two documents: rows of like length share a batch (``data.batches``), so there is
little padding that packing several documents into a row could save.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa

from raydistill.tasks.masked_language_modeling.masks import Masks, fingerprints, given
from raydistill.tasks.targets import Array, Ragged, as_column

CHARACTERS_PER_CALL = 250_000
"""Of the tokenizer: bounds its memory, about 100 bytes a character."""
PLACE = np.int32


@dataclass(frozen=True)
class Pieces:
    """Rows of some documents: token ids, begin and end in its document of each token (-1: special), and the number of
    each row's document."""

    ids: Ragged
    places: Array
    documents: Array

    def columns(self, masks: Masks, copies: int = 1) -> dict[str, Any]:
        """``input_ids`` with some tokens hidden, ``unit``, their places, ``target``, begin, end and id of each, and
        ``example_id``: Ragged, and an Array. Copies of a row, with other tokens hidden, stand beside each other. Which
        are hidden goes by the row's tokens and the number of the copy alone: in any other data, too."""
        picked = np.repeat(np.arange(len(self.ids)), copies)
        rows = self.ids[picked]
        units, flat = masks.draw(rows, fingerprints(rows) + np.arange(len(rows), dtype=np.uint64) % np.uint64(copies))
        return self._columns(picked, rows, units, flat)

    def given(self, masks: Masks) -> dict[str, Any]:
        """The same of texts that have mask tokens in them already: what stands there is not known."""
        picked = np.arange(len(self.ids))
        found = self._columns(picked, self.ids, given(self.ids, masks.mask), self.ids.flat)
        found["target"].flat[:, -1] = -1
        return found

    def _columns(self, picked: Array, rows: Ragged, units: Ragged, flat: Array) -> dict[str, Any]:
        at = units.rows
        targets = np.column_stack(
            [self.places[self.ids.starts[picked][at] + units.flat], rows.flat[rows.starts[at] + units.flat]]
        )
        return {
            "input_ids": Ragged(flat, rows.lengths),
            "unit": units,
            "target": Ragged(targets.astype(PLACE), units.lengths),
            "example_id": self.documents[picked],
        }


def pieces_of(tokenizer: Any, texts: Sequence[str], max_length: int) -> Iterator[Pieces]:
    """Rows of documents in their order, as many documents at a time as the tokenizer is given; a document without
    tokens is a row of special ones, and where there are none of one padding token."""
    from raydistill.models.scorer import around

    before, after = around(tokenizer)
    room = max_length - len(before) - len(after)
    for part in batches_of([len(text) for text in texts]):
        encoded = tokenizer(
            list(texts[part]),
            add_special_tokens=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        lengths = np.array([len(ids) for ids in encoded["input_ids"]], np.int64)
        total = int(lengths.sum())
        ids = np.fromiter(chain.from_iterable(encoded["input_ids"]), PLACE, total)
        offsets = chain.from_iterable(chain.from_iterable(encoded["offset_mapping"]))
        places = np.fromiter(offsets, PLACE, 2 * total).reshape(-1, 2)
        documents, sizes = cut_evenly(lengths, room)
        rows = framed(ids, sizes, before, after, tokenizer.pad_token_id or 0)
        told = framed(places, sizes, [[-1, -1]] * len(before), [[-1, -1]] * len(after), [-1, -1])
        yield Pieces(rows, told.flat, part.start + documents)


def batches_of(sizes: Sequence[int]) -> Iterator[slice]:
    """Texts of these sizes one after another, of about CHARACTERS_PER_CALL together."""
    start, held = 0, 0
    for i, size in enumerate(sizes):
        held += size
        if held >= CHARACTERS_PER_CALL:
            yield slice(start, i + 1)
            start, held = i + 1, 0
    if start < len(sizes):
        yield slice(start, len(sizes))


def cut_evenly(lengths: Array, room: int) -> tuple[Array, Array]:
    """The text of each row, and how many of its tokens the row has, of texts of these lengths; rows of one text differ
    by one token at most."""
    count = np.maximum(-(-lengths // room), 1)
    text = np.repeat(np.arange(len(lengths)), count)
    number = np.arange(len(text)) - np.repeat(np.cumsum(count) - count, count)
    ends = [((number + more) * lengths[text]) // count[text] for more in (0, 1)]
    return text, ends[1] - ends[0]


def framed(flat: Array, lengths: Array, before: Sequence[Any], after: Sequence[Any], pad: Any) -> Ragged:
    """Rows of these lengths one after another with something before and after each; ``pad`` where there is nothing."""
    extra = len(before) + len(after)
    whole = np.maximum(lengths + extra, 1)
    found = np.empty((int(whole.sum()), *flat.shape[1:]), flat.dtype)
    found[:] = pad
    starts = np.cumsum(whole) - whole
    for i, value in enumerate(before):
        found[starts + i] = value
    for i, value in enumerate(after):
        found[starts + len(before) + lengths + i] = value
    inside = np.arange(len(flat)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    found[np.repeat(starts + len(before), lengths) + inside] = flat
    return Ragged(found, whole)


def arrow_columns(columns: dict[str, Any]) -> dict[str, pa.Array]:
    """The same as columns of a tokens artefact."""
    return {name: as_column(values) for name, values in columns.items()}
