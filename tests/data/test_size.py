"""How long rows are, of which a run decides what its models read."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from kit.tiny import tiny_tokenizer

from raydistill.data.size import token_needs


@pytest.mark.parametrize(("num_long", "needed"), [(1, 4), (3, 42)])
def test_the_length_that_99_of_100_rows_keep_within(num_long: int, needed: int, tmp_path: Path) -> None:
    tiny_tokenizer().save_pretrained(tmp_path)
    texts = ["good film"] * (200 - num_long) + ["film " * 40] * num_long  # and two special tokens each
    assert token_needs([pa.array(texts)], tmp_path)[0] == needed
