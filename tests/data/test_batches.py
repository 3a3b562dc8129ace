"""The batch plan: a pure function that loses and doubles no row, groups by length and spreads labelled rows."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raydistill.data.batches import Batch, BatchPlan, epoch_batches, micro_batches, rank_share
from raydistill.tasks import Targets


def make_rows(num_rows: int, num_labeled: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    lengths = random.integers(2, 60, num_rows).astype(np.int32)
    labels = np.full(num_rows, -1)
    labels[random.permutation(num_rows)[:num_labeled]] = 0
    return lengths, labels


@given(
    num_rows=st.integers(1, 400),
    share=st.floats(0, 1),
    size=st.integers(1, 40),
    seed=st.integers(0, 5),
    epoch=st.integers(0, 3),
)
@settings(max_examples=60)
def test_every_row_once_and_only_the_last_batch_is_short(num_rows, share, size, seed, epoch):
    lengths, labels = make_rows(num_rows, int(share * num_rows), seed)
    rows = np.arange(num_rows)
    batches = epoch_batches(rows, lengths, labels >= 0, seed=seed, epoch=epoch, global_batch_size=size)
    assert sorted(np.concatenate(batches)) == list(range(num_rows))
    assert all(len(batch) == size for batch in batches[:-1])
    assert len(batches) == -(-num_rows // size)


def test_plan_depends_on_seed_and_epoch_only():
    lengths, labels = make_rows(300, 100)

    def plan(seed, epoch):
        rows = np.arange(300)
        batches = epoch_batches(rows, lengths, labels >= 0, seed=seed, epoch=epoch, global_batch_size=16)
        return [batch.tolist() for batch in batches]

    assert plan(1, 2) == plan(1, 2)
    assert plan(1, 2) != plan(1, 3)
    assert plan(1, 2) != plan(2, 2)


def test_labeled_rows_are_spread_evenly():
    lengths, labels = make_rows(3200, 320)
    batches = epoch_batches(np.arange(3200), lengths, labels >= 0, seed=0, epoch=0, global_batch_size=32)
    counts = np.array([(labels[batch] >= 0).sum() for batch in batches])
    # 3.2 a batch on average; independent draws would scatter with a standard deviation of 1.7.
    assert counts.min() >= 1
    assert counts.std() < 1.0
    lengths, labels = make_rows(3 * 32 * 32, 3 * 32)  # three windows, and a labelled row for each batch of each
    batches = epoch_batches(np.arange(len(labels)), lengths, labels >= 0, seed=0, epoch=0, global_batch_size=32)
    assert {(labels[batch] >= 0).sum() for batch in batches} == {1}


@pytest.mark.parametrize("num_labeled", [1, 9])
def test_labeled_rows_lie_at_even_distances(num_labeled):
    _, labels = make_rows(99, num_labeled)
    (batch,) = epoch_batches(np.arange(99), np.full(99, 5), labels >= 0, seed=0, epoch=0, global_batch_size=99)
    distance = 99 / num_labeled
    assert np.flatnonzero(labels[batch] >= 0).tolist() == [int(distance * (k + 0.5)) for k in range(num_labeled)]


def test_other_rows_share_a_batch_in_every_epoch():
    """The plan shuffles rows, not batches alone."""
    lengths, labels = np.full(256, 5), np.arange(256) % 4 - 1
    epochs = [epoch_batches(np.arange(256), lengths, labels >= 0, seed=0, epoch=e, global_batch_size=8) for e in (0, 1)]
    first, second = ({frozenset(batch.tolist()) for batch in epoch} for epoch in epochs)
    assert not first & second
    assert np.mean([max(batch) - min(batch) for batch in first]) > 128  # 8 rows at random span 199 of 256


def test_a_plan_is_the_same_on_every_machine_and_in_every_version():
    """Checkpoints are resumed by it. Many rows tie here, and a sort that is not stable orders them as the CPU likes."""
    lengths, labels = np.arange(48) % 2 + 3, np.where(np.arange(48) % 4, -1, 0)
    batches = epoch_batches(np.arange(48), lengths, labels >= 0, seed=1, epoch=2, global_batch_size=12)
    assert [batch.tolist() for batch in batches] == [
        [34, 12, 30, 42, 22, 40, 14, 10, 1, 8, 23, 37],
        [38, 36, 6, 2, 11, 28, 7, 39, 29, 44, 33, 43],
        [26, 20, 35, 41, 3, 16, 17, 25, 19, 24, 45, 27],
        [18, 4, 46, 21, 31, 32, 9, 13, 5, 0, 15, 47],
    ]


def test_a_plan_counts_steps_over_all_epochs():
    lengths, labels = make_rows(50, 10)
    plan, rows = BatchPlan(np.arange(50), lengths, labels >= 0, seed=3, global_batch_size=8), np.arange(50)
    epochs = [epoch_batches(rows, lengths, labels >= 0, seed=3, epoch=e, global_batch_size=8) for e in range(3)]
    for step in (7, 13, 14, 20, 0):  # 7 steps an epoch
        assert plan.batch(step).tolist() == epochs[step // 7][step % 7].tolist()
    assert plan.batch(0) is plan.batch(0)  # cut once an epoch, not once a step


def test_rows_of_like_length_share_a_batch():
    lengths, labels = make_rows(3200, 1600)
    batches = epoch_batches(np.arange(3200), lengths, labels >= 0, seed=0, epoch=0, global_batch_size=32)
    real = lengths.sum()
    padded = sum(lengths[batch].max() * len(batch) for batch in batches)
    shuffled = np.random.default_rng(0).permutation(3200).reshape(-1, 32)
    assert real / padded > 0.93
    assert real / sum(lengths[batch].max() * 32 for batch in shuffled) < 0.6


@given(num_rows=st.integers(0, 65), world=st.integers(1, 5), group=st.integers(1, 5), budget=st.integers(1, 500))
@settings(max_examples=80)
def test_ranks_and_micro_batches_split_no_group(num_rows, world, group, budget):
    lengths, _ = make_rows(max(num_rows, 1), 0)
    batch = np.random.default_rng(1).permutation(num_rows)
    shares = [rank_share(batch, rank, world, group) for rank in range(world)]
    assert np.concatenate(shares).tolist() == batch.tolist()
    parts = [part for share in shares for part in micro_batches(share, lengths, tokens=budget, group_size=group)]
    assert [row for part in parts for row in part] == batch.tolist()
    position = {row: i for i, row in enumerate(batch)}
    starts = [position[part[0]] for part in parts]
    assert all(start % group == 0 for start in starts)
    for part in parts:
        assert len(part) <= group or lengths[part].max() * len(part) <= budget
    for share in shares:  # and a part ends only where one more group would not fit
        for part, following in pairwise(micro_batches(share, lengths, tokens=budget, group_size=group)):
            longer = [*part, *following[:group]]
            assert lengths[longer].max() * len(longer) > budget


def test_shares_differ_by_at_most_one_group():
    sizes = [len(rank_share(np.arange(32), rank, 3)) for rank in range(3)]
    assert sum(sizes) == 32
    assert max(sizes) - min(sizes) <= 1


def test_rows_are_cut_one_by_one_where_no_loss_compares_them():
    assert [part.tolist() for part in micro_batches(np.arange(3), np.full(3, 9), tokens=1)] == [[0], [1], [2]]


def test_counts_of_a_batch():
    batch = Batch(np.array([3, 4]), np.array([5, 7]), Targets(np.array([0, 2]), np.array([False, True])))
    assert (batch.num_rows, batch.num_tokens, batch.num_labeled) == (2, 12, 1)


@pytest.mark.parametrize("labeled", [0, 1, 64])
def test_any_number_of_labeled_rows(labeled):
    lengths, labels = make_rows(64, labeled)
    batches = epoch_batches(np.arange(64), lengths, labels >= 0, seed=0, epoch=0, global_batch_size=16)
    assert sum((labels[batch] >= 0).sum() for batch in batches) == labeled
