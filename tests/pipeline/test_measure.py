"""The shapes that models are timed at."""

from __future__ import annotations

import numpy as np
import pytest
from kit.toy import make_toy

from raydistill.data.rows import Rows
from raydistill.pipeline.measure import shapes_to_time


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    return make_toy(tmp_path_factory.mktemp("toy")).rows("validation")


@pytest.mark.parametrize(
    ("longest", "lengths"), [(16, (8, 16)), (20, (8, 16, 20)), (6, (6,)), (128, (8, 16, 32, 64, 128))]
)
def test_shapes(rows: Rows, longest: int, lengths: tuple[int, ...]) -> None:
    found = shapes_to_time(rows, 5, longest)
    sizes = [tuple(inputs["input_ids"].shape) for inputs in found]
    wanted = {(size, 5) for size in (1, 2, 4, 8, 16, 32)} | {(size, n) for size in (1, 32) for n in lengths}
    assert sorted(sizes) == sorted(wanted)
    for inputs in found:
        assert inputs["attention_mask"].all()  # no padding
        assert {tuple(tensor.shape) for tensor in inputs.values()} == {tuple(inputs["input_ids"].shape)}


def test_tokens_are_the_split_s_own(rows: Rows) -> None:
    tokens = np.concatenate([inputs["input_ids"].numpy().ravel() for inputs in shapes_to_time(rows, 5, 16)])
    assert set(tokens.tolist()) <= set(rows.values["input_ids"].tolist())
    first = shapes_to_time(rows, 5, 16)[0]["input_ids"][0]
    assert first.tolist() == rows.values["input_ids"][:5].tolist()
