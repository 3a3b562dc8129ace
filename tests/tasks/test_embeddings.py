"""Sentence embeddings without a pipeline: targets, metrics against other libraries, bad rows by their number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import ndcg_score
from sklearn.neighbors import NearestNeighbors

from raydistill.config.data import Data
from raydistill.config.tasks import Embeddings as Section
from raydistill.data.sources import read_source
from raydistill.errors import ConfigError, DataError
from raydistill.evaluate.scoreboard import describe_task
from raydistill.tasks import task_of
from raydistill.tasks.embeddings import Embeddings, scoring
from raydistill.tasks.embeddings.reading import KNOWN, SCORE
from raydistill.tasks.embeddings.scoring import EmbeddingScores, beside, retrieval
from raydistill.tasks.targets import Targets


def vectors(rows: int, width: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def read(path: Path, rows: list[dict[str, Any]], section: Section | None = None) -> tuple[Embeddings, Targets]:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = section or Section()
    source = read_source(Data(path=str(path)), settings)
    found = Embeddings.read(settings, {"train": source.tables["train"]["label"]}, source.label_names)
    assert isinstance(found.task, Embeddings)
    return found.task, found.targets["train"]


def test_similarities_and_neighbours_are_those_of_other_libraries() -> None:
    own, teacher = unit(vectors(40, 8, 0)), unit(vectors(40, 12, 1))
    teacher[:, :8] += 0.5 * own
    teacher = unit(teacher)
    found = beside(own, teacher, np.arange(40))
    near = {
        k: [NearestNeighbors(n_neighbors=k, metric="cosine").fit(x).kneighbors()[1] for x in (own, teacher)]
        for k in (1, 10)
    }
    for row in range(40):
        others = np.arange(40) != row
        wanted = spearmanr((own @ own[row])[others], (teacher @ teacher[row])[others]).statistic
        assert found["similarity_spearman"][row] == pytest.approx(wanted, abs=1e-6)
        for k in (1, 10):
            mine, theirs = (set(side[row].tolist()) for side in near[k])
            assert found[f"neighbor_recall_{k}"][row] == pytest.approx(len(mine & theirs) / k)


def test_of_very_many_texts_the_others_are_some_evenly_out_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "MAX_TEXTS", 5)
    own, teacher = unit(vectors(9, 4, 0)), unit(vectors(9, 4, 1))
    found = beside(own, teacher, np.arange(9))["similarity_spearman"]
    for row in range(9):
        others = [i for i in (0, 2, 4, 6, 8) if i != row]
        wanted = spearmanr((own @ own[row])[others], (teacher @ teacher[row])[others]).statistic
        assert found[row] == pytest.approx(wanted, abs=1e-6)


def test_a_teacher_s_neighbours_are_sought_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """For models beside it on the same rows; with other rows, or another teacher, again."""
    asked: list[int] = []
    order_of = scoring.order_of
    monkeypatch.setattr(scoring, "order_of", lambda values: (asked.append(1), order_of(values))[1])
    teacher, ids = unit(vectors(12, 4, 7)), np.arange(12)
    first, *others = (beside(unit(vectors(12, 4, seed)), teacher, ids) for seed in (8, 8, 9))
    assert len(asked) == 12
    for name, values in first.items():
        assert np.array_equal(others[0][name], values)
    assert not np.array_equal(others[1]["similarity_spearman"], first["similarity_spearman"])
    beside(unit(vectors(12, 4, 8)), unit(vectors(12, 4, 6)), ids)
    beside(unit(vectors(12, 4, 8)), teacher, ids // 2)
    assert len(asked) == 36
    assert len(scoring.KEPT) <= scoring.MOST_KEPT
    monkeypatch.setattr(scoring, "MOST_RANKS", 0)
    again = beside(unit(vectors(12, 4, 8)), teacher, ids)
    assert all(np.array_equal(again[name], values) for name, values in first.items())


@pytest.mark.parametrize("num", [1, 10, 50])
def test_the_highest_are_those_of_a_whole_sort(num: int) -> None:
    values = np.random.default_rng(0).integers(0, 12, (20, 40)).astype(np.float32)  # with many equal ones
    expected = np.argsort(-values, axis=1, kind="stable")[:, :num]
    assert [order.tolist() for order in scoring.highest(values, num)] == expected.tolist()


def test_documents_are_not_all_sorted_for_each_query(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, sort = [], np.argsort
    monkeypatch.setattr(np, "argsort", lambda values, **more: sizes.append(np.size(values)) or sort(values, **more))
    documents = unit(vectors(300, 8, 0))
    retrieval(documents, documents, np.column_stack([np.arange(300), np.arange(300)]))
    assert max(sizes) <= 2 * scoring.DEPTH


def test_equal_texts_are_no_neighbours_of_each_other() -> None:
    own = unit(vectors(12, 6, 0))
    twice = np.concatenate([own, own[:3]])
    ids = np.concatenate([np.arange(12), np.arange(3)])
    found, once = beside(twice, twice[:, ::-1], ids), beside(own, own[:, ::-1], np.arange(12))
    for name, values in once.items():
        assert np.array_equal(found[name][:12], values)
        assert np.array_equal(found[name][12:], values[:3])


def test_retrieval_is_sklearns_ndcg_with_several_documents_of_a_query() -> None:
    """Rows 0 and 1 are one query with two documents; rows 2 and 3 two queries with one."""
    queries, documents = unit(vectors(30, 5, 2)), unit(vectors(30, 5, 3))
    ids = np.stack([np.arange(30), 100 + np.arange(30)], axis=1)
    ids[1, 0], queries[1] = ids[0, 0], queries[0]
    ids[3, 1], documents[3] = ids[2, 1], documents[2]
    found = retrieval(queries, documents, ids)
    names = np.unique(ids[:, 1])
    pool = np.array([documents[np.flatnonzero(ids[:, 1] == name)[0]] for name in names])
    for row in range(30):
        relevant = np.isin(names, ids[ids[:, 0] == ids[row, 0], 1]).astype(float)
        scores = pool @ queries[row]
        assert found["ndcg_10"][row] == pytest.approx(ndcg_score([relevant], [scores], k=10))
        best = np.argsort(-scores)
        for k in (1, 10):
            assert found[f"recall_{k}"][row] == pytest.approx(relevant[best[:k]].sum() / relevant.sum())
    assert len(pool) == 29


def test_what_rows_define_is_measured_and_the_rest_is_not() -> None:
    first, second, teacher = vectors(50, 6, 0), vectors(50, 6, 1), vectors(50, 12, 2)
    targets = np.zeros((50, KNOWN))
    targets[:, 0], targets[:, 1], targets[:, 2] = (
        np.random.default_rng(0).uniform(0, 5, 50),
        np.arange(50),
        np.arange(50, 100),
    )
    scored = EmbeddingScores(np.concatenate([first, second], axis=1), targets).values
    cosine = (unit(first) * unit(second)).sum(1)
    assert scored["spearman"] == pytest.approx(spearmanr(cosine, targets[:, 0]).statistic, abs=1e-6)
    assert scored["pearson"] == pytest.approx(pearsonr(cosine, targets[:, 0]).statistic, abs=1e-6)
    assert np.isnan([scored["similarity_spearman"], scored["ndcg_10"], scored["cosine"]]).all()
    texts = np.column_stack([np.full(50, -np.inf), np.arange(50), np.full(50, -1), teacher])
    alone = EmbeddingScores(first, texts).values
    assert np.isfinite(alone["similarity_spearman"])
    assert np.isnan([alone["cosine"], alone["spearman"], alone["ndcg_10"]]).all()  # another width has no cosine
    same = EmbeddingScores(teacher * 3, texts).values  # lengths mean nothing
    assert [same[name] for name in ("similarity_spearman", "neighbor_recall_1", "neighbor_recall_10", "cosine")] == (
        pytest.approx([1, 1, 1, 1], abs=1e-6)
    )
    pairs = np.column_stack([np.full(50, -np.inf), np.arange(50), 50 + np.arange(50), teacher[:, :6], second])
    mixed = EmbeddingScores(np.concatenate([first, first], axis=1), pairs).values
    wanted = retrieval(unit(first), unit(second), pairs[:, 1:3].astype(int))
    assert mixed["teacher_ndcg_10"] == pytest.approx(wanted["ndcg_10"].mean())
    assert mixed["ndcg_10"] == pytest.approx(1.0)


def test_what_is_known_of_some_rows_only_is_not_taken_for_known() -> None:
    first, second, teacher = vectors(6, 4, 0), vectors(6, 4, 1), vectors(6, 8, 2)
    pairs = np.column_stack([np.arange(6.0), np.arange(6), 6 + np.arange(6), teacher])
    both = np.concatenate([first, second], axis=1)
    found = EmbeddingScores(both, pairs)
    scatter = found.details()["scatter"]
    assert scatter == [pytest.approx(row) for row in zip(range(6), (unit(first) * unit(second)).sum(1), strict=True)]
    pairs[2, SCORE] = -np.inf
    assert EmbeddingScores(both, pairs).details() == {}
    pairs[2, KNOWN] = np.nan
    with pytest.raises(DataError, match="not known"):
        EmbeddingScores(both, pairs)


def test_a_model_that_gives_every_text_one_vector_is_told_of() -> None:
    texts = np.column_stack([np.full(5, -np.inf), np.arange(5), np.full(5, -1), vectors(5, 4, 2)])
    assert EmbeddingScores(np.ones((5, 4), np.float32), texts).floor().constant == "one vector"
    assert EmbeddingScores(vectors(5, 4, 0), texts).floor().constant is None


def test_resamples_are_metrics_of_repeated_rows() -> None:
    """Of means and of correlations: a row that is drawn twice counts twice."""
    outputs, targets = vectors(30, 8, 0), np.zeros((30, KNOWN))
    targets[:, 0], targets[:, 1], targets[:, 2] = np.arange(30) % 7, np.arange(30), 30 + np.arange(30)
    scores = EmbeddingScores(outputs, targets)
    weights = np.random.default_rng(1).integers(0, 3, (30, 4)).astype(np.float32)
    found = scores.weighted(weights)
    cosine = (unit(outputs[:, :4]) * unit(outputs[:, 4:])).sum(1)
    for sample in range(4):
        rows = np.repeat(np.arange(30), weights[:, sample].astype(int))
        assert found["spearman"][sample] == pytest.approx(spearmanr(cosine[rows], targets[rows, 0]).statistic, abs=1e-6)
    texts = np.column_stack([np.full(30, -np.inf), np.arange(30), np.full(30, -1), vectors(30, 8, 5)])
    means = EmbeddingScores(outputs, texts)
    again = means.weighted(weights)
    assert np.allclose(again["cosine"], means.by_row["cosine"] @ weights / weights.sum(0))


def test_pairs_scores_and_texts_are_told_apart(tmp_path: Path) -> None:
    rows = [{"sentence1": f"a {i}", "sentence2": f"b {i}", "score": i / 2} for i in range(8)]
    rows[3]["score"] = None
    task, targets = read(tmp_path / "scored.jsonl", rows)
    assert (task.scores_range, task.pairs) == ((0.0, 3.5), True)
    assert targets.labeled.tolist() == [i != 3 for i in range(8)]
    assert task.facts() == task_of(task.facts()).facts()
    assert "spearman" in task.shown_metrics
    assert task.shown_metrics[0] == "similarity_spearman"
    assert "ndcg_10" not in task.shown_metrics
    task, targets = read(tmp_path / "found.jsonl", [{"query": f"q {i // 2}", "document": f"d {i}"} for i in range(8)])
    assert (task.scores_range, task.pairs, targets.labeled.all()) == (None, True, True)
    assert targets.values[0, 1] == targets.values[1, 1] != targets.values[2, 1]
    assert len(np.unique(targets.values[:, 2])) == 8
    assert "teacher_ndcg_10" in task.shown_metrics
    assert task.shown_metrics[0] == describe_task(task)["main_metric"] == "ndcg_10"  # which leads
    task, targets = read(tmp_path / "texts.jsonl", [{"text": f"t {i}", "label": "sport"} for i in range(8)])
    assert (task.scores_range, task.pairs) == (None, False)
    assert task.shown_metrics == ("similarity_spearman", "neighbor_recall_1", "neighbor_recall_10", "cosine")
    assert len(np.unique(targets.ids())) == 8  # each text is its own label


def test_bad_scores_are_named_by_row(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"sentence1": f"a {i}", "sentence2": f"b {i}", "score": str(i)} for i in range(8)]
    rows[2]["score"], rows[5]["score"] = "very", "4,5"
    with pytest.raises(DataError, match=r"row 3 holds 'very', row 6 holds '4,5' \(2 of 8 rows\).*data.columns.label"):
        read(tmp_path / "a.jsonl", rows)
    with pytest.raises(DataError, match="All scores of the training pairs are 1"):
        read(tmp_path / "b.jsonl", [row | {"score": 1} for row in rows])


def test_the_loss_is_the_squared_error_of_the_cosine_in_the_range_of_scores() -> None:
    task = Embeddings(scores=(1.0, 5.0), pairs=True)
    outputs = torch.tensor(vectors(6, 8, 0))
    targets = torch.zeros(6, KNOWN, dtype=torch.float64)
    targets[:, SCORE] = torch.tensor([1.0, 2, 3, 4, 5, 2.5])
    for row, value in enumerate(task.loss_values(outputs, targets).tolist()):
        a, b = outputs[row, :4].tolist(), outputs[row, 4:].tolist()
        cosine = np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b)
        assert value == pytest.approx((cosine - (float(targets[row, SCORE]) - 1) / 4) ** 2, abs=1e-6)
    with pytest.raises(ConfigError, match="the rows have no scores"):
        Embeddings().check_loss()


def test_the_pairs_that_moved_most_are_named_once() -> None:
    """Vectors that differ in one text: every pair with it moved, the farthest first."""
    teacher = unit(vectors(10, 4, 0))
    student = teacher.copy()
    student[3] = -student[3]
    task = Embeddings(pairs=False)
    moved = task.disagreements(student, teacher)
    differences = np.abs(student @ student.T - teacher @ teacher.T)
    assert moved.max() == pytest.approx(differences.max(), abs=1e-6)
    first = int(moved.argmax())
    other = task.counterparts(student, teacher, np.array([first]))
    assert other is not None
    assert 3 in (first, int(other[0]))
    told = task.spoken(np.concatenate([teacher[[first]], teacher[other]], axis=1))
    assert float(told[0][0]) == pytest.approx(float(teacher[first] @ teacher[other[0]]), abs=1e-3)
    assert (moved > 0).sum() < 10
