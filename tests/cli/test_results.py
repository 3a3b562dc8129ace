"""results.json, the table at 80 columns, the verdict's honesty."""

import io
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kit.outcomes import multi_label_outcome, outcome, outcome_of, regression_outcome, with_perturbed
from kit.servers import make_config
from rich.console import Console

from raydistill.cli.show.labels import print_labels
from raydistill.cli.show.results import print_found, print_next_steps, print_results
from raydistill.config.metrics import METRICS, metric
from raydistill.evaluate.intervals import intervals
from raydistill.evaluate.results import RunMeasurements, SplitRows, build_results
from raydistill.evaluate.scoreboard import Scoreboard
from raydistill.evaluate.verdict import verdict as verdict_of
from raydistill.tasks import task_of
from raydistill.tasks.regression import TextRegression


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    return build_results(outcome())


MODELS = ("teacher", "student", "baseline")
SHARE = metric("accuracy")


def printed(results: dict[str, Any], width: int = 80) -> str:
    stream = io.StringIO()
    print_results(Console(file=stream, width=width, no_color=True), results)
    return stream.getvalue()


def test_schema_of_the_design(results: dict[str, Any]) -> None:
    assert results["schema"] == 2
    assert list(results)[:4] == ["schema", "run_id", "model_version", "task"]
    assert results["task"]["main_metric"] == results["task"]["metrics"][0] == "accuracy"
    assert results["labels"] == results["task"]["facts"]["outputs"] == ["class 0", "class 1", "class 2"]
    assert results["data"]["labeled"] == {"train": 150, "test": 500}
    assert results["data"]["summary"].startswith("3 classes: ")
    for name in ("student", "teacher", "baseline"):
        model = results[name]
        assert set(model["test"]) == set(model["validation"]) > set(results["task"]["metrics"])
        assert set(model["latency_ms"]) == {"p50", "p95"}
        assert all(set(value) == {"value", "low", "high"} for value in model["test"].values())
        assert len(model["per_class"]) == len(model["confusion"]) == 3
        assert sum(map(sum, model["confusion"])) == sum(b["rows"] for b in model["reliability"]) == 500
    assert (results["baseline"]["steps"], results["baseline"]["start"]) == (730, "same")
    assert results["champion"] is None
    assert results["differences"]["student_minus_champion"] is None
    assert results["ratios"] == {
        "num_parameters": pytest.approx(103 / 227, rel=1e-5),
        "bytes": pytest.approx(103 / 227, rel=1e-4),
        "latency_p50": pytest.approx(1 / 2.9, rel=1e-5),
        "throughput": pytest.approx(2.9, rel=1e-5),
    }
    assert results["seconds"] == {"train": 30.1235}
    assert results["config"]["stages"]["distill"]["learning_rate"] == 5e-5


def test_numbers_are_those_of_the_parts(results: dict[str, Any]) -> None:
    run = outcome()
    student, teacher, labels = run.student.test, run.teacher.test, run.test.targets.values
    expected = intervals(run.task.scores(student, labels), 300)
    for name, value in results["student"]["test"].items():
        assert value == pytest.approx(expected[name], rel=1e-5)
    for other, logits in (("teacher", teacher), ("baseline", run.baseline.test)):
        tasks = dict.fromkeys(("a", "b"), run.task)
        board = Scoreboard(tasks, {"a": logits, "b": student}, run.test.targets, num_samples=300)
        difference = board.differences("a", "b")["mcc"]
        assert results["differences"][f"student_minus_{other}"]["mcc"] == pytest.approx(difference, rel=1e-5)
    assert results["agreement"] == (student.argmax(1) == teacher.argmax(1)).mean()
    ratio = (student.argmax(1) == labels).sum() / (teacher.argmax(1) == labels).sum()
    assert results["retention"]["accuracy"] == pytest.approx(ratio, rel=1e-5)


