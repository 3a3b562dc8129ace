"""Documents of raw text, read some at a time, so that memory does not grow with the corpus: files, parts of a file, or
rows of a table."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain, groupby, islice

import pyarrow as pa

from raydistill.config.data import Columns
from raydistill.config.tasks import TaskSection
from raydistill.data.columns import Cells, canonical, choose_columns
from raydistill.data.paths import SPLIT_NAMES, DataFile
from raydistill.data.spool import BATCH_BYTES, spooled_texts
from raydistill.data.tables import HEAD_ROWS, readable, rows_of
from raydistill.errors import DataError

ROWS = 1000
"""Of a table that are held at a time."""


def by_split(files: Sequence[DataFile]) -> dict[str, list[DataFile]]:
    """The files of a folder by split: all are training documents, whatever their folders are called, unless one of
    these is train."""
    tops = [file.name.split("/")[0].lower() if "/" in file.name else "" for file in files]
    names = SPLIT_NAMES if "train" in map(SPLIT_NAMES.get, tops) else {}
    found: dict[str, list[DataFile]] = {}
    for file, top in zip(files, tops, strict=True):
        found.setdefault(names.get(top, "train"), []).append(file)
    return found


def read_files(files: Sequence[DataFile]) -> tuple[pa.Table, list[str]]:
    """A document a file, and the names of those that are not UTF-8."""
    broken: list[str] = []

    def texts() -> Iterator[str]:
        for file in files:
            with readable(file.name, "text"), file.open() as raw:
                content = raw.read()
            try:
                yield content.decode("utf-8-sig")
            except UnicodeDecodeError:
                broken.append(file.name)

    return table_of(texts()), broken


def read_paragraphs(file: DataFile) -> pa.Table:
    """A document a paragraph, between lines without text, or, where all lines have text, a line. Raises DataError for
    what is no UTF-8."""
    with readable(file.name, "text"), file.open() as raw:
        kinds = groupby(map(has_text, io.TextIOWrapper(raw, encoding="utf-8-sig")))
        several = len([*islice((there for there, _ in kinds if there), 2)]) > 1
    with readable(file.name, "text"), file.open() as raw:
        lines = io.TextIOWrapper(raw, encoding="utf-8-sig")
        blocks: Iterator[str] = ("".join(block) for there, block in groupby(lines, has_text) if there)
        texts = blocks if several else filter(has_text, lines)
        return table_of(text.strip() for text in texts)


def has_text(line: str) -> bool:
    return bool(line.strip())


def read_text_column(
    file: DataFile, kind: str, columns: Columns, task: TaskSection, known: Callable[[], Cells] = lambda: {}
) -> tuple[pa.Table, None, dict[str, str]]:
    """A document a row of a table, no class names, and the column that was chosen. Raises DataError when the file is
    empty, broken or not UTF-8, or lacks a column; ConfigError for a configured one. ``known``: cells by which it is
    recognised where it has no usual name."""
    choose = partial(choose_columns, columns=columns, where=file.name, need_label=False, task=task, cells=known)
    with readable(file.name, kind):
        if file.size() == 0:
            raise DataError(f"{file.name} is empty (0 bytes). Remove it, or write it again.")
        if kind == "parquet":
            import pyarrow.parquet as pq

            with file.open() as raw, pq.ParquetFile(raw) as parquet:
                chosen = {"text": choose(parquet.schema_arrow.names)["text"]}
                batches = parquet.iter_batches(ROWS, columns=[*chosen.values()])
                return joined((pa.Table.from_batches([batch]) for batch in batches), chosen, file, task), None, chosen
        rows = rows_of(file, kind)
        head = list(islice(rows, HEAD_ROWS))
        chosen = {"text": choose(list(dict.fromkeys(name for row in head for name in row)))["text"]}
        cells = (row.get(chosen["text"]) for row in chain(head, rows))
        parts = (pa.table({chosen["text"]: part}) for part in iter(lambda: [*islice(cells, ROWS)], []))
        return joined(parts, chosen, file, task), None, chosen


def joined(tables: Iterable[pa.Table], chosen: dict[str, str], file: DataFile, task: TaskSection) -> pa.Table:
    """The chosen column of all parts of a table."""
    parts = (canonical(table, chosen, file.name, None, task).column("text") for table in tables)
    return pa.table({"text": spooled_texts(part.fill_null("") for part in parts)})


def table_of(texts: Iterable[str]) -> pa.Table:
    """Texts as a table, some at a time."""

    def batches() -> Iterator[pa.Array]:
        held: list[str] = []
        size = 0
        for text in texts:
            held.append(text)
            size += len(text)
            if size >= BATCH_BYTES:
                yield pa.array(held, pa.large_string())
                held, size = [], 0
        yield pa.array(held, pa.large_string())

    return pa.table({"text": spooled_texts(batches())})
