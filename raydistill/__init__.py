"""Distil a large transformer into a small one on a Ray cluster. Importing this loads neither torch nor ray, and tells
torch, if it comes later, how its threads wait."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from raydistill.threads import let_threads_sleep

if TYPE_CHECKING:
    import os

    from raydistill.config import Config
    from raydistill.errors import RaydistillError
    from raydistill.gate.rules import Gate
    from raydistill.loading import load_config

    Source: TypeAlias = str | os.PathLike[str] | Mapping[str, Any] | Config
    Rules: TypeAlias = str | os.PathLike[str] | Mapping[str, Any] | Gate

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
    "rollback",
    "sweep",
]

let_threads_sleep()

STORAGE = "raydistill-storage"

_HOMES = {"Config": "config", "RaydistillError": "errors", "load_config": "loading"}
_PARTS = ("data", "evaluate", "losses", "models", "search", "tasks", "teacher", "train")


def distill(
    config: Source, overrides: Sequence[str] = (), *, progress: Callable[[Mapping[str, Any]], None] | None = None
) -> dict[str, Any]:
    """Run one distillation and return the content of its results.json.

    `config` is a Config, a dict or the path of a YAML file; `overrides` are `a.b=value`. Raises RaydistillError.
    """
    from raydistill.loading import load_config
    from raydistill.pipeline import distill as run

    return run(load_config(config, overrides), progress=progress)


def plan(config: Source, overrides: Sequence[str] = (), *, check: bool = False) -> dict[str, Any]:
    """Say what `distill` would do: what is in storage already, sizes, and with `check` one real batch of every loss."""
    from raydistill.loading import load_config
    from raydistill.planning import make_plan

    return make_plan(load_config(config, overrides), check)


def sweep(
    config: Source,
    overrides: Sequence[str] = (),
    *,
    progress: Callable[[Mapping[str, Any]], None] | None = None,
    fresh: bool = False,
    retry_failed: bool = False,
) -> dict[str, Any]:
    """Search as the config's ``sweep`` says and return the content of its sweep.json.

    `fresh` begins anew beside an earlier sweep, `retry_failed` trains failed trials again. Raises RaydistillError.
    """
    from raydistill.loading import load_config
    from raydistill.search.sweep import sweep as run

    return run(load_config(config, overrides), progress=progress, fresh=fresh, retry_failed=retry_failed)


def compare(
    models: Sequence[str], data: str | None = None, *, split: str = "test", storage: str = STORAGE
) -> dict[str, Any]:
    """Measure models on the same rows, each paired with the first; see `raydistill.evaluate.contest.hold_contest`.

    `models` are folders, `runs:/…` or `models:/NAME@ALIAS`; without `data` the rows are the test rows of the first
    one's run. Raises RaydistillError.
    """
    from raydistill.comparison import compare_models
    from raydistill.loading import optional_data

    return compare_models(models, optional_data(data, None), split, storage=storage)


def export(
    model: str,
    formats: Sequence[str],
    out: str | os.PathLike[str],
    *,
    data: str | None = None,
    split: str = "test",
    margin: float = 0.01,
    storage: str = STORAGE,
) -> dict[str, Any]:
    """Write a model in other formats, checked against torch on real rows: onnx, onnx-int8, torch-int8,
    safetensors-bf16.

    `found["formats"][name]` says for each whether it is good and where it lies; one that is not lies at OUT.rejected.
    Raises RaydistillError.
    """
    from raydistill.formats.export import export as run
    from raydistill.loading import optional_data

    return run(
        model, formats, os.fspath(out), data=optional_data(data, None), split=split, margin=margin, storage=storage
    )


def promote(
    name: str,
    *,
    version: int | None = None,
    gate: Rules | None = None,
    data: str | None = None,
    split: str = "test",
    storage: str = STORAGE,
    force: bool = False,
    reason: str | None = None,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Judge a version (default: the challenger) against the champion and make it the champion if the gate lets it.

    Returns the verdict, `verdict["verdict"]` being passed, refused, forced or unchanged. Raises RaydistillError.
    """
    from raydistill.gate.promotion import promote as run
    from raydistill.loading import load_gate, optional_data

    rules = None if gate is None else load_gate(gate)
    return run(
        name,
        version=version,
        gate=rules,
        data=optional_data(data, None),
        split=split,
        storage=storage,
        force=force,
        reason=reason,
        dry_run=dry_run,
    )


def rollback(name: str, *, storage: str = STORAGE) -> dict[str, Any]:
    """Make the version that the champion replaced the champion again. Raises RaydistillError."""
    from raydistill.gate.promotion import rollback as run

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
