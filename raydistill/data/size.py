"""Rows and tokens of the splits; where the data is not prepared, the tokens are estimated from a sample."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raydistill.config.data import Data
from raydistill.config.tree import Config
from raydistill.data.draft import make_draft, whole
from raydistill.data.encoding import encode_apart, encode_task, encode_texts, load_tokenizer, num_cut_in
from raydistill.data.paths import SPLITS
from raydistill.data.prepare import DataInfo, info_of, read_info
from raydistill.data.rows import read_texts
from raydistill.models.load import quiet
from raydistill.storage.artifacts import Artifact
from raydistill.tasks import Task, task_of
from raydistill.tasks.masked_language_modeling.encoding import batches_of

SAMPLE_ROWS = 512
"""Rows of a split whose tokens are counted to estimate those of all: their mean is within 3 % or so."""


LENGTH_ROWS = 2000
"""Rows whose tokens are counted to say how long rows are."""

Texts = Callable[[str], list[pa.Array]]
"""The texts of a split, one column or two; read when they are asked for, which may fetch them from far away."""


@dataclass(frozen=True)
class Size:
    """Counts of the splits: rows are counted, tokens and cut rows estimated where the data is not prepared."""

    info: DataInfo
    num_tokens: dict[str, int]
    num_cut: dict[str, int]
    """Rows with more than ``data.max_length`` tokens."""
    is_estimate: bool
    num_windows: dict[str, int] | None = None
    """Rows that models read, where long texts are read in windows."""
    num_units: dict[str, int] | None = None
    """Predictions that rows ask for, where they have any number."""
    num_labeled_copies: int = 1
    num_copies: int = 1
    """Training rows that models read of a row, and those of them with its label, see ``data.augment`` and
    ``data.symmetric``."""

    @property
    def num_inputs(self) -> dict[str, int]:
        """Rows that models read."""
        return self.num_windows or self.num_rows | {"train": self.num_copies * self.num_rows["train"]}

    @property
    def num_labeled_inputs(self) -> int:
        """Those of the training rows with a label; where texts are read in windows, in the mean."""
        if self.num_windows is None:
            return self.num_labeled_copies * self.num_labeled
        return round(self.num_labeled * self.num_inputs["train"] / max(self.num_rows["train"], 1))

    @property
    def num_rows(self) -> dict[str, int]:
        return {split: counts.rows for split, counts in self.info.counts.items()}

    @property
    def num_labeled(self) -> int:
        return self.info.counts["train"].labeled

    @property
    def task(self) -> Task:
        return task_of(self.info.task)


def token_counts(texts: Sequence[pa.Array], tokenizer: Any) -> list[int]:
    """Tokens of a sample of rows, whatever their number; ``texts``: one column or two, the texts of a pair together."""
    rows = np.sort(np.random.default_rng(0).permutation(len(texts[0]))[:LENGTH_ROWS])
    sizes: Any = sum(pc.binary_length(column).to_numpy(zero_copy_only=False)[rows] for column in texts)
    counts: list[int] = []
    with quiet():  # a warning for every text beyond the model's length
        for part in batches_of(sizes.tolist()):
            encoded = tokenizer(*(column.take(rows[part]).to_pylist() for column in texts))
            counts += [len(ids) for ids in encoded["input_ids"]]
    return counts


def token_needs(texts: Sequence[pa.Array], tokenizer_folder: Path) -> tuple[int, int]:
    """Tokens that 99 % of the rows keep within, by a sample, and how many the tokenizer lets a row have."""
    tokenizer = load_tokenizer(tokenizer_folder)
    counts = token_counts(texts, tokenizer)
    most = int(np.percentile(counts, 99, method="higher")) if counts else 0
    return most, int(tokenizer.model_max_length)


def pieces_a_document(texts: Sequence[pa.Array], tokenizer_folder: Path, max_length: int) -> float:
    """Rows of at most so many tokens that a document becomes in the mean, by a sample."""
    tokenizer = load_tokenizer(tokenizer_folder, max_length)
    special = tokenizer.num_special_tokens_to_add()
    own = np.array(token_counts(texts, tokenizer)) - special
    return float(np.maximum(np.ceil(own / (max_length - special)), 1).mean()) if len(own) else 1.0


def measured_size(data: Artifact, tokens: Artifact, settings: Data) -> Size:
    counted = json.loads((tokens.local() / "info.json").read_text())
    info = read_info(data)
    more = copies_in(info, settings)
    more |= {name: counted.get(name) for name in ("num_windows", "num_units")}
    return Size(info, counted["num_tokens"], counted["num_cut"], is_estimate=False, **more)


def copies_in(info: DataInfo, settings: Data) -> dict[str, Any]:
    """How often a model reads a row of the source, as ``Size`` has it."""
    labeled = settings.num_labeled_copies(task_of(info.task).Settings)
    return {"num_copies": settings.num_copies, "num_labeled_copies": labeled}


def look(config: Config, data: Artifact) -> tuple[DataInfo, Texts]:
    """What there is to know of the data and its texts, as they are prepared or will be; nothing is written.

    Raises DataError or ConfigError for data that cannot be prepared.
    """
    if data.exists():
        return read_info(data), partial(read_texts, data)
    draft = make_draft(config)
    return info_of(draft), lambda split: [whole(column) for column in draft.parts[split].texts.columns]


def estimated_size(info: DataInfo, texts: Texts, max_length: int, tokenizer_folder: Path, settings: Data) -> Size:
    """The rows of the splits, and their tokens from a sample. Raises ConfigError for a length to which the tokenizer
    cannot cut."""
    more = copies_in(info, settings)
    if (task := task_of(info.task)).reads_pictures:
        patches = {split: counts.rows * max_length for split, counts in info.counts.items()}
        patches["train"] *= settings.num_copies
        return Size(info, patches, dict.fromkeys(patches, 0), is_estimate=False, **more)
    tokenizer = load_tokenizer(tokenizer_folder, max_length)
    num_tokens, num_cut, num_windows, num_units = {}, {}, {}, {}
    for split in SPLITS:
        whole_columns = texts(split)
        num_rows = len(whole_columns[0])
        rows = np.sort(np.random.default_rng(0).permutation(num_rows)[:SAMPLE_ROWS])
        sample, inputs = [column.take(pa.array(rows)) for column in whole_columns], num_rows
        if task.has_units:
            columns = encode_task(tokenizer, task, sample, None, max_length, pad=0)
            inputs *= task.copies if split == "train" else 1
            num_windows[split] = round(inputs * len(columns["input_ids"]) / len(rows))
            num_units[split] = round(inputs * len(columns["unit"].values) / len(rows))
            num_cut[split] = round(num_rows * num_cut_in(columns) / len(rows))
        else:
            encode = encode_apart if task.reads_apart and len(sample) > 1 else encode_texts
            columns, is_cut = encode(tokenizer, sample, max_length, pad=0)
            inputs *= settings.num_copies if split == "train" else 1
            num_cut[split] = round(inputs * float(is_cut.mean()))
        num_tokens[split] = round(inputs * len(columns["input_ids"].values) / len(rows))
    more |= {"num_windows": num_windows or None, "num_units": num_units or None}
    return Size(info, num_tokens, num_cut, is_estimate=True, **more)
