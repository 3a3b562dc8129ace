"""The layer map as a drawing: the layers of teacher and student, what starts from what, what is compared with what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

from raydistill.evaluate.report.figures import BLUE, GREEN, GREY, ORANGE, PURPLE, RED

WIDTH, BOX = 400, 116  # of the drawing and of a layer's box; a telephone has 340 pixels
SMALLEST_STEP, LARGEST_STEP = 22.0, 30.0  # from a layer to the next one
USUAL_HEIGHT = 300.0  # within which the steps are not at their smallest
GAP = 7.0  # between boxes
TERM_COLORS = (BLUE, ORANGE, GREEN, PURPLE, RED)


@dataclass(frozen=True)
class Layer:
    x: float
    y: float
    """Of the upper left corner."""
    text: str


@dataclass(frozen=True)
class Line:
    path: str
    """SVG path data."""
    text: str
    kind: int
    """Index into the drawing's kinds."""


@dataclass(frozen=True)
class Kind:
    name: str
    color: str
    is_start: bool


@dataclass(frozen=True)
class Drawing:
    """Sizes in SVG user units."""

    height: float
    layers: Sequence[Layer]
    kinds: Sequence[Kind]
    lines: Sequence[Line]
    box_height: float
    width: float = WIDTH
    box: float = BOX


def draw_layers(layers: Mapping[str, Any]) -> Drawing:
    """Teacher on the left, student on the right, embeddings at the bottom; ``layers`` as in results.json."""
    depths = {"teacher": int(layers["teacher"]), "student": int(layers["student"])}
    count = max(depths.values()) + 1
    step = max(SMALLEST_STEP, min(LARGEST_STEP, USUAL_HEIGHT / count))
    height, box_height = count * step, step - GAP
    places = {side: heights(depth, height, step) for side, depth in depths.items()}
    boxes = [
        Layer(x, middle - box_height / 2, f"layer {i}" if i else "embeddings")
        for side, x in (("teacher", 0.0), ("student", float(WIDTH - BOX)))
        for i, middle in enumerate(places[side])
    ]
    kinds = [Kind("starts as", GREY, True)] if layers["start"] else []
    groups = [layers["start"]] if layers["start"] else []
    for (name, pairs), color in zip(layers["losses"].items(), cycle(TERM_COLORS), strict=False):
        kinds.append(Kind(name.removeprefix("stages."), color, False))
        groups.append(pairs)
    lines = []
    for kind, pairs in enumerate(groups):
        shift = 5.0 * (kind - (len(groups) - 1) / 2)  # lines of two kinds between the same layers lie side by side
        shift = max(2 - box_height / 2, min(box_height / 2 - 2, shift))
        for student, teacher in pairs:
            ends = places["teacher"][teacher] + shift, places["student"][student] + shift
            text = f"{kinds[kind].name}: {layer_name('student', student)}, {layer_name('teacher', teacher)}"
            lines.append(Line(curve(*ends), text, kind))
    return Drawing(height, boxes, kinds, lines, box_height)


def heights(depth: int, height: float, step: float) -> list[float]:
    """Middles of the boxes from the embeddings up; fewer layers are spread over the same height."""
    own = (height - step) / max(depth, 1)
    return [height - step / 2 - i * own for i in range(depth + 1)]


def layer_name(side: str, number: int) -> str:
    return f"{side}'s layer {number}" if number else f"{side}'s embeddings"


def curve(left: float, right: float) -> str:
    start, end = BOX, WIDTH - BOX
    middle = (start + end) / 2
    return f"M{start} {left:.1f} C{middle} {left:.1f} {middle} {right:.1f} {end} {right:.1f}"
