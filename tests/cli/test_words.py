"""Commands on tables of words: what ``init`` writes of them, and ``predict`` into a table."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from kit.tagged import LABELS, tagged_rows, write_jsonl
from kit.tiny import tiny_config, tiny_tokenizer
from transformers import AutoModelForTokenClassification

from raydistill.cli.main import execute
from raydistill.config.loading import load_config


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A tagger that nothing was learned by, as others save it: without anything of raydistill's."""
    config: Any = tiny_config("bert", 2)
    config.id2label, config.label2id = dict(enumerate(LABELS)), {name: i for i, name in enumerate(LABELS)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        AutoModelForTokenClassification.from_config(config).save_pretrained(tmp_path / "model")
    tiny_tokenizer("bert").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_predict_takes_lists_of_words_and_writes_entities(model: Path, tmp_path: Path) -> None:
    rows = tagged_rows(30)
    table, out = write_jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "out.parquet"
    assert execute(["predict", str(model), "--file", str(table), "--out", str(out)]) == 0
    written = pq.read_table(out).to_pylist()
    assert [row["tokens"] for row in written] == [row["tokens"] for row in rows]
    assert sum(len(row["entities"]) for row in written) > 10
    for row in written:
        text = " ".join(row["tokens"])
        assert all(text[entity["start"] : entity["end"]] == entity["text"] for entity in row["entities"])
    assert execute(["predict", str(model), "--file", str(table), "--out", str(tmp_path / "out.csv")]) == 0
    with (tmp_path / "out.csv").open(newline="") as file:
        told = [json.loads(row["entities"]) for row in csv.DictReader(file)]
    assert [[entity["text"] for entity in row] for row in told] == [
        [entity["text"] for entity in row["entities"]] for row in written
    ]


def test_predict_says_entities_on_a_line(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    text = "the bank and the minister of the team"
    assert execute(["predict", str(model), "--text", text, "--text", " ", "--json"]) == 0
    first, second = json.loads(capfd.readouterr().out)["predictions"]
    assert second["entities"] is None
    assert execute(["predict", str(model), "--text", text, "--text", " "]) == 0
    said = ", ".join(f"{entity['text']} ({entity['label']})" for entity in first["entities"])
    assert capfd.readouterr().out.splitlines() == [f"{said or '-'}\t{text}", "(empty)\t "]


def test_init_knows_words_with_labels_and_writes_a_config_for_them(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "rows.jsonl", tagged_rows(120))
    assert execute(["init", "--data", "rows.jsonl", "--set", "task.type=text_classification", "--out", "x.yaml"]) == 2
    assert "token_classification" in capfd.readouterr().err
    assert execute(["init", "--data", "rows.jsonl"]) == 0
    config = load_config("rows.yaml")
    assert (config.task.type, config.data.columns.text, config.data.columns.label) == (
        "token_classification",
        "tokens",
        "ner_tags",
    )
    shares = [
        float(line.split()[-2]) for line in (tmp_path / "rows.yaml").read_text().splitlines() if line.endswith(" %")
    ]
    assert len(shares) == len(LABELS)
    assert sum(shares) == pytest.approx(100, abs=0.3)
