"""Exports: the same numbers as torch, any batch and length, read back from disk, refused when they lose too much."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from kit.finished import LENGTH, NUMBERS, TAGS, TOPIC, WRITERS, finish
from kit.tiny import FAMILIES, MAX_LENGTH, WORDS, save_tiny
from kit.toy import TOPICS, write_toy_csv
from rich.console import Console

from raydistill.cli import main as cli
from raydistill.config.data import Data
from raydistill.deploy.export import EXPORT_FILE, FORMATS
from raydistill.deploy.export.checks import TORCH, judge, judge_shapes, measure_base, num_lost, refused
from raydistill.deploy.export.export import export, some_rows
from raydistill.deploy.export.folders import check_targets, place
from raydistill.deploy.export.packages import need
from raydistill.deploy.export.table import print_export
from raydistill.deploy.export.torch_formats import load_as_is
from raydistill.deploy.export.writing import public_name
from raydistill.deploy.opening import open_folder, open_model
from raydistill.deploy.predictor import TorchPredictor
from raydistill.deploy.testset import TestRows, read_test_rows
from raydistill.errors import ConfigError, ModelError
from raydistill.evaluate.scoreboard import Scoreboard
from raydistill.models.folder import TOKENIZER_FILES, model_digest
from raydistill.tasks import Targets, Task, TextClassification, TextRegression, task_of
from raydistill.tasks.multi_label import MultiLabelClassification

pytestmark = pytest.mark.usefixtures("quick_timing")

LABELS = tuple(TOPICS)
TASK = TextClassification(LABELS)
CARD = """---
base_model: owner/base
library_name: transformers
model-index:
- name: x
  results:
  - task: {type: text-classification}
    dataset: {type: toy, name: toy}
    metrics:
    - {type: accuracy, value: 1.0}
---
# A model card

pipeline("text-classification")
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    return Data(path=str(write_toy_csv(tmp_path_factory.mktemp("data") / "toy.csv", 120)))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, data: Data) -> Path:
    folder = finish(tmp_path_factory.mktemp("model") / "model", Path(data.path), TOPIC)
    (folder / "README.md").write_text(CARD)
    return folder


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, model: Path, data: Data) -> tuple[Path, dict[str, Any]]:
    """Every format in one call."""
    out = tmp_path_factory.mktemp("exported") / "out"
    return out, export(str(model), ["all"], out, data=data, max_length=LENGTH, latency=False, margin=0.05)


def some_texts(num_rows: int, num_words: int, pairs: bool = False) -> list[Any]:
    draw = np.random.default_rng(num_rows)
    texts = [" ".join(draw.choice(WORDS, num_words)) for _ in range(num_rows)]
    return [(text, " ".join(reversed(text.split()[:3]))) for text in texts] if pairs else texts


def assert_exact(found: dict[str, Any], folder: Path, out: Path) -> None:
    assert found["good"], found["formats"]["onnx"]["reasons"]
    assert found["formats"]["onnx"]["largest_difference"] < 1e-5
    assert found["formats"]["onnx"]["agreement"] == 1.0
    assert same_at_any_shape(folder, out) > {(1, 3), (35, 11), (2, MAX_LENGTH)}


