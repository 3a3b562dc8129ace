"""Models on the same rows: what is measured, paired, and refused; the rows themselves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kit.finished import NUMBERS, TAGS, finish, write_numbers_csv, write_tags_csv
from kit.tiny import WORDS, save_tiny
from kit.toy import toy_config, write_toy_csv
from safetensors.torch import load_file, save_file
from scipy.stats import pearsonr
from sklearn.metrics import accuracy_score, f1_score
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from raydistill.cli import main as cli
from raydistill.config.data import Data
from raydistill.config.loading import load_config, load_data
from raydistill.data.prepare import prepare_data
from raydistill.deploy import paired
from raydistill.deploy.comparison import compare_models, describe_pair, seen_note
from raydistill.deploy.opening import open_folder
from raydistill.deploy.paired import compare_paired, latency_ratio, measure_speed
from raydistill.deploy.predictor import Predictor
from raydistill.deploy.testset import TestRows, prepared_rows, read_test_rows
from raydistill.errors import ConfigError, DataError, ModelError
from raydistill.pipeline.distill import distill
from raydistill.storage.storage import Storage
from raydistill.tasks import TextClassification, TextRegression, task_of

LABELS = ("film", "money", "sport")
TASK = TextClassification(LABELS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two random models; the second has its labels in another order."""
    root = tmp_path_factory.mktemp("models")
    return {
        "a": save_tiny(root / "a", "bert", num_layers=2, labels=LABELS, seed=1),
        "b": save_tiny(root / "b", "distilbert", num_layers=1, labels=("sport", "film", "money"), seed=2),
    }


@pytest.fixture(scope="module")
def csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_csv(tmp_path_factory.mktemp("data") / "rows.csv", 90, seed=3)


@pytest.fixture(scope="module")
def rows(csv: Path) -> TestRows:
    return read_test_rows(load_data(str(csv)), TASK)


def names_of(rows: TestRows) -> list[str]:
    return [rows.task.outputs[i] for i in rows.targets.values]


