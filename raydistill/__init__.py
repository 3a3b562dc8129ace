"""Distil a large transformer into a small one on a Ray cluster. Importing this loads neither torch nor ray."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import os

    from raydistill.config import Config
    from raydistill.errors import RaydistillError
    from raydistill.loading import load_config

    Source: TypeAlias = str | os.PathLike[str] | Mapping[str, Any] | Config

__all__ = ["Config", "RaydistillError", "__version__", "distill", "load_config", "plan", "sweep"]

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
