"""Reading sources: every format gives the same rows; what cannot be read is refused in one clear sentence."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from kit.rows_on_disk import make_folder

from raydistill.config.data import Data
from raydistill.config.tasks import TextClassification
from raydistill.data.location import source_identity
from raydistill.data.sources import read_source, read_unlabeled
from raydistill.errors import ConfigError, DataError, RaydistillError

TEXTS = ["007", "2024-05-01", 'says "yes", twice\nand again', "  weiß\u00a0nicht\x00 ", "NA"]
LABELS = ["b", "a", "b", "a", "b"]

TASK = TextClassification()


def rows(data: Data, split: str = "train") -> list[dict[str, Any]]:
    return read_source(data, TASK).tables[split].to_pylist()


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


def test_text_folder_reads_documents_in_sorted_order_and_skips_what_is_not_utf8(tmp_path: Path) -> None:
    names = {"b/2": "two\r\n", "b/1": "\ufeffone", "a/3.txt": "three", "a/bad.txt": b"caf\xe9", "README.md": "no"}
    source = read_source(
        Data(path=str(make_folder(tmp_path, {**names, ".git/x": "hidden", "a/.DS_Store": "hidden"}))), TASK
    )
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
    source = read_source(Data(path=str(make_folder(tmp_path, dict.fromkeys(names, "x")))), TASK)
    got = {split: table["label"].to_pylist() for split, table in source.tables.items()}
    assert got == {"train": ["neg", "pos", None], "validation": ["pos"], "test": ["neg"]}


def test_files_are_joined_by_the_split_their_names_say(tmp_path: Path) -> None:
    names = {"train-1.csv": "c", "train-0.csv": "a", "dev.csv": "d", "test.csv": "e", "notes.csv": "z"}
    for name, text in names.items():
        (tmp_path / name).write_text(f"text,label\n{text},1\n")
    source = read_source(Data(path=str(tmp_path)), TASK)
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
        source = read_source(Data(path=str(tmp_path / name)), TASK)
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


def test_a_text_without_a_usual_name_is_taken_by_its_cells_alike_in_all_files(tmp_path: Path) -> None:
    """By the training rows: in the test file another column has more words."""
    messages = [f"the printer of room {n} does not print any more" for n in range(30)]
    for split, answer in (("train", "none"), ("test", "a longer answer than any message is " * 3)):
        rows = [f"{n},{message},t{n % 2},{answer}{n}\n" for n, message in enumerate(messages)]
        (tmp_path / f"{split}.csv").write_text("id,message,label,answer\n" + "".join(rows))
    source = read_source(Data(path=str(tmp_path)), TextClassification())
    for split in ("train", "test"):
        assert source.tables[split].column("text").to_pylist() == messages
    told = "No column has a usual name for the text; message was taken by what its cells hold."
    assert [note for note in source.notes if told in note and "data.columns.text" in note]


CSV = b"text,label\na,1\nb,0\n"
BAD: list[tuple[str, bytes, dict[str, Any], str]] = [
    ("x.csv", b"body,label\na,1\n", {}, r"recognised as the text .*body, label.*data\.columns\.text"),
    ("x.csv", b"text,kind\na,1\n", {}, r"recognised as the label .*data\.columns\.label"),
    ("x.csv", CSV, {"columns": {"text": "texd"}}, r"columns\.text is 'texd'.*'text'"),
    ("x.csv", CSV, {"columns": {"label": "lab"}}, r"columns\.label is 'lab'"),
    ("x.csv", b"text,text,label\na,b,1\n", {}, "more than one column named 'text'"),
    ("x.csv", b"", {}, "empty"),
    ("x.csv", b"text,label\n", {}, "no rows"),
    (
        "x.csv",
        b"text,label\na,1\nb,1,3\n",
        {},
        r"x.csv, line 3: 3 cells.*'3' comes after .*'label'",
    ),
    ("x.tsv", b'text\tlabel\n\n"a\nb"\t1\nc\n', {}, r"line 5: 1 cell, .*column 'label' is missing after 'c'"),
    ("x.csv", b'text,label\na,1\n"b,1\nc,1\n', {}, "line 3 is no CSV: .* Is a quote not closed"),
    (
        "x.csv",
        b'text,label\n"a\r\nb",1\r\n"c\r\ncaf\xe9",1\r\n',
        {},
        "line 4 to 5, column 'text': byte 0xe9 is not UTF-8",
    ),
    ("x.csv", b"no,text,label\n1,a,1\n\xe9,b,\xe9\n", {}, "line 3, column 'no': byte 0xe9 is not UTF-8"),
    ("x.csv", b"te\xe9xt,label\ncaf,1\n", {}, "line 1, column 1: byte 0xe9 is not UTF-8"),
    ("x.csv", b"PK\3\4\0\x14\xe9,\n", {}, "x.csv is no CSV: line 1 holds the byte 0.*UTF-16"),
    ("x.csv", b'text,label\n"' + b"long " * 50_000 + b'",1\na,1,2\n', {}, "line 3: 3 cells"),
    ("x.csv.gz", CSV, {}, "x.csv.gz cannot be read as csv"),
    ("x.jsonl", b'{"text": "a", "label": 1}\n{"text": "b"', {}, "x.jsonl, line 2 is not JSON"),
    ("x.jsonl", b'{"text": "a", "label": 1}\n' * 200 + b"{oops}\n", {}, "x.jsonl, line 201 is not JSON"),
    ("x.jsonl", b'"a"\n', {}, "line 1 is not an object"),
    ("x.jsonl", b'{"text": "a", "label": [1]}\n', {}, "one class a row"),
    ("x.jsonl", b'{"text": "caf\xe9", "label": 1}\n', {}, "UTF-8"),
    ("x.json", b'[{"text": "a", "label": 1}, 3]', {}, "entry 2 is not an object"),
    ("x.json", b'[{"text": "a", "label": 1}', {}, "cannot be read as jsonl"),
    ("x.json", b'[{"text": 1, "label": 1}]', {}, "not text"),
    (
        "x.jsonl",
        b'{"text": "a", "label": 1}\n{"text": "b", "label": "x"}\n',
        {},
        "row 2 has a text under label",
    ),
    ("x.jsonl", b'{"text": "a", "label": {"b": 1}}\n', {}, "one class a row"),
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
        read_source(Data(path=str(path), **change), TASK)


def test_a_number_column_is_no_text_and_fractions_are_no_labels(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [1, 2], "label": [0, 1]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": ["x", "y"], "label": [0.5, 1]}), tmp_path / "b.parquet")
    for name, message in (("a", "int64, not text"), ("b", "fractions")):
        with pytest.raises(DataError, match=message):
            read_source(Data(path=str(tmp_path / f"{name}.parquet")), TASK)


def test_urls_are_read_and_identified_through_fsspec(s3_storage_url: str) -> None:
    import fsspec

    url = f"{s3_storage_url}/movies"
    for name, text in (("train", "a"), ("test", "b")):
        with fsspec.open(f"{url}/{name}.parquet", "wb") as file:
            pq.write_table(pa.table({"text": [text], "label": [1]}), file)
    source = read_source(Data(path=url), TASK)
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
        read_source(Data(path=f"{s3_storage_url}/nothing"), TASK)
    with pytest.raises(ConfigError, match="nosuchscheme://"):
        read_source(Data(path="nosuchscheme://bucket/x.parquet"), TASK)


def test_unlabelled_texts_come_from_any_source(tmp_path: Path) -> None:
    files = {"lines.txt": "a\r\n\n  \nb\n", "docs/1.txt": "a", "docs/2.txt": "b", "x/train.csv": "text\na\n"}
    make_folder(tmp_path, {**files, "x/test.csv": "text,label\nb,1\n", "classes/u/1": "a", "classes/v/2": "b"})
    for name in ("lines.txt", "docs", "x", "classes"):
        source = read_unlabeled(Data(path="unused", unlabeled=str(tmp_path / name)), TASK)
        assert source is not None
        assert sorted(source.tables["train"].to_pylist(), key=str) == [{"text": "a"}, {"text": "b"}]
    assert read_unlabeled(Data(path="unused"), TASK) is None
    with pytest.raises(ConfigError, match="'' is not a path"):
        read_unlabeled(Data(path="unused", unlabeled=""), TASK)