def predicted(folder: Path, texts: tuple[Any, ...]) -> list[str]:
    """Class names by transformers alone, row by row."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        ids = [int(model(**tokenizer(text, return_tensors="pt")).logits.argmax()) for text in texts]
    return [model.config.id2label[i] for i in ids]


def test_figures_are_those_of_transformers_and_sklearn(folders: dict[str, Path], rows: TestRows) -> None:
    paired = compare_paired({n: open_folder(f) for n, f in folders.items()}, rows, num_samples=200, latency=False)
    summary = paired.summary
    data = {name: summary["data"][name] for name in ("split", "num_rows", "labels")}
    assert data == {"split": "test", "num_rows": 90, "labels": list(LABELS)}
    assert task_of(summary["data"]["task"]["facts"]).outputs == LABELS
    truth = names_of(rows)
    for name, folder in folders.items():
        names = predicted(folder, rows.texts)
        found = summary["models"][name]["metrics"]
        assert found["accuracy"]["value"] == pytest.approx(accuracy_score(truth, names), abs=1e-6)
        macro = f1_score(truth, names, average="macro")
        assert found["macro_f1"]["value"] == pytest.approx(macro, abs=1e-5)
        assert found["accuracy"]["low"] <= found["accuracy"]["value"] <= found["accuracy"]["high"]
        assert [LABELS[i] for i in paired.board.outputs[name].argmax(1)] == names  # in the first model's order
        confusion = np.array(summary["models"][name]["confusion"])
        assert confusion.sum(axis=1).tolist() == [truth.count(label) for label in LABELS]
        assert [entry["name"] for entry in summary["models"][name]["per_class"]] == list(LABELS)
        assert summary["models"][name]["latency_ms"] is None
    json.dumps(summary, allow_nan=False)


def test_pairs_are_second_minus_first_with_mcnemar(folders: dict[str, Path], rows: TestRows) -> None:
    paired = compare_paired({n: open_folder(f) for n, f in folders.items()}, rows, num_samples=300, latency=False)
    (pair,) = paired.summary["pairs"]
    a, b = (np.array(predicted(folders[name], rows.texts)) == np.array(names_of(rows)) for name in "ab")
    assert (pair["first"], pair["second"]) == ("a", "b")
    assert pair["mcnemar"]["only_first"] == (a & ~b).sum()
    assert pair["mcnemar"]["only_second"] == (b & ~a).sum()
    found = pair["differences"]["accuracy"]
    assert found["value"] == pytest.approx(b.mean() - a.mean(), abs=1e-6)
    assert found["low"] < found["value"] < found["high"]
    first, second = (paired.board.outputs[name].argmax(1) for name in "ab")
    assert pair["agreement"] == pytest.approx((first == second).mean())


def test_speed_is_measured_at_median_length_for_all(folders: dict[str, Path], rows: TestRows) -> None:
    found, rounds = measure_speed({n: open_folder(f) for n, f in folders.items()}, rows.texts)
    assert len(rounds["a"]) == len(rounds["b"]) == found["a"]["repeats"]
    settings = [{k: speed[k] for k in ("batch_size", "device", "threads", "repeats")} for speed in found.values()]
    assert settings[0] == settings[1]
    assert settings[0]["batch_size"] == 32
    lengths = sorted(len(text) for text in rows.texts)
    middle = sorted(rows.texts, key=len)[len(lengths) // 2]
    assert found["a"]["length"] == len(middle.split()) + 2  # with [CLS] and [SEP]
    assert all(speed["latency_ms"]["p50"] > 0 and speed["throughput"] > 0 for speed in found.values())


def test_the_ratio_of_latencies_is_taken_round_by_round() -> None:
    """A neighbour that slows some rounds down for both does not change it."""
    first = [0.002, 0.020, 0.002, 0.002, 0.030]
    second = [0.003, 0.030, 0.003, 0.003, 0.045]
    assert latency_ratio(first, second) == pytest.approx(1.5)
    assert latency_ratio(first, [*second[:4], 9.0]) == pytest.approx(1.5)


def test_models_of_other_labels_are_refused(folders: dict[str, Path], rows: TestRows, tmp_path: Path) -> None:
    other = save_tiny(tmp_path / "other", "bert", num_layers=1, labels=("art", "law", "web"))
    with pytest.raises(ModelError, match="outputs do not match"):
        compare_paired({"a": open_folder(folders["a"]), "o": open_folder(other)}, rows, latency=False)
    two = save_tiny(tmp_path / "two", "bert", num_layers=1, labels=("film", "money"))
    with pytest.raises(ModelError, match="outputs do not match"):
        compare_paired({"two": open_folder(two)}, rows, latency=False)
    number = save_tiny(tmp_path / "number", "bert", num_layers=1, labels=("value",))
    with pytest.raises(ModelError, match="a is for text classification, number for text regression"):
        compare_paired({"a": open_folder(folders["a"]), "number": open_folder(number)}, rows, latency=False)


def test_prepared_rows_have_the_hashes_of_the_same_rows_read_anew(csv: Path, tmp_path: Path) -> None:
    config = load_config(toy_config(tmp_path, data__path=str(csv), data__max_labeled=None))
    data = prepare_data(config, Storage(str(tmp_path / "storage")))
    other = TextClassification(("sport", "film", "money"))
    prepared, read = prepared_rows(data, other), read_test_rows(load_data(str(csv)), TASK)
    assert prepared.num_rows == 9
    anew = dict(zip(read.hashes, zip(read.texts, names_of(read), strict=True), strict=True))
    for value, text, label in zip(prepared.hashes, prepared.texts, names_of(prepared), strict=True):
        assert anew[value] == (text, label)
    with pytest.raises(ModelError, match="data is for text classification, the model for text regression"):
        prepared_rows(data, TextRegression())


def test_rows_without_text_or_label_are_left_out_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('text,text_pair,label\na film,"good",2\n,,10\nthe plot,x,\na song,,2\nbad,poor,10\n')
    rows = read_test_rows(Data(path=str(path)), TextClassification(("2", "10")))
    assert rows.texts == (("a film", "good"), ("bad", "poor"))  # a pair needs both, as in training
    assert names_of(rows) == ["2", "10"]
    generic = read_test_rows(Data(path=str(path)), TextClassification(("LABEL_0", "LABEL_1")))
    assert generic.targets.values.tolist() == [0, 1]  # by value, not as text
    assert "taken in this order for 2, 10" in generic.notes[-2]
    assert any("3 rows without a label or text were left out" in note for note in rows.notes)
    path.write_text("text,label\na film,\n")
    with pytest.raises(DataError, match="has a label"):
        read_test_rows(Data(path=str(path)), TASK)


def test_data_of_a_test_split_alone_is_taken(tmp_path: Path) -> None:
    for folder, names in (("one", ["test.csv"]), ("two", ["test-0.csv", "test-1.csv"])):
        (tmp_path / folder).mkdir()
        for number, name in enumerate(names):
            (tmp_path / folder / name).write_text(f"text,label\nfilm {number},art\nlaw {number},tax\n")
        task = TextClassification(("art", "tax"))
        rows = read_test_rows(Data(path=str(tmp_path / folder)), task)
        assert (rows.num_rows, rows.split) == (2 * len(names), "test")
        assert not any("instead of" in note for note in rows.notes)
        other = read_test_rows(Data(path=str(tmp_path / folder)), task, "validation")
        assert other.num_rows == rows.num_rows
        assert any("only the split 'test'" in note for note in other.notes)
    (tmp_path / "train_and_test.csv").write_text("text,label\na film,art\n")
    both = read_test_rows(Data(path=str(tmp_path / "train_and_test.csv")), task)
    assert any("no split of its own" in note for note in both.notes)


@pytest.mark.parametrize(
    ("labels", "kept"),
    [(["0", "-1", "1"], ["0", "1"]), (["-1", "1", "1"], ["-1", "1", "1"]), (["a", "b", ""], ["a", "b"])],
)
def test_minus_one_beside_zero_is_no_label(labels: list[str], kept: list[str], tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text,label\n" + "".join(f"row {i},{label}\n" for i, label in enumerate(labels)))
    task = TextClassification(sorted(set(kept)))
    rows = read_test_rows(Data(path=str(path)), task)
    assert names_of(rows) == kept
    assert any("1 rows without a label or" in note for note in rows.notes) == (len(kept) < 3)
    assert ("The label -1 counts as none." in rows.notes) == ("-1" in labels and "-1" not in kept)
    path.write_text("text,label\na film,-1\n")
    with pytest.raises(DataError, match="has a label"):
        read_test_rows(Data(path=str(path)), task)


def test_a_ratio_of_latencies_needs_one_device(
    folders: dict[str, Path], rows: TestRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    models: dict[str, Predictor] = {name: open_folder(folder, device="cpu") for name, folder in folders.items()}
    summary = compare_paired(models, rows.only(np.arange(rows.num_rows) < 9), num_samples=100).summary
    assert summary["pairs"][0]["latency_ratio"] > 0
    assert [model["runtime"] for model in summary["models"].values()] == ["torch float32, cpu"] * 2
    models["b"].device = torch.device("cuda")
    monkeypatch.setattr(paired, "measure_speed", lambda *_: ({}, {"a": [0.002], "b": [0.003]}))
    monkeypatch.setattr(models["b"], "outputs", models["a"].outputs)
    (pair,) = compare_paired(models, rows, num_samples=100).summary["pairs"]
    assert pair["latency_ratio"] is None


def test_only_keeps_rows_together(rows: TestRows) -> None:
    kept = rows.only(np.arange(rows.num_rows) % 3 == 0)
    assert kept.num_rows == 30
    assert (kept.texts[1], kept.hashes[1]) == (rows.texts[3], rows.hashes[3])
    assert kept.targets.values[1] == rows.targets.values[3]


def test_command_compares_and_refuses(
    folders: dict[str, Path], csv: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    a, b = (str(folder) for folder in folders.values())
    common = ["--data", str(csv), "--storage", str(tmp_path / "storage")]
    assert cli.execute(["compare", a, b, "--no-latency", "--json", *common]) == 0
    summary = json.loads(capfd.readouterr().out)
    assert list(summary["models"]) == [a, b]
    assert cli.execute(["compare", a, b, *common]) == 0
    shown = " ".join(capfd.readouterr().out.split())
    assert f"A {a}" in shown
    assert "McNemar's p" in shown
    assert "latency p50, ms" in shown
    word = "better than" if summary["pairs"][0]["differences"]["accuracy"]["low"] > 0 else "different from"
    assert f"B is {word}" in shown or f"B is not measurably {word}" in shown or "B is worse than A" in shown
    for wrong, said in (([a], "needs two models"), ([a, a], "given twice"), ([a, "nowhere"], "Cannot get the model")):
        assert cli.execute(["compare", *wrong, *common]) != 0
        assert said in capfd.readouterr().err
    with pytest.raises(ConfigError, match="comes from no run of the storage"):
        compare_models([a, b], storage=str(tmp_path / "storage"))


def test_rows_that_a_model_was_trained_on_are_said(folders: dict[str, Path], tmp_path: Path) -> None:
    results = distill(load_config(toy_config(tmp_path, evaluate__baseline=False)))
    run, other, storage = f"runs:/{results['run_id']}/student", str(folders["a"]), str(tmp_path / "storage")
    version = f"models:/toy/{results['model_version']}"
    counts = results["data"]["num_rows"]
    data = load_data(str(tmp_path / "toy.csv"))
    notes = compare_models([other, version], data, latency=False, storage=storage)["notes"]
    assert f"{counts['train'] + counts['validation']} of these rows stood in the training or validation rows of " in (
        " ".join(notes)
    )
    assert notes[-1].endswith(f"{version}.")
    hashes = read_test_rows(data, TASK).hashes
    assert seen_note(run, hashes, storage)[0].split()[0] == notes[-1].split()[0]
    own = compare_models([version, other], latency=False, storage=storage)["notes"]
    assert not any("stood in" in note for note in own)  # its own test rows


def test_words_of_the_toy_are_known_to_the_tokenizer(folders: dict[str, Path]) -> None:
    """Otherwise every row would look the same to the models of this file."""
    ids = open_folder(folders["a"]).encode([" ".join(WORDS[:20])])["input_ids"]
    assert len(set(ids[0].tolist())) > 18


def test_lengths_end_where_the_positions_do(tmp_path: Path) -> None:
    """RoBERTa's first positions are before its padding index; a tokenizer without a limit of its own sets none."""
    folder, positions = save_tiny(tmp_path / "roberta", "roberta", num_layers=1, labels=LABELS), 65
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"model_max_length": int(1e30)}))
    predictor = open_folder(folder)
    assert predictor.max_length == positions
    assert np.isfinite(predictor.outputs(["film " * 200])).all()
    with pytest.raises(ConfigError, match=f"more than this model can take \\({positions}\\)"):
        open_folder(folder, positions + 1)


