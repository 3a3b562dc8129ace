"""Models beside each other: the table of their figures, confusion matrices, figures by label, pictures of answers.

A page of a run has teacher, student and the like, one of a gate challenger and champion; both are contenders here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np

from raydistill.evaluate.latency import of_tokens
from raydistill.evaluate.report.figures import BLUE, GREEN, GREY, ORANGE, PURPLE, Picture, draw
from raydistill.evaluate.report.scales import ABSENT, cut_middle, scale

TITLES = {
    "teacher": "teacher",
    "student": "student",
    "baseline": "without teacher",
    "tfidf": "TF-IDF, linear",
    "champion": "champion",
}
COLORS = {  # of a model, on every chart and page
    "teacher": GREY,
    "student": BLUE,
    "challenger": BLUE,
    "baseline": ORANGE,
    "tfidf": PURPLE,
    "champion": GREEN,
}
COSTS = ("num_parameters", "bytes", "p50", "p95", "throughput")
RIGHT, WRONG = "31, 100, 180", "184, 80, 26"
MAX_NUMBERED = 10  # classes up to which a cell of a confusion matrix has room for its number
MAX_CLASSES = 30  # that a confusion matrix shows
MOST_TOLD = 5  # others for which a label is told to be taken, where a matrix leaves labels out
MAX_ROW_NAME, MAX_COLUMN_NAME = 18, 14  # characters of a class name at a confusion matrix


@dataclass(frozen=True)
class Contender:
    """One model of a page."""

    name: str
    title: str
    note: str
    """What else its column's head says; may be empty."""
    model: Mapping[str, Any]
    """With num_parameters, bytes, latency_ms, throughput, and what the task has of per_class, confusion, reliability,
    pairwise_pr_auc, scatter."""
    figures: Mapping[str, Mapping[str, float | None]]
    """Metric -> {value, low, high} on the rows of the page."""
    is_main: bool = False

    @property
    def color(self) -> str:
        return COLORS[self.name]

    def cost(self, name: str) -> float | None:
        found: float | None = (self.model["latency_ms"] or {}).get(name) if name in ("p50", "p95") else self.model[name]
        return found


def side_by_side(contenders: Sequence[Contender], labels: Sequence[str]) -> dict[str, Any]:
    """What ``parts.html`` shows of contenders: themselves, matrices and labels where the task has them, and how speeds
    were measured."""
    first = contenders[0].model
    return {
        "contenders": contenders,
        "matrices": matrices(contenders, labels) if "confusion" in first else None,
        "classes": class_rows(contenders) if "per_class" in first else [],
        "setting": latency_setting(contenders),
    }


@dataclass(frozen=True)
class Cell:
    text: str
    detail: str = ""
    """An interval."""


@dataclass(frozen=True)
class Row:
    label: str
    cells: Sequence[Cell]


def quality_rows(contenders: Sequence[Contender], metrics: Sequence[str]) -> list[Row]:
    """A metric a row, with its interval."""
    return [
        Row(scale(name).label, [measured(name, contender.figures.get(name)) for contender in contenders])
        for name in metrics
    ]


def cost_rows(contenders: Sequence[Contender]) -> list[Row]:
    """Size and speed; what was measured of no model has no row."""
    rows = []
    for name in COSTS:
        values = [contender.cost(name) for contender in contenders]
        if any(value is not None for value in values):
            rows.append(Row(scale(name).label, [Cell(scale(name).text(value)) for value in values]))
    return rows


def measured(name: str, figure: Mapping[str, float | None] | None) -> Cell:
    """A value and its interval in the metric's unit."""
    if figure is None or figure["value"] is None:
        return Cell(ABSENT)
    return Cell(scale(name).text(figure["value"]), interval(name, figure))


def interval(name: str, figure: Mapping[str, float | None]) -> str:
    """``low to high``; empty where the metric has none."""
    if figure["low"] is None or figure["high"] is None:
        return ""
    return f"{scale(name).text(figure['low'])} to {scale(name).text(figure['high'])}"


