"""How often a gate lets a worse challenger pass: its true difference to the champion is exactly minus the margin, so a
95 % interval should begin above it in 2.5 % of the draws at most.

    python jobs/bench/gate.py

Two classes; the challenger alone errs on the rows that make the difference, and each model alone on 0 or 3 % more.
Printed is the worse of the two, by percentile bootstrap and as ``raydistill.evaluate.intervals`` gives it.
"""

from __future__ import annotations

import numpy as np
from rich.console import Console
from rich.table import Table

from raydistill.evaluate.intervals import interval
from raydistill.evaluate.scoreboard import Scoreboard
from raydistill.tasks import Targets
from raydistill.tasks.targets import Array
from raydistill.tasks.text_classification import TextClassification

MARGIN, DRAWS, SAMPLES = 0.02, 1000, 500
WORSE = {MARGIN: ("accuracy", "macro_f1"), MARGIN / 2: ("mcc",)}
"""Difference of the accuracies -> the metrics in which it is the margin, for two classes of like size."""
ROWS = (30, 50, 100, 200, 300, 638, 1000)
ALONE = (0.0, 0.03)


def draw(dice: np.random.Generator, num_rows: int, worse: float, alone: float) -> tuple[dict[str, Array], Array]:
    """One-hot logits of champion and challenger, and the labels."""
    labels = dice.integers(0, 2, num_rows)
    shares = [0.88 - worse - alone, worse + alone, alone, 0.12 - alone]
    right = dice.choice(4, num_rows, p=shares)  # both, champion only, challenger only, none
    answers = {"champion": np.isin(right, [0, 1]), "challenger": np.isin(right, [0, 2])}
    return {name: np.eye(2)[np.where(good, labels, 1 - labels)] for name, good in answers.items()}, labels


def passes(names: tuple[str, ...], logits: dict[str, Array], labels: Array, seed: int) -> list[bool]:
    """Whether the interval of challenger - champion begins above minus the margin: by bootstrap and ours, by metric."""
    targets, tasks = Targets(labels, np.ones(len(labels), bool)), dict.fromkeys(logits, TextClassification(("a", "b")))
    board = Scoreboard(tasks, logits, targets, num_samples=SAMPLES, seed=seed, wanted=names)
    ours, samples = board.differences("champion", "challenger"), board.samples
    found = []
    for name in names:
        value = board.scores["challenger"].values[name] - board.scores["champion"].values[name]
        found += [interval(value, samples["challenger"][name] - samples["champion"][name]), ours[name]]
    return [bounds["low"] is not None and bounds["low"] >= -MARGIN for bounds in found]


def rates(num_rows: int) -> list[float]:
    """The worst shares of draws that pass: by bootstrap and ours, by metric."""
    dice, worst = np.random.default_rng(num_rows), []
    for worse, names in WORSE.items():
        shares = []
        for alone in ALONE:
            drawn = (draw(dice, num_rows, worse, alone) for _ in range(DRAWS))
            shares.append(np.mean([passes(names, *one, seed) for seed, one in enumerate(drawn)], axis=0))
        worst += list(np.max(shares, axis=0))
    return worst


if __name__ == "__main__":
    metrics = (name for names in WORSE.values() for name in names)
    table = Table("rows", *(f"{metric}, {how}" for metric in metrics for how in ("bootstrap", "ours")))
    for rows in ROWS:
        table.add_row(str(rows), *(f"{100 * rate:.1f} %" for rate in rates(rows)))
    Console(width=140).print(table)
