"""Pictures of a run from ``results.json``: confusion matrices, learning curves, reliability; PNG, without a display."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from raydistill.pages.scales import cut_middle

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 120
MAX_NAME = 18  # characters of a class name on an axis
MAX_NUMBERED = 12  # classes up to which a cell has room for its number
TITLES = {"teacher": "teacher", "student": "student", "baseline": "without teacher", "champion": "champion"}
# Okabe and Ito's colours: distinct for colour-blind eyes and in grey.
COLORS = {"teacher": "#555555", "student": "#0072B2", "baseline": "#D55E00", "champion": "#009E73"}
TERM_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def write_plots(results: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write confusion.png, reliability.png and, where there are curves, curves.png; returns their paths."""
    figures = {"confusion": confusion_figure(results), "reliability": reliability_figure(results)}
    if any(results["curves"].values()):
        figures["curves"] = curves_figure(results)
    folder.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a class name beyond the font is drawn as boxes
        for name, figure in figures.items():
            figure.savefig(folder / f"{name}.png", dpi=DPI, facecolor="white", bbox_inches="tight", pad_inches=0.12)
    return [folder / f"{name}.png" for name in figures]


def confusion_figure(results: Mapping[str, Any]) -> Figure:
    """Teacher and student side by side; colour is the share of the label's rows, numbers are rows."""
    names = [_short(name) for name in results["labels"]]
    side = float(np.clip(1.9 + 0.42 * len(names), 3.2, 8.5))
    figure = _figure(2 * side + 1.2, side + 0.6)
    axes = figure.subplots(1, 2, sharey=True)
    font = 9 if len(names) <= MAX_NUMBERED else float(np.clip(190 / len(names), 3.5, 9))
    for axis, name in zip(axes, ("teacher", "student"), strict=True):
        counts = np.array(results[name]["confusion"])
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axis.set_xticks(range(len(names)), names, rotation=45 if len(names) <= MAX_NUMBERED else 90, fontsize=font)
        if len(names) <= MAX_NUMBERED:
            for label in axis.get_xticklabels():
                label.set(ha="right", rotation_mode="anchor")
            _number_cells(axis, counts, shares)
        axis.set_yticks(range(len(names)), names, fontsize=font)
        axis.set(title=f"{TITLES[name]}, accuracy {100 * results[name]['test']['accuracy']['value']:.1f} %")
        axis.set_xlabel("prediction")
        axis.spines[:].set_visible(False)
        axis.tick_params(length=0)
    axes[0].set_ylabel("label")
    bar = figure.colorbar(image, ax=axes, fraction=0.03, pad=0.02, label="share of the label's rows")
    bar.outline.set_visible(False)
    return figure


def _number_cells(axis: Axes, counts: np.ndarray, shares: np.ndarray) -> None:
    for (row, column), count in np.ndenumerate(counts):
        color = "white" if shares[row, column] > 0.55 else "#333333" if count else "#bbbbbb"
        axis.text(column, row, f"{count:,}", ha="center", va="center", color=color, fontsize=8)


def curves_figure(results: Mapping[str, Any]) -> Figure:
    """Above, train losses (the student's by term, too); below, the validation metric that picks the best step."""
    figure = _figure(7.5, 6.0)
    losses, scores = figure.subplots(2, 1, sharex=True)
    curves = {name: results["curves"].get(name, []) for name in ("student", "baseline")}
    terms = sorted({key for point in curves["student"] for key in point["metrics"] if key.startswith("train/loss/")})
    for term, color in zip(terms, cycle(TERM_COLORS), strict=False):
        _line(losses, curves["student"], term, color=color, label=f"student, {term.removeprefix('train/loss/')}", lw=1)
    for name, style in (("student", "-"), ("baseline", "--")):
        label = f"{TITLES[name]}, sum" if len(terms) > 1 or name == "baseline" else TITLES[name]
        if not (name == "student" and len(terms) == 1):
            _line(losses, curves[name], "train/loss", color="#222222", label=label, lw=1.4, ls=style)
    metric = validation_metric(results, curves.values())
    for name, points in curves.items():
        _line(scores, points, f"validation/{metric}", color=COLORS[name], label=TITLES[name], marker="o", ms=4, lw=1.4)
    teacher = (results["teacher"]["validation"] or {}).get(metric)
    if teacher is not None and teacher["value"] is not None:
        scores.axhline(teacher["value"], color=COLORS["teacher"], ls=":", lw=1.2, label="teacher")
    losses.set_ylabel("train loss")
    scores.set(ylabel=f"validation {metric.replace('_', ' ')}", xlabel="optimizer step")
    for axis in (losses, scores):
        _clean(axis)
        _legend(axis)
    return figure


def validation_metric(results: Mapping[str, Any], curves: Iterable[list[dict[str, Any]]]) -> str:
    """The config's choice, unless the curves have only others."""
    found = {key for points in curves for point in points for key in point["metrics"] if key.startswith("validation/")}
    chosen = str((results["config"].get("evaluate") or {}).get("metric", "accuracy"))
    return chosen if not found or f"validation/{chosen}" in found else min(found).removeprefix("validation/")


def _line(axis: Axes, points: list[dict[str, Any]], key: str, **style: Any) -> None:
    known = [(point["step"], point["metrics"][key]) for point in points if point["metrics"].get(key) is not None]
    if known:
        axis.plot(*zip(*known, strict=True), **style)


def reliability_figure(results: Mapping[str, Any]) -> Figure:
    """Accuracy against confidence in 15 bins; the size of a point grows with its rows, the diagonal is perfect."""
    figure = _figure(6.6, 4.4)
    axis = figure.subplots()
    axis.plot([0, 1], [0, 1], color="#bbbbbb", lw=1, ls="--", zorder=0)
    for name in ("teacher", "baseline", "student"):
        if results[name] is None:
            continue
        bins = results[name]["reliability"]
        rows = np.array([b["rows"] for b in bins])
        x, y = ([b[key] for b in bins] for key in ("confidence", "accuracy"))
        error = results[name]["test"]["calibration_error"]["value"]
        axis.plot(x, y, color=COLORS[name], lw=1.2, alpha=0.8)
        axis.scatter(x, y, s=8 + 160 * rows / rows.sum(), color=COLORS[name], alpha=0.8, lw=0)
        axis.plot([], [], "o-", color=COLORS[name], ms=5, label=f"{TITLES[name]}, error {error:.3f}")
    left = max(0.0, 0.95 / len(results["labels"]) - 0.05)  # the largest of C probabilities is at least 1 / C
    axis.set(xlim=(left, 1.02), ylim=(-0.03, 1.03), xlabel="confidence", ylabel="accuracy (test)")
    _clean(axis)
    _legend(axis)
    return figure


def _figure(width: float, height: float) -> Figure:
    """A figure of its own canvas (inches): pyplot would keep it alive and choose a display."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _clean(axis: Axes) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(color="#eeeeee", lw=0.8)
    axis.set_axisbelow(True)


def _legend(axis: Axes) -> None:
    """Right of the axes, where it hides no line."""
    if axis.get_legend_handles_labels()[0]:
        axis.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))


def _short(name: str) -> str:
    """A class name that fits an axis; "$" would start a formula."""
    return cut_middle(name, MAX_NAME).replace("$", r"\$")
