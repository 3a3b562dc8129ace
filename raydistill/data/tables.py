"""Parsers: a parquet, CSV or JSON file, or the documents of a text folder, into a table text[, text_pair][, label]."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial, reduce
from itertools import chain, islice
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from raydistill.config.data import Columns
from raydistill.config.tasks import TaskSection
from raydistill.data.columns import Cells, canonical, choose_columns
from raydistill.data.paths import DataFile
from raydistill.errors import DataError
from raydistill.tasks.targets import is_string

_BLOCK_BYTES = 64 << 20  # a row must fit into one block; pyarrow's 1 MiB is less than a long document
_NOT_UTF8 = re.compile("[\udc80-\udcff]")
HEAD_ROWS = 100
"""Rows that say which columns there are: an object of a JSON file may lack some."""

REPEATED = "repeated header"
"""Why rows are left out that hold the names of the columns, as files put together have them."""
_KINDS = {
    type(None): "",
    str: "a text",
    bool: "true or false",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "an object",
}
"""What a cell of JSON is called; nothing where it is empty."""

CONLLU = ("id", "tokens", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")
"""Columns of CoNLL-U."""

Row = dict[str, Any]


class Choose(Protocol):
    """Which columns of a file hold what; see ``choose_columns``."""

    def __call__(self, names: Sequence[str], *, where: str) -> dict[str, str]: ...


@contextmanager
def readable(name: str, kind: str) -> Iterator[None]:
    """Turn what the parsing libraries raise into a DataError that names the file."""
    try:
        yield
    except (pa.ArrowException, OSError, EOFError, ValueError, OverflowError, zlib.error, RecursionError) as error:
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
    file: DataFile,
    kind: str,
    columns: Columns,
    need_label: bool,
    task: TaskSection,
    cells: Callable[[], Cells] = lambda: {},
) -> tuple[pa.Table, tuple[str, ...] | None, dict[str, str], Counter[str]]:
    """A file as a canonical table, the class names it carries (ClassLabel, in order), the columns that were chosen, and
    how many rows were left out by reason: those that repeat the header, and what annotators did not accept. ``cells``:
    of ``choose_columns``.

    Raises DataError when the file is empty, broken or not UTF-8, or lacks a column; ConfigError for a configured one.
    """
    with readable(file.name, kind):
        if file.size() == 0:
            raise DataError(f"{file.name} is empty (0 bytes). Remove it, or write it again.")
        choose = partial(choose_columns, columns=columns, need_label=need_label, task=task, cells=cells)
        skipped: Counter[str] = Counter()
        raw, chosen = _read_json(file, choose, skipped=skipped) if kind == "jsonl" else _PARSERS[kind](file, choose)
        names = _class_names(raw, chosen.get("label"))
        raw, skipped[REPEATED] = _without_headers(raw)
        return canonical(raw, chosen, file.name, names, task, file), names, chosen, +skipped


def paths_in(file: DataFile, kind: str, columns: Columns, task: TaskSection) -> list[str]:
    """The paths of pictures that a file's rows have, not the pictures themselves."""

    def paths_alone(names: Sequence[str], *, where: str) -> dict[str, str]:
        chosen = choose_columns(names, columns, where, need_label=False, task=task)
        return {"image": chosen["image"]}

    with readable(file.name, kind):
        if kind == "parquet":
            import pyarrow.parquet as pq

            with file.open() as raw, pq.ParquetFile(raw) as parquet:
                schema = parquet.schema_arrow
                if not is_string(schema.field(paths_alone(schema.names, where=file.name)["image"]).type):
                    return []
        table, _ = _PARSERS[kind](file, paths_alone)
        cells = [cell.get("path") if isinstance(cell, dict) else cell for cell in table.column(0).to_pylist()]
        return [cell for cell in cells if isinstance(cell, str) and cell]


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
    """Names of a ClassLabel column, or of one in lists and objects, in what the datasets library writes into parquet
    files."""
    metadata = (table.schema.metadata or {}).get(b"huggingface")
    if metadata is None or label is None:
        return None
    return _names_in(json.loads(metadata).get("info", {}).get("features", {}).get(label, {}))


def _names_in(feature: Any) -> tuple[str, ...] | None:
    if not isinstance(feature, dict):
        return None
    if feature.get("_type") == "ClassLabel":
        return tuple(feature["names"])
    return next((found for inside in feature.values() if (found := _names_in(inside)) is not None), None)


