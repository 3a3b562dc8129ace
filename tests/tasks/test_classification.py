"""Metrics against hand-made counts and the libraries; intervals against scipy and by their properties."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.scores import (
    assert_interval_is_scipy_s,
    assert_values_are,
    assert_weights_count_rows,
)
from scipy.special import softmax
from sklearn import metrics as library
from torchmetrics.functional.classification import multiclass_calibration_error

from raydistill.config import tasks as config
from raydistill.errors import DataError
from raydistill.evaluate import bootstrap as resampling
from raydistill.evaluate.bootstrap import bootstrap
from raydistill.evaluate.intervals import Interval
from raydistill.evaluate.intervals import intervals as intervals_of
from raydistill.tasks import kind_of
from raydistill.tasks.statistics import mcnemar
from raydistill.tasks.text_classification import TextClassification
from raydistill.tasks.text_classification import scoring as metrics
from raydistill.tasks.text_classification.scoring import ClassScores

METRICS = (
    *("accuracy", "auc", "mcc", "log_loss", "calibration_error"),
    *(f"{average}_{name}" for average in ("macro", "micro", "weighted") for name in ("precision", "recall", "f1")),
)


def rows(num_rows: int, num_classes: int, seed: int = 0, strength: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Logits (N, C) that know something about the labels (N,); every class occurs."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(num_classes), rng.integers(0, num_classes, num_rows - num_classes)])
    logits = rng.normal(size=(num_rows, num_classes))
    logits[np.arange(num_rows), labels] += strength
    return logits.astype(np.float32), labels


def scores(logits: np.ndarray, labels: np.ndarray) -> ClassScores:
    return ClassScores(logits, labels, [f"class {i}" for i in range(logits.shape[1])])


def intervals(
    logits: np.ndarray, labels: np.ndarray, num: int = 1000, seed: int = 0, **more: np.ndarray
) -> dict[str, Interval]:
    return intervals_of(scores(logits, labels), num, seed, **more)


def from_confusion(counts: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    pairs = [(i, j) for i, row in enumerate(counts) for j, n in enumerate(row) for _ in range(n)]
    labels, predictions = (np.array(column) for column in zip(*pairs, strict=True))
    return 3.0 * np.eye(len(counts))[predictions], labels


def library_values(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Every metric, by scikit-learn and torchmetrics."""
    probs, predictions, num_classes = softmax(logits.astype(float), axis=1), logits.argmax(axis=1), logits.shape[1]
    classes = range(num_classes)
    values = {
        "accuracy": library.accuracy_score(labels, predictions),
        "mcc": library.matthews_corrcoef(labels, predictions),
        "log_loss": library.log_loss(labels, probs, labels=classes),
        "calibration_error": float(
            multiclass_calibration_error(torch.tensor(probs), torch.tensor(labels), num_classes, n_bins=15)
        ),
    }
    for average in ("macro", "micro", "weighted"):
        found = library.precision_recall_fscore_support(labels, predictions, average=average, zero_division=0)
        values |= {
            f"{average}_{name}": value for name, value in zip(("precision", "recall", "f1"), found, strict=False)
        }
    if len(np.unique(labels)) < 2:
        return values | {"auc": float("nan")}
    present = [1] if num_classes == 2 else np.unique(labels)
    values["auc"] = np.mean([library.roc_auc_score(labels == c, probs[:, c]) for c in present])
    if num_classes > 2 and len(present) == num_classes:
        assert values["auc"] == pytest.approx(library.roc_auc_score(labels, probs, multi_class="ovr"))
    return values


