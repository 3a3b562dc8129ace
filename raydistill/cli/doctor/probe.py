"""What one node of a cluster can say of itself. Sent to the node by value: it needs no raydistill there, and tells so.

Hence only the standard library at the top, and what raydistill has is imported where it may be missing.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PACKAGES = ("raydistill", "ray", "torch", "transformers", "mlflow")
TORCH_SECONDS = 25.0
"""To import torch and count its GPUs, in a process of its own: a cold disk takes 15 s."""


class Probe:
    """One process on a node that answers for it; every method gives plain values and raises nothing on purpose."""

    def __init__(self) -> None:
        self.above: dict[str, Path] = {}

    def clock(self) -> float:
        """Seconds since 1970 by this node's clock."""
        return time.time()

    def facts(self, url: str, tracking: str | None, resources: Mapping[str, float] | None = None) -> dict[str, Any]:
        """Versions, GPUs, disk, shared memory, and whether the tracking server answers here.

        ``url``: the storage. ``resources``: what Ray has of this node; None for a process that is none.
        """
        folders = [cache_folder(), Path(tempfile.gettempdir()), *([] if "://" in url else [Path(url)])]
        is_asked = resources is not None and (resources.get("GPU", 0) > 0 or has_nvidia())
        return {
            "python": platform.python_version(),
            "platform": f"{platform.system()} {platform.machine()}",
            "packages": {name: version(name) for name in PACKAGES},
            "code": code_digest(),
            "missing": missing_packages(),
            "auth": asks_for_token() if resources is not None else None,
            "gpus": count_gpus() if is_asked else 0,
            "nvidia": has_nvidia(),
            "disk": {str(folder): shutil.disk_usage(existing(folder)).free for folder in folders},
            "shared_memory": shared_memory(is_taken=resources is not None),
            "tracking": tracking_problem(tracking) if tracking else "",
        }

    def write(self, url: str, folder: str, name: str) -> str:
        """Write a marker into storage, behind a URL after a check of it; why it could not, or nothing."""
        try:
            with opened(url) as storage:
                if storage.is_local:
                    self.above[url] = existing(Path(storage.root))
                else:
                    storage.check()  # this node's fsspec may be too old for leases
                storage.write_bytes(name.encode(), *folder.split("/"), name)
        except Exception as error:
            return f"{type(error).__name__}: {error}" if isinstance(error, ImportError) else str(error)
        return ""

    def read(self, url: str, folder: str, names: list[str]) -> list[str]:
        """The markers, out of those that all nodes have written, that this node can read."""
        with opened(url) as storage:
            return [name for name in names if storage.exists(*folder.split("/"), name)]

    def clear(self, url: str, folder: str) -> None:
        """Remove the markers, and folders of local storage that were only made for them."""
        with opened(url) as storage:
            storage.delete(*folder.split("/"))
        if storage.is_local and url in self.above:
            made = Path(storage.path(*folder.split("/"))).parent
            while made != self.above[url]:
                try:
                    made.rmdir()
                except OSError:
                    return
                made = made.parent


@contextmanager
def opened(url: str) -> Iterator[Any]:
    """The storage, in which nothing is tried again: an answer is wanted now."""
    from raydistill.storage.outages import tried_once
    from raydistill.storage.storage import Storage

    with tried_once():
        yield Storage(url)


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def asks_for_token() -> bool:
    """Whether this node's Ray wants a token; where no mode is set, Ray decides by itself."""
    try:
        from ray._private.authentication.authentication_utils import is_token_auth_enabled
    except ImportError:
        return os.environ.get("RAY_AUTH_MODE") == "token"
    return bool(is_token_auth_enabled())


def code_digest() -> str:
    """8 hex digits over raydistill's own source: two checkouts of one version may differ."""
    try:
        found = importlib.util.find_spec("raydistill")
    except ImportError:
        return ""
    if found is None or not found.origin:
        return ""
    folder, digest = Path(found.origin).parent, hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:8]


def missing_packages() -> str:
    """What raydistill's own metadata asks for, and this node lacks or has in a version that does not fit."""
    if version("raydistill") == "missing":
        return ""
    from packaging.requirements import Requirement

    bad = []
    for one in map(Requirement, importlib.metadata.requires("raydistill") or ()):
        if one.marker is not None and not one.marker.evaluate({"extra": ""}):
            continue
        if (found := version(one.name)) == "missing":
            bad.append(f"{one.name} is missing")
        elif not one.specifier.contains(found, prereleases=True):
            bad.append(f"{one.name} is {found}, needs {one.specifier}")
    return "; ".join(bad)


def has_nvidia() -> bool:
    return Path("/proc/driver/nvidia/gpus").is_dir()


def count_gpus() -> int | None:
    """GPUs that torch sees when none is hidden; None where it cannot be asked.

    Ray hides all GPUs from a process that asks for none, so a process of its own looks.
    """
    clean = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES" or value}
    code = "import torch; print(torch.cuda.device_count() if torch.cuda.is_available() else 0)"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], env=clean, capture_output=True, text=True, timeout=TORCH_SECONDS, check=True
        )
        return int(done.stdout.split()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None


def cache_folder() -> Path:
    return Path(os.environ.get("RAYDISTILL_CACHE") or "~/.cache/raydistill").expanduser()


def shared_memory(is_taken: bool) -> int | None:
    """Bytes of /dev/shm: the free ones, or all where Ray has taken its part already. None where there is none."""
    if not Path("/dev/shm").is_dir():
        return None
    usage = shutil.disk_usage("/dev/shm")
    return usage.total if is_taken else usage.free


def tracking_problem(uri: str) -> str:
    """Why the tracking store cannot be used from here, or nothing."""
    try:
        from raydistill.tracking.endpoint import check_server, sqlite_path
    except ImportError:
        return ""
    try:
        check_server(uri)
    except Exception as error:
        return str(error)
    database = sqlite_path(uri)
    if database is not None and not os.access(existing(database), os.W_OK):
        return f"{existing(database)} cannot be written"
    return ""


def existing(path: Path) -> Path:
    """The path itself or the nearest folder above it that is there."""
    return next(found for found in (path.absolute(), *path.absolute().parents) if found.exists())
