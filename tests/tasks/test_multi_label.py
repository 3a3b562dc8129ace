"""Scores of several labels a row: metrics against scikit-learn, resampled ones too; thresholds, floor and answers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.rows_on_disk import make_config, write_rows
from kit.scores import (
    assert_interval_is_scipy_s,
    assert_values_are,
    assert_weights_count_rows,
)
from scipy.special import logit
from sklearn import metrics as library

from raydistill.config.data import Data
from raydistill.config.tasks import MultiLabelClassification as Settings
from raydistill.data.draft import make_draft
from raydistill.deploy.testset import read_test_rows
from raydistill.errors import DataError
from raydistill.evaluate.compare import chance
from raydistill.evaluate.intervals import intervals
from raydistill.tasks import task_of
from raydistill.tasks.multi_label import (
    NO_LABEL,
    LabelScores,
    MultiLabelClassification,
    probabilities,
)
from raydistill.tasks.statistics import best_threshold

TASK = MultiLabelClassification(("a", "b", "c"), (0.5, 0.3, 0.7))


def rows(num_rows: int, num_labels: int = 3, seed: int = 0, strength: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    """Logits (N, L) that know something of the targets (N, L), rounded so that some are equal."""
    rng = np.random.default_rng(seed)
    targets = (rng.random((num_rows, num_labels)) < 0.4).astype(np.int8)
    targets[0], targets[1] = 0, 1
    return np.round(strength * (targets - 0.5) + rng.normal(size=targets.shape), 1), targets


def library_values(logits: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """Every metric by scikit-learn, by the thresholds of TASK."""
    probs = probabilities(logits)
    given = probs >= (0.5, 0.3, 0.7)
    known = [i for i in range(3) if 0 < targets[:, i].sum() < len(targets)]
    expected = {
        "exact_match": library.accuracy_score(targets, given),
        "auc": np.mean([library.roc_auc_score(targets[:, i], probs[:, i]) for i in known]) if known else math.nan,
        "log_loss": np.mean([library.log_loss(targets[:, i], probs[:, i], labels=[0, 1]) for i in range(3)]),
    }
    for average in ("macro", "micro", "weighted"):
        found = library.precision_recall_fscore_support(targets, given, average=average, zero_division=0)
        expected |= {f"{average}_{n}": value for n, value in zip(("precision", "recall", "f1"), found, strict=False)}
    return expected


def test_values_equal_hand_computed_ones() -> None:
    targets = np.array([[1, 0], [1, 1], [0, 1], [0, 0]])
    given = np.array([[1, 0], [1, 0], [1, 1], [0, 0]])  # of label 0 two right of three given, of label 1 one of two
    scores = LabelScores(4.0 * given - 2, targets, MultiLabelClassification(("x", "y")))
    assert scores.values["exact_match"] == 0.5
    assert scores.right.tolist() == [True, False, False, True]
    assert set(Settings.metrics) <= set(scores.values)
    assert scores.values["micro_f1"] == pytest.approx(2 * 3 / (4 + 4))
    assert scores.values["macro_f1"] == pytest.approx((4 / 5 + 2 / 3) / 2)
    right, wrong = math.log1p(math.exp(-2)), math.log1p(math.exp(2))
    assert scores.values["log_loss"] == pytest.approx((6 * right + 2 * wrong) / 8)
    first, second = scores.details()["per_class"]
    assert [first[n] for n in ("name", "support", "predicted", "threshold")] == ["x", 2, 3, 0.5]
    assert [first[n] for n in ("precision", "recall", "f1", "auc")] == pytest.approx([2 / 3, 1, 0.8, 0.75])
    assert second["recall"] == 0.5


@pytest.mark.parametrize("num_labels", [2, 6])
@pytest.mark.filterwarnings("ignore:Only one class is present")
def test_weights_count_rows(num_labels: int) -> None:
    logits, targets = rows(50, num_labels)
    task = MultiLabelClassification([f"label {i}" for i in range(num_labels)])
    assert_weights_count_rows(lambda drawn: LabelScores(logits[drawn], targets[drawn], task), 50)


@settings(max_examples=60)
@given(data=st.data(), num_rows=st.integers(1, 12))
def test_values_are_the_library_s(data: st.DataObject, num_rows: int) -> None:
    side = {"min_size": num_rows, "max_size": num_rows}
    logits = np.array(data.draw(st.lists(st.tuples(*[st.sampled_from([-30.0, -1.0, 0.5, 9.0])] * 3), **side)))
    targets = np.array(data.draw(st.lists(st.tuples(*[st.integers(0, 1)] * 3), **side)))
    assert_values_are(LabelScores(logits, targets, TASK), library_values(logits, targets))


@pytest.mark.parametrize("metric", ["exact_match", "micro_f1", "macro_f1", "weighted_recall", "auc", "log_loss"])
def test_interval_equals_scipy_bootstrap(metric: str) -> None:
    logits, targets = rows(60)
    assert_interval_is_scipy_s(lambda drawn: LabelScores(logits[drawn], targets[drawn], TASK), 60, metric)


def test_a_label_that_all_rows_have_or_none_has_no_auc() -> None:
    logits, targets = rows(40)
    targets[:, 2] = 0
    scores = LabelScores(logits, targets, TASK)
    assert [entry["auc"] is None for entry in scores.details()["per_class"]] == [False, False, True]
    assert_values_are(scores, library_values(logits, targets))
    targets[:, :2] = 1
    assert math.isnan(LabelScores(logits, targets, TASK).values["auc"])


def test_a_resample_that_lacks_a_label_counts_for_the_auc() -> None:
    """Of 60 labels, most of them in a row or two, every resample lacks some."""
    logits, targets, _, _ = zipf_rows(0, 150, 60, 0.5, 0.0)
    scores = LabelScores(logits, targets, MultiLabelClassification([f"label {i}" for i in range(60)]))
    found = intervals(scores, 200)["auc"]
    assert 0.5 < found["low"] < found["value"] < found["high"] < 1


def best_by_trying(probs: np.ndarray, targets: np.ndarray) -> float:
    return max(library.f1_score(targets, probs >= cut, zero_division=0) for cut in [*probs, 2.0])


@settings(max_examples=100)
@given(seed=st.integers(0, 10_000), num_rows=st.integers(1, 30))
def test_no_threshold_has_a_better_f1(seed: int, num_rows: int) -> None:
    rng = np.random.default_rng(seed)
    probs, targets = rng.integers(1, 10, num_rows) / 10, rng.integers(0, 2, num_rows)
    threshold = best_threshold(probs, targets, int(targets.sum()))
    if not targets.any():
        assert threshold == 0.5
        return
    reached = library.f1_score(targets, probs >= threshold, zero_division=0)
    assert reached == pytest.approx(best_by_trying(probs, targets))


def zipf_rows(
    seed: int, num_rows: int, num_labels: int, per_row: float, skew: float, num_fresh: int = 2000
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Logits and targets of validation and of fresh rows; ``skew``: how far off its logits lie, in the mean."""
    rng = np.random.default_rng(seed)
    share = 1 / np.arange(1, num_labels + 1)
    share = np.minimum(share * per_row / share.sum(), 0.6)
    apart, off = np.maximum(2 + 0.5 * rng.normal(size=num_labels), 0.3), skew * (rng.normal(size=num_labels) - 1)
    targets = (rng.random((num_rows + num_fresh, num_labels)) < share).astype(np.int8)
    seen = apart * targets + rng.normal(size=targets.shape)
    logits = apart * seen - apart**2 / 2 + logit(share) + off
    return logits[:num_rows], targets[:num_rows], logits[num_rows:], targets[num_rows:]


