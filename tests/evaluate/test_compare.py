"""Paired differences, agreement, retention, chance, kept predictions."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy import stats

from raydistill.errors import ArtifactError
from raydistill.evaluate import compare, metrics
from raydistill.evaluate.intervals import OF_ANSWERS, interval, intervals


def two_models(num_rows: int = 600, noise: float = 0.3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits of two models that find the same rows hard, and the labels."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, num_rows)
    shared = rng.normal(size=(num_rows, 3)) + 1.0 * np.eye(3)[labels]
    return shared, shared + noise * rng.normal(size=(num_rows, 3)), labels


def test_paired_difference_is_narrower_than_the_unpaired_one() -> None:
    a, b, labels = two_models()
    paired = compare.paired_difference("accuracy", a, b, labels)
    values = [intervals(m, labels, seed=seed)["accuracy"] for seed, m in enumerate((a, b))]
    unpaired = np.sqrt(sum((v["high"] - v["low"]) ** 2 for v in values))
    assert paired["value"] == pytest.approx(values[0]["value"] - values[1]["value"])
    nats, said = (
        compare.paired_difference("log_loss", a, b, labels, **by) for by in ({}, {"num_samples": 1000, "seed": 0})
    )
    assert nats == pytest.approx(said, rel=1e-9)
    assert paired["low"] <= paired["value"] <= paired["high"]
    assert paired["high"] - paired["low"] < 0.7 * unpaired


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1", "log_loss"])
def test_paired_difference_equals_scipy(metric: str) -> None:
    a, b, labels = two_models(100)

    def statistic(rows: np.ndarray) -> float:
        one = np.ones((len(rows), 1), np.float32)
        values = [metrics.WeightedMetrics(m[rows], labels[rows])(one)[metric][0] for m in (a, b)]
        return values[0] - values[1]

    expected = stats.bootstrap(
        (np.arange(100),),
        statistic,
        vectorized=False,
        n_resamples=300,
        method="percentile",
        rng=np.random.default_rng(9),
    ).confidence_interval
    samples = metrics.bootstrap({"a": a, "b": b}, labels, None, 300, 9)
    ours = interval(0.0, samples["a"][metric] - samples["b"][metric])
    assert (ours["low"], ours["high"]) == pytest.approx((min(expected.low, 0), max(expected.high, 0)), abs=1e-6)


def test_a_model_does_not_differ_from_itself() -> None:
    a, b, labels = two_models(50)
    for metric in metrics.METRICS:
        found = compare.paired_difference(metric, a, a, labels, num_samples=100)
        if metric in OF_ANSWERS:  # 50 rows on which nothing differs do not prove that nothing ever does
            assert found["low"] < found["value"] == 0 < found["high"]
        else:
            assert found == {"value": 0, "low": 0, "high": 0}
    there = compare.paired_difference("mcc", a, b, labels, num_samples=100)
    back = compare.paired_difference("mcc", b, a, labels, num_samples=100)
    assert (there["value"], there["low"], there["high"]) == pytest.approx((-back["value"], -back["high"], -back["low"]))


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1", "log_loss"])
def test_difference_of_many_windows_of_few_examples_is_wide(metric: str) -> None:
    a, b, labels = two_models(600)
    by_row, by_example = (
        compare.paired_difference(metric, a[i], b[i], labels[i], example_ids=ids)
        for i in [np.repeat(np.arange(60), 10)]
        for ids in (np.arange(600), i)
    )
    ratio = (by_example["high"] - by_example["low"]) / (by_row["high"] - by_row["low"])
    assert ratio == pytest.approx(np.sqrt(10), rel=0.3)


def test_agreement_and_retention() -> None:
    a = np.array([[1.0, 0], [1, 0], [0, 1], [0, 1]])
    b = np.array([[9.0, 0], [0, 9], [0, 9], [0, 9]])
    assert compare.agreement(a, b) == 0.75
    student = {"accuracy": 0.6, "macro_f1": 0.3, "weighted_f1": 0.5, "auc": float("nan"), "mcc": 0.1}
    teacher = {"accuracy": 0.8, "macro_f1": 0.6, "weighted_f1": 0.5, "auc": 0.9, "mcc": -0.1}
    assert compare.retention(student, teacher) == {
        "accuracy": pytest.approx(0.75),
        "macro_f1": 0.5,
        "weighted_f1": 1.0,
        "auc": None,
        "mcc": None,
    }
    assert compare.retention(student, teacher | {"mcc": 0.0})["mcc"] is None


@pytest.mark.parametrize(
    ("only_first", "only_second", "p"),
    [(3, 1, 2 * (4 + 1) / 2**4), (1, 9, 2 * (1 + 10) / 2**10), (2, 2, 1.0), (0, 1, 1.0), (0, 0, 1.0)],
)
def test_mcnemar_is_the_binomial_test_of_rows_that_one_gets_right(only_first: int, only_second: int, p: float) -> None:
    labels = np.arange(20) % 3
    right, wrong = 5.0 * np.eye(3)[labels], 5.0 * np.eye(3)[(labels + 1) % 3]
    first, second = right.copy(), right.copy()
    first[15:], second[15:] = wrong[15:], wrong[15:]  # both err
    second[:only_first] = wrong[:only_first]
    first[5 : 5 + only_second] = wrong[5 : 5 + only_second]
    found = compare.mcnemar(first, second, labels)
    assert found == {"only_first": only_first, "only_second": only_second, "p": pytest.approx(p)}


def test_kept_logits_come_in_the_order_that_is_asked_for() -> None:
    logits = {"student": np.arange(9.0).reshape(3, 3)}
    kept = compare.Predictions(("a", "b", "c"), np.zeros(3), np.arange(3), logits, ("x", "y", "z"))
    found = kept.of_rows("student", ["c", "a"], ["z", "x", "y"])
    assert found is not None
    assert found.tolist() == [[8, 6, 7], [2, 0, 1]]
    whole = kept.of_rows("student", ["b", "c", "a"], ["x", "y", "z"])
    assert whole is not None
    assert whole.tolist() == [[3, 4, 5], [6, 7, 8], [0, 1, 2]]
    assert kept.of_rows("teacher", ["a"], ["x", "y", "z"]) is None
    assert kept.of_rows("student", ["a", "d"], ["x", "y", "z"]) is None


def chance_of(logits: np.ndarray, labels: np.ndarray) -> dict:
    return compare.chance(intervals(logits, labels, 500), logits, labels)


def test_chance_is_called_chance() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [80, 60, 60])
    guessing = chance_of(rng.normal(size=(200, 3)), labels)
    assert guessing == {"at_chance": True, "reason": "accuracy", "majority_class": 0, "majority_share": 0.4}
    constant = chance_of(np.tile([0.0, 2.0, 1.0], (200, 1)), labels)
    assert (constant["at_chance"], constant["reason"]) == (True, "one_class")
    learned = chance_of(rng.normal(size=(200, 3)) + 1.5 * np.eye(3)[labels], labels)
    assert (learned["at_chance"], learned["reason"]) == (False, None)


def test_chance_on_skewed_classes_says_that_something_was_learned() -> None:
    labels = np.repeat([0, 1], [900, 100])
    predictions = labels.copy()
    predictions[:60] = 1
    predictions[-50:] = 0  # accuracy 0.89 < 0.9, and yet half of the rare class is found
    result = chance_of(np.eye(2)[predictions], labels)
    assert (result["at_chance"], result["reason"]) == (True, "accuracy_only")


@pytest.mark.parametrize(
    ("low", "mcc_low", "reason"),
    [
        (0.5, 0.0, "accuracy"),
        (0.5, 0.01, "accuracy_only"),
        (0.5, None, "accuracy"),
        (0.51, 0.1, None),
        (None, 0.1, None),
    ],
)
def test_an_interval_that_begins_at_the_share_is_chance(
    low: float | None, mcc_low: float | None, reason: str | None
) -> None:
    found = compare.chance({"accuracy": {"low": low}, "mcc": {"low": mcc_low}}, np.eye(3)[:2], np.array([1, 0]))
    assert found == {"at_chance": bool(reason), "reason": reason, "majority_class": 0, "majority_share": 0.5}


def test_predictions_come_back(tmp_path: Path) -> None:
    a, b, labels = two_models(30)
    labels[3] = -1
    labels = labels.astype(np.int16)
    hashes = [f"{i:016x}" for i in range(30)]
    ids = (np.arange(30) // 3).astype(np.int16)
    path = compare.write_predictions(
        tmp_path, "test", hashes, labels, {"student": a, "teacher": b}, example_ids=ids, class_names=["x", "y", "é"]
    )
    assert path.is_file()
    assert path.parent == tmp_path
    assert pq.ParquetFile(path).metadata.row_group(0).column(0).compression == "ZSTD"
    kept = compare.read_predictions(tmp_path, "test")
    assert kept.hashes == tuple(hashes)
    assert kept.class_names == ("x", "y", "é")
    np.testing.assert_array_equal(kept.labels, labels)
    np.testing.assert_array_equal(kept.example_ids, ids)
    assert kept.labels.dtype == kept.example_ids.dtype == np.int64
    assert set(kept.logits) == {"student", "teacher"}
    np.testing.assert_array_equal(kept.logits["student"], a.astype(np.float32))
    np.testing.assert_array_equal(kept.logits["teacher"], b.astype(np.float32))
    compare.write_predictions(tmp_path, "test", hashes, labels, {})  # a row is an example, where nobody says otherwise
    kept = compare.read_predictions(tmp_path, "test")
    assert (kept.example_ids.tolist(), kept.class_names, kept.logits) == (list(range(30)), (), {})


@pytest.mark.parametrize("content", [None, b"PAR1 and then nothing"])
def test_missing_or_damaged_predictions_are_named(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "predictions-test.parquet").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"predictions-test\.parquet.*Evaluate the model again"):
        compare.read_predictions(tmp_path, "test")


@pytest.mark.parametrize("order", [(1, 2, 0), (2, 0, 1), (2, 1, 0)])
def test_an_order_of_classes_that_fits_far_better_is_found(order: tuple[int, ...]) -> None:
    labels = np.repeat([0, 1, 2], [20, 8, 12])
    logits = np.random.default_rng(0).normal(size=(40, 3)) + 4 * np.eye(3)[labels]
    wrong = logits[:, order]  # what is called class i is class order[i]
    found = compare.other_order(wrong, labels)
    assert found is not None
    assert np.array_equal(wrong[:, found], logits)
    assert compare.other_order(logits, labels) is None


@pytest.mark.parametrize(("num_rows", "num_classes"), [(10, 2), (30, 10), (200, 3), (3000, 20)])
def test_a_model_that_guesses_is_no_matter_of_order(num_rows: int, num_classes: int) -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        logits, labels = rng.normal(size=(num_rows, num_classes)), rng.integers(0, num_classes, num_rows)
        assert compare.other_order(logits, labels) is None


def test_the_most_frequent_class_is_what_an_order_is_measured_against() -> None:
    """A turned model of rare classes is found; few rows, or a weak model, prove nothing."""
    labels = np.repeat([0, 1], [95, 5])
    right = np.eye(2)[labels]
    assert compare.other_order(right, labels) is None
    assert compare.other_order(right[:, ::-1], labels) == (1, 0)
    assert compare.other_order(right[-10:, ::-1], labels[-10:]) is None
    for times in (1, 40):  # of many rows it is no luck, and yet only 10 points
        weak = np.eye(2)[np.where(np.arange(100) < 45, labels, 1 - labels)]
        assert compare.other_order(np.tile(weak, (times, 1)), np.tile(labels, times)) is None


def order_of(predicted: np.ndarray, labels: np.ndarray, num_classes: int) -> tuple[int, ...] | None:
    return compare.other_order(np.eye(num_classes)[predicted], labels)


def test_an_order_is_named_from_its_limits_on() -> None:
    labels = np.repeat([0, 1, 2], [12, 10, 10])
    swapped = np.array([0, 2, 1])[labels]
    assert order_of(swapped, labels, 3) == (0, 2, 1)  # as accurate as the most frequent label
    swapped[12] = 1
    assert order_of(swapped, labels, 3) is None  # a row more
    labels = np.repeat(np.arange(6), 25)
    assert order_of((labels + 1 + np.arange(150) % 5) % 6, labels, 6) is not None  # a fifth against nothing
    labels = np.arange(14) % 3
    assert order_of((labels + 1) % 3, labels, 3) == (1, 2, 0)  # p = 2^-13 < 0.001 / 6
    assert order_of((labels[1:] + 1) % 3, labels[1:], 3) is None
    labels = np.arange(1200) % 2
    assert order_of(1 - labels, labels, 2) == (1, 0)  # p is 0 in double precision


def test_rows_outweigh_the_own_order_and_what_no_row_speaks_about_stays() -> None:
    labels = np.arange(40) % 10
    assert order_of((labels + 1) % 10, labels, 10) == (*range(1, 10), 0)
    labels = np.arange(20) % 2
    assert order_of(1 - labels, labels, 4) == (1, 0, 2, 3)
