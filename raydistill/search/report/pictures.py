"""Plotly figures of a sweep's report, from ``sweep.json``; drawn by the page's own copy of plotly.js.

Not Optuna's: those leave out trials that were stopped, roles and rejected trials, tell little under the pointer, and
their parallel coordinates need a wide screen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from operator import itemgetter
from typing import Any

import plotly.graph_objects as go

from raydistill.evaluate.report.figures import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, Picture, draw, escaped
from raydistill.evaluate.report.scales import label, scale, spoken
from raydistill.search.report.scene import MAX_HOVER, Record, Scene

FINALIST_COLORS = (GREEN, PURPLE, BLUE, RED)


def add_points(
    figure: go.Figure, scene: Scene, trials: Sequence[Record], across: Callable[[Record], Any], **style: Any
) -> None:
    """Add trials at what ``across`` says and the first validation objective."""
    if trials:  # without any there is nothing to name in the legend
        places = {"x": [across(trial) for trial in trials], "y": [scene.score(trial) for trial in trials]}
        told = {"hovertext": [scene.hover(trial) for trial in trials], "hoverinfo": "text"}
        figure.add_scatter(**{"mode": "markers", **places, **told, **style})


def add_groups(figure: go.Figure, scene: Scene, trials: Sequence[Record], across: Callable[[Record], Any]) -> None:
    """Add trained trials, told apart by what became of them."""
    completed = [trial for trial in trials if trial["state"] == "completed"]
    stopped = [trial for trial in trials if trial["state"] == "stopped"]
    outside = [trial for trial in completed if trial["number"] not in scene.eligible]
    eligible = [trial for trial in completed if trial["number"] in scene.eligible]
    for name, members, color, symbol in (
        ("stopped early", stopped, ORANGE, "circle-open"),
        ("outside the constraints", outside, RED, "x-thin-open"),
        ("completed", eligible, BLUE, "circle"),
    ):
        add_points(figure, scene, members, across, name=name, marker={"color": color, "symbol": symbol, "size": 8})


def pareto_pictures(scene: Scene) -> list[Picture]:
    """Draw the first validation objective against every other one; nothing with one objective."""
    others = [name for name in scene.objectives if name != scene.main]
    return [picture for i, name in enumerate(others) for picture in pareto_picture(scene, name, f"pareto-{i}")]


def pareto_picture(scene: Scene, other: str, name: str) -> list[Picture]:
    """Draw trials, the front, finalists with their roles, and what the constraints forbid."""

    def across(trial: Record) -> Any:
        return scale(other).value(trial["measures"].get(other))

    placed = [t for t in scene.trials if scene.score(t) is not None and across(t) is not None]
    if not placed:
        return []
    figure, front = go.Figure(), set(scene.summary["front"])
    add_groups(figure, scene, [t for t in placed if t["number"] not in front | set(scene.roles)], across)
    best = sorted((t for t in placed if t["number"] in front), key=across)
    look: dict[str, Any] = {"mode": "lines+markers", "marker": {"size": 10}, "line": {"color": GREEN, "dash": "dot"}}
    add_points(figure, scene, best, across, name="Pareto front", **look)
    for trial in (t for t in placed if t["number"] in scene.roles):
        number, won = trial["number"], trial["number"] == scene.winner
        look = {"mode": "markers+text", "text": [number], "textposition": "top center" if won else "bottom center"}
        look["marker"] = {"symbol": "star" if won else "circle-open", "size": 17, "color": GREEN}
        look["marker"]["line"] = {"width": 2, "color": GREEN}
        role = "winner" if won else escaped(scene.roles[number], MAX_HOVER)
        add_points(figure, scene, [trial], across, name=f"{number}: {role}", cliponaxis=False, **look)
    for measure, add_limit in ((other, figure.add_vline), (scene.main, figure.add_hline)):
        for bound in (scene.summary["constraints"].get(measure) or {}).values():
            if bound is not None:
                add_limit(scale(measure).value(bound), line={"color": RED, "dash": "dash", "width": 1})
    figure.update_xaxes(tickformat=scale(other).tick_format or None)
    wanted = {"min": "low", "max": "high"}
    caption = f"Wanted: {wanted[scene.objectives[scene.main]]} {spoken(scene.main)}, "
    caption += f"{wanted[scene.objectives[other]]} {spoken(other)}. "
    caption += "No trial is better than one of the front in every objective. Search values, one seed."
    return [Picture(name, "Pareto front", caption, draw(figure, x=label(other), y=label(scene.main), height=500))]


def history_picture(scene: Scene) -> list[Picture]:
    """Draw every trial's value in the order of proposal, and the best so far among those that may be chosen."""
    if not scene.trained:
        return []
    figure, number = go.Figure(), itemgetter("number")
    add_groups(figure, scene, scene.trained, number)
    chosen = sorted((trial for trial in scene.trained if trial["number"] in scene.eligible), key=number)
    if chosen:
        best = list(accumulate(map(scene.score, chosen), max if scene.objectives[scene.main] == "max" else min))
        steps = {"x": [*map(number, chosen), number(scene.trials[-1])], "y": [*best, best[-1]]}
        line = {"color": GREEN, "shape": "hv", "width": 2}
        figure.add_scatter(**steps, mode="lines", name="best so far", line=line, hoverinfo="skip")
    caption = f"Of each trial at its best epoch: {spoken(scene.main)}."
    return [Picture("history", "Best value over trials", caption, draw(figure, x="trial", y=label(scene.main)))]


