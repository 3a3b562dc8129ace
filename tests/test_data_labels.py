"""Class names, their order, and labels that cannot be used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rows_on_disk import make_config, splits_of, write_rows

from raydistill.artifacts import Storage
from raydistill.data.prepare import prepare_data, read_info
from raydistill.errors import ConfigError, DataError


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "storage"))


@pytest.mark.parametrize(
    ("labels", "task", "expected"),
    [
        ("ba", None, ("a", "b")),
        ([10, 9, 0], None, ("0", "9", "10")),
        (["10", "9"], None, ("9", "10")),
        ([-1, 1], None, ("-1", "1")),
        ("ba", ["b", "a"], ("b", "a")),
        ([1, 0], ["neg", "pos"], ("neg", "pos")),
        ([1, 0, -1], ["neg", "pos"], ("neg", "pos")),
        ([1, 0, -1], ["-1", "0", "1"], ("-1", "0", "1")),
        ("ab", ["a", "b", "never"], ("a", "b", "never")),
    ],
)
def test_class_names_and_their_order(
    labels: Any, task: list[str] | None, expected: tuple[str, ...], tmp_path: Path, storage: Storage
) -> None:
    rows = [(f"t{i}", labels[i % len(labels)]) for i in range(30)]
    config = make_config(write_rows(tmp_path / "x.jsonl", rows), task={"labels": task})
    artifact = prepare_data(config, storage)
    assert read_info(artifact).labels == expected
    for row in [row for table in splits_of(artifact).values() for row in table.to_pylist()]:
        raw = str(labels[int(row["text"][1:]) % len(labels)])
        if task == ["neg", "pos"]:
            assert row["label"] == int(raw)
        else:
            assert expected[row["label"]] == raw


BAD_LABELS: list[tuple[dict[str, list[Any]], Any, str]] = [
    ({"train": ["a"]}, None, "only the class 'a'"),
    ({"train": [None]}, None, "no label at all"),
    ({"train": ["pos", "neg"], "dev": ["posi"]}, None, r"validation rows? .*'posi'.*Did you mean 'pos'"),
    ({"train": ["pos", "neg"]}, ["pos", "negative"], r"train rows have.*task\.labels.*'neg'"),
    ({"train": [-1, 0, 1]}, None, "-1 can be a class"),
    ({"train": [1, 5]}, ["neg", "pos"], r"task\.labels"),
]


@pytest.mark.parametrize(("labels", "task", "message"), BAD_LABELS)
def test_labels_that_cannot_be_used(labels: Any, task: Any, message: str, tmp_path: Path, storage: Storage) -> None:
    for split, names in labels.items():
        rows = [(f"{split} {i}", names[i % len(names)]) for i in range(20)]
        write_rows(tmp_path / "s" / f"{split}.jsonl", rows)
    with pytest.raises((DataError, ConfigError), match=message):
        prepare_data(make_config(tmp_path / "s", task={"labels": task}), storage)
    assert storage.list("data") == []
