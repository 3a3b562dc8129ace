"""What a run's results say of layers, speed and disagreements, and that its page lies beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from kit.browser import figures_of
from kit.finished import NUMBERS, TAGS, WRITERS
from kit.toy import toy_config
from rich.console import Console
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from raydistill.cli.show.results import print_found
from raydistill.config.loading import load_config
from raydistill.deploy.opening import open_folder
from raydistill.deploy.testset import prepared_rows
from raydistill.evaluate.compare import Predictions, read_predictions
from raydistill.evaluate.report import page as run
from raydistill.evaluate.results import SCHEMA
from raydistill.pipeline.distill import distill
from raydistill.storage.artifacts import Artifact
from raydistill.storage.storage import Storage
from raydistill.tasks import task_of
from raydistill.tracking.endpoint import tracking_uri
from raydistill.tracking.registry.aliases import move_champion
from raydistill.tracking.runs import open_client


@pytest.fixture(scope="module")
def toy_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Storage, str]:
    folder = tmp_path_factory.mktemp("run")
    hidden = {"type": "hidden_mse", "layers": "uniform"}
    config = load_config(toy_config(folder, evaluate__latency=True, stages__distill__losses__hidden=hidden))
    results, storage = distill(config), Storage(config.storage)
    (key,) = storage.list("runs")
    return results, storage, key


def test_a_run_leaves_its_page_and_what_it_shows(toy_run: tuple[dict[str, Any], Storage, str]) -> None:
    results, storage, key = toy_run
    page = Path(storage.path("runs", key, "report.html"))
    assert results["report"] == str(page)
    assert {"losses", "validation", "reliability"} <= set(figures_of(page.read_text("utf-8")))
    files = [item.path for item in open_client(tracking_uri(storage)).list_artifacts(results["run_id"])]
    assert "report.html" in files
    assert results["layers"] == {
        "student": 2,
        "teacher": 4,
        "start": [[0, 0], [1, 1], [2, 4]],
        "losses": {"stages.distill.losses.hidden": [[1, 2], [2, 4]]},
        "similarities": None,
    }
    errors = results["errors"]
    wrong = sum(map(sum, results["student"]["confusion"])) - sum(
        row[i] for i, row in enumerate(results["student"]["confusion"])
    )
    assert len(errors) == min(wrong, 10)
    assert all(row["student"]["answer"] != row["label"] for row in errors)
    assert sorted(errors, key=lambda row: -row["student"]["sure"]) == errors
    disagreements = results["disagreements"]
    rows = round((1 - results["agreement"]) * results["data"]["num_rows"]["test"])
    assert len(disagreements) == min(rows, 20)
    assert all(row["student"]["answer"] != row["teacher"]["answer"] for row in disagreements)
    assert json.loads(Path(storage.path("runs", key, "results.json")).read_text())["disagreements"] == disagreements


def test_disagreements_have_the_texts_of_their_rows(toy_run: tuple[dict[str, Any], Storage, str]) -> None:
    results, storage, key = toy_run
    made = dict(name.split("/") for name in storage.read_json("runs", key, "run.json")["artifacts"])
    test = prepared_rows(Artifact(storage, "data", made["data"]), task_of(results["task"]["facts"]))
    logits = read_predictions(Artifact(storage, "evaluation", made["evaluation"]).local(), "test").outputs
    for row in [*results["disagreements"], *results["errors"]]:
        label = results["labels"][test.targets.values[row["row"]]]
        assert (row["text"], row["label"]) == (test.texts[row["row"]], label)
        for name in ("student", "teacher"):
            assert row[name]["answer"] == results["labels"][logits[name][row["row"]].argmax()]


def test_a_linear_model_is_fitted_to_what_the_models_read(toy_run: tuple[dict[str, Any], Storage, str]) -> None:
    """Against scikit-learn on the prepared texts, which are short enough to be whole."""
    results, storage, key = toy_run
    made = dict(name.split("/") for name in storage.read_json("runs", key, "run.json")["artifacts"])
    parts = {split: prepared_part(storage, made["data"], split) for split in ("train", "validation", "test")}
    known = parts["train"][1] >= 0
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\b\w+\b")
    features = words.fit_transform(np.array(parts["train"][0])[known])
    reached = []
    for strength in (1.0, 10.0, 100.0):
        judge = LogisticRegression(C=strength).fit(features, parts["train"][1][known])
        right = {
            split: (judge.predict(words.transform(texts)) == labels).mean() for split, (texts, labels) in parts.items()
        }
        reached.append((right["validation"], right["test"]))
    found = results["tfidf"]
    assert (found["validation"]["accuracy"]["value"], found["test"]["accuracy"]["value"]) == pytest.approx(
        max(reached, key=lambda pair: pair[0]), rel=1e-5
    )
    assert (found["num_rows"], found["model"]) == (60, "logistic regression")
    assert found["num_parameters"] == 3 * (len(words.vocabulary_) + 1)
    assert made["tfidf"] in storage.list("tfidf")


def prepared_part(storage: Storage, key: str, split: str) -> tuple[list[str], np.ndarray]:
    """Texts and class ids of a prepared split, -1 without a label."""
    with pa.memory_map(str(Artifact(storage, "data", key).local() / f"{split}.arrow")) as file:
        table = pa.ipc.open_file(file).read_all()
    return table["text"].to_pylist(), table["target"].fill_null(-1).to_numpy()


def test_a_page_that_cannot_be_drawn_loses_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toy_run: tuple[dict[str, Any], Storage, str]
) -> None:
    without = {"evaluate__baseline": False, "evaluate__tfidf": False}
    config = load_config(toy_config(tmp_path, teacher__finetune__num_epochs=1, **without))
    monkeypatch.setattr(run, "page_text", lambda results: results["no such field"])
    results = distill(config)
    assert results["report"] is None
    assert results["tfidf"] is results["differences"]["student_minus_tfidf"] is None
    assert results["notes"][-1] == "The report was not drawn: KeyError: 'no such field'"
    assert results["model_version"] == 1
    assert distill(config)["reused"] == ["run"]
    storage = Storage(config.storage)
    parts = ("runs", *storage.list("runs"), "results.json")
    storage.write_json({**storage.read_json(*parts), "schema": SCHEMA - 1}, *parts)
    again = distill(config)
    assert {"teacher", "student"} <= set(again["reused"])
    assert (again["schema"], again["model_version"]) == (SCHEMA, 1)


def other_config(folder: Path, kind: str, **changes: Any) -> dict[str, Any]:
    """As ``toy_config``, of numbers around 100 or of several labels a row."""
    rows = WRITERS[kind](folder / "rows.csv", 200)
    kd = {"type": "logit_mse" if kind == NUMBERS else "forward_kl"}
    own = {"task": {"type": kind}, "data__path": str(rows), "data__max_labeled": None, "evaluate__baseline": False}
    own |= {"teacher__finetune__num_epochs": 3, "stages__distill__losses__kd": kd}
    return toy_config(folder, **(own | changes))


@pytest.fixture(scope="module", params=[NUMBERS, TAGS])
def other_run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Storage, Path]:
    folder = tmp_path_factory.mktemp("other")
    config = load_config(other_config(folder, request.param))
    return distill(config), Storage(config.storage), folder


def kept_of(results: dict[str, Any], storage: Storage) -> Predictions:
    (key,) = storage.list("runs")
    made = dict(name.split("/") for name in storage.read_json("runs", key, "run.json")["artifacts"])
    return read_predictions(Artifact(storage, "evaluation", made["evaluation"]).local(), "test")


def test_results_of_other_tasks_are_those_of_the_kept_predictions(other_run: tuple[dict, Storage, Path]) -> None:
    results, storage, _ = other_run
    kept = kept_of(results, storage)
    main = results["task"]["main_metric"]
    for name in ("teacher", "student"):
        value = kept.tasks[name].scores(kept.outputs[name], kept.targets.values).values[main]
        assert results[name]["test"][main]["value"] == pytest.approx(value, rel=1e-5)
    assert results["data"]["labeled"]["test"] == int(kept.targets.labeled.sum())
    if results["task"]["type"] == NUMBERS:  # around 100; outputs in units of training would be far off
        assert results["teacher"]["test"]["rmse"]["value"] < 2 * kept.targets.values.std()
    page = Path(results["report"]).read_text("utf-8")
    assert ("scatter" in figures_of(page)) == ("scatter" in results["student"])
    assert "confusion" not in results["student"]
    card = (Path(results["student"]["path"]) / "README.md").read_text("utf-8")
    assert results["task"]["guessing"] in card or not results["student"]["chance"]["at_chance"]
    console = Console(width=80)
    with console.capture() as shown:
        print_found(console, results)
    assert max(map(len, shown.get().splitlines())) <= 80


def test_outputs_are_kept_in_the_units_of_the_targets(other_run: tuple[dict, Storage, Path]) -> None:
    """The recorded teacher's too, which spoke in units of training; and the saved student answers in them."""
    results, storage, _ = other_run
    kept = kept_of(results, storage)
    student = open_folder(Path(results["student"]["path"]), results["config"]["data"]["max_length"], "cpu")
    teacher = open_folder(Path(results["teacher"]["path"]), results["config"]["data"]["max_length"], "cpu")
    rows = [row for row in results["disagreements"] if row["text_pair"] is None]
    texts, numbers = [row["text"] for row in rows], [row["row"] for row in rows]
    for name, predictor in (("student", student), ("teacher", teacher)):
        found = predictor.outputs(texts)
        np.testing.assert_allclose(kept.outputs[name][numbers], found, rtol=1e-3, atol=1e-3)
    for found, fitted in ((student.task, kept.tasks["student"]), (teacher.task, kept.tasks["teacher"])):
        thresholds = [task.model_settings().get("thresholds", []) for task in (found, fitted)]
        assert thresholds[0] == pytest.approx(thresholds[1], abs=1e-4)


@pytest.mark.slow
def test_a_champion_of_other_tasks_is_compared_on_the_same_rows(other_run: tuple[dict, Storage, Path]) -> None:
    first, storage, folder = other_run
    kind, main = first["task"]["type"], first["task"]["main_metric"]
    move_champion("toy", 1, None, tracking_uri(storage))
    second = distill(load_config(other_config(folder, kind, train__seed=7, stages__distill__num_epochs=1)))
    champion = second["champion"]
    assert champion["test"][main] == pytest.approx(first["student"]["test"][main], rel=1e-3)
    for part in ("per_class", "scatter"):
        assert champion.get(part) == first["student"].get(part)
    assert "The champion reaches" in second["verdict"]
    assert second["tfidf"]["test"] == first["tfidf"]["test"]
    assert len(storage.list("tfidf")) == 1
