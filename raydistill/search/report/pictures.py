"""Plotly figures of a sweep's report, from ``sweep.json``; drawn by the page's own copy of plotly.js.

Everything is SVG, so that the page needs neither WebGL nor a policy that allows ``eval``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import accumulate, cycle
from typing import Any

from raydistill.evaluate.report.figures import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, Picture, draw, escaped
from raydistill.evaluate.report.scales import label, scale, spoken
from raydistill.search.report.scene import MAX_HOVER, Record, Scene, by_importance, measured

MARKERS: dict[str, dict[str, Any]] = {
    "stopped early": {"color": ORANGE, "symbol": "circle-open", "size": 8},
    "outside the constraints": {"color": RED, "symbol": "x-thin-open", "size": 8},
    "completed": {"color": BLUE, "size": 8},
}
FINALIST_COLORS = (GREEN, PURPLE, BLUE, RED)


def pareto_pictures(scene: Scene) -> list[Picture]:
    """The first validation objective against every other one; none with one objective."""
    names = [name for name in scene.objectives if name != scene.main]
    pictures = [pareto_picture(scene, name, f"pareto-{i}") for i, name in enumerate(names)]
    return [picture for picture in pictures if picture is not None]


def pareto_picture(scene: Scene, other: str, name: str) -> Picture | None:
    import plotly.graph_objects as go

    placed = [trial for trial in scene.trials if len(measured(trial, (other, scene.main))) == 2]
    if not placed:
        return None
    figure, front, finals = go.Figure(), set(scene.summary["front"]), set(scene.roles)
    across = partial(_measure, other)
    for group, trials in _groups(scene, placed).items():
        _points(figure, scene, across, [t for t in trials if t["number"] not in front | finals], group, MARKERS[group])
    best = sorted((t for t in placed if t["number"] in front), key=across)
    line = {"color": GREEN, "dash": "dot", "width": 1.5}
    _points(figure, scene, across, best, "Pareto front", {"color": GREEN, "size": 10}, mode="lines+markers", line=line)
    _rejected(figure, scene, other, placed)
    _finalists(figure, scene, across, [t for t in placed if t["number"] in finals])
    _limits(figure, scene, other)
    figure.update_xaxes(tickformat=scale(other).tick_format or None)
    figure.update_yaxes(tickformat=scale(scene.main).tick_format or None)
    wanted = {name: "low" if scene.objectives[name] == "min" else "high" for name in (other, scene.main)}
    caption = f"Wanted: {wanted[scene.main]} {spoken(scene.main)}, {wanted[other]} {spoken(other)}. "
    caption += "No trial is better than one of the front in every objective. Search values, one seed."
    drawn = draw(figure, x=label(other), y=label(scene.main), height=500)
    return Picture(name, "Pareto front", caption, drawn)


def _groups(scene: Scene, trials: Sequence[Record]) -> dict[str, list[Record]]:
    """Trained trials by what became of them; failed ones have no value to speak of."""
    completed = [trial for trial in trials if trial["state"] == "completed"]
    return {
        "stopped early": [trial for trial in trials if trial["state"] == "stopped"],
        "outside the constraints": [trial for trial in completed if trial["number"] not in scene.eligible],
        "completed": [trial for trial in completed if trial["number"] in scene.eligible],
    }


def _measure(name: str, trial: Record) -> float:
    return scale(name).factor * float(trial["measures"][name])


def _points(
    figure: Any,
    scene: Scene,
    across: Callable[[Record], float],
    trials: Sequence[Record],
    name: str,
    marker: Mapping[str, Any],
    **more: Any,
) -> None:
    """Trials at what ``across`` says and the first validation objective."""
    if not trials:
        return
    figure.add_scatter(
        x=[across(trial) for trial in trials],
        y=[_measure(scene.main, trial) for trial in trials],
        hovertext=[scene.hover(trial) for trial in trials],
        **{"mode": "markers", "name": name, "marker": marker, "hoverinfo": "text", **more},
    )


def _finalists(figure: Any, scene: Scene, across: Callable[[Record], float], trials: Sequence[Record]) -> None:
    """Rings with their roles; the winner is a star."""
    for trial in trials:
        won = trial["number"] == scene.winner
        marker: dict[str, Any] = {"symbol": "circle-open", "size": 16, "color": GREEN, "line": {"width": 2}}
        if won:
            marker = {"symbol": "star", "size": 17, "color": GREEN}
        more: dict[str, Any] = {
            "text": [str(trial["number"])],
            "textposition": "top center" if won else "bottom center",
        }
        more |= {"mode": "markers+text", "cliponaxis": False}
        role = "winner" if won else escaped(scene.roles[trial["number"]], MAX_HOVER)
        _points(figure, scene, across, [trial], f"{trial['number']}: {role}", marker, **more)


def _rejected(figure: Any, scene: Scene, other: str, placed: Sequence[Record]) -> None:
    """Trials that were never trained have no score: marks along the lower edge, where their size is known."""
    trials = [trial for trial in scene.trials if trial["state"] == "rejected" and measured(trial, (other,))]
    if not trials:
        return
    values = [_measure(scene.main, trial) for trial in placed]
    edge = min(values) - 0.07 * ((max(values) - min(values)) or 1)
    reasons = [f"<br>{escaped(trial['reason'] or '', 2 * MAX_HOVER)}" for trial in trials]
    figure.add_scatter(
        x=[scale(other).value(trial["measures"][other]) for trial in trials],
        y=[edge] * len(trials),
        mode="markers",
        name="rejected, not trained",
        marker={"symbol": "line-ns-open", "size": 11, "color": RED},
        hovertext=[scene.hover(trial) + reason for trial, reason in zip(trials, reasons, strict=True)],
        hoverinfo="text",
    )


def _limits(figure: Any, scene: Scene, other: str) -> None:
    style = {"line": {"color": RED, "dash": "dash", "width": 1}}
    for bound in (scene.summary["constraints"].get(other) or {}).values():
        if bound is not None:
            figure.add_vline(x=scale(other).value(bound), **style)
    for bound in (scene.summary["constraints"].get(scene.main) or {}).values():
        if bound is not None:
            figure.add_hline(y=scale(scene.main).value(bound), **style)


def history_picture(scene: Scene) -> Picture | None:
    """Every trial's value in the order of proposal, and the best so far among those that may be chosen."""
    import plotly.graph_objects as go

    groups = _groups(scene, [trial for trial in scene.trials if measured(trial, (scene.main,))])
    if not any(groups.values()):
        return None
    figure = go.Figure()
    for group, trials in groups.items():
        _points(figure, scene, lambda trial: trial["number"], trials, group, MARKERS[group])
    chosen = groups["completed"]
    if chosen:
        better = max if scene.objectives[scene.main] == "max" else min
        steps = list(accumulate((_measure(scene.main, trial) for trial in chosen), better))
        figure.add_scatter(
            x=[*(trial["number"] for trial in chosen), scene.trials[-1]["number"]],
            y=[*steps, steps[-1]],
            mode="lines",
            name="best so far",
            line={"color": GREEN, "shape": "hv", "width": 2},
            hoverinfo="skip",
        )
    figure.update_yaxes(tickformat=scale(scene.main).tick_format or None)
    caption = f"Of each trial at its best epoch: {spoken(scene.main)}."
    return Picture("history", "Best value over trials", caption, draw(figure, x="trial", y=label(scene.main)))


