"""Questions with their contexts as rows of at most so many tokens; of a long context several, which overlap.

The units of a row are the special token before everything, which says "no answer here", and the tokens of the context.
A question that takes more than half of a row is cut to that; nothing else is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from raydistill.errors import ConfigError
from raydistill.tasks.question_answering.reading import NONE, PLACE
from raydistill.tasks.targets import Array, Ragged, as_column

TEXTS_PER_CALL = 1000
"""Of the tokenizer: bounds its memory."""
BEGINS, ENDS = 1, 2
"""Bits of a unit's label: the answer begins, or ends, at this token."""


def encode(
    tokenizer: Any,
    questions: Sequence[str],
    contexts: Sequence[str],
    answers: Ragged | None,
    *,
    max_length: int,
    overlap: int,
    pad: int,
) -> dict[str, pa.Array]:
    """Columns input_ids[, token_type_ids], unit (its position in the row), target (begin and end of the unit in the
    context, and its label), example_id, example_target, is_cut: see ``Task.encoded``.

    Raises ConfigError for an ``overlap`` that leaves no room.
    """
    room = max_length - tokenizer.num_special_tokens_to_add(pair=True)
    if room < 2 or overlap >= room - room // 2:
        raise ConfigError(
            f"data.max_length is {max_length} and windows overlap by {overlap} tokens, which leaves no room beside a "
            f"question of {room // 2} tokens. Raise data.max_length, or lower task.stride."
        )
    known = answers or Ragged(np.zeros((0, 3), PLACE), np.zeros(len(contexts), np.int64))
    ids: list[list[int]] = []
    types: list[list[int]] = []
    units: list[Array] = []
    targets: list[Array] = []
    examples: list[int] = []
    is_cut: list[bool] = []
    for start in range(0, len(contexts), TEXTS_PER_CALL):
        part = slice(start, start + TEXTS_PER_CALL)
        asked = shortened(tokenizer, questions[part], room // 2)
        is_cut += [len(short) < len(question) for short, question in zip(asked, questions[part], strict=True)]
        encoded = tokenizer(
            asked,
            list(contexts[part]),
            truncation="only_second",
            max_length=max_length,
            stride=overlap,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            return_attention_mask=False,
            verbose=False,
        )
        kinds = encoded.get("token_type_ids")
        examples += [start + text for text in encoded["overflow_to_sample_mapping"]]
        for row, row_ids in enumerate(encoded["input_ids"]):
            own = known[examples[len(ids)]]
            first = row_ids.index(tokenizer.cls_token_id) if tokenizer.cls_token_id in row_ids else 0
            offsets = np.array(encoded["offset_mapping"][row], PLACE).reshape(-1, 2)
            is_context = np.array([part == 1 for part in encoded.sequence_ids(row)]) & (offsets[:, 1] > offsets[:, 0])
            inside = np.flatnonzero(is_context).astype(PLACE)
            ids.append(row_ids or [pad])
            types += [kinds[row] or [0]] if kinds else []
            units.append(np.concatenate([np.array([first], PLACE), inside]))
            targets.append(labelled(offsets[inside], own))
    columns = {"input_ids": pa.array(ids, pa.list_(pa.int32()))}
    if types:
        columns["token_type_ids"] = pa.array(types, pa.list_(pa.int32()))
    columns["unit"] = as_column(Ragged.of(units, np.zeros(0, PLACE)))
    columns["target"] = as_column(Ragged.of(targets, np.zeros((0, 3), PLACE)))
    columns["example_id"] = pa.array(examples, pa.int64())
    columns["is_cut"] = pa.array([is_cut[example] for example in examples], pa.bool_())
    columns["example_target"] = as_column(spread(known, contexts, np.array(examples, np.int64)))
    return columns


def shortened(tokenizer: Any, questions: Sequence[str], most: int) -> list[str]:
    """Questions of at most so many tokens."""
    encoded = tokenizer(list(questions), add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ends = [offsets[most - 1][1] if len(offsets) > most else None for offsets in encoded["offset_mapping"]]
    return [question[:end] for question, end in zip(questions, ends, strict=True)]


def labelled(places: Array, answers: Array) -> Array:
    """The units of a window, (1 + m, 3): no answer, and tokens with these places (m, 2), by a row's first answer.

    Where the window does not hold all of it, the first unit is both begin and end; -1 where nothing is known.
    """
    found = np.zeros((1 + len(places), 3), PLACE)
    found[0, :2], found[1:, :2] = NONE[:2], places
    if not len(answers) or answers[0, 2] < 0:
        found[:, 2] = -1
        return found
    start, end, is_there = answers[0]
    if is_there and len(places) and places[0, 0] <= start and places[-1, 1] >= end:
        found[1 + np.searchsorted(places[:, 1], start, side="right"), 2] |= BEGINS
        found[np.searchsorted(places[:, 0], end, side="left"), 2] |= ENDS
    else:
        found[0, 2] = BEGINS | ENDS
    return found


def labels_of(outputs: Ragged, targets: Ragged) -> Array:
    """What ``labelled`` says of the units of all windows, (M, 3), of outputs with places and their rows' answers."""
    assert outputs.places is not None
    first = np.flatnonzero(outputs.places[:, 0] < 0)
    rows, ends = outputs.rows[first].tolist(), np.append(first[1:], len(outputs.places))
    parts = zip(rows, first, ends, strict=True)
    found = [labelled(outputs.places[begin + 1 : end], targets[row]) for row, begin, end in parts]
    return np.concatenate([np.zeros((0, 3), PLACE), *found])


def spread(known: Ragged, texts: Sequence[str], examples: Array) -> Ragged:
    """Targets and texts of examples for their rows (N,): with the first row of each, the others have none."""
    is_first = np.diff(examples, prepend=-1) != 0
    lengths, shown = np.zeros(len(examples), np.int64), np.full(len(examples), "", object)
    lengths[is_first], shown[is_first] = known.lengths, texts
    return Ragged(known.flat, lengths, texts=pa.array(shown, pa.large_string()))