def latency_setting(contenders: Sequence[Contender]) -> str:
    """Under which conditions speeds were measured, in a sentence; empty where none was."""
    settings = {c.title: c.model["latency_setting"] for c in contenders if c.model.get("latency_setting")}
    if not settings:
        return ""
    setting = next(iter(settings.values()))
    devices = {
        title: f"{each['threads']} CPU threads" if each["device"] == "cpu" else str(each["device"])
        for title, each in settings.items()
    }
    device = next(iter(devices.values()))
    if len(set(devices.values())) > 1:
        device = ", ".join(f"{title} on {where}" for title, where in devices.items())
    text = f"Latency of 1 row, rows a second in batches of {setting['batch_size']}"
    text += of_tokens(setting)
    return f"{text}; {device}{', ' + setting['dtype'] if setting.get('dtype') else ''}, models timed alternately."


@dataclass(frozen=True)
class Square:
    """A cell of a confusion matrix."""

    count: int
    share: float
    """Of the label's rows, 0 to 1."""
    label: str
    prediction: str
    is_right: bool

    @property
    def text(self) -> str:
        return str(self.count or "")

    @property
    def title(self) -> str:
        taken = "" if self.is_right else f" taken for {self.prediction}"
        return f"{self.count:,}: {self.label}{taken}, {100 * self.share:.1f} %"

    @property
    def brief(self) -> str:
        """The title where there are many, of empty ones none: a page is to have no more than 2 MB."""
        return f"{self.count:,}" if self.count else ""

    @property
    def shade(self) -> str:
        """The style in ten steps, by its name in the style sheet."""
        return (
            f"{'r' if self.is_right else 'w'}{ceil(10 * (0.12 + 0.88 * self.share**0.8) - 1e-9)}" if self.count else ""
        )

    @property
    def style(self) -> str:
        color = RIGHT if self.is_right else WRONG
        return f"background: rgba({color}, {0.12 + 0.88 * self.share**0.8:.2f})" if self.count else ""

    @property
    def is_strong(self) -> bool:
        """Whether its number is legible in white only."""
        return self.share > 0.4


@dataclass(frozen=True)
class PairSquare:
    """A cell of a matrix of pairwise precision-recall areas."""

    value: float | None
    random: float
    """What random scores reach: the share of the label in the rows of both."""
    label: str
    other: str

    @property
    def lost(self) -> float:
        """Share of what there is to gain over random scores that is missed, 0 to 1."""
        return 0.0 if self.value is None else min(1.0, max(0.0, (1 - self.value) / (1 - self.random)))

    @property
    def text(self) -> str:
        return "" if self.value is None else f"{self.value:.2f}"

    @property
    def title(self) -> str:
        if self.value is None:
            return ""
        return f"{self.value:.3f}: {self.label} against {self.other}; random scores reach {self.random:.2f}"

    @property
    def brief(self) -> str:
        return self.text if self.shade else ""

    @property
    def shade(self) -> str:
        return f"w{round(10 * self.lost**0.6)}" if self.lost**0.6 >= 0.05 else ""

    @property
    def style(self) -> str:
        return f"background: rgba({WRONG}, {self.lost**0.6:.2f})" if self.lost else ""

    @property
    def is_strong(self) -> bool:
        return self.lost > 0.3


@dataclass(frozen=True)
class Matrices:
    """Matrices of all contenders over the same classes."""

    names: Sequence[str]
    shown: Sequence[tuple[str, str]]
    """The names as they fit beside a row and over a column."""
    hidden: int
    """Classes that are left out."""
    tables: Sequence[tuple[Contender, Sequence[Sequence[Square | PairSquare]]]]
    told: Sequence[tuple[str, str]] = ()
    """Where some are left out, what the main contender makes of every class that is not told perfectly, in words."""

    @property
    def main(self) -> str:
        return main_of([one for one, _ in self.tables]).title

    @property
    def is_numbered(self) -> bool:
        return len(self.names) <= MAX_NUMBERED

    @property
    def is_upright(self) -> bool:
        """Whether the names over the columns have room without being turned."""
        return len(self.names) <= 4 and max(map(len, self.names)) <= 8


