"""Sentence embeddings: a vector for each text, by whose cosine texts are compared.

Texts alone are enough: a student learns its teacher's vectors, and on held-out rows it is measured by how its vectors
lie to each other beside the teacher's. Pairs are read one text at a time: with scores they also give the task's own
loss and rank correlations, without scores they are queries with their documents.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa

from raydistill.config import tasks as config
from raydistill.errors import ConfigError, DataError
from raydistill.models.head import EMBEDDING, EMBEDDING_FIELD, Head
from raydistill.tasks.base import Read, Task
from raydistill.tasks.embeddings import reading
from raydistill.tasks.embeddings.reading import FIRST, KNOWN, SCORE, SECOND
from raydistill.tasks.embeddings.scoring import MAX_TEXTS, EmbeddingScores, apart, beside, cosine_of_pairs
from raydistill.tasks.numbers import group_means, tenths
from raydistill.tasks.targets import Array, Targets

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Embeddings"]

FEWEST = 4
"""Texts of which one has neighbours to be ranked."""
MAX_DIGITS = 6
BESIDE = (
    *("similarity_spearman", "neighbor_recall_1", "neighbor_recall_10", "cosine"),
    *("teacher_ndcg_10", "teacher_recall_10"),
)
"""Metrics that need the teacher's vectors of the rows."""
SCORED = ("spearman", "pearson")
RETRIEVAL = ("ndcg_10", "recall_1", "recall_10", "teacher_ndcg_10", "teacher_recall_10")
"""Metrics of pairs with scores, and of pairs without."""


