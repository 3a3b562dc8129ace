"""What the pictures of a sweep's report share: the trials and their roles, colours, and the dress of a figure.

Colours of lines and points are legible on white and on black; those of text and grid are the style sheet's, which
follows the reader's theme.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from raydistill.search.front import first_validation
from raydistill.search.scales import cut, label, scale, setting

Record = Mapping[str, Any]
"""One of ``summary["trials"]``."""

BLUE, ORANGE, GREEN, RED, PURPLE, GREY = "#2f86d1", "#d9702b", "#1f9e78", "#d64550", "#9a68c8", "#8a8f98"
MAX_HOVER = 44  # characters of a line under the pointer: 420 pixels hold it


@dataclass(frozen=True)
class Picture:
    """One figure: plotly's JSON under a heading, with a sentence on how to read it."""

    name: str
    title: str
    caption: str
    figure: dict[str, Any]
    small: bool = False
    """One of several beside each other."""


@dataclass(frozen=True)
class Scene:
    """What all pictures are drawn from."""

    summary: Mapping[str, Any]
    eligible: frozenset[int]
    """Numbers of the trials that may be chosen."""
    names: Mapping[str, str]
    """Dotted name -> short name, of the space."""
    roles: Mapping[int, str] = field(default_factory=dict)
    """Finalist -> what it is."""

    @property
    def objectives(self) -> Mapping[str, str]:
        return self.summary["objectives"]

    @property
    def main(self) -> str:
        """The validation objective that the winner is chosen by."""
        return first_validation(self.summary["objectives"])

    @property
    def trials(self) -> Sequence[Record]:
        return self.summary["trials"]

    @property
    def winner(self) -> int | None:
        return (self.summary.get("winner") or {}).get("trial")

    def hover(self, trial: Record) -> str:
        """Everything about a trial; plotly reads the text as HTML."""
        lines = [f"<b>trial {trial['number']}</b>, {trial['state']}"]
        if trial["number"] in self.roles:
            lines[0] += f", {html.escape(self.roles[trial['number']], quote=False)}"
        lines += [f"{label(name)}: {scale(name).text(value)}" for name, value in measured(trial, self.objectives)]
        lines += [f"{name}: {setting(trial['params'].get(full))}" for full, name in self.names.items()]
        return "<br>".join([lines[0], *(escaped(line, MAX_HOVER) for line in lines[1:])])


def measured(trial: Record, names: Sequence[str] | Mapping[str, Any]) -> list[tuple[str, float]]:
    return [(name, trial["measures"][name]) for name in names if trial["measures"].get(name) is not None]


def by_importance(scene: Scene) -> list[str]:
    """Settings, the most important for the first validation objective first; in the order of the space without."""
    importance = scene.summary["importance"]
    shares: Mapping[str, float] = importance.get(scene.main) or next(iter(importance.values()), {})
    return sorted(scene.names, key=lambda name: -shares.get(name, 0))


def quality(scene: Scene, trials: Sequence[Record]) -> list[float]:
    """0 (worst) to 1 (best) by rank of the first validation objective; ties share the lower rank."""
    sign = 1 if scene.objectives[scene.main] == "max" else -1
    values = [sign * trial["measures"][scene.main] for trial in trials]
    ordered = sorted(values)
    return [ordered.index(value) / max(len(values) - 1, 1) for value in values]


def is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def escaped(text: str, length: int) -> str:
    """For plotly, which reads a text's tags and entities itself."""
    return html.escape(cut(text, length), quote=False)


def draw(figure: Any, *, x: str = "", y: str = "", height: int = 420, **layout: Any) -> dict[str, Any]:
    """Plotly's JSON of a figure in the report's dress."""
    axis = {"gridcolor": GREY, "zeroline": False, "automargin": True, "title": {"standoff": 10}}
    figure.update_layout(
        template="none",
        height=height,
        margin={"l": 8, "r": 12, "t": 8, "b": 8},
        font={"family": "system-ui, sans-serif", "size": 13},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.02, "x": 0, "bgcolor": "rgba(0,0,0,0)"},
        hoverlabel={"bgcolor": "#24292f", "font": {"color": "#ffffff", "size": 12}, "align": "left"},
        hovermode="closest",
    )
    figure.update_xaxes(**axis)
    figure.update_yaxes(**axis)
    if x:
        figure.update_xaxes(title_text=x)
    if y:
        figure.update_yaxes(title_text=y)
    figure.update_layout(**layout)
    content: dict[str, Any] = json.loads(figure.to_json())
    return content
