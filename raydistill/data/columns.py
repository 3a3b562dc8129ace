"""Which column holds what, and columns in one form: texts as large_string, labels as the task has them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, TypeAlias

import pyarrow as pa

from raydistill.config.data import Columns
from raydistill.config.tasks import TaskSection
from raydistill.data.paths import DataFile
from raydistill.data.pictures import SUFFIXES, sound
from raydistill.data.prose import free_texts, is_text
from raydistill.errors import ConfigError, DataError, did_you_mean
from raydistill.tasks import TASKS, kind_of
from raydistill.tasks.numbers import are_amounts
from raydistill.tasks.targets import decoded, is_string

TEXT_NAMES = ("text", "sentence", "sentence1", "review", "content", "premise", "question", "question1")
IMAGE_NAMES = ("image", "picture", "photo", "img", "image_path", "file_name", "path")
MOST_CELLS = 1000
"""By so many a column is recognised."""
Cells: TypeAlias = Mapping[str, Sequence[Any]]
"""Some rows' cells by column."""
PAIR_NAMES = {
    "text": "text_pair",
    "sentence1": "sentence2",
    "premise": "hypothesis",
    "question1": "question2",
    "query": "document",
    "anchor": "positive",
}


def choose_columns(
    names: Sequence[str],
    columns: Columns,
    where: str,
    need_label: bool,
    task: TaskSection | None = None,
    setting: str = "data.columns.{}",
    cells: Callable[[], Cells] = lambda: {},
) -> dict[str, str]:
    """Role (text, text_pair, label; of pictures image, label) to column name, as the config says or by usual names in
    any case.

    ``task`` knows the usual names of a label, without it none is recognised; ``setting``: where the user names the
    column of a role. By ``cells`` a text or label without a usual name is recognised, too, where only one can be meant;
    they are asked for where they are needed, and ``guessed`` tells which roles were found so.

    Raises ConfigError for a configured column that is missing, DataError when none is recognised.
    """
    twice = sorted({name for name in names if list(names).count(name) > 1})
    if twice:
        raise DataError(f"{where} has more than one column named {twice[0]!r}. Rename one of them.")
    need_label = need_label and (task is None or kind_of(task).needs_labels)
    chosen: dict[str, str] = {}
    lower = {name.lower(): name for name in reversed(names)}
    roles = ("image", "label") if task is not None and task.reads_pictures else ("text", "text_pair", "label")
    for role in roles:
        wanted = getattr(columns, role)
        if wanted is not None and wanted in names:
            chosen[role] = wanted
        elif wanted is not None and (role != "label" or need_label):
            hint = did_you_mean(wanted, names)
            raise ConfigError(f"{setting.format(role)} is {wanted!r}, which {where} lacks. {hint}")
        elif wanted is None:
            usual = usual_names(role, chosen, task)
            found = next((lower[name] for name in usual if name in lower), None)
            if found is None and role == "text":  # of two texts that belong together the first
                found = next((lower[one] for one, other in PAIR_NAMES.items() if {one, other} <= lower.keys()), None)
            if found is not None and found not in chosen.values():
                chosen[role] = found
            elif role == roles[0] or (role == "label" and need_label):
                taken = {*chosen.values(), columns.label}
                given = cells()
                left = {name: given[name] for name in names if name in given and name not in taken}
                able = able_columns(role, left, task)
                if len(able) != 1:
                    many = f"; it could be any of {', '.join(able)}" if able else ""
                    other = [
                        kind.type
                        for kind in TASKS.values()
                        if role == "text" and kind.has_units and lower.keys() & set(kind.text_columns)
                    ]
                    hint = f" For lists of words set task.type: {other[0]}." if other and not many else ""
                    if role == "label":
                        hint = by_label(left) or fitting(left, task)
                    raise DataError(
                        f"{where} has no column that is recognised as the {role} ({', '.join(usual)}){many}. "
                        f"Its columns: {', '.join(names)}. Name it with {setting.format(role)}.{hint}"
                    )
                chosen[role] = able[0]
    return chosen | (kind_of(task).more_columns(task, names) if task is not None else {})


def able_columns(role: str, cells: Cells, task: TaskSection | None) -> list[str]:
    """The columns that may be meant by a role; of several texts the evident one, where there is one. Which of two is
    the first one of a pair is in their names alone."""
    if role == "text":
        is_pair = task is not None and kind_of(task).pair_columns
        return [name for name, few in cells.items() if is_text(few)] if is_pair else free_texts(cells)
    fits = kind_of(task).is_target if role == "label" and task is not None else are_pictures
    return [name for name, few in cells.items() if fits(few)]


def by_label(cells: Cells) -> str:
    """A sentence on columns that say of a label each whether a row has it, or nothing where there are not several."""
    names = [name for name, few in cells.items() if are_flags(few)]
    if len(names) < 2:
        return ""
    shown = f"{', '.join(names[:3])}{', …' if names[3:] else ''}"
    return (
        f" {shown} hold 0 and 1. If each is a label that a row has or not, put the names of those it has into one "
        "column, with commas between them ([] where it has none), name that one, and set task.type: "
        "multi_label_classification."
    )


def are_flags(cells: Sequence[Any]) -> bool:
    """Whether these are nothing but 0 and 1, or false and true, and both."""
    return {str(cell).strip().lower() for cell in cells if cell is not None and str(cell).strip()} in (
        {"0", "1"},
        {"0.0", "1.0"},
        {"false", "true"},
    )


def guessed(chosen: Mapping[str, str], columns: Columns, task: TaskSection) -> dict[str, str]:
    """Those of the ``chosen`` columns that neither the config names nor a usual name tells."""
    return {
        role: name
        for role, name in chosen.items()
        if role in ("text", "label", "image")
        and getattr(columns, role) is None
        and name.lower() not in usual_names(role, chosen, task)
        and PAIR_NAMES.get(name.lower(), "") != chosen.get("text_pair", "-").lower()
    }


