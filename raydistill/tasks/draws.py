"""What is drawn for rows: pure functions of seed, epoch and row, whatever shares a batch with them."""

from __future__ import annotations

import numpy as np

from raydistill.tasks.targets import Array

GOLDEN = 0x9E3779B97F4A7C15
"""2^64 by the golden ratio."""
FACTORS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
"""Those of SplitMix64. Steele et al. 2014, https://doi.org/10.1145/2714064.2660195."""


def row_keys(numbers: Array, epoch: tuple[int, int]) -> Array:
    """A key for each row, by its number (N,), of which all follows that is drawn for it; ``epoch``: seed and number."""
    return hashed(numbers.astype(np.uint64) ^ np.random.SeedSequence(epoch).generate_state(1, np.uint64))


def hashed(values: Array) -> Array:
    """SplitMix64 of each of the values, uint64."""
    values = values + np.uint64(GOLDEN)
    for shift, factor in zip((30, 27), FACTORS, strict=True):
        values = (values ^ (values >> np.uint64(shift))) * np.uint64(factor)
    return values ^ (values >> np.uint64(31))


def fractions(hashes: Array) -> Array:
    """Hashes as numbers from 0 to below 1, float64."""
    return (hashes >> np.uint64(11)) * 2.0**-53
