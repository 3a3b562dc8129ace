"""raydistill init --data: what it finds in data, and that what it writes runs."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from kit.rows_on_disk import make_folder
from kit.tiny import save_tiny
from kit.toy import TOPICS, write_toy_csv
from PIL import Image

from raydistill.cli import main as cli
from raydistill.cli.proposal import DEFAULT_VISION, PACKAGED, name_of, propose, surveyed
from raydistill.config.data import Columns, Split
from raydistill.config.loading import data_config, load_config
from raydistill.config.syntax import as_yaml
from raydistill.config.tasks import SECTIONS, TextClassification
from raydistill.data.columns import canonical, choose_columns, guessed
from raydistill.data.recognition import recognised
from raydistill.data.survey import shares
from raydistill.errors import DataError
from raydistill.models.head import IMAGE
from raydistill.pipeline import plan as planning
from raydistill.pipeline.distill import distill

Row = dict[str, str]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny(tmp_path_factory.mktemp("model") / "encoder", "bert", classifier=False))


def own_rows(folder: Path, num_rows: int = 240) -> list[Row]:
    """The toy's rows as people keep them: an id, other names of columns, gaps, repetitions."""
    with write_toy_csv(folder / "toy.csv", num_rows).open() as file:
        rows = [
            {"id": str(i), "body": row["text"], "topic": row["label"], "day": "2024-01-02"}
            for i, row in enumerate(csv.DictReader(file))
        ]
    for row in rows[:20]:
        row["topic"] = ""
    rows[20]["body"] = " "
    return [*rows, *rows[30:37], {**rows[40], "topic": "sport" if rows[40]["topic"] != "sport" else "film"}]


def write_csv(rows: list[Row], path: Path, delimiter: str = ",") -> str:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def run_init(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any, str]:
    code = cli.execute(["init", *arguments])
    out, err = capfd.readouterr()
    return code, json.loads(out) if "--json" in arguments and out else out, err


def test_what_init_writes_can_be_run(
    tmp_path: Path, encoder: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    write_csv(own_rows(tmp_path), tmp_path / "my posts.csv")
    code, out, _ = run_init(capfd, "--data", "my posts.csv", "--teacher", encoder)
    assert code == 0
    for said in ("20 of the train rows have no label", "7 rows were removed", "2 rows were removed", "1 train row"):
        assert said in out
    assert out.endswith("my-posts.yaml written. Next: raydistill plan my-posts.yaml\n")
    text = (tmp_path / "my-posts.yaml").read_text()
    assert all(f"#   {topic}" in text for topic in TOPICS)
    assert "columns:  # not used: id, day\n    text: body\n    label: topic\n" in text
    config = load_config("my-posts.yaml", ["train.num_workers=0"])
    planned = planning.make_plan(config, check=True)  # every loss on a real batch
    assert planned["labels"] == sorted(TOPICS)
    assert planned["data"]["rows"] == {"train": 109, "validation": 41, "test": 60} | planned["data"]["rows"]
    assert config.registry.name == "my-posts"


@pytest.mark.slow
def test_without_a_config_the_command_prints_the_one_that_it_amounts_to(
    tmp_path: Path, encoder: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    write_toy_csv(tmp_path / "toy.csv", 120)
    quick = ["train.num_workers=0", "teacher.allow_chance=true", "evaluate.latency=false", "student.num_layers=1"]
    options = ["--teacher", encoder, *(word for setting in quick for word in ("--set", setting))]
    assert cli.execute(["plan", "toy.csv", *options]) == 0
    planned = capfd.readouterr().out.partition("to keep and change:\n")[2]
    assert cli.execute(["distill", "toy.csv", *options]) == 0
    printed = capfd.readouterr().out.partition("to keep and change:\n")[2]
    assert printed == planned
    assert "evaluate:\n  baseline: true\n" in printed
    (tmp_path / "kept.yaml").write_text(printed)
    assert distill(load_config("kept.yaml"))["reused"] == ["run"]

    assert cli.execute(["distill", "toy.csv"]) == 2
    assert "toy.csv is a table, not a config. Name the model to distil on it: --teacher" in capfd.readouterr().err


def save(rows: list[Row], path: Path) -> None:
    """In the format that the name tells."""
    if path.suffix in (".csv", ".tsv"):
        write_csv(rows, path, "," if path.suffix == ".csv" else "\t")
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    elif path.name == "classes":
        make_folder(path, {f"{row['topic']}/{row['id']}": row["body"] for row in rows if row["topic"]})
    else:
        named = [{"text": row["body"], "label": row["topic"] or None} for row in rows]
        datasets.Dataset.from_list(named).save_to_disk(str(path))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.csv", "csv"),
        ("a.tsv", "csv"),
        ("a.parquet", "parquet"),
        ("a.jsonl", "jsonl"),
        ("classes", "text_folder"),
        ("saved", "datasets"),
    ],
)
def test_every_format_is_surveyed(tmp_path: Path, encoder: str, name: str, kind: str) -> None:
    path = str(tmp_path / name)
    save(own_rows(tmp_path), tmp_path / name)
    text, survey = propose(data_config(path), encoder)
    assert survey.kind == kind
    assert list(survey.counts) == sorted(TOPICS)
    assert survey.num_unlabeled == (0 if kind == "text_folder" else 20)
    (tmp_path / "made.yaml").write_text(text)
    made = load_config(tmp_path / "made.yaml")
    assert made.data.format == kind
    again = propose(data_config(path, [f"data.max_length={made.data.max_length}"]), encoder)[1]
    assert surveyed(again) == surveyed(survey)
    assert planning.make_plan(made)["labels"] == sorted(TOPICS)


