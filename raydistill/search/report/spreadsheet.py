"""A sweep's trials as CSV, a row each, for spreadsheets and notebooks."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import Any

FIRST, LAST = ("number", "state"), ("step", "num_steps", "validations", "seconds", "run_id", "student", "reason")


def trials_csv(summary: Mapping[str, Any]) -> str:
    """The trials of a ``sweep.json``: number and state, settings and measures by their names, length, what failed.

    A measure is that of the best epoch. What is not known is an empty cell; null as a setting is the word.
    """
    trials, settings = summary["trials"], list(summary["space"])
    measures = list(dict.fromkeys(name for trial in trials for name in trial["measures"]))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*FIRST, *settings, *measures, *LAST])
    for trial in trials:
        given = [cell(trial["params"][name]) if name in trial["params"] else "" for name in settings]
        found = [trial["measures"].get(name) for name in measures]
        writer.writerow([*(trial[n] for n in FIRST), *given, *found, *(trial.get(n) for n in LAST)])
    return text.getvalue()


def cell(value: Any) -> Any:
    """A setting as YAML and JSON write it."""
    return {None: "null", True: "true", False: "false"}[value] if value is None or isinstance(value, bool) else value
