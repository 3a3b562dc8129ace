"""The linear model on TF-IDF: what it learns, on which rows, with which regularisation, and where it has a bound."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from kit.tiny import WORDS
from kit.toy import TOPICS

from raydistill.evaluate import tfidf
from raydistill.evaluate.tfidf import STRENGTHS, Tfidf, fit_tfidf, words_in
from raydistill.tasks import Targets, Task, TextClassification, TextRegression
from raydistill.tasks.multi_label import MultiLabelClassification
from raydistill.tasks.targets import Array

NAMES = tuple(TOPICS)
SIZES = {"train": 150, "validation": 60, "test": 90}


def sentences(num: int, seed: int) -> tuple[list[str], Array]:
    """Texts, and how many of their words are about each topic (N, 3)."""
    draw, texts = random.Random(seed), []
    for _ in range(num):
        topic = TOPICS[draw.choice(NAMES)]
        words = [draw.choice(topic if draw.random() < 0.5 else WORDS) for _ in range(draw.randint(5, 15))]
        texts.append(" ".join(words))
    return texts, np.array([[sum(w in TOPICS[name] for w in text.split()) for name in NAMES] for text in texts])


ROWS = {split: sentences(num, seed) for seed, (split, num) in enumerate(SIZES.items())}
TARGETS: dict[Task, Any] = {
    TextClassification(NAMES): lambda counts: counts.argmax(axis=1),
    MultiLabelClassification(NAMES): lambda counts: (counts > 0).astype(np.int8),
    TextRegression(): lambda counts: 100.0 + counts @ np.array([3.0, -2.0, 0.0]),
}


def targets_of(task: Task) -> dict[str, Targets]:
    return {split: Targets(TARGETS[task](counts), np.ones(len(counts), bool)) for split, (_, counts) in ROWS.items()}


def fit(task: Task, targets: dict[str, Targets], asked: list[int] | None = None) -> Tfidf:
    def texts(split: str, row_ids: Array) -> list[str]:
        if split == "train" and asked is not None:
            asked.extend(row_ids.tolist())
        return [ROWS[split][0][i] for i in row_ids]

    found = fit_tfidf(task, texts, targets, task.Settings.metrics[0])
    assert found is not None
    return found


@pytest.mark.parametrize("task", TARGETS, ids=lambda task: task.type)
def test_words_that_tell_are_learned_by_every_task(task: Task) -> None:
    targets = targets_of(task)
    found = fit(task, targets)
    reached = found.task.scores(found.outputs["test"], targets["test"].values)
    floor = reached.floor()
    evidence, nothing = floor.evidence
    assert reached.values[floor.metric] > floor.value + 0.05
    assert reached.values[evidence] > nothing + 0.3
    shape = (SIZES["validation"], len(task.outputs))
    assert (found.outputs["validation"].shape, found.outputs["validation"].dtype) == (shape, np.float32)
    again = fit(task, targets)
    np.testing.assert_array_equal(again.outputs["test"], found.outputs["test"])


def test_only_labelled_rows_are_read_and_the_validation_rows_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    task = next(iter(TARGETS))
    targets, asked = targets_of(task), []
    labeled = np.arange(SIZES["train"]) % 3 == 0
    garbled = Targets(np.where(labeled, targets["train"].values, 0), labeled)
    found = fit(task, targets | {"train": garbled}, asked)
    assert asked == np.flatnonzero(labeled).tolist()
    assert found.num_rows == 50
    known, reached = targets["validation"].values, {}
    for strength in STRENGTHS:
        monkeypatch.setattr(tfidf, "STRENGTHS", (strength,))
        one = fit(task, targets | {"train": garbled})
        reached[strength] = task.scores(one.outputs["validation"], known).values["accuracy"], one
    best = max(reached.values(), key=lambda pair: pair[0])
    np.testing.assert_array_equal(found.outputs["test"], best[1].outputs["test"])


def test_its_size_has_a_bound_and_its_bytes_are_those_of_weights_and_words(monkeypatch: pytest.MonkeyPatch) -> None:
    task, asked = next(iter(TARGETS)), []
    monkeypatch.setattr(tfidf, "MAX_ROWS", 40)
    monkeypatch.setattr(tfidf, "MAX_WEIGHTS", 60)
    found = fit(task, targets_of(task), asked)
    assert found.num_rows == len(set(asked)) == 40
    assert asked == sorted(asked)
    assert asked[-1] > 60  # drawn from all rows, not the first ones
    assert found.num_parameters == 3 * (20 + 1)
    assert 4 * (63 + 20) < found.num_bytes < 4 * (63 + 20) + 20 * 20


def test_words_with_marks_are_whole() -> None:
    assert words_in("Mr. O'Brien, मैं हिन्दी: cafe\u0301s") == ["Mr", "O", "Brien", "मैं", "हिन्दी", "cafe\u0301s"]


def test_texts_without_words_have_no_model() -> None:
    task = next(iter(TARGETS))
    assert fit_tfidf(task, lambda split, rows: ["…"] * len(rows), targets_of(task), "accuracy") is None
