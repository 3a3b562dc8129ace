"""What a tagger is worth on labelled rows: counts of entities by example, and metrics as functions of their sums.

Metric names: ``entity_{precision,recall,f1}`` (strict: an entity is right where its words and its type are; micro, as
conlleval and seqeval have it), ``macro_f1`` (mean over the types), ``token_accuracy`` (words with the right label),
``log_loss`` (nats a word). The tests hold them against nervaluate and scikit-learn.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import cached_property
from typing import Any

import numpy as np

from raydistill.tasks.scores import Floor, Scores, fit_rows
from raydistill.tasks.statistics import averages, divide, label_ratios
from raydistill.tasks.targets import Array, Ragged
from raydistill.tasks.text_classification.scoring import probabilities
from raydistill.tasks.token_classification.words import Scheme


class EntityScores(Scores):
    """A tagger's logits, Ragged (M, C), on rows whose words are labelled, Ragged (M, 3) with the label last.

    ``given``: the label of each word (M,), where that is not the likeliest one.
    """

    def __init__(
        self, outputs: Ragged, targets: Ragged, names: tuple[str, ...], scheme: Scheme, given: Array | None = None
    ) -> None:
        fit_rows(outputs.flat, targets.flat)
        self.num_rows, self.names, self.scheme = len(targets), names, scheme
        self.logits, self.rows, self.labels = outputs.flat, targets.rows, targets.flat[:, -1]
        self.given = self.logits.argmax(axis=1) if given is None else given

    def weighted(self, weights: Array, wanted: Collection[str] | None = None) -> dict[str, Array]:
        hits, support, predicted = ((counts @ weights).astype(np.float64) for counts in self._counts)
        values = averages(hits, support, predicted, (support + predicted) > 0)
        found = {f"entity_{name}": values[f"micro_{name}"] for name in ("precision", "recall", "f1")}
        right, words, nats = (sums @ weights for sums in self._word_sums)
        more = {"token_accuracy": divide(right, words), "log_loss": divide(nats, words)}
        return {**found, "macro_f1": values["macro_f1"], **more}

    def floor(self) -> Floor:
        """Always giving the most frequent label."""
        counts = np.bincount(self.labels)
        common, share = int(counts.argmax()), float(counts.max() / counts.sum())
        given = np.unique(self.given)
        constant = f'"{self.names[given[0]]}"' if len(given) == 1 else None
        is_word = self.scheme.name == "words" and self.names[common] in self.scheme.types
        answer = f'always answering "{self.names[common]}"'
        return Floor("entity_f1", share if is_word else 0.0, answer, constant, ("token_accuracy", share))

    def details(self) -> dict[str, Any]:
        """``per_class``, by type of entity; ``entity_errors``, see below."""
        hits, support, predicted = (counts.sum(axis=1) for counts in self._counts)
        columns = {name: divide(*pair).tolist() for name, pair in label_ratios(hits, support, predicted).items()}
        columns |= {"support": support.astype(int).tolist(), "predicted": predicted.astype(int).tolist()}
        per_class = [
            dict(zip(("name", *columns), row, strict=True))
            for row in zip(self.scheme.types, *columns.values(), strict=True)
        ]
        return {"per_class": per_class, "entity_errors": self.errors()}

    def errors(self) -> dict[str, int]:
        """The labelled entities: those found ``exact``, with the ``wrong_type``, with a ``wrong_border`` (one of their
        type overlaps them), both wrong (``overlapped``), and ``missed``; and how many were ``invented``, where none is.
        """
        truth, found = (self._entities(tags) for tags in (self.labels, self.given))
        kinds = ("exact", "wrong_type", "wrong_border", "overlapped", "missed")
        counts = dict.fromkeys((*kinds, "invented"), 0)
        owner = np.full((2, len(self.labels)), -1)
        for side, (starts, ends, _) in enumerate((truth, found)):
            for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
                owner[side, start:end] = i
        for start, end, kind in zip(*truth, strict=True):
            near = [tuple(part[i] for part in found) for i in np.unique(owner[1, start:end]) if i >= 0]
            same_place, same_type = any(one[:2] == (start, end) for one in near), any(one[2] == kind for one in near)
            exact = (start, end, kind) in near
            tests = (exact, same_place, same_type, bool(near), True)
            counts[kinds[tests.index(True)]] += 1
        counts["invented"] = sum(bool((owner[0, start:end] < 0).all()) for start, end in zip(*found[:2], strict=True))
        return counts

    def _entities(self, tags: Array) -> tuple[Array, Array, Array]:
        return self.scheme.entities(tags, self.rows)

    @cached_property
    def _counts(self) -> tuple[Array, Array, Array]:
        """Entities rightly given, there, and given, by type and row, (K, N)."""
        truth, found = (self._entities(tags) for tags in (self.labels, self.given))
        width, num_types = len(self.labels) + 1, len(self.scheme.types)
        codes = [(starts * width + ends) * num_types + kinds for starts, ends, kinds in (truth, found)]
        right = np.isin(codes[1], codes[0])
        hits = [part[right] for part in found]
        hit, there, given = (self._table(entities[0], entities[2]) for entities in (hits, truth, found))
        return hit, there, given

    def _table(self, starts: Array, kinds: Array) -> Array:
        table = np.zeros((len(self.scheme.types), self.num_rows), np.float32)
        np.add.at(table, (kinds, self.rows[starts]), 1)
        return table

    @cached_property
    def _word_sums(self) -> tuple[Array, Array, Array]:
        """Words with the right label, words, and nats by row, (N,)."""
        chosen = probabilities(self.logits)[np.arange(len(self.labels)), self.labels]
        nats = -np.log(np.clip(chosen, np.finfo(np.float64).eps, 1.0))
        each = (self.given == self.labels, np.ones(len(self.labels)), nats)
        sums = [np.bincount(self.rows, values, minlength=self.num_rows) for values in each]
        return sums[0], sums[1], sums[2]
