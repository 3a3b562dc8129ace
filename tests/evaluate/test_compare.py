"""A scoreboard's paired differences and ratios, retention, chance, kept predictions."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy import stats

from raydistill.config.metrics import METRICS, capitalized
from raydistill.errors import ArtifactError
from raydistill.evaluate import compare
from raydistill.evaluate.intervals import intervals
from raydistill.evaluate.scoreboard import Scoreboard, describe_task
from raydistill.tasks import Targets, Task, task_of
from raydistill.tasks.masked_language_modeling import MaskedLanguageModeling
from raydistill.tasks.multi_label import MultiLabelClassification
from raydistill.tasks.regression import TextRegression
from raydistill.tasks.scores import Floor
from raydistill.tasks.targets import Ragged
from raydistill.tasks.text_classification import TextClassification

TASK = TextClassification(("x", "y", "z"))


def two_models(num_rows: int = 600, noise: float = 0.3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits of two models that find the same rows hard, and the labels."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, num_rows)
    shared = rng.normal(size=(num_rows, 3)) + 1.0 * np.eye(3)[labels]
    return shared, shared + noise * rng.normal(size=(num_rows, 3)), labels


def labeled(values: np.ndarray) -> Targets:
    return Targets(values, np.ones(len(values), bool))


def board(a: np.ndarray, b: np.ndarray, values: np.ndarray, task: Task = TASK, **more: object) -> Scoreboard:
    """Of two models a and b."""
    return Scoreboard({"a": task, "b": task}, {"a": a, "b": b}, labeled(values), **more)


def two_regressions(num_rows: int = 300) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    targets, shared = rng.normal(size=num_rows), rng.normal(size=num_rows)
    a, b = (targets + size * shared + 0.1 * rng.normal(size=num_rows) for size in (0.5, 0.7))
    return a[:, None], b[:, None], targets


def test_paired_difference_is_narrower_than_the_unpaired_one() -> None:
    a, b, labels = two_models()
    scores = board(a, b, labels)
    paired = scores.differences("b", "a")["accuracy"]
    values = [intervals(TASK.scores(m, labels), seed=seed)["accuracy"] for seed, m in enumerate((a, b))]
    unpaired = np.sqrt(sum((v["high"] - v["low"]) ** 2 for v in values))
    assert paired["value"] == pytest.approx(values[0]["value"] - values[1]["value"])
    assert paired["low"] <= paired["value"] <= paired["high"]
    assert paired["high"] - paired["low"] < 0.7 * unpaired
    said = board(a, b, labels, num_samples=1000, seed=0).differences("b", "a")["log_loss"]
    assert scores.differences("b", "a")["log_loss"] == pytest.approx(said, rel=1e-9)


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1", "log_loss", "pearson", "rmse"])
def test_paired_difference_equals_scipy(metric: str) -> None:
    is_number = metric in ("pearson", "rmse")
    a, b, truth = two_regressions(100) if is_number else two_models(100)
    task = TextRegression() if is_number else TASK

    def statistic(rows: np.ndarray) -> float:
        one = np.ones((len(rows), 1), np.float32)
        first, second = (task.scores(m[rows], truth[rows]).weighted(one)[metric][0] for m in (a, b))
        return float(first - second)

    expected = stats.bootstrap(
        (np.arange(100),),
        statistic,
        vectorized=False,
        n_resamples=300,
        method="percentile",
        rng=np.random.default_rng(9),
    ).confidence_interval
    samples = board(a, b, truth, task, num_samples=300, seed=9).samples
    found = np.quantile(samples["a"][metric] - samples["b"][metric], [0.025, 0.975])
    assert found == pytest.approx(tuple(expected), abs=1e-6)


def test_a_model_does_not_differ_from_itself() -> None:
    a, b, labels = two_models(50)
    for metric, found in board(a, a, labels, num_samples=100).differences("a", "b").items():
        if METRICS[metric].bounds and metric != "auc":  # 50 rows on which nothing differs prove no equality
            assert found["low"] < found["value"] == 0 < found["high"], metric
        elif metric != "auc":
            assert found == {"value": 0, "low": 0, "high": 0}, metric
    both = board(a, b, labels, num_samples=100)
    there, back = both.differences("b", "a")["mcc"], both.differences("a", "b")["mcc"]
    assert (there["value"], there["low"], there["high"]) == pytest.approx((-back["value"], -back["high"], -back["low"]))
    same = board(*(two_regressions()[0],) * 2, two_regressions()[2], TextRegression()).differences("a", "b")
    assert all(found == {"value": 0, "low": 0, "high": 0} for found in same.values())


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1", "log_loss"])
def test_difference_of_many_windows_of_few_examples_is_wide(metric: str) -> None:
    a, b, labels = two_models(600)
    by_row, by_example = (
        board(a[i], b[i], labels[i], example_ids=ids).differences("b", "a")[metric]
        for i in [np.repeat(np.arange(60), 10)]
        for ids in (np.arange(600), i)
    )
    ratio = (by_example["high"] - by_example["low"]) / (by_row["high"] - by_row["low"])
    assert ratio == pytest.approx(np.sqrt(10), rel=0.3)


def test_rows_without_a_label_count_for_agreement_only() -> None:
    a, b, labels = two_models(60)
    some = np.arange(60) % 3 > 0
    tasks, outputs, targets = {"a": TASK, "b": TASK}, {"a": a, "b": b}, Targets(labels, some)
    whole = Scoreboard(tasks, outputs, targets, example_ids=np.arange(60), num_samples=100)
    part = board(a[some], b[some], labels[some], num_samples=100)
    assert whole.num_rows == part.num_rows == 40
    assert whole.intervals("a") == part.intervals("a")
    assert whole.differences("a", "b") == part.differences("a", "b")
    assert whole.agreement("a", "b") == pytest.approx((a.argmax(1) == b.argmax(1)).mean())


def test_a_pair_says_all_of_two_models() -> None:
    a, b, labels = two_models(80)
    found = board(a, b, labels, num_samples=100).pair("a", "b")
    right = [m.argmax(1) == labels for m in (a, b)]
    assert found["mcnemar"]["only_second"] == int((right[1] & ~right[0]).sum())
    assert found["differences"]["accuracy"]["value"] == pytest.approx(right[1].mean() - right[0].mean())
    numbers = board(*two_regressions(), TextRegression(), num_samples=100).pair("a", "b")
    assert numbers["mcnemar"] is None  # nothing is right or wrong
    assert numbers["agreement"] == pytest.approx(stats.pearsonr(*(m[:, 0] for m in two_regressions()[:2])).statistic)


def test_a_ratio_is_paired_and_needs_something_to_divide_by() -> None:
    a, b, targets = two_regressions()
    task = TextRegression()
    scores = board(a, b, targets, task, num_samples=400)
    found, values = scores.ratio("a", "b", "pearson"), {m: scores.scores[m].values["pearson"] for m in "ab"}
    assert found["value"] == pytest.approx(values["b"] / values["a"])
    assert found["low"] < found["value"] < found["high"] < 1.0
    ends = [scores.intervals(m)["pearson"] for m in "ab"]
    assert found["high"] - found["low"] < (ends[1]["high"] / ends[0]["low"]) - (ends[1]["low"] / ends[0]["high"])
    assert board(-a, b, targets, task).ratio("a", "b", "pearson") == {"value": None, "low": None, "high": None}


def two_masked(num_documents: int = 40) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Nats of each hidden token of documents by two models that find the same tokens hard; some have none hidden."""
    rng = np.random.default_rng(3)
    shared = [rng.gamma(2.0, 1.0, size) for size in rng.integers(0, 9, num_documents)]
    return shared, [nats * rng.uniform(0.9, 1.2, len(nats)) for nats in shared]


