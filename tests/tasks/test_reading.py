"""Class names, their order, and labels that cannot be used."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from kit.rows_on_disk import make_config, splits_of, write_rows

from raydistill.data.prepare import prepare_data, read_info
from raydistill.errors import ConfigError, DataError
from raydistill.storage.storage import Storage


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
            assert row["target"] == (None if raw == "-1" else int(raw))
        else:
            assert expected[row["target"]] == raw


def test_a_repeated_header_is_no_class(tmp_path: Path, storage: Storage) -> None:
    lines = ["body,mood", *(f"text {i},{'ab'[i % 2]}" for i in range(40)), "body,mood", "mood,a", "body,mood"]
    (tmp_path / "x.csv").write_text("\n".join(lines))
    config = make_config(tmp_path / "x.csv", columns={"text": "body", "label": "mood"})
    info = read_info(prepare_data(config, storage))
    assert info.labels == ("a", "b")
    assert info.skipped == {"repeated header": 2}
    assert sum(counts.rows for counts in info.counts.values()) == 41
    assert any("2 rows of data.path skipped: a repeated header" in note for note in info.notes)


WRONG_CLASSES: list[tuple[list[str], str]] = [
    (["pos", "neg", "Pos ", "neg"], r"differ in case or spaces only: 'Pos' \(10 rows\) and 'pos' \(10 rows\)"),
    ([f"{i / 7:.3f}" for i in range(30)], "30 labels are numbers .*did you mean regression"),
    ([f"{i / 7:.3f}" for i in range(7)] + ["1.5"] * 33, "did you mean regression"),
    ([f"id-{i}" for i in range(30)] + ["x"] * 10, "30 of the 31 classes have a single row .*ids or texts"),
    ([str(1000 + i) for i in range(30)], "did you mean regression"),
]


@pytest.mark.parametrize(("labels", "message"), WRONG_CLASSES)
def test_classes_that_cannot_be_meant_are_refused_unless_they_are_listed(
    labels: list[str], message: str, tmp_path: Path, storage: Storage
) -> None:
    path = write_rows(tmp_path / "x.jsonl", [(f"t{i}", labels[i % len(labels)]) for i in range(40)])
    with pytest.raises(DataError, match=rf"{message}.* list all in task\.labels"):
        prepare_data(make_config(path), storage)
    listed = sorted({label.strip() for label in labels})
    info = read_info(prepare_data(make_config(path, task={"labels": listed}), storage))
    assert info.labels == tuple(listed)
    assert any(re.search(message, doubt) for doubt in info.doubts)


@pytest.mark.parametrize(
    ("labels", "doubt"),
    [
        ([str(i % 25) for i in range(125)], "25 labels are numbers"),
        ([f"{i % 6 / 2}" for i in range(60)], "6 labels are numbers"),
        ([*("ab" * 20), "c", "c"], r"fewer than 5 labelled rows: 'c' \(2\)"),
        ([str(i % 5) for i in range(50)], None),
        ([f"intent {i % 77}" for i in range(770)], None),
    ],
)
def test_doubtful_classes_are_noted(labels: list[str], doubt: str | None, tmp_path: Path, storage: Storage) -> None:
    path = write_rows(tmp_path / "x.jsonl", [(f"t{i}", label) for i, label in enumerate(labels)])
    info = read_info(prepare_data(make_config(path), storage))
    assert len(info.doubts) == (doubt is not None)
    assert set(info.doubts) <= set(info.notes)
    if doubt is not None:
        assert re.search(doubt, info.doubts[0])


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