def _read_csv(file: DataFile, choose: Choose) -> tuple[pa.Table, dict[str, str]]:
    from pyarrow import csv as arrow_csv

    with _stream(file) as raw:
        delimiter = delimiter_of(file.name, raw.readline().decode("utf-8-sig", "replace"))
    parse = arrow_csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    read = arrow_csv.ReadOptions(block_size=_BLOCK_BYTES)
    try:
        with _stream(file) as raw:
            names = arrow_csv.open_csv(raw, read_options=read, parse_options=parse).schema.names
        chosen = choose(names, where=file.name)
        # everything is read as a string: a text "007" or a label "01" must not become a number
        types = dict.fromkeys(names, pa.string())
        convert = arrow_csv.ConvertOptions(column_types=types, include_columns=list(chosen.values()))
        with _stream(file) as raw:
            return arrow_csv.read_csv(raw, read_options=read, parse_options=parse, convert_options=convert), chosen
    except (pa.ArrowInvalid, UnicodeDecodeError):
        for _ in rows_of(file, "csv"):  # which says in what line and column the fault is
            pass
        raise


def delimiter_of(name: str, header: str) -> str:
    """What separates the cells, by the file's name or its first line."""
    if ".tsv" in name.lower():
        return "\t"
    return "," if "," in header else next((d for d in ("\t", ";", "|") if d in header), ",")


def _read_json(
    file: DataFile, choose: Choose, kind: str = "jsonl", skipped: Counter[str] | None = None
) -> tuple[pa.Table, dict[str, str]]:
    rows = rows_of(file, kind, skipped)
    head = list(islice(rows, HEAD_ROWS))
    chosen = choose(list(dict.fromkeys(name for row in head for name in row)), where=file.name)
    cells: dict[str, list[Any]] = {name: [] for name in chosen.values()}
    for row in chain(head, rows):
        for name, column in cells.items():
            column.append(with_names(row.get(name)))
    try:
        return pa.table(cells), chosen
    except (TypeError, pa.ArrowInvalid) as error:
        raise DataError(f"{file.name} mixes types within a column: {_odd_cell(cells) or error}") from error


def _odd_cell(cells: dict[str, list[Any]]) -> str | None:
    """The first cell that is not of its column's usual kind, in words; None where kinds differ within cells only."""
    for name, column in cells.items():
        kinds = [_KINDS.get(type(cell), "something else") for cell in column]
        usual = Counter(kind for kind in kinds if kind).most_common(1)
        for number, kind in enumerate(kinds, 1):
            if kind and kind != usual[0][0]:
                cell = json.dumps(column[number - 1], ensure_ascii=False)
                return f"row {number} has {kind} under {name} ({cell[:40]}), other rows {usual[0][0]}. Mend the row."
    return None


def _read_conll(file: DataFile, choose: Choose) -> tuple[pa.Table, dict[str, str]]:
    return _read_json(file, choose, "conll")


_PARSERS: dict[str, Callable[[DataFile, Choose], tuple[pa.Table, dict[str, str]]]] = {
    "parquet": _read_parquet,
    "csv": _read_csv,
    "jsonl": _read_json,
    "conll": _read_conll,
}


def with_names(cell: Any) -> Any:
    """A cell; spans as some annotation tools write them, [start, end, label], which no column can hold, with names."""
    triples = isinstance(cell, list) and all(isinstance(item, list) and len(item) == 3 for item in cell)
    if not triples or not any(isinstance(item[2], str) for item in cell):
        return cell
    return [dict(zip(("start", "end", "label"), item, strict=True)) for item in cell]


def rows_of(file: DataFile, kind: str, skipped: Counter[str] | None = None) -> Iterator[Row]:
    """The rows of a table one at a time; cells of CSV are texts. DataError names the line of what is broken. With
    ``skipped``, what annotators did not accept is left out, and counted there by their answer."""
    with readable(file.name, kind), _stream(file) as raw:
        rows = {"csv": _csv_rows, "jsonl": _json_rows, "conll": _conll_rows, "parquet": _parquet_rows}[kind](
            raw, file.name
        )
        yield from accepted(rows, skipped) if kind == "jsonl" else rows


