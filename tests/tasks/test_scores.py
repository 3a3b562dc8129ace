"""What holds for the outputs of models of every task."""

from __future__ import annotations

import numpy as np
import pytest

from raydistill.errors import DataError, ModelError
from raydistill.tasks import Targets, Task, TextClassification, TextRegression
from raydistill.tasks.embeddings import RETRIEVAL, Embeddings
from raydistill.tasks.multi_label import MultiLabelClassification
from raydistill.tasks.object_detection import ObjectDetection
from raydistill.tasks.question_answering import QuestionAnswering
from raydistill.tasks.targets import Ragged, Values

LABELS = ("art", "sport", "tax")
TASKS = (TextClassification(LABELS), MultiLabelClassification(LABELS), TextRegression())


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.type)
def test_bad_rows_are_refused_with_a_way_out(task: Task) -> None:
    outputs, targets = np.zeros((20, len(task.outputs))), task.blank(20).values
    broken = outputs.copy()
    broken[4, -1] = np.nan
    with pytest.raises(ModelError, match=r"1 of 20 rows.*learning_rate"):
        task.scores(broken, targets)
    with pytest.raises(ModelError, match="shape"):
        task.scores(outputs[:10], targets)
    with pytest.raises(DataError, match="0 labelled rows"):
        task.scores(outputs[:0], targets[:0])


@pytest.mark.parametrize(("task", "slow"), list(zip(TASKS, ("auc", "auc", "spearman"), strict=True)))
def test_slow_metrics_that_are_not_wanted_are_spared(task: Task, slow: str) -> None:
    rng, targets = np.random.default_rng(0), np.arange(30.0)
    if task.kind != "value":
        targets = np.arange(30) % 3 if task.kind == "categorical" else rng.integers(0, 2, (30, 3))
    scores, main = task.scores(rng.normal(size=(30, len(task.outputs))), targets), task.Settings.metrics[0]
    found = scores.weighted(np.ones((30, 4), np.float32), wanted={main})
    assert np.isfinite(found[main]).all()
    assert np.isnan(found.get(slow, np.nan)).all()
    assert np.isfinite(scores.values[slow])


def test_the_unit_of_differences() -> None:
    outputs = np.array([[100.0], [300.0]])
    assert TextRegression().unit(outputs) == 100.0
    assert TextRegression().unit(outputs[:1]) == 1.0
    assert TASKS[0].unit(outputs) == TASKS[1].unit(outputs) == 1.0


def ragged(rows: list[list[list[int]]]) -> Ragged:
    return Ragged(np.array([unit for row in rows for unit in row]), np.array([len(row) for row in rows]))


ANSWER, NONE = [0, 3, 1], [-1, -1, 0]
WITHOUT_TEACHER = {"similarity_spearman", "neighbor_recall_1", "neighbor_recall_10", "cosine"}
WITHOUT_TEACHER |= {"teacher_ndcg_10", "teacher_recall_10"}
PAIRS = np.array([[0.5, 0, 1], [0.1, 2, 3]])


@pytest.mark.parametrize(
    ("task", "values", "lost"),
    [
        (TASKS[0], np.array([0, 1, 2]), set()),
        (TASKS[0], np.array([0, 1, 1]), set()),
        (TASKS[0], np.array([1, 1, 1]), {"auc"}),
        (TASKS[1], np.array([[0, 1, 1], [0, 1, 1]]), {"auc"}),
        (TASKS[1], np.array([[0, 1, 1], [1, 1, 1]]), set()),
        (TASKS[2], np.array([3.5]), {"r2"}),
        (TASKS[2], np.array([3.5, 3.5]), {"r2"}),
        (TASKS[2], np.array([3.5, 3.6]), set()),
        (QuestionAnswering(), ragged([[ANSWER], [NONE]]), set()),
        (QuestionAnswering(), ragged([[ANSWER], [ANSWER]]), {"no_answer_accuracy"}),
        (QuestionAnswering(), ragged([[NONE]]), {"has_answer_f1"}),
        (ObjectDetection(("a", "b")), ObjectDetection(("a", "b")).blank(2).values, {"map_medium", "map_large"}),
        (Embeddings(scores=(0, 1), pairs=True), PAIRS, WITHOUT_TEACHER | {"ndcg_10", "recall_1", "recall_10"}),
        (Embeddings(scores=(0, 1), pairs=True), np.pad(PAIRS, ((0, 0), (0, 4))), {*RETRIEVAL}),
    ],
)
def test_what_rows_do_not_define_is_known_before_any_training(task: Task, values: Values, lost: set[str]) -> None:
    targets = Targets(values, np.ones(len(values), bool))
    assert task.undefined(targets) == lost
    for name in task.Settings.metrics:
        assert task.undefined(targets, {name}) == lost & {name}
    assert task.undefined(Targets(values, np.zeros(len(values), bool))) <= lost
