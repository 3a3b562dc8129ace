"""What logits of words amount to: labels and their probabilities, of a CRF by Viterbi and forward-backward."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from raydistill.tasks.targets import Array, Ragged
from raydistill.tasks.text_classification.scoring import probabilities

ROWS_AT_ONCE = 250


def chosen(given: Array, logits: Array) -> Array:
    """The probability of each word's own label, (M,)."""
    return probabilities(logits)[np.arange(len(given)), given]


def decode(outputs: Ragged, transitions: Sequence[Sequence[float]]) -> tuple[Array, Array]:
    """As ``read_outputs``, by Viterbi and forward-backward; rows of like length together, so that little is padded."""
    import torch

    from raydistill.models.crf import Chains, best_sequences, log_marginals

    scores = torch.tensor(transitions, dtype=torch.float64)
    given = Ragged(np.zeros(len(outputs.flat), np.int64), outputs.lengths)
    marginals = Ragged(np.zeros(outputs.flat.shape), outputs.lengths)
    order = np.argsort(outputs.lengths, kind="stable")
    for start in range(0, len(order), ROWS_AT_ONCE):
        ids = order[start : start + ROWS_AT_ONCE]
        part = outputs[ids]
        emissions, chains = torch.tensor(part.flat, dtype=torch.float64), Chains.of(torch.tensor(part.lengths))
        given.put(ids, best_sequences(emissions, scores, chains)[0][:, 0].numpy())
        marginals.put(ids, log_marginals(emissions, scores, chains).numpy())
    return given.flat, marginals.flat