def test_strict_json_round_trip() -> None:
    run = outcome()
    keep = run.test.targets.values == 1  # the other classes are absent: no AUC
    rows = SplitRows(run.test.targets.take(keep), run.test.example_ids[keep])
    cut = {n: replace(getattr(run, n), test=getattr(run, n).test[keep]) for n in ("teacher", "student", "baseline")}
    seconds = {"train": np.float32(1.5), "record": float("inf")}
    results = build_results(replace(run, test=rows, seconds=seconds, num_rows={"test": np.int64(3)}, **cut))
    text = json.dumps(results, allow_nan=False)
    assert json.loads(text) == results
    assert results["student"]["test"]["auc"] == {"value": None, "low": None, "high": None}
    assert results["retention"]["auc"] is None
    assert results["seconds"] == {"train": 1.5, "record": None}
    assert "AUC" in printed(results)


def test_rows_without_label_count_for_agreement_only() -> None:
    run = outcome()
    targets = run.test.targets.only(np.arange(500) < 100)
    results = build_results(replace(run, test=SplitRows(targets, run.test.example_ids)))
    hits = run.student.test.argmax(1) == targets.values
    assert results["student"]["test"]["accuracy"]["value"] == pytest.approx(hits[:100].mean())
    assert results["agreement"] == (run.student.test.argmax(1) == run.teacher.test.argmax(1)).mean()
    assert results["data"]["labeled"]["test"] == 100
    assert "100 labelled test rows" in printed(results)


def test_curves_are_thinned_and_keep_validation(results: dict[str, Any]) -> None:
    steps = [point["step"] for point in results["curves"]["student"]]
    assert len(steps) <= 401
    assert steps[-1] == 1000
    assert len(results["curves"]["baseline"]) == 300


def test_table_fits_80_columns(results: dict[str, Any]) -> None:
    text = printed(results)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    for part in ("teacher", "student", "without teacher", "730 steps", "22.7 M", "41.2 MB", "4.14"):
        assert part in text
    accuracy = results["student"]["test"]["accuracy"]
    assert f"[{100 * accuracy['low']:.1f}, {100 * accuracy['high']:.1f}]" in text
    prose = " ".join(text.split())
    assert "500 labelled test rows" in prose
    assert "trained on labels alone, from the same weights as the student." in prose
    assert "Latency of 1 row, speed at 32 rows, of 16 tokens: 2 CPU threads, float32." in prose
    assert prose.startswith(results["verdict"])
    assert "\x1b" not in text


def test_rows_written_otherwise_are_in_the_table() -> None:
    made = with_perturbed(outcome(num_rows=600), {"upper": (0.5, 2.5), "typos": (0.5, 0.5)})
    champion = replace(made.student, latency=None, latency_by_shape=None, more={"version": 3})
    beside = printed(build_results(replace(made, champion=champion)))
    assert max(map(len, beside.splitlines())) <= 80
    assert "…" not in beside
    (line,) = [line for line in beside.splitlines() if line.startswith("with typos, %")]
    assert line.split()[-1] == "-"  # what the champion says of these rows nobody knows
    results = build_results(made)
    text = printed(results)
    lines = {line[:16].strip(): line[16:].split() for line in text.splitlines() if line[:16].strip()}
    assert max(map(len, text.splitlines())) <= 80
    for name, words in (("upper", "upper-cased, %"), ("typos", "with typos, %")):
        models = results["robustness"]["perturbations"][name]["models"]
        assert lines[words] == [*(f"{100 * models[model]['value']:.1f}" for model in MODELS)]
        bounds = [", ".join(SHARE.text(models[m]["change"][end]) for end in ("low", "high")) for m in MODELS]
        assert all(bound in text for bound in bounds)
    said = " ".join(text.split())
    assert "Upper-cased, with typos: accuracy on the test rows so written, and the interval of its change." in said
    assert "Lower-cased: every model reads the same as before" in said


