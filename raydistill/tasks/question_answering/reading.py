"""Answers in the forms that tables have them, as one: the context, and begin and end of each answer in it.

An answer is a text, with its place or without; several are those of several annotators. An empty list says that the
context has none, null that the row is not labelled.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from raydistill.errors import DataError
from raydistill.tasks.mistakes import Wrong, refuse
from raydistill.tasks.targets import Array, Ragged, Targets, decoded, is_string

PLACE = np.int32
ANSWER = pa.struct([("start", pa.int32()), ("end", pa.int32()), ("places", pa.int32())])
"""``places``: where the answer could begin, as far as the row tells."""
FORM = pa.struct([("context", pa.large_string()), ("answers", pa.list_(ANSWER))])
"""Of a label column; ``answers`` are null where a row has no label."""
NONE = (-1, -1, 0)
"""The unit of a row whose context has no answer. Units are begin, end, and whether there is one."""
SHOWN = 40
Answer = dict[str, int]


def aligned(columns: Mapping[str, pa.ChunkedArray], where: str) -> dict[str, pa.ChunkedArray]:
    """Questions, contexts, and a column of ``FORM``, of columns text, text_pair[, label][, start] as they come.

    Raises DataError where a column is missing, and for rows whose answers do not fit, by their numbers from 1.
    """
    if "text_pair" not in columns:
        raise DataError(
            f"{where} has no column that is recognised as the context of the questions. Name both: data.columns.text "
            "(the question) and data.columns.text_pair (the context)."
        )
    texts = {role: decoded(columns[role]) for role in ("text", "text_pair")}
    for role, column in texts.items():
        if not is_string(column.type) and not pa.types.is_null(column.type):
            raise DataError(f"data.columns.{role} of {where} holds {column.type}, not text. Name another column.")
    if "label" not in columns:
        return texts
    contexts = texts["text_pair"].to_pylist()
    starts = columns["start"].to_pylist() if "start" in columns else [None] * len(contexts)
    rows: list[dict[str, Any]] = []
    wrong: dict[str, list[int]] = {}
    cells = zip(texts["text"].to_pylist(), contexts, decoded(columns["label"]).to_pylist(), starts, strict=True)
    for number, (question, context, cell, start) in enumerate(cells, 1):
        try:
            rows.append({"context": context, "answers": answers_of(question or "", context or "", cell, start)})
        except Wrong as error:
            wrong.setdefault(str(error), []).append(number)
    refuse(wrong, where)
    return texts | {"label": pa.chunked_array([pa.array(rows, FORM)])}


def answers_of(question: str, context: str, cell: Any, start: Any) -> list[Answer] | None:
    """The answers of a row, by its cells; None where it has no label. Raises Wrong."""
    given = pairs(cell, start)
    if given:
        for what, text in (("question", question), ("context", context)):
            if not text.strip():
                raise Wrong(f"its {what} is empty, but it has an answer. Write the {what}, or leave the row out.")
    return None if given is None else [located(context, *pair) for pair in given]


def pairs(cell: Any, start: Any) -> list[tuple[str, int | None]] | None:
    """Texts of answers with the places where they begin; None for no label. Raises Wrong."""
    start = whole_number(start)
    if isinstance(cell, str):
        if not cell.strip():
            return [] if start is not None and start < 0 else None
        return [(cell, start)]
    if isinstance(cell, dict):
        texts, starts = cell.get("text"), cell.get("answer_start", cell.get("start"))
        if isinstance(texts, str):
            texts, starts = [texts], [starts]
        texts = texts or []
        starts = starts if isinstance(starts, list) else [None] * len(texts)
        if len(texts) != len(starts):
            raise Wrong(f"{len(texts)} answers have {len(starts)} places. Each answer needs one.")
        cell = [{"text": text, "answer_start": place} for text, place in zip(texts, starts, strict=True)]
    if cell is None:
        return None
    if not isinstance(cell, list):
        raise Wrong(f"its answer is {type(cell).__name__} {str(cell)[:SHOWN]!r}, not a text.")
    found: list[tuple[str, int | None]] = []
    for item in cell:
        text = item.get("text") if isinstance(item, dict) else item
        place = item.get("answer_start", item.get("start")) if isinstance(item, dict) else None
        if not isinstance(text, str) or not text.strip():
            raise Wrong("an answer has no text. Write it, or an empty list where there is no answer.")
        found.append((text, whole_number(place)))
    if start is not None and len(found) == 1:
        found = [(found[0][0], start)]
    return found


def whole_number(cell: Any) -> int | None:
    if cell is None or (isinstance(cell, str) and not cell.strip()) or (isinstance(cell, float) and cell != cell):
        return None
    try:
        return int(cell)
    except (TypeError, ValueError):
        raise Wrong(f"its answer begins at {cell!r}, which is no number of characters.") from None


def located(context: str, text: str, start: int | None) -> Answer:
    """Where an answer stands, without the spaces around it. Raises Wrong."""
    at, shown = context.find(text.strip()), cut(text.strip())
    if start is None:
        if at < 0:
            raise Wrong(
                f"the answer {shown} is not in its context. An answer has to be a part of it, letter by letter."
            )
        return {"start": at, "end": at + len(text.strip()), "places": context.count(text.strip())}
    if start < 0 or context[start : start + len(text)] != text:
        there = cut(context[start : start + len(text)]) if 0 <= start < len(context) else "nothing"
        other = f"stands at {at}" if at >= 0 else "is nowhere in it"
        raise Wrong(
            f"at {start} its context has {there}, not the answer {shown}, which {other}. Count characters from 0, or "
            "leave the places out, and answers are looked for."
        )
    start += len(text) - len(text.lstrip())
    return {"start": start, "end": start + len(text.strip()), "places": 1}


def cut(text: str) -> str:
    return repr(text if len(text) <= SHOWN else f"{text[:SHOWN]}…")


def answers_in(column: pa.ChunkedArray) -> pa.StructArray:
    """A label column as one array of ``FORM``."""
    whole = column.cast(FORM).combine_chunks()
    return whole.combine_chunks() if isinstance(whole, pa.ChunkedArray) else whole


def targets_of(column: pa.ChunkedArray) -> Targets:
    """Targets of a column of ``FORM``: begin, end, 1 of each answer, or ``NONE``; with the contexts."""
    form = answers_in(column)
    lists = form.field("answers").to_pylist()
    rows = [
        np.array([(a["start"], a["end"], 1) for a in found] or [NONE], PLACE)
        for found in (found for found in lists if found is not None)
    ]
    labeled = np.array([found is not None for found in lists], bool)
    lengths = np.array([0 if found is None else max(len(found), 1) for found in lists], np.int64)
    flat = np.concatenate([np.zeros((0, 3), PLACE), *rows])
    texts = form.field("context").fill_null("")
    return Targets(Ragged(flat, lengths, texts=texts), labeled)


def with_all_answers(targets: Targets, groups: Array) -> Targets:
    """Targets in which each row with answers has all different ones of the rows of its group (N,), the most frequent
    first. A row that says that there is none keeps that: it contradicts the others."""
    rows = [targets.values[row] for row in range(len(targets))]
    given = [row for row, units in enumerate(rows) if targets.labeled[row] and units[0, 2] == 1]
    counts: dict[int, Counter[tuple[int, ...]]] = {}
    for row in given:
        counts.setdefault(int(groups[row]), Counter()).update(map(tuple, rows[row].tolist()))
    units = {group: np.array([answer for answer, _ in own.most_common()], PLACE) for group, own in counts.items()}
    for row in given:
        rows[row] = units[int(groups[row])]
    joined = Ragged.of(rows, targets.values.flat[:0])
    return Targets(Ragged(joined.flat, joined.lengths, texts=targets.values.texts), targets.labeled)
