"""Predictions as a table: each row as it came, with its label, its score and the scores of all classes."""

from __future__ import annotations

import csv
import json
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from raydistill.cli.console import finite
from raydistill.data.location import family
from raydistill.errors import ConfigError

CHUNK_ROWS = 4096
SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet", ".pq")


def check_out(out: Path, file: Path | None) -> None:
    """ConfigError for a file to write that is of no known kind, has no folder, or is the one to read."""
    if out.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"--out {out}: name a file that ends in {', '.join(SUFFIXES)}.")
    if not out.parent.is_dir():
        raise ConfigError(f"--out {out}: there is no folder {out.parent}.")
    if file is not None and file.exists() and out.exists() and out.samefile(file):
        raise ConfigError(f"--out {out} is the file to read. Name another one.")


def added_names(columns: Sequence[str], classes: Sequence[str]) -> dict[str, str]:
    """``label``, ``score`` and each class -> the column that it is written to: ``label``, ``score``, ``score_CLASS``.

    With ``predicted_`` before each where the table has one of them already.
    """
    names = {"label": "label", "score": "score", **{f"score {name}": f"score_{name}" for name in classes}}
    before = "predicted_" if set(names.values()) & set(columns) else ""
    return {key: before + name for key, name in names.items()}


def write_predictions(
    rows: Iterable[tuple[Mapping[str, Any], Mapping[str, Any]]],
    classes: Sequence[str],
    columns: Sequence[str],
    out: Path,
) -> dict[str, int]:
    """Write rows, each given with its prediction, to ``out``, which appears when it is whole.

    ``columns``: of the rows; see ``added_names`` for those that join them. How many rows there are, and how many of
    them have an empty text and so no label.
    """
    names = added_names(columns, classes)
    counts = {"num_rows": 0, "num_empty": 0}

    def joined() -> Iterator[dict[str, Any]]:
        for row, found in rows:
            counts["num_rows"] += 1
            counts["num_empty"] += found["label"] is None
            scores = found["scores"] or dict.fromkeys(classes)
            values = [found["label"], found["score"], *(scores[name] for name in classes)]
            yield {**{name: row.get(name) for name in columns}, **dict(zip(names.values(), values, strict=True))}

    partial = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}.partial")
    written = [*columns, *names.values()]
    try:
        match family(out.name):
            case "csv":
                _write_csv(joined(), written, partial, "\t" if out.suffix.lower() == ".tsv" else ",")
            case "jsonl":
                with partial.open("w", encoding="utf-8") as file:
                    file.writelines(json.dumps(finite(row), ensure_ascii=False, default=str) + "\n" for row in joined())
            case _:
                _write_parquet(joined(), written, partial)
        os.replace(partial, out)
    except OSError as error:
        raise ConfigError(f"--out {out} cannot be written: {error.strerror or error}.") from None
    finally:
        partial.unlink(missing_ok=True)
    return counts


def describe_written(told: Mapping[str, Any]) -> str:
    """What ``predict --out`` says."""
    empty = f", {told['num_empty']:,} of them empty and without a label" if told["num_empty"] else ""
    return f"{told['written']}: {told['num_rows']:,} rows{empty}"


def _write_csv(rows: Iterable[Mapping[str, Any]], columns: Sequence[str], path: Path, delimiter: str) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def _write_parquet(rows: Iterable[Mapping[str, Any]], columns: Sequence[str], path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    parts, left = [pa.table({name: pa.nulls(0) for name in columns})], iter(rows)
    while chunk := list(islice(left, CHUNK_ROWS)):  # Arrow is compact; a column may be empty in some chunks only
        parts.append(pa.Table.from_pylist(chunk))
    try:
        pq.write_table(pa.concat_tables(parts, promote_options="permissive"), path)
    except pa.ArrowException as error:
        raise ConfigError(f"--out {path.name}: {error}. Write CSV or JSON lines instead.") from None
