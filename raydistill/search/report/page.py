"""``report.html`` of a sweep: one file for people, made from ``sweep.json``; see ``evaluate.report.render``."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from raydistill.evaluate.report import scales
from raydistill.evaluate.report.figures import Picture
from raydistill.evaluate.report.glossary import glossary
from raydistill.evaluate.report.naming import teachers_text
from raydistill.evaluate.report.render import clean, render, write_page, yaml_text
from raydistill.search.report.scene import Record, Scene
from raydistill.search.summary import MIN_TRIALS

TIMES = {
    "prepare": "data",
    "teacher": "teacher",
    "search": "search",
    "trials": "training of all trials, added up",
    "finals": "training again",
    "evaluate": "evaluation",
    "register": "registry",
    "total": "in all",
}
ORDER = ("completed", "stopped", "running", "waiting", "failed", "rejected")

TERMS = (
    *("trial", "objective", "constraints", "rejected", "stopped early", "fresh seed", "validation", "test rows"),
    "lost from validation to test",
)
FRONT_TERMS = ("Pareto front", "best compromise")
"""These terms are told where a sweep has several objectives."""
ROLES = {"knee": "best compromise", "default": "config's own values"}


def write_report(summary: Mapping[str, Any], path: Path) -> None:
    """Write the page of a sweep's summary (schema 1); an older page at that place is replaced at once.

    ConfigError where the place cannot be written.
    """
    scene = scene_of(summary)
    text = render(
        "page.html",
        pictures_of(scene),
        package="raydistill.search.report",
        summary=scene.summary,
        scene=scene,
        finalists=finalist_rows(scene),
        metrics=[name for name in scene.objectives if name.startswith("validation/")],
        trials=sorted(scene.trials, key=lambda trial: (ORDER.index(trial["state"]), trial["number"])),
        measures=list(dict.fromkeys([*scene.objectives, *scene.summary["constraints"]])),
        command=command(scene.summary),
        config=yaml_text(scene.summary["config"]),
        teachers=teachers_text(scene.summary["config"]),
        remarks=partial(remarks, scene),
        times=TIMES,
        glossary=glossary(TERMS if len(scene.objectives) == 1 else (*TERMS, *FRONT_TERMS)),
        min_trials=MIN_TRIALS,
    )
    write_page(text, path)


def scene_of(summary: Mapping[str, Any]) -> Scene:
    """Take secrets and unseen characters out of a summary, and find out who is who among its trials."""
    from raydistill.config.sweep import Sweep
    from raydistill.search.front import is_eligible
    from raydistill.search.ledger import Trial

    sweep, eligible = Sweep.model_validate(summary["config"]["sweep"] | {"objectives": summary["objectives"]}), set()
    for trial in summary["trials"]:
        values = {name: value for name, value in trial["measures"].items() if value is not None}  # null is NaN
        if is_eligible(Trial(trial["number"], trial["params"], trial["state"], values=values), sweep):
            eligible.add(trial["number"])
    shown = clean(summary)
    roles = {finalist["trial"]: ", ".join(map(role_text, finalist["roles"])) for finalist in shown["finalists"]}
    return Scene(shown, frozenset(eligible), scales.short_names(shown["space"]), roles)


def role_text(role: str) -> str:
    """Say a role in words, ``best <objective>`` without the objective's unit and split."""
    first, _, objective = role.partition(" ")
    return f"{first} {scales.scale(objective).name}" if objective else ROLES.get(role, role)


def pictures_of(scene: Scene) -> dict[str, list[Picture]]:
    """Draw the pictures of each section of the page; a section without any is empty."""
    from raydistill.search.report import parallel, pictures

    return {
        "pareto": pictures.pareto_pictures(scene),
        "history": pictures.history_picture(scene),
        "importance": pictures.importance_picture(scene),
        "parallel": parallel.parallel_picture(scene),
        "slices": parallel.slice_pictures(scene),
        "curves": pictures.curves_picture(scene),
    }


def finalist_rows(scene: Scene) -> list[dict[str, Any]]:
    """Return the finalists' rows of the table, the winner first, numbers as text in their metric's unit."""
    rows = []
    for finalist in scene.summary["finalists"]:
        cells = {}
        for name in scene.objectives:
            if name.startswith("validation/"):
                metric = name.removeprefix("validation/")
                cells[name] = {
                    split: spread_text(name, finalist[split].get(metric)) for split in ("validation", "test")
                }
                cells[name]["search"] = scales.scale(name).text(finalist["search"].get(name))
                cells[name]["lost"] = lost(name, finalist, scene.objectives)
        won = finalist["trial"] == scene.winner
        rows.append({**finalist, "cells": cells, "won": won, "role": scene.roles[finalist["trial"]]})
    return sorted(rows, key=lambda row: not row["won"])


def lost(name: str, finalist: Mapping[str, Any], objectives: Mapping[str, str]) -> str:
    """Say how much worse a metric is on test than the search saw it on validation, whichever way it counts."""
    shrinkage = finalist["shrinkage"].get(name.removeprefix("validation/"))
    turned = shrinkage is not None and objectives[name] == "min"
    return scales.scale(name).text(-shrinkage if turned else shrinkage)


def spread_text(name: str, value: Mapping[str, float | None] | None) -> str:
    """Write mean ± standard deviation over the seeds, of one seed the mean alone."""
    scale = scales.scale(name)
    if value is None or value.get("mean") is None:
        return scales.ABSENT
    deviation = value.get("sd")
    return scale.text(value["mean"]) + (f" ± {scale.text(deviation)}" if deviation is not None else "")


def command(summary: Mapping[str, Any]) -> str | None:
    """Return what to type for the winner's student, None without a winner."""
    settings = [f"--set {shlex.quote(setting)}" for setting in (summary.get("winner") or {}).get("set", [])]
    return " \\\n  ".join(["raydistill distill CONFIG", *settings]) if summary.get("winner") else None


def remarks(scene: Scene, trial: Record) -> str:
    """Say in one line what else there is to say about a trial."""
    said = [scene.roles[trial["number"]]] if trial["number"] in scene.roles else []
    if trial["params"] == scene.summary["default"] and ROLES["default"] not in "".join(said):
        said.append(ROLES["default"])
    if trial["state"] == "completed" and trial["number"] not in scene.eligible:
        said.append("outside the constraints")
    if trial.get("reused"):
        said.append("was in storage already")
    if trial.get("schedule"):
        steps = ", ".join(str(step) for step, _ in trial["schedule"])
        said.append(f"settings changed at step {steps}")
    return "; ".join([*said, *filter(None, [trial.get("reason")])])