@pytest.mark.parametrize("skew", [0.0, 0.7], ids=["right probabilities", "wrong ones"])
@pytest.mark.parametrize(
    ("num_rows", "num_labels", "per_row"),
    [(20, 60, 0.35), (50, 10, 1.5), (150, 60, 0.35), (150, 200, 3.0), (2000, 60, 2)],
)
def test_thresholds_do_no_harm_where_labels_are_as_rare_as_zipf_says(
    num_rows: int, num_labels: int, per_row: float, skew: float
) -> None:
    plain = MultiLabelClassification([f"label {i}" for i in range(num_labels)])
    gains = []
    for seed in range(4):
        *known, logits, targets = zipf_rows(seed, num_rows, num_labels, per_row, skew)
        fitted = plain.fitted(*known)
        assert fitted.scores(*known).values["micro_f1"] >= plain.scores(*known).values["micro_f1"]
        fresh = [task.scores(logits, targets) for task in (plain, fitted)]
        gains.append(np.subtract(*[[one.values[name] for name in ("micro_f1", "macro_f1")] for one in fresh[::-1]]))
        assert fitted.decide(logits).sum() < 2 * targets.sum()
    assert np.mean(gains, axis=0).min() > 0


def test_with_many_rows_each_label_goes_by_its_own_threshold() -> None:
    """Probabilities of the two labels lie too high and too low: one threshold for both does worse."""
    _, _, logits, targets = zipf_rows(0, 1, 2, 0.6, 0.0)
    logits = logits + np.array([3.0, -3.0])
    plain = MultiLabelClassification(("often", "seldom"))

    def reached(*thresholds: float) -> float:
        return library.f1_score(targets, logits >= logit(thresholds), average="micro")

    fitted, few = plain.fitted(logits, targets), plain.fitted(logits[:40], targets[:40])
    best = max(reached(high, low) for high in (0.7, 0.8, 0.9, 0.95) for low in (0.01, 0.02, 0.03, 0.05))
    assert reached(*fitted.thresholds) > best - 0.005
    assert reached(*fitted.thresholds) > max(reached(both, both) for both in np.arange(0.05, 1, 0.05)) + 0.1
    gaps = [np.subtract(*logit(task.thresholds)) for task in (few, fitted)]
    assert 0 < gaps[0] < gaps[1] - 1  # what few rows say goes less far
    again = task_of(fitted.facts())
    assert again.facts() == fitted.facts()
    turned = fitted.reordered([1, 0])
    assert turned.outputs == ("seldom", "often")
    assert turned.thresholds.tolist() == fitted.thresholds[::-1].tolist()


