"""Exported folders appear whole or not at all; a refused one never lies where a good one is expected."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from raydistill.deploy.export import EXPORT_FILE
from raydistill.errors import ConfigError

REJECTED = ".rejected"


def targets(formats: tuple[str, ...], out: Path) -> dict[str, Path]:
    """Where each format goes: ``out`` itself for one, a folder below it for each of several."""
    return {form: out if len(formats) == 1 else out / form for form in formats}


def check_targets(found: Mapping[str, Path], force: bool) -> None:
    """Raises ConfigError for a place that is taken; with ``force`` only for one that is no export."""
    for target in found.values():
        if len(found) > 1 and (target.parent / EXPORT_FILE).is_file():
            raise ConfigError(f"{target.parent} is an export itself, of one format. Choose another --out for several.")
        if len(found) > 1 and os.path.lexists(target.parent) and not target.parent.is_dir():
            raise ConfigError(f"{target.parent} is a file. Choose another --out.")
        check_replaceable(target)
        check_replaceable(rejected(target))
        if not force and not is_free(target):
            raise ConfigError(f"{target} is there. --force replaces it, once the new export is good.")


def rejected(target: Path) -> Path:
    """Where a refused export goes."""
    return target.with_name(target.name + REJECTED)


def is_free(path: Path) -> bool:
    """Whether nothing lies there but, at most, an empty folder."""
    return not os.path.lexists(path) or (path.is_dir() and not any(path.iterdir()))


def check_replaceable(path: Path) -> None:
    """Raises ConfigError for what is neither free nor an export."""
    if not is_free(path) and not (path / EXPORT_FILE).is_file():
        raise ConfigError(f"{path} is there and is no export, so it stays. Choose another --out.")


@contextmanager
def workplace(out: Path) -> Iterator[Path]:
    """A hidden folder beside ``out``, on the same disk, gone afterwards. Raises ConfigError where none can be made."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".part", dir=out.parent))
    except OSError as error:
        raise ConfigError(f"Cannot write to {out.parent}: {error.strerror}. Choose another --out.") from error
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def place(made: Path, target: Path, good: bool, force: bool = False) -> Path:
    """Move a finished export to ``target``, a refused one to <target>.rejected: then ``target`` stays as it is.

    What lies there goes beside ``made``, away with the workplace, and comes back on failure. Looks again at what it is,
    as the work takes minutes. Raises ConfigError; then all stays as it was.
    """
    goal, old = target if good else rejected(target), made.with_name(f"{made.name}.old")
    if good:
        check_targets({"": target}, force)
    check_replaceable(goal)
    try:
        goal.parent.mkdir(parents=True, exist_ok=True)
        if was_there := os.path.lexists(goal):
            os.replace(goal, old)
        try:
            os.replace(made, goal)
        except BaseException:
            if was_there:
                os.replace(old, goal)
            raise
    except OSError as error:
        raise ConfigError(f"Cannot put the export at {goal}: {error.strerror}. Choose another --out.") from error
    if good:
        with suppress(OSError):  # of an earlier attempt, if there was one
            os.replace(rejected(target), made.with_name(f"{made.name}{REJECTED}"))
    return goal