def test_names_that_yaml_would_misread(tmp_path: Path, encoder: str) -> None:
    names = {"film": "no", "money": "a: b #c\n- d", "sport": "\x1b]0;x\x07"}
    rows = [
        {"a: b": row["body"], "#l": names.get(row["topic"], ""), "x\ny": "1"} for row in own_rows(tmp_path, num_rows=60)
    ]
    path = write_csv(rows, tmp_path / "it's a #1: file.csv")
    text, survey = propose(data_config(path, ["data.columns.label='#l'", "data.columns.text='a: b'"]), encoder)
    (tmp_path / "made.yaml").write_text(text)
    made = load_config(tmp_path / "made.yaml")
    assert (made.data.path, made.data.columns) == (path, Columns(text="a: b", label="#l"))
    assert set(survey.counts) == set(names.values())
    assert "\x1b" not in text


def test_settings_that_are_given_stay(tmp_path: Path, encoder: str) -> None:
    path = write_csv(own_rows(tmp_path), tmp_path / "posts.csv")
    (tmp_path / "more.txt").write_text("one more text\n")
    given = [
        "data.max_length=12",
        "data.max_labeled=30",
        "data.split={test: 0.4}",
        f"data.unlabeled={tmp_path}/more.txt",
    ]
    text, survey = propose(data_config(path, given), encoder)
    (tmp_path / "made.yaml").write_text(text)
    made = load_config(tmp_path / "made.yaml").data
    assert (made.max_length, made.max_labeled, made.split.test) == (12, 30, 0.4)
    assert made.unlabeled == f"{tmp_path}/more.txt"
    assert survey.num_unlabeled == 21


def test_init_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.yaml").write_text("mine")
    for arguments, said in [
        (["--data", "there.csv"], "there.yaml exists already"),  # before the data is looked for
        (["quickstart", "--data", "posts.csv"], "not both"),
        (["--teacher", "x"], "--data, which is missing"),
        (["--data", "posts.csv"], "posts.csv does not exist"),
        (["--data", "posts.csv", "--set", "train.seed=1"], "only names of data, task and teacher are used here"),
        (["--data", "posts.csv", "--set", "teacher.finetune.epochs=1"], "did you mean teacher.finetune.num_epochs?"),
        (["--data", "posts.csv", "--teacher", "a", "--set", "teacher.model=b"], "Leave one of them out"),
    ]:
        code, _, err = run_init(capfd, *arguments)
        assert code == 2
        assert said in err
    assert (tmp_path / "there.yaml").read_text() == "mine"


