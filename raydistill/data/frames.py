"""Data given as an object (pandas, datasets, Arrow) instead of a path: kept in storage by its content.

So keys and restarts know it by a path like any other data, and an equal object is the same data.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias

import pyarrow as pa

from raydistill.config.data import Columns, Data
from raydistill.config.loading import load_config, load_data
from raydistill.config.tasks import TaskSection
from raydistill.config.tree import Config
from raydistill.data.columns import MOST_CELLS, Cells, choose_columns
from raydistill.data.hub import class_names, first_cells_of
from raydistill.data.paths import SPLIT_NAMES
from raydistill.errors import ConfigError, DataError
from raydistill.storage.artifacts import Artifact
from raydistill.storage.storage import Storage

if TYPE_CHECKING:
    Source: TypeAlias = str | os.PathLike[str] | Mapping[str, Any] | Config
    Table: TypeAlias = Any

WAYS = "a path, a pandas or polars DataFrame, a datasets.Dataset or DatasetDict, an Arrow table, or a dict of splits"


def config_with(source: Source, overrides: Sequence[str], data: Table | None) -> Config:
    """The config, with ``data`` as its ``data.path``. Raises ConfigError or DataError for data that cannot be read."""
    if data is None:
        return load_config(source, overrides)
    if isinstance(data, str | os.PathLike):
        return load_config(source, [*overrides, f"data.path={json.dumps(os.fspath(data))}"])
    place = ["data.path=table", "data.format=parquet", "data.revision=null"]  # the path follows once columns are known
    config = load_config(source, [*overrides, *place])
    path = keep(data, config.data.columns, config.task, Storage(config.storage))
    return config.model_copy(update={"data": config.data.model_copy(update={"path": path})})


def data_section(data: Table | None, split: str, storage: str) -> Data | None:
    """The data section for rows to measure models on; a table without splits is all of ``split``.

    All columns that may hold texts or labels are kept: their names may be those of a model's run.
    """
    if data is None or isinstance(data, str | os.PathLike):
        return None if data is None else load_data(os.fspath(data))
    return load_data(keep(data, None, None, Storage(storage), alone=split), ["data.format=parquet"])


def keep(
    data: Table, columns: Columns | None, task: TaskSection | None, storage: Storage, *, alone: str = "train"
) -> str:
    """Write the columns that are used (all of them without ``columns``) into storage, unless they are there, and return
    the folder's path or URL."""
    given: dict[str, tuple[str, Any]] = {}
    for name, rows in data.items() if isinstance(data, Mapping) else [(alone, data)]:
        split = SPLIT_NAMES.get(str(name).lower())
        if split is None or split in given:
            raise ConfigError(
                f"data has the splits {', '.join(map(str, data))}. Give one each of train, validation and test."
            )
        given[split] = f"data ({name})", rows
    first = given.get("train") or next(iter(given.values()))
    chosen: Any = {"columns": columns, "task": task, "cells": cache(lambda: head_of(*first))}
    tables = {
        split: table_of(rows, what=what, need_label=split == "train", **chosen) for split, (what, rows) in given.items()
    }
    recipe = {"tables": {split: content_digest(table) for split, table in tables.items()}}
    artifact = Artifact.of(storage, "tables", recipe)
    if not artifact.exists():
        import pyarrow.parquet as pq

        with artifact.write() as folder:
            for split, table in tables.items():
                pq.write_table(table, folder / f"{split}.parquet")
    return f"{storage.url}/{artifact.kind}/{artifact.key}"


def head_of(what: str, rows: Any) -> Cells:
    """The cells of the first rows by column."""
    if hasattr(rows, "with_format"):
        return first_cells_of(rows)
    return arrow_table(rows, what).slice(0, MOST_CELLS).to_pydict()


def table_of(
    rows: Any,
    columns: Columns | None,
    task: TaskSection | None,
    what: str,
    *,
    need_label: bool,
    cells: Callable[[], Cells] = lambda: {},
) -> pa.Table:
    """The chosen columns of a table of any kind, strings as large_string; names of a ClassLabel stay with it."""

    def chosen(names: Sequence[str]) -> list[str]:
        if columns is None:
            return list(names)
        return list(choose_columns(names, columns, what, need_label, task, cells=cells).values())

    metadata = None
    if hasattr(rows, "with_format") and hasattr(rows, "__len__"):
        kept = rows.select_columns(chosen(rows.column_names))
        found = kept.with_format("arrow")[:]
        if any(class_names(feature) for feature in kept.features.values()):
            metadata = kept.features.arrow_schema.metadata
    else:
        found = arrow_table(rows, what)
        found = found.select(chosen(found.column_names))
    if columns is None:
        found = found.select([field.name for field in found.schema if is_plain(field.type)])
    decoded = {name: plain(found.column(name)) for name in found.column_names}
    return pa.table(decoded).combine_chunks().replace_schema_metadata(metadata)


def arrow_table(rows: Any, what: str) -> pa.Table:
    try:
        if type(rows).__module__.partition(".")[0] == "pandas" and hasattr(rows, "columns"):
            return pa.Table.from_pandas(rows.rename(columns=str), preserve_index=False)
        if hasattr(rows, "__arrow_c_stream__"):
            return pa.table(rows)
    except (pa.ArrowException, ValueError, TypeError) as error:
        said = str(error).splitlines()[0][:300].rstrip(".")
        raise DataError(f"{what} cannot be read as a table: {said}. Give each column one type.") from error
    raise ConfigError(f"{what} is a {type(rows).__name__}. Give {WAYS}.")


def is_plain(kind: pa.DataType) -> bool:
    """Whether a column may be a text or a label: values, or lists of values."""
    inner = kind.value_type if pa.types.is_list(kind) or pa.types.is_large_list(kind) else kind
    return not pa.types.is_nested(inner)


def plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    is_text = pa.types.is_string(kind) or pa.types.is_string_view(kind)
    return column.cast(pa.large_string() if is_text else kind)


def content_digest(table: pa.Table) -> str:
    """SHA-256 over the table as an Arrow stream, whose form does not change with the library's version."""
    digest = hashlib.sha256(table.schema.serialize())
    for batch in table.to_batches():
        digest.update(batch.serialize())
    digest.update(b"\xff\xff\xff\xff" + bytes(4))  # the stream's end
    return digest.hexdigest()
