"""Rows worth reading: where student and teacher contradict each other most plainly; where the student does the targets.
The second are often wrong labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from raydistill.data.pictures import THUMBNAIL_SIZE, thumbnail
from raydistill.evaluate.compare import Predictions
from raydistill.tasks.targets import Array

MAX_ROWS = 20
MAX_ERRORS = 10
MAX_CHARACTERS = 500
MARKED_SIZE = 240
"""Pixels of a picture in which boxes are drawn."""
SIDES = ("student", "teacher")


def find_disagreements(kept: Predictions, most: int = MAX_ROWS) -> list[int]:
    """Rows on which student and teacher do not say the same, the plainest first; see ``Task.disagreements``."""
    student, teacher = (kept.outputs[side] for side in SIDES)
    return plainest(kept.tasks["student"].disagreements(student, teacher, kept.tasks["teacher"]), most)


def find_errors(kept: Predictions, most: int = MAX_ERRORS) -> list[int]:
    """Labelled rows that the student answers wrongly, the plainest first; see ``Task.errors``."""
    labeled = kept.targets.labeled
    found = np.zeros(len(labeled))
    found[labeled] = kept.tasks["student"].errors(kept.outputs["student"][labeled], kept.targets.values[labeled])
    return plainest(found, most)


def plainest(size: Array, most: int) -> list[int]:
    """The rows with the largest of sizes (N,), without those of size 0."""
    order = np.argsort(-size, kind="stable")[:most]
    return [int(row) for row in order if size[row] > 0]


def describe_rows(rows: Sequence[int], kept: Predictions, split: Path) -> list[dict[str, Any]]:
    """Rows as ``results.json`` has them.

    ``split`` is the prepared split's Arrow file, whose rows are those that were predicted: texts longer than 500
    characters are cut. Pictures have their name as text, and a small ``image``, a data URI; ``marks``, where answers
    point at parts of it: of label, student and teacher, as ``Task.marked`` has them.
    """
    outputs = {side: kept.outputs[side][rows] for side in SIDES}
    marks = {side: found for side in SIDES if (found := kept.tasks[side].marked(outputs[side])) is not None}
    size = MARKED_SIZE if marks else THUMBNAIL_SIZE
    read, targets = read_texts(split, rows, size), kept.targets.take(np.asarray(rows, int))
    student, teacher = (kept.outputs[side] for side in SIDES)
    others = kept.tasks["student"].counterparts(student, teacher, np.asarray(rows, int))
    if others is not None:
        read = [
            {**own, "text_pair": o["text"]} for own, o in zip(read, read_texts(split, others.tolist()), strict=True)
        ]
        outputs = {side: np.concatenate([found, kept.outputs[side][others]], axis=1) for side, found in outputs.items()}
    texts = [texts["text"] for texts in read]
    tasks = {side: kept.tasks[side].of_rows(texts, targets.values) for side in SIDES}
    spoken = {side: tasks[side].spoken(outputs[side]) for side in SIDES}

    def marks_of(i: int) -> dict[str, Any]:
        own = kept.tasks["student"].marked_target(targets.values[i]) if targets.labeled[i] else []
        return {"label": own, **{side: found[i] for side, found in marks.items()}}

    named = [tasks["student"].of_rows([text], targets.values[[i]]) for i, text in enumerate(texts)]
    return [
        {
            "row": row,
            **{name: text if name == "image" else shortened(text) for name, text in read[i].items()},
            "label": named[i].spoken_target(targets.values[i]) if targets.labeled[i] else None,
            **{side: dict(zip(("answer", "sure"), told[i], strict=True)) for side, told in spoken.items()},
            **({"marks": marks_of(i)} if marks else {}),
        }
        for i, row in enumerate(rows)
    ]


def read_texts(split: Path, rows: Sequence[int], size: int = THUMBNAIL_SIZE) -> list[dict[str, str | None]]:
    """``text`` and ``text_pair`` (None in data without pairs) of some rows of a prepared split's Arrow file; of
    pictures ``text`` is the name, and there is an ``image`` of so many pixels."""
    import pyarrow as pa

    with pa.memory_map(str(split)) as source:
        table = pa.ipc.open_file(source).read_all().take(pa.array(rows, pa.int64()))
    if "image" in table.column_names:
        named = zip(table["name"].to_pylist(), table["image"].to_pylist(), strict=True)
        return [{"text": name, "text_pair": None, "image": thumbnail(content, size)} for name, content in named]
    pairs = table["text_pair"] if "text_pair" in table.column_names else pa.nulls(len(rows), pa.string())
    return [
        {"text": text, "text_pair": pair}
        for text, pair in zip(table["text"].to_pylist(), pairs.to_pylist(), strict=True)
    ]


def shortened(text: str | None) -> str | None:
    return text if text is None or len(text) <= MAX_CHARACTERS else f"{text[: MAX_CHARACTERS - 1]}…"