def test_values_equal_hand_computed_ones() -> None:
    logits, labels = from_confusion([[5, 1, 0], [2, 3, 1], [0, 0, 8]])
    values, details = scores(logits, labels).values, scores(logits, labels).details()
    precision, recall = np.array([5 / 7, 3 / 4, 8 / 9]), np.array([5 / 6, 3 / 6, 8 / 8])
    f1, support = 2 * precision * recall / (precision + recall), np.array([6, 6, 8])
    assert values["accuracy"] == values["micro_f1"] == values["micro_precision"] == pytest.approx(16 / 20)
    for name, each in (("precision", precision), ("recall", recall), ("f1", f1)):
        assert values[f"macro_{name}"] == pytest.approx(each.mean())
        assert values[f"weighted_{name}"] == pytest.approx((each * support).sum() / 20)
    covariance = 16 * 20 - (6 * 7 + 6 * 4 + 8 * 9)
    spread = (400 - (49 + 16 + 81)) * (400 - (36 + 36 + 64))
    assert values["mcc"] == pytest.approx(covariance / math.sqrt(spread))
    right, wrong = math.log(math.exp(3) + 2) - 3, math.log(math.exp(3) + 2)
    assert values["log_loss"] == pytest.approx(0.8 * right + 0.2 * wrong)
    assert values["calibration_error"] == pytest.approx(abs(math.exp(3) / (math.exp(3) + 2) - 0.8), abs=1e-6)
    assert details["confusion"] == [[5, 1, 0], [2, 3, 1], [0, 0, 8]]
    table = details["per_class"]
    for name, each in (("precision", precision), ("recall", recall), ("f1", f1)):
        assert [entry[name] for entry in table] == pytest.approx(list(each))
    assert [(e["name"][-1], e["support"], e["predicted"]) for e in table] == [("0", 6, 7), ("1", 6, 4), ("2", 8, 9)]
    sure = pytest.approx(math.exp(3) / (math.exp(3) + 2))
    assert details["reliability"] == [{"confidence": sure, "accuracy": pytest.approx(0.8), "rows": 20}]


@pytest.mark.parametrize(("num_classes", "digits"), [(2, 8), (5, 0), (5, 8)])
def test_each_class_against_each_other_is_scikit_learn_s(num_classes: int, digits: int) -> None:
    """By probabilities of the two classes alone; with ``digits`` 0 many rows have the same."""
    logits, labels = rows(300, num_classes, seed=num_classes)
    logits = logits.round(digits)
    found = scores(logits, labels).details()["pairwise_pr_auc"]
    for i in range(num_classes):
        assert found[i][i] is None
        for j in set(range(num_classes)) - {i}:
            both = (labels == i) | (labels == j)
            probs = softmax(logits[both][:, [i, j]].astype(float), axis=1)[:, 0].round(12)
            expected = library.average_precision_score(labels[both] == i, probs)
            assert found[i][j] == pytest.approx(expected, abs=1e-12)


def test_a_class_without_a_row_is_told_from_no_other() -> None:
    logits, labels = from_confusion([[3, 1, 0], [2, 2, 0], [0, 0, 0]])
    found = scores(logits, labels).details()["pairwise_pr_auc"]
    assert [[value is None for value in row] for row in found] == [
        [True, False, True],
        [False, True, True],
        [True, True, True],
    ]


