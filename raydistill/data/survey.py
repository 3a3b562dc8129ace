"""What a table, or another source of labelled texts, holds: columns, classes, lengths, what is removed and cut off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np

from raydistill.config.data import Columns, Data, Split
from raydistill.config.gate import Gate
from raydistill.config.tree import Config
from raydistill.data.columns import choose_columns
from raydistill.data.draft import Draft, Part, cut_missing, drop_duplicates, join_unlabeled, read_draft, whole
from raydistill.data.encoding import load_tokenizer
from raydistill.data.location import locate
from raydistill.data.recognition import first_cells
from raydistill.data.size import LENGTH_ROWS, token_counts
from raydistill.tasks import Targets, Task

MIN_TEST_ROWS, MIN_VALIDATION_ROWS = Gate().min_rows or 1, 100
"""Held-out rows that the shares are made for: what the gate asks for, and half of it to pick an epoch."""
MOST_HELD_OUT = 50
"""% of the labelled training rows that both splits take together at most."""


@dataclass(frozen=True)
class Lengths:
    """How long the texts of a row are: the median, the 95th percentile and the longest."""

    median: int
    most: int
    longest: int

    @classmethod
    def of(cls, counts: Sequence[int]) -> Lengths:
        return cls(*(int(value) for value in np.percentile(counts, [50, 95, 100], method="higher")))


@dataclass(frozen=True)
class Survey:
    """What was found; ``data`` is the section that reads it so, ``counts`` and ``summary`` are of labelled rows."""

    data: Data
    kind: str
    columns: tuple[str, ...]
    """All columns of a table; empty for what has none."""
    task: Task
    counts: Mapping[str, int]
    """By output; empty where a task has no use for it."""
    summary: str
    num_labels: int
    """Labelled rows of all splits."""
    num_rows: Mapping[str, int]
    """By split, without duplicates, with the splits that were cut off."""
    num_unlabeled: int
    words: Lengths | None
    """None of pictures, as the next."""
    tokens: Lengths | None
    """None without a tokenizer."""
    notes: Sequence[str]

    @property
    def num_labeled(self) -> int:
        """Training rows with a label."""
        return self.num_rows["train"] - self.num_unlabeled


def examine(config: Config, tokenizer_folder: Path | None = None) -> Survey:
    """Read all rows of ``data.path`` as a run would; nothing is written.

    Columns without a usual name are recognised by what they hold, where only one can be meant. Held-out shares are
    chosen by the number of rows where ``data.split`` is left out. Raises DataError or ConfigError for what no run could
    use.
    """
    found = locate(config.data)
    columns = first_cells(found)
    if columns:
        given, where = config.data.columns, found.files[0].name
        chosen = choose_columns(list(columns), given, where, True, config.task, cells=lambda: columns)
        named = {role: name for role, name in chosen.items() if role in Columns.model_fields}
        config = with_data(config, columns=Columns(**named))
    draft = read_draft(config)
    drop_duplicates(draft)
    if "split" not in config.data.model_fields_set:
        config = with_data(config, split=enough(draft, config.seed))
    cut_missing(draft, config.data.split, config.seed)
    if config.data.unlabeled is not None:
        join_unlabeled(draft, config)
    targets = reduce(Targets.plus, (part.targets for part in draft.parts.values()))
    words, tokens = (None, None)
    if not draft.task.reads_pictures:
        words, tokens = measure(draft.parts["train"], tokenizer_folder)
    return Survey(
        config.data,
        found.kind,
        tuple(columns),
        draft.task,
        draft.task.counts(targets),
        draft.task.summary(targets),
        int(targets.labeled.sum()),
        {split: part.num_rows for split, part in draft.parts.items()},
        int((~draft.parts["train"].targets.labeled).sum()),
        words,
        tokens,
        tuple(draft.notes),
    )


def with_data(config: Config, **changes: Any) -> Config:
    return config.model_copy(update={"data": config.data.model_copy(update=changes)})


def enough(draft: Draft, seed: int) -> Split:
    """``shares`` of which the test split comes to the rows that the gate asks for, where that can be: whole groups of
    rows that stay together fill a split a little less than asked, to half of it at worst."""
    labeled = int(draft.parts["train"].targets.labeled.sum())
    missing = [split for split in ("validation", "test") if split not in draft.parts]
    wanted, split, before = MIN_TEST_ROWS, shares(labeled, missing), None
    while "test" in missing and split != before and split.test * labeled < 2 * wanted:
        tried = replace(draft, parts={**draft.parts}, removed={**draft.removed}, notes=[*draft.notes])
        cut_missing(tried, split, seed)
        wanted += max(0, MIN_TEST_ROWS - int(tried.parts["test"].targets.labeled.sum()))
        split, before = shares(labeled, missing, wanted), split
    return split


def shares(labeled: int, missing: Sequence[str], min_test_rows: int = MIN_TEST_ROWS) -> Split:
    """A tenth for each split that is missing, more where that would be too few rows: test gets ``min_test_rows`` where
    ``MOST_HELD_OUT`` leaves room for them beside a tenth for validation; where it does not, 30 % and 20 %."""
    needs = {
        name: -(-100 * rows // max(labeled, 1))
        for name, rows in (("validation", MIN_VALIDATION_ROWS), ("test", min_test_rows))
    }
    room = MOST_HELD_OUT - 10 * ("validation" in missing)
    test = max(10, needs["test"]) if needs["test"] <= room else 30
    left = MOST_HELD_OUT - test * ("test" in missing)
    percent = {"validation": min(max(10, needs["validation"]), 20, left), "test": test}
    return Split.model_validate({split: percent[split] / 100 for split in missing})


def measure(part: Part, tokenizer_folder: Path | None) -> tuple[Lengths, Lengths | None]:
    """Words and tokens of a sample of rows, both texts of a pair together."""
    rows = np.sort(np.random.default_rng(0).permutation(part.num_rows)[:LENGTH_ROWS])
    columns = [whole(column) for column in part.texts.columns]
    texts = [column.take(rows).to_pylist() for column in columns]
    words = Lengths.of([sum(len(text.split()) for text in row) for row in zip(*texts, strict=True)])
    if tokenizer_folder is None:
        return words, None
    return words, Lengths.of(token_counts(columns, load_tokenizer(tokenizer_folder)))
