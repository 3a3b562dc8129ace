"""Masked language modelling: guess the tokens of a text that are hidden. Raw text is enough.

An example is a document, a row a piece of it (``encoding``). The rows of a tokens artefact have some tokens hidden,
always the same ones (``masks``): by these models are recorded and measured. A student, and a teacher that is trained
further, see others at every epoch.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa

from raydistill.config import tasks as config
from raydistill.errors import DataError
from raydistill.models.head import MASKED, Head
from raydistill.models.signals import ANSWERS
from raydistill.tasks.base import Read, Task
from raydistill.tasks.masked_language_modeling.encoding import PLACE, arrow_columns, pieces_of
from raydistill.tasks.masked_language_modeling.masks import Masks
from raydistill.tasks.masked_language_modeling.scoring import RIGHT_LOG, TOP, TOP_LOG, MaskedScores
from raydistill.tasks.targets import Array, Ragged, Targets, Values, concatenated

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["MaskedLanguageModeling"]

FEWEST = 3
"""Documents: training, validation and test get one each."""
SHOWN = 8
"""Hidden tokens of a document that are told of."""
NUM_WORDS = 5
"""Likeliest words for a mask token that ``predict`` tells of."""
DOCUMENTS = 1000
"""Read from storage at a time."""
SETTINGS = "masked_language_modeling"
"""Of a model's config.json."""


