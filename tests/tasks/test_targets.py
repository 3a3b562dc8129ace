"""Targets as columns and as groups; what label columns of numbers and of several labels hold, from file to rows."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.rows_on_disk import make_config, splits_of

from raydistill.data.prepare import prepare_data, read_info
from raydistill.data.sources import read_source
from raydistill.errors import DataError
from raydistill.storage.storage import Storage
from raydistill.tasks import TASKS, Targets, task_of
from raydistill.tasks.embeddings import Embeddings
from raydistill.tasks.multi_label import MultiLabelClassification
from raydistill.tasks.regression import TextRegression
from raydistill.tasks.targets import Ragged, concatenated

NUMBERS = {"type": "text_regression"}
LABELS = {"type": "multi_label_classification"}


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "storage"))


@given(
    st.lists(st.booleans(), min_size=1, max_size=30), st.sampled_from([np.int64, np.float64, np.int8]), st.booleans()
)
def test_a_column_holds_targets_and_which_rows_have_one(labeled: list[bool], dtype: Any, is_wide: bool) -> None:
    shape = (len(labeled), 3) if is_wide else (len(labeled),)
    values = np.random.default_rng(len(labeled)).integers(0, 4, shape).astype(dtype)
    given_targets = Targets(values, np.array(labeled))
    column = given_targets.to_arrow()
    assert column.null_count == labeled.count(False)
    read = Targets.of_arrow(pa.concat_arrays([column.slice(0, 1), column.slice(1)]))
    assert read.labeled.tolist() == labeled
    assert np.array_equal(read.values[read.labeled], values[read.labeled])
    ids = read.ids()
    assert ((ids >= 0) == read.labeled).all()
    for i in np.flatnonzero(read.labeled):
        same = [np.array_equal(values[i], values[j]) for j in np.flatnonzero(read.labeled)]
        assert same == (ids[read.labeled] == ids[i]).tolist()


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=12), st.randoms())
def test_rows_of_any_number_of_units_are_picked_joined_and_kept_as_lists_are(
    shapes: list[tuple[int, bool]], draw: Any
) -> None:
    rows = [[[draw.randrange(9), draw.randrange(9), draw.randrange(3)] for _ in range(size)] for size, _ in shapes]
    labeled = np.array([is_labeled and size > 0 for size, is_labeled in shapes])
    values = Ragged.of([np.array(row, np.int32).reshape(-1, 3) for row in rows], np.zeros((0, 3), np.int32))
    assert [row.tolist() for row in values] == rows
    picked = [draw.randrange(len(rows)) for _ in range(7)]
    assert [row.tolist() for row in values[picked]] == [rows[i] for i in picked]
    assert [row.tolist() for row in values[:, [2, 0]]] == [[[unit[2], unit[0]] for unit in row] for row in rows]
    assert [row.tolist() for row in values[labeled]] == [row for row, kept in zip(rows, labeled, strict=True) if kept]
    groups = np.sort([draw.randrange(4) for _ in rows])
    joined = {int(g): [unit for row, own in zip(rows, groups, strict=True) if own == g for unit in row] for g in groups}
    assert [row.tolist() for row in values.joined(groups)] == list(joined.values())
    put = Ragged(values.flat * 0, values.lengths)
    order = draw.sample(range(len(rows)), len(rows))
    put.put(np.array(order), values[order].flat)
    assert np.array_equal(put.flat, values.flat)
    assert np.array_equal(concatenated([values[:2], values[2:]]).flat, values.flat)
    targets = Targets(values, labeled)
    column = targets.to_arrow()
    read = Targets.of_arrow(pa.concat_arrays([column.slice(0, 1), column.slice(1)]))
    assert read.labeled.tolist() == labeled.tolist()
    for i, row in enumerate(rows):  # of a row without a label only what units it has is kept
        assert read.values[i].tolist() == [[a, b, c if labeled[i] else -1] for a, b, c in row]
    ids = targets.ids()
    assert [[rows[i] == rows[j] for j in np.flatnonzero(labeled)] for i in np.flatnonzero(labeled)] == [
        (ids[labeled] == ids[i]).tolist() for i in np.flatnonzero(labeled)
    ]
    assert targets.num_units == sum(map(len, rows))
    assert targets.labeled_units().tolist() == [kept for row, kept in zip(rows, labeled, strict=True) for _ in row]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_numbers_are_read_scaled_and_cut_by_their_size(tmp_path: Path, storage: Storage) -> None:
    rows = [
        {"text": f"text {i}", "score": None if i % 10 == 9 else i // 2 if i % 2 == 0 else i * 0.5} for i in range(200)
    ]
    artifact = prepare_data(make_config(write(tmp_path / "x.jsonl", rows), task=NUMBERS), storage)
    info, tables = read_info(artifact), splits_of(artifact)
    for row in [row for table in tables.values() for row in table.to_pylist()]:
        i = int(row["text"].removeprefix("text "))
        assert row["target"] == (None if i % 10 == 9 else i * 0.5)
    known = [value for value in tables["train"]["target"].to_pylist() if value is not None]
    task = task_of(info.task)
    assert isinstance(task, TextRegression)
    assert task.output_scale == pytest.approx((np.mean(known), np.std(known)))
    assert (info.counts["test"].rows, info.counts["test"].labeled, info.counts["test"].per_class) == (18, 18, {})
    assert np.ptp(tables["test"]["target"].to_numpy()) > 80  # of 99.5: a row of every tenth is there
    assert info.summary.startswith("numbers from 0 to 99")


def test_units_and_ranges_are_those_of_the_training_labels_alone(tmp_path: Path, local: Storage) -> None:
    """Test rows reach ten times as far."""
    for task, names in ((NUMBERS, ("text",)), ({"type": "embeddings"}, ("sentence1", "sentence2"))):
        folder = tmp_path / task["type"]
        for split, unit in (("train", 1.0), ("test", 10.0)):
            rows = [{**{name: f"{name} {split} {i}" for name in names}, "score": unit * i} for i in range(60)]
            write(folder / f"{split}.jsonl", rows)
        artifact = prepare_data(make_config(folder, task=task, max_labeled=40), local)
        made, targets = task_of(read_info(artifact).task), splits_of(artifact)["train"]["target"].to_pylist()
        if isinstance(made, TextRegression):
            known = [value for value in targets if value is not None]
            assert len(known) == 40  # 20 are hidden
            assert made.output_scale == pytest.approx((np.mean(known), np.std(known)))
        else:
            assert isinstance(made, Embeddings)
            assert made.scores_range is not None
            assert max(made.scores_range) <= 59


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (["1", "two", "3"], "'two', which is no number"),
        (["1", "1", "1"], "only the value 1"),
        (["", "", ""], "no target at all"),
        ([True, False, True], "classes or lists"),
        ([[1], [2], [3]], "classes or lists"),
    ],
)
def test_what_is_no_number_is_refused(cells: list[Any], message: str, tmp_path: Path, storage: Storage) -> None:
    rows = [{"text": f"text {i}", "label": cells[i % len(cells)]} for i in range(30)]
    with pytest.raises(DataError, match=message):
        prepare_data(make_config(write(tmp_path / "x.jsonl", rows), task=NUMBERS), storage)


def test_infinite_numbers_are_refused_and_nan_is_no_target() -> None:
    column = pa.chunked_array([[1.0, float("nan"), 2.5]])
    assert TextRegression.column(None, column, "it", None).to_pylist() == [1.0, None, 2.5]
    with pytest.raises(DataError, match="infinite"):
        TextRegression.column(None, pa.chunked_array([[1.0, float("inf")]]), "it", None)


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
@pytest.mark.parametrize(
    ("task", "odd", "said"),
    [
        ("text_classification", float("inf"), "inf in row 25, which is no number of a class"),
        ("text_classification", 1e20, "1e.20 in row 25, which is no number of a class"),
        ("text_regression", float("-inf"), "-inf in row 25, which is infinite or too large"),
        ("text_regression", 1e300, "1e.300 in row 25, which is infinite or too large"),
    ],
)
def test_a_number_that_cannot_be_a_label_is_named(form: str, task: str, odd: float, said: str, tmp_path: Path) -> None:
    rows = [{"text": f"text {i}", "label": odd if i == 24 else float(i % 2)} for i in range(30)]
    path = tmp_path / f"x.{form}"
    if form == "jsonl":
        write(path, rows)
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    with pytest.raises(DataError, match=f"Column 'label' of x.{form} holds {said}"):
        read_source(make_config(path).data, TASKS[task].Settings())


def test_groups_of_many_labels_need_little_memory() -> None:
    """Ranks of all labels of all rows would take 8 bytes each, 32 MB here."""
    values = np.zeros((20_000, 200), np.int8)
    values[np.arange(20_000), np.arange(20_000) % 199] = 1
    values[::2, 199] = 1
    targets = Targets(values, np.ones(20_000, bool))
    task = MultiLabelClassification([str(i) for i in range(200)])
    tracemalloc.start()
    groups = task.strata(targets)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    frequency = values.sum(0, dtype=int)
    assert most < 12e6
    assert len(np.unique(groups)) == 199  # the most frequent one is the rarest of no row
    rarest = np.where(values > 0, frequency, frequency.max()).min(axis=1)
    assert (np.sort(frequency)[groups] == rarest).all()


def test_few_numbers_are_doubted_and_numbers_of_texts_are_read(tmp_path: Path, storage: Storage) -> None:
    lines = ["text,rating", *(f"text {i},{i % 3 + 1}.0" for i in range(60)), "text,rating", "odd,"]
    (tmp_path / "x.csv").write_text("\n".join(lines) + "\n")
    info = read_info(prepare_data(make_config(tmp_path / "x.csv", task=NUMBERS), storage))
    assert any("3 different values only" in doubt for doubt in info.doubts)
    assert info.skipped == {"repeated header": 1}
    assert info.counts["train"].rows - info.counts["train"].labeled == 1


def test_lists_and_cells_of_labels_are_the_same_targets(tmp_path: Path, storage: Storage) -> None:
    given_labels = [["a"], ["a", "b"], [], ["c", "a"], ["b"]]
    rows = [{"text": f"text {i}", "labels": given_labels[i % 5]} for i in range(100)]
    lists = prepare_data(make_config(write(tmp_path / "x.jsonl", rows), task=LABELS), storage)
    cells = ["text,labels", *(f"{row['text']},{' ; '.join(row['labels']) or '[]'}" for row in rows)]
    (tmp_path / "x.csv").write_text("\n".join(cells) + "\n")
    text = prepare_data(make_config(tmp_path / "x.csv", task={**LABELS, "separator": ";"}), storage)
    for split, table in splits_of(lists).items():
        assert table["target"].to_pylist() == splits_of(text)[split]["target"].to_pylist()
        for row in table.to_pylist():
            names = given_labels[int(row["text"].removeprefix("text ")) % 5]
            assert row["target"] == [int(name in names) for name in "abc"]
    info = read_info(lists)
    assert info.labels == ("a", "b", "c")
    assert any("have none of the labels" in note for note in info.notes)
    assert {split: counts.per_class["c"] for split, counts in info.counts.items()} == {
        "train": 16,
        "validation": 2,
        "test": 2,
    }


def test_labels_that_are_not_known_or_look_alike(tmp_path: Path, storage: Storage) -> None:
    rows = [{"text": f"text {i}", "labels": [["pos"], ["Pos", "neg"]][i % 2]} for i in range(40)]
    path = write(tmp_path / "x.jsonl", rows)
    info = read_info(prepare_data(make_config(path, task=LABELS), storage))
    assert any("case or spaces" in doubt for doubt in info.doubts)
    with pytest.raises(DataError, match=r"not among task.labels: 'Pos'.*Did you mean 'pos'"):
        prepare_data(make_config(path, task={**LABELS, "labels": ["pos", "neg"]}), storage)


def test_the_rarest_label_of_a_row_is_its_group() -> None:
    values = np.array([[1, 1, 0], [1, 0, 0], [1, 0, 1], [0, 0, 0], [1, 1, 0]], np.int8)
    targets = Targets(values, np.array([True, True, True, True, False]))
    groups = MultiLabelClassification("abc").strata(targets)
    assert groups[4] == -1
    assert len({*groups[:4].tolist()}) == 4
