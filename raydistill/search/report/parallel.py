"""Pictures of how settings relate to the score: parallel coordinates, and the score over each
setting alone.

The axes of the parallel coordinates lie, one below the other: long names and values fit on a telephone, lines tell
their trial under the pointer, and they are SVG, where plotly's own kind needs WebGL and ``eval``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from raydistill.evaluate.report.figures import BLUE, GREEN, GREY, ORANGE, Picture, draw, escaped, is_finite
from raydistill.evaluate.report.scales import cut, label, scale, setting, spoken
from raydistill.search import space
from raydistill.search.report.scene import Record, Scene, by_importance, measured, quality

MAX_CATEGORIES = 8  # that have room for their names on a telephone
AXIS_PIXELS = 78


@dataclass(frozen=True)
class Axis:
    """One coordinate: where a value lies, from 0 to 1, and what is written where."""

    name: str
    positions: Sequence[float | None]
    """Of the trials, None where one has no such value."""
    ticks: Sequence[tuple[float, str]]


def parallel_picture(scene: Scene) -> Picture | None:
    """A line a trial through all its settings, down to its objectives; better ones more colourful."""
    import plotly.graph_objects as go

    trials = [t for t in scene.trials if t["state"] in ("completed", "stopped") and measured(t, (scene.main,))]
    if len(trials) < 2:
        return None
    trials = [trial for _, trial in sorted(zip(quality(scene, trials), trials, strict=True), key=lambda pair: pair[0])]
    axes = [setting_axis(scene, name, trials) for name in by_importance(scene)]
    axes += [measure_axis(name, trials) for name in scene.objectives if name != scene.main]
    axes.append(measure_axis(scene.main, trials))
    figure, heights = go.Figure(), [-float(i) for i in range(len(axes))]
    for height, axis in zip(heights, axes, strict=True):
        _lay(figure, height, axis)
    fading = 0.5 + len(trials) / 40  # of hundreds only the best few stand out
    for i, (trial, share) in enumerate(zip(trials, quality(scene, trials), strict=True)):
        won = trial["number"] == scene.winner
        figure.add_scatter(
            x=[axis.positions[i] for axis in axes],
            y=heights,
            mode="lines+markers",
            line={"color": GREEN if won else blend(share), "width": 3.5 if won else 1 + 1.2 * share},
            marker={"size": 5},
            opacity=1 if won else 0.1 + 0.85 * share**fading,
            hovertext=scene.hover(trial),
            hoverinfo="text",
            connectgaps=False,
        )
    hidden = {"showticklabels": False, "showgrid": False, "fixedrange": True}
    figure.update_xaxes(range=[-0.02, 1.02], **hidden)
    figure.update_yaxes(range=[heights[-1] - 0.42, 0.5], **hidden)
    caption = f"A line a trial: grey the worst by {spoken(scene.main)}, orange the best"
    caption += ", green the winner." if scene.winner is not None else "."
    drawn = draw(figure, height=AXIS_PIXELS * len(axes) + 30, showlegend=False)
    return Picture("parallel", "Parallel coordinates", caption, drawn)


def setting_axis(scene: Scene, name: str, trials: Sequence[Record]) -> Axis:
    """Of a range by its ends, logarithmic where the search was; of choices in their order, evenly spaced."""
    values = [trial["params"].get(name) for trial in trials]
    kind, content = next((k, c) for k, c in scene.summary["space"][name].items() if c is not None)
    if kind != "choice" and all(is_finite(value) for value in values if value is not None):
        logarithmic = kind == "loguniform"
        known = [value for value in values if value is not None]
        return number_axis(
            scene.names[name], values, (min([*known, content[0]]), max([*known, content[1]])), logarithmic
        )
    texts = {space.label(value): setting(value) for value in (content if kind == "choice" else [])}
    texts |= {value: setting(value) for trial, value in zip(trials, values, strict=True) if name in trial["params"]}
    places = {value: (i + 0.5) / len(texts) for i, value in enumerate(texts)}
    shown = list(texts)[:: math.ceil(len(texts) / MAX_CATEGORIES)]
    ticks = [(places[value], cut(texts[value], max(5, 44 // len(shown)))) for value in shown]
    return Axis(scene.names[name], [places[t["params"][name]] if name in t["params"] else None for t in trials], ticks)


def measure_axis(name: str, trials: Sequence[Record]) -> Axis:
    values = [trial["measures"].get(name) for trial in trials]
    known = [value for value in values if value is not None]
    return number_axis(label(name), values, (min(known), max(known)) if known else (0, 1), False, scale(name).text)


def number_axis(
    name: str, values: Sequence[Any], ends: tuple[float, float], logarithmic: bool, text: Any = setting
) -> Axis:
    low, high = (math.log(end) for end in ends) if logarithmic else ends
    width = (high - low) or 1.0
    places = [None if v is None else ((math.log(v) if logarithmic else v) - low) / width for v in values]
    shares = (0.0, 0.5, 1.0) if high > low else (0.0,)
    marks = [low + share * (high - low) for share in shares]
    ticks = [math.exp(mark) if logarithmic else mark for mark in marks]
    if all(isinstance(end, int) for end in ends):  # no layer 2.5
        ticks = [round(tick) for tick in ticks]
        places_of = [(tick - low) / width for tick in ticks]
        return Axis(name, places, list(dict(zip(places_of, map(text, ticks), strict=True)).items()))
    return Axis(name, places, list(zip(shares, map(text, ticks), strict=True)))


def _lay(figure: Any, height: float, axis: Axis) -> None:
    figure.add_shape(type="line", x0=0, x1=1, y0=height, y1=height, layer="below", line={"color": GREY, "width": 1})
    name = f"<b>{escaped(axis.name, 60)}</b>"
    style = {"showarrow": False, "bgcolor": "#ffffff", "borderpad": 1}
    figure.add_annotation(x=0, y=height, yshift=16, xanchor="left", text=name, **style)
    for place, text in axis.ticks:
        anchor = "left" if place < 0.01 else "right" if place > 0.99 else "center"
        font = {"size": 11}
        figure.add_annotation(x=place, y=height, yshift=-13, xanchor=anchor, text=escaped(text, 44), font=font, **style)


def blend(share: float) -> str:
    """Grey to orange, straight through RGB."""
    ends = [[int(color[i : i + 2], 16) for i in (1, 3, 5)] for color in (GREY, ORANGE)]
    return "#" + "".join(f"{round(a + share * (b - a)):02x}" for a, b in zip(*ends, strict=True))


def slice_pictures(scene: Scene) -> list[Picture]:
    """The score over every setting alone, the most important first; stopped trials are open circles."""
    import plotly.graph_objects as go

    trials = [t for t in scene.trials if t["state"] in ("completed", "stopped") and measured(t, (scene.main,))]
    pictures = []
    for i, name in enumerate(by_importance(scene) if len(trials) > 1 else []):
        figure, axis = go.Figure(), setting_axis(scene, name, trials)
        for state, color, symbol in (("stopped", ORANGE, "circle-open"), ("completed", BLUE, "circle")):
            chosen = [j for j, trial in enumerate(trials) if trial["state"] == state]
            figure.add_scatter(
                x=[axis.positions[j] for j in chosen],
                y=[scale(scene.main).value(trials[j]["measures"][scene.main]) for j in chosen],
                mode="markers",
                marker={"color": color, "symbol": symbol, "size": 8, "opacity": 0.8},
                hovertext=[scene.hover(trials[j]) for j in chosen],
                hoverinfo="text",
            )
        drawn = draw(figure, y=label(scene.main), height=260, showlegend=False)
        drawn["layout"]["xaxis"] |= {
            "tickvals": [place for place, _ in axis.ticks],
            "ticktext": [escaped(text, max(5, 36 // len(axis.ticks))) for _, text in axis.ticks],
            "tickangle": 0,
            "range": [-0.06, 1.06],
        }
        pictures.append(Picture(f"slice-{i}", scene.names[name], "", drawn, small=True))
    return pictures
