"""Objects in pictures of which a view shows a part (``data.views``): boxes are cut off, moved, and left out."""

from __future__ import annotations

import numpy as np

from raydistill.tasks.object_detection.detections import corners
from raydistill.tasks.object_detection.reading import AREA, BOX, CLASS, NOTHING, only
from raydistill.tasks.statistics import divide
from raydistill.tasks.targets import Array, Ragged

LEAST_VISIBLE = 0.25
"""Share of a box's area that a part of its picture has to show, else the object counts as not there (elsewhere called
min_visibility): of less nobody can tell what it is, nor how far it reached. SSD asks that the middle of the box is
shown (https://arxiv.org/abs/1512.02325, section 2.2), of which a quarter is then seen in a part no smaller than it."""


def seen(targets: Ragged, parts: Array, is_mirrored: Array) -> Ragged:
    """Objects and crowds, see ``reading``, in parts of their pictures that are brought to the size of the whole:
    ``parts`` (N, 4) are left, top, width and height as shares of the picture, turned left to right where
    ``is_mirrored`` (N,). A picture of which none is left is one without objects."""
    flat, rows = targets.flat.copy(), targets.rows
    start, size = parts[rows, :2], parts[rows, 2:]
    sides = corners(flat[:, BOX].astype(np.float64))
    low, high = (((sides[:, side] - start) / size).clip(0, 1) for side in (slice(2), slice(2, 4)))
    turned = is_mirrored[rows]
    low[:, 0], high[:, 0] = np.where(turned, 1 - high[:, 0], low[:, 0]), np.where(turned, 1 - low[:, 0], high[:, 0])
    enlarged = 1 / size.prod(1)
    visible = divide((high - low).prod(1), flat[:, BOX][:, 2:].prod(1) * enlarged)
    flat[:, BOX] = np.concatenate([(low + high) / 2, high - low], axis=1)
    flat[:, AREA] *= visible * enlarged
    kept = (flat[:, CLASS] != NOTHING) & (visible >= LEAST_VISIBLE)
    bare = targets.starts[(targets.lengths > 0) & (np.bincount(rows[kept], minlength=len(targets)) == 0)]
    flat[bare, : AREA + 1] = [NOTHING, 0, 0, 0, 0, 0]
    kept[bare] = True
    return only(Ragged(flat, targets.lengths), kept)