def matrices(contenders: Sequence[Contender], names: Sequence[str]) -> Matrices:
    """Confusion matrices: rows are labels, columns predictions. Of very many classes those with the most errors are
    shown."""
    counts = {contender.name: np.array(contender.model["confusion"]) for contender in contenders}
    wrong = sum(table.sum(axis=0) + table.sum(axis=1) - 2 * table.diagonal() for table in counts.values())
    kept = worst(np.asarray(wrong))
    tables = [(contender, squares(counts[contender.name], kept, names)) for contender in contenders]
    return laid_out(names, kept, tables, taken_for(counts[main_of(contenders).name], names))


def pair_matrices(contenders: Sequence[Contender], names: Sequence[str]) -> Matrices:
    """How well each class (down) is told from each other (across). Of very many classes the hardest are shown."""
    values = {contender.name: np.array(contender.model["pairwise_pr_auc"], float) for contender in contenders}
    support = np.array([entry["support"] for entry in contenders[0].model["per_class"]], float)
    random = support[:, None] / np.maximum(support[:, None] + support, 1)
    missed = sum(np.nansum(1 - table, axis=0) + np.nansum(1 - table, axis=1) for table in values.values())
    kept = worst(np.asarray(missed))

    def square(value: float, i: int, j: int) -> PairSquare:
        return PairSquare(None if np.isnan(value) else float(value), float(random[i, j]), names[i], names[j])

    tables = [(c, [[square(values[c.name][i, j], i, j) for j in kept] for i in kept]) for c in contenders]
    return laid_out(names, kept, tables, hardest(values[main_of(contenders).name], names))


def main_of(contenders: Sequence[Contender]) -> Contender:
    return next((one for one in contenders if one.is_main), contenders[0])


