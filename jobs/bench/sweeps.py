"""What sweeps cost and find: several of the same problem side by side, each run or, if finished, read from storage.

    python jobs/bench/sweeps.py random.yaml bayesian.yaml

Per sweep: trials, training steps of all trials, passes of a teacher inside the loop that the recording saved, the wall
time of teacher, search and finals over what cannot be saved (teacher pass + trial seconds ÷ trials at a time), the time
from a warm trial's start to its first step, the best validation value after shares of the budget, and the winner beside
the config's own settings on the same test rows. Budgets are counted in training steps, which no busy neighbour changes.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

import raydistill

SHARES = (0.25, 0.5, 0.75, 1.0)


def figures(summary: Mapping[str, Any]) -> dict[str, float]:
    """The costs of one sweep; seconds, where it was run in one go."""
    seconds, trials = summary["seconds"], [t for t in summary["trials"] if t["validations"] and not t["reused"]]
    at_once = summary["concurrency"] or 1
    recorded = seconds.get("shared/teacher", 0.0) + seconds.get("shared/record", 0.0)
    needed = recorded + sum(trial["seconds"] for trial in trials) / at_once
    spent = seconds.get("teacher", 0.0) + seconds["search"]
    setups = sorted(trial["setup_seconds"] for trial in trials)
    return {
        "trials": len(trials),
        "steps": sum(trial["step"] for trial in trials),
        "passes_saved": summary["teacher"]["passes_saved"],
        "overhead": spent / needed,
        "warm_setup_seconds": statistics.median(setups[: max(1, len(setups) - at_once)]),
    }


def best_so_far(summary: Mapping[str, Any]) -> Iterator[tuple[int, float]]:
    """Training steps spent, and the best value of the first objective until then, trial by trial."""
    name = next(iter(summary["objectives"]))
    sign = 1 if summary["objectives"][name] == "max" else -1
    steps, best = 0, -float("inf")
    for trial in summary["trials"]:
        if trial["validations"]:
            steps += trial["step"]
            best = max(best, sign * trial["measures"].get(name, -sign * float("inf")))
            yield steps, sign * best


def best_within(summary: Mapping[str, Any], budget: float) -> float | None:
    """The best value of the first objective among trials that fit into ``budget`` steps."""
    within = [best for steps, best in best_so_far(summary) if steps <= budget]
    return within[-1] if within else None


def main(paths: list[str]) -> None:
    console = Console()
    summaries = {path: raydistill.sweep(path) for path in paths}
    costs = {path: figures(summary) for path, summary in summaries.items()}
    budget = min(cost["steps"] for cost in costs.values())
    table = Table(
        "sweep", "trials", "steps", "passes saved", "wall ÷ needed", "warm setup", *(f"{s:.0%}" for s in SHARES)
    )
    for path, summary in summaries.items():
        cost, shown = costs[path], [best_within(summary, share * budget) for share in SHARES]
        table.add_row(
            f"{path} ({summary['search']}, {summary['scheduler']})",
            f"{cost['trials']:.0f}",
            f"{cost['steps']:,.0f}",
            f"{cost['passes_saved']:.0f}",
            f"{cost['overhead']:.2f}",
            f"{1000 * cost['warm_setup_seconds']:.0f} ms",
            *("" if value is None else f"{value:.4f}" for value in shown),
        )
    console.print(
        f"best {next(iter(next(iter(summaries.values()))['objectives']))} after shares of {budget:,.0f} steps"
    )
    console.print(table)
    for path, summary in summaries.items():
        console.print(f"{path}: {summary['verdict']}", soft_wrap=True)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python jobs/bench/sweeps.py CONFIG [CONFIG ...]")
    main(sys.argv[1:])
