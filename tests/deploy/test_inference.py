"""Labels for texts and measures of a finished classifier."""

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
from kit.tiny import MAX_LENGTH, save_tiny
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from raydistill.cli import main as cli
from raydistill.cli.texts import decode_lines, read_texts, split_pairs
from raydistill.config.data import Data
from raydistill.deploy.classifier import stored_length
from raydistill.deploy.inference import evaluate_model, predict_texts
from raydistill.deploy.opening import open_folder
from raydistill.deploy.paired import label_ids
from raydistill.errors import ConfigError, DataError, ModelError

LABELS = ("art", "sport", "tax")
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
    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModelForSequenceClassification.from_pretrained(model).eval()
    with torch.no_grad():
        rows = [tokenizer(*([t] if isinstance(t, str) else t), return_tensors="pt") for t in texts]
        return torch.cat([network(**row).logits.softmax(-1) for row in rows])


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
    assert first == last
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
        ("id,text\n1,a film, and more\n", [], "line 2: 3 cells under 2 columns"),
        ("text,text\na,b\n", [], "more than one column named 'text'"),
        ("text\n", [], "holds no rows"),
        ("text\na\n", ["--pairs"], "name both columns"),
        ("text\na\n", ["--out", "x.xlsx"], r"name a file that ends in .csv"),
    ],
)
def test_what_is_wrong_with_a_table_is_told(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], content: str, options: list[str], message: str
) -> None:
    (tmp_path / "t.csv").write_text(content)
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


def test_labels_that_the_model_does_not_know(model: Path, tmp_path: Path) -> None:
    data = Data(path=str(write_rows(tmp_path / "rows.csv", ["art", "sport", "war", "pop", "tax"])))
    with pytest.raises(ModelError, match="labels the model does not know: pop, war"):
        evaluate_model(str(model), data)


def test_label_ids_by_name_case_and_number() -> None:
    assert label_ids(["tax", "art"], LABELS, ("art", "tax"))[0].tolist() == [2, 0]
    assert label_ids(["TAX", "Art"], LABELS, ("Art", "SPORT", "TAX"))[0].tolist() == [2, 0]
    ids, notice = label_ids(["2", "0"], ("LABEL_0", "LABEL_1", "LABEL_2"), ("0", "1", "2"))
    assert ids.tolist() == [2, 0]
    assert notice is not None
    ids, notice = label_ids(["1", "1"], ("neg", "pos"), ("1",))
    assert ids.tolist() == [1, 1]
    assert notice is not None
    assert "neg, pos" in notice
    for labels, own in ((["2"], ("neg", "pos")), (["0"], ("1", "2")), (["pop"], ("neg", "pos"))):
        with pytest.raises(ModelError, match="labels the model does not know") as error:
            label_ids(labels, own, tuple(labels) * 2)
        assert "task.labels" not in str(error.value)


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
    assert cli.execute(["predict", str(model), "--file", str(tmp_path / "texts.txt"), "--pairs", "--json"]) == 0
    (row,) = json.loads(capfd.readouterr().out)["predictions"]
    assert (row["text"], row["text_pair"]) == ("a film", "tax")
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
    assert list(split_pairs(["a\tb"])) == [("a", "b")]
    with pytest.raises(DataError, match="Text 2 has 0 tabs"):
        list(split_pairs(["a\tb", "c"]))
