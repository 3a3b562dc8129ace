"""Which task rows are for, by the kind of their source and by what columns are called and hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any

from raydistill.config.tasks import TaskSection
from raydistill.config.tree import Config
from raydistill.data.columns import MOST_CELLS, are_pictures, choose_columns, fitting
from raydistill.data.location import SUFFIXES, Location, locate
from raydistill.data.paths import DataFile
from raydistill.data.prose import is_text
from raydistill.data.tables import by_column, rows_of
from raydistill.errors import DataError, RaydistillError
from raydistill.tasks import TASKS, kind_of
from raydistill.tasks.numbers import are_amounts

OF_KINDS = {
    "image_folder": ("image_classification", "a folder of pictures"),
    "coco": ("object_detection", "pictures with boxes"),
    "yolo": ("object_detection", "pictures with boxes"),
    "conll": ("token_classification", "words with labels"),
}
"""What a source of such a kind is for, and what it is."""

CLASSES_OF_SEARCH = (
    "Each query and its document are one pair, with its label as a class. For vectors by which documents are found: "
    "--set task.type=embeddings, which takes the label as a score, or needs none where all that stand together belong "
    "together."
)


def recognised(config: Config) -> tuple[Config, list[str]]:
    """The config with the task that the rows of ``data`` are evidently for, where it names none; a note on it."""
    if "task" in config.model_fields_set:
        return config, []
    found = locate(config.data)
    cells = first_cells(found)
    guess = OF_KINDS.get(found.kind) or task_of_columns(config, found, cells)
    if guess is None:
        is_search = {"query", "document", "label"} <= {name.lower() for name in cells}
        return config, [CLASSES_OF_SEARCH] if is_search else []
    kind, why = guess
    note = f"The task is {kind}, as the data is {why}. If another is meant: --set task.type=…"
    return config.model_copy(update={"task": TASKS[kind].Settings()}), [note]


def first_cells(found: Location) -> dict[str, list[Any]]:
    """The cells of a table's first rows by column; nothing of other sources."""
    if found.kind not in SUFFIXES:
        return {}
    return cells_of(found.files[0], found.kind)


def cells_of(file: DataFile, kind: str) -> dict[str, list[Any]]:
    """The cells of a file's first rows by column."""
    return by_column(list(islice(rows_of(file, kind), MOST_CELLS)))


def task_of_columns(config: Config, found: Location, cells: Mapping[str, Sequence[Any]]) -> tuple[str, str] | None:
    """The task that columns tell, and what they are; None where they may be classes of texts. Raises DataError where
    the label is an amount of money."""

    def choose(settings: TaskSection) -> dict[str, str]:
        with suppress(RaydistillError):
            return choose_columns(list(cells), config.data.columns, found.name, True, settings, cells=lambda: cells)
        return {}

    classes = kind_of(config.task)
    label = choose(config.task).get("label", "")
    has_classes = bool(label) and classes.is_target(cells[label])
    if has_classes and label.lower() in classes.label_columns:
        return None
    if not has_classes and are_amounts(cells.get(label, ())):
        raise DataError(f"{found.name}, column {label}, has no classes.{fitting({label: cells[label]}, config.task)}")
    has_texts = any(map(is_text, cells.values()))
    for kind in TASKS.values():
        chosen = choose(kind.Settings())
        if not chosen or (has_classes and kind.kind == "value"):  # a score beside classes is how sure somebody was
            continue
        if kind.Settings.reads_pictures and (has_texts or not are_pictures(cells[chosen["image"]])):
            continue
        if kind.is_told_by(chosen, cells):
            return kind.type, "a table of " + ", ".join(f"{name} ({role})" for role, name in chosen.items())
    return None
