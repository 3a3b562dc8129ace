"""The Ray side of training: one worker group runs all phases; the driver watches it and can stop it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, TypeVar, cast

import torch

from raydistill.artifacts import Storage
from raydistill.board import Board, Show
from raydistill.cluster import worker_resources
from raydistill.errors import ArtifactError, Interrupted, RaydistillError, StaleOwner, TrackingError
from raydistill.train.device import Device, keep_freed_memory
from raydistill.train.group import Group
from raydistill.workplace import Job, Workplace

Result = TypeVar("Result")

STOP_SECONDS = 5.0
"""After a wish to stop, workers get so long to write a checkpoint before the cluster is taken down."""

OF_ONE_RANK = (ArtifactError, StaleOwner, TrackingError)
"""Errors that may meet one rank alone: raised, so that Ray ends the others and tries again. All the rest meet every
rank at the same place and are returned, because trying again would not help."""


def run_workers(job: Job, show: Show, stop: threading.Event, phases: Callable[[Workplace], Result]) -> Result:
    """Run ``phases`` in one Ray Train worker group; ``show`` gets its progress, ``stop`` ends it with a checkpoint.

    Returns what rank 0's ``phases`` return. Raises the RaydistillError that ended the phases, or one that names the
    worker and its error.
    """
    board = Board(job.storage, job.board_parts, job.owner)
    # In a thread of its own: Ray's handler for Ctrl-C, which kills workers after 12 s, is only set in the main thread.
    pool = ThreadPoolExecutor(1, thread_name_prefix="ray-train")
    fitting = pool.submit(lambda: make_trainer(job, phases, f"{job.run_key}-{job.owner.number}").fit().return_value)
    pool.shutdown(wait=False)
    asked_at: float | None = None
    while not wait([fitting], timeout=0.2).done:
        if stop.is_set() and asked_at is None:
            asked_at = time.monotonic()
            board.request_stop()
        progress = board.read()
        if asked_at is not None and progress is None:
            raise Interrupted("The run was stopped before its workers started; everything finished so far is kept.")
        if asked_at is not None and time.monotonic() - asked_at > STOP_SECONDS:
            raise Interrupted("The run was stopped; the workers did not answer in time, the last checkpoint is kept.")
        if progress is not None:
            show(progress)
    if (error := fitting.exception()) is not None:
        raise explain(error) from error
    outcome: Result | RaydistillError = fitting.result()
    if isinstance(outcome, RaydistillError):
        raise outcome
    return outcome


def make_trainer(job: Job, phases: Callable[[Workplace], Any], name: str, callbacks: Sequence[Any] = ()) -> Any:
    """A trainer whose workers run ``phases``. ``name``: a fresh one a start, as Ray would silently resume, or refuse, a
    run of the same name."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.config import FailureConfig

    resources = worker_resources(job.config.train)
    use_gpu = resources.get("GPU", 0) > 0
    storage_path, filesystem = ray_storage(job.storage)
    return TorchTrainer(
        cast("Any", _worker),
        train_loop_config={"job": job, "phases": phases},
        # a torch that was built for CPUs has no nccl, whatever the nodes claim to have
        torch_config=TorchConfig(backend="nccl" if use_gpu and torch.distributed.is_nccl_available() else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=job.config.train.num_workers,
            use_gpu=use_gpu,
            resources_per_worker=resources,
        ),
        run_config=RunConfig(
            name=name,
            storage_path=storage_path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=job.config.train.max_failures, controller_failure_limit=3),
            callbacks=list(callbacks),
        ),
    )


def _worker(config: dict[str, Any]) -> Any:
    """What every Ray Train worker runs; returns the outcome, or the error that met every rank."""
    import ray.train
    import ray.train.torch

    keep_freed_memory()
    job: Job = config["job"]
    device = Device(str(ray.train.torch.get_device()) if torch.cuda.is_available() else "cpu", job.dtype)
    if threads := os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(threads))
    board = Board(job.storage, job.board_parts, job.owner)
    place = Workplace(job, Group(device.torch_device), device, board, observed=ray.train.report)
    try:
        check_storage(job.storage, job.run_parts, place.group)
        return config["phases"](place)
    except OF_ONE_RANK:
        raise
    except RaydistillError as error:
        return error
    finally:
        place.flush()


def check_storage(storage: Storage, run: tuple[str, ...], group: Group) -> None:
    """Every rank writes a marker that every rank reads: storage that nodes do not share is found before any work."""
    storage.write_bytes(b"", *run, "markers", str(group.rank))
    group.barrier()
    missing = [rank for rank in range(group.size) if not storage.exists(*run, "markers", str(rank))]
    if group.sum([float(len(missing))])[0]:
        raise RaydistillError(
            f"storage: {storage.url} is not the same place on every node. Use a URL (s3://, gs://) or a shared folder."
        )


def ray_storage(storage: Storage) -> tuple[str, Any]:
    """Where Ray Train keeps its own few files: beside ours, through the same file system."""
    path = storage.path("ray")
    if storage.is_local:
        return path, None
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    return path, PyFileSystem(FSSpecHandler(storage.fs))


def explain(error: BaseException) -> RaydistillError:
    """Turn what ``fit`` raised into one message that names the worker and the cause."""
    failures = getattr(error, "worker_failures", None) or {0: getattr(error, "controller_failure", None) or error}
    rank, cause = min(failures.items())
    if isinstance(cause, RaydistillError):
        return cause
    return RaydistillError(
        f"Worker {rank} failed: {type(cause).__name__}: {cause}\n"
        "Everything finished so far is kept; the same command goes on from there."
    )
