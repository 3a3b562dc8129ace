"""What the page and pictures of a sweep's report share: the trials, their values and their roles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raydistill.evaluate.report.figures import escaped
from raydistill.evaluate.report.scales import label, scale, setting
from raydistill.search.front import Direction, first_validation

Record = Mapping[str, Any]
"""One of ``summary["trials"]``."""

MAX_HOVER = 44  # characters of a line under the pointer: 420 pixels hold it


@dataclass(frozen=True)
class Scene:
    """The page and all its pictures are made from this."""

    summary: Mapping[str, Any]
    eligible: frozenset[int]
    """Numbers of the trials that may be chosen."""
    names: Mapping[str, str]
    """Dotted name -> short name, of the space."""
    roles: Mapping[int, str]
    """Finalist -> what it is."""

    @property
    def objectives(self) -> Mapping[str, Direction]:
        return self.summary["objectives"]

    @property
    def main(self) -> str:
        """The validation objective that the winner is chosen by."""
        return first_validation(self.objectives)

    @property
    def trials(self) -> Sequence[Record]:
        return self.summary["trials"]

    @property
    def trained(self) -> list[Record]:
        """Completed and stopped trials with a value, the worst first."""
        known = [t for t in self.trials if self.score(t) is not None and t["state"] in ("completed", "stopped")]
        return sorted(known, key=self.score, reverse=self.objectives[self.main] == "min")

    @property
    def winner(self) -> int | None:
        return (self.summary.get("winner") or {}).get("trial")

    @property
    def settings(self) -> list[str]:
        """Those of the space, the most important for the first validation objective first."""
        importance = self.summary["importance"]
        shares: Mapping[str, float] = importance.get(self.main) or next(iter(importance.values()), {})
        return sorted(self.names, key=lambda name: -shares.get(name, 0))

    def score(self, trial: Record) -> Any:
        """The first validation objective in its label's unit; None where it is not known."""
        return scale(self.main).value(trial["measures"].get(self.main))

    def hover(self, trial: Record) -> str:
        """Tell everything about a trial, as the HTML that plotly reads."""
        measures = {name: trial["measures"].get(name) for name in self.objectives}
        lines = [", ".join(filter(None, (trial["state"], self.roles.get(trial["number"]))))]
        lines += [f"{label(name)}: {scale(name).text(value)}" for name, value in measures.items() if value is not None]
        lines += [f"{name}: {setting(trial['params'].get(full))}" for full, name in self.names.items()]
        texts = [escaped(line, MAX_HOVER) for line in lines] + [escaped(trial.get("reason") or "", 2 * MAX_HOVER)]
        return "<br>".join([f"<b>trial {trial['number']}</b>", *filter(None, texts)])
