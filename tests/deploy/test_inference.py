"""Answers to texts and measures of a finished model."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from kit.finished import NUMBERS, TAGS, finish, predict_texts, write_numbers_csv, write_tags_csv
from kit.tiny import MAX_LENGTH, save_tiny
from scipy.stats import pearsonr
from sklearn.metrics import f1_score
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from raydistill.cli import main as cli
from raydistill.cli.texts import decode_lines, read_texts
from raydistill.config.data import Data
from raydistill.deploy.inference import evaluate_model
from raydistill.deploy.opening import open_folder
from raydistill.deploy.predictor import stored_length
from raydistill.errors import ConfigError, DataError, ModelError

LABELS = ("art", "sport", "tax")
TAGGED = ("film", "money", "sport")
TEXTS = [
    "a good film",
    "the team win the match in the game",
    "tax",
    "the minister vote on the tax law and the party",
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"), "bert", num_layers=2, labels=LABELS)


def reference(model: Path, texts: list[Any]) -> torch.Tensor:
    """Probabilities row by row, without padding."""
    return torch.from_numpy(logits_of(model, texts)).softmax(-1)


def logits_of(model: Path, texts: list[Any]) -> np.ndarray:
    """What transformers gives row by row, without padding."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModelForSequenceClassification.from_pretrained(model).eval()
    with torch.no_grad():
        rows = [tokenizer(*([t] if isinstance(t, str) else t), return_tensors="pt") for t in texts]
        return torch.cat([network(**row).logits for row in rows]).numpy()


@pytest.fixture(scope="module")
def number_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("numbers")
    return finish(folder / "model", write_numbers_csv(folder / "rows.csv"), NUMBERS)


@pytest.fixture(scope="module")
def tag_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tags")
    return finish(folder / "model", write_tags_csv(folder / "rows.csv"), TAGS)


@pytest.mark.parametrize("texts", [TEXTS, [("a film", "a good plot"), ("tax", "law and tax and law")]])
def test_predictions_equal_the_plain_model_in_order(model: Path, texts: list[Any]) -> None:
    found = list(predict_texts(str(model), texts, batch=3))
    expected = reference(model, texts)
    assert [row["label"] for row in found] == [LABELS[i] for i in expected.argmax(-1)]
    np.testing.assert_allclose([row["score"] for row in found], expected.max(-1).values, atol=1e-5)
    assert [row["text"] for row in found] == [t if isinstance(t, str) else t[0] for t in texts]


@pytest.mark.parametrize("empty", ["", " \t", ("a film", "")])
def test_an_empty_text_is_said_to_be_empty(model: Path, empty: Any, capfd: pytest.CaptureFixture[str]) -> None:
    full = "a film" if isinstance(empty, str) else ("a film", "a plot")
    first, none, last = predict_texts(str(model), [full, empty, full])
    assert (none["label"], none["score"], none["scores"]) == (None, None, None)
    assert (first["text"], first["label"]) == (last["text"], last["label"])
    assert first["scores"] == pytest.approx(last["scores"], abs=1e-6)  # a batch of two may round otherwise in each row
    assert sum(first["scores"].values()) == pytest.approx(1, abs=1e-5)
    if isinstance(empty, str):
        assert cli.execute(["predict", str(model), "--text", empty]) == 0
        assert capfd.readouterr().out == f"(empty)\t-\t{empty}\n"


def write_table(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.name.endswith((".csv.gz", ".tsv", ".csv")):
        separator = "\t" if path.suffix == ".tsv" else ","
        lines = [list(rows[0]), *([row[name] for name in rows[0]] for row in rows)]
        text = "".join(separator.join("" if cell is None else f'"{cell}"' for cell in line) + "\n" for line in lines)
        path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read_back(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    with path.open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))


KINDS = [("a.csv", "b.csv"), ("a.csv.gz", "b.tsv"), ("a.tsv", "b.jsonl"), ("a.jsonl", "b.parquet")]
KINDS += [("a.json", "b.jsonl"), ("a.parquet", "b.parquet")]


@pytest.mark.parametrize(("name", "out"), KINDS)
def test_a_table_gets_labels_row_by_row(
    model: Path, tmp_path: Path, name: str, out: str, capfd: pytest.CaptureFixture[str]
) -> None:
    texts = ["a film\nwith a plot, good", "tax", None, "the team"]
    rows = [{"id": f"no {number}", "body": text} for number, text in enumerate(texts)]
    table, written = write_table(tmp_path / name, rows), tmp_path / out
    command = ["predict", str(model), "--file", str(table), "--column", "body"]
    assert cli.execute([*command, "--out", str(written), "--batch-size", "3", "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert told == {"model": str(model), "written": str(written), "num_rows": 4, "num_empty": 1}
    found = read_back(written)
    assert [row["id"] for row in found] == ["no 0", "no 1", "no 2", "no 3"]
    assert list(found[0]) == ["id", "body", "label", "score", *(f"score_{label}" for label in LABELS)]
    kept = [0, 1, 3]
    expected = reference(model, [texts[number] for number in kept])
    assert [found[number]["label"] for number in kept] == [LABELS[i] for i in expected.argmax(-1)]
    scores = [[float(found[number][f"score_{label}"]) for label in LABELS] for number in kept]
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    assert not any(found[2][column] for column in ("label", "score", "score_art"))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, out])


