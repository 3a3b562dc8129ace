"""The plain rival of every student: a linear model on TF-IDF of one and two words, which takes seconds.

Where the labels or the classes are very many it is fitted to some of the rows and words, so that its time has a bound:
about half a minute on two cores.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from raydistill.config.metrics import score
from raydistill.tasks.base import Task
from raydistill.tasks.targets import Array, Targets

MAX_ROWS = 20_000
"""Labelled rows that it is fitted to at most, drawn at random."""
MAX_WORDS, MAX_WEIGHTS = 100_000, 2_000_000
"""Words and pairs of words that it knows at most, the most frequent ones; and weights of them for all outputs."""
STRENGTHS = (1.0, 10.0, 100.0)
"""Inverse regularisations, of which the validation rows choose."""
WORD = r"\w+"


@dataclass(frozen=True)
class Tfidf:
    """A fitted model, by what it says."""

    outputs: dict[str, Array]
    """Split -> (N, C) float32, of validation and test."""
    task: Task
    """With its thresholds, where it has any."""
    num_rows: int
    """Labelled rows that it was fitted to."""
    num_parameters: int
    num_bytes: int
    """Of the weights in single precision and of the words."""


def fit_tfidf(
    task: Task, texts: Callable[[str, Array], list[str]], targets: Mapping[str, Targets], metric: str
) -> Tfidf | None:
    """Fit it to the labelled training rows; ``metric`` on validation chooses its regularisation.

    ``texts``: of rows, by their numbers, of train, validation and test. None where the training texts have no words.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    rows = np.flatnonzero(targets["train"].labeled)
    if len(rows) > MAX_ROWS:
        rows = np.sort(np.random.default_rng(0).choice(rows, MAX_ROWS, replace=False))
    num_outputs = len(task.outputs)
    words = TfidfVectorizer(
        ngram_range=(1, 2),
        sublinear_tf=True,
        tokenizer=words_in,
        token_pattern=None,
        max_features=min(MAX_WORDS, MAX_WEIGHTS // num_outputs),
        dtype=np.float32,
    )
    try:
        features = words.fit_transform(texts("train", rows))
    except ValueError:  # "empty vocabulary": there is no other way to ask
        return None
    asked = {split: words.transform(texts(split, np.arange(len(targets[split])))) for split in ("validation", "test")}
    known, best = targets["validation"], None
    for strength in STRENGTHS:
        answer = task.fit_linear(features, targets["train"].values[rows], strength)
        found = answer(asked["validation"])
        pair = found[known.labeled], known.values[known.labeled]
        fitted = task.fitted(*pair)
        value = score(metric, fitted.scores(*pair).values)
        if best is None or value > best[0]:
            best = (-math.inf if math.isnan(value) else value, fitted, found, answer)
    assert best is not None
    _, fitted, validation, answer = best
    vocabulary = words.get_feature_names_out()
    size = (len(vocabulary) + 1) * num_outputs
    num_bytes = 4 * (size + len(vocabulary)) + sum(len(word.encode()) + 1 for word in vocabulary)
    outputs = {"validation": validation, "test": answer(asked["test"])}
    return Tfidf({n: o.astype(np.float32) for n, o in outputs.items()}, fitted, len(rows), size, num_bytes)


def words_in(text: str) -> list[str]:
    """Letters and digits together, with their combining marks."""
    from raydistill.models.scorer import word_places

    return [text[start:end] for start, end in word_places(text, WORD)]
