"""What vectors are worth: how they lie to each other beside the teacher's, scored pairs, documents of queries."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from raydistill.errors import DataError
from raydistill.tasks.embeddings.reading import FIRST, KNOWN, SCORE, SECOND
from raydistill.tasks.scores import Floor, Scores, fit_rows
from raydistill.tasks.statistics import weighted_pearson, weighted_ranks
from raydistill.tasks.targets import Array

MAX_TEXTS = 2000
"""Texts among which neighbours are sought, evenly out of all: 1,000 texts among 2,000 take about 0.5 s."""
BLOCK_ROWS = 256
DEPTH = 10
"""Neighbours, or documents, that are looked at."""


class EmbeddingScores(Scores):
    """A model's vectors of rows, (N, C) of one text each or (N, 2 C) of two, and targets (N, 3) or (N, 3 + teacher's).

    All but the correlations of scores are means over rows of a figure of each row: of a row's first text where it has
    two. What is not defined on these rows is NaN: similarities without the teacher's vectors, correlations without
    scores, retrieval without pairs, or with scores.
    """

    def __init__(self, outputs: Array, targets: Array) -> None:
        fit_rows(outputs, targets)
        self.num_rows = len(targets)
        self.score, ids = targets[:, SCORE], targets[:, [FIRST, SECOND]]
        self.ids = ids if (ids[:, 1] >= 0).all() else ids[:, :1]
        self.are_pairs, self.is_scored = self.ids.shape[1] == 2, bool(np.isfinite(self.score).all())
        self.texts = apart(outputs, self.ids.shape[1])
        known = targets[:, KNOWN:]
        self.teacher = apart(known.astype(np.float32), self.ids.shape[1]) if known.shape[1] else None
        if self.teacher is not None and not np.isfinite(known).all():
            raise DataError("The teacher's vectors of these rows are not known. Evaluate the model on its run's rows.")
        if self.teacher is None and not self.are_pairs:
            raise DataError(
                "Texts alone say nothing of what their vectors should be: the teacher's are known for the rows of a "
                "model's own run only. Take those rows (without --data), or pairs: with a score, or queries with their "
                "documents."
            )

    @cached_property
    def cosine(self) -> Array:
        """Of the two texts of each row, (N,)."""
        return cosine_of_pairs(self.texts)

    @cached_property
    def by_row(self) -> dict[str, Array]:
        """Metrics that are means: their figure for each row, (N,)."""
        nothing = np.full(self.num_rows, np.nan)
        found: dict[str, Array] = {}
        found |= dict.fromkeys(("similarity_spearman", "neighbor_recall_1", "neighbor_recall_10", "cosine"), nothing)
        found |= dict.fromkeys(("ndcg_10", "recall_1", "recall_10", "teacher_ndcg_10", "teacher_recall_10"), nothing)
        if self.teacher is not None:
            found |= beside(self.texts[:, 0], self.teacher[:, 0], self.ids[:, 0])
            if self.texts.shape == self.teacher.shape:
                found["cosine"] = (self.texts * self.teacher).sum(-1).mean(1)
        if self.are_pairs and not self.is_scored:
            found |= retrieval(self.texts[:, 0], self.texts[:, 1], self.ids)
            if self.teacher is not None and self.texts.shape == self.teacher.shape:
                mixed = retrieval(self.texts[:, 0], self.teacher[:, 1], self.ids)
                found |= {f"teacher_{name}": mixed[name] for name in ("ndcg_10", "recall_10")}
        return found

    def weighted(self, weights: Array, wanted: Collection[str] | None = None) -> dict[str, Array]:
        total, nothing = weights.sum(axis=0, dtype=np.float64), np.full(weights.shape[1], np.nan)
        values = {name: row @ weights / total for name, row in self.by_row.items()}
        values |= {"spearman": nothing, "pearson": nothing}
        if self.is_scored and self.are_pairs:
            cosine = self.cosine.astype(np.float64)
            values["pearson"] = np.nan_to_num(weighted_pearson(cosine, self.score, weights))
            if wanted is None or "spearman" in wanted:
                own, wanted_ranks = (weighted_ranks(side, weights) for side in (cosine, self.score))
                values["spearman"] = np.nan_to_num(weighted_pearson(own, wanted_ranks, weights))
        return values

    def floor(self) -> Floor:
        metric = next(
            (m for m in ("similarity_spearman", "spearman", "ndcg_10") if not np.isnan(self.values[m])), "cosine"
        )
        spread = np.ptp(self.texts.reshape(-1, self.texts.shape[2]), axis=0)
        constant = "one vector" if not spread.any() else None
        return Floor(metric, 0.0, "vectors in which no text is nearer than another", constant, (metric, 0.0))

    def details(self) -> dict[str, Any]:
        """``scatter`` of scored pairs: score and cosine of up to 500, over the whole range of scores."""
        if not (self.is_scored and self.are_pairs):
            return {}
        order = np.argsort(self.score, kind="stable")
        rows = order[np.linspace(0, len(order) - 1, min(500, len(order))).astype(int)]
        return {"scatter": np.stack([self.score[rows], self.cosine[rows]], axis=1).tolist()}


def apart(vectors: Array, num_texts: int) -> Array:
    """Rows (N, T C) as vectors of length 1 of each text, (N, T, C) float32."""
    texts = vectors.astype(np.float32).reshape(len(vectors), num_texts, vectors.shape[1] // num_texts)
    return texts / np.maximum(np.linalg.norm(texts, axis=-1, keepdims=True), 1e-12)


def cosine_of_pairs(texts: Array) -> Array:
    """Of the two texts of each row, (N, 2, C) of length 1 -> (N,)."""
    found: Array = (texts[:, 0] * texts[:, 1]).sum(-1)
    return found


def beside(own: Array, teacher: Array, ids: Array) -> dict[str, Array]:
    """How vectors (N, C) and the teacher's (N, T) lie to each other, a figure for each text, (N,).

    ``similarity_spearman``: rank correlation of the similarities of a text with all others; ``neighbor_recall_k``:
    share of its k nearest neighbours by the teacher that are among its k nearest. Equal texts, by ``ids`` (N,), are no
    neighbours of each other. Of more than MAX_TEXTS texts the others are so many of them.
    """
    _, unique = np.unique(ids, return_index=True)
    pool = np.sort(unique)
    pool = pool[np.linspace(0, len(pool) - 1, min(MAX_TEXTS, len(pool))).astype(int)]
    names = ("similarity_spearman", "neighbor_recall_1", "neighbor_recall_10")
    found = {name: np.full(len(own), np.nan) for name in names}
    for rows, known in zip(_blocks(len(own)), ranked(teacher, ids, pool), strict=True):
        values, same = own[rows] @ own[pool].T, ids[rows, None] == ids[None, pool]
        for row, others, theirs in zip(range(rows.start, rows.stop), values, known, strict=False):
            if theirs is None:
                continue
            a = others[~same[row - rows.start]]
            found["similarity_spearman"][row] = _correlation(centered_ranks(a), theirs.ranks)
            for k, near in theirs.near.items():
                found[f"neighbor_recall_{k}"][row] = len(nearest(a, k) & near) / len(near)
    if np.isnan(found["similarity_spearman"]).any():
        raise DataError(f"{len(pool):,} different texts are too few to compare with each other; 4 or more are needed.")
    return found


@dataclass(frozen=True)
class Order:
    """How the texts that a text is compared with lie to it by its teacher."""

    ranks: Array
    """(P,) int16, see ``centered_ranks``."""
    near: dict[int, set[int]]
    """The k nearest, by k."""


Orders = list[Order | None]
"""Of each text of a block; None: too few others."""
KEPT: dict[bytes, list[Orders]] = {}
"""By what they are of: a teacher says the same at every validation. Validation and test rows, the last ones."""
MOST_KEPT, MOST_RANKS = 2, 20_000_000


def ranked(teacher: Array, ids: Array, pool: Array) -> Iterable[Orders]:
    """The orders of texts in blocks; those of few are kept (40 MB at most) for the next model beside this teacher."""

    def blocks() -> Iterator[Orders]:
        for rows in _blocks(len(teacher)):
            same = ids[rows, None] == ids[None, pool]
            lists = (values[~own] for values, own in zip(teacher[rows] @ teacher[pool].T, same, strict=True))
            yield [order_of(values) if len(values) >= 3 else None for values in lists]

    if len(teacher) * len(pool) > MOST_RANKS:
        return blocks()
    key = hashlib.sha256(b"".join(np.ascontiguousarray(part).tobytes() for part in (teacher, ids, pool))).digest()
    if key not in KEPT:
        made = list(blocks())
        for old in list(KEPT)[: max(0, len(KEPT) + 1 - MOST_KEPT)]:
            del KEPT[old]
        KEPT[key] = made
    return KEPT[key]


def order_of(values: Array) -> Order:
    return Order(centered_ranks(values), {k: nearest(values, k) for k in (1, DEPTH)})


def nearest(values: Array, k: int) -> set[int]:
    return set(np.argpartition(-values, min(k, len(values)) - 1)[:k].tolist())


def centered_ranks(values: Array) -> Array:
    """Twice the ranks, equal values sharing theirs, around 0: whole numbers, MAX_TEXTS at most."""
    from scipy.stats import rankdata

    return (2 * rankdata(values) - (len(values) + 1)).astype(np.int16)


def _correlation(a: Array, b: Array) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    size = np.sqrt((a**2).sum() * (b**2).sum())
    return float((a * b).sum() / size) if size else 0.0


def retrieval(queries: Array, documents: Array, ids: Array) -> dict[str, Array]:
    """nDCG@10 and recall of documents for each row's query, (N,), by the cosines of (N, C) with (N, C).

    The documents are all different second texts; relevant to a query are those that stand beside it in any row, by
    ``ids`` (N, 2).
    """
    names, first = np.unique(ids[:, 1], return_index=True)
    pool, place = documents[first], np.searchsorted(names, ids[:, 1])
    relevant: dict[float, set[int]] = {}
    for query, document in zip(ids[:, 0].tolist(), place.tolist(), strict=True):
        relevant.setdefault(query, set()).add(document)
    gains = 1 / np.log2(np.arange(DEPTH) + 2)
    found = {name: np.zeros(len(queries)) for name in ("ndcg_10", "recall_1", "recall_10")}
    for rows in _blocks(len(queries)):
        for row, order in enumerate(highest(queries[rows] @ pool.T, DEPTH), rows.start):
            wanted = sorted(relevant[ids[row, 0]])
            hits = np.isin(order, wanted)
            found["ndcg_10"][row] = gains[: len(hits)][hits].sum() / gains[: len(wanted)].sum()
            found["recall_1"][row] = hits[:1].sum() / len(wanted)
            found["recall_10"][row] = hits.sum() / len(wanted)
    return found


def highest(values: Array, num: int) -> Iterator[Array]:
    """Of each row of (N, P) the places of its ``num`` highest values, the highest first, of equal ones the first.

    256 rows of 100,000 take 0.1 s, 2.4 s if all are sorted.
    """
    import torch

    num = min(num, values.shape[1])
    least = torch.from_numpy(values).topk(num, dim=1).values[:, -1].numpy()
    for row, last in zip(values, least, strict=True):
        places = np.flatnonzero(row >= last)
        yield places[np.argsort(-row[places], kind="stable")[:num]]


def _blocks(num_rows: int) -> Iterator[slice]:
    return (slice(i, i + BLOCK_ROWS) for i in range(0, num_rows, BLOCK_ROWS))