def test_columns_of_a_table_are_recognised_and_kept_apart(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = [{"score": "5", "sentence1": "a film", "sentence2": "a plot"}]
    table = write_table(tmp_path / "pairs.jsonl", rows)
    for columns in ([], ["--column", "sentence1", "--column", "sentence2"]):
        assert cli.execute(["predict", str(model), "--file", str(table), *columns, "--json"]) == 0
        (row,) = json.loads(capfd.readouterr().out)["predictions"]
        assert (row["text"], row["text_pair"]) == ("a film", "a plot")
        assert set(row["scores"]) == set(LABELS)
    assert cli.execute(["predict", str(model), "--file", str(table), "--out", str(tmp_path / "o.csv")]) == 0
    (found,) = read_back(tmp_path / "o.csv")
    assert found["score"] == "5"
    assert found["predicted_label"] in LABELS


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("id,body\n1,a film\n", [], "no column that is recognised as the text .* Name it with --column"),
        ("id,body\n1,a film\n", ["--column", "bodi"], "--column is 'bodi', which .* lacks. .*body"),
        ("id,text\n1,a film, and more\n", [], "line 2: 3 cells, where the header has 2"),
        ("text,text\na,b\n", [], "more than one column named 'text'"),
        ("text\n", [], "holds no rows"),
        ('text\na\n"b\n', [], "unexpected end of data"),
        ("text\na\ncaf\xe9\n", [], "line 3, column 'text': byte 0xe9 is not UTF-8"),
        ("text\na\n", ["--out", "x.xlsx"], r"name a file that ends in .csv"),
    ],
)
def test_what_is_wrong_with_a_table_is_told(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], content: str, options: list[str], message: str
) -> None:
    (tmp_path / "t.csv").write_text(content, encoding="latin-1")
    assert cli.execute(["predict", str(model), "--file", str(tmp_path / "t.csv"), *options]) in (1, 2)
    assert re.search(message, capfd.readouterr().err)


def test_a_column_is_one_of_a_table(model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.execute(["predict", str(model), "--text", "a", "--column", "b"]) == 2
    assert "names a column of a table" in capfd.readouterr().err
    table = write_table(tmp_path / "t.csv", [{"text": "a"}])
    assert cli.execute(["predict", str(model), "--file", str(table), "--out", str(table)]) == 2
    assert "is the file to read" in capfd.readouterr().err


def test_predictions_come_while_the_texts_do(model: Path) -> None:
    asked: list[int] = []

    def endless() -> Any:
        for number in range(10**9):
            asked.append(number)
            yield "a film"

    rows = predict_texts(str(model), endless(), batch=4)
    assert next(rows)["label"] in LABELS
    assert len(asked) == 4


def test_length_is_bounded_and_can_be_chosen(model: Path, tmp_path: Path) -> None:
    long = "film " * 500
    (cut,) = predict_texts(str(model), [long], max_length=8)
    (short,) = predict_texts(str(model), ["film " * 6])
    assert cut["score"] == pytest.approx(short["score"], abs=1e-6)  # 8 tokens with [CLS] and [SEP]
    assert list(predict_texts(str(model), [long]))  # cut to the positions that the model has
    with pytest.raises(ConfigError, match="is more than this model can take"):
        predict_texts(str(model), [long], max_length=MAX_LENGTH + 100)
    (tmp_path / "MLmodel").write_text("flavors: {python_function: {config: {max_length: 16}}}")
    assert stored_length(tmp_path) == 16
    assert stored_length(model) is None


def test_encoder_without_a_head_is_refused(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path, "bert", num_layers=1, classifier=False)
    with pytest.raises(ModelError, match="without a classification head"):
        predict_texts(str(folder), TEXTS)


def write_rows(path: Path, labels: list[str]) -> Path:
    rows = zip([*TEXTS, ""], labels, strict=True)
    path.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in rows))
    return path


