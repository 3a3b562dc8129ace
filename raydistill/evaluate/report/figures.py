"""What the pictures of all pages share: colours, and the dress of a figure.

Colours of lines and points are legible on white and on black; those of text and grid are the style sheet's, which
follows the reader's theme. Everything is SVG, so that a page needs neither WebGL nor a policy that allows ``eval``.
"""

from __future__ import annotations

import html
import json
import math
from dataclasses import dataclass
from typing import Any

from raydistill.evaluate.report.scales import cut

BLUE, ORANGE, GREEN, RED, PURPLE, GREY = "#2f86d1", "#d9702b", "#1f9e78", "#d64550", "#9a68c8", "#8a8f98"


@dataclass(frozen=True)
class Picture:
    """One figure: plotly's JSON under a heading, with a sentence on how to read it."""

    name: str
    title: str
    caption: str
    figure: dict[str, Any]


def is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def escaped(text: str, length: int) -> str:
    """For plotly, which reads a text's tags and entities itself."""
    return html.escape(cut(text, length), quote=False)


def draw(figure: Any, *, x: str = "", y: str = "", height: int = 420, **layout: Any) -> dict[str, Any]:
    """Plotly's JSON of a figure in the pages' dress."""
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
