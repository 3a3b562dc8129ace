"""Token classification: a label for each word, and by them entities. A row is a text, which has any number of words.

The first token of a word carries its label, the others are context. A text of more tokens than ``data.max_length`` is
read in windows that overlap; each word is answered in the one that shows most of what is around it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa

from raydistill.config import tasks as config
from raydistill.errors import DataError
from raydistill.models.head import TOKEN
from raydistill.tasks.base import CASES, TYPOS, Read, Task
from raydistill.tasks.rewriting import first_units
from raydistill.tasks.targets import Array, Ragged, Targets, is_string, shown
from raydistill.tasks.text_classification.classes import balanced_weights, class_summary
from raydistill.tasks.text_classification.scoring import mean_logits
from raydistill.tasks.token_classification import reading
from raydistill.tasks.token_classification.decoding import chosen, decode
from raydistill.tasks.token_classification.scoring import EntityScores
from raydistill.tasks.token_classification.words import FINE, WHOLE, WORD_TYPE, Scheme, split

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["TokenClassification"]

OVERLAP = 4
"""Windows overlap by one of so many parts of their length, where nothing is set."""


class TokenClassification(Task):
    """Targets are begin and end in the text and label id of each word, Ragged (M, 3); outputs its logits (M, C).

    ``scheme``: what labels mean, see ``words.Scheme``; ``words``: a pattern that finds words in a
    plain text; ``stride``: tokens by which windows overlap, None for a share of their length; ``transitions``: of a
    CRF, whose outputs are emissions: texts get their likeliest sequence of labels, with the words' marginals.
    """

    type = "token_classification"
    kind = "categorical"
    Settings = config.TokenClassification
    problem_type = None
    head_kind = TOKEN
    has_units = True
    perturbed = f"{CASES}; {TYPOS}; the first half of the words alone, compared on these words"
    counted = "entities"
    text_columns = ("tokens", "words")
    label_columns = (
        "ner_tags",
        "tags",
        "labels",
        "label",
        "entities",
        "spans",
        "ents",
        "pos_tags",
        "upos",
        "ner",
        "pos",
    )
    pipeline_tag = "token-classification"
    pipeline_note = "The first token of a word carries its label; a long text is read in windows that overlap."
    about = "tagger of words with {count} labels"
    limit = "It gives every word exactly one of these labels: {names}."
    guessing = "no better than guessing the most frequent label"
    strata_words = "kinds of rows by their rarest entity"

    def __init__(
        self,
        outputs: Sequence[str],
        scheme: str | None = None,
        words: str = WHOLE,
        stride: int | None = None,
        transitions: Sequence[Sequence[float]] | None = None,
    ) -> None:
        self.outputs = tuple(outputs)
        self.scheme = Scheme(scheme or Scheme.of(self.outputs), self.outputs)
        self.words, self.stride, self.transitions = words, stride, transitions
        self._texts: Sequence[str] | None = None
        self._places: Ragged | None = None

    @classmethod
    def aligned(
        cls, settings: Any, columns: Mapping[str, pa.ChunkedArray], where: str, names: Sequence[str] | None
    ) -> dict[str, pa.ChunkedArray]:
        if "text_pair" in columns:
            raise DataError(f"{where} has two texts a row; token classification takes one. Name it: data.columns.text.")
        texts, labels = reading.aligned(settings, columns["text"], columns.get("label"), where, names)
        return {"text": texts} | ({} if labels is None else {"label": labels})

    @classmethod
    def column(cls, settings: Any, column: pa.ChunkedArray, what: str, names: Sequence[str] | None) -> pa.ChunkedArray:
        if is_string(column.type):
            raise DataError(f"{what} holds a text, not a label for each word. Give lists of labels, or spans.")
        return column.cast(reading.FORM)

    @classmethod
    def is_target(cls, cells: Sequence[Any]) -> bool:
        """Lists: of labels or spans."""
        known = [cell for cell in cells if cell is not None]
        return bool(known) and all(isinstance(cell, list) for cell in known)

    @classmethod
    def is_told_by(cls, chosen: Mapping[str, str], cells: Mapping[str, Sequence[Any]]) -> bool:
        """Words as a list, or spans: lists or objects in a list."""
        labels = cells[chosen["label"]]
        nested = any(isinstance(item, list | dict) for cell in labels if isinstance(cell, list) for item in cell)
        return cls.is_target(labels) and (nested or any(isinstance(cell, list) for cell in cells[chosen["text"]]))

    @classmethod
    def read(
        cls, settings: config.TokenClassification, columns: Mapping[str, pa.ChunkedArray], names: tuple[str, ...] | None
    ) -> Read:
        tags = reading.tags_of(columns)
        outputs = reading.order(set().union(*tags.values()), names, settings.labels)
        if len(tags["train"]) < 2:
            had = f"only the label {next(iter(tags['train']))!r}" if tags["train"] else "no label at all"
            raise DataError(f"The words of the training rows have {had}; two or more are needed. Check the labels.")
        scheme = settings.scheme if settings.scheme in ("io", "words") else None
        targets = {split: reading.targets_of(column, outputs) for split, column in columns.items()}
        # where signs stand by themselves with a space before, words were given; else texts were split at every sign
        words = FINE if any(map(reading.touching, targets.values())) else WHOLE
        task = cls(outputs, scheme, words, settings.stride)
        absent = [tag for tag in outputs if tag not in tags["train"]]
        notes = [f"No training row has the label {shown(absent)}."] if absent else []
        return Read(task, targets, notes)

    def read_for(self, column: pa.ChunkedArray, names: Sequence[str] | None) -> tuple[Targets, list[str]]:
        return reading.targets_of(column, self.outputs), []

    def translate(self, targets: Targets, other: Self) -> tuple[Targets, list[str]]:
        place = np.array([self.outputs.index(tag) if tag in self.outputs else -1 for tag in other.outputs], WORD_TYPE)
        flat = targets.values.flat.copy()
        flat[:, -1] = place[flat[:, -1]]
        if (flat[:, -1] < 0).any():
            raise DataError(f"The model knows {shown(self.outputs, 20)}; the rows have other labels, too.")
        return Targets(Ragged(flat, targets.values.lengths), targets.labeled), []

    @classmethod
    def of_model(cls, outputs: tuple[str, ...], settings: Mapping[str, Any]) -> Self:
        return cls(outputs, **dict(settings.get(SETTINGS) or {})).for_model(settings)

    def for_model(self, settings: Mapping[str, Any]) -> Self:
        chain = settings.get("crf")
        found = chain.get("transitions") if isinstance(chain, Mapping) else None
        return type(self)(self.outputs, **self._more, transitions=found)

    def facts(self) -> dict[str, Any]:
        chain = {} if self.transitions is None else {"transitions": self.transitions}
        return {"type": self.type, "outputs": list(self.outputs), **self._more, **chain}

    @property
    def _more(self) -> dict[str, Any]:
        return {"scheme": self.scheme.name, "words": self.words, "stride": self.stride}

    def model_settings(self) -> dict[str, Any]:
        return {SETTINGS: self._more}

    def reordered(self, order: Sequence[int]) -> Self:
        chain = self.transitions and [[self.transitions[i][j] for j in order] for i in (*order, len(order))]
        return type(self)([self.outputs[i] for i in order], **self._more, transitions=chain)

    # rows and words

    def units(self, texts: Sequence[Any], values: Any = None) -> Ragged:
        """Of a row without labels the words that its text has, and no label."""
        known = Targets.none(len(texts), self.blank(0)).values if values is None else values
        rows = [known[i] if known.lengths[i] else self._words(text) for i, text in enumerate(texts)]
        return Ragged.of(rows, np.zeros((0, 3), WORD_TYPE))

    def _words(self, text: str) -> Array:
        places = split(text, self.words)
        return np.column_stack([places, np.full(len(places), -1, WORD_TYPE)])

    def overlap(self, max_length: int) -> int:
        return max_length // OVERLAP if self.stride is None else self.stride

    def plain_name(self, output: str) -> str:
        """Without the prefix that says where an entity begins."""
        return self.scheme.plain[output]

    def strata(self, targets: Targets) -> Array:
        """Rows with entities by the rarest type among them, and those without any."""
        starts, _, kinds = self.scheme.entities(targets.values.flat[:, -1], targets.values.rows)
        counts = np.bincount(kinds, minlength=len(self.scheme.types))
        rarest = np.full(len(targets), -1)
        for kind in np.argsort(-counts, kind="stable"):
            rarest[targets.values.rows[starts[kinds == kind]]] = kind
        return np.where(targets.labeled, rarest + 1, -1)

    def check(self, train: Targets, notes: Sequence[str]) -> None:
        if len(self.names_in(train)) < 2:
            raise DataError(
                "Fewer than two labels are left in training without empty texts and duplicates. " + " ".join(notes)
            )

    def counts(self, targets: Targets) -> dict[str, int]:
        """Words by label."""
        tags = targets.values.flat[targets.labeled_units(), -1]
        return dict(zip(self.outputs, np.bincount(tags, minlength=len(self.outputs)).tolist(), strict=True))

    def blank(self, num_rows: int) -> Targets:
        words = np.column_stack([np.zeros((num_rows, 2)), np.arange(num_rows) % len(self.outputs)]).astype(WORD_TYPE)
        return Targets(Ragged(words, np.ones(num_rows, np.int64)), np.ones(num_rows, bool))

    def summary(self, train: Targets) -> str:
        known = train.values[train.labeled]
        kinds = self.scheme.entities(known.flat[:, -1], known.rows)[2]
        counts = np.bincount(kinds, minlength=len(self.scheme.types)).tolist()
        what = "labels of words" if self.scheme.name == "words" else "types of entities"
        found = class_summary(dict(zip(self.scheme.types, counts, strict=True)), what)
        return f"{len(known.flat):,} words with {found}"

    def loss_values(
        self,
        outputs: Tensor,
        targets: Tensor,
        class_weights: Tensor | None = None,
        label_smoothing: float = 0.0,
    ) -> Tensor:
        """Cross entropy, a word each, weighted and smoothed as torch does."""
        from torch.nn.functional import cross_entropy

        labels, smoothing = targets[:, -1].long(), label_smoothing
        return cross_entropy(outputs.float(), labels, class_weights, reduction="none", label_smoothing=smoothing)

    def balanced_weights(self, targets: Targets) -> Array:
        return balanced_weights(self.counts(targets))

    # scoring

    def averaged(self, outputs: Sequence[Array], weights: Sequence[float] | None = None) -> Array:
        """The logarithms of the mean probabilities of each word's labels, outputs (K, M, C)."""
        return outputs[0] if len(outputs) == 1 else mean_logits(outputs, weights)

    def scores(self, outputs: Ragged, targets: Ragged) -> EntityScores:
        """Of rows whose first words alone have targets, what a model says of those having read all."""
        given, logits = self.read_outputs(outputs)
        if (targets.lengths < outputs.lengths).any():
            given, logits = (first_units(Ragged(v, outputs.lengths), targets.lengths).flat for v in (given, logits))
        return EntityScores(Ragged(logits, targets.lengths), targets, self.outputs, self.scheme, given)

    def read_outputs(self, outputs: Ragged) -> tuple[Array, Array]:
        """Each word's label (M,), and logits (M, C) whose softmax are the probabilities of each."""
        if self.transitions is None:
            return outputs.flat.argmax(axis=1), outputs.flat
        return decode(outputs, self.transitions)

    def agreement(self, a: Ragged, b: Ragged, other: Task | None = None) -> float:
        """Share of the words to which two models give the same label."""
        (first, _), (second, _) = self._both(a, b, other)
        return float((first == second).mean())

    def _both(self, a: Ragged, b: Ragged, other: Task | None) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        second = other if isinstance(other, TokenClassification) else self
        return self.read_outputs(a), second.read_outputs(b)

    def disagreements(self, a: Ragged, b: Ragged, other: Task | None = None) -> Array:
        """Of the word of a row where both are surest of different labels, the smaller one of the probabilities."""
        both = self._both(a, b, other)
        sure = np.minimum(*(chosen(*read) for read in both))
        return a.largest(np.where(both[0][0] != both[1][0], sure, 0.0))

    def errors(self, outputs: Ragged, targets: Ragged) -> Array:
        given, logits = self.read_outputs(outputs)
        return outputs.largest(np.where(given != targets.flat[:, -1], chosen(given, logits), 0.0))

    # answering

    def pipeline_arguments(self, max_length: int) -> list[str]:
        return ['aggregation_strategy="first"', f"stride={self.overlap(max_length)}"]

    def of_rows(self, texts: Sequence[Any], values: Ragged) -> Self:
        bound = copy.copy(self)
        bound._texts, bound._places = texts, values
        return bound

    def answers(self, outputs: Ragged) -> list[dict[str, Any]]:
        """``entities`` of each row: label, text, start and end (characters), and score, the words' mean probability of
        what they were given. Of rows that the task is not bound to: numbers of words instead of characters."""
        given, logits = self.read_outputs(outputs)
        found: list[list[dict[str, Any]]] = [[] for _ in range(len(outputs))]
        rows, best = outputs.rows, chosen(given, logits)
        for start, end, kind in zip(*self.scheme.entities(given, rows), strict=True):
            row = int(rows[start])
            entity = {"label": self.scheme.types[kind], **self._named(row, int(start), int(end), outputs)}
            found[row].append({**entity, "score": float(best[start:end].mean())})
        return [{"entities": entities} for entities in found]

    def _named(self, row: int, start: int, end: int, outputs: Ragged) -> dict[str, Any]:
        """Words ``start`` to ``end`` (of all rows) in their text."""
        first = int(outputs.starts[row])
        if self._texts is None or self._places is None:
            return {"text": f"words {start - first + 1} to {end - first}", "start": start - first, "end": end - first}
        words = self._places[row]
        begin, stop = int(words[start - first, 0]), int(words[end - first - 1, 1])
        return {"text": self._texts[row][begin:stop], "start": begin, "end": stop}

    @property
    def answer_columns(self) -> tuple[str, ...]:
        return ("entities",)

    def spoken(self, outputs: Ragged) -> list[tuple[str, float | None]]:
        told = []
        for answer in self.answers(outputs):
            entities = answer["entities"]
            sure = min((entity["score"] for entity in entities), default=None)
            told.append((spoken(entities), sure))
        return told

    def spoken_target(self, target: Any) -> str:
        plain, sure = copy.copy(self), np.eye(len(self.outputs))[target[:, -1]]
        plain.transitions = None
        (answer,) = plain.answers(Ragged(sure, np.array([len(target)])))
        return spoken(answer["entities"])


SETTINGS = "token_classification"
"""Of a model's config.json: what its answers depend on beside its outputs."""


def spoken(entities: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(f"{entity['text']} ({entity['label']})" for entity in entities) or "no entity"