def curves_picture(scene: Scene) -> list[Picture]:
    """Draw the first validation objective by step, a line a trial: finalists in colour, stopped ones dotted."""
    figure, shown = go.Figure(), set()
    colors = {number: FINALIST_COLORS[i % len(FINALIST_COLORS)] for i, number in enumerate(scene.roles)}
    for trial in sorted(scene.trials, key=lambda trial: trial["number"] in colors):  # finalists over the others
        number, state = trial["number"], trial["state"]
        points = [p for p in scene.summary["curves"].get(str(number), []) if p.get(scene.main) is not None]
        if not points:
            continue
        is_final, is_complete = number in colors, state == "completed"
        color = colors.get(number) or {"completed": GREY, "failed": RED}.get(state, ORANGE)
        group = escaped(f"{number}: {scene.roles[number]}" if is_final else state, MAX_HOVER)
        figure.add_scatter(
            x=[point["step"] for point in points],
            y=[scale(scene.main).value(point[scene.main]) for point in points],
            mode="lines+markers",
            name=group,
            legendgroup=group,
            showlegend=group not in shown,
            line={"color": color, "width": 2.5 if is_final else 1.2, "dash": "solid" if is_complete else "dot"},
            # a stopped trial's last point is a cross: no more of it is known
            marker={
                "symbol": [*["circle"] * (len(points) - 1), "circle" if is_complete else "x-thin-open"],
                "size": [*[4] * (len(points) - 1), 4 if is_complete else 9],
            },
            opacity=1 if is_final else 0.75,
            hovertext=[f"{scene.hover(trial)}<br>step {point['step']}" for point in points],
            hoverinfo="text",
        )
        shown.add(group)
    caption = "A line a trial. A cross is where one was stopped or failed."
    drawn = draw(figure, x="step", y=label(scene.main), height=460)
    return [Picture("curves", "Learning curves", caption, drawn)] if shown else []


def importance_picture(scene: Scene) -> list[Picture]:
    """Draw the shares of what the settings explain, a group of bars a setting, the most important on top."""
    importance = {name: shares for name, shares in scene.summary["importance"].items() if shares}
    if not importance:
        return []
    figure = go.Figure()
    for objective, shares in importance.items():
        figure.add_bar(
            x=[100 * shares.get(name, 0) for name in scene.settings],
            y=[escaped(scene.names[name], 40) for name in scene.settings],
            orientation="h",
            name=label(objective),
            texttemplate="%{x:.0f}",
            textposition="outside",
            cliponaxis=False,
            hoverinfo="skip",
        )
    figure.update_yaxes(ticklabelstandoff=6, autorange="reversed")
    caption = "How much of the differences between trials each setting explains (Optuna's estimate; 100 in all for "
    caption += "each objective). With a few dozen trials small shares mean nothing."
    figure.update_layout(colorway=(BLUE, ORANGE, GREEN, PURPLE), bargap=0.25, showlegend=len(importance) > 1)
    drawn = draw(figure, x="share, %", height=90 + len(scene.settings) * (16 + 20 * len(importance)))
    return [Picture("importance", "Which settings mattered", caption, drawn)]
