"""Text classification: one of two or more classes a row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor


class TextClassification:
    """Loss, cost and decoding for ``labels``, the class names in the order of the logits."""

    def __init__(self, labels: tuple[str, ...]) -> None:
        self.labels = labels

    @property
    def num_labels(self) -> int:
        return len(self.labels)

    def loss_values(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross entropy in float32 of logits (B, C) against class ids (B,): (B,), 0 for an unlabelled row (-1)."""
        from torch.nn.functional import cross_entropy

        return cross_entropy(logits.float(), labels, ignore_index=-1, reduction="none")

    def cost(self, length: int) -> int:
        """Cost of a row in tokens, the unit of ``train.tokens_per_micro_batch``."""
        return int(length)

    def decode(self, logits: np.ndarray) -> list[dict[str, Any]]:
        """The likeliest class and its probability for each row of logits (B, C): label, score."""
        shifted = np.asarray(logits, np.float64)
        shifted = np.exp(shifted - shifted.max(axis=1, keepdims=True))
        scores = shifted / shifted.sum(axis=1, keepdims=True)
        best = scores.argmax(axis=1)
        return [{"label": self.labels[i], "score": float(row[i])} for i, row in zip(best, scores, strict=True)]