def as_outputs(documents: list[np.ndarray]) -> Ragged:
    """Log-probability of the right token, the likeliest one, and its log-probability."""
    rows = [np.column_stack([-nats, np.ones_like(nats), -nats]) for nats in documents]
    return Ragged(np.concatenate(rows), np.array([len(row) for row in rows]))


AMOUNTS = {
    "perplexity": lambda nats: np.exp(np.concatenate(nats).mean()),
    "rmse": lambda errors: np.sqrt(np.mean(np.square(errors))),
    "mae": lambda errors: np.mean(np.abs(errors)),
}
"""Of the nats of documents' hidden tokens, or of the errors of rows."""


def two_with(metric: str) -> tuple[Scoreboard, list[np.ndarray], list[np.ndarray]]:
    """A scoreboard of two models a and b, and what each of AMOUNTS is computed from, by document or row."""
    if metric != "perplexity":
        a, b, truth = two_regressions(100)
        return board(a, b, truth, TextRegression(), num_samples=500), list(a[:, 0] - truth), list(b[:, 0] - truth)
    a, b = two_masked()
    outputs = [as_outputs(nats) for nats in (a, b)]
    targets = Ragged(np.zeros((len(outputs[0].flat), 3), np.int32), outputs[0].lengths)
    return board(*outputs, targets, MaskedLanguageModeling(), num_samples=500), a, b