def fitting(cells: Mapping[str, Sequence[Any]], task: TaskSection | None, said: str = "") -> str:
    """A sentence on the columns whose ``cells`` look like targets of other tasks, or nothing; ``said`` names some."""
    pictures = task is not None and task.reads_pictures
    found = {}
    for name, few in cells.items():
        if are_amounts(few):
            found[name] = "text_regression, once its amounts of money are plain numbers (1234.50)"
            continue
        kinds = [kind for kind in TASKS.values() if kind.Settings.reads_pictures == pictures and kind.is_target(few)]
        types = [kind.type for kind in kinds if kind.type not in said]
        if types and not are_ids(few) and (task is None or kind_of(task) not in kinds):
            found[name] = " or ".join(types)
    listed = [f"{name} would fit task.type {types}" for name, types in list(found.items())[:3]]
    return f" {'; '.join(listed)}." if listed else ""


def are_ids(cells: Sequence[Any]) -> bool:
    """Whether these are whole numbers that rise from row to row."""
    known = [str(cell).strip() for cell in cells if cell is not None and str(cell).strip()]
    numbers = [int(cell) for cell in known if cell.isdecimal()]
    return len(numbers) == len(known) and all(a < b for a, b in pairwise(numbers))


def usual_names(role: str, chosen: Mapping[str, str], task: TaskSection | None) -> tuple[str, ...]:
    """Names by which a column of this role is recognised, beside those that are ``chosen`` already."""
    if role == "text_pair":
        usual = PAIR_NAMES.get(chosen["text"].lower(), "text_pair")
        return (usual, *(kind_of(task).pair_columns if task is not None else ()))
    if role == "image":
        return IMAGE_NAMES
    if role == "text":
        if task is None:
            return (*TEXT_NAMES, *(name for kind in TASKS.values() for name in kind.text_columns))
        return (*kind_of(task).text_columns, *TEXT_NAMES)
    return kind_of(task).label_columns if task is not None else ()


def are_pictures(cells: Sequence[Any]) -> bool:
    """Whether these are pictures, or names of such files."""
    known = [cell for cell in cells if cell is not None]
    return bool(known) and all(
        cell.lower().endswith(SUFFIXES) if isinstance(cell, str) else isinstance(cell, bytes | dict) for cell in known
    )


def canonical(
    table: pa.Table,
    chosen: dict[str, str],
    where: str,
    class_names: Sequence[str] | None,
    task: TaskSection,
    file: DataFile | None = None,
) -> pa.Table:
    """The chosen columns of a raw table under the names text, text_pair, label; of pictures image (null where one
    cannot be read), name, fault, label. ``file``: from which paths of pictures count. Raises DataError for a wrong
    type."""
    out: dict[str, Any] = {}
    raw = {role: table.column(name) for role, name in chosen.items()}
    with named_fit(raw, chosen, task):
        aligned = kind_of(task).aligned(task, raw, where, class_names)
        if "label" in aligned:
            what = f"Column {chosen.get('label')!r} of {where}"
            aligned = {**aligned, "label": kind_of(task).column(task, aligned["label"], what, class_names)}
    for role, column in aligned.items():
        name = chosen.get(role)
        if role == "label":
            out[role] = column
        elif role == "image":
            out |= pictures_in(column, f"Column {name!r} of {where}", where, file)
        else:
            out[role] = _text_column(column, f"Column {name!r} of {where}")
    return kind_of(task).placed(pa.table(out), where)


@contextmanager
def named_fit(raw: Mapping[str, pa.ChunkedArray], chosen: Mapping[str, str], task: TaskSection) -> Iterator[None]:
    """Adds to a DataError on a label column that is none of the ``task`` of which task it looks like one."""
    try:
        yield
    except DataError as error:
        cells = {chosen[role]: column[:MOST_CELLS].to_pylist() for role, column in raw.items() if role == "label"}
        if hint := fitting(cells, task, str(error)):
            raise DataError(f"{error}{hint}") from error
        raise


def pictures_in(column: pa.ChunkedArray, what: str, where: str, file: DataFile | None) -> dict[str, pa.Array]:
    """Pictures that a table holds, as bytes or as {bytes, path}, or names: columns image, name, fault. DataError for a
    column of neither."""
    cells = column.to_pylist()
    known = [cell for cell in cells if cell is not None]
    if not all(isinstance(cell, bytes | str | dict) for cell in known):
        raise DataError(f"{what} holds {column.type}, not pictures. Name the column of the pictures in data.columns.")
    contents: list[bytes | None] = []
    names: list[str] = []
    for number, cell in enumerate(cells, 1):
        cell = cell if isinstance(cell, dict) else {"bytes" if isinstance(cell, bytes) else "path": cell}
        content, path = cell.get("bytes"), cell.get("path")
        names.append(path or f"row {number} of {where}")
        contents.append(content if content is not None or not path else read_beside(path, file))
    images, faults = sound(contents, names)
    return {"image": images, "name": pa.array(names, pa.large_string()), "fault": faults}


def read_beside(path: str, file: DataFile | None) -> bytes | None:
    """The content of the file that a table names; None where there is none."""
    try:
        with (DataFile(path, path) if file is None else file.beside(path)).open() as opened:
            content: bytes = opened.read()
            return content
    except OSError:
        return None


def _text_column(column: pa.ChunkedArray, what: str) -> pa.ChunkedArray:
    column = decoded(column)
    if not is_string(column.type) and not pa.types.is_null(column.type):
        raise DataError(f"{what} holds {column.type}, not text. Name the column of the text in data.columns.")
    return column.cast(pa.large_string())
