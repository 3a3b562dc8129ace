"""``report.html`` of a sweep: one file for people, made from ``sweep.json``, that loads nothing and needs no server.

Everything that comes from outside (names, values, reasons of failures) passes through ``scales.visible`` and then
jinja2's escaping or plotly's; the page's own policy runs only the two scripts whose checksums it names.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shlex
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raydistill.errors import ConfigError
from raydistill.search import scales
from raydistill.search.scene import Picture, Record, Scene

if TYPE_CHECKING:
    from raydistill.storage import Storage

SUMMARY = "sweep.json"
TIMES = {
    "prepare": "data",
    "teacher": "teacher",
    "search": "search",
    "trials": "training of all trials, added up",
    "finals": "finalists",
    "evaluate": "evaluation",
    "register": "registry",
    "total": "in all",
}
ORDER = {"completed": 0, "stopped": 1, "running": 2, "waiting": 3, "failed": 4, "rejected": 5}


def write_report(summary: Mapping[str, Any], path: Path) -> None:
    """Write the page of a sweep's summary (schema 1); an older page at that place is replaced at once.

    ConfigError where the place cannot be written.
    """
    text = render(summary)
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(text, encoding="utf-8", newline="\n")
        draft.replace(path)
    except OSError as error:
        with suppress(OSError):
            draft.unlink()
        raise ConfigError(
            f"The report cannot be written to {path}: {error.strerror}. Name another place with --out."
        ) from error


def find_summary(storage: Storage, name: str | None) -> dict[str, Any]:
    """The summary of the newest sweep in storage, or of the one whose key begins with ``name``.

    ConfigError where there is none, or several that begin so.
    """
    from raydistill.search.summary import SCHEMA

    keys = [key for key in storage.list("runs") if storage.exists("runs", key, SUMMARY)]
    if not keys:
        raise ConfigError(
            f"There is no finished sweep in {storage.show()}. Run `raydistill sweep CONFIG`, or name the storage of "
            "one with --storage."
        )
    fitting = [key for key in keys if name is None or key.startswith(name)]
    if not fitting or (name is not None and len(fitting) > 1):
        known = ", ".join(keys[:10]) + (", …" if len(keys) > 10 else "")
        problem = "begins" if not fitting else f"is the only one of {len(fitting)} that begins"
        raise ConfigError(f"No sweep in {storage.show()} {problem} with {name!r}. Finished sweeps: {known}.")
    newest = max(fitting, key=lambda key: storage.fs.modified(storage.path("runs", key, SUMMARY)))
    summary = storage.read_json("runs", newest, SUMMARY)
    schema = summary.get("schema") if isinstance(summary, dict) else None
    if not isinstance(summary, dict) or schema != SCHEMA:
        raise ConfigError(
            f"{storage.show('runs', newest, SUMMARY)} has schema {schema}, and this version of raydistill reads "
            f"schema {SCHEMA}. Run the sweep again with the same config: trials that are there are not trained again."
        )
    return summary


def render(summary: Mapping[str, Any]) -> str:
    """The page's HTML."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from plotly.offline import get_plotlyjs

    scene = stage(summary)
    sections = pictures(scene)
    environment = Environment(
        loader=PackageLoader("raydistill.search", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {"checksum": checksum, "duration": scales.duration, "setting": scales.setting}
    plotly = get_plotlyjs()
    return environment.get_template("page.html").render(
        summary=scene.summary,
        scene=scene,
        plotly=plotly,
        plotly_checksum=checksum(plotly),
        pictures=sections,
        figures={picture.name: picture.figure for drawn in sections.values() for picture in drawn},
        finalists=finalist_rows(scene),
        metrics=[name for name in scene.objectives if name.startswith("validation/")],
        trials=sorted(scene.trials, key=lambda trial: (ORDER.get(trial["state"], 9), trial["number"])),
        measures=shown_measures(scene),
        command=command(scene.summary),
        config=config_text(scene.summary["config"]),
        remarks=partial(remarks, scene),
        times=TIMES,
        scale=scales.scale,
        label=scales.label,
        spoken=scales.spoken,
    )


def stage(summary: Mapping[str, Any]) -> Scene:
    """The summary without secrets and unseen characters, and who is who among its trials."""
    from raydistill.config import Sweep
    from raydistill.search.front import is_eligible
    from raydistill.search.trials import Trial

    sweep = Sweep.model_validate(summary["config"]["sweep"])
    known = [Trial(t["number"], t["params"], t["state"], values=present(t["measures"])) for t in summary["trials"]]
    eligible = frozenset(trial.number for trial in known if is_eligible(trial, sweep))
    clean = scales.visible(redacted(summary))
    names = scales.short_names(clean["space"])
    roles = {finalist["trial"]: ", ".join(map(role, finalist["roles"])) for finalist in clean["finalists"]}
    return Scene(clean, eligible, names, roles)


def present(measures: Mapping[str, float | None]) -> dict[str, float]:
    """Without what is not defined: NaN is null in a summary."""
    return {name: value for name, value in measures.items() if value is not None}


def role(name: str) -> str:
    """``best`` and ``knee`` as they are, ``best <objective>`` without the objective's unit and split."""
    first, _, objective = name.partition(" ")
    return f"{first} {scales.scale(objective).name}" if objective else first


def redacted(node: Any, name: str = "") -> Any:
    """The same JSON value without credentials, each text in the light of its name, as ``lineage.redact_values``."""
    from raydistill.lineage import redact_values

    if isinstance(node, Mapping):
        return {key: redacted(child, str(key)) for key, child in node.items()}
    if isinstance(node, list | tuple):
        return [redacted(child, name) for child in node]
    return redact_values({name: node})[name] if isinstance(node, str) else node


def pictures(scene: Scene) -> dict[str, list[Picture]]:
    """By section of the page; sections without a picture are empty."""
    from raydistill.search import parallel
    from raydistill.search import pictures as drawn

    single = {
        "history": drawn.history_picture(scene),
        "importance": drawn.importance_picture(scene),
        "parallel": parallel.parallel_picture(scene),
        "curves": drawn.curves_picture(scene),
    }
    sections = {name: [] if picture is None else [picture] for name, picture in single.items()}
    return {"pareto": drawn.pareto_pictures(scene), "slices": parallel.slice_pictures(scene), **sections}


def finalist_rows(scene: Scene) -> list[dict[str, Any]]:
    """Finalists for the table, the winner first: numbers as text in their metric's unit."""
    rows = []
    for finalist in scene.summary["finalists"]:
        cells = {}
        for name in scene.objectives:
            if name.startswith("validation/"):
                metric = name.removeprefix("validation/")
                cells[name] = {split: spread(name, finalist[split].get(metric)) for split in ("validation", "test")}
                cells[name]["search"] = scales.scale(name).text(finalist["search"].get(name))
                cells[name]["shrinkage"] = scales.scale(name).text(finalist["shrinkage"].get(metric))
        won = finalist["trial"] == scene.winner
        rows.append({**finalist, "cells": cells, "won": won, "role": scene.roles[finalist["trial"]]})
    return sorted(rows, key=lambda row: not row["won"])


def spread(name: str, value: Mapping[str, float | None] | None) -> str:
    """Mean ± standard deviation over the seeds; the mean alone of one seed."""
    scale = scales.scale(name)
    if value is None or value.get("mean") is None:
        return scales.ABSENT
    deviation = value.get("sd")
    return scale.text(value["mean"]) + (f" ± {scale.text(deviation)}" if deviation is not None else "")


def shown_measures(scene: Scene) -> list[str]:
    """Columns of the trials' table: objectives, then what is bounded beside them."""
    return list(dict.fromkeys([*scene.objectives, *scene.summary["constraints"]]))


def command(summary: Mapping[str, Any]) -> str | None:
    """What to type for the winner's student; None without a winner."""
    winner = summary.get("winner")
    if not winner:
        return None
    settings = " \\\n".join(f"  --set {shlex.quote(setting)}" for setting in winner["set"])
    return f"raydistill distill CONFIG \\\n{settings}" if settings else "raydistill distill CONFIG"


def config_text(config: Mapping[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(json.loads(json.dumps(config)), sort_keys=False, allow_unicode=True, width=100)


def checksum(script: str) -> str:
    """As a content security policy names a script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def remarks(scene: Scene, trial: Record) -> str:
    """What else there is to say about a trial, in one line."""
    said = [scene.roles[trial["number"]]] if trial["number"] in scene.roles else []
    if trial["params"] == scene.summary["default"]:
        said.append("the config as it is")
    if trial["state"] == "completed" and trial["number"] not in scene.eligible:
        said.append("outside the constraints")
    if trial.get("reused"):
        said.append("was in storage already")
    if trial.get("schedule"):
        steps = ", ".join(str(step) for step, _ in trial["schedule"])
        said.append(f"settings changed at step {steps}")
    return "; ".join([*said, *filter(None, [trial.get("reason")])])