class MaskedLanguageModeling(Task):
    """Targets of rows are begin and end in the document and id of each hidden token, Ragged (M, 3); those of a document
    nothing, (N,). Outputs are what ``models.signals.ANSWERS`` has of each hidden token, Ragged (M, 3).

    ``share``: of tokens that are hidden; ``copies``: of each training row, with other tokens hidden; ``top_k``: of the
    likeliest tokens, which a record of the teacher keeps, None where there is none.
    """

    type = "masked_language_modeling"
    kind = "categorical"
    Settings = config.MaskedLanguageModeling
    problem_type = None
    head_kind = MASKED
    has_units = True
    needs_labels = False
    reads_documents = True
    usual_length = 128
    answer_signal = ANSWERS
    label_columns = ()
    pipeline_tag = "fill-mask"
    pipeline_note = "Write the tokenizer's mask token, such as [MASK], where a token is to be guessed."
    about = "masked language model"
    new_head = "The encoder came without a head that guesses tokens; the new one has the embeddings for its decoder."
    limit = "It guesses hidden tokens from the text around them; for a task of its own it is trained further."
    guessing = "no better than guessing the most frequent token"
    strata_words = "documents"
    counted = "hidden tokens"
    outputs = ()

    def __init__(
        self, share: float = 0.15, copies: int = 1, top_k: int | None = None, outputs: Sequence[str] = ()
    ) -> None:
        self.share, self.copies, self.top_k = share, copies, top_k
        self._tokenizer: Any = None

    @property
    def head(self) -> Head:
        return Head((), None, kind=MASKED)

    @classmethod
    def aligned(
        cls, settings: Any, columns: Mapping[str, pa.ChunkedArray], where: str, names: Sequence[str] | None
    ) -> Mapping[str, pa.ChunkedArray]:
        """The text alone: whatever else a table has says nothing here."""
        return {"text": columns["text"]}

    @classmethod
    def column(cls, settings: Any, column: pa.ChunkedArray, what: str, names: Sequence[str] | None) -> pa.ChunkedArray:
        return column

    @classmethod
    def is_target(cls, cells: Sequence[Any]) -> bool:
        return False

    @classmethod
    def read(
        cls,
        settings: config.MaskedLanguageModeling,
        columns: Mapping[str, pa.ChunkedArray],
        names: tuple[str, ...] | None,
    ) -> Read:
        task = cls(settings.masked_share, settings.copies, settings.top_k)
        return Read(task, {split: documents(len(column)) for split, column in columns.items()})

    def read_for(self, column: pa.ChunkedArray, names: Sequence[str] | None) -> tuple[Targets, list[str]]:
        return documents(len(column)), []

    @classmethod
    def of_model(cls, outputs: tuple[str, ...], settings: Mapping[str, Any]) -> Self:
        return cls(**dict(settings.get(SETTINGS) or {}))

    def facts(self) -> dict[str, Any]:
        return {"type": self.type, "share": self.share, "copies": self.copies, "top_k": self.top_k}

    def model_settings(self) -> dict[str, Any]:
        return {SETTINGS: {"share": self.share}}

    def reordered(self, order: Sequence[int]) -> Self:
        return self

    def check(self, train: Targets, notes: Sequence[str]) -> None:
        if len(train) < FEWEST:
            raise DataError(
                f"Fewer than {FEWEST} different documents are left in training. In a folder each file is a document, "
                "in a .txt file each paragraph (or each line, where no line is empty), in a table each row. "
                + " ".join(notes)
            )

    def advised_metric(self, counts: Mapping[str, int]) -> tuple[str, str] | None:
        return "perplexity", "it hears all that a model says of a token, not the likeliest one alone"

    def blank(self, num_rows: int) -> Targets:
        """As many hidden tokens as rows of the usual length have."""
        lengths = np.full(num_rows, max(1, round(self.share * self.usual_length)))
        return Targets(Ragged(np.zeros((int(lengths.sum()), 3), PLACE), lengths), np.ones(num_rows, bool))

    def summary(self, train: Targets) -> str:
        return f"{len(train):,} documents"

    # rows

    def masks(self, tokenizer: Any) -> Masks:
        return Masks.of(tokenizer, self.share)

    def units(self, texts: Sequence[Any], values: Values = None) -> Values:
        """Of texts that come without targets: none are hidden, some are mask tokens already."""
        return Ragged(np.zeros((0, 3), PLACE), np.zeros(len(texts), np.int64)) if values is None else values

    def encoded(
        self, tokenizer: Any, texts: Sequence[Sequence[str]], values: Values, max_length: int, pad: int
    ) -> dict[str, pa.Array]:
        """Rows in which tokens are hidden; of ``units`` of texts without targets those that have mask tokens."""
        masks = self.masks(tokenizer)
        parts = [
            pieces.given(masks) if isinstance(values, Ragged) else pieces.columns(masks)
            for pieces in pieces_of(tokenizer, texts[0], max_length)
        ]
        return arrow_columns({name: concatenated([part[name] for part in parts]) for name in parts[0]})

    def encoded_in_parts(
        self, tokenizer: Any, texts: pa.Array, max_length: int, is_train: bool
    ) -> Iterator[dict[str, Values]]:
        masks, copies = self.masks(tokenizer), self.copies if is_train else 1
        for start in range(0, len(texts), DOCUMENTS):
            for pieces in pieces_of(tokenizer, texts.slice(start, DOCUMENTS).to_pylist(), max_length):
                part = pieces.columns(masks, copies)
                yield {**part, "example_id": start + part["example_id"]}

    # learning

    def loss_values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross entropy of hidden tokens, (M, vocabulary) against (M, 3) -> (M,)."""
        from torch.nn.functional import cross_entropy

        return cross_entropy(outputs.float(), targets[:, -1].long(), reduction="none")

    # scoring

    def scores(self, outputs: Ragged, targets: Values) -> MaskedScores:
        return MaskedScores(outputs, targets)

    def kept(self, logits: Array, targets: Array) -> Array:
        """As ``ANSWERS``, with the ``NUM_WORDS`` likeliest tokens instead of one and the right one's id last."""
        best = np.sort(np.argpartition(-logits, NUM_WORDS, axis=1)[:, :NUM_WORDS], axis=1)
        order = np.argsort(-np.take_along_axis(logits, best, axis=1), axis=1, kind="stable")
        top = np.take_along_axis(best, order, axis=1)
        shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
        logs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        right, rows = targets[:, -1], np.arange(len(logits))[:, None]
        told = np.stack([top, logs[rows, top]], axis=2).reshape(-1, 2 * NUM_WORDS)
        known = np.where(right >= 0, logs[rows[:, 0], right], 0.0)
        return np.column_stack([known, told, right]).astype(np.float32)

    def measured(self, outputs: Values) -> Values:
        """The log-probabilities of the right token and of the likeliest one."""
        return outputs.flat[:, [RIGHT_LOG, TOP_LOG]]

    def agreement(self, a: Ragged, b: Ragged, other: Task | None = None) -> float:
        """Share of the hidden tokens of which two models find the same one likeliest."""
        return float((a.flat[:, TOP] == b.flat[:, TOP]).mean()) if len(a.flat) else 1.0

    def disagreements(self, a: Ragged, b: Ragged, other: Task | None = None) -> Array:
        """Of the hidden token of a document where both are surest of different ones, the smaller probability."""
        sure = np.exp(np.minimum(a.flat[:, TOP_LOG], b.flat[:, TOP_LOG]))
        return a.largest(np.where(a.flat[:, TOP] != b.flat[:, TOP], sure, 0.0))

    def errors(self, outputs: Ragged, targets: Ragged) -> Array:
        wrong = outputs.flat[:, TOP] != targets.flat[:, -1]
        return outputs.largest(np.where(wrong, np.exp(outputs.flat[:, TOP_LOG]), 0.0))

    # answering

    def with_words(self, tokenizer: Any) -> Self:
        bound = copy.copy(self)
        bound._tokenizer = tokenizer
        return bound

    def _word(self, token: float) -> str:
        """A token in words."""
        if self._tokenizer is None:
            return f"token {int(token)}"
        from raydistill.models.scorer import word_of

        return word_of(self._tokenizer, int(token))

    def pipeline_arguments(self, max_length: int) -> list[str]:
        return ['tokenizer_kwargs={"truncation": True}']

    def answers(self, outputs: Ragged) -> list[dict[str, Any]]:
        """``words``: of each mask token of a text the likeliest words, {word, score} each, the likeliest first."""
        told = []
        for row in range(len(outputs)):
            pairs = outputs[row][:, TOP : TOP + 2 * NUM_WORDS].reshape(-1, NUM_WORDS, 2)
            words = [
                [{"word": self._word(token), "score": float(np.exp(log))} for token, log in unit] for unit in pairs
            ]
            told.append({"words": words})
        return told

    @property
    def answer_columns(self) -> tuple[str, ...]:
        return ("words",)

    def spoken(self, outputs: Ragged) -> list[tuple[str, float | None]]:
        """The likeliest words for the first hidden tokens of a document, and how sure of them it is in the mean."""
        told: list[tuple[str, float | None]] = []
        for row in range(len(outputs)):
            units = outputs[row][:SHOWN]
            sure = float(np.exp(units[:, TOP_LOG]).mean()) if len(units) else None
            told.append((self._listed(units[:, TOP], len(outputs[row])), sure))
        return told

    def spoken_target(self, target: Any) -> str:
        return self._listed(target[:SHOWN, -1], len(target))

    def _listed(self, tokens: Array, count: int) -> str:
        return ", ".join(map(self._word, tokens)) + (", …" if count > len(tokens) else "")


def documents(count: int) -> Targets:
    """Targets of documents: they need none."""
    return Targets(np.zeros(count, np.int8), np.ones(count, bool))
