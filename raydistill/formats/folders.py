"""Exported folders appear whole or not at all; a refused one never lies where a good one is expected."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from raydistill.errors import ConfigError
from raydistill.formats import EXPORT_FILE

REJECTED = ".rejected"


def targets(formats: tuple[str, ...], out: Path) -> dict[str, Path]:
    """Where each format goes: ``out`` itself for one, a folder below it for each of several."""
    return {form: out if len(formats) == 1 else out / form for form in formats}


def check_targets(found: Mapping[str, Path], force: bool) -> None:
    """Raises ConfigError for a place that is taken; with ``force`` only for one that is no export."""
    for target in found.values():
        if len(found) > 1 and (target.parent / EXPORT_FILE).is_file():
            raise ConfigError(f"{target.parent} is an export itself, of one format. Choose another --out for several.")
        if not target.exists() or (target.is_dir() and not any(target.iterdir())):
            continue
        if not (target / EXPORT_FILE).is_file():
            raise ConfigError(f"{target} is there and is no export, so it stays. Choose another --out.")
        if not force:
            raise ConfigError(f"{target} is there. --force replaces it, once the new export is good.")


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


def place(made: Path, target: Path, good: bool) -> Path:
    """Move a finished export to ``target``, a refused one to <target>.rejected: then ``target`` stays as it is."""
    rejected = target.with_name(target.name + REJECTED)
    goal = target if good else rejected
    goal.parent.mkdir(parents=True, exist_ok=True)
    old = made.with_name(f"{made.name}.old")
    if goal.exists():
        os.replace(goal, old)  # goes with the workplace
    os.replace(made, goal)
    if good:
        shutil.rmtree(rejected, ignore_errors=True)  # of an earlier attempt
    return goal
