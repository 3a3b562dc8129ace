"""Students of several runs on the same test rows: values on resamples of these, and differences paired by them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from raydistill.evaluate.evidence import read_kept_predictions
from raydistill.storage.storage import Storage
from raydistill.tracking.endpoint import tracking_uri

RESAMPLES = 1000


def resampled(results: Mapping[str, Any], storage: Path, names: Mapping[str, str]) -> dict[str, list[float]]:
    """The main metric of a run's models on the test, and on resamples of it, the same ones in every run.

    ``names``: what each model is called here.
    """
    kept = read_kept_predictions(results["run_id"], tracking_uri(Storage(str(storage))))
    assert kept is not None
    metric, num_rows = results["task"]["main_metric"], len(kept.targets.values)
    weights = np.random.default_rng(0).multinomial(num_rows, np.full(num_rows, 1 / num_rows), RESAMPLES).T
    weights = np.column_stack([np.ones(num_rows), weights]).astype(np.float32)
    found = {}
    for name, model in names.items():
        scores = kept.tasks[model].scores(kept.outputs[model], kept.targets.values)
        found[name] = [round(float(value), 5) for value in scores.weighted(weights)[metric]]
    return found


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """JSON lines, in a folder that is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read_cells(path: Path) -> list[dict[str, Any]]:
    """What was computed before; none where there is no such file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def keep(cells: list[dict[str, Any]], cell: dict[str, Any], path: Path) -> None:
    """Add a cell to those that are there, and to their file."""
    cells.append(cell)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(cell) + "\n")


def told(values: np.ndarray) -> str:
    """The first of the values (1 + resamples), and the interval that the others give."""
    low, high = np.quantile(values[1:], (0.025, 0.975))
    return f"{100 * values[0]:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def qualities(cells: Sequence[Mapping[str, Any]], reference: str, title: str, console: Console) -> None:
    """Each model's values, the mean over the seeds, and its difference from the one called ``reference``."""
    by_name: dict[str, list[list[float]]] = {}
    for one in cells:
        for name, values in one["found"].items():
            by_name.setdefault(name, []).append(values)
    means = {name: np.mean(values, axis=0) for name, values in by_name.items()}
    table = Table("", "seeds", "value", f"difference from {reference}", title=title)
    for name, values in sorted(means.items(), key=lambda item: item[1][0]):
        difference = told(values - means[reference]) if reference in means and name != reference else ""
        table.add_row(name, str(len(by_name[name])), told(values), difference)
    console.print(table)
