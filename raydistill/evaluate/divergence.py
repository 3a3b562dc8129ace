"""Whether a training diverged: it ends with a model that sees nothing of its rows, and on the way its loss had risen.

One that is merely too short, or too slow, sees nothing either, but its loss falls, or stays where it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

RISEN = 3.0
"""Times the loss before the first step that the highest quarter of the reports has in the mean. Batches of 16 rows of a
model that does not move differed by 2; at rates of 5 and 50 it was 20 and 400."""


@dataclass(frozen=True)
class Divergence:
    """A training that diverged, and the setting that is to be changed."""

    setting: str
    value: float
    why: str
    """What shows it, a clause."""

    @property
    def advice(self) -> str:
        return f"lower {self.setting} (now {self.value:g})"


def divergence_of(model: Mapping[str, Any]) -> Divergence | None:
    """That of a model in results.json, of one from before there was any, too."""
    found = model.get("diverged")
    return None if found is None else Divergence(**found)


def rise(history: Sequence[Mapping[str, Any]], setting: str, value: float) -> Divergence | None:
    """How the loss of one stage has risen, by its reports, the first of its first step; ``setting``, ``value``: its
    learning rate. Where it has, the training has diverged if its model sees nothing."""
    losses = [_loss(entry) for entry in history if "train/loss" in entry]
    if len(losses) < 2 or losses[0] <= 0:
        return None
    highest = float(np.mean(sorted(losses)[-max(1, len(losses) // 4) :]))
    if highest < RISEN * losses[0]:
        return None
    return Divergence(setting, value, f"its loss was {losses[0]:.3g} at the first step and rose to {highest:.3g}")


def _loss(entry: Mapping[str, Any]) -> float:
    """A report's loss; where weights or temperatures change on the way the sum of its terms, which they do not move."""
    if not any(name.startswith(("train/weight/", "train/temperature/")) for name in entry):
        return float(entry["train/loss"])
    return float(sum(value for name, value in entry.items() if name.startswith("train/loss/")))
