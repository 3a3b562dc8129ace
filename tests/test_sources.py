"""Reading sources: every format gives the same rows; what cannot be read is refused in one clear sentence."""

from __future__ import annotations

import gzip
import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raydistill.config import Data
from raydistill.data.location import document_labels
from raydistill.data.paths import split_of
from raydistill.data.sources import read_source, read_unlabeled, resolve_path, source_identity
from raydistill.errors import ConfigError, DataError, RaydistillError

TEXTS = ["007", "2024-05-01", 'says "yes", twice\nand again', "  weiß\u00a0nicht\x00 ", "NA"]
LABELS = ["b", "a", "b", "a", "b"]


def rows(data: Data, split: str = "train") -> list[dict[str, Any]]:
    return read_source(data).tables[split].to_pylist()


def write_csv(path: Path, delimiter: str = ",") -> None:
    quoted = ['"' + text.replace('"', '""') + '"' for text in TEXTS]
    lines = [delimiter.join(("label", "text"))] + [delimiter.join(pair) for pair in zip(LABELS, quoted, strict=True)]
    content = ("\r\n".join(lines) + "\r\n").encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_json_lines(path: Path) -> None:
    lines = [json.dumps({"text": t, "label": x, "n": i}) for i, (t, x) in enumerate(zip(TEXTS, LABELS, strict=True))]
    path.write_text("\n".join(lines), encoding="utf-8")


def write_json_array(path: Path) -> None:
    path.write_text(json.dumps([{"text": t, "label": x} for t, x in zip(TEXTS, LABELS, strict=True)], indent=1))


def write_parquet(path: Path) -> None:
    labels = pa.array(LABELS).dictionary_encode()
    pq.write_table(pa.table({"id": range(5), "text": TEXTS, "label": labels}), path, row_group_size=2)


def write_saved(path: Path) -> None:
    from datasets import Dataset, DatasetDict

    DatasetDict({"train": Dataset.from_dict({"text": TEXTS, "label": LABELS})}).save_to_disk(str(path))


FORMATS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "data.csv": ("csv", write_csv),
    "semicolon.csv": ("csv", lambda path: write_csv(path, ";")),
    "data.tsv": ("csv", lambda path: write_csv(path, "\t")),
    "data.csv.gz": ("csv", write_csv),
    "data.jsonl": ("jsonl", write_json_lines),
    "data.json": ("jsonl", write_json_array),
    "data.parquet": ("parquet", write_parquet),
    "saved": ("datasets", write_saved),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_texts_untouched_and_the_labels(name: str, tmp_path: Path) -> None:
    kind, write = FORMATS[name]
    write(tmp_path / name)
    for form in ("auto", kind):
        got = rows(Data.model_validate({"path": str(tmp_path / name), "format": form}))
        assert got == [{"text": t, "label": x} for t, x in zip(TEXTS, LABELS, strict=True)]


def make_folder(root: Path, documents: dict[str, bytes | str]) -> Path:
    for name, content in documents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def test_text_folder_reads_documents_in_sorted_order_and_skips_what_is_not_utf8(tmp_path: Path) -> None:
    names = {"b/2": "two\r\n", "b/1": "\ufeffone", "a/3.txt": "three", "a/bad.txt": b"caf\xe9", "README.md": "no"}
    source = read_source(Data(path=str(make_folder(tmp_path, {**names, ".git/x": "hidden", "a/.DS_Store": "hidden"}))))
    assert source.tables["train"].to_pylist() == [
        {"text": "three", "label": "a"},
        {"text": "one", "label": "b"},
        {"text": "two\r\n", "label": "b"},
    ]
    assert source.skipped == {"not UTF-8": 1}
    assert any("a/bad.txt" in note for note in source.notes)
    assert any("README.md" in note for note in source.notes)


def test_text_folder_may_have_splits_above_the_classes(tmp_path: Path) -> None:
    names = ["train/pos/1", "train/neg/1", "train/unsup/1", "Val/pos/2", "test/neg/3", "extra/pos/4"]
    source = read_source(Data(path=str(make_folder(tmp_path, dict.fromkeys(names, "x")))))
    got = {split: table["label"].to_pylist() for split, table in source.tables.items()}
    assert got == {"train": ["neg", "pos", None], "validation": ["pos"], "test": ["neg"]}