def curves_picture(scene: Scene) -> Picture | None:
    """The first validation objective by step, a line a trial; finalists in colour, stopped ones dashed."""
    import plotly.graph_objects as go

    figure, unit, shown = go.Figure(), scale(scene.main), set()
    states = {trial["number"]: trial for trial in scene.trials}
    curves = {int(number): points for number, points in scene.summary["curves"].items()}
    colors = {number: FINALIST_COLORS[i % len(FINALIST_COLORS)] for i, number in enumerate(scene.roles)}
    for number in sorted(curves, key=lambda number: (number in colors, number)):
        points = [point for point in curves[number] if point.get(scene.main) is not None]
        if not points or number not in states:
            continue
        state = states[number]["state"]
        color = colors.get(number) or {"completed": GREY, "failed": RED}.get(state, ORANGE)
        group = escaped(f"{number}: {scene.roles[number]}" if number in colors else state, MAX_HOVER)
        # a stopped trial's last point is a cross: no more of it is known
        ends = ["circle"] * (len(points) - 1) + ["circle" if state == "completed" else "x-thin-open"]
        sizes = [4 if symbol == "circle" else 9 for symbol in ends]
        figure.add_scatter(
            x=[point["step"] for point in points],
            y=[unit.value(point[scene.main]) for point in points],
            mode="lines+markers",
            name=group,
            legendgroup=group,
            showlegend=group not in shown,
            line={
                "color": color,
                "width": 2.5 if number in colors else 1.2,
                "dash": "solid" if state == "completed" else "dot",
            },
            marker={"symbol": ends, "size": sizes, "color": color},
            opacity=1 if number in colors else 0.75,
            hovertext=[scene.hover(states[number]) + f"<br>step {point['step']}" for point in points],
            hoverinfo="text",
        )
        shown.add(group)
    if not shown:
        return None
    figure.update_yaxes(tickformat=unit.tick_format or None)
    caption = "A line a trial. A cross is where one was stopped or failed."
    return Picture("curves", "Learning curves", caption, draw(figure, x="step", y=label(scene.main), height=460))


def importance_picture(scene: Scene) -> Picture | None:
    """Shares of what the settings explain, a group of bars a setting, the most important on top."""
    import plotly.graph_objects as go

    importance: dict[str, dict[str, float]] = {n: s for n, s in scene.summary["importance"].items() if s}
    if not importance:
        return None
    order = by_importance(scene)[::-1]
    figure = go.Figure()
    colors = dict(zip(importance, cycle((BLUE, ORANGE, GREEN, PURPLE)), strict=False))
    for objective in reversed(importance):  # plotly draws bars from below
        shares = importance[objective]
        figure.add_bar(
            x=[100 * shares.get(name, 0) for name in order],
            y=[escaped(scene.names.get(name, name), 40) for name in order],
            orientation="h",
            name=label(objective),
            marker={"color": colors[objective]},
            text=[f"{100 * shares.get(name, 0):.0f}" for name in order],
            textposition="outside",
            cliponaxis=False,
            hoverinfo="skip",
        )
    top = max(100 * share for shares in importance.values() for share in shares.values())
    figure.update_xaxes(range=[0, 1.12 * top or 1])
    figure.update_yaxes(ticklabelstandoff=6)
    caption = "How much of the differences between trials each setting explains (Optuna's estimate; 100 in all for "
    caption += "each objective). With a few dozen trials small shares mean nothing."
    height = 90 + len(order) * (16 + 20 * len(importance))
    legend = {"traceorder": "reversed"}
    drawn = draw(figure, x="share, %", height=height, bargap=0.25, legend=legend, showlegend=len(importance) > 1)
    return Picture("importance", "Which settings mattered", caption, drawn)
