"""Parsers: a parquet, CSV or JSON file, or the documents of a text folder, into a table text[, text_pair][, label]."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from csv import Error as CsvError
from functools import partial, reduce
from itertools import islice
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from raydistill.config.data import Columns
from raydistill.config.tasks import TaskSection
from raydistill.data.columns import canonical, choose_columns
from raydistill.data.csv_faults import csv_rows, find_fault
from raydistill.data.paths import DataFile
from raydistill.errors import DataError
from raydistill.tasks.targets import is_string

_BLOCK_BYTES = 64 << 20  # a row must fit into one block; pyarrow's 1 MiB is less than a long document
_JSON_TYPES = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}


class Choose(Protocol):
    """Which columns of a file hold what; see ``choose_columns``."""

    def __call__(self, names: Sequence[str], *, where: str) -> dict[str, str]: ...


@contextmanager
def readable(name: str, kind: str) -> Iterator[None]:
    """Turn what the parsing libraries raise into a DataError that names the file."""
    try:
        yield
    except (pa.ArrowException, OSError, EOFError, ValueError, zlib.error, RecursionError, CsvError) as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        utf8 = "utf" in said.lower() or isinstance(error, UnicodeDecodeError)
        hint = "Save it as UTF-8." if utf8 else f"Is it whole, and really {kind}?"
        raise DataError(f"{name} cannot be read as {kind}: {said.rstrip('.')}. {hint}") from error


@contextmanager
def _stream(file: DataFile) -> Iterator[Any]:
    with file.open() as raw:
        if file.name.lower().endswith(".gz"):
            with gzip.GzipFile(fileobj=raw) as unpacked:
                yield unpacked
        else:
            yield raw


def read_table(
    file: DataFile, kind: str, columns: Columns, need_label: bool, task: TaskSection
) -> tuple[pa.Table, tuple[str, ...] | None, dict[str, str], int]:
    """A file as a canonical table, the class names it carries (ClassLabel, in order), the columns that were chosen, and
    how many rows were left out as they repeat the header.

    Raises DataError when the file is empty, broken or not UTF-8, or lacks a column; ConfigError for a configured one.
    """
    parse = {"parquet": _read_parquet, "csv": _read_csv, "jsonl": _read_json}[kind]
    with readable(file.name, kind):
        if file.size() == 0:
            raise DataError(f"{file.name} is empty (0 bytes). Remove it, or write it again.")
        raw, chosen = parse(file, partial(choose_columns, columns=columns, need_label=need_label, task=task))
        names = _class_names(raw, chosen.get("label"))
        raw, repeated = _without_headers(raw)
        return canonical(raw, chosen, file.name, names, task), names, chosen, repeated


def _without_headers(table: pa.Table) -> tuple[pa.Table, int]:
    """The table without rows that hold in every column the column's own name, as files put together have them."""
    if table.num_columns == 1 or not all(is_string(kind) for kind in table.schema.types):
        return table, 0
    same = [pc.equal(table.column(name), name) for name in table.column_names]
    is_header = pc.fill_null(reduce(pc.and_, same), False)
    count = int(pc.sum(is_header).as_py() or 0)
    return (table.filter(pc.invert(is_header)), count) if count else (table, 0)


def _read_parquet(file: DataFile, choose: Choose) -> tuple[pa.Table, dict[str, str]]:
    import pyarrow.parquet as pq

    with file.open() as raw, pq.ParquetFile(raw) as parquet:
        chosen = choose(parquet.schema_arrow.names, where=file.name)
        return parquet.read(columns=list(chosen.values())), chosen


def _class_names(table: pa.Table, label: str | None) -> tuple[str, ...] | None:
    """Names of a ClassLabel column, or of lists of them, in what the datasets library writes into parquet files."""
    metadata = (table.schema.metadata or {}).get(b"huggingface")
    if metadata is None or label is None:
        return None
    feature = json.loads(metadata).get("info", {}).get("features", {}).get(label, {})
    feature = feature.get("feature", feature)
    return tuple(feature["names"]) if feature.get("_type") == "ClassLabel" else None


def _read_csv(file: DataFile, choose: Choose) -> tuple[pa.Table, dict[str, str]]:
    from pyarrow import csv

    with _stream(file) as raw:
        delimiter = delimiter_of(file.name, raw.readline().decode("utf-8-sig", "replace"))
    parse = csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    read = csv.ReadOptions(block_size=_BLOCK_BYTES)
    kept: list[str] | None = None
    try:
        with _stream(file) as raw:
            names = csv.open_csv(raw, read_options=read, parse_options=parse).schema.names
        chosen = choose(names, where=file.name)
        # everything is read as a string: a text "007" or a label "01" must not become a number
        kept = list(chosen.values())
        convert = csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), include_columns=kept)
        with _stream(file) as raw:
            return csv.read_csv(raw, read_options=read, parse_options=parse, convert_options=convert), chosen
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        with _stream(file) as raw:
            fault = find_fault(raw, delimiter, kept)
        if fault is None:
            raise
        raise DataError(f"{file.name} cannot be read as csv: {fault}.") from error