TEXTS = ["the first of some long texts", "another one of these long texts", "and a third one as long"] * 4


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"body": TEXTS, "stars": ["1", "2", "3"] * 4}, {"text": "body", "label": "stars"}),
        ({"Text": TEXTS, "stars": [1, 2, 3] * 4, "id": list(range(12))}, {"text": "Text", "label": "stars"}),
        ({"question1": TEXTS, "question2": TEXTS, "label": ["y", "n", "y"] * 4}, {"text_pair": "question2"}),
        (
            {"body": TEXTS, "stars": ["1", "2", None] * 4, "lang": ["de", "en", "en"] * 4},
            "as the label .*; it could be any of stars, lang",
        ),
        (  # the one with by far the most words; what stands around a text is none
            {
                "ticket": [f"{i:08x}-0000-4000-8000-000000000000" for i in range(12)],
                "opened": [f"Wed, {i + 1:02} Dec 2026 19:18:46 GMT" for i in range(12)],
                "page": [f"https://example.org/a/long/path/{i}" for i in range(12)],
                "team": ["the department of billing and payments in the north"] * 12,
                "raw": ['{"is": "an object", "and": "no free text at all"}'] * 6 + ['{"b": "another of them"}'] * 6,
                "subject": [f"a short line of what is in it, {i}" for i in range(12)],
                "message": [f"{' '.join(TEXTS[:3])} {i}" for i in range(12)],
                "label": ["1", "2", "3"] * 4,
            },
            {"text": "message"},
        ),
        (
            {"inhalt": ["这个电影非常好看我很喜欢它", "今天的天气很不好所以没有出去"] * 6, "label": ["1", "2"] * 6},
            {"text": "inhalt"},
        ),
        (
            {"body": TEXTS, "reply": TEXTS, "label": ["1", "2", "3"] * 4},
            "as the text .*; it could be any of body, reply",
        ),
        (
            {"body": TEXTS, "score": [i / 7 for i in range(12)]},
            "x has no column that is recognised as the label .*Its columns: body, score.* score would fit task.type "
            "text_regression.$",
        ),
        (
            {"body": TEXTS, "id": range(12), "found": [[{"start": 0, "end": 3, "label": "x"}], []] * 6},
            "found would fit task.type token_classification.$",
        ),
        (
            {"body": TEXTS, "id": range(12), "toxic": ["0", "1", None] * 4, "insult": [True, False, True] * 4},
            "toxic, insult hold 0 and 1. If each is a label .* with commas .* task.type: multi_label_classification.$",
        ),
        ({"body": TEXTS, "seen": [0, 1] * 6}, {"text": "body", "label": "seen"}),
        (
            {"query": ["a short question", "another one"] * 6, "Document": TEXTS, "label": [0, 1] * 6},
            {"text": "query", "text_pair": "Document", "label": "label"},
        ),
        (
            {"body": TEXTS, "found": [["a", "b"], ["b"]] * 6},
            "found would fit task.type multi_label_classification or token_classification.$",
        ),
    ],
)
def test_columns_are_recognised_by_what_they_hold(
    columns: dict[str, list[Any]], expected: dict[str, str] | str
) -> None:
    def choose() -> dict[str, str]:
        return choose_columns(list(columns), Columns(), "x", True, TextClassification(), cells=lambda: columns)

    if isinstance(expected, str):
        with pytest.raises(DataError, match=expected):
            choose()
    else:
        chosen = choose()
        assert chosen == chosen | expected
        assert "text_pair" not in chosen or not guessed(chosen, Columns(), TextClassification())