@pytest.mark.parametrize("metric", ["perplexity", "rmse", "mae"])
def test_a_ratio_of_amounts_is_the_bootstrap_of_numpy_alone(metric: str) -> None:
    (scores, *models), amount = two_with(metric), AMOUNTS[metric]
    draws = np.random.default_rng(0).integers(0, len(models[0]), (500, len(models[0])))
    value = amount(models[1]) / amount(models[0])
    first, second = (np.array([amount([model[i] for i in drawn]) for drawn in draws]) for model in models)
    resampled = second / first
    pair = scores.pair("a", "b")
    found = pair["ratios"][metric]
    ends = np.quantile(resampled, [0.025, 0.975])
    assert (found["value"], found["low"], found["high"]) == pytest.approx((value, *ends), rel=1e-6)
    assert 1 < found["low"] < found["high"]
    assert set(pair["ratios"]) == ({"perplexity"} if metric == "perplexity" else {"rmse", "mae"})
    kept = scores.retention("a", "b", metric)  # b is the student: it has more of what is better the less there is
    ends = np.quantile(1 / resampled, [0.025, 0.975])
    assert (kept["value"], kept["low"], kept["high"]) == pytest.approx((1 / value, *ends), rel=1e-6)
    assert kept["value"] == pytest.approx(METRICS[metric].retention(value, 1.0))


def test_an_amount_that_may_be_0_has_no_ratio() -> None:
    """Where a few rows alone have an error, some resamples have none: without those a ratio would be too low."""
    _, b, truth = two_regressions(50)
    few, none = truth.copy()[:, None], truth.copy()[:, None]
    few[:2] += 0.5
    undefined = {"value": None, "low": None, "high": None}
    for perfect in (few, none):
        scores = board(perfect, b, truth, TextRegression(), num_samples=200)
        assert scores.ratio("a", "b", "mae") == undefined
        assert scores.retention("b", "a", "mae") == undefined
        assert scores.pair("a", "b")["ratios"] == {"rmse": undefined, "mae": undefined}
        assert scores.ratio("b", "a", "mae")["high"] < 1


def test_metrics_that_are_not_wanted_may_be_missing_and_others_are_the_same() -> None:
    a, b, targets = two_regressions()
    few, all_of_them = (board(a, b, targets, TextRegression(), **more) for more in ({"wanted": {"r2"}}, {}))
    assert few.differences("a", "b")["r2"] == all_of_them.differences("a", "b")["r2"]
    assert few.intervals("a")["r2"] == all_of_them.intervals("a")["r2"]
    assert "spearman" not in few.intervals("a")


