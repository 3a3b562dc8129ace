"""CSV row by row: where a file is broken, the line and the column, which pyarrow does not say."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

_NOT_UTF8 = re.compile("[\udc80-\udcff]")
_BREAK = re.compile(r"\r\n|\r|\n")
_WORDS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}


@contextmanager
def csv_rows(raw: Any, delimiter: str) -> Iterator[Any]:
    """A reader of rows, header first, of a file open in binary; bytes that are not UTF-8 become surrogates."""
    text = io.TextIOWrapper(raw, encoding="utf-8-sig", errors="surrogateescape", newline="")
    limit = csv.field_size_limit(2**31 - 1)  # an open quote makes one cell of the rest of the file
    try:
        yield csv.reader(text, delimiter=delimiter)
    finally:
        csv.field_size_limit(limit)
        text.detach()


def find_fault(raw: Any, delimiter: str, columns: Container[str] | None = None) -> str | None:
    """The first row that does not fit the header, or the first byte that is not UTF-8 in one of ``columns``.

    ``raw`` is the open file in binary, ``columns`` None means all. None where nothing is found.
    """
    try:
        with csv_rows(raw, delimiter) as reader:
            return _first_fault(reader, delimiter, columns)
    except (csv.Error, OSError, EOFError):  # it is not even a text file: let pyarrow's own words stand
        return None


def _first_fault(reader: Any, delimiter: str, columns: Container[str] | None) -> str | None:
    header: Sequence[str] | None = None
    for first, last, row in _rows(reader):
        where = f"line {first}" if first == last else f"lines {first} to {last}"
        for number, cell in enumerate(row):
            name = cell if header is None else header[number] if number < len(header) else None
            found = _NOT_UTF8.search(cell)
            if found is not None and (header is None or columns is None or name in columns):
                before = [*row[:number], cell[: found.start()]]
                line = first + sum(len(_BREAK.findall(part)) for part in before)
                column = f"column {number + 1}" if header is None else f"column {name!r}"
                return f"line {line}, {column}: byte 0x{ord(found[0]) - 0xDC00:02x} is not UTF-8. Save it as UTF-8"
        if header is None:
            header = row
        elif len(row) != len(header):
            advice = f"A text that holds a {_WORDS[delimiter]} stands in quotes, and quotes in it are doubled"
            if last > first:
                advice = f"Is a quote of line {first} not closed? {advice}"
            return f"{where}: {_misfit(row, header)}. {advice}"
    return None


def _rows(reader: Any) -> Iterator[tuple[int, int, list[str]]]:
    """First and last line of each row that is not empty, and its cells."""
    last = 0
    for row in reader:
        if row:
            yield last + 1, reader.line_num, row
        last = reader.line_num


def _misfit(row: Sequence[str], header: Sequence[str]) -> str:
    counts = f"{len(row)} cell{'s' * (len(row) != 1)}, where the header has {len(header)} ({', '.join(header)})"
    if len(row) < len(header):
        return f"{counts}: column {header[len(row)]!r} is missing after {_shown(row[-1])}"
    return f"{counts}: {_shown(row[len(header)])} comes after the last column, {header[-1]!r}"


def _shown(cell: str) -> str:
    text = " ".join(_NOT_UTF8.sub("\N{REPLACEMENT CHARACTER}", cell).split())
    return repr(text if len(text) <= 40 else f"{text[:39]}…")