def test_a_class_that_never_occurs_has_zeros() -> None:
    """In the table and in the counts it keeps its place; the averages go over the others."""
    logits, labels = from_confusion([[3, 1, 0], [2, 2, 0], [0, 0, 0]])
    absent = {"name": "class 2", "precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0, "predicted": 0}
    details = scores(logits, labels).details()
    assert details["per_class"][2] == absent
    assert details["confusion"] == [[3, 1, 0], [2, 2, 0], [0, 0, 0]]
    values = scores(logits, labels).values
    assert values["macro_recall"] == pytest.approx((3 / 4 + 2 / 4) / 2)
    one_sided = scores(*from_confusion([[3, 0], [2, 0]])).values
    assert (one_sided["macro_precision"], one_sided["macro_recall"], one_sided["mcc"]) == (0.3, 0.5, 0.0)


def test_known_calibration_error() -> None:
    # 10 rows at confidence 0.9 of which 6 are right, 30 rows at 0.6 of which 24 are right.
    confidence = np.repeat([0.9, 0.6], [10, 30])
    labels = np.concatenate([np.repeat([0, 1], [6, 4]), np.repeat([0, 1], [24, 6])])
    logits = np.stack([np.log(confidence), np.log(1 - confidence)], axis=1)
    values = scores(logits, labels).values
    assert values["calibration_error"] == pytest.approx(0.25 * 0.3 + 0.75 * 0.2, abs=1e-6)
    bins = scores(logits, labels).reliability()
    assert [b["rows"] for b in bins] == [30, 10]
    assert [b["accuracy"] for b in bins] == pytest.approx([0.8, 0.6])
    assert [b["confidence"] for b in bins] == pytest.approx([0.6, 0.9])


def test_a_border_belongs_to_the_bin_above_it_in_single_precision() -> None:
    borders = np.linspace(0, 1, metrics.NUM_BINS + 1)
    assert metrics._bins(borders).tolist() == list(range(metrics.NUM_BINS + 1))
    assert metrics._bins(np.array([0.6 - 1e-9, 0.6 - 1e-6])).tolist() == [9, 8]


def test_auc_is_the_mean_over_the_classes_that_have_rows() -> None:
    logits, labels = rows(40, 3)
    logits, labels = logits[labels != 2], labels[labels != 2]
    assert_values_are(scores(logits, labels), library_values(logits, labels))
    logits, labels = logits[labels == 1], labels[labels == 1]
    assert math.isnan(scores(logits, labels).values["auc"])
    result = intervals(logits, labels, 100)
    assert result["auc"] == {"value": None, "low": None, "high": None}
    assert result["macro_f1"]["value"] is not None


def test_pairs_of_very_many_classes_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels = rows(40, 3)
    assert "pairwise_pr_auc" in scores(logits, labels).details()
    monkeypatch.setattr(metrics, "MOST_PAIRED", 2)
    assert set(scores(logits, labels).details()) == {"per_class", "confusion", "reliability"}
    assert metrics.MOST_PAIRED < 400


def test_a_resample_that_lacks_a_class_counts_for_the_auc() -> None:
    """Of 40 classes with a row or two each every resample lacks some."""
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 40
    logits = rng.normal(size=(60, 40)) + 2 * np.eye(40)[labels]
    model = scores(logits, labels)
    samples = bootstrap({"model": model}, None, 200, 0)["model"]["auc"]
    assert np.isfinite(samples).all()
    found = intervals(logits, labels, 200)["auc"]
    assert 0.8 < found["low"] < found["value"] < found["high"] < 1


@pytest.mark.parametrize("num_classes", [2, 3, 7])
def test_weights_count_rows(num_classes: int) -> None:
    logits, labels = rows(50, num_classes, seed=num_classes)
    logits[::3] = np.round(logits[::3])  # ties for the AUC
    assert_values_are(scores(logits, labels), library_values(logits, labels))
    assert_weights_count_rows(lambda drawn: scores(logits[drawn], labels[drawn]), 50)


@pytest.mark.filterwarnings("ignore:A single label was found")
@settings(max_examples=60)
@given(data=st.data(), num_classes=st.integers(2, 4), num_rows=st.integers(1, 12))
def test_values_are_the_libraries(data: st.DataObject, num_classes: int, num_rows: int) -> None:
    logit = st.sampled_from([-50.0, -1.0, 0.0, 0.5, 1.0, 30.0])
    logits = np.array(data.draw(st.lists(st.tuples(*[logit] * num_classes), min_size=num_rows, max_size=num_rows)))
    labels = np.array(data.draw(st.lists(st.integers(0, num_classes - 1), min_size=num_rows, max_size=num_rows)))
    assert_values_are(scores(logits, labels), library_values(logits, labels))


@pytest.mark.parametrize("metric", METRICS)
def test_interval_equals_scipy_bootstrap(metric: str) -> None:
    logits, labels = rows(80, 3, strength=1.2)
    labels = np.where(labels == 2, 1, labels)[:80]
    logits = logits[:, :2]

    method = "basic" if metric == "calibration_error" else "percentile"
    assert_interval_is_scipy_s(lambda drawn: scores(logits[drawn], labels[drawn]), 80, metric, method)


def test_interval_does_not_depend_on_the_block_size(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels = rows(100, 3)
    whole = intervals(logits, labels, 150, seed=3)
    monkeypatch.setattr(resampling, "BLOCK_ELEMENTS", 700)
    blocks = intervals(logits, labels, 150, seed=3)
    for name in METRICS:
        assert blocks[name] == pytest.approx(whole[name], abs=1e-6)
    assert intervals(logits, labels, 150, seed=4) != whole


@pytest.mark.parametrize("num_classes", [2, 5])
def test_intervals_contain_the_value_and_narrow_with_rows(num_classes: int) -> None:
    widths = []
    for num_rows in (100, 1600):
        result = intervals(*rows(num_rows, num_classes), 400)
        assert all(r["low"] <= r["value"] <= r["high"] for r in result.values())
        widths.append({name: r["high"] - r["low"] for name, r in result.items()})
    for name in METRICS:
        if name != "calibration_error":  # its lower end is cut at 0
            assert widths[0][name] / widths[1][name] == pytest.approx(4, rel=0.35), name  # sqrt(1600 / 100)


def test_calibration_interval_of_a_calibrated_model_reaches_down() -> None:
    rng = np.random.default_rng(0)
    p = rng.uniform(0.5, 1, 1500)
    labels = (rng.random(1500) > p).astype(int)
    logits = np.stack([np.log(p), np.log1p(-p)], axis=1)
    result = intervals(logits, labels, 500)["calibration_error"]
    assert result["low"] < 0.01 < result["value"] + 0.01
    percentiles = bootstrap({"m": scores(logits, labels)}, None, 500, 0)["m"]["calibration_error"]
    assert np.quantile(percentiles, 0.025) > 0.01  # the plain percentile interval would exclude 0


def test_rows_of_one_example_are_resampled_together() -> None:
    logits, labels = rows(200, 2)
    replicas = np.repeat(np.arange(200), 4)
    single = intervals(logits, labels, 300, seed=2)
    together = intervals(logits[replicas], labels[replicas], 300, 2, example_ids=replicas)
    apart = intervals(logits[replicas], labels[replicas], 300, seed=2)
    for name in ("accuracy", "macro_f1", "auc", "log_loss"):
        assert [together[name][k] for k in ("value", "low", "high")] == pytest.approx(
            [single[name][k] for k in ("value", "low", "high")], abs=1e-6
        )
        ratio = (together[name]["high"] - together[name]["low"]) / (apart[name]["high"] - apart[name]["low"])
        assert ratio == pytest.approx(2, rel=0.3)  # sqrt(4 replicas)


def test_labels_outside_the_classes_are_refused() -> None:
    logits, labels = rows(20, 3)
    for shift in (-1, 1):
        with pytest.raises(DataError, match=r"0 \.\.\. 2"):
            scores(logits, labels + shift)


def test_probabilities_are_in_double_precision() -> None:
    probs = metrics.probabilities(rows(20, 3)[0])
    assert probs.dtype == np.float64
    assert probs.sum(axis=1) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(
    ("only_first", "only_second", "p"),
    [(3, 1, 2 * (4 + 1) / 2**4), (1, 9, 2 * (1 + 10) / 2**10), (2, 2, 1.0), (0, 1, 1.0), (0, 0, 1.0)],
)
def test_mcnemar_is_the_binomial_test_of_rows_that_one_gets_right(only_first: int, only_second: int, p: float) -> None:
    first, second = np.ones(20, bool), np.ones(20, bool)
    first[15:] = second[15:] = False  # both err
    second[:only_first] = False
    first[5 : 5 + only_second] = False
    found = mcnemar(first, second)
    assert found == {"only_first": only_first, "only_second": only_second, "p": pytest.approx(p)}


def test_loss_values_are_cross_entropy_a_row_in_float32() -> None:
    logits = torch.tensor([[0.0, 0.0], [math.log(3.0), 0.0], [5.0, 1.0]], dtype=torch.bfloat16, requires_grad=True)
    values = TextClassification(("a", "b")).loss_values(logits, torch.tensor([0, 0, 1]))
    assert values.dtype == torch.float32
    assert values.tolist() == pytest.approx([math.log(2), math.log(4 / 3), math.log1p(math.exp(4))], abs=2e-3)
    values.sum().backward()
    assert logits.grad is not None


def test_an_answer_is_the_likeliest_class_with_its_probability() -> None:
    task = TextClassification(("no", "yes"))
    logits = np.array([[0.0, math.log(3.0)], [1000.0, -1000.0]], np.float32)
    answers = task.answers(logits)
    assert [row["label"] for row in answers] == ["yes", "no"]
    assert [row["score"] for row in answers] == pytest.approx([0.75, 1.0])
    assert tuple(answers[0]) == task.answer_columns
    assert answers[0]["scores"] == pytest.approx({"no": 0.25, "yes": 0.75})
    assert task.spoken(logits)[0] == ("yes", pytest.approx(0.75))
    assert task.spoken_target(1) == "yes"
    assert kind_of(config.TextClassification()) is TextClassification