def by_column(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """The cells of some rows by column; None where a row lacks one."""
    return {name: [row.get(name) for row in rows] for name in dict.fromkeys(name for row in rows for name in row)}


def accepted(rows: Iterable[Row], skipped: Counter[str] | None) -> Iterator[Row]:
    """Rows of Prodigy's export without its own columns, those alone that its annotator accepted where others are to be
    counted in ``skipped``; and all rows of others. Its tokens are beside the text that they are of, and where there are
    any and no spans the text has none."""
    for row in rows:
        if "answer" not in row or not {"_input_hash", "_task_hash"} & row.keys():
            yield row
        elif skipped is None or row["answer"] == "accept":
            spans: Row = {"spans": []} if "tokens" in row else {}
            yield spans | {n: c for n, c in row.items() if n not in ("answer", "tokens") and not n.startswith("_")}
        else:
            skipped[f"answered {row['answer']} in Prodigy"] += 1


def _csv_rows(raw: Any, name: str) -> Iterator[Row]:
    csv.field_size_limit(2**31 - 1)  # 131,072 characters by default; an open quote makes one cell of the rest of a file
    text = io.TextIOWrapper(raw, encoding="utf-8-sig", errors="surrogateescape", newline="")
    first = text.readline()
    if "\0" in first:
        raise DataError(
            f"{name} is no CSV: line 1 holds the byte 0, which no text has. Is it of another format, or "
            "saved as UTF-16? Save it as UTF-8."
        )
    reader = csv.reader(chain([first], text), delimiter=delimiter_of(name, first), strict=True)
    header: list[str] = []
    begin = 1
    try:
        for cells in reader:
            where = f"{name}, line {begin}" + (f" to {reader.line_num}" if reader.line_num > begin else "")
            begin = reader.line_num + 1
            for number, cell in enumerate(cells):
                if bad := _NOT_UTF8.search(cell):
                    byte = f"byte 0x{ord(bad[0]) - 0xDC00:02x}"
                    column = repr(header[number]) if number < len(header) else number + 1
                    raise DataError(f"{where}, column {column}: {byte} is not UTF-8. Save it as UTF-8.")
            if not header:
                header = cells
                if twice := [column for column in header if header.count(column) > 1]:
                    raise DataError(f"{name} has more than one column named {twice[0]!r}. Rename one of them.")
            elif cells and len(cells) != len(header):
                raise DataError(f"{where}: {_misfit(cells, header)} A text that holds the separator stands in quotes.")
            elif cells:
                yield dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise DataError(f"{name}, line {begin} is no CSV: {error}. Is a quote not closed?") from error


def _misfit(cells: Sequence[str], header: Sequence[str]) -> str:
    if len(cells) < len(header):
        what = f"column {header[len(cells)]!r} is missing after {cells[-1][:40]!r}"
    else:
        what = f"{cells[len(header)][:40]!r} comes after the last column, {header[-1]!r}"
    return f"{len(cells)} cell{'s' * (len(cells) != 1)}, where the header has {len(header)}: {what}."


def _json_rows(raw: Any, name: str) -> Iterator[Row]:
    first = raw.readline()
    is_array = first.lstrip()[:1] == b"["
    if not is_array and not _is_row(first):  # one object over several lines, or SQuAD's, or COCO's, in one
        first += raw.read()
        found = _parsed(first)
        if found is not None and (is_squad(found) or is_coco(found)):
            yield from (squad_rows if is_squad(found) else coco_rows)(found, name)
            return
        raw = io.BytesIO(first)
        first = raw.readline()
    for number, row in enumerate(json.loads(first + raw.read()) if is_array else chain([first], raw), 1):
        if not is_array and not row.strip():
            continue
        where = f"{name}, {'entry' if is_array else 'line'} {number}"
        try:
            found = row if is_array else json.loads(row)
        except UnicodeDecodeError:
            raise
        except ValueError as error:
            raise DataError(
                f"{where} is not JSON: {error}. Write one object a line, or one array of objects."
            ) from error
        if not isinstance(found, dict):
            raise DataError(f"{where} is not an object. Write one with a text, and a label, for each row.")
        yield found


def _parsed(text: bytes) -> Any:
    """What JSON says; None where it is none."""
    try:
        return json.loads(text)
    except ValueError:
        return None


def _is_row(text: bytes) -> bool:
    found = _parsed(text)
    return found is not None and not is_squad(found) and not is_coco(found)


def is_squad(found: Any) -> bool:
    """Whether an object has articles with paragraphs, as SQuAD's files do."""
    articles = found.get("data") if isinstance(found, dict) else None
    return isinstance(articles, list) and all(isinstance(one, dict) and "paragraphs" in one for one in articles)


def squad_rows(found: Row, name: str) -> Iterator[Row]:
    """Questions of a file of SQuAD 1.1 or 2.0, with columns id, title, question, context, answers. Raises DataError."""
    for i, article in enumerate(found["data"], 1):
        for j, paragraph in enumerate(article["paragraphs"], 1):
            for k, asked in enumerate(paragraph.get("qas", ()), 1):
                where = f"{name}, question {k} of paragraph {j} of article {i}"
                if "question" not in asked or "context" not in paragraph:
                    lacks = "question" if "question" not in asked else "context"
                    raise DataError(f"{where} has no {lacks}. Write one, as SQuAD's files have it.")
                answers = [] if asked.get("is_impossible") else asked.get("answers")
                yield {
                    "id": asked.get("id"),
                    "title": article.get("title"),
                    "question": asked["question"],
                    "context": paragraph["context"],
                    "answers": answers,
                }


def is_coco(found: Any) -> bool:
    """Whether an object has images and annotations, as COCO's files do."""
    return isinstance(found, dict) and all(isinstance(found.get(name), list) for name in ("images", "annotations"))


def coco_rows(found: Row, name: str) -> Iterator[Row]:
    """Pictures of a file of COCO's, with columns file_name and objects, {bbox, category, area, iscrowd} each. Raises
    DataError."""
    classes = {one.get("id"): one.get("name") for one in found.get("categories") or ()}
    objects: dict[Any, list[Row]] = {}
    for i, image in enumerate(found["images"], 1):
        if "id" not in image or "file_name" not in image:
            raise DataError(f"{name}, image {i} has no {'file_name' if 'id' in image else 'id'}. Write one.")
        objects[image["id"]] = []
    for i, one in enumerate(found["annotations"], 1):
        where = f"{name}, annotation {one.get('id', i)}"
        if one.get("image_id") not in objects:
            raise DataError(f"{where} is of the image {one.get('image_id')}, which the file does not list.")
        if one.get("category_id") not in classes:
            known = ", ".join(map(str, [*classes][:5])) + (", …" if len(classes) > 5 else "")
            raise DataError(f"{where} is of the category {one.get('category_id')}; the file has {known or 'none'}.")
        kept = {key: one.get(key) for key in ("bbox", "area", "iscrowd")}
        objects[one["image_id"]].append({**kept, "category": classes[one["category_id"]]})
    for image in found["images"]:
        yield {"file_name": image["file_name"], "objects": objects[image["id"]]}


def _conll_rows(raw: Any, name: str) -> Iterator[Row]:
    """Sentences of a word a line, an empty line between them: columns tokens, 2, 3, … and, the last one, labels.

    Those of CoNLL-U by their names, without its ranges and empty nodes. A comment has other columns than words do.
    """
    is_conllu = ".conllu" in name.lower()
    sentence: list[list[str]] = []
    width = 0
    for number, line in enumerate(chain(io.TextIOWrapper(raw, encoding="utf-8-sig"), [""]), 1):
        cells = line.rstrip("\r\n").split("\t") if "\t" in line else line.split()
        is_comment = line.startswith("#") and not sentence and (is_conllu or len(cells) != width)
        if is_comment or cells[:1] == ["-DOCSTART-"] or (is_conllu and cells and not cells[0].isdigit()):
            continue
        if cells and any(cells):
            width = width or len(cells)
            if len(cells) != width or (is_conllu and width != len(CONLLU)):
                raise DataError(
                    f"{name}, line {number}: {len(cells)} columns, where {len(CONLLU) if is_conllu else width} are "
                    "expected. Write a word a line with its labels beside it, and an empty line between sentences."
                )
            sentence.append(cells)
        elif sentence:
            middle = [str(i) for i in range(2, width)]
            names = CONLLU if is_conllu else ["tokens", *middle, "labels"][:width]
            yield dict(zip(names, map(list, zip(*sentence, strict=True)), strict=True))
            sentence = []


def _parquet_rows(raw: Any, name: str) -> Iterator[Row]:
    import pyarrow.parquet as pq

    for batch in pq.ParquetFile(raw).iter_batches(1024):
        yield from batch.to_pylist()


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