def test_champion_has_a_column_of_its_own() -> None:
    run = outcome()
    champion = replace(run.baseline, more={"version": 12}, validation=None, latency=None)
    pretrained = replace(run.baseline, more={"steps": 1_234_567, "start": "pretrained"})
    results = build_results(replace(run, baseline=pretrained, champion=champion))
    assert results["champion"]["version"] == 12
    assert results["champion"]["validation"] is None
    assert results["champion"]["latency_ms"] is None
    text = printed(results)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    assert [line.split() for line in text.splitlines() if line.endswith(" 12")]
    assert "from the weights before fine-tuning" in " ".join(text.split())
    assert "the student is better" in text


def with_words(run: RunMeasurements, strength: float) -> RunMeasurements:
    """With a linear model on TF-IDF that knows so much."""
    words = outcome(baseline=strength).baseline
    more = {"model": "logistic regression", "num_rows": 150}
    return replace(run, tfidf=replace(words, path=None, latency=None, more=more))


def test_the_linear_model_has_a_column_of_its_own() -> None:
    run = with_words(outcome(), 1.6)
    results = build_results(run)
    assert results["tfidf"]["test"] == results["baseline"]["test"]  # of the same outputs
    assert results["differences"]["student_minus_tfidf"] == results["differences"]["student_minus_baseline"]
    assert (results["tfidf"]["path"], results["tfidf"]["throughput"]) == (None, None)
    both = build_results(replace(run, champion=replace(run.baseline, more={"version": 12})))
    for found, narrow in ((results, True), (both, True), (build_results(outcome()), False)):
        text = printed(found)
        assert max(map(len, text.splitlines())) <= 80
        assert "…" not in text
        assert ("without teacher" in text) != narrow
    value, low, high = (f"{100 * results['tfidf']['test']['accuracy'][key]:.1f}" for key in ("value", "low", "high"))
    lines = printed(both).splitlines()
    row = next(i for i, line in enumerate(lines) if line.startswith("accuracy, %"))
    assert lines[row].split()[-2:] == [value, value]
    assert lines[row + 1].split()[-2:] == [f"[{low},"] * 2
    assert lines[row + 2].split()[-2:] == [f"{high}]"] * 2
    prose = " ".join(printed(both).split())
    assert "logistic regression on words and pairs of words, fitted to 150 labelled rows." in prose
    assert "macro precision, %" in printed(both)


@pytest.mark.parametrize(
    "made", [outcome(), multi_label_outcome(), regression_outcome()], ids=lambda made: made.task.type
)
def test_several_seeds_are_told_by_mean_and_spread(made: RunMeasurements) -> None:
    main = made.task.Settings.metrics[0]
    one = {"seed": 1, "test": {main: {"mean": 0.8765, "sd": 0.0124}}, "values": []}
    told = "87.6 ± 1.2" if made.task.kind != "value" else "0.876 ± 0.012"
    for seeds in ({"num": 3, "student": one, "baseline": one}, {"num": 3, "student": one, "baseline": None}):
        narrow = replace(with_words(made, 1.0), champion=replace(made.baseline, more={"version": 12}))
        narrow = replace(narrow, tfidf=replace(made.baseline, path=None, latency=None, more=narrow.tfidf.more))
        for run in (made, narrow):
            results = build_results(replace(run, seeds=seeds))
            text = printed(results)
            assert max(map(len, text.splitlines())) <= 80
            assert "…" not in text
            (at,) = [i for i, line in enumerate(text.splitlines()) if line.startswith("  3 seeds, mean")]
            row = " ".join(text.splitlines()[at : at + 2]).split()
            assert row.count(told.split()[0]) == 1 + (seeds["baseline"] is not None)
        unit = " %" if made.task.kind != "value" else ""
        ends = f" with the teacher, {told} without." if seeds["baseline"] else "."
        said = f"Over 3 seeds, mean ± standard deviation: {METRICS[main].words} {told}{unit}{ends}"
        assert said in results["verdict"]


