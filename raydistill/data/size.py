"""Rows and tokens of the splits; where the data is not prepared, the tokens are estimated from a sample."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from raydistill.config.tree import Config
from raydistill.data.draft import make_draft, whole
from raydistill.data.prepare import DataInfo, info_of, read_info
from raydistill.data.rows import encode_texts, load_tokenizer
from raydistill.storage.artifacts import Artifact
from raydistill.tasks import Task, task_of

SAMPLE_ROWS = 512
"""Rows of a split whose tokens are counted to estimate those of all: their mean is within 3 % or so."""


@dataclass(frozen=True)
class Size:
    """Counts of the splits: rows are counted, tokens and cut rows estimated where the data is not prepared."""

    info: DataInfo
    num_tokens: dict[str, int]
    num_cut: dict[str, int]
    """Rows with more than ``data.max_length`` tokens."""
    is_estimate: bool

    @property
    def num_rows(self) -> dict[str, int]:
        return {split: counts.rows for split, counts in self.info.counts.items()}

    @property
    def num_labeled(self) -> int:
        return self.info.counts["train"].labeled

    @property
    def task(self) -> Task:
        return task_of(self.info.task)


def measured_size(data: Artifact, tokens: Artifact) -> Size:
    counted = json.loads((tokens.local() / "info.json").read_text())
    return Size(read_info(data), counted["num_tokens"], counted["num_cut"], is_estimate=False)


def estimated_size(config: Config, tokenizer_folder: Path) -> Size:
    """Count the rows as they will be prepared, and their tokens from a sample; nothing is written.

    Raises DataError or ConfigError for data that cannot be prepared.
    """
    draft, max_length = make_draft(config), config.data.max_length
    tokenizer = load_tokenizer(tokenizer_folder, max_length)
    num_tokens, num_cut = {}, {}
    for split, part in draft.parts.items():
        rows = np.sort(np.random.default_rng(0).permutation(part.num_rows)[:SAMPLE_ROWS])
        texts = [whole(column) for column in part.texts.take(pa.array(rows)).columns]
        columns, is_cut = encode_texts(tokenizer, texts, max_length, pad=0)
        num_tokens[split] = round(part.num_rows * len(columns["input_ids"].values) / len(rows))
        num_cut[split] = round(part.num_rows * float(is_cut.mean()))
    return Size(info_of(draft), num_tokens, num_cut, is_estimate=True)
