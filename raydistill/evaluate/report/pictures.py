"""Plotly figures of a run's report, from ``results.json``: losses, validation, speed by shape."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

from raydistill.evaluate.latency import SECONDS_FOR_SHAPES
from raydistill.evaluate.report.comparison import COLORS, TITLES
from raydistill.evaluate.report.figures import Picture, draw, escaped
from raydistill.evaluate.report.naming import epoch_metric
from raydistill.evaluate.report.scales import scale

TERM_COLORS = ("#8ec1ee", "#1b5a94", "#5fb3c4", "#3a4fa8", "#a9b8e8")
"""Of the student's loss terms, beside the student's own: they are all of the student, and so all blue."""
MAX_NAME = 40  # characters of a loss in a legend
LOGARITHMIC = 30  # from this ratio of the largest to the smallest loss on


def loss_picture(results: Mapping[str, Any]) -> list[Picture]:
    """The student's losses by term and in sum, and the sum of the baseline."""
    import plotly.graph_objects as go

    student, baseline = (results["curves"].get(name) or [] for name in ("student", "baseline"))
    prefix = "train/loss/"
    terms = sorted({key for point in student for key in point["metrics"] if key.startswith(prefix)})
    lines = [
        (student, term, term.removeprefix(prefix), {"color": color})
        for term, color in zip(terms, cycle(TERM_COLORS), strict=False)
    ]
    if len(terms) != 1:
        lines.append((student, "train/loss", "sum, weighted", {"color": COLORS["student"]}))
    else:
        lines = [(*lines[0][:3], {"color": COLORS["student"]})]
    lines.append((baseline, "train/loss", TITLES["baseline"], {"color": COLORS["baseline"]}))
    figure, shown = go.Figure(), []
    for points, key, name, style in lines:
        known = [(p["step"], p["metrics"][key]) for p in points if p["metrics"].get(key) is not None]
        if known:
            shown += [value for _, value in known]
            _line(figure, known, escaped(name, MAX_NAME), style, "%{y:.4g} at step %{x:,}")
    if not shown:
        return []
    low, high = min(shown), max(shown)
    if low > 0 and high / low > LOGARITHMIC:
        figure.update_yaxes(type="log", **log_ticks(low, high))
    figure.update_xaxes(rangemode="tozero")
    caption = "Each term as it is, without its weight, at every logged step." if len(terms) > 1 else ""
    return [Picture("losses", "Learning curves", caption, draw(figure, x="optimizer step", y="loss", height=400))]


def validation_picture(results: Mapping[str, Any]) -> list[Picture]:
    """The metric that picks the best step, for student and baseline; the teacher's is a level."""
    import plotly.graph_objects as go

    curves = {name: results["curves"].get(name) or [] for name in ("student", "baseline")}
    metric = epoch_metric(results)
    unit, figure = scale(metric), go.Figure()
    for name, points in curves.items():
        found = [(p["step"], p["metrics"].get(f"validation/{metric}")) for p in points]
        known = [(step, unit.factor * value) for step, value in found if value is not None]
        if known:
            mode = {"mode": "lines+markers", "marker": {"size": 7, "color": COLORS[name]}}
            hover = f"%{{y:.{unit.digits}f}} {unit.unit} at step %{{x:,}}"
            _line(figure, known, TITLES[name], {"color": COLORS[name]}, hover, **mode)
    if not figure.data:
        return []
    level = ((results["teacher"]["validation"] or {}).get(metric) or {}).get("value")
    if level is not None:
        steps = [step for trace in figure.data for step in trace.x]
        ends = [(min(steps), unit.factor * level), (max(steps), unit.factor * level)]
        _line(
            figure,
            ends,
            TITLES["teacher"],
            {"color": COLORS["teacher"], "dash": "dot"},
            f"%{{y:.{unit.digits}f}} {unit.unit}",
        )
    figure.update_xaxes(rangemode="tozero")
    caption = "On the validation rows; the student has the weights of its best step."
    return [Picture("validation", "Validation", caption, draw(figure, x="optimizer step", y=unit.label, height=400))]