@settings(max_examples=60)
@given(seed=st.integers(0, 10_000), num_rows=st.integers(0, 12), strength=st.floats(-3, 3))
def test_thresholds_are_never_worse_than_a_half_on_the_rows_they_are_chosen_on(
    seed: int, num_rows: int, strength: float
) -> None:
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, 2, (num_rows, 3)).astype(np.int8)
    logits = strength * targets + rng.choice([-40.0, -1, 0, 0.5, 2, 40], (num_rows, 3))
    plain = MultiLabelClassification(("a", "b", "c"))
    fitted = plain.fitted(logits, targets)
    if not targets.any():
        assert fitted.thresholds.tolist() == [0.5] * 3
    else:
        reached = [task.scores(logits, targets).values["micro_f1"] for task in (plain, fitted)]
        assert reached[1] >= reached[0]


def test_a_model_that_does_not_look_is_called_that() -> None:
    logits, targets = rows(400)

    def chance_of(found: np.ndarray) -> dict:
        scores = LabelScores(found, targets, MultiLabelClassification(("a", "b", "c")))
        return chance(intervals(scores, 300), scores.floor())

    good = chance_of(logits)
    assert (good["at_chance"], good["metric"]) == (False, "micro_f1")
    constant = chance_of(np.tile([2.0, -1.0, -1.0], (400, 1)))
    assert (constant["reason"], constant["why"]) == ("constant", "it answers a for every row")
    silent = chance_of(np.full((400, 3), -3.0))
    assert NO_LABEL in silent["why"]
    assert chance_of(np.random.default_rng(1).normal(size=(400, 3)))["reason"] == "floor"
    shy = chance_of(logits - 2.5)  # gives hardly a label, in the right order
    assert (shy["reason"], "AUC" in shy["why"]) == ("floor_only", True)


def test_the_floor_is_the_best_constant_answer() -> None:
    _, targets = rows(300)
    scores = LabelScores(np.zeros(targets.shape), targets, TASK)
    constants = [[(number >> i) & 1 for i in range(3)] for number in range(8)]
    best = max(library.f1_score(targets, np.tile(one, (300, 1)), average="micro", zero_division=0) for one in constants)
    assert scores.floor().value == pytest.approx(best)


def test_agreement_disagreements_and_errors_go_by_each_model_s_own_thresholds() -> None:
    a, b = logit(np.array([[0.6, 0.4, 0.9], [0.6, 0.4, 0.9]])), logit(np.array([[0.6, 0.4, 0.9], [0.1, 0.2, 0.9]]))
    other = MultiLabelClassification(("a", "b", "c"))
    assert TASK.agreement(a, a) == 1
    assert TASK.agreement(a, a, other) == pytest.approx(4 / 6)  # 0.4 is a label from 0.3 on, and none from 0.5 on
    assert TASK.agreement(a, b) == pytest.approx(4 / 6)
    assert TASK.disagreements(a, b) == pytest.approx([0, 0.1])  # a: 0.1 above, 0.4 below; b: 0.1 above, 0.1 below
    assert TASK.errors(a, np.array([[1, 1, 1], [1, 0, 0]])) == pytest.approx([0, 0.2])
    assert TASK.spoken(a)[0] == ("a, b, c", pytest.approx(0.6))
    assert TASK.spoken_target(np.array([0, 0, 0])) == NO_LABEL


