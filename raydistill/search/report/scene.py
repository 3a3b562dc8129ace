"""What the pictures of a sweep's report share: the trials and their roles."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from raydistill.evaluate.report.figures import escaped
from raydistill.evaluate.report.scales import label, scale, setting
from raydistill.search.front import first_validation

Record = Mapping[str, Any]
"""One of ``summary["trials"]``."""

MAX_HOVER = 44  # characters of a line under the pointer: 420 pixels hold it


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