def test_evaluation_counts_what_the_model_says(model: Path, tmp_path: Path) -> None:
    labels = ["art", "sport", "tax", "tax", ""]
    scores = evaluate_model(str(model), Data(path=str(write_rows(tmp_path / "rows.csv", labels))), num_samples=100)
    kept = [0, 1, 2, 3]
    said = reference(model, TEXTS).argmax(-1)[kept]
    truth = torch.tensor([LABELS.index(labels[i]) for i in kept])
    assert scores["num_rows"] == 4
    assert scores["metrics"]["accuracy"]["value"] == pytest.approx((said == truth).float().mean().item())
    assert np.sum(scores["confusion"]) == 4
    assert any("no split of its own" in note for note in scores["notes"])
    assert any("1 rows without a label" in note for note in scores["notes"])


def test_evaluation_takes_the_split_it_was_asked_for(model: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "train.csv", ["art"] * 5)
    write_rows(tmp_path / "test.csv", ["tax"] * 5)
    scores = evaluate_model(str(model), Data(path=str(tmp_path)), num_samples=100)
    assert np.sum(scores["confusion"], axis=1).tolist() == [0, 0, 4]  # the empty text is left out
    with pytest.raises(ConfigError, match="did you mean train"):
        evaluate_model(str(model), Data(path=str(tmp_path)), "trian")


def test_numbers_are_predicted_in_their_own_unit(number_model: Path, tmp_path: Path) -> None:
    texts = ["a film with a plot", "good great win"]
    found = list(predict_texts(str(number_model), [*texts, ""]))
    assert found[2] == {"text": "", "value": None}
    expected = logits_of(number_model, texts)[:, 0]
    np.testing.assert_allclose([row["value"] for row in found[:2]], expected, atol=1e-3)
    assert 90 < found[0]["value"] < 110 < found[1]["value"]
    rows = write_numbers_csv(tmp_path / "rows.csv", 80, seed=1)
    scores = evaluate_model(str(number_model), Data(path=str(rows)), num_samples=100)
    with rows.open(newline="") as file:
        table = list(csv.DictReader(file))
    outputs, truth = logits_of(number_model, [row["text"] for row in table])[:, 0], [float(r["rating"]) for r in table]
    assert scores["metrics"]["pearson"]["value"] == pytest.approx(pearsonr(outputs, truth).statistic, abs=1e-5)
    assert scores["metrics"]["mae"]["value"] == pytest.approx(np.abs(outputs - truth).mean(), abs=1e-4)
    assert scores["metrics"]["pearson"]["low"] < scores["metrics"]["pearson"]["value"]
    assert (scores["task"]["main_metric"], scores["labels"]) == ("pearson", ["value"])
    assert len(scores["scatter"]) == 80
    assert "per_class" not in scores


def test_labels_are_predicted_by_their_thresholds(tag_model: Path, tmp_path: Path) -> None:
    texts = ["film team", "the law and the tax", "market"]
    found = list(predict_texts(str(tag_model), [*texts, " "]))
    assert (found[3]["labels"], found[3]["scores"]) == (None, None)
    config = json.loads((tag_model / "config.json").read_text())
    probs = 1 / (1 + np.exp(-logits_of(tag_model, texts).astype(np.float64)))
    given = probs >= np.array(config["thresholds"])
    assert [row["labels"] for row in found[:3]] == [[n for n, g in zip(TAGGED, row, strict=True) if g] for row in given]
    np.testing.assert_allclose([list(row["scores"].values()) for row in found[:3]], probs, atol=1e-5)
    rows = write_tags_csv(tmp_path / "rows.csv", 60, seed=1)
    scores = evaluate_model(str(tag_model), Data(path=str(rows)), num_samples=100)
    with rows.open(newline="") as file:
        table = list(csv.DictReader(file))
    truth = np.array([[name in row["tags"].split(",") for name in TAGGED] for row in table])
    probs = 1 / (1 + np.exp(-logits_of(tag_model, [row["text"] for row in table]).astype(np.float64)))
    guess = probs >= np.array(config["thresholds"])
    for metric, average in (("micro_f1", "micro"), ("macro_f1", "macro")):
        expected = f1_score(truth, guess, average=average)
        assert scores["metrics"][metric]["value"] == pytest.approx(expected, abs=1e-9)
    assert [entry["support"] for entry in scores["per_class"]] == truth.sum(axis=0).tolist()
    assert [entry["threshold"] for entry in scores["per_class"]] == pytest.approx(config["thresholds"])
    json.dumps(scores, allow_nan=False)


