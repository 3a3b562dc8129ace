"""Distil a large transformer into a small one on a Ray cluster. Importing this loads neither torch nor ray, and tells
torch, if it comes later, how its threads wait."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from raydistill.cluster.threads import let_threads_sleep

if TYPE_CHECKING:
    from raydistill.config.gate import Gate
    from raydistill.config.plugins import register
    from raydistill.config.tree import Config
    from raydistill.data.frames import Source, Table
    from raydistill.errors import RaydistillError

    Rules: TypeAlias = str | os.PathLike[str] | Mapping[str, Any] | Gate
    Progress: TypeAlias = Callable[[Mapping[str, Any]], None] | bool | None

__all__ = [
    "Config",
    "RaydistillError",
    "__version__",
    "compare",
    "distill",
    "export",
    "load_config",
    "plan",
    "promote",
    "register",
    "rollback",
    "sweep",
]

let_threads_sleep()

STORAGE = "raydistill-storage"

_HOMES = {
    "Config": "config.tree",
    "RaydistillError": "errors",
    "register": "config.plugins",
}
_PARTS = ("data", "evaluate", "losses", "models", "search", "tasks", "teacher", "train")


def load_config(source: Source, overrides: Sequence[str] = (), *, data: Table | None = None) -> Config:
    """Read a config, with `a.b=value` overrides on top in their order; `data` as of `distill`, in place of `data.path`.

    Raises ConfigError, which names every problem at once: line, dotted path, wrong value and nearest valid name.
    """
    if data is None:
        from raydistill.config.loading import load_config as load

        return load(source, overrides)
    from raydistill.data.frames import config_with

    return config_with(source, overrides, data)


def distill(
    config: Source, overrides: Sequence[str] = (), *, data: Table | None = None, progress: Progress = None
) -> dict[str, Any]:
    """Run one distillation and return the content of its results.json, which a notebook shows as a table.

    `config` is a Config, a dict or the path of a YAML file; `overrides` are `a.b=value`. `data` takes the place of
    `data.path`: a path, a DataFrame, a datasets.Dataset or DatasetDict, an Arrow table, or a dict of these by split.
    `progress`: False for silence, or a function that gets it; by default it is shown in terminals and notebooks.
    Raises RaydistillError.
    """
    from raydistill.cli.notebook import Result, shown
    from raydistill.data.frames import config_with
    from raydistill.pipeline.distill import distill as run

    with shown(progress) as show:
        return Result(
            run(config_with(config, overrides, data), progress=show), "raydistill.cli.show.results:print_found"
        )


def plan(
    config: Source, overrides: Sequence[str] = (), *, data: Table | None = None, check: bool = False
) -> dict[str, Any]:
    """Say what `distill` would do: what is in storage already, sizes, and with `check` one real batch of every loss.

    `data` as of `distill`; it is put into storage.
    """
    from raydistill.cli.notebook import Result
    from raydistill.data.frames import config_with
    from raydistill.pipeline.plan import make_plan
    from raydistill.search.budget import estimate

    made = make_plan(config_with(config, overrides, data), check, estimate=estimate)
    return Result(made, "raydistill.cli.show.plan:print_plan")


def sweep(
    config: Source,
    overrides: Sequence[str] = (),
    *,
    data: Table | None = None,
    progress: Progress = None,
    fresh: bool = False,
    retry_failed: bool = False,
) -> dict[str, Any]:
    """Search as the config's ``sweep`` says and return the content of its sweep.json.

    `fresh` begins anew beside an earlier sweep, `retry_failed` trains failed trials again; `data` and `progress` as of
    `distill`. Raises RaydistillError.
    """
    from raydistill.cli.notebook import Result, shown
    from raydistill.data.frames import config_with
    from raydistill.search.sweep import sweep as run

    with shown(progress, is_sweep=True) as show:
        loaded = config_with(config, overrides, data)
        summary = run(loaded, progress=show, fresh=fresh, retry_failed=retry_failed)
    return Result(summary, "raydistill.cli.show.sweep:print_sweep")


def compare(
    models: Sequence[str], data: Table | None = None, *, split: str = "test", storage: str = STORAGE
) -> dict[str, Any]:
    """Measure models on the same rows, each paired with the first; see `raydistill.deploy.paired.compare_paired`.

    `models` are folders, `runs:/…` or `models:/NAME@ALIAS`; without `data` the rows are the test rows of the first
    one's run. Raises RaydistillError.
    """
    from raydistill.cli.notebook import Result
    from raydistill.data.frames import data_section
    from raydistill.deploy.comparison import compare_models

    found = compare_models(models, data_section(data, split, storage), split, storage=storage)
    return Result(found, "raydistill.deploy.comparison:print_comparison")


def export(
    model: str,
    formats: Sequence[str],
    out: str | os.PathLike[str],
    *,
    data: Table | None = None,
    split: str = "test",
    margin: float = 0.01,
    storage: str = STORAGE,
) -> dict[str, Any]:
    """Write a model in other formats, checked against torch on real rows: onnx, onnx-int8, torch-int8,
    safetensors-bf16.

    `found["formats"][name]` says for each whether it is good and where it lies; one that is not lies at OUT.rejected.
    Raises RaydistillError.
    """
    from raydistill.data.frames import data_section
    from raydistill.deploy.export.export import export as run

    rows = data_section(data, split, storage)
    return run(model, formats, os.fspath(out), data=rows, split=split, margin=margin, storage=storage)


def promote(
    name: str,
    *,
    version: int | None = None,
    gate: Rules | None = None,
    data: Table | None = None,
    split: str = "test",
    storage: str = STORAGE,
    force: bool = False,
    reason: str | None = None,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Judge a version (default: the challenger) against the champion and make it the champion if the gate lets it.

    Returns the verdict, `verdict["verdict"]` being passed, refused, forced or unchanged. Raises RaydistillError.
    """
    from raydistill.config.loading import load_gate
    from raydistill.data.frames import data_section
    from raydistill.deploy.gate.promotion import promote as run

    rules = None if gate is None else load_gate(gate)
    return run(
        name,
        version=version,
        gate=rules,
        data=data_section(data, split, storage),
        split=split,
        storage=storage,
        force=force,
        reason=reason,
        dry_run=dry_run,
    )


def rollback(name: str, *, storage: str = STORAGE) -> dict[str, Any]:
    """Make the version that the champion replaced the champion again. Raises RaydistillError."""
    from raydistill.deploy.gate.promotion import rollback as run

    return run(name, storage=storage)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"raydistill.{_HOMES[name]}"), name)
    if name in _PARTS:
        return importlib.import_module(f"raydistill.{name}")
    if name == "__version__":
        from importlib.metadata import version

        return version("raydistill")
    raise AttributeError(f"module 'raydistill' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_PARTS])
