"""Texts, or pictures, to predict for, from the command line, files or stdin, one at a time so that a pipe of any length
works."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, TextIO

from raydistill.config.data import Columns
from raydistill.config.tasks import TaskSection
from raydistill.data.columns import choose_columns, read_beside
from raydistill.data.location import family, is_picture
from raydistill.data.paths import DataFile, list_files
from raydistill.data.pictures import Picture
from raydistill.data.tables import HEAD_ROWS, Row, by_column, rows_of
from raydistill.errors import ConfigError, DataError
from raydistill.tasks import kind_of

Text = str | tuple[str, str] | Picture


def read_texts(given: Sequence[str] | None, file: Path | None, stdin: TextIO) -> Iterator[str]:
    """Yield the given texts, or one a line of the file or of stdin.

    Raises ConfigError at once where there is no text to read or two sources were named, DataError at a line that is
    not UTF-8.
    """
    if given and file:
        raise ConfigError("--text and --file were both given; name one of them.")
    if given:
        return iter(given)
    if file is None:
        if stdin.isatty():
            raise ConfigError("There is no text: add --text TEXT or --file FILE, or pipe lines into stdin.")
        return decode_lines(stdin.buffer, "stdin")
    return decode_lines(_opened(file), str(file))


def decode_lines(stream: IO[bytes], name: str) -> Iterator[str]:
    """The lines of a byte stream without their ends."""
    with stream:
        for number, line in enumerate(stream, 1):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError:
                raise DataError(
                    f"Line {number} of {name} is not UTF-8 text; convert it, with iconv for example."
                ) from None


def read_given(
    given: Sequence[str] | None,
    file: Path | None,
    columns: Sequence[str],
    stdin: TextIO,
    known: Callable[[], Columns],
    section: Callable[[], TaskSection],
) -> tuple[Iterator[tuple[Row, Text]], tuple[str, ...]]:
    """Rows with their texts, to be read once, and all columns that they have: what ``predict`` is given by hand, as
    lines of a file or of stdin, as a table, which its name tells, or as a picture or a folder of pictures.

    A table's texts are in ``columns``, or in those of the names ``known()``, or of usual names for a task of
    ``section()``. Raises ConfigError for
    what does not go together or is not there, DataError for what cannot be read, some of it while the texts are read.
    """
    holds_pictures = file is not None and (file.is_dir() or is_picture(file.name))
    if file is None or given or holds_pictures or family(file.name) is None:
        if columns:
            raise ConfigError(f"--column {columns[0]} names a column of a table; add --file with a CSV file, say.")
        if file is not None and holds_pictures and not given:
            return pictures_of(file, section()), ("image",)
        texts = read_texts(given, file, stdin)
        if section().reads_pictures:
            raise ConfigError("This model reads pictures. Name one, a folder of them, or a table of them with --file.")
        return (({"text": text}, text) for text in texts), ("text",)
    _opened(file).close()
    rows = rows_of(DataFile(str(file), str(file)), str(family(file.name)))
    head = list(islice(rows, HEAD_ROWS))
    if not head:
        raise DataError(f"{file} holds no rows.")
    names = tuple(dict.fromkeys(name for row in head for name in row))
    if (task := section()).reads_pictures:
        wanted = Columns(image=columns[0]) if columns else known()
        wanted = wanted if wanted.image in (None, *names) or columns else Columns()
        name = choose_columns(names, wanted, str(file), False, task, setting="--column")["image"]
        return _with_pictures(chain(head, rows), name, DataFile(str(file), str(file))), names
    return _with_texts(chain(head, rows), _text_columns(head, columns, known, section, str(file)), str(file)), names


def pictures_of(file: Path, section: TaskSection) -> Iterator[tuple[Row, Text]]:
    """A picture, or those of a folder with their names. Raises ConfigError where there is none, or for a model that
    reads texts."""
    if not section.reads_pictures:
        raise ConfigError(f"--file {file}: this model reads texts, not pictures. Name a file of texts.")
    found = (
        [one for one in list_files(file) if is_picture(one.name)] if file.is_dir() else [DataFile(str(file), str(file))]
    )
    if not found:
        raise ConfigError(f"--file {file}: the folder holds no pictures.")

    def read() -> Iterator[tuple[Row, Text]]:
        for one in found:
            with _opened(Path(one.path)) as opened:
                yield {"image": one.name}, Picture(one.name, opened.read())

    return read()


def _with_pictures(rows: Iterable[Row], column: str, file: DataFile) -> Iterator[tuple[Row, Text]]:
    """Each row with its picture, whose name stands in its place; one that is not there has no bytes."""
    for number, row in enumerate(rows, 1):
        cell = row.get(column)
        cell = cell if isinstance(cell, dict) else {"bytes" if isinstance(cell, bytes) else "path": cell}
        path = cell.get("path")
        name = str(path or f"row {number}")
        content = cell.get("bytes") or (read_beside(str(path), file) if path else None)
        yield {**row, column: name}, Picture(name, content or b"")


def _text_columns(
    head: Sequence[Row],
    columns: Sequence[str],
    known: Callable[[], Columns],
    section: Callable[[], TaskSection],
    where: str,
) -> tuple[str, ...]:
    cells = by_column(head)
    reads_apart = kind_of(section()).reads_apart
    if len(columns) > (1 if reads_apart else 2):
        few = "this model reads one text at a time" if reads_apart else "a row has one text, or two"
        raise ConfigError(f"--column was given {len(columns)} times; {few}.")
    wanted = Columns(text=columns[0], text_pair=columns[1] if columns[1:] else None) if columns else known()
    wanted = wanted.model_copy(update={"text_pair": None}) if reads_apart else wanted
    if not columns and not {wanted.text, wanted.text_pair} - {None} <= set(cells):
        wanted = Columns()  # the run's own data had other names
    chosen = choose_columns([*cells], wanted, where, False, section(), setting="--column", cells=lambda: cells)
    roles = ("text",) if len(columns) == 1 or reads_apart else ("text", "text_pair")
    return tuple(chosen[role] for role in roles if role in chosen)


def _with_texts(rows: Iterable[Row], columns: Sequence[str], where: str) -> Iterator[tuple[Row, Text]]:
    """Each row with its text, or its two; an empty cell is an empty text. DataError for what is no text."""
    for number, row in enumerate(rows, 1):
        texts = ["" if row.get(name) is None else joined(row[name]) for name in columns]
        for name, text in zip(columns, texts, strict=True):
            if not isinstance(text, str):
                raise DataError(
                    f"Row {number} of {where}: column {name!r} holds {type(text).__name__} {str(text)[:40]!r}, not "
                    "text. Name the column of the text with --column."
                )
        yield row, texts[0] if len(texts) == 1 else (texts[0], texts[1])


def joined(cell: Any) -> Any:
    """A cell; of a list of words the text that they are."""
    is_words = isinstance(cell, list) and all(isinstance(word, str) for word in cell)
    return " ".join(cell) if is_words else cell


def _opened(file: Path) -> IO[bytes]:
    try:
        return open(file, "rb")
    except OSError as error:
        raise ConfigError(f"--file {file} cannot be read: {error.strerror}.") from None
