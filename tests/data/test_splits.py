"""Cuts are stratified and depend on rows and seed only; duplicates leave disjoint splits; allocation keeps limits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydistill.data.draft import row_hashes
from raydistill.data.splits import allocate, cut, find_duplicates, keep_labels

class_ids = st.lists(st.integers(-1, 5), min_size=1, max_size=120).map(lambda x: np.array(x, np.int64))


def unique_hashes(num_rows: int) -> np.ndarray:
    return np.array([f"{i:032x}" for i in range(num_rows)], "S32")


@given(labels=class_ids, share=st.floats(0.01, 0.9), seed=st.integers(0, 3))
def test_a_cut_is_stratified_and_leaves_a_row_of_every_class(labels: np.ndarray, share: float, seed: int) -> None:
    chosen = cut(labels, unique_hashes(len(labels)), share, seed, "test")
    assert not chosen[labels < 0].any()
    known, counts = np.unique(labels[labels >= 0], return_counts=True)
    drawn = np.array([int(chosen[labels == c].sum()) for c in known], np.int64)
    assert (drawn <= counts - 1).all()
    total = max(1, round(share * counts.sum()))
    assert drawn.sum() == min(total, (counts - 1).sum())
    if (counts * share <= counts - 1).all() and total > 1:  # no class is at its limit
        assert (np.abs(drawn - counts * total / counts.sum()) < 1 + 1e-9).all()


@given(labels=class_ids.filter(lambda x: (x >= 0).any()), data=st.data())
def test_max_labeled_keeps_that_many_and_every_class(labels: np.ndarray, data: st.DataObject) -> None:
    known, counts = np.unique(labels[labels >= 0], return_counts=True)
    number = data.draw(st.integers(len(known), int(counts.sum())))
    kept = keep_labels(labels, unique_hashes(len(labels)), number, 0)
    drawn = np.array([int(kept[labels == c].sum()) for c in known])
    assert drawn.sum() == kept.sum() == number
    assert (drawn >= 1).all()


@given(counts=st.lists(st.integers(1, 50), min_size=1, max_size=9), data=st.data())
def test_allocation_is_within_its_limits(counts: list[int], data: st.DataObject) -> None:
    size = np.array(counts, np.int64)
    low = np.array([data.draw(st.integers(0, c)) for c in counts], np.int64)
    high = np.array([data.draw(st.integers(a, c)) for a, c in zip(low.tolist(), counts, strict=True)], np.int64)
    total = data.draw(st.integers(0, sum(counts)))
    quota = allocate(size, total, low, high)
    assert ((low <= quota) & (quota <= high)).all()
    assert quota.sum() == np.clip(total, low.sum(), high.sum())


@pytest.mark.parametrize(
    ("counts", "total", "low", "quota"),
    [
        ([51, 19], 7, 0, [5, 2]),  # 5.1 and 1.9
        ([10, 30], 2, 0, [0, 2]),  # 0.5 and 1.5: the larger class
        ([39, 30, 4, 4, 3], 8, 1, [3, 2, 1, 1, 1]),  # 3.9 and 3.0; the small ones take one more than their share
        ([12, 8, 2, 2], 6, 1, [2, 2, 1, 1]),  # 3 and 2: the larger class gives
    ],
)
def test_allocation_is_by_the_largest_remainder(counts: list[int], total: int, low: int, quota: list[int]) -> None:
    size = np.array(counts, np.int64)
    assert allocate(size, total, np.full_like(size, low), size).tolist() == quota


def test_cuts_depend_on_the_rows_and_the_seed_not_on_their_order() -> None:
    labels, hashes = np.arange(200) % 4, unique_hashes(200)
    order = np.random.default_rng(0).permutation(200)
    chosen = set(hashes[cut(labels, hashes, 0.1, 0, "test")])
    assert set(hashes[order][cut(labels[order], hashes[order], 0.1, 0, "test")]) == chosen
    assert set(hashes[cut(labels, hashes, 0.1, 1, "test")]) != chosen
    assert set(hashes[cut(labels, hashes, 0.1, 0, "validation")]) != chosen


split_rows = st.lists(st.tuples(st.integers(0, 12), st.integers(-1, 2)), max_size=40)


@given(train=split_rows, validation=split_rows, test=split_rows)
def test_duplicates_leave_disjoint_splits_and_every_row_is_counted(train: Any, validation: Any, test: Any) -> None:
    rows = {"train": train, "validation": validation, "test": test}
    hashes = {split: np.array([f"{text:032x}" for text, _ in pairs], "S32") for split, pairs in rows.items()}
    labels = {split: np.array([label for _, label in pairs], np.int64) for split, pairs in rows.items()}
    found = find_duplicates(hashes, labels)
    left = {split: hashes[split][keep] for split, keep in found.keep.items()}
    assert found.keep["test"].all()
    assert not set(left["train"]) & (set(hashes["validation"]) | set(hashes["test"]))
    assert not set(left["validation"]) & set(left["test"])
    assert len(set(left["train"])) == len(left["train"])
    assert sum(found.removed.values()) == sum(len(hashes[s]) - len(left[s]) for s in rows)
    held_out = set(hashes["validation"]) | set(hashes["test"])
    for text in set(hashes["train"]) - held_out:
        given_labels = set(labels["train"][hashes["train"] == text].tolist()) - {-1}
        kept = labels["train"][found.keep["train"] & (hashes["train"] == text)].tolist()
        assert kept == ([] if len(given_labels) > 1 else [*given_labels] or [-1])


def test_what_duplicates_cost_is_told_by_reason() -> None:
    texts = {"test": "aab", "validation": "bccdd", "train": "acdeefffgg"}
    given = {"test": [0, 1, 0], "validation": [0, 1, 1, 0, -1], "train": [0, 0, 0, 1, 1, 0, 1, -1, -1, 2]}
    hashes = {split: np.array([f"{ord(text):032x}" for text in row], "S32") for split, row in texts.items()}
    found = find_duplicates(hashes, {split: np.array(labels) for split, labels in given.items()})
    assert found.removed == {
        "validation_in_test": 1,  # b
        "train_in_held_out": 3,  # a, c, d
        "train_conflicting": 3,  # f
        "train_repeated": 2,  # e, and g without a label
    }
    assert found.repeated == {"test": 1, "validation": 2}
    assert found.conflicting == {"test": 2, "validation": 0}
    assert np.flatnonzero(found.keep["train"]).tolist() == [3, 9]


def test_a_hash_is_of_text_and_pair() -> None:
    table = pa.table({"text": ["a", "ab", "a"], "text_pair": ["bc", "c", "bc"]})
    table = table.cast(pa.schema([("text", pa.large_string()), ("text_pair", pa.large_string())]))
    first, second, third = row_hashes(table).tolist()
    assert first == third != second
    assert row_hashes(table.slice(1, 1)).tolist() == [second]
    assert row_hashes(table.select(["text"])).tolist()[0] not in (first, second)
