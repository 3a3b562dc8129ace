"""The sweep, seen from the driver: one teacher pass, the search, the finals, the winner. Reads from top to bottom."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from raydistill.cluster.connection import set_environment
from raydistill.config.tree import Config
from raydistill.models.folder import settled_models
from raydistill.pipeline.distill import claim_alias, is_here, locate_models, say_targets, say_waiting
from raydistill.pipeline.prepare import Clock, Prepared, prepare
from raydistill.pipeline.recipes import named_sources, start_digest
from raydistill.pipeline.stopping import stoppable
from raydistill.search.space import check_space, sweep_of
from raydistill.storage.artifacts import Artifact
from raydistill.storage.board import Show
from raydistill.storage.locks import lock
from raydistill.storage.manifest import recipe_key
from raydistill.storage.storage import Storage
from raydistill.tracking.endpoint import tracking_uri
from raydistill.tracking.runs import prepare_store

BUDGET = {"num_trials", "max_trials", "max_hours", "patience", "max_concurrent_trials", "final_seeds"}
"""Settings of ``sweep`` that do not make it another sweep: with more trials the same one goes on."""


def sweep(
    config: Config, *, progress: Show | None = None, fresh: bool = False, retry_failed: bool = False
) -> dict[str, Any]:
    """Search as ``config.sweep`` says and return the content of ``sweep.json``.

    A sweep that was cut off goes on; one that is finished returns its summary at once, unless its budget has grown.
    ``fresh`` begins another one beside it; ``retry_failed`` trains its failed trials again. Raises RaydistillError
    (Interrupted after Ctrl-C or SIGTERM).
    """
    show = progress or (lambda entry: None)
    clock = Clock()
    check_space(config)
    set_environment()  # before MLflow, which imports Ray where it finds it
    with stoppable(show) as stop, settled_models(), ThreadPoolExecutor(1) as background:
        storage = Storage(config.storage)
        storage.check()
        store = background.submit(prepare_store, tracking_uri(storage))
        with clock.phase("prepare", show):
            prepared = prepare(config, storage)
            prepared = replace(prepared, run_key=sweep_key(prepared, fresh))
        say_targets(prepared.info, show)
        with lock(storage, "runs", prepared.run_key, "driver.lock", waiting=lambda: say_waiting(show)):
            store.result()
            summary = None if retry_failed else finished(prepared)
            results = summary and summary["results"]
            if summary is not None and (not results or is_here(prepared, results, show)):
                if results and (claimed := claim_alias(prepared, results)) is not results:
                    summary = {**summary, "results": claimed}
                    storage.write_json(summary, "runs", prepared.run_key, "sweep.json")
                return summary
            from raydistill.search.driver import Driver  # and Ray

            return Driver(prepared, stop, clock, show).run(retry_failed)


def sweep_key(prepared: Prepared, fresh: bool) -> str:
    """Key of the sweep: the newest one with these settings, or the next with ``fresh``."""
    from raydistill.search.sharing import combinations

    config, storage = prepared.config, prepared.storage
    settings = sweep_of(config).recipe(exclude=BUDGET)
    made = combinations(config, lambda name: name in ("student", "student.start"))
    starts = {student.start: start_digest(student, "") for student in (config.student for config in made)}
    sources = named_sources(settings.get("space", {}))
    key = recipe_key({"run": prepared.run_key, "sweep": settings, "starts": starts, **sources})
    attempts = [name for name in storage.list("runs") if name == key or name.startswith(f"{key}-")]
    newest = max((int(name.partition("-")[2] or 1) for name in attempts), default=0)
    number = newest + 1 if fresh else max(newest, 1)
    return key if number == 1 else f"{key}-{number}"


def finished(prepared: Prepared) -> dict[str, Any] | None:
    """The summary of a sweep that came to its end with this very budget, if its finalists' students are still there."""
    parts = ("runs", prepared.run_key, "sweep.json")
    if not prepared.storage.exists(*parts):
        return None
    summary: dict[str, Any] = prepared.storage.read_json(*parts)
    budget = sweep_of(prepared.config).model_dump(mode="json", include=BUDGET)  # all else is in the key
    had = {name: summary["config"]["sweep"][name] for name in BUDGET}
    if had != budget or not locate_models(prepared, summary["results"] or {}):
        return None
    seeds = [seed for finalist in summary["finalists"] for seed in finalist["seeds"]]
    for seed in [*seeds, *filter(None, [summary["winner"]])]:
        student = Artifact(prepared.storage, "student", seed["student"])
        if not student.exists():
            return None
        seed["path"] = str(student.local() / "model")
    return summary