def test_the_loss_is_the_mean_cross_entropy_over_the_labels() -> None:
    logits, targets = rows(20)
    values = TASK.loss_values(torch.tensor(logits), torch.tensor(targets))
    assert values.dtype == torch.float32
    probs = probabilities(logits)
    expected = [
        np.mean([-math.log(p if t else 1 - p) for p, t in zip(*row, strict=True)])
        for row in zip(probs, targets, strict=True)
    ]
    assert values.tolist() == pytest.approx(expected, rel=1e-5)
    assert values.mean().item() == pytest.approx(LabelScores(logits, targets, TASK).values["log_loss"], rel=1e-5)


def lists_of(cells: list[Any], labels: tuple[str, ...] | None = None, names: tuple[str, ...] | None = None) -> Any:
    section = Settings(labels=labels)
    return MultiLabelClassification.column(section, pa.chunked_array([pa.array(cells)]), "It", names).to_pylist()


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["a, b", "", "  ", None, "[]", ","], [["a", "b"], None, None, None, [], None]),  # as CSV files have them
        (["['a', 'b']", '["a", null]', "[]", "[urgent]"], [["a", "b"], ["a"], [], ["[urgent]"]]),
        ([["a", None], [], None, [None], ["b", " "]], [["a"], [], None, None, ["b"]]),
        ([[1.0, None], [2.0]], [["1"], ["2"]]),
        ([[0], [1], [0, 1]], [["0"], ["1"], ["0", "1"]]),  # numbers of labels
    ],
)
def test_a_cell_says_its_labels_or_that_there_are_none_or_nothing(cells: list[Any], expected: list[Any]) -> None:
    assert lists_of(cells) == expected


@pytest.mark.parametrize(
    "cells",
    [
        [[0, 1, 1], [0, 0, 0], [], None, [1, 0, 0]],
        [[0.0, 1.0, 1.0], [False, False, False], [], [None, None, None], [True, False, False]],
        ["0,1,1", "[0, 0, 0]", "[]", "", "1,0,0"],
    ],
)
def test_rows_of_0_and_1_stand_for_names(cells: list[Any]) -> None:
    cells = [cell if not isinstance(cell, list) else [None if i is None else float(i) for i in cell] for cell in cells]
    expected = [["b", "c"], [], [], None, ["a"]]
    assert lists_of(cells, labels=("a", "b", "c")) == expected
    assert lists_of(cells, names=("a", "b", "c")) == expected
    for labels in (None, ("a", "b")):
        with pytest.raises(DataError, match=r"rows of 3 numbers 0 and 1.*task\.labels"):
            lists_of(cells, labels=labels)


def test_a_row_of_0_and_1_with_a_gap_is_named() -> None:
    with pytest.raises(DataError, match="1 row of It cannot be used; row 2: a place is neither 0 nor 1"):
        lists_of([[0, 1, 1], [0, None, 1]], labels=("a", "b", "c"))


def test_rows_of_0_and_1_are_read_for_a_finished_model(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "x.jsonl", [("one", [1, 0, 1]), ("two", [0, 0, 0])])
    found = read_test_rows(Data(path=str(path)), MultiLabelClassification(("a", "b", "c")), "train")
    assert found.targets.values.tolist() == [[1, 0, 1], [0, 0, 0]]


def test_an_empty_csv_cell_is_no_label(tmp_path: Path) -> None:
    lines = ["text,labels", *(f'text {i},"{"a,b" if i % 2 else "b"}"' for i in range(30)), "bare,[]", "left open,"]
    (tmp_path / "x.csv").write_text("\n".join(lines))
    draft = make_draft(make_config(tmp_path / "x.csv", task={"type": "multi_label_classification"}))
    labeled = {
        text: known
        for part in draft.parts.values()
        for text, known in zip(part.texts["text"].to_pylist(), part.targets.labeled.tolist(), strict=True)
    }
    assert [text for text, known in labeled.items() if not known] == ["left open"]


def test_several_models_answer_with_the_mean_of_their_probabilities() -> None:
    one, other = (rows(20, seed=seed)[0] for seed in (0, 1))
    for weights, shares in ((None, (0.5, 0.5)), ([3, 1], (0.75, 0.25))):
        found = TASK.averaged([one, other], weights)
        expected = shares[0] * probabilities(one) + shares[1] * probabilities(other)
        np.testing.assert_allclose(probabilities(found), expected, atol=1e-12)
    assert TASK.averaged([one]) is one