def head(file: DataFile, kind: str, num_rows: int = 1000) -> dict[str, list[Any]]:
    """The first rows by column, all columns, cells as they are: those of CSV are texts."""
    if kind == "csv":
        with _stream(file) as raw:
            delimiter = delimiter_of(file.name, raw.readline().decode("utf-8-sig", "replace"))
        with readable(file.name, kind), _stream(file) as raw, csv_rows(raw, delimiter) as reader:
            names: list[str] = next(reader, [])
            rows = list(islice((row for row in reader if row), num_rows))
            return {name: [row[i] for row in rows if i < len(row)] for i, name in enumerate(names)}
    with readable(file.name, kind), _stream(file) as raw:
        if kind == "parquet":
            import pyarrow.parquet as pq

            parquet = pq.ParquetFile(raw)
            first = next(parquet.iter_batches(num_rows), None)
            return {name: [] for name in parquet.schema_arrow.names} if first is None else first.to_pydict()
        line = raw.readline()
        is_array = line.lstrip()[:1] == b"["
        found = json.loads(line + raw.read()) if is_array else _parse_lines(line, raw, file.name, num_rows)
        named = [row for row in found[:num_rows] if isinstance(row, dict)]
        return {name: [row.get(name) for row in named] for name in dict.fromkeys(k for row in named for k in row)}


def delimiter_of(name: str, header: str) -> str:
    """What separates the cells, by the file's name or its first line."""
    if ".tsv" in name.lower():
        return "\t"
    return "," if "," in header else next((d for d in ("\t", ";", "|") if d in header), ",")


def _read_json(file: DataFile, choose: Choose) -> tuple[pa.Table, dict[str, str]]:
    from pyarrow import json as arrow_json

    with _stream(file) as raw:
        first = raw.readline()
        if first.lstrip()[:1] == b"[":
            return _read_json_array(json.loads(first + raw.read()), file.name, choose)
        sample = _parse_lines(first, raw, file.name)
    chosen = choose(list(dict.fromkeys(k for row in sample for k in row)), where=file.name)
    # an explicit schema, as pyarrow would take a text such as "2024-05-01" for a date
    schema = pa.schema([(name, _json_type(role, name, sample, file.name)) for role, name in chosen.items()])
    parse = arrow_json.ParseOptions(schema, newlines_in_values=False, unexpected_field_behavior="ignore")
    with _stream(file) as raw:
        read = arrow_json.ReadOptions(block_size=_BLOCK_BYTES)
        return arrow_json.read_json(raw, read_options=read, parse_options=parse), chosen


def _parse_lines(first: bytes, raw: Any, name: str, num_lines: int = 100) -> list[dict[str, Any]]:
    rows = []
    line, number = first, 1
    while line and number <= num_lines:
        try:
            row = json.loads(line) if line.strip() else {}
        except UnicodeDecodeError:
            raise
        except ValueError as error:
            raise DataError(
                f"{name}, line {number} is not JSON: {error}. Write one object a line, or one array of objects."
            ) from error
        if not isinstance(row, dict):
            raise DataError(f"{name}, line {number} is not an object. Write one object with a text and a label a line.")
        rows.append(row)
        line, number = raw.readline(), number + 1
    return rows


def _json_type(role: str, name: str, sample: Sequence[dict[str, Any]], where: str) -> pa.DataType:
    if role != "label":
        return pa.string()
    found = next((row[name] for row in sample if row.get(name) is not None), "")
    is_list = isinstance(found, list)
    found = next((item for row in sample for item in row.get(name) or ()), "") if is_list else found
    if type(found) not in _JSON_TYPES:
        raise DataError(f"Column {name!r} of {where} holds objects; a label is a value, or a list of values.")
    if is_list:
        return pa.list_(_JSON_TYPES[type(found)])
    # after whole numbers others may follow; where all are whole, classes are read as integers all the same
    return pa.float64() if type(found) is int else _JSON_TYPES[type(found)]


def _read_json_array(rows: Any, name: str, choose: Choose) -> tuple[pa.Table, dict[str, str]]:
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{name} is not an array of objects. Write one object with a text and a label for each row.")
    chosen = choose(list(dict.fromkeys(k for row in rows for k in row)), where=name)
    try:
        return pa.table({column: [row.get(column) for row in rows] for column in chosen.values()}), chosen
    except TypeError as error:
        raise DataError(f"{name} mixes types within a column: {error}.") from error


def read_documents(files: Sequence[tuple[DataFile, str | None]], labeled: bool) -> tuple[pa.Table, list[str]]:
    """Files as rows (text, and label = the class each comes with), and the names of those that are not UTF-8."""
    texts: list[str] = []
    labels: list[str | None] = []
    broken: list[str] = []
    for file, label in files:
        with readable(file.name, "text"), file.open() as raw:
            content = raw.read()
        try:
            texts.append(content.decode("utf-8-sig"))
        except UnicodeDecodeError:
            broken.append(file.name)
            continue
        labels.append(label)
    table = {"text": pa.array(texts, pa.large_string())}
    if labeled:
        table["label"] = pa.array(labels, pa.large_string())
    return pa.table(table), broken
