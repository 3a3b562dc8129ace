"""Which rows go where: exact duplicates, stratified cuts, which labels are kept. Works on hashes and numbers only.

A row's place in a cut depends on its hash and the seed alone, so the order of files does not matter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Hashes = npt.NDArray[np.bytes_]


@dataclass(frozen=True)
class Duplicates:
    """Rows to keep by split; rows removed, by reason; copies that stay in validation and test; how many disagree."""

    keep: dict[str, Mask]
    removed: dict[str, int]
    repeated: dict[str, int]
    conflicting: dict[str, int]


def find_duplicates(hashes: Mapping[str, Hashes], labels: Mapping[str, Ids]) -> Duplicates:
    """Rows to keep so that no text is in two splits and training has each text once; ``labels`` as ``Targets.ids``.

    A text of test is removed from validation and training, one of validation from training. Copies within training
    are kept once, the first labelled one if there is one; where their labels disagree all copies are removed, as
    neither label can be trusted (ratings and answers have been joined before, see ``draft.join_copies``). Copies
    within validation and test are counted but kept: these rows are given.
    """
    keep = {split: np.ones(len(values), bool) for split, values in hashes.items()}
    removed, repeated, disagree = {}, {}, {}
    held_out = [split for split in ("test", "validation") if split in hashes]
    for i, split in enumerate([*held_out, "train"]):
        if i:
            keep[split] = ~np.isin(hashes[split], np.concatenate([hashes[other] for other in held_out[:i]]))
            removed["validation_in_test" if split == "validation" else "train_in_held_out"] = int((~keep[split]).sum())
        rows = np.flatnonzero(keep[split])
        once, conflicting = _keep_once(hashes[split][rows], labels[split][rows])
        if split == "train":
            keep[split][rows[~once]] = False
            removed |= {"train_conflicting": conflicting, "train_repeated": int((~once).sum()) - conflicting}
        else:
            repeated[split] = len(rows) - len(np.unique(hashes[split][rows]))
            disagree[split] = conflicting
    return Duplicates(keep, removed, repeated, disagree)


def _keep_once(hashes: Hashes, labels: Ids) -> tuple[Mask, int]:
    """One row of each hash, the first labelled one before the first; none where labels differ. Number of such rows."""
    _, group = np.unique(hashes, return_inverse=True)
    in_conflict = contradicting(group, labels)
    order = np.lexsort((np.arange(len(group)), labels < 0, group))
    first = np.ones(len(group), bool)
    first[1:] = group[order][1:] != group[order][:-1]
    keep = np.zeros(len(group), bool)
    keep[order[first]] = True
    return keep & ~in_conflict, int(in_conflict.sum())


def contradicting(group: Ids, labels: Ids) -> Mask:
    """Rows (N,) of groups whose labelled rows do not all have one label; groups are numbers from 0."""
    num_groups = int(group.max()) + 1 if len(group) else 0
    low, high = np.full(num_groups, np.iinfo(np.int64).max), np.full(num_groups, -1)
    labeled = labels >= 0
    np.minimum.at(low, group[labeled], labels[labeled])
    np.maximum.at(high, group[labeled], labels[labeled])
    found: Mask = (low < high)[group]
    return found


def allocate(counts: Ids, total: int, low: Ids, high: Ids) -> Ids:
    """``total`` things over classes in proportion to ``counts`` (largest remainder), each within ``low`` and ``high``.

    Less than ``total`` where ``high`` does not allow more, more where ``low`` needs it. Ties go to the larger class.
    """
    share = counts * (total / max(int(counts.sum()), 1))
    quota = np.clip(np.floor(share).astype(np.int64), low, high)
    while quota.sum() < min(total, int(high.sum())):
        gap = np.where(quota < high, share - quota, -np.inf)
        quota[np.lexsort((-counts, -gap))[0]] += 1
    while quota.sum() > max(total, int(low.sum())):
        gap = np.where(quota > low, quota - share, -np.inf)
        quota[np.lexsort((-counts, -gap))[0]] -= 1
    return quota


def cut(strata: Ids, hashes: Hashes, share: float, seed: int, name: str) -> Mask:
    """Rows that form a held-out split: ``share`` of the labelled rows, stratified.

    ``strata``: a group for each row, -1 without a label. At least one row, and at least one row of every group stays.
    Nothing where no group has two rows.
    """
    groups, counts = np.unique(strata[strata >= 0], return_counts=True)
    total = max(1, round(share * int(counts.sum())))
    quota = allocate(counts, total, np.zeros_like(counts), counts - 1)
    return _draw(strata, hashes, groups, quota, f"{seed}:{name}")


def cut_groups(groups: Ids, strata: Ids, hashes: Hashes, share: float, seed: int, name: str) -> Mask:
    """Rows of whole groups (numbers from 0) that have ``share`` of the labelled rows together, at most half of that
    fewer; the smallest group where all are larger than that. Nothing where that cannot be.

    Rows without a label, of which ``strata`` is -1, do not count, but are in their group's place.
    """
    sizes = np.bincount(groups, strata >= 0, int(groups.max(initial=-1)) + 1).astype(np.int64)
    total = max(1, round(share * int(sizes.sum())))
    able = np.flatnonzero(sizes)
    if len(able) < 2:
        return np.zeros(len(groups), bool)
    order = np.lexsort((hashes, groups))
    least = hashes[
        order[np.diff(groups[order], prepend=-1) > 0]
    ]  # of each group, so that the order of rows means nothing
    prefix = hashlib.sha256(f"{seed}:{name}".encode())
    taken, left = np.zeros(len(sizes), bool), total
    for group in sorted(able.tolist(), key=lambda group: _rank(prefix, bytes(least[group]))):
        if sizes[group] <= left:
            taken[group], left = True, left - sizes[group]
    if not taken.any():
        taken[able[np.argmin(sizes[able])]] = True
    elif 2 * left > total:
        taken[:] = False
    found: Mask = taken[groups]
    return found


def joined_by(*ids: Ids) -> Ids:
    """A number from 0 for each row, equal for rows that have one of their ``ids`` (N,) in common, or are linked by rows
    that do; of several columns equal numbers mean one thing."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    first, size = ids[0], int(max(own.max(initial=-1) for own in ids)) + 1
    links = [(first, own) for own in ids[1:]] or [(first, first)]
    rows, columns = (np.concatenate(side) for side in zip(*links, strict=True))
    found: Ids = connected_components(coo_matrix((np.ones(len(rows), bool), (rows, columns)), (size, size)), False)[1]
    return np.unique(found[first], return_inverse=True)[1].astype(np.int64)


def keep_labels(strata: Ids, hashes: Hashes, num_labels: int, seed: int) -> Mask:
    """``num_labels`` labelled rows, stratified, at least one of each group."""
    groups, counts = np.unique(strata[strata >= 0], return_counts=True)
    quota = allocate(counts, num_labels, np.ones_like(counts), counts)
    return _draw(strata, hashes, groups, quota, f"{seed}:max_labeled")


def _draw(strata: Ids, hashes: Hashes, groups: Ids, quota: Ids, salt: str) -> Mask:
    drawn = np.zeros(len(strata), bool)
    prefix = hashlib.sha256(salt.encode())
    for stratum, number in zip(groups.tolist(), quota.tolist(), strict=True):
        rows = np.flatnonzero(strata == stratum)
        drawn[sorted(rows.tolist(), key=lambda row: _rank(prefix, bytes(hashes[row])))[:number]] = True
    return drawn


def _rank(prefix: hashlib._Hash, row_hash: bytes) -> bytes:
    ranked = prefix.copy()
    ranked.update(row_hash)
    return ranked.digest()