def taken_for(counts: np.ndarray, names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Of every class that is not always right how many of its rows are, and for what the others are taken."""
    for i, row in enumerate(counts):
        wrong = [j for j in np.argsort(-row, kind="stable").tolist() if j != i and row[j]]
        told = [f"{names[j]} {row[j]:,}" for j in wrong[:MOST_TOLD]]
        rest = sum(int(row[j]) for j in wrong[MOST_TOLD:])
        told += [f"others {rest:,}"] if rest else []
        if told:
            yield names[i], f"{row[i]:,} of {row.sum():,} right; taken for {', '.join(told)}"


def hardest(values: np.ndarray, names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Of every class those that it is told from worst, if not perfectly."""
    for i, row in enumerate(values):
        found = [j for j in np.argsort(row, kind="stable").tolist() if row[j] < 1]  # not a number is not below 1
        if found:
            yield names[i], ", ".join(f"{names[j]} {row[j]:.2f}" for j in found[:MOST_TOLD])


def worst(badness: np.ndarray) -> list[int]:
    """The classes that a matrix has room for, in their order: all, or the worst ones."""
    return sorted(np.argsort(-badness, kind="stable")[:MAX_CLASSES].tolist())


def laid_out(
    names: Sequence[str], kept: Sequence[int], tables: Sequence[Any], told: Iterable[tuple[str, str]]
) -> Matrices:
    shown = [(cut_middle(names[i], MAX_ROW_NAME), cut_middle(names[i], MAX_COLUMN_NAME)) for i in kept]
    hidden = len(names) - len(kept)
    return Matrices([names[i] for i in kept], shown, hidden, tables, list(told) if hidden else ())


def squares(counts: np.ndarray, kept: Sequence[int], names: Sequence[str]) -> list[list[Square]]:
    totals = np.maximum(counts.sum(axis=1), 1)
    return [
        [Square(int(counts[i, j]), float(counts[i, j] / totals[i]), names[i], names[j], bool(i == j)) for j in kept]
        for i in kept
    ]


def class_rows(contenders: Sequence[Contender]) -> list[Row]:
    """F1 of every label; the first cell is the number of its rows."""
    rows = []
    for i, entry in enumerate(contenders[0].model["per_class"]):
        found = [contender.model["per_class"][i] for contender in contenders]
        cells = [Cell(share(one["f1"]), behind(one)) for one in found]
        rows.append(Row(entry["name"], [Cell(f"{entry['support']:,}"), *cells]))
    return rows


def share(value: float) -> str:
    return scale("macro_f1").text(value)


def behind(entry: Mapping[str, Any]) -> str:
    """What stands below a label's F1."""
    text = f"{share(entry['precision'])} / {share(entry['recall'])}"
    if "threshold" in entry:
        text += f"; {scale('auc').text(entry['auc'])}, ≥ {entry['threshold']:.2f}"
    return text


def answer_pictures(contenders: Sequence[Contender], num_outputs: int) -> list[Picture]:
    """How answers lie to what is right: by confidence or by target, where the task has such figures."""
    first = contenders[0].model
    found = [reliability_picture(contenders, num_outputs)] if "reliability" in first else []
    return [*found, *([scatter_picture(contenders)] if "scatter" in first else [])]


def scatter_picture(contenders: Sequence[Contender]) -> Picture:
    """Answers against targets; on the diagonal they are equal."""
    import plotly.graph_objects as go

    points = {contender.name: contender.model["scatter"] for contender in contenders}
    values = [value for pairs in points.values() for pair in pairs for value in pair]
    ends, figure = [min(values), max(values)], go.Figure()
    line = {"color": GREY, "dash": "dot", "width": 1.5}
    figure.add_scatter(x=ends, y=ends, mode="lines", name="perfect", line=line, hoverinfo="skip")
    for contender in contenders:
        x, y = zip(*points[contender.name], strict=True)
        figure.add_scatter(
            x=list(x),
            y=list(y),
            mode="markers",
            name=contender.title,
            marker={"color": contender.color, "size": 7 if contender.is_main else 5},
            opacity=0.7 if contender.is_main else 0.4,
            hovertemplate=f"<b>{contender.title}</b><br>target %{{x:.4g}}<br>answer %{{y:.4g}}<extra></extra>",
        )
    caption = f"A point a row, {max(map(len, points.values())):,} rows; on the dotted line answer and target are equal."
    return Picture("scatter", "Answers against targets", caption, draw(figure, x="target", y="answer", height=420))


def reliability_picture(contenders: Sequence[Contender], num_classes: int) -> Picture:
    """Accuracy against confidence in 15 bins; a point grows with its rows, the diagonal is perfect."""
    import plotly.graph_objects as go

    figure = go.Figure()
    left = max(0.0, 95 / num_classes - 5)  # the largest of C probabilities is at least 1 / C
    line = {"color": GREY, "dash": "dot", "width": 1.5}
    figure.add_scatter(x=[left, 100], y=[left, 100], mode="lines", name="perfect", line=line, hoverinfo="skip")
    for contender in contenders:
        bins = contender.model["reliability"]
        total = sum(entry["rows"] for entry in bins) or 1
        error = scale("calibration_error").text((contender.figures.get("calibration_error") or {}).get("value"))
        figure.add_scatter(
            x=[100 * entry["confidence"] for entry in bins],
            y=[100 * entry["accuracy"] for entry in bins],
            mode="lines+markers",
            name=f"{contender.title}, error {error}",
            line={"color": contender.color, "width": 2.5 if contender.is_main else 1.5},
            marker={"size": [6 + 24 * (entry["rows"] / total) ** 0.5 for entry in bins], "color": contender.color},
            opacity=0.85,
            hovertext=[
                f"<b>{contender.title}</b><br>confidence {100 * entry['confidence']:.1f} %<br>"
                f"accuracy {100 * entry['accuracy']:.1f} %<br>{entry['rows']:,} rows"
                for entry in bins
            ],
            hoverinfo="text",
        )
    figure.update_xaxes(range=[left - 2, 102])
    figure.update_yaxes(range=[-3, 103])
    caption = "Of the rows that a model is so sure of, how many it gets right. A larger point has more rows; a line "
    caption += "below the dotted one is too sure of itself."
    drawn = draw(figure, x="confidence, %", y="accuracy, %", height=420)
    return Picture("reliability", "Reliability", caption, drawn)
