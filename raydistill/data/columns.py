"""Which column holds what, and columns in one form: large_string, a label null where there is none."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from raydistill.config.data import Columns
from raydistill.errors import ConfigError, DataError, did_you_mean

TEXT_NAMES = ("text", "sentence", "sentence1", "review", "content", "premise", "question", "question1")
PAIR_NAMES = {"text": "text_pair", "sentence1": "sentence2", "premise": "hypothesis", "question1": "question2"}
LABEL_NAMES = ("label", "labels", "class", "category", "target")


def choose_columns(
    names: Sequence[str], columns: Columns, where: str, need_label: bool, setting: str = "data.columns.{}"
) -> dict[str, str]:
    """Role (text, text_pair, label) to column name, as the config says or by usual names in any case.

    ``setting``: where the user names the column of a role.

    Raises ConfigError for a configured column that is missing, DataError when none is recognised.
    """
    twice = sorted({name for name in names if list(names).count(name) > 1})
    if twice:
        raise DataError(f"{where} has more than one column named {twice[0]!r}. Rename one of them.")
    chosen: dict[str, str] = {}
    lower = {name.lower(): name for name in reversed(names)}
    for role in ("text", "text_pair", "label"):
        wanted = getattr(columns, role)
        if wanted is not None and wanted in names:
            chosen[role] = wanted
        elif wanted is not None and (role != "label" or need_label):
            hint = did_you_mean(wanted, names)
            raise ConfigError(f"{setting.format(role)} is {wanted!r}, which {where} lacks. {hint}")
        elif wanted is None:
            usual = _usual_names(role, chosen)
            found = next((lower[name] for name in usual if name in lower), None)
            if found is not None and found not in chosen.values():
                chosen[role] = found
            elif role == "text" or (role == "label" and need_label):
                raise DataError(
                    f"{where} has no column that is recognised as the {role} ({', '.join(usual)}). "
                    f"Its columns: {', '.join(names)}. Name it with {setting.format(role)}."
                )
    return chosen


def _usual_names(role: str, chosen: dict[str, str]) -> tuple[str, ...]:
    if role == "text_pair":
        return (PAIR_NAMES.get(chosen["text"].lower(), "text_pair"),)
    return TEXT_NAMES if role == "text" else LABEL_NAMES


def canonical(table: pa.Table, chosen: dict[str, str], where: str, class_names: Sequence[str] | None) -> pa.Table:
    """The chosen columns of a raw table under the names text, text_pair, label. Raises DataError for a wrong type."""
    out = {}
    for role, name in chosen.items():
        column = table.column(name)
        if role == "label":
            out[role] = class_column(column, f"Column {name!r} of {where}", class_names)
        else:
            out[role] = _text_column(column, f"Column {name!r} of {where}")
    return pa.table(out)


def _decoded(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def _is_string(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _text_column(column: pa.ChunkedArray, what: str) -> pa.ChunkedArray:
    column = _decoded(column)
    if not _is_string(column.type) and not pa.types.is_null(column.type):
        raise DataError(f"{what} holds {column.type}, not text. Name the column of the text in data.columns.")
    return column.cast(pa.large_string())


def class_column(column: pa.ChunkedArray, what: str, class_names: Sequence[str] | None = None) -> pa.ChunkedArray:
    """Labels as strings: integers in decimal, whole floats as integers, ClassLabel ids by name, empty cells null."""
    column = _decoded(column)
    kind = column.type
    if pa.types.is_null(kind):
        return column.cast(pa.large_string())
    if pa.types.is_integer(kind):
        return _named(column, class_names, what) if class_names else column.cast(pa.large_string())
    if pa.types.is_boolean(kind):
        return pc.if_else(column, "True", "False").cast(pa.large_string())
    if pa.types.is_floating(kind):
        return _whole(column, what)
    if not _is_string(kind):
        raise DataError(f"{what} holds {kind}; text classification needs one class a row, a string or an integer.")
    column = pc.utf8_trim_whitespace(column.cast(pa.large_string()))
    column = pc.if_else(pc.equal(column, ""), pa.scalar(None, pa.large_string()), column)
    # pandas writes integer labels as 1.0 as soon as one cell of the column is empty
    if pc.all(pc.match_substring_regex(column, r"^-?[0-9]+\.0$"), min_count=1).as_py():
        column = pc.replace_substring(column, ".0", "", max_replacements=1)
    return column


def _whole(column: pa.ChunkedArray, what: str) -> pa.ChunkedArray:
    column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
    if pc.any(pc.not_equal(pc.floor(column), column)).as_py():
        raise DataError(
            f"{what} holds fractions; did you mean regression? There are only classes here, strings or integers. If "
            "these numbers are classes, write them as strings."
        )
    return column.cast(pa.int64()).cast(pa.large_string())


def _named(column: pa.ChunkedArray, class_names: Sequence[str], what: str) -> pa.ChunkedArray:
    highest = pc.max(column).as_py()
    if highest is not None and highest >= len(class_names):
        raise DataError(f"{what} holds class {highest}, but only {len(class_names)} class names go with it.")
    column = pc.if_else(pc.less(column, 0), pa.scalar(None, column.type), column)
    return pc.take(pa.array(class_names, pa.large_string()), column.combine_chunks())