@pytest.mark.parametrize(("strength", "said"), [(1.6, None), (2.3, "does as well as"), (3.2, "is better than")])
def test_the_verdict_names_a_linear_model_that_does_as_well(strength: float, said: str | None) -> None:
    results = build_results(with_words(outcome(), strength))
    assert ("linear model" in results["verdict"]) == (said is not None)
    if said is not None:
        difference = results["differences"]["student_minus_tfidf"]["accuracy"]
        reached = f"{100 * results['tfidf']['test']['accuracy']['value']:.1f} %"
        told = f"A linear model on TF-IDF {said} the student: accuracy {reached} (difference"
        assert told in results["verdict"]
        assert (difference["high"] < 0) == (said == "is better than")
    errors = lower_is_better(build_results(replace(regression_outcome(), tfidf=regression_outcome().baseline)))
    assert "linear model" not in verdict_of(errors)


def test_without_baseline_and_latency() -> None:
    run = outcome()
    bare = {n: replace(getattr(run, n), latency=None) for n in ("teacher", "student")}
    results = build_results(replace(run, baseline=None, **bare))
    assert results["baseline"] is None
    assert results["ratios"]["latency_p50"] is None
    text = printed(results)
    assert "latency" not in text.lower()
    assert "evaluate.baseline" in text


def test_verdict_names_the_gain(results: dict[str, Any]) -> None:
    difference = results["differences"]["student_minus_baseline"]["accuracy"]
    assert difference["low"] > 0
    numbers = [f"{100 * difference[k]:.1f}" for k in ("value", "low", "high")]
    retention = f"{100 * results['retention']['accuracy']:.1f}"
    accuracy = f"{100 * results['baseline']['test']['accuracy']['value']:.1f}"
    student = f"{100 * results['student']['test']['accuracy']['value']:.1f}"
    assert results["verdict"] == (
        f"The teacher is worth it: accuracy {student} % with it, {accuracy} without (difference {numbers[0]} points, "
        f"95 % interval {numbers[1]} to {numbers[2]}). The student keeps {retention} % of its teacher's accuracy at "
        "45 % of its parameters and 2.9x lower latency."
    )


def test_a_teacher_below_the_student_without_it_is_named_with_the_way_out() -> None:
    """It got 150 steps in five epochs, the student without it 730: as many are 25 epochs."""
    run = outcome(teacher=1.2, student=1.4, baseline=2.3)
    curve = [{"step": step, "metrics": {"train/loss": 1.0}} for step in range(1, 151)]
    tuned = {"teacher": {"finetune": {"num_epochs": 5}}}
    found = build_results(replace(run, curves={**run.curves, "teacher": curve}, config={**run.config, **tuned}))
    difference = found["differences"]["teacher_minus_baseline"]["accuracy"]
    assert difference["high"] < 0
    assert f"(difference {100 * difference['value']:.1f} points" in found["verdict"]
    assert "The teacher is worse than the student without it: accuracy " in found["verdict"]
    assert (
        found["verdict"].count("fine-tuned for 150 steps, the student without it for 730: train it longer (--set") == 1
    )
    assert "teacher.finetune.num_epochs=25)" in found["verdict"]
    assert "fine-tuned for" not in build_results(run)["verdict"]
    assert "worse than the student without it" not in build_results(outcome())["verdict"]


def decided(run: RunMeasurements, **config: Any) -> dict[str, Any]:
    """The decision on a run with these sections of its config."""
    return dict(build_results(replace(run, config={**run.config, **config}))["decision"])


def calibrated(run: RunMeasurements) -> RunMeasurements:
    """The student states its certainty as it is."""
    return replace(run, student=replace(run.student, test=2.2 * run.student.test))


