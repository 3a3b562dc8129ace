"""Versions of the packages that a run needs."""

from __future__ import annotations

import importlib.metadata
import importlib.util

from raydistill.cli.doctor.checks import Check


def check_packages() -> Check:
    """Every dependency that raydistill's own metadata names is there in a version that fits."""
    from packaging.requirements import Requirement

    bad = []
    for text in importlib.metadata.requires("raydistill") or []:
        wanted = Requirement(text)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            found = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            bad.append(f"{wanted.name} is missing")
            continue
        if not wanted.specifier.contains(found, prereleases=True):
            bad.append(f"{wanted.name} is {found}, needs {wanted.specifier}")
    if bad:
        return Check("packages", "fail", "; ".join(bad), "pip install --upgrade raydistill")
    shown = ("torch", "ray", "transformers", "mlflow", "datasets")
    return Check("packages", "ok", ", ".join(f"{name} {importlib.metadata.version(name)}" for name in shown))
