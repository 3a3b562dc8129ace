"""What ended a worker, in words: GPU memory, the machine's memory, the object store, a full disk, a killed process.

Ray's errors are known by name and text, as this module serves local mode too, which has no Ray.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from raydistill.errors import ConfigError, DataError, Diverged, ModelError, RaydistillError
from raydistill.storage.faults import explain as explain_file
from raydistill.storage.faults import is_disk_full

KEPT = "\nEverything finished so far is kept; the same command goes on from there."
ECHOES = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Socket closed")
"""What a rank says that waited for one that failed."""
MICRO_BATCH = "Lower train.tokens_per_micro_batch (a step's rows, train.global_batch_size, stay the same)"


def explain(error: BaseException) -> RaydistillError:
    """Turn what ``fit`` raised into one message that names the worker, the cause and the setting to change."""
    failures = getattr(error, "worker_failures", None) or {0: getattr(error, "controller_failure", None) or error}
    ranks = sorted(failures, key=lambda rank: (_is_echo(failures[rank]), rank))
    for rank in ranks:
        if isinstance(failures[rank], RaydistillError):
            return failures[rank]
    for rank in ranks:
        if (found := known(failures[rank], f"Worker {rank}")) is not None:
            return found
    cause = failures[ranks[0]]
    if "Startup" in type(cause).__name__:
        return RaydistillError(
            f"The workers found no room on the cluster ({_first_line(str(cause))}). raydistill plan --cluster says "
            f"what is missing.{KEPT}"
        )
    return RaydistillError(f"Worker {ranks[0]} failed: {type(cause).__name__}: {cause}{KEPT}")


@contextmanager
def about_member(name: str) -> Iterator[None]:
    """Let what is wrong with one of several teachers say with which; no name: there is a single one."""
    try:
        yield
    except (ConfigError, DataError, Diverged, ModelError) as error:
        if not name:
            raise
        raise type(error)(f"teacher.members.{name}: {error}") from error


def known(error: BaseException, who: str) -> RaydistillError | None:
    """The message for an error of which it is known what to do; None for any other. ``who``: Worker 0, Teacher 2."""
    text, kind = str(error), type(error).__name__
    if isinstance(error, torch.OutOfMemoryError) or "CUDA out of memory" in text:
        return RaydistillError(
            f"{who} ran out of GPU memory ({_first_line(text)}). {MICRO_BATCH}, set train.dtype: bfloat16, or take "
            f"larger GPUs (train.accelerator_type). A teacher beside the student: teacher.mode: cached.{KEPT}"
        )
    if kind in ("ObjectStoreFullError", "OutOfDiskError") or "object store is full" in text:
        return RaydistillError(
            f"{who} found the object store of its node full, and no disk to spill to ({_first_line(text)}). Lower "
            "teacher.pool.max_ahead_bytes, start Ray with a larger --object-store-memory, or give it a disk with more "
            f"room (--temp-dir).{KEPT}"
        )
    if isinstance(error, MemoryError) or "running low on memory" in text or "can't allocate memory" in text:
        used = re.search(r"was ([\d.]+\s?GB used / [\d.]+\s?GB limit)", text)
        detail = used[1] if used else _first_line(text) or kind
        return RaydistillError(
            f"{who} was ended because its machine ran out of memory ({detail}). {_more_memory()}{KEPT}"
        )
    if kind in ("ActorDiedError", "WorkerCrashedError") or "worker process has died" in text:
        return RaydistillError(
            f"{who} was killed from outside ({_exit_detail(text)}). Where nobody did so, it was for want of "
            f"memory. {_more_memory()}{KEPT}"
        )
    if isinstance(error, OSError) and is_disk_full(error):
        return explain_file(error, "write", str(error.filename or "a temporary file"))
    return None


def _more_memory() -> str:
    return (
        f"{MICRO_BATCH}, or let fewer workers share a machine: train.resources_per_worker: {{CPU: 1, memory: 8.0e+9}} "
        "asks for 8 GB each. With teacher.mode: pool, teacher.pool.max_ahead_bytes counts as well."
    )


def _is_echo(error: BaseException) -> bool:
    return any(echo in str(error) for echo in ECHOES)


def _first_line(text: str) -> str:
    return next((line.strip().rstrip(".") for line in text.splitlines() if line.strip()), "")[:300]


def _exit_detail(text: str) -> str:
    """What Ray knows of the end of a process, in its first sentence."""
    found = re.search(r"Worker exit detail: (.+?)(?:\. |\n|$)", text)
    return found[1] if found else _first_line(text)