def test_labels_that_a_model_does_not_know(model: Path, tag_model: Path, number_model: Path, tmp_path: Path) -> None:
    data = Data(path=str(write_rows(tmp_path / "rows.csv", ["art", "sport", "war", "pop", "tax"])))
    with pytest.raises(ModelError, match="labels the model does not know: pop, war"):
        evaluate_model(str(model), data)
    (tmp_path / "rows.csv").write_text('text,tags\na film,"film,war"\nthe team,sport\n')
    with pytest.raises(ModelError, match="labels the model does not know: war"):
        evaluate_model(str(tag_model), Data(path=str(tmp_path / "rows.csv")))
    (tmp_path / "rows.csv").write_text("text,rating\na film,good\n")
    with pytest.raises(DataError, match="'good', which is no number"):
        evaluate_model(str(number_model), Data(path=str(tmp_path / "rows.csv")))


@pytest.mark.parametrize("out", ["b.csv", "b.jsonl", "b.parquet"])
@pytest.mark.parametrize("kind", [NUMBERS, TAGS])
def test_a_table_gets_the_columns_of_the_task(
    kind: str, out: str, number_model: Path, tag_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = {NUMBERS: number_model, TAGS: tag_model}[kind]
    texts = ["film team market", None, "the film is great", "law"]
    table, written = write_table(tmp_path / "a.jsonl", [{"text": text} for text in texts]), tmp_path / out
    assert cli.execute(["predict", str(model), "--file", str(table), "--out", str(written)]) == 0
    assert "4 rows, 1 of them empty and without an answer" in capfd.readouterr().out
    answers = list(predict_texts(str(model), [text or "" for text in texts]))
    found = read_back(written)
    first = "value" if kind == NUMBERS else "labels"
    scores = [] if kind == NUMBERS else [f"score_{name}" for name in TAGGED]
    assert list(found[0]) == ["text", first, *scores]
    for row, answer in zip(found, answers, strict=True):
        if answer[first] is None:
            assert not any(row[column] for column in (first, *scores))
            continue
        for name, column in zip(TAGGED, scores, strict=False):
            assert float(row[column]) == pytest.approx(answer["scores"][name], abs=1e-5)
        if kind == NUMBERS:
            assert float(row["value"]) == pytest.approx(answer["value"], abs=1e-3)
        else:
            assert row["labels"] == (", ".join(answer["labels"]) if out == "b.csv" else answer["labels"])


def test_lines_of_other_tasks(number_model: Path, tag_model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for model in (number_model, tag_model):
        texts = ["film team market", "law", ""]
        assert cli.execute(["predict", str(model), *(f"--text={text}" for text in texts)]) == 0
        lines = [line.split("\t") for line in capfd.readouterr().out.splitlines()]
        assert [line[1] for line in lines] == texts
        assert lines[2][0] == "(empty)"
        answers = list(predict_texts(str(model), texts))[:2]
        if model == number_model:
            assert [line[0] for line in lines[:2]] == [f"{answer['value']:.4f}" for answer in answers]
        else:
            assert [line[0] for line in lines[:2]] == [", ".join(answer["labels"]) or "-" for answer in answers]


@pytest.mark.parametrize("damage", ["gone", "broken", "no vocabulary"])
def test_a_folder_without_a_tokenizer_is_refused(model: Path, tmp_path: Path, damage: str) -> None:
    folder = Path(shutil.copytree(model, tmp_path / "model"))
    (folder / "tokenizer.json").write_text("{") if damage == "broken" else (folder / "tokenizer.json").unlink()
    if damage == "gone":
        (folder / "tokenizer_config.json").unlink()
    with pytest.raises(ModelError, match="tokenizer") as error:
        open_folder(folder)
    assert f'save_pretrained("{folder}")' in str(error.value)


def test_commands_print_labels_and_scores(model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.execute(["predict", str(model), "--text", TEXTS[0], "--text", TEXTS[2]]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert [line.split("\t")[2] for line in lines] == [TEXTS[0], TEXTS[2]]
    (tmp_path / "texts.txt").write_text("a film\ttax\n")
    assert cli.execute(["predict", str(model), "--file", str(tmp_path / "texts.txt"), "--json"]) == 0
    (row,) = json.loads(capfd.readouterr().out)["predictions"]
    assert row["text"] == "a film\ttax"
    rows = write_rows(tmp_path / "rows.csv", ["art", "sport", "tax", "art", "tax"])
    assert cli.execute(["evaluate", str(model), "--data", str(rows), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["num_rows"] == 4  # the empty text is left out
    assert cli.execute(["evaluate", str(model), "--data", str(rows)]) == 0
    assert "accuracy" in capfd.readouterr().out


def test_lines_are_read_as_they_are() -> None:
    assert list(decode_lines(io.BytesIO("\ufeffä\r\n\nb".encode()), "x")) == ["ä", "", "b"]
    with pytest.raises(DataError, match="Line 2 of x is not UTF-8"):
        list(decode_lines(io.BytesIO(b"a\n\xe4\n"), "x"))
    assert list(read_texts(["a", "b"], None, io.StringIO())) == ["a", "b"]
