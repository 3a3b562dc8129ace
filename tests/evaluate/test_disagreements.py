"""Where student and teacher disagree: which rows are told of, in which order, with which texts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from raydistill.data.prepare import write_batch
from raydistill.evaluate.compare import Predictions
from raydistill.evaluate.disagreements import describe_rows, find_disagreements, find_errors
from raydistill.tasks import Targets, Task
from raydistill.tasks.multi_label import MultiLabelClassification
from raydistill.tasks.regression import TextRegression
from raydistill.tasks.text_classification import TextClassification

TASK = TextClassification(("red", "green", "blue"))


def logits(*shares: tuple[float, float, float]) -> np.ndarray:
    return np.log(np.array(shares))


STUDENT = logits((0.9, 0.05, 0.05), (0.6, 0.2, 0.2), (0.98, 0.01, 0.01), (0.1, 0.8, 0.1), (0.7, 0.2, 0.1))
TEACHER = logits((0.8, 0.1, 0.1), (0.2, 0.2, 0.6), (0.2, 0.5, 0.3), (0.8, 0.1, 0.1), (0.1, 0.2, 0.7))
# row 0 agrees; of the others the less sure model gives 0.6, 0.5, 0.8, 0.7


def write_split(path: Path, texts: list[str], pairs: list[str] | None = None) -> Path:
    columns = {"example_id": pa.array(range(len(texts))), "text": pa.array(texts)}
    write_batch(path, columns | ({"text_pair": pa.array(pairs)} if pairs else {}))
    return path


def kept(
    student: np.ndarray,
    teacher: np.ndarray,
    labels: np.ndarray | None = None,
    task: Task = TASK,
    own: Task | None = None,
) -> Predictions:
    """Predictions of two models; a label below 0 is none. ``own``: the student's task, where it is another."""
    labels = np.zeros(len(student), int) if labels is None else labels
    targets = Targets(np.maximum(labels, 0), labels >= 0) if labels.ndim == 1 else Targets(labels, labels[:, 0] >= 0)
    hashes = tuple(map(str, range(len(student))))
    outputs = {"student": student, "teacher": teacher}
    return Predictions(hashes, targets, np.arange(len(student)), outputs, {"student": own or task, "teacher": task})


def test_as_confident_as_the_less_sure_of_the_two() -> None:
    assert find_disagreements(kept(STUDENT, TEACHER)) == [3, 4, 1, 2]
    assert find_disagreements(kept(STUDENT, TEACHER), 2) == [3, 4]
    assert find_disagreements(kept(TEACHER, STUDENT)) == [3, 4, 1, 2]
    assert find_disagreements(kept(STUDENT, STUDENT)) == []
    turned = STUDENT[[3] * 40][:, [1, 0, 2]]
    assert find_disagreements(kept(STUDENT[[3] * 40], turned)) == list(range(20))  # equals come in row order


def test_errors_are_labelled_rows_the_surest_first() -> None:
    labels = np.array([1, 1, 1, 1, -1])
    assert find_errors(kept(STUDENT, TEACHER, labels)) == [2, 0, 1]
    assert find_errors(kept(STUDENT, TEACHER, labels), 2) == [2, 0]
    assert find_errors(kept(STUDENT, TEACHER, STUDENT.argmax(axis=1))) == []


def test_of_numbers_the_furthest_apart_come_first() -> None:
    student, teacher = np.array([[1.0], [2], [3], [4]]), np.array([[1.5], [2], [9], [3]])
    found = kept(student, teacher, np.array([1.0, 5.0, 3.5, -1.0]), TextRegression())
    assert find_disagreements(found) == [2, 3, 0]
    assert find_errors(found) == [1, 2]


def test_of_several_labels_each_model_goes_by_its_own_thresholds() -> None:
    """A probability of 0.4 is a label to the student, from 0.3 on, and none to its teacher."""
    task = MultiLabelClassification(("a", "b"))
    logits = np.log(np.array([[0.4, 0.9], [0.2, 0.9]]) / (1 - np.array([[0.4, 0.9], [0.2, 0.9]])))
    own = MultiLabelClassification(("a", "b"), (0.3, 0.5))
    found = kept(logits, logits, np.array([[0, 1], [0, 1]]), task, own)
    assert find_disagreements(found) == [0]
    assert find_errors(found) == [0]


def test_texts_labels_and_probabilities(tmp_path: Path) -> None:
    split = write_split(tmp_path / "test.arrow", [f"text {i}" for i in range(4)] + ["x" * 600])
    found = describe_rows([3, 4, 1, 2], kept(STUDENT, TEACHER, np.array([0, 1, 2, 0, -1])), split)
    assert [row["row"] for row in found] == [3, 4, 1, 2]
    assert found[0] == {
        "row": 3,
        "text": "text 3",
        "text_pair": None,
        "label": "red",
        "student": {"answer": "green", "sure": pytest.approx(0.8)},
        "teacher": {"answer": "red", "sure": pytest.approx(0.8)},
    }
    assert found[1]["label"] is None
    assert found[1]["text"] == "x" * 499 + "…"
    pairs = write_split(tmp_path / "pairs.arrow", [f"text {i}" for i in range(5)], ["y" * 501] * 5)
    assert {row["text_pair"] for row in describe_rows([3, 4], kept(STUDENT, TEACHER), pairs)} == {"y" * 499 + "…"}
    assert describe_rows([], kept(STUDENT, STUDENT), split) == []
    numbers = kept(np.array([[1.23456], [2]]), np.array([[1.0], [7]]), np.array([1.0, -1.0]), TextRegression())
    first, second = describe_rows([0, 1], numbers, split)
    assert (first["label"], second["label"]) == ("1", None)
    assert first["student"] == {"answer": "1.235", "sure": None}  # nobody is sure of a number