def same_at_any_shape(source_folder: Path, folder: Path) -> set[tuple[int, ...]]:
    """Compare batches of one and of many, one word, rows of several lengths, the longest, pairs; their shapes."""
    source, onnx = TorchPredictor(source_folder, device="cpu"), open_folder(folder, MAX_LENGTH)
    batches = [some_texts(1, 1), some_texts(33, 5) + some_texts(2, 9), some_texts(2, 3 * MAX_LENGTH)]
    batches += [some_texts(1, 4, pairs=True), some_texts(7, 12, pairs=True)]
    shapes = set()
    for texts in batches:
        inputs = source.encode(texts)
        shapes.add(tuple(inputs["input_ids"].shape))
        torch.testing.assert_close(onnx.forward(onnx.encode(texts)), source.forward(inputs), atol=2e-5, rtol=0)
    return shapes


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_format_of_every_family(family: str, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / family, family, num_layers=2, labels=LABELS)
    rows, smaller = (
        Data(path=str(write_toy_csv(tmp_path / "toy.csv", 60))),
        ("onnx-int8", "torch-int8", "safetensors-bf16"),
    )
    found = export(str(folder), ["onnx", *smaller], tmp_path / "out", data=rows, latency=False, margin=0.1)
    assert found["good"], [section["reasons"] for section in found["formats"].values()]
    assert_exact(found, folder, tmp_path / "out" / "onnx")
    source = TorchPredictor(folder, device="cpu")
    for form in smaller:
        small = open_folder(tmp_path / "out" / form, device="cpu")
        for texts in (some_texts(1, 1), some_texts(33, 9), some_texts(2, 2 * MAX_LENGTH), some_texts(3, 4, pairs=True)):
            # random weights of width 32: the logits spread by 0.2 to 1.5, and rounding shows more than in a real model
            torch.testing.assert_close(small.outputs(texts), source.outputs(texts), atol=0.25, rtol=0)


