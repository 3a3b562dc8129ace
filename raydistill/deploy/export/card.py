"""The model card of an export. The model's own would be false here: it loads with other lines and has other figures."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

import yaml

from raydistill.deploy.export import FORMATS
from raydistill.deploy.export.checks import TORCH
from raydistill.deploy.export.table import cells, conditions, headings, interval
from raydistill.evaluate.report.naming import bullets, escape, table
from raydistill.models.folder import CARD
from raydistill.tasks import task_of

KEPT = ("license", "license_name", "license_link", "language", "base_model", "datasets")
"""What a model's card may say that is true of its exports."""


def write_export_card(folder: Path, about: Mapping[str, Any], source: Path) -> None:
    """Put the card into an exported folder; ``about``: export.json with its checks, ``source``: the model's folder."""
    (folder / CARD).write_text(export_card(about, front_matter(source / CARD)), encoding="utf-8")


def export_card(about: Mapping[str, Any], known: Mapping[str, Any]) -> str:
    """The card's text; ``known``: the front matter of the model's card."""
    form, checks, name, task = about["format"], about["checks"], about["source"]["model"], task_of(about["task"])
    is_onnx = form.startswith("onnx")
    head = {
        **{key: known[key] for key in KEPT if known.get(key)},
        "library_name": "onnxruntime" if is_onnx else task.library,
        "pipeline_tag": task.pipeline_tag,
        "tags": ["raydistill", *(["onnx"] if is_onnx else []), *([form] if form != "onnx" else [])],
    }
    what = f"A {task.about.format(count=len(task.plain_names))} in the format {form} ({FORMATS[form]}), made from"
    what += f" {escape(name)}."
    if not task.reads_pictures:
        seen = "windows of {} tokens." if task.has_units else "the first {} tokens of a row."
        what += " It reads " + seen.format(about["max_length"])
    body = [
        f"# {escape(name)}: {form}",
        what,
        "## How to load",
        "In this folder:",
        "\n".join(["```python", *about["load"], "```"]),
        "## Checks",
        verdict(checks["export"]),
        checks_table(form, checks),
        escape(conditions(checks)) + " In brackets: 95 % intervals.",
    ]
    return f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---\n\n" + "\n\n".join(body) + "\n"


def front_matter(card: Path) -> dict[str, Any]:
    """The metadata of a model card; empty where it has none that can be read."""
    from huggingface_hub.repocard import metadata_load

    try:
        return metadata_load(card) or {}
    except (OSError, ValueError, yaml.YAMLError):
        return {}


def verdict(check: Mapping[str, Any]) -> str:
    told = ["It was read back from disk, compared to the model that it was made from, and found good."]
    if check["reasons"]:
        told = [f"**Refused**: {escape(' '.join(check['reasons']))}"]
    return "\n\n".join([*told, *([bullets(map(escape, check["notes"]))] if check["notes"] else [])])


def checks_table(form: str, checks: Mapping[str, Any]) -> str:
    """A line for the model and one for its export, as ``export`` prints them."""
    metric = checks["demand"]["metric"]
    rows = []
    for name, section in (("the model", checks[TORCH]), (form, checks["export"])):
        bounds = [interval(section.get(key), metric) for key in ("metric", "difference")]
        shown = zip_longest(cells(section, metric), bounds, fillvalue="")
        rows.append([f"{name}: {escape(section['runtime'])}", *(" ".join(cell).rstrip() for cell in shown)])
    return table(["on the checked rows", *headings(metric)], rows)
