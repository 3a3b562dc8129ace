"""Runs with a light student: classes and words, its folder elsewhere, in MLflow, as ONNX, and what is told of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from kit.finished import predict_texts
from kit.tagged import tagged_config
from kit.toy import toy_config

from raydistill.config.data import Data
from raydistill.config.loading import load_config
from raydistill.deploy.export.export import export
from raydistill.deploy.opening import open_folder
from raydistill.models.scorer import Scorer
from raydistill.pipeline.distill import distill
from raydistill.pipeline.plan import make_plan
from raydistill.tracking.registry.students import write_model

CONV = {"type": "conv", "num_layers": 2, "hidden_size": 24}
STAGE = {
    "num_epochs": 6,
    "learning_rate": 5e-3,
    "losses": {
        "kd": {"type": "forward_kl"},
        "hidden": {"type": "hidden_mse", "layers": "last", "weight": 0.1},
        "task": {"type": "task", "weight": 0.5},
    },
}


def run(folder: Path, config: dict[str, Any]) -> tuple[dict[str, Any], Path]:
    results = distill(load_config(config))
    return results, Path(results["student"]["path"])


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path, Path]:
    folder = tmp_path_factory.mktemp("classes")
    config = toy_config(folder, student=CONV, stages__distill=STAGE, data__max_labeled=120, evaluate__latency=True)
    return *run(folder, config), folder


@pytest.mark.slow
def test_it_learns_and_is_told_of(classes: tuple[dict[str, Any], Path, Path]) -> None:
    results, folder, _ = classes
    student, baseline = results["student"], results["baseline"]
    assert student["test"]["accuracy"]["value"] > 0.6  # three topics
    assert baseline["num_parameters"] == student["num_parameters"] < results["teacher"]["num_parameters"]
    assert student["latency_ms"]["p50"] > 0
    assert results["layers"] == {
        "student": 2,
        "teacher": 4,
        "start": [[0, 0]],
        "losses": {"stages.distill.losses.hidden": [[2, 4]]},
        "similarities": None,
    }
    card = (folder / "README.md").read_text()
    assert "trust_remote_code=True" in card
    assert "a convolutional network of 2 layers, 24 wide, kernel 5, started from the teacher's embeddings" in card


def test_the_plan_has_its_shape(tmp_path: Path) -> None:
    plan = make_plan(load_config(toy_config(tmp_path, student=CONV, stages__distill=STAGE)), check=True)
    shape = {"num_layers": 2, "hidden_size": 24, "num_heads": None, "teacher_layers": []}
    assert {name: plan["student"][name] for name in shape} == shape


@pytest.mark.slow
def test_onnx_says_the_same(classes: tuple[dict[str, Any], Path, Path], tmp_path: Path) -> None:
    _, student, folder = classes
    data = Data(path=str(folder / "toy.csv"))
    forms = ["onnx", "onnx-int8", "torch-int8", "safetensors-bf16"]
    found = export(str(student), forms, tmp_path / "out", data=data, latency=False, margin=0.05)
    assert found["good"], [section["reasons"] for section in found["formats"].values()]
    assert found["formats"]["onnx"]["largest_difference"] < 1e-5
    source, onnx = open_folder(student), open_folder(tmp_path / "out" / "onnx")
    for texts in (["film"], ["a good film", "bank money and the very bad team in a match"]):
        inputs = source.encode(texts)
        torch.testing.assert_close(onnx.forward(inputs), source.forward(inputs), atol=1e-5, rtol=0)
    about = json.loads((tmp_path / "out" / "safetensors-bf16" / "export.json").read_text())
    assert any("trust_remote_code=True" in line for line in about["load"])
    assert (tmp_path / "out" / "safetensors-bf16" / "modeling_conv.py").is_file()


SERVE = """
import json, sys, mlflow
model, texts = mlflow.pyfunc.load_model(sys.argv[1]), ["a good film", "bank money and the very bad team in a match"]
flavour = mlflow.transformers.load_model(sys.argv[1])
assert "raydistill" not in sys.modules
print(json.dumps([model.predict(texts), flavour(texts)]))
"""


@pytest.mark.slow
def test_mlflow_loads_it_without_raydistill(classes: tuple[dict[str, Any], Path, Path], tmp_path: Path) -> None:
    _, student, _ = classes
    write_model(student, tmp_path / "served", max_length=20)
    command = [sys.executable, "-I", "-c", SERVE, str(tmp_path / "served")]
    environment = {"HF_HOME": str(tmp_path / "hub"), "HOME": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    expected = [*predict_texts(str(student), ["a good film", "bank money and the very bad team in a match"])]
    for found in json.loads(done.stdout.splitlines()[-1]):
        assert [row["label"] for row in found] == [row["label"] for row in expected]
        assert [row["score"] for row in found] == pytest.approx([row["score"] for row in expected], abs=1e-5)


@pytest.mark.slow
def test_words_are_labelled_by_it(tmp_path: Path) -> None:
    student: dict[str, Any] = CONV | {"kernel_size": 3, "head": "crf"}
    settings = {"data__max_length": 24, "data__max_labeled": None, "evaluate__baseline": False}
    config = tagged_config(tmp_path, 400, student=student, **settings)
    stage = {**STAGE, "num_epochs": 12, "losses": {"task": {"type": "task"}, "kd": {"type": "forward_kl"}}}
    results, folder = run(tmp_path, {**config, "stages": {"distill": stage}})
    assert results["student"]["test"]["entity_f1"]["value"] > 0.8  # by what stands before and behind a word
    texts = ["the bank was good", "a minister win and the market", "an actor in a film"]
    stored = Scorer(str(folder), 24).predict(pd.DataFrame({"text": texts}))
    assert any(row["entities"] for row in stored)
    for own, other in zip(stored, predict_texts(str(folder), texts), strict=True):
        pairs = [[(one["label"], one["text"]) for one in row["entities"]] for row in (own, other)]
        assert pairs[0] == pairs[1]
    data = Data(path=str(tmp_path / "tagged.jsonl"))
    found = export(str(folder), "onnx", tmp_path / "out", data=data, latency=False)
    assert found["good"], found["formats"]["onnx"]["reasons"]
    assert np.isclose(found["formats"]["onnx"]["difference"]["value"], 0)
