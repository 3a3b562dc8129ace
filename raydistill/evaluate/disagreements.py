"""Rows worth reading: where student and teacher are both sure, of different classes; where the student is sure and
wrong. The second are often wrong labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from raydistill.evaluate.metrics import Array, probabilities

MAX_ROWS = 20
MAX_ERRORS = 10
MAX_CHARACTERS = 500


def find_disagreements(student: Array, teacher: Array, most: int = MAX_ROWS) -> list[int]:
    """Rows of two models' logits (N, C) with different first classes, the most confident first.

    A disagreement is as confident as the less sure of the two: the smaller one of the probabilities that each gives its
    own class. Their product would put a sure model beside a guessing one above two that are fairly sure.
    """
    sure = np.minimum(probabilities(student).max(axis=1), probabilities(teacher).max(axis=1))
    rows = np.flatnonzero(student.argmax(axis=1) != teacher.argmax(axis=1))
    return [int(row) for row in rows[np.argsort(-sure[rows], kind="stable")[:most]]]


def find_errors(student: Array, labels: Array, most: int = MAX_ERRORS) -> list[int]:
    """Labelled rows (N,) for which a model's logits (N, C) name another class, the most confident first."""
    sure = probabilities(student).max(axis=1)
    rows = np.flatnonzero((labels >= 0) & (student.argmax(axis=1) != labels))
    return [int(row) for row in rows[np.argsort(-sure[rows], kind="stable")[:most]]]


def describe_rows(
    rows: Sequence[int], student: Array, teacher: Array, labels: Array, class_names: Sequence[str], split: Path
) -> list[dict[str, Any]]:
    """Rows as ``results.json`` has them.

    ``labels`` (N,), -1 where there is none; ``split`` is the prepared split's Arrow file, whose rows are those of the
    logits: texts longer than 500 characters are cut.
    """
    sides = {"student": probabilities(student[rows]), "teacher": probabilities(teacher[rows])}
    return [
        {
            "row": row,
            **texts,
            "label": class_names[labels[row]] if labels[row] >= 0 else None,
            **{
                name: {"class": class_names[shares[i].argmax()], "probability": float(shares[i].max())}
                for name, shares in sides.items()
            },
        }
        for i, (row, texts) in enumerate(zip(rows, read_texts(split, rows), strict=True))
    ]


def read_texts(split: Path, rows: Sequence[int]) -> list[dict[str, str | None]]:
    """``text`` and ``text_pair`` (None in data without pairs) of some rows of a prepared split's Arrow file."""
    import pyarrow as pa

    with pa.memory_map(str(split)) as source:
        table = pa.ipc.open_file(source).read_all().take(pa.array(rows, pa.int64()))
    pairs = table["text_pair"] if "text_pair" in table.column_names else pa.nulls(len(rows), pa.string())
    return [
        {"text": shortened(text), "text_pair": shortened(pair)}
        for text, pair in zip(table["text"].to_pylist(), pairs.to_pylist(), strict=True)
    ]


def shortened(text: str | None) -> str | None:
    return text if text is None or len(text) <= MAX_CHARACTERS else f"{text[: MAX_CHARACTERS - 1]}…"