def test_every_format_is_measured_as_it_lies_on_disk(
    exported: tuple[Path, dict[str, Any]], model: Path, data: Data
) -> None:
    out, found = exported
    assert found["good"], [section["reasons"] for section in found["formats"].values()]
    assert list(found["formats"]) == list(FORMATS)
    rows, source = read_test_rows(data, TASK), TorchPredictor(model, LENGTH, "cpu")
    base, labels = source.outputs(rows.texts), rows.targets.values
    assert (base.argmax(1) == labels).mean() > 0.9
    for form, section in found["formats"].items():
        folder = out / form
        assert Path(section["path"]) == folder
        predictor = open_model(str(folder), None, "no-storage")
        assert predictor.max_length == LENGTH  # from export.json
        assert predictor.task.facts() == TASK.facts()
        logits = predictor.outputs(rows.texts)
        assert section["metric"]["value"] == pytest.approx((logits.argmax(1) == labels).mean(), abs=1e-5)
        assert section["agreement"] == pytest.approx((logits.argmax(1) == base.argmax(1)).mean(), abs=1e-5)
        assert section["largest_difference"] == pytest.approx(np.abs(logits - base).max(), rel=1e-2, abs=1e-6)
        weights = [path for path in folder.iterdir() if path.suffix in (".onnx", ".safetensors")]
        assert len(weights) == 1
        assert section["bytes"] == weights[0].stat().st_size + (folder / "config.json").stat().st_size
        about = json.loads((folder / EXPORT_FILE).read_text())
        assert (about["schema"], about["format"], about["good"]) == (2, form, True)
        assert about["source"] == {"model": model.name, "digest": model_digest(model)}
        assert about["checks"]["data"]["source"] == "toy.csv"
        assert task_of(about["task"]).outputs == LABELS
        assert "/" not in re.sub(r"https?://", "", (folder / EXPORT_FILE).read_text()).replace("rows/s", "")
        assert about["checks"]["export"]["metric"] == section["metric"]
        assert about["checks"]["data"]["num_rows"] == rows.num_rows
        assert [side["axes"] for side in about["inputs"]] == [["batch", "length"]] * 3
        assert [side["axes"] for side in about["outputs"]] == [["batch", 3]]
        assert about["opset"] == (20 if form.startswith("onnx") else None)
        check_card((folder / "README.md").read_text(), form, about)
        for name in TOKENIZER_FILES:
            assert (folder / name).is_file() == (model / name).is_file()
        assert not [path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pkl", ".py")]
    differences = {form: section["largest_difference"] for form, section in found["formats"].items()}
    assert differences["onnx"] < 1e-4 < differences["safetensors-bf16"] < 0.1
    assert 1e-3 < differences["onnx-int8"] < 1.0
    assert 1e-3 < differences["torch-int8"] < 1.0


def check_card(text: str, form: str, about: dict[str, Any]) -> None:
    """The card is the export's own: it loads as export.json says, and holds what was measured."""
    card = ModelCard(text)
    assert card.data.library_name == ("onnxruntime" if form.startswith("onnx") else "transformers")
    assert (card.data.pipeline_tag, card.data.base_model) == ("text-classification", "owner/base")
    assert card.data.eval_results is None  # float32's
    assert form in card.data.tags
    assert "\n".join(about["load"]) in card.text
    for section in (about["checks"]["torch"], about["checks"]["export"]):
        value, low, high = (f"{100 * section['metric'][name]:.1f}" for name in ("value", "low", "high"))
        assert f"| {value} [{low}, {high}] |" in card.text
    assert about["checks"]["export"]["runtime"] in card.text
    assert not {"pipeline(", "A model card", "tmp"} & set(card.text.split())


def test_token_types_go_into_the_graph(exported: tuple[Path, dict[str, Any]], model: Path) -> None:
    predictor = open_folder(exported[0] / "onnx")
    inputs = predictor.encode(some_texts(3, 4, pairs=True))
    swapped = {**inputs, "token_type_ids": 1 - inputs["token_type_ids"]}
    assert (predictor.forward(inputs) - predictor.forward(swapped)).abs().max() > 0.01
    assert (7, 18) in same_at_any_shape(model, exported[0] / "onnx")


def test_int8_is_int8_and_bfloat16_is_bfloat16(exported: tuple[Path, dict[str, Any]], model: Path) -> None:
    import onnx
    from safetensors import safe_open

    out, _ = exported
    initializers = onnx.load(out / "onnx-int8" / "model.onnx").graph.initializer
    matrices = [value for value in initializers if len(value.dims) == 2 and value.dims[0] > 2]
    assert len(matrices) == 2 * 6 + 4  # of two layers; of words, positions, pooler, classifier
    # onnxruntime's quantiser gives the tables of embeddings unsigned values
    assert {value.data_type for value in matrices} == {onnx.TensorProto.INT8, onnx.TensorProto.UINT8}
    with safe_open(out / "torch-int8" / "model.safetensors", "pt") as file:
        assert file.get_slice("bert.encoder.layer.0.attention.self.query._weight_qdata").get_dtype() == "I8"
        assert file.get_slice("bert.embeddings.word_embeddings.weight").get_dtype() == "F32"
    with safe_open(out / "safetensors-bf16" / "model.safetensors", "pt") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"BF16"}  # noqa: SIM118
    assert json.loads((model / "config.json").read_text())["dtype"] == "float32"  # the source stays as it was