def test_a_student_that_the_gate_would_pass_is_shipped() -> None:
    found = decided(calibrated(outcome()), registry={"name": "toy"})
    assert found == {
        "decision": "ship",
        "reason": "On 500 labelled test rows the student passes each rule of the default gate that needs no champion.",
        "next": "Next: `raydistill promote toy`.",
    }
    assert "registry.name" in decided(calibrated(outcome()))["next"]


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"data": {"split": {"test": 0.2}}}, "Hold more out (--set data.split.test=0.21)."),
        ({"data": {"split": {"test": 0.5}}}, "Label more rows."),
        ({"registry": {"name": "toy"}}, "Label more rows or name others (`raydistill promote toy --data FILE`)."),
    ],
)
def test_on_few_rows_it_cannot_be_told(config: dict[str, Any], told: str) -> None:
    """A test set that is two rows too small makes no bad model of a good one."""
    found = decided(calibrated(outcome(num_rows=198)), **config)
    assert found["decision"] == "cannot tell yet"
    assert found["reason"] == "The student was tested on 198 labelled rows; the gate needs at least 200."
    assert found["next"] == told


def test_the_decision_names_the_class_that_is_missed() -> None:
    run = outcome()
    labels = run.test.targets.values
    logits = np.where((labels == 2)[:, None], np.array([9.0, 0.0, 0.0]), 9.0 * np.eye(3)[np.maximum(labels, 0)])
    run = replace(run, student=replace(run.student, test=logits), teacher=replace(run.teacher, test=logits))
    found, rows = decided(run), int((labels == 2).sum())
    assert found["decision"] == "do not ship"
    assert f"(recall: class 2 0.0 % of {rows} rows); the gate asks for at least 50.0 %" in found["reason"]
    assert found["next"].startswith("Label more rows of it")


@pytest.mark.parametrize(
    ("run", "reason", "step"),
    [
        (outcome(), "expected calibration error is 0.193; the gate allows at most 0.15", "Rely on its answers"),
        (outcome(student=1.0), "% of its teacher's accuracy; the gate asks for at least 95.0 %", "num_layers=3"),
        (outcome(student=0.0), "is no better than guessing the most frequent class: its accuracy", "num_layers=3"),
        (outcome(student=0.0, num_rows=60), "no better than guessing", "num_layers=3"),
        (outcome(student=0.0, teacher=0.0), "no better than guessing", "Its teacher is no better"),
        (replace(calibrated(outcome()), champion=outcome(teacher=4.0).teacher), "champion is better", "stays"),
    ],
    ids=["calibration", "retention", "chance", "few rows, too", "teacher", "champion"],
)
def test_one_reason_not_to_ship_is_told_with_a_way_out(run: RunMeasurements, reason: str, step: str) -> None:
    found = decided(run, student={"num_layers": 2})
    assert found["decision"] == "do not ship"
    assert reason in found["reason"]
    assert step in found["next"]


def test_the_decision_is_the_first_line(results: dict[str, Any]) -> None:
    stream = io.StringIO()
    print_found(Console(file=stream, width=400, no_color=True), {**results, "notes": ["a note"]})
    assert stream.getvalue().startswith(
        "Do not ship. The student's expected calibration error is 0.193; the gate allows"
    )


@pytest.mark.parametrize(
    ("strengths", "parts"),
    [
        ({"baseline": 2.3}, ["no measurable gain", "-"]),
        ({"student": 1.4, "baseline": 2.3}, ["The teacher does harm here"]),
        ({"student": 0.0}, ["The student is no better than guessing the most frequent class: its accuracy of"]),
        ({"student": 0.0, "teacher": 0.0}, ["The student is no better than guessing", "Nor is its teacher any better"]),
        ({"teacher": 0.0}, ["The teacher itself is no better than guessing"]),
        ({"baseline": 0.0}, ["no better than guessing"]),
        ({"teacher": 2.0, "student": 2.5}, ["The student reaches 10"]),
    ],
)
def test_verdict_is_honest(strengths: dict[str, float], parts: list[str]) -> None:
    results = build_results(outcome(**strengths))
    for part in parts:
        assert part in results["verdict"]
    if strengths.get("student") == 0:
        assert results["student"]["chance"]["at_chance"]
        assert "keeps" not in results["verdict"]
        text = printed(results)
        assert f"* {100 * results['student']['test']['accuracy']['value']:.1f}" in text
        assert "*: no better than guessing the most frequent class." in " ".join(text.split())


