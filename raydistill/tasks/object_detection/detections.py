"""What a detector finds in pictures: classes, their probabilities, and boxes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from raydistill.models.head import NUM_SIDES, num_scores
from raydistill.tasks.object_detection.reading import BOX, CLASS, objects
from raydistill.tasks.statistics import divide
from raydistill.tasks.targets import Array, Ragged


@dataclass(frozen=True, eq=False)
class Detections:
    """Outputs (N, Q · (S + 4)) of a model of ``num_classes``, see ``models.detection``, Q detections of each; as
    transformers' pipeline reads them: the likeliest class of each query, or, of a ``focal`` model, the likeliest of all
    classes of all queries."""

    outputs: Array
    num_classes: int
    focal: bool = False

    @cached_property
    def units(self) -> Array:
        """(N, Q, S + 4)."""
        return self.outputs.reshape(len(self.outputs), -1, num_scores(self.num_classes, self.focal) + NUM_SIDES)

    @cached_property
    def probabilities(self) -> Array:
        """Of the classes, (N, Q, C)."""
        from scipy.special import expit, softmax

        logits = self.units[..., :-NUM_SIDES].astype(np.float64)
        return np.asarray(expit(logits) if self.focal else softmax(logits, axis=-1)[..., :-1])

    @cached_property
    def places(self) -> Array:
        """Of each detection the query and class, one number, (N, Q)."""
        num_queries, num_classes = self.probabilities.shape[1:]
        if not self.focal:
            return np.arange(num_queries) * num_classes + self.probabilities.argmax(-1)
        flat = self.probabilities.reshape(len(self.outputs), -1)
        return np.argpartition(-flat, num_queries - 1, axis=1)[:, :num_queries]

    @cached_property
    def classes(self) -> Array:
        """(N, Q)."""
        found: Array = self.places % self.num_classes
        return found

    @cached_property
    def scores(self) -> Array:
        """(N, Q)."""
        flat = self.probabilities.reshape(len(self.outputs), -1)
        return np.take_along_axis(flat, self.places, 1)

    @cached_property
    def boxes(self) -> Array:
        """(N, Q, 4), center, width and height as shares of the picture."""
        query = self.places[..., None] // self.num_classes
        return np.take_along_axis(self.units[..., -NUM_SIDES:], query, 1).astype(np.float64)

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