@pytest.mark.parametrize(
    ("task", "cells", "fits"),
    [
        ("text_regression", ["a", "b"] * 6, "text_classification"),
        ("text_classification", [["a"], ["b"]] * 6, "multi_label_classification or token_classification"),
        ("multi_label_classification", [i / 7 for i in range(12)], "text_regression"),
        ("token_classification", ["a", "b"] * 6, "text_classification"),
        ("embeddings", ["a", "b"] * 6, "text_classification"),
    ],
)
def test_a_column_that_is_no_label_of_the_task_is_told_with_its_own(task: str, cells: list[Any], fits: str) -> None:
    table, settings = pa.table({"text": TEXTS, "text_pair": TEXTS, "label": cells}), SECTIONS[task]()
    chosen = {"text": "text", "label": "label"} | ({"text_pair": "text_pair"} if task == "embeddings" else {})
    with pytest.raises(DataError, match=rf"label would fit task\.type {fits}\.$"):
        canonical(table, chosen, "x", None, settings)


def test_queries_with_labelled_documents_are_pairs_and_what_else_they_may_be_is_told(tmp_path: Path) -> None:
    rows = [{"query": f"query {i // 2}", "document": MANY[i], "label": i % 2} for i in range(120)]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    config, notes = recognised(data_config(str(path)))
    assert config.task.type == "text_classification"
    assert "--set task.type=embeddings" in notes[0]


MANY = [f"text {i} of some words, number {i * 7}" for i in range(120)]
SPANS = [[{"start": 5, "end": 6, "label": "AB"[i % 2]}] for i in range(120)]


@pytest.mark.parametrize(
    ("columns", "task", "label"),
    [
        ({"text": MANY, "entities": SPANS}, "token_classification", "entities"),
        ({"text": MANY, "label": [[[5, 6, "A"]]] * 120}, "token_classification", "label"),
        ({"text": MANY, "lang": ["de", "en"] * 60, "spans": SPANS}, "token_classification", "spans"),
        ({"tokens": [["a", "b"]] * 120, "ner_tags": [["O", "B-X"]] * 120}, "token_classification", "ner_tags"),
        ({"text": MANY, "tags": [["a"], ["a", "b"]] * 60}, "multi_label_classification", "tags"),
        ({"id": range(120), "query": MANY, "document": MANY[::-1]}, "embeddings", None),
        ({"anchor": MANY, "positive": MANY[::-1]}, "embeddings", None),
        ({"question": MANY, "context": MANY, "answers": ["text"] * 120}, "question_answering", "answers"),
        ({"text": MANY, "mood": [i / 7 for i in range(120)]}, "text_regression", "mood"),
        ({"text": MANY, "price": [i * 37 % 120 for i in range(120)]}, "text_regression", "price"),
        ({"file": [f"{i}.png" for i in range(120)], "kind": ["a", "b"] * 60}, "image_classification", "kind"),
        # classes, as ever: where they have their name, and where a number beside them may be how sure somebody was
        ({"text": MANY, "label": ["a", "b"] * 60, "score": [i / 7 for i in range(120)]}, "text_classification", None),
        ({"text": MANY, "topic": ["a", "b"] * 60, "score": [i / 7 for i in range(120)]}, "text_classification", None),
        ({"text": MANY, "label": ["a", "b"] * 60, "spans": SPANS}, "text_classification", None),
        ({"text": MANY, "stars": [1, 2, 3, 4, 5] * 24}, "text_classification", None),
        ({"text": MANY, "label": [i * 37 % 120 for i in range(120)]}, "text_classification", None),
        ({"text": MANY, "id": range(120)}, "text_classification", None),
        (
            {"image": [f"{i}.png" for i in range(120)], "text": MANY, "label": ["a", "b"] * 60},
            "text_classification",
            None,
        ),
    ],
)
def test_the_task_is_recognised_by_columns(
    columns: dict[str, Any], task: str, label: str | None, tmp_path: Path
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "\n".join(json.dumps(dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True))
    )
    config, notes = recognised(data_config(str(path)))
    assert config.task.type == task
    assert all(f"The task is {task}, as the data is a table of" in note for note in notes)
    assert bool(notes) is (task != "text_classification")
    assert label is None or f"{label} (label)" in notes[0]
    assert recognised(data_config(str(path), ["task.type=text_regression"]))[0].task.type == "text_regression"