def test_student_of_one_answer_is_named() -> None:
    run = outcome()
    constant = np.tile([0.0, 5.0, 0.0], (500, 1))
    results = build_results(replace(run, student=replace(run.student, test=constant)))
    assert 'it answers "class 1" for every row' in results["verdict"]


def said(value: float) -> str:
    return f"{value:.3f}"


def test_the_verdict_on_numbers() -> None:
    """Pearson correlation has no percent and no points; there is no class and no probability to judge."""
    results = build_results(regression_outcome())
    verdict, difference = results["verdict"], results["differences"]["student_minus_baseline"]["pearson"]
    value = {name: said(results[name]["test"]["pearson"]["value"]) for name in ("student", "baseline")}
    kept = f"{100 * results['retention']['pearson']:.1f}"
    assert verdict == (
        f"The teacher is worth it: Pearson correlation {value['student']} with it, {value['baseline']} without "
        f"(difference {said(difference['value'])}, 95 % interval {said(difference['low'])} to "
        f"{said(difference['high'])}). The student keeps {kept} % of its teacher's Pearson correlation at 45 % of its "
        "parameters and 2.9x lower latency."
    )
    text = printed(results)
    assert max(map(len, text.splitlines())) <= 80
    lines = [line.split("  ")[0].strip() for line in text.splitlines()]
    shown = ["Pearson correlation", "Spearman correlation", "R²", "RMSE", "mean absolute error", "agreement, %"]
    assert [line for line in lines if line in shown] == shown
    assert {"confusion", "per_class", "reliability"}.isdisjoint(results["student"])
    assert len(results["student"]["scatter"]) == 500
    assert set(results["retention"]) == {"pearson", "spearman", "r2", "rmse", "mae"}
    assert "; retention: share of its Pearson correlation." in " ".join(text.split())
    assert task_of(results["task"]["facts"]).output_scale == regression_outcome().task.output_scale  # all digits


@pytest.mark.parametrize(
    ("noise", "said"),
    [((0.5, 1.2, 0.6), "The teacher does harm here"), ((0.5, 0.6, 0.6), "The teacher brings no measurable gain")],
)
def test_the_verdict_on_numbers_is_honest(noise: tuple[float, float, float], said: str) -> None:
    assert said in build_results(regression_outcome(noise=noise, seed=4))["verdict"]


def test_answering_the_mean_is_called_that() -> None:
    run = regression_outcome()
    values = run.test.targets.values
    mean = np.full((500, 1), values.mean())
    results = build_results(replace(run, student=replace(run.student, test=mean)))
    told = f"The student is no better than always answering the mean: it answers {values.mean():.4g} for every row."
    assert told in results["verdict"]
    assert "*: no better than always answering the mean." in " ".join(printed(results).split())
    assert results["retention"]["pearson"] == 0
    worse = build_results(replace(run, student=replace(run.student, test=-run.student.test)))
    assert "always answering the mean" in worse["verdict"]


def lower_is_better(results: dict[str, Any]) -> dict[str, Any]:
    """The same results where everything is judged by an error."""
    return results | {"task": results["task"] | {"main_metric": "rmse"}}


def test_less_error_is_better() -> None:
    for noise, word in (((0.5, 0.6, 1.2), "is worth it"), ((0.5, 1.2, 0.6), "does harm"), ((0.5, 0.6, 0.6), "brings")):
        found = build_results(regression_outcome(noise=noise, seed=4))
        worth = verdict_of(lower_is_better(found))
        assert f"The teacher {word}" in worth, noise
        assert "RMSE" in worth
        assert "The student's RMSE is" in worth  # an error is nothing to keep a share of
        assert "%" not in worth.split("The student's")[0].split("(")[0]
    run = regression_outcome()
    for model, word in ((run.baseline, "better"), (run.teacher, "worse")):
        champion = replace(model, more={"version": 3})
        found = build_results(replace(run, champion=champion))
        assert f"the student is {word} (difference" in found["verdict"]
        assert f"the student is {word} (difference" in verdict_of(lower_is_better(found))


