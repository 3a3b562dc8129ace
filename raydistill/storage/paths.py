"""Where a name leads: a path inside an installed package, a local path, a URL, or a name on the hub."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path

from raydistill.errors import ConfigError, did_you_mean

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?(:[\w.-]+)?")
_FILE_SUFFIX = re.compile(r"\.(parquet|pq|csv|tsv|jsonl|ndjson|json|txt|arrow|safetensors|zip|gz)$", re.IGNORECASE)


def is_url(name: str) -> bool:
    return "://" in name and not name.startswith("pkg://")


def resolve_path(name: str) -> Path | None:
    """The absolute local path that ``name`` stands for; None when it is a URL or can only be a hub name.

    ``pkg://package/path`` is found without importing the package and cannot leave it. Raises ConfigError when the
    name is written as a path but nothing is there.
    """
    if name.startswith("pkg://"):
        return _package_path(name)
    if name.startswith("file://"):
        name = name.removeprefix("file://")
    if is_url(name):
        return None
    if not name or "\0" in name:
        raise ConfigError(f"{name!r} is not a path. Name a file, a folder, pkg://package/path or a hub name.")
    path = Path(os.path.abspath(os.path.expanduser(name)))
    if os.path.exists(path):  # unlike Path.exists, False for a name that is too long
        return path
    if _HUB_NAME.fullmatch(name) and not _FILE_SUFFIX.search(name):
        return None
    raise ConfigError(f"{name} does not exist. {names_beside(path)}")


def _package_path(name: str) -> Path:
    package, _, rest = name.removeprefix("pkg://").partition("/")
    try:
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
    except ValueError:  # __main__ and the like have no spec
        spec = None
    if spec is None or not spec.submodule_search_locations:
        from importlib.metadata import packages_distributions

        raise ConfigError(
            f"{name}: no package {package!r} is installed here. {did_you_mean(package, packages_distributions())} "
            f"Install the package, or write the path of a file or folder."
        )
    root = Path(next(iter(spec.submodule_search_locations))).resolve()
    path = (root / rest.lstrip("/")).resolve()
    if not path.is_relative_to(root):
        raise ConfigError(f"{name} leaves the package {package!r}. A pkg:// path must stay inside its package.")
    if not path.exists():
        raise ConfigError(f"{name} does not exist in the package {package!r}. {names_beside(path)}")
    return path


def names_beside(path: Path) -> str:
    """Names beside the first part of ``path`` that is missing."""
    parent, missing = path.parent, path.name
    while not parent.exists() and parent != parent.parent:
        parent, missing = parent.parent, parent.name
    if not parent.is_dir():
        return f"{parent} is a file."
    try:
        names = [entry for entry in os.listdir(parent) if not entry.startswith(".")]
    except OSError as error:
        return f"{parent} cannot be read ({error.strerror})."
    return f"In {parent}: {did_you_mean(missing, names)}"
