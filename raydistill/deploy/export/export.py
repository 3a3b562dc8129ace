"""``export``: a model in other formats, each read back from disk and judged before it gets its place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from raydistill.config.data import Data
from raydistill.config.tree import STORAGE
from raydistill.deploy.export import EXPORT_FILE, FORMATS, SCHEMA, packages
from raydistill.deploy.export.card import write_export_card
from raydistill.deploy.export.checks import TORCH, check_exports, measure_base
from raydistill.deploy.export.folders import check_targets, place, targets, workplace
from raydistill.deploy.export.writing import public_name, write_about, write_export
from raydistill.deploy.opening import model_folder, open_folder
from raydistill.deploy.own_rows import find_test_rows
from raydistill.deploy.predictor import TorchPredictor
from raydistill.deploy.testset import TestRows
from raydistill.errors import ConfigError
from raydistill.evaluate.latency import busy_note
from raydistill.storage.board import Show
from raydistill.storage.redaction import redact


def export(
    model: str,
    formats: str | Sequence[str],
    out: str | Path,
    *,
    data: Data | None = None,
    split: str = "test",
    storage: str = STORAGE,
    max_length: int | None = None,
    max_rows: int = 2000,
    metric: str | None = None,
    margin: float = 0.01,
    force: bool = False,
    latency: bool = True,
    progress: Show = lambda entry: None,
) -> dict[str, Any]:
    """Write MODEL in each format (``all`` for every one), check each on labelled rows, and say which are good.

    One format goes to ``out``, several to ``out``/<format>; a refused one to <that>.rejected, and then what lay at its
    place before stays there. Rows: those of ``data``, or else the test rows of the run that made the model; at most
    ``max_rows`` of them. ``metric``: by default the one that everything of the model's task is judged by.

    Returns {schema, model, source {path, digest}, max_length, data {source, split, num_rows, of_rows}, demand {metric,
    margin}, torch {…}, formats {name: {path, opset, …}}, good, notes}; the sections as in ``checks.check_exports``.
    Raises ConfigError, ModelError, DataError or TrackingError; a refused export raises nothing.
    """
    wanted, out = chosen(formats), Path(out).expanduser().absolute()
    if not 0 <= margin < math.inf:
        raise ConfigError(f"--margin {margin}: no number from 0 on. 0.01 is one point.")
    places = targets(wanted, out)
    check_targets(places, force)
    for form in wanted:
        packages.need(form)
    folder = model_folder(model, storage)
    if (folder / EXPORT_FILE).is_file():
        raise ConfigError(f"{model} is an export itself. Export the model that it was made from.")
    source = TorchPredictor(folder, max_length, "cpu")
    rows = find_test_rows(model, source.task, data, split, storage)
    sample = some_rows(rows, max_rows)
    base, metric = measure_base(source, sample, metric)
    with workplace(out) as scratch:
        made = {}
        for form in wanted:
            progress({"phase": "export", "note": form})
            made[form] = write_export(form, source, model, scratch)
        progress({"phase": "check", "note": f"{sample.num_rows:,} rows"})
        predictors = {TORCH: source} | {form: open_folder(scratch / form, device="cpu") for form in wanted}
        checks = check_exports(predictors, sample, metric, margin, base, latency=latency)
        named = redact(rows.source) if data is None else public_name(rows.source)
        common = {
            "data": {"source": named, "split": sample.split, "num_rows": sample.num_rows, "of_rows": rows.num_rows},
            "demand": {"metric": metric, "margin": margin},
            TORCH: checks.pop(TORCH),
        }
        sections = {}
        for form, check in checks.items():
            about = {**made[form], "good": check["good"], "checks": {**common, "export": check}}
            write_about(scratch / form, about)
            write_export_card(scratch / form, about, folder)
            path = place(scratch / form, places[form], check["good"], force)
            sections[form] = {"path": str(path), "opset": about["opset"], "load": about["load"], **check}
    busy = busy_note(section["latency_setting"] for section in (common[TORCH], *sections.values()))
    return {
        "schema": SCHEMA,
        "model": redact(model),
        "source": {"path": str(folder), "digest": made[wanted[0]]["source"]["digest"]},
        "max_length": source.max_length,
        **common,
        "formats": sections,
        "good": all(section["good"] for section in sections.values()),
        "notes": [redact(note) for note in (*rows.notes, busy) if note],
    }


def chosen(formats: str | Sequence[str]) -> tuple[str, ...]:
    """The formats in the order of FORMATS, each once. Raises ConfigError for none or an unknown one."""
    formats = [formats] if isinstance(formats, str) else formats
    unknown = [form for form in formats if form not in (*FORMATS, "all")]
    if unknown or not formats:
        problem = f"--format {unknown[0]}: not known" if unknown else "No format was named"
        raise ConfigError(f"{problem}. There are {', '.join(FORMATS)}, and all.")
    return tuple(form for form in FORMATS if "all" in formats or form in formats)


def some_rows(rows: TestRows, max_rows: int) -> TestRows:
    """At most ``max_rows`` of the rows, drawn without replacement, the same each time, in their order."""
    if rows.num_rows <= max_rows:
        return rows
    kept = np.zeros(rows.num_rows, dtype=bool)
    kept[np.random.default_rng(0).permutation(rows.num_rows)[:max_rows]] = True
    return rows.only(kept)