def test_the_verdict_on_several_labels_a_row() -> None:
    run = multi_label_outcome()
    results = build_results(run)
    assert "The teacher is worth it: micro F1 " in results["verdict"]
    assert "of its teacher's micro F1" in results["verdict"]
    assert results["task"]["guessing"] == "no better than always giving the same labels"
    text = printed(results)
    assert max(map(len, text.splitlines())) <= 80
    assert "all labels right, %" in text
    entries = results["student"]["per_class"]
    assert [entry["threshold"] for entry in entries] == pytest.approx(run.student.task.thresholds, rel=1e-5)
    assert max(entry["threshold"] for entry in entries) < 0.5  # the logits lie too low
    plain = build_results(replace(run, student=replace(run.student, task=run.task)))
    assert results["student"]["test"]["micro_f1"]["value"] > plain["student"]["test"]["micro_f1"]["value"] + 0.05
    assert results["student"]["test"]["auc"]["value"] == plain["student"]["test"]["auc"]["value"]
    assert results["agreement"] > plain["agreement"]


def test_targets_of_training_units_do_not_matter() -> None:
    """Of numbers a thousand times as large, correlations and their intervals are the same."""
    run = regression_outcome()
    large = outcome_of(
        TextRegression(), 1000 * run.test.targets.values, {n: 1000 * getattr(run, n).test for n in MODELS}
    )
    small, found = build_results(run), build_results(large)
    for name in MODELS:
        assert found[name]["test"]["pearson"] == pytest.approx(small[name]["test"]["pearson"], rel=1e-5)
        assert found[name]["test"]["rmse"]["value"] == pytest.approx(1000 * small[name]["test"]["rmse"]["value"], 1e-5)


def test_the_table_of_labels_shows_the_largest_and_the_smallest_of_many() -> None:
    console = Console(record=True, width=80, file=io.StringIO())
    train = {f"class {i:03}": 1000 - i for i in range(100)}
    print_labels(console, {"train": train, "test": {"class 000": 1}})
    lines = [line.split() for line in console.export_text().splitlines()]
    assert lines[0] == ["label", "train", "test"]
    assert lines[1] == ["class", "000", "1,000", "1"]
    assert lines[11][:3] == ["…", "80", "more"]
    assert lines[-1] == ["class", "099", "901", "0"]
    assert len(lines) == 22
    print_labels(console, {"train": {}, "test": {}})  # numbers have none
    assert console.export_text() == ""


def test_the_labels_of_words_are_those_of_what_they_are_part_of() -> None:
    console = Console(record=True, width=80, file=io.StringIO())
    print_labels(console, {"train": {"O": 90, "B-PER": 7, "I-PER": 3, "B-LOC": 2}, "test": {"O": 9, "I-PER": 1}})
    lines = [line.split() for line in console.export_text().splitlines()]
    assert lines == [["label", "train", "test"], ["O", "90", "9"], ["PER", "10", "1"], ["LOC", "2", "0"]]
    print_labels(console, {"train": {"B-1": 3, "B-2": 4}})  # classes of texts that are called so
    assert "B-1" in console.export_text()


def test_build_is_fast() -> None:
    run = replace(outcome(num_classes=5, num_rows=1500), num_samples=1000)
    start = time.process_time()
    build_results(run)
    assert time.process_time() - start < 5  # CPU seconds; 0.4 measured on one core


@pytest.mark.parametrize("report", ["/storage/runs/abc/report.html", None])
def test_next_steps_name_the_report(results: dict[str, Any], tmp_path: Path, report: str | None) -> None:
    stream = io.StringIO()
    print_next_steps(Console(file=stream, width=80), results | {"report": report}, make_config(storage=str(tmp_path)))
    assert ("Report: /storage/runs/abc/report.html" in stream.getvalue()) == (report is not None)
    assert "raydistill predict models/x" in stream.getvalue()
