"""What a detector finds in pictures: of each query the likeliest class, its probability, and a box."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from raydistill.models.head import NUM_SIDES
from raydistill.tasks.object_detection.reading import BOX, CLASS, objects
from raydistill.tasks.statistics import divide
from raydistill.tasks.targets import Array, Ragged


@dataclass(frozen=True, eq=False)
class Detections:
    """Outputs (N, Q · (C + 5)) of a model of ``num_classes``, see ``models.boxes``; as transformers' pipeline reads
    them."""

    outputs: Array
    num_classes: int

    @cached_property
    def units(self) -> Array:
        """(N, Q, C + 5)."""
        return self.outputs.reshape(len(self.outputs), -1, self.num_classes + 1 + NUM_SIDES)

    @cached_property
    def probabilities(self) -> Array:
        """Of the classes and of no object, (N, Q, C + 1)."""
        from scipy.special import softmax

        return np.asarray(softmax(self.units[..., :-NUM_SIDES].astype(np.float64), axis=-1))

    @cached_property
    def classes(self) -> Array:
        """(N, Q)."""
        found: Array = self.probabilities[..., :-1].argmax(-1)
        return found

    @cached_property
    def scores(self) -> Array:
        """(N, Q)."""
        found: Array = self.probabilities[..., :-1].max(-1)
        return found

    @property
    def boxes(self) -> Array:
        """(N, Q, 4), center, width and height as shares of the picture."""
        return self.units[..., -NUM_SIDES:].astype(np.float64)

    def found(self, row: int, threshold: float) -> tuple[Array, Array, Array]:
        """Classes, scores and boxes in a row of at least this score, the surest first."""
        order = np.argsort(-self.scores[row], kind="stable")
        order = order[self.scores[row][order] >= threshold]
        return self.classes[row][order], self.scores[row][order], self.boxes[row][order]


def of_targets(targets: Ragged) -> list[tuple[Array, Array]]:
    """Classes and boxes of the objects of each row."""
    there = objects(targets)
    rows = [there[i] for i in range(len(there))]
    return [(row[:, CLASS].astype(int), row[:, BOX].astype(np.float64)) for row in rows]


def corners(boxes: Array) -> Array:
    """Left, top, right and bottom of boxes (…, 4)."""
    half = boxes[..., 2:] / 2
    return np.concatenate([boxes[..., :2] - half, boxes[..., :2] + half], axis=-1)


def ious(a: Array, b: Array, is_crowd: Array | bool = False) -> Array:
    """Intersection over union of boxes (A, 4) and (B, 4), (A, B); where the second one ``is_crowd`` (B,), over the area
    of the first one. Shares of a picture have those of its pixels."""
    left, right = corners(a)[:, None], corners(b)[None]
    sides = np.minimum(left[..., 2:], right[..., 2:]) - np.maximum(left[..., :2], right[..., :2])
    inside = sides.clip(min=0).prod(-1)
    own = a[:, None, 2:].prod(-1)
    union = own + np.where(is_crowd, 0.0, b[None, :, 2:].prod(-1) - inside)
    return divide(inside, union)
