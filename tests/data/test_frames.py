"""Data given as a DataFrame, a data set of ``datasets`` or an Arrow table: read like a file, kept by its content."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from kit.toy import toy_config

import raydistill
from raydistill.config.data import Columns
from raydistill.config.loading import load_data
from raydistill.config.tasks import TextClassification
from raydistill.data.frames import config_with, data_section, keep
from raydistill.data.sources import read_source
from raydistill.errors import ConfigError, DataError
from raydistill.evaluate.report.naming import data_source
from raydistill.storage.storage import Storage

COLUMNS = Columns(text="body", label="mood")
ROWS = {"body": ["good film", "bad plot", "a song"], "mood": ["pos", "neg", None], "other": [1, 2, 3]}
SENTENCES = [{"text": text, "label": label} for text, label in zip(ROWS["body"], ROWS["mood"], strict=True)]

TASK = TextClassification()


def frame() -> pd.DataFrame:
    return pd.DataFrame(ROWS, index=[7, 8, 9])


def read(path: str) -> dict[str, list[dict[str, Any]]]:
    config = raydistill.load_config(
        {"data": {"path": path}, "teacher": {"model": "-"}, "stages": {"s": {"losses": {"task": {"type": "task"}}}}},
        ["data.columns.text=body", "data.columns.label=mood"],
    )
    return {split: table.to_pylist() for split, table in read_source(config.data, config.task).tables.items()}


@pytest.mark.parametrize(
    "data",
    [
        frame(),
        frame().astype({"mood": "category"}),
        pa.table(ROWS),
        datasets.Dataset.from_dict(ROWS),
        datasets.Dataset.from_dict({name: [None, *values] for name, values in ROWS.items()}).select([1, 2, 3]),
        {"train": frame()},
    ],
    ids=["pandas", "categories", "arrow", "datasets", "indices", "split"],
)
@pytest.mark.parametrize("place", ["local", "remote"])
def test_a_table_of_any_kind_is_kept_as_the_same_rows(data: Any, place: str, request: pytest.FixtureRequest) -> None:
    storage: Storage = request.getfixturevalue(place)
    path = keep(data, COLUMNS, TASK, storage)
    assert read(path) == {"train": SENTENCES}
    assert keep(frame(), COLUMNS, TASK, storage) == path  # whatever it was given as
    changed = frame()
    changed.loc[7, "body"] = "great film"
    assert keep(changed, COLUMNS, TASK, storage) != path
    assert keep(frame().assign(other=0), COLUMNS, TASK, storage) == path  # a column that is not used
    assert len([key for key in storage.list("tables") if not key.startswith(".")]) == 2


def test_a_config_is_loaded_without_a_path_where_rows_are_given(local: Storage) -> None:
    given: Any = {"data": {"columns": {"text": "body", "label": "mood"}}, "teacher": {"model": "-"}}
    config = raydistill.load_config(given | {"storage": local.url}, data=frame())
    assert read(config.data.path) == {"train": SENTENCES}
    with pytest.raises(ConfigError, match=r"data\.path: is missing\."):
        raydistill.load_config(given)


def test_splits_and_class_names_come_along(local: Storage) -> None:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    made = datasets.Dataset.from_dict({"text": list("abc"), "label": [1, 0, -1]}, features=features)
    path = keep(datasets.DatasetDict({"train": made, "val": made.select([0])}), Columns(), TASK, local)
    source = read_source(load_data(path), TASK)
    assert source.label_names == ("neg", "pos")
    assert source.tables["train"].column("label").to_pylist() == ["pos", "neg", None]
    assert source.tables["validation"].num_rows == 1


def test_pandas_numbers_with_gaps_are_integers(local: Storage) -> None:
    path = keep(pd.DataFrame({"text": ["a", "b", "c"], "label": [1, np.nan, 0]}), Columns(), TASK, local)
    assert read_source(load_data(path), TASK).tables["train"].column("label").to_pylist() == [
        "1",
        None,
        "0",
    ]


@pytest.mark.parametrize("kind", ["pandas", "datasets"])
def test_a_text_without_a_usual_name_is_taken_by_its_cells(kind: str, local: Storage) -> None:
    words = [f"the printer of room {n} does not print any more" for n in range(30)]
    columns = {"id": [*range(30)], "message": words, "label": ["a", "b"] * 15}
    data = pd.DataFrame(columns) if kind == "pandas" else datasets.Dataset.from_dict(columns)
    source = read_source(load_data(keep(data, Columns(), TASK, local)), TASK)
    assert source.tables["train"].column("text").to_pylist() == words


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ([("a", 1)], ConfigError, "is a list. Give a path, a pandas or polars DataFrame"),
        (pd.DataFrame({"text": ["a"], "x": [1]}), DataError, "no column that is recognised as the label"),
        (pd.DataFrame({"text": ["a", 1], "label": [1, 2]}), DataError, "Give each column one type"),
        ({"train": frame(), "fold 1": frame()}, ConfigError, "one each of train, validation and test"),
        ({"dev": frame(), "val": frame()}, ConfigError, "one each of train, validation and test"),
        (datasets.Dataset.from_dict({"text": ["a"], "label": [1]}).to_iterable_dataset(), ConfigError, "Iterable"),
    ],
)
def test_what_is_no_table_is_refused_in_words(data: Any, error: Any, message: str, local: Storage) -> None:
    columns = COLUMNS if isinstance(data, dict) else Columns()
    with pytest.raises(error, match=message):
        keep(data, columns, TASK, local)


def test_rows_to_measure_on_are_the_wanted_split(local: Storage) -> None:
    data = data_section(pd.DataFrame({"text": ["a"], "label": ["x"]}), "test", local.url)
    assert data is not None
    assert read_source(data, TASK, needs_train=False).tables.keys() == {"test"}
    assert data_section(None, "test", local.url) is None
    many = pd.DataFrame({"own": ["a"], "mood": ["x"], "vector": [[1.0, 2.0]]})
    other = data_section(many, "test", local.url)  # columns whose names only the model's run may know
    assert other is not None
    named = other.model_copy(update={"columns": Columns(text="own", label="mood")})
    assert read_source(named, TASK, needs_train=False).tables["test"].to_pylist() == [{"text": "a", "label": "x"}]


def test_a_path_is_taken_too(tmp_path: Path) -> None:
    assert config_with(toy_config(tmp_path), [], tmp_path / "x y.csv").data.path == str(tmp_path / "x y.csv")


@pytest.mark.slow
def test_equal_frames_are_one_run_and_what_was_computed_is_kept(tmp_path: Path) -> None:
    config = toy_config(tmp_path, evaluate__baseline=False)
    table = pd.read_csv(config["data"].pop("path"))
    before = raydistill.plan(config, data=table)
    first = raydistill.distill(config, data=table, progress=False)
    again = raydistill.distill(config, data=table.copy(), progress=False)
    as_dataset = raydistill.distill(config, data=datasets.Dataset.from_pandas(table), progress=False)
    assert before["data"]["rows"] == first["data"]["num_rows"]
    assert data_source(first["config"]["data"]).name == "a table given in Python"
    assert again["reused"] == as_dataset["reused"] == ["run"]
    assert {phase["state"] for phase in raydistill.plan(config, data=table)["phases"]} == {"there"}
    other = raydistill.plan(config, data=table.iloc[1:])
    assert {phase["state"] for phase in other["phases"]} != {"there"}
