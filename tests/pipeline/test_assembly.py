"""What a run's results say of layers, speed and disagreements, and that its page lies beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from kit.browser import figures_of
from kit.toy import toy_config

from raydistill.config.loading import load_config
from raydistill.deploy.testset import prepared_rows
from raydistill.evaluate.compare import read_predictions
from raydistill.evaluate.report import page as run
from raydistill.pipeline.distill import distill
from raydistill.storage.artifacts import Artifact
from raydistill.storage.storage import Storage
from raydistill.tracking.endpoint import tracking_uri
from raydistill.tracking.runs import open_client


@pytest.fixture(scope="module")
def toy_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Storage, str]:
    folder = tmp_path_factory.mktemp("run")
    hidden = {"type": "hidden_mse", "layers": "auto"}
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
        "losses": {"stages.distill.losses.hidden": [[0, 0], [1, 2], [2, 4]]},
    }
    timed = {name: results[name]["latency_by_shape"] for name in ("teacher", "student", "baseline")}
    assert timed["baseline"] is None
    assert timed["teacher"][0]["batch_size"] == 1  # of larger shapes a busy machine may leave some out
    assert [(t["batch_size"], t["length"]) for t in timed["teacher"]] == [
        (t["batch_size"], t["length"]) for t in timed["student"]
    ]
    errors = results["errors"]
    wrong = sum(map(sum, results["student"]["confusion"])) - sum(
        row[i] for i, row in enumerate(results["student"]["confusion"])
    )
    assert len(errors) == min(wrong, 10)
    assert all(row["student"]["class"] != row["label"] for row in errors)
    assert sorted(errors, key=lambda row: -row["student"]["probability"]) == errors
    disagreements = results["disagreements"]
    rows = round((1 - results["agreement"]) * results["data"]["num_rows"]["test"])
    assert len(disagreements) == min(rows, 20)
    assert all(row["student"]["class"] != row["teacher"]["class"] for row in disagreements)
    assert json.loads(Path(storage.path("runs", key, "results.json")).read_text())["disagreements"] == disagreements


def test_disagreements_have_the_texts_of_their_rows(toy_run: tuple[dict[str, Any], Storage, str]) -> None:
    results, storage, key = toy_run
    made = dict(name.split("/") for name in storage.read_json("runs", key, "run.json")["artifacts"])
    test = prepared_rows(Artifact(storage, "data", made["data"]))
    logits = read_predictions(Artifact(storage, "evaluation", made["evaluation"]).local(), "test").logits
    for row in [*results["disagreements"], *results["errors"]]:
        assert (row["text"], row["label"]) == (test.texts[row["row"]], test.labels[row["row"]])
        for name in ("student", "teacher"):
            assert row[name]["class"] == results["labels"][logits[name][row["row"]].argmax()]


def test_a_page_that_cannot_be_drawn_loses_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toy_run: tuple[dict[str, Any], Storage, str]
) -> None:
    config = load_config(toy_config(tmp_path, evaluate__baseline=False, teacher__finetune__num_epochs=1))
    monkeypatch.setattr(run, "page_text", lambda results: results["no such field"])
    results = distill(config)
    assert results["report"] is None
    assert results["notes"][-1] == "The report was not drawn: KeyError: 'no such field'"
    assert results["model_version"] == 1
    assert distill(config)["reused"] == ["run"]
