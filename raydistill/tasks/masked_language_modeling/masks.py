"""Which tokens of a row are hidden, and by what: a pure function of seed, epoch and row, drawn for many rows at once.

Of the tokens that are hidden 80 % become the mask token, 10 % any other ordinary token, and 10 % stay, so that a model
cannot trust what it sees. Devlin et al. 2019, https://arxiv.org/abs/1810.04805.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np

from raydistill.errors import ConfigError
from raydistill.tasks.draws import fractions, hashed, row_keys
from raydistill.tasks.targets import Array, Ragged

MASKED, REPLACED = 0.8, 0.9
"""Up to which part of 0 to 1 a hidden token becomes the mask token, and an ordinary one."""
CHOICE, KIND, TOKEN = 1, 2, 3
"""What is drawn of a place: whether it is hidden, by which kind of token, by which."""


@dataclass(frozen=True)
class Masks:
    """How tokens of a vocabulary are hidden."""

    mask: int
    """Id of the mask token."""
    num_ids: int
    """Tokens of the vocabulary."""
    special: tuple[int, ...]
    """Ids that are never hidden, nor put in place of others."""
    share: float
    """Of a row's other tokens that are hidden."""

    @classmethod
    def of(cls, tokenizer: Any, share: float) -> Self:
        """Those of a tokenizer. Raises ConfigError for one without a mask token."""
        if tokenizer.mask_token_id is None:
            raise ConfigError(
                "The teacher's tokenizer has no mask token, so its model was not made to guess hidden tokens. Name a "
                "masked language model, such as bert-base-uncased."
            )
        return cls(tokenizer.mask_token_id, len(tokenizer), tuple(sorted(tokenizer.all_special_ids)), share)

    @classmethod
    def read(cls, told: Mapping[str, Any] | None) -> Self | None:
        """What ``info.json`` of a tokens artefact tells of them."""
        return None if told is None else cls(**{**told, "special": tuple(told["special"])})

    @cached_property
    def ordinary(self) -> Array:
        """The ids that are not special, ascending."""
        return np.setdiff1d(np.arange(self.num_ids), self.special).astype(np.int32)

    @cached_property
    def is_special(self) -> Array:
        found = np.zeros(self.num_ids, bool)
        found[list(self.special)] = True
        return found

    def counts(self, rows: Ragged) -> Array:
        """How many tokens of each row (N,) are hidden: a ``share`` of those that may be, one at least."""
        able = np.bincount(rows.rows[~self.is_special[rows.flat]], minlength=len(rows))
        return np.where(able > 0, np.maximum(np.rint(self.share * able).astype(np.int64), 1), 0)

    def draw(self, rows: Ragged, numbers: Array, epoch: tuple[int, int] | None = None) -> tuple[Ragged, Array]:
        """Places of the hidden tokens in their rows, ascending, int32, and all tokens (T,) with these hidden.

        ``rows``: token ids of rows with these ``numbers`` (N,); ``epoch``: seed and number of one, None for what stays
        the same at all epochs.
        """
        keys = row_keys(numbers, (0, 0) if epoch is None else (epoch[0], epoch[1] + 1))
        able = np.flatnonzero(~self.is_special[rows.flat])
        row = rows.rows[able]
        drawn = hashed(keys[row] ^ hashed((able - rows.starts[row]).astype(np.uint64)))
        lots = hashed(drawn + np.uint64(CHOICE))
        # one sort by row and, within it, by lot: rows are ascending already, so 24 bits of the lot are room for 2^40
        order = np.argsort((row.astype(np.uint64) << np.uint64(24)) | (lots >> np.uint64(40)), kind="stable")
        counts, wanted = np.bincount(row, minlength=len(rows)), self.counts(rows)
        rank = np.arange(len(able)) - np.repeat(np.cumsum(counts) - counts, counts)
        chosen = np.sort(order[rank < np.repeat(wanted, counts)])
        hidden, seeds = able[chosen], drawn[chosen]
        kind = fractions(hashed(seeds + np.uint64(KIND)))
        other = self.ordinary[hashed(seeds + np.uint64(TOKEN)) % np.uint64(len(self.ordinary))]
        flat = rows.flat.copy()
        flat[hidden] = np.where(kind < MASKED, self.mask, np.where(kind < REPLACED, other, flat[hidden]))
        places = (hidden - rows.starts[row[chosen]]).astype(np.int32)
        return Ragged(places, wanted), flat


def fingerprints(rows: Ragged) -> Array:
    """A number for each row of token ids, the same for the same ids, (N,) uint64; no row is empty."""
    places = np.arange(len(rows.flat)) - np.repeat(rows.starts, rows.lengths)
    each = hashed(hashed(places.astype(np.uint64)) ^ rows.flat.astype(np.uint64))
    return np.add.reduceat(each, rows.starts) if len(each) else each


def given(rows: Ragged, mask: int) -> Ragged:
    """The places of the mask tokens that rows of token ids have already."""
    at = np.flatnonzero(rows.flat == mask)
    row = rows.rows[at]
    return Ragged((at - rows.starts[row]).astype(np.int32), np.bincount(row, minlength=len(rows)))