def test_each_model_is_scored_with_its_own_thresholds() -> None:
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 2, (200, 3))
    logits = 2.0 * targets + rng.normal(size=(200, 3)) - 3
    plain = MultiLabelClassification(("a", "b", "c"))
    tasks = {"a": plain, "b": plain.fitted(logits, targets)}
    found = Scoreboard(tasks, {"a": logits, "b": logits}, labeled(targets), num_samples=100)
    first, second = (found.scores[name].values for name in "ab")
    assert second["macro_f1"] > first["macro_f1"] + 0.1
    assert second["auc"] == first["auc"]
    assert found.agreement("a", "b") == pytest.approx((tasks["a"].decide(logits) == tasks["b"].decide(logits)).mean())


def test_what_pages_know_of_a_task() -> None:
    found = describe_task(TextRegression(3.0, 1.5))
    assert (found["type"], found["main_metric"], found["metrics"][0]) == ("text_regression", "pearson", "pearson")
    assert task_of(found["facts"]).output_scale == (3.0, 1.5)
    assert "mean" in found["guessing"]


def test_retention() -> None:
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
    words = {"perplexity": 50.0, "rmse": 0.5, "mae": 0.1, "log_loss": 0.3, "calibration_error": 0.1}
    less = {"perplexity": 40.0, "rmse": 0.6, "mae": float("nan"), "log_loss": 0.2, "calibration_error": 0.2}
    found = {"perplexity": pytest.approx(0.8), "rmse": pytest.approx(1.2), "mae": None}
    assert compare.retention(words, less) == found  # less is better: above 1 the student has less than its teacher
    assert compare.retention({"rmse": 0.0}, {"rmse": 0.1}) == {"rmse": None}


def predictions(task: Task, outputs: np.ndarray, **more: np.ndarray) -> compare.Predictions:
    """Of rows a, b, c by models that have these outputs."""
    found = {"student": outputs, **more}
    targets = labeled(np.arange(3))
    return compare.Predictions(("a", "b", "c"), targets, np.arange(3), found, dict.fromkeys(found, task))


def test_kept_outputs_come_in_the_order_that_is_asked_for() -> None:
    kept = predictions(TASK, np.arange(9.0).reshape(3, 3))
    found = kept.aligned(["c", "a"], TextClassification(("z", "x", "y")))
    assert found is not None
    assert found.outputs["student"].tolist() == [[8, 6, 7], [2, 0, 1]]
    assert found.tasks["student"].outputs == ("z", "x", "y")
    assert found.targets.values.tolist() == [2, 0]
    assert (found.hashes, found.example_ids.tolist()) == (("c", "a"), [2, 0])
    assert kept.aligned(["a", "d"], TASK) is None
    assert kept.aligned(["a"], TextClassification(("x", "y"))) is None
    assert kept.aligned(["a"], MultiLabelClassification(("x", "y", "z"))) is None


def test_thresholds_go_with_their_labels() -> None:
    task = MultiLabelClassification(("x", "y", "z"), (0.1, 0.2, 0.3))
    found = predictions(task, np.zeros((3, 3))).aligned(["a"], MultiLabelClassification(("z", "x", "y")))
    assert found is not None
    assert found.tasks["student"].facts()["thresholds"] == pytest.approx([0.3, 0.1, 0.2])


def chance_of(logits: np.ndarray, labels: np.ndarray) -> dict:
    scores = TextClassification(("x", "y", "z")[: logits.shape[1]]).scores(logits, labels)
    return compare.chance(intervals(scores, 500), scores.floor())


def test_chance_is_called_chance() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [80, 60, 60])
    guessing = chance_of(rng.normal(size=(200, 3)), labels)
    assert guessing.pop("why").endswith('is not above the 40.0 of always answering "x"')
    said = {"metric": "accuracy", "value": 0.4, "answer": 'always answering "x"'}
    assert guessing == {"at_chance": True, "reason": "floor", **said}
    constant = chance_of(np.tile([0.0, 2.0, 1.0], (200, 1)), labels)
    assert (constant["at_chance"], constant["reason"]) == (True, "constant")
    assert constant["why"] == 'it answers "y" for every row'
    learned = chance_of(rng.normal(size=(200, 3)) + 1.5 * np.eye(3)[labels], labels)
    assert (learned["at_chance"], learned["reason"], learned["why"]) == (False, None, "")