def rewritten(source: Path, folder: Path, order: list[int], **settings: Any) -> Path:
    """A copy of a BERT with its outputs in another order, and other settings in its config."""
    shutil.copytree(source, folder)
    weights = load_file(folder / "model.safetensors")
    for name in ("classifier.weight", "classifier.bias"):
        weights[name] = weights[name][order].contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | settings))
    return folder


def test_labels_in_another_order_keep_their_thresholds(tmp_path: Path) -> None:
    path = write_tags_csv(tmp_path / "rows.csv")
    first = finish(tmp_path / "first", path, TAGS, num_steps=20)
    config = json.loads((first / "config.json").read_text())
    thresholds, order = [0.3, 0.5, 0.7], [2, 0, 1]
    (first / "config.json").write_text(json.dumps(config | {"thresholds": thresholds}))
    names = {str(i): LABELS[place] for i, place in enumerate(order)}
    moved = {"id2label": names, "thresholds": [thresholds[place] for place in order]}
    folders = {
        "first": first,
        "moved": rewritten(first, tmp_path / "moved", order, **moved),
        "other": rewritten(first, tmp_path / "other", order, **(moved | {"thresholds": thresholds})),
    }
    models = {name: open_folder(folder) for name, folder in folders.items()}
    rows = read_test_rows(Data(path=str(path)), models["first"].task)
    paired = compare_paired(models, rows, num_samples=100, latency=False)
    same, differs = paired.summary["pairs"]
    assert same["agreement"] == 1.0 > differs["agreement"]
    assert same["mcnemar"] == {"only_first": 0, "only_second": 0, "p": 1.0}
    assert all(found["value"] == pytest.approx(0.0, abs=1e-6) for found in same["differences"].values())
    for name in ("first", "moved"):
        entries = paired.summary["models"][name]["per_class"]
        assert [(entry["name"], entry["threshold"]) for entry in entries] == list(zip(LABELS, thresholds, strict=True))
    assert paired.summary["data"]["task"]["main_metric"] == "micro_f1"