def test_classes_named_like_splits_stay_classes() -> None:
    assert document_labels(["test/1", "quiz/2"]) == [("train", "test"), ("train", "quiz")]
    assert document_labels(["test/a/1", "quiz/2"]) == [("train", "test"), ("train", "quiz")]
    assert document_labels(["dev/a/1", "test/a/2"]) == [("validation", "a"), ("test", "a")]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train.csv", "train"),
        ("data/train-00000-of-00002.parquet", "train"),
        ("bbc_Training_v2.jsonl", "train"),
        *((f"{word}.csv", "validation") for word in ("validation", "valid", "val", "dev")),
        ("dev/part-1.parquet", "validation"),
        ("movies-test.json", "test"),
        ("contest.csv", None),
        ("trained.csv", None),
        ("data.test-like.csv", None),
    ],
)
def test_split_of(name: str, split: str | None) -> None:
    assert split_of(name) == split


def test_a_file_name_with_two_splits_is_refused() -> None:
    with pytest.raises(ConfigError, match="test and train"):
        split_of("train_test.csv")


def test_files_are_joined_by_the_split_their_names_say(tmp_path: Path) -> None:
    names = {"train-1.csv": "c", "train-0.csv": "a", "dev.csv": "d", "test.csv": "e", "notes.csv": "z"}
    for name, text in names.items():
        (tmp_path / name).write_text(f"text,label\n{text},1\n")
    source = read_source(Data(path=str(tmp_path)))
    texts = {split: table["text"].to_pylist() for split, table in source.tables.items()}
    assert texts == {"train": ["a", "c"], "validation": ["d"], "test": ["e"]}
    assert any("notes.csv" in note for note in source.notes)


def test_files_without_split_names_are_all_training_rows(tmp_path: Path) -> None:
    for name in "ba":
        (tmp_path / f"{name}.csv").write_text(f"text,label\n{name},1\n")
    assert [row["text"] for row in rows(Data(path=str(tmp_path)))] == ["a", "b"]


