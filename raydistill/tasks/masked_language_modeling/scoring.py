"""What a masked language model is worth: sums over the hidden tokens of each document, and metrics as their ratios.

Metric names: ``masked_accuracy`` (share of the hidden tokens that are the likeliest), ``perplexity`` (exp of the mean
nats a hidden token), ``log_loss`` (nats a hidden token). Hidden tokens of one document stand and fall together, so
intervals resample documents.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import cached_property
from typing import Any

import numpy as np

from raydistill.tasks.scores import Floor, Scores, fit_rows
from raydistill.tasks.statistics import divide
from raydistill.tasks.targets import Array, Ragged, Values

RIGHT_LOG, TOP, TOP_LOG = 0, 1, 2
"""Columns of outputs: log-probability of the right token, id of the likeliest one, and its log-probability."""


class MaskedScores(Scores):
    """Outputs, Ragged (M, 3 or more), on documents with hidden tokens, Ragged (M, 3) with their ids last; of documents
    of which it is not known what was hidden the outputs have these last."""

    def __init__(self, outputs: Ragged, targets: Values) -> None:
        ids = targets.flat[:, -1] if isinstance(targets, Ragged) else outputs.flat[:, -1]
        fit_rows(outputs.flat, ids)
        self.num_rows, self.rows, self.ids = len(targets), outputs.rows, ids.astype(np.int64)
        self.nats = -outputs.flat[:, RIGHT_LOG].astype(np.float64)
        self.top = outputs.flat[:, TOP].astype(np.int64)

    @cached_property
    def sums(self) -> list[Array]:
        """Nats, rightly guessed tokens, and all hidden ones, by document, (N,) each."""
        each = (self.nats, self.top == self.ids, np.ones(len(self.ids)))
        return [np.bincount(self.rows, values, self.num_rows) for values in each]

    def weighted(self, weights: Array, wanted: Collection[str] | None = None) -> dict[str, Array]:
        nats, right, tokens = (sums @ weights.astype(np.float64) for sums in self.sums)
        mean = divide(nats, tokens)
        return {"masked_accuracy": divide(right, tokens), "perplexity": np.exp(mean), "log_loss": mean}

    def floor(self) -> Floor:
        """Always guessing the most frequent one of the hidden tokens themselves; who knows how frequent each is has
        the perplexity of the evidence."""
        counts = np.unique(self.ids, return_counts=True)[1]
        shares = counts / counts.sum()
        given = np.unique(self.top)
        constant = "the same token" if len(given) == 1 else None
        unigram = float(np.exp(-(shares * np.log(shares)).sum()))
        answer = "always guessing the most frequent token"
        return Floor("masked_accuracy", float(shares.max()), answer, constant, ("perplexity", unigram))

    def details(self) -> dict[str, Any]:
        """``hidden_tokens``: how many there are."""
        return {"hidden_tokens": len(self.ids)}