def test_models_of_numbers_are_compared_whatever_their_output_is_called(tmp_path: Path) -> None:
    path = write_numbers_csv(tmp_path / "rows.csv")
    first = finish(tmp_path / "first", path, NUMBERS, num_steps=20)
    folders = {
        "first": first,
        "renamed": rewritten(first, tmp_path / "renamed", [0], id2label={"0": "LABEL_0"}, problem_type=None),
        "worse": finish(tmp_path / "worse", path, NUMBERS, num_steps=0, seed=1),
    }
    models = {name: open_folder(folder) for name, folder in folders.items()}
    rows = read_test_rows(Data(path=str(path)), models["first"].task)
    paired = compare_paired(models, rows, num_samples=200, latency=False)
    same, worse = paired.summary["pairs"]
    assert same["agreement"] == pytest.approx(1.0)
    assert same["mcnemar"] is None
    outputs, truth = {name: found[:, 0] for name, found in paired.board.outputs.items()}, rows.targets.values
    for name, metrics in ((name, model["metrics"]) for name, model in paired.summary["models"].items()):
        assert metrics["pearson"]["value"] == pytest.approx(pearsonr(outputs[name], truth).statistic, abs=1e-5)
        assert metrics["rmse"]["value"] == pytest.approx(np.sqrt(np.mean((outputs[name] - truth) ** 2)), rel=1e-4)
    difference = worse["differences"]["rmse"]
    assert 0 < difference["low"] < difference["value"] < difference["high"]
    letters = dict(zip(folders, "ABC", strict=True))
    assert describe_pair(worse, letters, "rmse").startswith("C is worse than A: difference in RMSE ")
    assert "McNemar" not in describe_pair(worse, letters, "rmse")
    assert "B is not measurably different from A" in describe_pair(same, letters, "pearson")
