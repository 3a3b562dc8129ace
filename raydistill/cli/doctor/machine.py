"""Checks of this machine, or of every node of a cluster, one line each with the way to mend what fails."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable
from pathlib import Path

from raydistill.cli.doctor.checks import FREE_BYTES, GIGABYTE, SHM_BYTES, Check
from raydistill.cli.doctor.packages import check_packages
from raydistill.cli.doctor.probe import cache_folder, existing
from raydistill.errors import RaydistillError
from raydistill.storage.redaction import redact
from raydistill.storage.storage import Storage
from raydistill.tracking.endpoint import check_server, sqlite_path, tracking_uri


def examine(storage_url: str) -> list[Check]:
    """Run every check; a check that fails with a RaydistillError becomes a line too."""
    steps: list[tuple[str, Callable[[], Check]]] = [
        ("python", check_python),
        ("packages", check_packages),
        ("storage", lambda: check_storage(storage_url)),
        ("disk", lambda: check_disk(storage_url)),
        ("shared memory", check_shared_memory),
        ("threads", check_threads),
        ("gpu", check_gpu),
        ("tracking", lambda: check_tracking(storage_url)),
        ("ray", check_ray),
    ]
    checks = []
    for name, step in steps:
        try:
            checks.append(step())
        except RaydistillError as error:
            checks.append(Check(name, "fail", redact(str(error)), "see the message"))
    return checks


def check_python() -> Check:
    return Check("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")


def check_storage(url: str) -> Check:
    storage = Storage(url)
    storage.check()
    return Check("storage", "ok", f"{redact(storage.url)} can be written and read")


def check_disk(url: str) -> Check:
    """Free space where local storage lies; a URL's is not known, the node's cache is looked at instead."""
    storage = Storage(url)
    folder = existing(Path(storage.root) if storage.is_local else cache_folder())
    free = shutil.disk_usage(folder).free
    detail = f"{free / GIGABYTE:.1f} GB free at {folder}"
    if free < FREE_BYTES[1]:
        hint = "free some with raydistill cache gc, or name another --storage"
        return Check("disk", "fail" if free < FREE_BYTES[0] else "warn", detail, hint)
    return Check("disk", "ok", detail)


def check_shared_memory() -> Check:
    shm = Path("/dev/shm")
    if not shm.is_dir():
        return Check("shared memory", "ok", "no /dev/shm on this system; Ray uses its own place")
    free = shutil.disk_usage(shm).free
    detail = f"{free / GIGABYTE:.2f} GB free in /dev/shm"
    if free < SHM_BYTES:
        hint = "start the container with --shm-size=1g; Ray falls back to slow files otherwise"
        return Check("shared memory", "warn", detail, hint)
    return Check("shared memory", "ok", detail)


def check_threads() -> Check:
    """Threads that torch will use against the cores that this process may use."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = torch.get_num_threads()
    detail = f"{threads} torch threads on {cores} cores"
    if threads > cores:
        return Check("threads", "warn", detail, f"set OMP_NUM_THREADS={cores}; more threads than cores are slower")
    if threads * 2 < cores and "OMP_NUM_THREADS" in os.environ:
        return Check("threads", "warn", detail, "OMP_NUM_THREADS holds torch back; unset it")
    return Check("threads", "ok", detail)


def check_gpu() -> Check:
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        return Check("gpu", "ok", f"{len(names)} seen by torch {torch.__version__}: {', '.join(sorted(set(names)))}")
    if shutil.which("nvidia-smi") or Path("/proc/driver/nvidia/gpus").is_dir():
        hint = "install a CUDA build of torch that fits the driver (https://pytorch.org/get-started/locally)"
        return Check(
            "gpu", "fail", f"this machine has an NVIDIA GPU, but torch {torch.__version__} does not see it", hint
        )
    return Check("gpu", "ok", "none; everything runs on the CPU")


def check_tracking(url: str) -> Check:
    """Where MLflow's records go and whether that can be reached; URL storage needs MLFLOW_TRACKING_URI."""
    uri = tracking_uri(Storage(url))
    check_server(uri)
    database = sqlite_path(uri)
    if database is not None and not os.access(existing(database.parent), os.W_OK):
        hint = "make it writable or set MLFLOW_TRACKING_URI to another place"
        return Check("tracking", "fail", f"the folder of {redact(uri)} cannot be written", hint)
    return Check("tracking", "ok", redact(uri))


def check_ray() -> Check:
    """A cluster that others can reach must ask for a token: whoever reaches an open one can run code on it."""
    address, mode = os.environ.get("RAY_ADDRESS"), os.environ.get("RAY_AUTH_MODE", "")
    if not address:
        return Check("ray", "ok", "a cluster of this machine is started for a run and closed after it")
    if mode != "token":
        hint = "set RAY_AUTH_MODE=token on every node and here, with RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
        return Check("ray", "warn", f"RAY_ADDRESS={address} without token authentication", hint)
    known = any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    if not known and not Path("~/.ray/auth_token").expanduser().exists():
        return Check(
            "ray", "fail", "RAY_AUTH_MODE=token, but no token is set", "set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
        )
    return Check("ray", "ok", f"RAY_ADDRESS={address}, token authentication")
