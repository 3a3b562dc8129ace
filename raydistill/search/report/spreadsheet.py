"""A sweep's trials as CSV, a row each, for spreadsheets and notebooks."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from typing import Any

FIRST, LAST = ("number", "state"), ("step", "num_steps", "validations", "seconds", "run_id", "student", "reason")


def trials_csv(summary: Mapping[str, Any]) -> str:
    """Write the trials of a ``sweep.json``: number, state, settings and measures by their names, length, what failed.

    A measure is that of the best epoch. What is not known is an empty cell; null as a setting is the word.
    """
    trials, settings, text = summary["trials"], summary["space"], io.StringIO()
    measures = dict.fromkeys(name for trial in trials for name in trial["measures"])
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*FIRST, *settings, *measures, *LAST])
    for trial in trials:
        given = {
            name: value if isinstance(value, str) else json.dumps(value) for name, value in trial["params"].items()
        }
        found = [*map(given.get, settings), *map(trial["measures"].get, measures)]
        writer.writerow([*(trial[name] for name in FIRST), *found, *(trial.get(name) for name in LAST)])
    return text.getvalue()