def test_chance_on_skewed_classes_says_that_something_was_learned() -> None:
    labels = np.repeat([0, 1], [900, 100])
    predictions = labels.copy()
    predictions[:60] = 1
    predictions[-50:] = 0  # accuracy 0.89 < 0.9, and yet half of the rare class is found
    result = chance_of(np.eye(2)[predictions], labels)
    assert (result["at_chance"], result["reason"]) == (True, "floor_only")
    assert "MCC" in result["why"]


@pytest.mark.parametrize(
    ("low", "mcc_low", "reason"),
    [(0.5, 0.0, "floor"), (0.5, 0.01, "floor_only"), (0.5, None, "floor"), (0.51, 0.1, None), (None, 0.1, None)],
)
def test_an_interval_that_begins_at_the_floor_is_chance(
    low: float | None, mcc_low: float | None, reason: str | None
) -> None:
    found = {"accuracy": {"value": 0.6, "low": low, "high": 0.7}, "mcc": {"value": 0.2, "low": mcc_low, "high": 0.3}}
    result = compare.chance(found, Floor("accuracy", 0.5, "always the same", None, ("mcc", 0.0)))
    assert (result["at_chance"], result["reason"], result["value"]) == (bool(reason), reason, 0.5)


@pytest.mark.parametrize(
    ("task", "values"),
    [
        (TextClassification(("x", "y", "é")), np.arange(30, dtype=np.int16) % 3),
        (TextRegression(3.25, 1 / 3), np.linspace(0, 1, 30)),
        (MultiLabelClassification(("x", "y", "é"), (0.1, 1 / 3, 0.7)), np.eye(3, dtype=np.int8)[np.arange(30) % 3]),
    ],
    ids=["classes", "numbers", "labels"],
)
def test_predictions_come_back(task: Task, values: np.ndarray, tmp_path: Path) -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 30, len(task.outputs)))
    targets = Targets(values, np.arange(30) != 3)
    hashes, ids = [f"{i:016x}" for i in range(30)], (np.arange(30) // 3).astype(np.int16)
    tasks = {"student": task, "teacher": task.fitted(a, values)}
    outputs = {"student": a, "teacher": b}
    path = compare.write_predictions(tmp_path, "test", hashes, targets, outputs, tasks, example_ids=ids)
    assert path.is_file()
    assert path.parent == tmp_path
    assert pq.ParquetFile(path).metadata.row_group(0).column(0).compression == "ZSTD"
    kept = compare.read_predictions(tmp_path, "test")
    assert kept.hashes == tuple(hashes)
    assert {name: own.facts() for name, own in kept.tasks.items()} == {n: own.facts() for n, own in tasks.items()}
    np.testing.assert_array_equal(kept.targets.labeled, targets.labeled)
    np.testing.assert_array_equal(kept.targets.values[targets.labeled], values[targets.labeled])
    np.testing.assert_array_equal(kept.example_ids, ids)
    assert kept.example_ids.dtype == np.int64
    for name, found in outputs.items():
        np.testing.assert_array_equal(kept.outputs[name], found.astype(np.float32))
    compare.write_predictions(tmp_path, "test", hashes, targets, {}, {})  # a row is an example, unless said otherwise
    kept = compare.read_predictions(tmp_path, "test")
    assert (kept.example_ids.tolist(), kept.tasks, kept.outputs) == (list(range(30)), {}, {})


@pytest.mark.parametrize("content", [None, b"PAR1 and then nothing"])
def test_missing_or_damaged_predictions_are_named(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "predictions-test.parquet").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"predictions-test\.parquet.*Evaluate the model again"):
        compare.read_predictions(tmp_path, "test")


@pytest.mark.parametrize(
    ("words", "told"), [("accuracy", "Accuracy"), ("mAP at IoU 0.5", "mAP at IoU 0.5"), ("a", "A")]
)
def test_a_line_begins_with_a_capital_but_for_names(words: str, told: str) -> None:
    assert capitalized(words) == told
