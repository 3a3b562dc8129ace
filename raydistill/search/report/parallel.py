"""Pictures of how settings relate to the score: parallel coordinates, and the score over each setting alone.

The axes of the parallel coordinates lie, one below the other: long names and values fit on a telephone, lines tell
their trial under the pointer, and they are SVG, where plotly's own kind needs WebGL and ``eval``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import plotly.graph_objects as go

from raydistill.evaluate.report.figures import GREEN, ORANGE, Picture, draw, escaped, is_finite
from raydistill.evaluate.report.scales import label, scale, setting, spoken
from raydistill.search import space
from raydistill.search.report.pictures import add_groups
from raydistill.search.report.scene import Record, Scene

MAX_CATEGORIES = 8  # that have room for their names on a telephone
AXIS_PIXELS = 78
Axis = tuple[Callable[[Record], float | None], Mapping[float, str]]
"""It says where a trial lies, from 0 to 1 or None, and what is written where."""


def axis_of(scene: Scene, name: str) -> Axis:
    """Lay out a range or measure by its ends, logarithmic where the search was, and choices in their order."""

    def value(trial: Record) -> Any:
        return trial["params" if name in scene.names else "measures"].get(name, math.nan)

    values = [v for v in map(value, scene.trained) if v is not math.nan]
    kind, content = next(iter(scene.summary["space"].get(name, {"uniform": []}).items()))
    if kind == "choice":
        texts = {space.label(choice): setting(choice) for choice in content} | {v: setting(v) for v in values}
        places = {choice: (i + 0.5) / len(texts) for i, choice in enumerate(texts)}
        shown = list(texts)[:: math.ceil(len(texts) / MAX_CATEGORIES)]
        return lambda trial: places.get(value(trial)), {places[choice]: texts[choice] for choice in shown}
    ends = [v for v in (*content, *values) if is_finite(v)] or [0, 1]
    low, high = min(ends), max(ends)
    turn = math.log if kind == "loguniform" else float
    middle = math.sqrt(low * high) if kind == "loguniform" else (low + high) / 2
    if isinstance(low, int) and isinstance(high, int):  # no layer 2.5
        middle = round(middle)

    def place(number: float) -> float:
        return (turn(number) - turn(low)) / ((turn(high) - turn(low)) or 1.0)

    text = setting if name in scene.names else scale(name).text
    ticks = {place(tick): text(tick) for tick in (low, middle, high)}
    return lambda trial: place(value(trial)) if is_finite(value(trial)) else None, ticks


def tick_texts(ticks: Mapping[float, str], room: int) -> list[str]:
    """Cut texts for plotly so that all have room in this many characters."""
    return [escaped(text, max(5, room // len(ticks))) for text in ticks.values()]


def parallel_picture(scene: Scene) -> list[Picture]:
    """Draw a line a trial through all its settings, down to its objectives; better ones stand out."""
    trials, figure = scene.trained, go.Figure()
    if len(trials) < 2:
        return []
    names = [*scene.settings, *(name for name in scene.objectives if name != scene.main), scene.main]
    axes = [axis_of(scene, name) for name in names]
    heights = [-i for i in range(len(axes))]
    fading = 0.5 + len(trials) / 40  # of hundreds only the best few stand out
    for i, trial in enumerate(trials):
        won, share = trial["number"] == scene.winner, i / (len(trials) - 1)
        figure.add_scatter(
            x=[place(trial) for place, _ in axes],
            y=heights,
            mode="lines+markers",
            line={"color": GREEN if won else ORANGE, "width": 3.5 if won else 1 + 1.2 * share},
            marker={"size": 5},
            opacity=1 if won else 0.1 + 0.85 * share**fading,
            hovertext=scene.hover(trial),
            hoverinfo="text",
        )
    style: dict[str, Any] = {"showarrow": False, "bgcolor": "#ffffff", "borderpad": 1}
    for height, name, (_, ticks) in zip(heights, names, axes, strict=True):
        title = f"<b>{escaped(scene.names.get(name) or label(name), 60)}</b>"
        figure.add_annotation(x=0, y=height, yshift=16, xanchor="left", text=title, **style)
        for at, text in zip(ticks, tick_texts(ticks, 44), strict=True):
            anchor = "left" if at < 0.01 else "right" if at > 0.99 else "center"
            look = {"xanchor": anchor, "yshift": -13, "font": {"size": 11}}
            figure.add_annotation(x=at, y=height, text=text, **look, **style)
    figure.update_xaxes(range=[-0.02, 1.02], showticklabels=False, showgrid=False, fixedrange=True)
    figure.update_yaxes(range=[heights[-1] - 0.42, 0.5], tickvals=heights, showticklabels=False, fixedrange=True)
    caption = f"A line a trial, the fainter the worse by {spoken(scene.main)}"
    caption += "; green is the winner." if scene.winner is not None else "."
    drawn = draw(figure, height=AXIS_PIXELS * len(axes) + 30, showlegend=False)
    return [Picture("parallel", "Parallel coordinates", caption, drawn)]


def slice_pictures(scene: Scene) -> list[Picture]:
    """Draw the score over every setting alone, the most important first; nothing with fewer than two trials."""
    pictures = []
    for i, name in enumerate(scene.settings if len(scene.trained) > 1 else []):
        figure, (place, ticks) = go.Figure(), axis_of(scene, name)
        add_groups(figure, scene, scene.trained, place)
        texts = {"tickvals": list(ticks), "ticktext": tick_texts(ticks, 36), "tickangle": 0}
        figure.update_xaxes(range=[-0.06, 1.06], **texts)
        drawn = draw(figure, y=label(scene.main), height=260, showlegend=False)
        pictures.append(Picture(f"slice-{i}", scene.names[name], "", drawn))
    return pictures
