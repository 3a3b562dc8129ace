"""Where student and teacher disagree: which rows are told of, in which order, with which texts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from raydistill.data.prepare import write_batch
from raydistill.evaluate.disagreements import describe_rows, find_disagreements, find_errors

NAMES = ("red", "green", "blue")


def logits(*shares: tuple[float, float, float]) -> np.ndarray:
    return np.log(np.array(shares))


STUDENT = logits((0.9, 0.05, 0.05), (0.6, 0.2, 0.2), (0.98, 0.01, 0.01), (0.1, 0.8, 0.1), (0.7, 0.2, 0.1))
TEACHER = logits((0.8, 0.1, 0.1), (0.2, 0.2, 0.6), (0.2, 0.5, 0.3), (0.8, 0.1, 0.1), (0.1, 0.2, 0.7))
# row 0 agrees; of the others the less sure model gives 0.6, 0.5, 0.8, 0.7


def write_split(path: Path, texts: list[str], pairs: list[str] | None = None) -> Path:
    columns = {"example_id": pa.array(range(len(texts))), "text": pa.array(texts)}
    write_batch(path, columns | ({"text_pair": pa.array(pairs)} if pairs else {}))
    return path


def test_as_confident_as_the_less_sure_of_the_two() -> None:
    assert find_disagreements(STUDENT, TEACHER) == [3, 4, 1, 2]
    assert find_disagreements(STUDENT, TEACHER, 2) == [3, 4]
    assert find_disagreements(TEACHER, STUDENT) == [3, 4, 1, 2]
    assert find_disagreements(STUDENT, STUDENT) == []


def test_equals_come_in_row_order() -> None:
    turned = STUDENT[[3] * 40][:, [1, 0, 2]]
    assert find_disagreements(STUDENT[[3] * 40], turned) == list(range(20))


def test_errors_are_labelled_rows_the_surest_first() -> None:
    assert find_errors(STUDENT, np.array([1, 1, 1, 1, -1])) == [2, 0, 1]
    assert find_errors(STUDENT, np.array([1, 1, 1, 1, -1]), 2) == [2, 0]
    assert find_errors(STUDENT, STUDENT.argmax(axis=1)) == []


def test_texts_labels_and_probabilities(tmp_path: Path) -> None:
    split = write_split(tmp_path / "test.arrow", [f"text {i}" for i in range(4)] + ["x" * 600])
    found = describe_rows([3, 4, 1, 2], STUDENT, TEACHER, np.array([0, 1, 2, 0, -1]), NAMES, split)
    assert [row["row"] for row in found] == [3, 4, 1, 2]
    assert found[0] == {
        "row": 3,
        "text": "text 3",
        "text_pair": None,
        "label": "red",
        "student": {"class": "green", "probability": found[0]["student"]["probability"]},
        "teacher": {"class": "red", "probability": found[0]["teacher"]["probability"]},
    }
    assert np.allclose([found[0]["student"]["probability"], found[0]["teacher"]["probability"]], 0.8)
    assert found[1]["label"] is None
    assert found[1]["text"] == "x" * 499 + "…"


def test_pairs_and_agreement_everywhere(tmp_path: Path) -> None:
    split = write_split(tmp_path / "test.arrow", [f"text {i}" for i in range(5)], ["y" * 501] * 5)
    labels = np.zeros(5, dtype=np.int64)
    found = describe_rows([3, 4, 1, 2], STUDENT, TEACHER, labels, NAMES, split)
    assert {row["text_pair"] for row in found} == {"y" * 499 + "…"}
    assert describe_rows([], STUDENT, STUDENT, labels, NAMES, split) == []
