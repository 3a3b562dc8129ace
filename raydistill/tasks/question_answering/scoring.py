"""What answers are worth: exact match and F1 of SQuAD's official script, by example, and metrics as means of them.

Metric names: ``answer_exact_match``, ``answer_f1`` (of words, the best over the answers of several annotators; of a
context without an answer 1 where none is given), ``has_answer_f1`` and ``no_answer_accuracy`` (of the examples with and
without an answer), ``log_loss`` (nats a window: of begin and end in the mean, as the loss has it).
Rajpurkar et al. 2016 and 2018, https://arxiv.org/abs/1606.05250 and https://arxiv.org/abs/1806.03822. The tests hold
them against torchmetrics.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Collection, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from raydistill.tasks.question_answering.encoding import BEGINS, ENDS, labels_of
from raydistill.tasks.question_answering.spans import Spans
from raydistill.tasks.scores import Floor, Scores, fit_rows
from raydistill.tasks.targets import Array, Ragged

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
ERRORS = ("right", "one_word_off", "overlapping", "elsewhere", "not_answered", "invented")


def words_of(text: str) -> list[str]:
    """The words of an answer that count: lower case, without punctuation and articles."""
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def f1(given: Sequence[str], truth: Sequence[str]) -> float:
    """F1 of the words of two answers; where one of them has none 1 if the other has none either."""
    if not given or not truth:
        return float(list(given) == list(truth))
    same = sum((Counter(given) & Counter(truth)).values())
    return 2 * same / (len(given) + len(truth))


class SpanScores(Scores):
    """Outputs, Ragged (M, 2) with places, on rows with answers, Ragged (A, 3) with texts; ``threshold``: see
    ``Spans.chosen``."""

    share_metrics = frozenset({"answer_exact_match"})

    def __init__(self, outputs: Ragged, targets: Ragged, threshold: float | None, max_answer_length: int) -> None:
        fit_rows(outputs.flat, outputs.flat)
        assert targets.texts is not None
        self.num_rows, self.targets, self.threshold = len(targets), targets, threshold
        self.spans = Spans(outputs, max_answer_length)
        self.texts: list[str] = targets.texts.to_pylist()
        self.has_answer = targets.flat[targets.starts, 2] == 1
        self.places, _ = self.spans.chosen(threshold)
        self.match, self.f1 = self.worth(self.places)
        self.right = self.match

    @cached_property
    def truth(self) -> list[list[list[str]]]:
        """Of each row the words of its answers; of one without an answer, or with nothing but punctuation, none."""
        found = []
        for row, text in enumerate(self.texts):
            words = [words_of(text[start:end]) for start, end, is_there in self.targets[row] if is_there]
            found.append([one for one in words if one] or [[]])
        return found

    def worth(self, places: Array) -> tuple[Array, Array]:
        """Exact match, bool, and F1 of answers at these places (N, 2), (N,) each."""
        given = [
            words_of(text[start:end]) if start >= 0 else []
            for text, (start, end) in zip(self.texts, places, strict=True)
        ]
        match = [any(one == own for one in truth) for own, truth in zip(given, self.truth, strict=True)]
        best = [max(f1(own, one) for one in truth) for own, truth in zip(given, self.truth, strict=True)]
        return np.array(match, bool), np.array(best)

    def best_threshold(self) -> float | None:
        """The threshold with the best F1 on these rows; None where all of them have an answer.

        Rows up to it are answered, those with a larger margin are not; it lies in the middle between two rows.
        """
        if self.has_answer.all():
            return None
        _, answered = self.worth(self.spans.chosen(None)[0])
        order = np.argsort(self.spans.margin, kind="stable")
        margins = self.spans.margin[order]
        empty = np.array([float(truth == [[]]) for truth in self.truth])[order]
        total = (
            np.concatenate([[0.0], np.cumsum(answered[order])]) + np.concatenate([[0.0], np.cumsum(empty[::-1])])[::-1]
        )
        borders = np.concatenate([margins[:1] - 2, margins, margins[-1:] + 2])
        total[1:-1][margins[1:] == margins[:-1]] = -1.0  # no border between equal ones
        best = int(total.argmax())
        return float((borders[best] + borders[best + 1]) / 2)

    @cached_property
    def nats(self) -> Array:
        """Of each row's windows in the mean, (N,)."""
        bits, log_probs = labels_of(self.spans.outputs, self.targets)[:, 2], self.spans.log_probs
        chosen = np.stack([bits & BEGINS > 0, bits & ENDS > 0], axis=1)
        each = np.where(chosen, -log_probs, 0.0).sum(axis=1) / 2
        rows = self.spans.outputs.rows
        return np.bincount(rows, each, self.num_rows) / np.bincount(rows, self.spans.is_none, self.num_rows)

    def weighted(self, weights: Array, wanted: Collection[str] | None = None) -> dict[str, Array]:
        total = weights.sum(axis=0, dtype=np.float64)
        found = {"answer_f1": self.f1 @ weights / total, "answer_exact_match": self.match @ weights / total}
        for name, rows in (("has_answer_f1", self.has_answer), ("no_answer_accuracy", ~self.has_answer)):
            with np.errstate(invalid="ignore", divide="ignore"):
                found[name] = (self.f1 * rows) @ weights / (rows @ weights)
        return found | {"log_loss": self.nats @ weights / total}

    def floor(self) -> Floor:
        """Never giving an answer, or always the whole context, whichever is worth more."""
        blind = {"never answering": np.full((self.num_rows, 2), -1)}
        blind["answering with the whole context"] = np.array([(0, len(text)) for text in self.texts])
        reached = {answer: tuple(values.mean() for values in self.worth(places)) for answer, places in blind.items()}
        answer = max(reached, key=lambda name: reached[name][1])
        match, best = reached[answer]
        constant = "nothing" if (self.places < 0).all() else None
        return Floor("answer_f1", float(best), answer, constant, ("answer_exact_match", float(match)))

    def details(self) -> dict[str, Any]:
        """``answer_errors``: examples answered ``right``; ``one_word_off`` (a word too many, or one too few, at one
        end); ``overlapping`` with a right answer otherwise; ``elsewhere``; ``not_answered`` though there is an answer;
        ``invented``, answered though there is none."""
        kinds = [self._error(row) for row in range(self.num_rows)]
        return {"answer_errors": {name: kinds.count(name) for name in ERRORS}}

    def _error(self, row: int) -> str:
        (start, end), text = self.places[row], self.texts[row]
        if self.match[row]:
            return "right"
        if not self.has_answer[row] or start < 0:
            return "not_answered" if self.has_answer[row] else "invented"
        kind = "elsewhere"
        for begin, stop, _ in self.targets[row]:
            if start < stop and begin < end:
                kind = "overlapping"
                off = [text[min(a, b) : max(a, b)].split() for a, b in ((start, begin), (end, stop))]
                if sum(map(len, off)) == 1:
                    return "one_word_off"
        return kind