def test_class_label_features_keep_their_names_and_order(tmp_path: Path) -> None:
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features({"text": Value("string"), "label": ClassLabel(names=["zebra", "ant"])})
    data = Dataset.from_dict({"text": ["a", "b", "c"], "label": [0, 1, -1]}, features=features)
    data.save_to_disk(str(tmp_path / "saved"))
    data.to_parquet(str(tmp_path / "data.parquet"))
    for name in ("saved", "data.parquet"):
        source = read_source(Data(path=str(tmp_path / name)))
        assert source.label_names == ("zebra", "ant")
        assert source.tables["train"]["label"].to_pylist() == ["zebra", "ant", None]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (pa.array([3, None, 10]), ["3", None, "10"]),
        (pa.array([3.0, None, float("nan")]), ["3", None, None]),
        (pa.array(["1.0", "", "0.0"]), ["1", None, "0"]),
        (pa.array(["1.0", "1.1", "2"]), ["1.0", "1.1", "2"]),
        (pa.array([" x ", "  ", None]), ["x", None, None]),
        (pa.array([True, False, None]), ["True", "False", None]),
    ],
)
def test_labels_become_class_names(labels: pa.Array, expected: list[str | None], tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a", "b", "c"], "label": labels}), tmp_path / "x.parquet")
    assert [row["label"] for row in rows(Data(path=str(tmp_path / "x.parquet")))] == expected


@pytest.mark.parametrize(
    ("header", "columns", "expected"),
    [
        ("id,Review,CLASS", {}, {"text": "y", "label": "z"}),
        ("premise,hypothesis,target", {}, {"text": "x", "text_pair": "y", "label": "z"}),
        ("label,body,kind", {"text": "body", "label": "kind"}, {"text": "y", "label": "z"}),
        ("a,body,label", {"text": "body", "text_pair": "a"}, {"text": "y", "text_pair": "x", "label": "z"}),
    ],
)
def test_columns_are_recognised_or_named(header: str, columns: Any, expected: Any, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text(header + "\nx,y,z\n")
    assert rows(Data(path=str(tmp_path / "x.csv"), columns=columns)) == [expected]


CSV = b"text,label\na,1\nb,0\n"
BAD: list[tuple[str, bytes, dict[str, Any], str]] = [
    ("x.csv", b"body,label\na,1\n", {}, r"recognised as the text .*body, label.*data\.columns\.text"),
    ("x.csv", b"text,kind\na,1\n", {}, r"recognised as the label .*data\.columns\.label"),
    ("x.csv", CSV, {"columns": {"text": "texd"}}, r"columns\.text is 'texd'.*'text'"),
    ("x.csv", CSV, {"columns": {"label": "lab"}}, r"columns\.label is 'lab'"),
    ("x.csv", b"text,text,label\na,b,1\n", {}, "more than one column named 'text'"),
    ("x.csv", b"", {}, "empty"),
    ("x.csv", b"text,label\n", {}, "no rows"),
    ("x.csv", b"text,label\na,1\nb,1,3\n", {}, "x.csv cannot be read as csv"),
    ("x.csv", b"text,label\ncaf\xe9,1\n", {}, "UTF-8"),
    ("x.csv", b"te\xe9xt,label\ncaf,1\n", {}, "UTF-8"),
    ("x.csv.gz", CSV, {}, "x.csv.gz cannot be read as csv"),
    ("x.jsonl", b'{"text": "a", "label": 1}\n{"text": "b"', {}, "x.jsonl, line 2 is not JSON"),
    ("x.jsonl", b'{"text": "a", "label": 1}\n' * 200 + b"{oops}\n", {}, "x.jsonl cannot be read as jsonl"),
    ("x.jsonl", b'"a"\n', {}, "line 1 is not an object"),
    ("x.jsonl", b'{"text": "a", "label": [1]}\n', {}, "one class a row"),
    ("x.jsonl", b'{"text": "caf\xe9", "label": 1}\n', {}, "UTF-8"),
    ("x.json", b'[{"text": "a", "label": 1}, 3]', {}, "not an array of objects"),
    ("x.json", b'[{"text": "a", "label": 1}', {}, "cannot be read as jsonl"),
    ("x.json", b'[{"text": 1, "label": 1}]', {}, "not text"),
    ("x.parquet", b"PAR1 nonsense", {}, "x.parquet cannot be read as parquet"),
    ("x.docx", CSV, {}, "unknown file type"),
    ("x.txt", b"a\nb\n", {}, "without labels"),
    ("x.csv", CSV, {"format": "text_folder"}, "is a file"),
    ("x.csv", CSV, {"format": "parquet"}, "cannot be read as parquet"),
    ("x/test.csv", CSV, {"path": "x", "format": "jsonl"}, "holds no .jsonl"),
    ("x/a.parquet", CSV, {"path": "x", "also": "x/b.csv"}, "csv and parquet"),
    ("x/test.csv", CSV, {"path": "x", "also": "x/dev.csv"}, "no training split"),
    ("x/1.txt", b"a", {"path": "x", "format": "text_folder"}, "no class folders"),
    ("x/state.json", b"{}", {"path": "x", "also": "x/dataset_info.json"}, "save_to_disk"),
    ("x/.hidden", b"a", {"path": "x"}, "empty folder"),
]


@pytest.mark.parametrize(("name", "content", "change", "message"), BAD)
def test_bad_input_is_refused_in_one_sentence(
    name: str, content: bytes, change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    change = dict(change)
    files = {name: content} | ({also: content} if (also := change.pop("also", None)) else {})
    make_folder(tmp_path, files)
    path = tmp_path / change.pop("path", name)
    with pytest.raises(RaydistillError, match=message):
        read_source(Data(path=str(path), **change))


def test_a_number_column_is_no_text_and_fractions_are_no_labels(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [1, 2], "label": [0, 1]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": ["x", "y"], "label": [0.5, 1]}), tmp_path / "b.parquet")
    for name, message in (("a", "int64, not text"), ("b", "fractions")):
        with pytest.raises(DataError, match=message):
            read_source(Data(path=str(tmp_path / f"{name}.parquet")))


def test_a_missing_path_names_what_is_near(tmp_path: Path) -> None:
    (tmp_path / "reviews").mkdir()
    for wrong in ("reveiws", "reveiws/deep/train.csv"):
        with pytest.raises(ConfigError, match=r"does not exist.*'reviews'"):
            resolve_path(str(tmp_path / wrong))
    with pytest.raises(ConfigError, match="does not exist"):
        resolve_path("no/such/train.csv")
    with pytest.raises(ConfigError, match="does not exist"):
        resolve_path("/" + "x" * 5000)


def test_resolve_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "here").mkdir()
    assert {resolve_path(name) for name in ("here", "~/here", str(tmp_path / "here"))} == {tmp_path / "here"}
    assert [resolve_path(name) for name in ("imdb", "stanfordnlp/imdb", "s3://bucket/x.parquet")] == [None] * 3


def test_pkg_paths_are_found_without_importing_and_stay_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_folder(tmp_path, {"a_package/__init__.py": "raise RuntimeError", "a_package/data/x.csv": CSV, "secret": "s"})
    (tmp_path / "a_package" / "link").symlink_to(tmp_path / "secret")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert resolve_path("pkg://a_package/data") == tmp_path / "a_package" / "data"
    assert "a_package" not in sys.modules
    for wrong in ("../secret", "data/../../secret", "link", f"/../{tmp_path}/secret"):
        with pytest.raises(ConfigError, match="leaves the package"):
            resolve_path(f"pkg://a_package/{wrong}")
    with pytest.raises(ConfigError, match="'data'"):
        resolve_path("pkg://a_package/dato")
    with pytest.raises(ConfigError, match="'pyarrow'"):
        resolve_path("pkg://pyarow/data")
    with pytest.raises(ConfigError, match="no package"):
        resolve_path("pkg://__main__/data")


def test_identity_follows_content_and_not_place(tmp_path: Path) -> None:
    one = make_folder(tmp_path / "one", {"a/1": "x", "b/1": "y"})
    two = shutil.copytree(one, tmp_path / "elsewhere" / "two")
    before = source_identity(Data(path=str(one)))
    assert source_identity(Data(path=str(two), format="text_folder", max_length=5)) == before
    (two / "b/1").write_text("Y")
    assert source_identity(Data(path=str(two))) != before
    (one / "b/1").rename(one / "b/2")
    assert source_identity(Data(path=str(one))) != before
    (tmp_path / "p.csv").write_bytes(CSV)
    (tmp_path / "q.csv").write_bytes(CSV)
    assert source_identity(Data(path=str(tmp_path / "p.csv"))) == source_identity(Data(path=str(tmp_path / "q.csv")))


def test_identity_of_2225_files_takes_less_than_a_second(tmp_path: Path) -> None:
    make_folder(tmp_path, {f"{i % 5}/{i}.txt": "word " * 400 for i in range(2225)})
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        source_identity(Data(path=str(tmp_path)))
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 1


def test_urls_are_read_and_identified_through_fsspec(s3_storage_url: str) -> None:
    import fsspec

    url = f"{s3_storage_url}/movies"
    for name, text in (("train", "a"), ("test", "b")):
        with fsspec.open(f"{url}/{name}.parquet", "wb") as file:
            pq.write_table(pa.table({"text": [text], "label": [1]}), file)
    source = read_source(Data(path=url))
    assert {split: table.to_pylist() for split, table in source.tables.items()} == {
        "train": [{"text": "a", "label": "1"}],
        "test": [{"text": "b", "label": "1"}],
    }
    assert rows(Data(path=f"{url}/train.parquet")) == [{"text": "a", "label": "1"}]
    before = source_identity(Data(path=url))
    assert source_identity(Data(path=url)) == before
    with fsspec.open(f"{url}/test.parquet", "wb") as file:
        pq.write_table(pa.table({"text": ["c"], "label": [1]}), file)
    assert source_identity(Data(path=url)) != before
    with pytest.raises(ConfigError, match="does not exist or is an empty folder"):
        read_source(Data(path=f"{s3_storage_url}/nothing"))
    with pytest.raises(ConfigError, match="nosuchscheme://"):
        read_source(Data(path="nosuchscheme://bucket/x.parquet"))


def test_a_hub_name_that_cannot_be_reached_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reviews").mkdir()
    with pytest.raises(ConfigError, match=r"no data set on the Hugging Face hub.*'reviews'"):
        source_identity(Data(path="reveiws"))
    with pytest.raises(ConfigError, match="needs a local path"):
        source_identity(Data(path="reveiws", format="csv"))
    commit = "0123456789abcdef0123456789abcdef01234567"
    make_folder(tmp_path, {"datasets--owner--name/refs/main": commit})
    expected = {"kind": "hub", "name": "owner/name", "commit": commit}
    assert source_identity(Data(path="owner/name")) == expected
    assert source_identity(Data(path="owner/name", format="hub", revision=commit)) == expected


def test_unlabelled_texts_come_from_any_source(tmp_path: Path) -> None:
    files = {"lines.txt": "a\r\n\n  \nb\n", "docs/1.txt": "a", "docs/2.txt": "b", "x/train.csv": "text\na\n"}
    make_folder(tmp_path, {**files, "x/test.csv": "text,label\nb,1\n", "classes/u/1": "a", "classes/v/2": "b"})
    for name in ("lines.txt", "docs", "x", "classes"):
        source = read_unlabeled(Data(path="unused", unlabeled=str(tmp_path / name)))
        assert source is not None
        assert sorted(source.tables["train"].to_pylist(), key=str) == [{"text": "a"}, {"text": "b"}]
    assert read_unlabeled(Data(path="unused")) is None
    with pytest.raises(ConfigError, match="'' is not a path"):
        read_unlabeled(Data(path="unused", unlabeled=""))
