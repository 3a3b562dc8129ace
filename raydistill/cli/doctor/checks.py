"""What a check found (fine, worth a look or wrong, with the way out), how it is printed, and checks of this machine
alone: threads, the GPU, and how a run here would find its cluster."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from raydistill.cli.doctor.probe import has_nvidia

if TYPE_CHECKING:
    from rich.console import Console
STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}
State = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Check:
    """One line of the report; `hint` says how to mend it and is empty where all is well."""

    name: str
    state: State
    detail: str
    hint: str = ""


def print_checks(console: Console, checks: Sequence[Check]) -> None:
    from rich.text import Text

    for check in checks:
        console.print(
            Text.assemble((f"{check.state:4} ", STYLES[check.state]), f"{check.name}: {check.detail}"), soft_wrap=True
        )
        if check.hint:
            console.print(Text(f"     → {check.hint}"), soft_wrap=True)


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
    if shutil.which("nvidia-smi") or has_nvidia():
        hint = "install a CUDA build of torch that fits the driver (https://pytorch.org/get-started/locally)"
        return Check(
            "gpu", "fail", f"this machine has an NVIDIA GPU, but torch {torch.__version__} does not see it", hint
        )
    return Check("gpu", "ok", "none; everything runs on the CPU")


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