@pytest.mark.parametrize("name", ["price", "label"])
def test_amounts_of_money_are_known_for_what_they_are(name: str, tmp_path: Path) -> None:
    rows = [{"text": text, name: f"${i},000.50"} for i, text in enumerate(MANY)]
    path = write_csv(rows, tmp_path / "rows.csv")
    with pytest.raises(DataError, match=rf"{name} would fit task.type text_regression, once its amounts of money are"):
        propose(data_config(path), "owner/model")


def test_what_is_recognised_is_written_and_said(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(10):
            Image.new("RGB", (8, 8), (20 * i, 10 * (name == "a"), 0)).save(tmp_path / "pictures" / name / f"{i}.png")
    text, survey = propose(data_config(str(tmp_path / "pictures")), None)
    assert survey.notes[0].startswith("The task is image_classification, as the data is a folder of pictures.")
    assert "# - The task is image_classification, as the data is a folder of pictures." in text
    (tmp_path / "made.yaml").write_text(text)
    made = load_config(tmp_path / "made.yaml")
    assert (made.task.type, made.lead.model) == ("image_classification", DEFAULT_VISION[IMAGE])


def test_settings_of_the_teacher_are_written(tmp_path: Path) -> None:
    path = write_csv(own_rows(tmp_path), tmp_path / "posts.csv")
    given = ["teacher.model=owner/model", "teacher.finetune.num_epochs=7", "teacher.mode=online"]
    (tmp_path / "made.yaml").write_text(propose(data_config(path, given, has_teacher=True), None)[0])
    made = load_config(tmp_path / "made.yaml").lead
    assert (made.model, made.finetune.num_epochs, made.mode) == ("owner/model", 7, "online")


def test_held_out_shares_grow_for_few_rows() -> None:
    assert shares(10_000, ["validation", "test"]) == Split()
    assert shares(1_000, ["validation", "test"]) == Split(validation=0.1, test=0.2)
    assert shares(50, ["test"]) == Split(test=0.3)
    assert shares(50, ["validation"]) == Split(validation=0.2)
    for labeled in range(500, 3_000):
        found = shares(labeled, ["validation", "test"])
        assert round(found.test * labeled, 6) >= 200
        assert found.validation >= 0.1
        assert found.validation + found.test <= 0.5
    assert shares(400, ["test"]).test * 400 == 200  # validation is there already


@pytest.mark.parametrize("num_rows", [900, 1_000])
@pytest.mark.parametrize("by", ["rows", "texts"])
def test_the_test_split_reaches_what_the_gate_asks_for(num_rows: int, by: str, tmp_path: Path) -> None:
    """Also where seven rows with one query stay together, of which no number is 200."""
    rows = [{"query": f"query {i // 7}", "document": f"document {i}", "text": f"text {i}"} for i in range(num_rows)]
    path, task = tmp_path / "rows.csv", "task.type=embeddings"
    write_csv([{k: v for k, v in row.items() if (k == "text") == (by == "rows")} for row in rows], path)
    survey = propose(data_config(str(path), [task]), "owner/model")[1]
    assert 200 <= survey.num_rows["test"] <= 215
    assert survey.data.split.test + survey.data.split.validation <= 0.5


@pytest.mark.parametrize(
    ("path", "name"),
    [("a/my posts.csv.gz", "my-posts"), ("owner/set:part", "set"), ("s3://b/x.parquet", "x"), ("…", "my-model")],
)
def test_names_of_data_become_names_of_models(path: str, name: str) -> None:
    assert name_of(path) == name


def test_the_model_need_not_be_here(tmp_path: Path) -> None:
    path = write_csv(own_rows(tmp_path), tmp_path / "posts.csv")
    text, survey = propose(data_config(path), "owner/model")
    assert survey.tokens is None
    assert "teacher: {model: owner/model}" in text
    assert as_yaml(PACKAGED) in propose(data_config(path), None)[0]