def speed_pictures(results: Mapping[str, Any]) -> list[Picture]:
    """Milliseconds of a call against the rows in it, and against their length."""
    shapes = {name: (results[name] or {}).get("latency_by_shape") or [] for name in ("teacher", "student")}
    times = {name: [shape for shape in known if shape["ms"] is not None] for name, known in shapes.items()}
    if not any(times.values()):
        return []
    length = (results["student"]["latency_setting"] or {}).get("length")
    skipped = [(shape["batch_size"], shape["length"]) for shape in shapes["student"] if shape["ms"] is None]
    drawn = [batch_picture(times, length, skipped), length_picture(times, skipped) if length else None]
    return [picture for picture in drawn if picture is not None]


def ending(skipped: Sequence[tuple[int, int]]) -> str:
    """Why a line ends before the shapes that were to be timed do; nothing where none was left out."""
    told = [f"{rows} row{'s' * (rows != 1)}" + (f" of {length}" if length else "") for rows, length in skipped]
    if not told:
        return ""
    return (
        f" Not timed, as all sizes together get {SECONDS_FOR_SHAPES:g} s and these would have taken longer: "
        f"{', '.join(told)}{' tokens' if skipped[0][1] else ''}."
    )


def batch_picture(
    times: Mapping[str, Sequence[Mapping[str, Any]]], length: int | None, skipped: Sequence[tuple[int, int]]
) -> Picture | None:
    lines = {n: [(t["batch_size"], t["ms"]) for t in points if t["length"] == length] for n, points in times.items()}
    title = "Latency against batch size"
    rows = f"Rows of {length} tokens." if length else "Pictures, all of one size."
    caption = f"{rows}{ending([shape for shape in skipped if shape[1] == length])}"
    return _speed("speed-batch", title, caption, "rows in a batch", {(n, ""): p for n, p in lines.items()})


def length_picture(
    times: Mapping[str, Sequence[Mapping[str, Any]]], skipped: Sequence[tuple[int, int]]
) -> Picture | None:
    """Lines for one row, dotted ones for the largest batch."""
    rows = [t["batch_size"] for points in times.values() for t in points] + [rows for rows, _ in skipped]
    largest = max(rows, default=1)
    lines = {}
    for size, style in ((1, ""), (largest, "dot")):
        for name, points in times.items():
            lines[name, style] = [(t["length"], t["ms"]) for t in points if t["batch_size"] == size]
    title = "Latency against length"
    caption = f"Lines: 1 row. Dotted: {largest} rows.{ending([shape for shape in skipped if shape[0] in (1, largest)])}"
    return _speed("speed-length", title, caption, "tokens in a row", lines)


def _speed(
    name: str, title: str, caption: str, x: str, lines: Mapping[tuple[str, str], Sequence[tuple[float, float]]]
) -> Picture | None:
    """Both axes logarithmic: a straight line of slope 1 is time in proportion."""
    import plotly.graph_objects as go

    points = [point for line in lines.values() for point in line]
    places = sorted({place for place, _ in points})
    if len(places) < 2:
        return None
    figure = go.Figure()
    for (model, dash), line in lines.items():
        if line:
            style = {"color": COLORS[model], "dash": dash or "solid"}
            marker = {"size": 7, "color": COLORS[model]}
            hover = f"%{{y:.2f}} ms, {x}: %{{x}}"
            _line(figure, line, TITLES[model], style, hover, mode="lines+markers", marker=marker, showlegend=not dash)
    figure.update_xaxes(type="log", tickvals=places, ticktext=[f"{place:g}" for place in places])
    values = [value for _, value in points]
    figure.update_yaxes(type="log", **log_ticks(min(values), max(values)))
    return Picture(name, title, caption, draw(figure, x=x, y="time of a call, ms", height=360))


def _line(figure: Any, points: Sequence[tuple[Any, Any]], name: str, style: Any, hover: str, **more: Any) -> None:
    x, y = zip(*sorted(points), strict=True)
    template = f"<b>{name}</b><br>{hover}<extra></extra>"
    figure.add_scatter(
        **{
            "x": list(x),
            "y": list(y),
            "name": name,
            "mode": "lines",
            "line": {"width": 2, **style},
            "hovertemplate": template,
            **more,
        }
    )


def log_ticks(low: float, high: float) -> dict[str, Any]:
    """1, 2, 5, 10, … from just below ``low`` to just above ``high``; of many decades the powers of ten."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    steps = (1, 2, 5) if last - first <= 3 else (1,)
    ticks = [step * 10.0**power for power in range(first, last + 1) for step in steps]
    return {"tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}
