"""Errors a user can act on. One message each: what happened, why, and the way out, such as the name that was meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RaydistillError(Exception):
    """Base of all errors that raydistill raises on purpose; the command line prints its message without a traceback."""

    exit_code = 1


class ConfigError(RaydistillError):
    """The config or the command line is wrong; nothing was computed."""

    exit_code = 2


class DataError(RaydistillError):
    """The data cannot be used as it is."""

    exit_code = 2


class ModelError(RaydistillError):
    """A model cannot be loaded, or cannot be used the way the config asks for."""

    exit_code = 2


class ArtifactError(RaydistillError):
    """Something in storage is missing, damaged or not writable."""


class StaleOwner(RaydistillError):
    """A newer process has taken over the run; this one must not write any more."""


class TeacherError(RaydistillError):
    """Teachers in actors of their own fail, or cannot be had; this may meet one training worker alone."""


class TrackingError(RaydistillError):
    """The MLflow store cannot be used."""


class UnknownName(TrackingError, ArtifactError):
    """The MLflow store, or storage, holds nothing of the name that the command line gives."""

    exit_code = 2


class Diverged(RaydistillError):
    """A loss or a gradient is no longer finite."""


class Interrupted(RaydistillError):
    """The run was stopped on request; a checkpoint was written."""

    exit_code = 130


def closest(name: str, known: Iterable[str], most: int = 1) -> list[str]:
    """The known names most like ``name``, the likeliest first; differences in case and dashes count for little."""
    plain = {candidate.lower().replace("-", "_"): candidate for candidate in known}
    found = difflib.get_close_matches(name.lower().replace("-", "_"), list(plain), n=most, cutoff=0.6)
    return [plain[close] for close in found]


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that ``name`` was probably meant to be."""
    return next(iter(closest(name, known)), None)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A sentence for a message: the names most like ``name``, three at most, or some of those that exist."""
    names = sorted(known)
    if close := closest(name, names, most=3):
        return f"Did you mean {' or '.join(map(repr, close))}?"
    shown = ", ".join(names[:10]) + (", …" if len(names) > 10 else "")
    return f"There are: {shown}." if names else "There is nothing."