@pytest.mark.parametrize("form", FORMATS)
def test_export_json_says_how_to_load_it_without_raydistill(
    form: str, exported: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = exported[0] / form
    lines = json.loads((folder / EXPORT_FILE).read_text())["load"]
    expected = open_folder(folder, device="cpu").outputs(["a text", "another one"])
    if form.startswith("onnx"):
        lines += ["import json, sys", "print(json.dumps([logits.tolist(), sorted(sys.modules)]))"]
        done = subprocess.run([sys.executable, "-c", "\n".join(lines)], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        logits, modules = json.loads(done.stdout)
        assert not {"torch", "transformers", "raydistill"} & set(modules)
    else:
        monkeypatch.chdir(folder)
        names: dict[str, Any] = {}
        exec("\n".join(lines), names)
        logits = names["logits"].detach().float().numpy()
    np.testing.assert_allclose(np.array(logits), expected, atol=1e-5)


def test_raydistills_own_commands_take_an_exported_folder(
    exported: tuple[Path, dict[str, Any]], model: Path, data: Data, capfd: pytest.CaptureFixture[str]
) -> None:
    out, found = exported
    folder = str(out / "onnx-int8")
    assert cli.execute(["predict", folder, "--text", "the team win a match", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["predictions"][0]["label"] == "sport"
    assert cli.execute(["evaluate", folder, "--data", data.path, "--json"]) == 0
    scores = json.loads(capfd.readouterr().out)
    assert scores["metrics"]["accuracy"] == pytest.approx(found["formats"]["onnx-int8"]["metric"], abs=1e-5)
    others = [str(out / form) for form in ("onnx", "torch-int8", "safetensors-bf16")]
    assert cli.execute(["compare", str(model), folder, *others, "--data", data.path, "--no-latency", "--json"]) == 0
    compared = json.loads(capfd.readouterr().out)
    runtimes = [one["runtime"].split()[0] for one in compared["models"].values()]
    assert runtimes == ["torch", "onnxruntime", "onnxruntime", "torch", "torch"]
    assert cli.execute(["predict", folder, "--text", "a", "--max-length", str(MAX_LENGTH + 1)]) == 2
    assert "more than this model can take" in capfd.readouterr().err


def without_classifier(folder: Path, **settings: Any) -> Any:
    """The quantiser, losing the last layer on the way."""
    model = load_as_is(folder, **settings)
    if "quantization_config" in settings:
        model.classifier.weight.qdata.zero_()
    return model


def test_a_broken_export_is_refused_and_never_takes_the_place_of_a_good_one(
    model: Path, data: Data, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    call = ["export", str(model), "--format", "torch-int8", "--out", str(out), "--data", data.path, "--margin", "0.05"]
    assert cli.execute(call) == 0
    output = capfd.readouterr()
    assert "torch-int8 is good" in output.out
    assert "taking turns in one process: 1 CPU thread." in " ".join(output.out.split())
    assert all(" s  " in line for line in output.err.splitlines()), output.err  # progress, no library's chatter
    assert cli.execute(call) == 2
    assert "--force" in capfd.readouterr().err
    kept = (out / "model.safetensors").read_bytes()

    monkeypatch.setattr("raydistill.deploy.export.torch_formats.load_as_is", without_classifier)
    assert cli.execute([*call, "--force", "--json"]) == 3
    found = json.loads(capfd.readouterr().out)
    section = found["formats"]["torch-int8"]
    assert not found["good"]
    assert section["difference"]["high"] < -0.3
    assert section["latency_ms"]["p50"] > 0
    assert section["latency_ratio"] > 0
    assert "accuracy falls by" in section["reasons"][0]
    assert "margin of 5.0 points" in section["reasons"][0]
    assert section["path"] == f"{out}.rejected"
    assert json.loads((tmp_path / "out.rejected" / EXPORT_FILE).read_text())["good"] is False
    assert (out / "model.safetensors").read_bytes() == kept
    found = export(str(model), ["torch-int8"], out, data=data, latency=False, force=True)
    assert not found["good"]
    console = Console(width=80, record=True, file=io.StringIO())
    print_export(console, found)
    assert "torch-int8 is refused: The accuracy falls by" in console.export_text()

    monkeypatch.undo()
    assert export(str(model), ["torch-int8"], out, data=data, latency=False, force=True, margin=0.05)["good"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]  # and the refused one is gone


def judged(form: str, task: Task, base: np.ndarray, outputs: np.ndarray, targets: np.ndarray, **demand: Any) -> Any:
    both = {TORCH: base, form: outputs}
    labeled = Targets(targets, np.ones(len(targets), bool))
    demand = {"metric": task.Settings.metrics[0], "margin": 0.01} | demand
    found = judge(form, Scoreboard(dict.fromkeys(both, task), both, labeled), **demand)
    return {**found, "good": not found["reasons"]}


def test_what_makes_an_export_good() -> None:
    base = np.array([[3.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 3.0], [2.0, 1.9999, 0.0]] * 25, dtype=np.float32)
    judge_it = partial(judged, task=TASK, targets=base.argmax(axis=1))
    assert judge_it("onnx", base=base, outputs=base + np.float32(5e-4))["good"]
    shifted = judge_it("onnx", base=base, outputs=base + np.float32(5e-3))
    assert not shifted["good"]
    assert "differs by 0.005" in shifted["reasons"][0]
    assert judge_it("onnx-int8", base=base, outputs=base + np.float32(5e-3))["good"]
    swapped = base.copy()
    swapped[3] = [1.9999, 2.0, 0.0]
    reasons = judge_it("onnx", base=base, outputs=swapped)["reasons"]
    assert "1 of 100 rows get another answer" in reasons[0]
    one_lost = judge_it("onnx-int8", base=base, outputs=swapped)
    assert one_lost["difference"]["value"] == pytest.approx(-0.01)
    assert one_lost["good"]  # just the margin
    assert "cannot rule out" in one_lost["notes"][0]
    swapped[7] = swapped[3]
    assert not judge_it("onnx-int8", base=base, outputs=swapped)["good"]
    assert judge_it("onnx-int8", base=base, outputs=swapped, margin=0.02)["good"]
    log_loss = {"metric": "log_loss", "margin": 0.1}
    flat = judge_it("safetensors-bf16", base=base, outputs=base / 4, **log_loss)  # the same classes, less sure
    assert "log loss rises by" in flat["reasons"][0]
    assert judge_it("safetensors-bf16", base=base / 4, outputs=base, **log_loss)["good"]
    broken = base.copy()
    broken[5] = np.nan
    assert refused(num_lost(broken))["reasons"] == ["The outputs of 1 rows are not finite."]


def test_an_export_of_numbers_is_judged_in_their_unit() -> None:
    """A difference of 1 is much between 0 and 5, and nothing among prices."""
    draw = np.random.default_rng(0)
    truth = draw.normal(size=200)
    for scale in (1e-3, 1.0, 1e5):
        base = (truth[:, None] + 0.1 * draw.normal(size=(200, 1))) * scale
        judge_it = partial(judged, task=TextRegression(), base=base, targets=truth * scale)
        near, far = base + 1e-4 * scale, base + 1e-2 * scale
        assert judge_it("onnx", outputs=near)["good"]
        found = judge_it("onnx", outputs=far)
        assert "An output differs by" in found["reasons"][0]
        assert len(found["reasons"]) == 1  # no row gets another answer, as none is right or wrong
        assert found["agreement"] == pytest.approx(1.0)
        assert judge_it("onnx-int8", outputs=far)["good"]
        noisy = base + scale * draw.normal(size=base.shape)
        reasons = judge_it("onnx-int8", outputs=noisy)["reasons"]
        assert "Pearson correlation falls by 0." in reasons[0]
        rmse = {"metric": "rmse", "margin": 0.02 * scale}
        assert judge_it("onnx-int8", outputs=near, **rmse)["good"]
        assert "RMSE rises by" in judge_it("onnx-int8", outputs=noisy, **rmse)["reasons"][0]


def test_an_export_of_several_labels_is_judged_by_its_decisions() -> None:
    task = MultiLabelClassification(LABELS, (0.5, 0.2, 0.9))
    targets = np.array([[1, 0, 1], [0, 1, 0], [0, 0, 0], [1, 1, 1]] * 30, np.int8)
    base = np.where(targets > 0, 4.0, -4.0)
    base[0, 1] = np.log(0.2 / 0.8) - 2e-4  # just below its threshold
    judge_it = partial(judged, task=task, base=base, targets=targets)
    assert judge_it("onnx", outputs=base + 1e-4)["good"]
    found = judge_it("onnx", outputs=base + 5e-4)
    assert found["reasons"] == ["1 of 120 rows get another answer; the same model would give the same."]
    assert found["agreement"] == pytest.approx(1 - 1 / 360)
    lost = np.where(np.arange(120)[:, None] < 30, -4.0, base)
    assert "micro F1 falls by" in judge_it("torch-int8", outputs=lost)["reasons"][0]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [NUMBERS, TAGS])
def test_models_of_other_tasks_go_out_and_come_back(
    kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = Data(path=str(WRITERS[kind](tmp_path / "rows.csv")))
    model, out = finish(tmp_path / "model", Path(data.path), kind), tmp_path / "out"
    capfd.readouterr()
    found = export(str(model), "all", out, data=data, max_length=LENGTH, latency=False, margin=0.05)
    assert capfd.readouterr() == ("", "")  # the exporter and the quantiser have much to say, not to users
    assert found["good"], [section["reasons"] for section in found["formats"].values()]
    metric = "pearson" if kind == NUMBERS else "micro_f1"
    assert found["demand"] == {"metric": metric, "margin": 0.05}
    source = TorchPredictor(model, LENGTH, "cpu")
    rows = read_test_rows(data, source.task)
    base = source.outputs(rows.texts)
    unit = 1 if kind == TAGS else float(base.std())
    for form, section in found["formats"].items():
        predictor = open_folder(out / form, device="cpu")
        assert predictor.task.facts() == source.task.facts()  # with its thresholds
        outputs = predictor.outputs(rows.texts)
        scores = source.task.scores(outputs, rows.targets.values)
        assert section["metric"]["value"] == pytest.approx(scores.values[metric], abs=1e-5)
        assert section["largest_difference"] == pytest.approx(np.abs(outputs - base).max(), rel=1e-2, abs=1e-5 * unit)
        assert np.abs(outputs - base).max() < (1e-4 if form == "onnx" else 1.0) * unit
        about = json.loads((out / form / EXPORT_FILE).read_text())
        assert [side["axes"] for side in about["outputs"]] == [["batch", len(source.task.outputs)]]
        card = (out / form / "README.md").read_text()
        assert ModelCard(card).data.pipeline_tag == "text-classification"
        words = "A model that gives a text a number" if kind == NUMBERS else "with 3 labels, any number of them a row"
        assert words in card
        assert cli.execute(["predict", str(out / form), "--text", "a good film", "--json"]) == 0
        (answer,) = json.loads(capfd.readouterr().out)["predictions"]
        assert ("value" in answer) == (kind == NUMBERS)
    names = [str(model), *(str(out / form) for form in ("onnx", "onnx-int8"))]
    assert cli.execute(["compare", *names, "--data", data.path, "--no-latency"]) == 0
    shown = " ".join(capfd.readouterr().out.split())
    assert ("Pearson correlation" if kind == NUMBERS else "micro F1, %") in shown
    assert "not measurably different from A" in shown
    assert ("McNemar" in shown) == (kind == TAGS)
    with pytest.raises(ConfigError, match=r"--metric accuracy: not known; .*Known: "):
        export(str(model), "onnx", tmp_path / "again", data=data, metric="accuracy")


def test_an_interrupted_export_leaves_nothing(model: Path, data: Data, tmp_path: Path) -> None:
    seen = []

    def interrupt(entry: Any) -> None:
        seen.append((entry["phase"], sorted(path.suffix for path in tmp_path.iterdir())))
        if entry["phase"] == "check":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(str(model), ["safetensors-bf16"], tmp_path / "out", data=data, latency=False, progress=interrupt)
    assert seen == [("export", [".part"]), ("check", [".part"])]
    assert list(tmp_path.iterdir()) == []


def test_only_an_export_is_replaced(model: Path, data: Data, tmp_path: Path) -> None:
    def make(out: Path, *formats: str, **settings: Any) -> None:
        export(str(model), formats or ["safetensors-bf16"], out, data=data, latency=False, **settings)

    home = tmp_path / "home"
    home.mkdir()
    (home / "letter.txt").write_text("dear")
    for taken in (home, model, home / "letter.txt"):
        with pytest.raises(ConfigError, match="is no export, so it stays"):
            make(taken, force=True)
    (tmp_path / "empty").mkdir()
    make(tmp_path / "empty")
    with pytest.raises(ConfigError, match="an export itself, of one format"):
        make(tmp_path / "empty", "torch-int8", "safetensors-bf16")
    with pytest.raises(ConfigError, match="Export the model that it was made from"):
        export(str(tmp_path / "empty"), ["onnx"], tmp_path / "again", data=data)
    assert (home / "letter.txt").read_text() == "dear"


def a_folder(path: Path, **files: str) -> Path:
    path.mkdir(parents=True)
    for name, content in files.items():
        (path / f"{name}.json").write_text(content)
    return path


def test_a_users_own_folder_is_never_deleted(tmp_path: Path) -> None:
    """Neither under the name of a refused export, nor where it came while the export was made."""
    out, own = tmp_path / "out", a_folder(tmp_path / "out.rejected", letter="dear")
    with pytest.raises(ConfigError, match=r"out\.rejected is there and is no export, so it stays"):
        check_targets({"onnx": out}, force=True)
    made = a_folder(tmp_path / "made", export="{}")
    for good in (True, False):
        with pytest.raises(ConfigError, match="no export, so it stays"):
            place(made, out, good, force=True)
    own.rename(out)
    for good, goal in ((True, out), (False, tmp_path / "out.rejected")):
        if good:
            with pytest.raises(ConfigError, match="no export, so it stays"):
                place(made, out, good, force=True)
        else:
            assert place(made, out, good) == goal
    assert (out / "letter.json").read_text() == "dear"


def test_an_old_export_comes_back_where_the_new_one_cannot_be_placed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, made = a_folder(tmp_path / "out", export="old"), a_folder(tmp_path / "place" / "made", export="new")
    replace, seen = os.replace, []

    def failing(source: Path, goal: Path) -> None:
        if source == made:
            seen.append((tmp_path / "place" / "made.old" / EXPORT_FILE).read_text())
            raise OSError(28, "No space left on device")
        replace(source, goal)

    monkeypatch.setattr("raydistill.deploy.export.folders.os.replace", failing)
    with pytest.raises(ConfigError, match=r"Cannot put the export at .*/out: No space left"):
        place(made, out, True, force=True)
    assert (seen, (out / EXPORT_FILE).read_text()) == (["old"], "old")
    with pytest.raises(ConfigError, match="--force replaces it"):
        place(made, out, True)
    monkeypatch.undo()
    place(made, out, True, force=True)
    assert (out / EXPORT_FILE).read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "place"]  # beside the export nothing is left


def test_a_model_whose_own_logits_are_not_finite_is_no_base(model: Path, data: Data, tmp_path: Path) -> None:
    source = TorchPredictor(model, LENGTH, "cpu")
    with torch.no_grad():
        source.model.classifier.bias[0] = torch.nan
    with pytest.raises(ModelError, match="own outputs of 120 of 120 rows are not finite"):
        measure_base(source, read_test_rows(data, TASK), "accuracy")


def test_rows_must_not_depend_on_their_batch(model: Path, data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that has lost the mask gives a padded row other outputs."""
    rows, source = read_test_rows(data, TASK), TorchPredictor(model, LENGTH, "cpu")
    outputs = source.outputs(rows.texts)
    assert judge_shapes("onnx", source, rows, outputs) == []
    assert judge_shapes("onnx", source, rows, np.full_like(outputs, np.nan)) == []  # has its own reason
    encode = source.encode

    def without_mask(texts: Any) -> Any:
        inputs = encode(texts)
        return {**inputs, "attention_mask": torch.ones_like(inputs["attention_mask"])}

    monkeypatch.setattr(source, "encode", without_mask)
    two = rows.targets.take(np.arange(2))
    padded = TestRows(("team", "team " * 12), two, TASK, rows.hashes[:2], "x", "test")
    reasons = judge_shapes("safetensors-bf16", source, padded, outputs[:2] * 0 + source.outputs(padded.texts[:1])[0])
    assert "In a padded batch of 3 rows an output differs by" in reasons[-1]


def test_exports_name_no_folder_and_no_credential(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert public_name(str(model)) == "model"
    monkeypatch.chdir(model)
    assert public_name(".") == "model"
    assert public_name("models:/news@champion") == "models:/news@champion"
    assert public_name("s3://key:secret@bucket/rows/test.csv") == "test.csv"
    assert public_name("https://ann:hunter2@host/rows.csv?sig=abc") == "https://host/rows.csv"
    assert public_name("owner/name") == "owner/name"


def test_what_is_wrong_is_said_before_any_work(
    tmp_path: Path, model: Path, data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(message: str, formats: str | list[str], **settings: Any) -> None:
        with pytest.raises(ConfigError, match=message):
            export(str(model), formats, tmp_path / "out", data=data, **settings)

    refuse("--format onxx: not known. There are onnx, onnx-int8", ["onnx", "onxx"])
    refuse("No format was named", [])
    refuse("--metric acuracy: not known; did you mean accuracy?", ["onnx"], metric="acuracy")
    for margin in (-0.1, np.inf, np.nan):
        refuse("no number from 0 on", ["onnx"], margin=margin)
    refuse("--format onxx: not known", "onxx")
    with monkeypatch.context() as patch:
        patch.setattr(
            "raydistill.deploy.export.packages.version", lambda name: "2.9.1+cpu" if name == "torch" else "9.9"
        )
        refuse(r"onnx needs torch 2\.11 or newer; 2\.9\.1\+cpu is installed.*in a checkout", ["onnx"])
        need("safetensors-bf16")
    monkeypatch.setattr("raydistill.deploy.export.packages.find_spec", lambda name: None)
    refuse(r"needs onnx 1\.18 or newer; .*pip install 'raydistill\[export\]'", ["onnx"])
    refuse("needs torchao", ["torch-int8"])
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_export_is_named(exported: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    from onnx import TensorProto, helper, save

    for name in os.listdir(exported[0] / "onnx"):
        (tmp_path / name).write_bytes((exported[0] / "onnx" / name).read_bytes())
    sides = [helper.make_tensor_value_info(name, TensorProto.INT64, (2, 5)) for name in ("input_ids", "logits")]
    graph = helper.make_graph([helper.make_node("Identity", ["input_ids"], ["logits"])], "g", sides[:1], sides[1:])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "model.onnx")
    with pytest.raises(ModelError, match=r"onnxruntime cannot compute .* for a batch of 3 x \d+ tokens"):
        open_folder(tmp_path).outputs(some_texts(3, 9))  # of a graph that takes one size only
    (tmp_path / "model.onnx").write_bytes(b"\x08half of it")
    with pytest.raises(ModelError, match=r"onnxruntime cannot load .*model\.onnx"):
        open_folder(tmp_path)
    (tmp_path / EXPORT_FILE).write_text('{"format": "tflite"}')
    with pytest.raises(ModelError, match="names the format 'tflite'"):
        open_folder(tmp_path)


def test_the_rows_are_a_sample_that_stays_the_same(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["text", "label"], *([f"text {i}", str(i % 3)] for i in range(50))])
    rows = read_test_rows(Data(path=str(path)), TextClassification(("0", "1", "2")))
    first, again, whole = (some_rows(rows, n) for n in (20, 20, 50))
    assert first.num_rows == 20
    assert first.texts == again.texts == tuple(text for text in rows.texts if text in first.texts) != rows.texts[:20]
    assert whole is rows
