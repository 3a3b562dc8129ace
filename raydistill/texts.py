"""Texts to classify, from the command line, a file or stdin, one at a time so that a pipe of any length works."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, TextIO

from raydistill.errors import ConfigError, DataError


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
            raise ConfigError("There is no text to label: add --text TEXT or --file FILE, or pipe lines into stdin.")
        return decode_lines(stdin.buffer, "stdin")
    try:
        return decode_lines(open(file, "rb"), str(file))
    except OSError as error:
        raise ConfigError(f"--file {file} cannot be read: {error.strerror}.") from None


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


def split_pairs(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Two texts out of every line; DataError where there is not exactly one tab."""
    for number, line in enumerate(lines, 1):
        first, tab, second = line.partition("\t")
        if not tab or "\t" in second:
            raise DataError(f"Text {number} has {line.count(chr(9))} tabs; with --pairs write two texts and one tab.")
        yield first, second