class Embeddings(Task):
    """Targets are a score and a number for each text, and of held-out rows the teacher's vectors, (N, 3 + …), see
    ``reading``; outputs are vectors (N, C), or of rows of two texts both, (N, 2 C).

    ``pooling``: None for the model's own; ``scores``: least and greatest score of a pair, None where pairs have none;
    ``pairs``: whether rows have two texts, None where only a model is known.
    """

    type = "embeddings"
    kind = "vector"
    Settings = config.Embeddings
    problem_type = None
    head_kind = EMBEDDING
    needs_labels = False
    reads_apart = True
    is_taught = True
    text_columns = ("query", "anchor")
    label_columns = ("score", "similarity_score", "similarity", "label")
    pipeline_tag = "sentence-similarity"
    disagreeing = "pairs of test texts whose similarity moved most"
    library = "sentence-transformers"
    about = "sentence encoder"
    limit = "Its vectors are compared by their cosine; they mean nothing beside those of another model."
    guessing = "no better than vectors in which no text is nearer than another"
    split_by = ("texts", "text", "rows")
    strata_words = "ranges of scores"
    joined_words = "their score is the mean"
    outputs = ()

    def __init__(
        self,
        pooling: str | None = None,
        scores: Sequence[float] | None = None,
        pairs: bool | None = None,
        outputs: Sequence[str] = (),
    ) -> None:
        self.pooling, self.scores_range, self.pairs = pooling, tuple(scores) if scores else None, pairs

    @property
    def head(self) -> Head:
        return Head((), None, kind=EMBEDDING, embedding={"pooling": self.pooling})

    @property
    def shown_metrics(self) -> tuple[str, ...]:
        """Of queries with documents those of what is found lead: a student may find as much in another order of all
        else. Where it is not known what rows are, what they do not define is left out by whoever has them."""
        pairs, scored = self.pairs, self.scores_range is not None
        hidden = {
            *((*SCORED, *RETRIEVAL) if pairs is False else ()),
            *(SCORED if pairs and not scored else RETRIEVAL if pairs else ()),
        }
        return tuple(name for name in dict.fromkeys((*RETRIEVAL, *self.Settings.metrics)) if name not in hidden)

    def undefined_by(self, values: Array, wanted: Collection[str] | None) -> frozenset[str]:
        """Those of other rows, and where the teacher's vectors are not known, those beside them."""
        lost = {*self.Settings.metrics} - {*self.shown_metrics}
        return frozenset(lost | ({*BESIDE} if values.shape[1] == KNOWN else set()))

    @classmethod
    def aligned(
        cls, settings: Any, columns: Mapping[str, pa.ChunkedArray], where: str, names: Sequence[str] | None
    ) -> Mapping[str, pa.ChunkedArray]:
        return reading.aligned(columns, where)

    @classmethod
    def column(cls, settings: Any, column: pa.ChunkedArray, what: str, names: Sequence[str] | None) -> pa.ChunkedArray:
        return column.cast(reading.FORM)

    @classmethod
    def is_target(cls, cells: Sequence[Any]) -> bool:
        return False

    @classmethod
    def is_told_by(cls, chosen: Mapping[str, str], cells: Mapping[str, Sequence[Any]]) -> bool:
        """Queries with documents by their names, without a label or with a score."""
        names = (chosen["text"].lower(), chosen.get("text_pair", "").lower())
        return names in (("query", "document"), ("anchor", "positive")) and chosen.get("label", "").lower() != "label"

    @classmethod
    def read(
        cls, settings: config.Embeddings, columns: Mapping[str, pa.ChunkedArray], names: tuple[str, ...] | None
    ) -> Read:
        scored = reading.has_scores(columns["train"])
        targets = {split: reading.targets_of(column, scored) for split, column in columns.items()}
        train = targets["train"]
        known = train.values[train.labeled, SCORE] if scored else np.zeros(0)
        if scored and known.min() == known.max():
            raise DataError(
                f"All scores of the training pairs are {known[0]:g}. Name another column: data.columns.label, or leave "
                "it out, and pairs are queries with their documents."
            )
        pooling = None if settings.pooling == "auto" else settings.pooling
        pairs = bool((train.values[:, SECOND] >= 0).any())
        return Read(cls(pooling, (known.min(), known.max()) if scored else None, pairs), targets)

    def read_for(self, column: pa.ChunkedArray, names: Sequence[str] | None) -> tuple[Targets, list[str]]:
        return reading.targets_of(column, reading.has_scores(column)), []

    @classmethod
    def of_model(cls, outputs: tuple[str, ...], settings: Mapping[str, Any]) -> Self:
        return cls(settings[EMBEDDING_FIELD]["pooling"])

    def facts(self) -> dict[str, Any]:
        scores = None if self.scores_range is None else [float(value) for value in self.scores_range]
        return {"type": self.type, "pooling": self.pooling, "scores": scores, "pairs": self.pairs}

    def reordered(self, order: Sequence[int]) -> Self:
        return self

    def strata(self, targets: Targets) -> Array:
        """Tenths of the scored pairs by their score; one group of rows without."""
        found = np.where(targets.labeled, 0, -1)
        if self.scores_range is not None:
            found[targets.labeled] = tenths(targets.values[targets.labeled, SCORE])
        return found

    def joined(self, targets: Targets, groups: Array) -> Targets:
        """With the mean of the scores of a group, where pairs have scores."""
        if self.scores_range is None:
            return targets
        values, known = targets.values.copy(), targets.labeled
        values[known, SCORE] = group_means(values[known, SCORE], groups[known])
        return Targets(values, known)

    def scaled(self, train: Targets) -> Self:
        if self.scores_range is None:
            return self
        known = train.values[train.labeled, SCORE]
        return type(self)(self.pooling, (known.min(), known.max()), self.pairs)

    def check(self, train: Targets, notes: Sequence[str]) -> None:
        if self.scores_range is not None and len(np.unique(train.values[train.labeled, SCORE])) < 2:
            raise DataError("No two different scores are left in training. " + " ".join(notes))
        if len(np.unique(train.values[:, FIRST])) < FEWEST:
            raise DataError(f"Fewer than {FEWEST} different texts are left in training. " + " ".join(notes))

    def blank(self, num_rows: int) -> Targets:
        return Targets(np.zeros((num_rows, KNOWN)), np.ones(num_rows, bool))

    def summary(self, train: Targets) -> str:
        if not self.pairs:
            return f"{len(np.unique(train.values[:, FIRST])):,} texts"
        if self.scores_range is None:
            queries, documents = (len(np.unique(train.values[:, i])) for i in (FIRST, SECOND))
            return f"{queries:,} queries and {documents:,} documents"
        known = train.values[train.labeled, SCORE]
        return f"{len(known):,} pairs with scores from {known.min():g} to {known.max():g}"

    # learning

    @property
    def has_loss(self) -> bool:
        return self.scores_range is not None

    def check_loss(self) -> None:
        if self.scores_range is None:
            raise ConfigError(
                "The loss of the task (type: task, teacher.finetune) compares the cosine of a pair with its score, and "
                "the rows have no scores. Leave it out, or name the columns: data.columns.text, text_pair and label."
            )

    def taught(self, targets: Targets, outputs: Array) -> Targets:
        return Targets(np.concatenate([targets.values[:, :KNOWN], outputs], axis=1), targets.labeled)

    def loss_values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Squared difference of a pair's cosine from its score, whose range is taken as 0 to 1: Reimers & Gurevych
        2019, https://arxiv.org/abs/1908.10084."""
        from torch.nn.functional import cosine_similarity

        assert self.scores_range is not None
        low, high = self.scores_range
        first, second = outputs.float().chunk(2, dim=1)
        return (cosine_similarity(first, second) - ((targets[:, SCORE] - low) / (high - low)).float()).square()

    # scoring

    def scores(self, outputs: Array, targets: Array) -> EmbeddingScores:
        return EmbeddingScores(outputs, targets)

    def unit(self, outputs: Array) -> float:
        """The outputs' own deviation."""
        return float(np.std(outputs)) or 1.0

    def agreement(self, a: Array, b: Array, other: Task | None = None) -> float:
        """Mean rank correlation of the similarities of a row with all others."""
        if len(a) < FEWEST:
            return 1.0
        return float(beside(_units(a), _units(b), np.arange(len(a)))["similarity_spearman"].mean())

    def disagreements(self, a: Array, b: Array, other: Task | None = None) -> Array:
        """How far the cosine of a pair moved; of single texts that to the text where it moved most, each pair once."""
        if self.pairs:
            return np.abs(_cosine_of_pairs(a) - _cosine_of_pairs(b))
        partner, moved = _moved(a, b, np.arange(len(a)))
        again = (partner < np.arange(len(a))) & (partner[partner] == np.arange(len(a)))
        return np.where(again, 0.0, moved)

    def counterparts(self, a: Array, b: Array, rows: Array) -> Array | None:
        return None if self.pairs else _moved(a, b, rows)[0]

    def errors(self, outputs: Array, targets: Array) -> Array:
        """How far the rank of a scored pair's cosine is from that of its score, as a share of all."""
        if self.scores_range is None or not np.isfinite(targets[:, SCORE]).all():
            return np.zeros(len(outputs))
        from scipy.stats import rankdata

        ranks = [rankdata(side) / len(outputs) for side in (_cosine_of_pairs(outputs), targets[:, SCORE])]
        return np.abs(ranks[0] - ranks[1])

    # answering

    def loading_code(self, model: str, max_length: int) -> str:
        return (
            "from sentence_transformers import SentenceTransformer\n"
            f"model = SentenceTransformer({model})  # cuts texts at {max_length} tokens\n"
            'print(model.encode(["…"]))'
        )

    def answers(self, outputs: Array) -> list[dict[str, Any]]:
        return [{"vector": vector} for vector in outputs.astype(float).round(MAX_DIGITS).tolist()]

    @property
    def answer_columns(self) -> tuple[str, ...]:
        return ("vector",)

    def spoken(self, outputs: Array) -> list[tuple[str, float | None]]:
        """The cosine of the two texts of each row."""
        return [(f"{value:.3f}", None) for value in _cosine_of_pairs(outputs)]

    def spoken_target(self, target: Any) -> str:
        return f"{float(target[SCORE]):.4g}" if np.isfinite(target[SCORE]) else "-"


def _units(vectors: Array) -> Array:
    return apart(vectors, 1)[:, 0]


def _cosine_of_pairs(outputs: Array) -> Array:
    """Of rows (N, 2 C), (N,)."""
    return cosine_of_pairs(apart(outputs, 2))


def _moved(a: Array, b: Array, rows: Array) -> tuple[Array, Array]:
    """Of each of ``rows`` the other row to which its cosine differs most between vectors (N, C) and (N, T), and by how
    much; of more than MAX_TEXTS rows the first ones are looked at."""
    own, others = (_units(side) for side in (a, b))
    partner, moved = np.zeros(len(rows), int), np.zeros(len(rows))
    for i, row in enumerate(rows):
        differences = np.abs(own[:MAX_TEXTS] @ own[row] - others[:MAX_TEXTS] @ others[row])
        partner[i] = differences.argmax()
        moved[i] = differences[partner[i]]
    return partner, moved
