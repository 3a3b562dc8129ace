"""Predictions as a table, or as lines: each row as it came, with the columns of its answer."""

from __future__ import annotations

import csv
import json
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raydistill.cli.console import finite
from raydistill.data.location import family
from raydistill.errors import ConfigError

if TYPE_CHECKING:
    from raydistill.tasks import Task

CHUNK_ROWS = 4096
SCORES = "scores"
"""The column of an answer that has a number for each output."""
SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet", ".pq")


def check_out(out: Path, file: Path | None) -> None:
    """ConfigError for a file to write that is of no known kind, has no folder, or is the one to read."""
    if out.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"--out {out}: name a file that ends in {', '.join(SUFFIXES)}.")
    if not out.parent.is_dir():
        raise ConfigError(f"--out {out}: there is no folder {out.parent}.")
    if file is not None and file.exists() and out.exists() and out.samefile(file):
        raise ConfigError(f"--out {out} is the file to read. Name another one.")


def added_names(columns: Sequence[str], task: Task) -> list[str]:
    """The columns that an answer is written to: those of the task, but a column ``score_OUTPUT`` each for the scores.

    With ``predicted_`` before each where the table has one of them already.
    """
    scores = [f"score_{name}" for name in task.outputs]
    names = [name for column in task.answer_columns for name in (scores if column == SCORES else [column])]
    before = "predicted_" if set(names) & set(columns) else ""
    return [before + name for name in names]


def cells(answer: Mapping[str, Any], task: Task) -> Iterator[Any]:
    """The values of ``added_names``; all None for an empty text, or a picture that cannot be read."""
    for column in task.answer_columns:
        if column == SCORES:
            yield from (answer[column] or dict.fromkeys(task.outputs)).values()
        else:
            yield answer[column]


def line(answer: Mapping[str, Any], task: Task) -> str:
    """An answer and its text for the terminal, with tabs between; a dash where there is nothing to say."""
    shown = [answer[column] for column in task.answer_columns if column != SCORES]
    if shown[0] is None:
        shown[0] = "(empty)"
    return "\t".join([*map(_spelled, shown), answer.get("text") or answer.get("image", "")])


def _spelled(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}" if not 0 < abs(value) < 1e-3 else f"{value:.4g}"
    if isinstance(value, list) and value and isinstance(value[0], float):
        return f"{value[0]:.4f}, {value[1]:.4f}, … ({len(value)} numbers)"
    if isinstance(value, list):
        value = [_part(item) if isinstance(item, dict) else item for item in value]
    return "-" if value in (None, "", []) else str(_joined(value))


def _part(part: Mapping[str, Any]) -> str:
    """A part of a text and what a model says of it; or an object, and where it is in its picture."""
    if "box" in part:
        return f"{part['label']} {part['score']:.2f} ({', '.join(f'{side:.0f}' for side in part['box'].values())})"
    return f"{part['text']} ({part['label'] if 'label' in part else format(part['score'], '.4f')})"


def _joined(value: Any) -> Any:
    """A list as text, for what has no lists."""
    if not isinstance(value, list):
        return value
    if not all(isinstance(item, str) for item in value):
        return json.dumps(value, ensure_ascii=False)
    return ", ".join(value)


def write_predictions(
    rows: Iterable[tuple[Mapping[str, Any], Mapping[str, Any]]],
    task: Task,
    columns: Sequence[str],
    out: Path,
) -> dict[str, int]:
    """Write rows, each given with its answer, to ``out``, which appears when it is whole.

    ``columns``: of the rows; see ``added_names`` for those that join them. How many rows there are, and how many of
    them have an empty text and so no answer.
    """
    names, kind = added_names(columns, task), family(out.name)
    counts = {"num_rows": 0, "num_empty": 0}

    def joined() -> Iterator[dict[str, Any]]:
        for row, found in rows:
            counts["num_rows"] += 1
            counts["num_empty"] += found[task.answer_columns[0]] is None
            values = map(_joined, cells(found, task)) if kind == "csv" else cells(found, task)
            yield {**{name: row.get(name) for name in columns}, **dict(zip(names, values, strict=True))}

    partial = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}.partial")
    written = [*columns, *names]
    try:
        match kind:
            case "csv":
                with partial.open("w", encoding="utf-8", newline="") as file:
                    writer = csv.DictWriter(file, written, delimiter="\t" if out.suffix.lower() == ".tsv" else ",")
                    writer.writeheader()
                    writer.writerows(joined())
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
    empty = f", {told['num_empty']:,} of them empty and without an answer" if told["num_empty"] else ""
    return f"{told['written']}: {told['num_rows']:,} rows{empty}"


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
