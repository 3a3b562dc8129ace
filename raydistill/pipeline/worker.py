"""The Ray side of training: one worker group runs all phases; the driver watches it and can stop it."""

from __future__ import annotations

import itertools
import os
import pickle
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from typing import Any, TypeVar, cast

import torch

from raydistill.cluster.connection import has_gpu
from raydistill.cluster.device import Device, keep_freed_memory
from raydistill.cluster.group import Group
from raydistill.cluster.resources import worker_resources
from raydistill.cluster.waiting import Waiting
from raydistill.config.teacher import Pool
from raydistill.errors import ArtifactError, Interrupted, RaydistillError, StaleOwner, TeacherError, TrackingError
from raydistill.models.folder import num_weights, resolve_model
from raydistill.pipeline.context import Context
from raydistill.pipeline.failures import explain
from raydistill.pipeline.job import Job
from raydistill.pipeline.notice import Notice
from raydistill.storage.board import Board, Show
from raydistill.storage.faults import not_common
from raydistill.storage.outages import tried_once
from raydistill.storage.ownership import Owner
from raydistill.storage.storage import Storage

Result = TypeVar("Result")

STOP_SECONDS = 5.0
"""After a request to stop, workers get so long, or longer (``stop_seconds``), to write a checkpoint before the cluster
is taken down, which takes Ray up to 4 s: with a small model all of it within 10."""
CHECKPOINT_BYTES = 12
"""Of a parameter: its weight and two moments of Adam's, in float32."""
CHECKPOINT_BYTES_PER_SECOND = 50e6
"""That a checkpoint is written with at least: what one stream to S3 has."""

START_FAILURES = 120
"""Times that a worker group may fail to start, beside ``train.max_wait_minutes``, as waiting for room counts as a
failure a minute: nodes may be lost, and waited for, more than once."""

RESIZE_SECONDS = 60.0
"""An elastic group looks at this interval whether it can grow; growing repeats the steps since a checkpoint."""

GROUPS = itertools.count(1)
"""Numbers the worker groups of this process: a run with a pool has two."""

RESTART = "restart"
"""Phase of a group that lost a worker and has not begun again."""

OF_ONE_RANK = (ArtifactError, StaleOwner, TeacherError, TrackingError)
"""Errors that may meet one rank alone: raised, so that Ray ends the others and tries again. All the rest are expected
to meet every rank at the same place, and are then returned, because trying again would not help."""
TOGETHER_SECONDS = 20.0
"""Within this time the other ranks meet the same error, or it is one of this rank alone, for which they would wait."""


def run_workers(
    job: Job,
    show: Show,
    stop: threading.Event,
    phases: Callable[[Context], Result],
    watch: Callable[[], None] = lambda: None,
    pool: Pool | None = None,
) -> Result:
    """Run ``phases`` in one Ray Train worker group; ``show`` gets its progress, ``stop`` ends it with a checkpoint.

    ``watch`` is called several times a second meanwhile; what it raises ends the run. ``pool``: teachers that need
    their place beside the workers.

    Returns what rank 0's ``phases`` return. Raises the RaydistillError that ended the phases, or one that names the
    worker and its error.
    """
    board = Board(job.storage, job.board_parts, job.owner)
    board.clear()
    name = f"{job.run_key}-{job.owner.number}-{next(GROUPS)}"
    callbacks = [lost_worker_callback(board)]
    resources = worker_resources(job.config.train, pool=pool, is_trial=bool(job.folder))
    waiting = Waiting(job.config.train, resources, show)
    waiting.look(True)
    # Ray's handler for Ctrl-C, which kills workers after 12 s, is only set in the main thread.
    fitting = in_background("ray-train", lambda: outcome_of(make_trainer(job, phases, name, resources, callbacks)))
    try:
        await_end(fitting, board, show, stop, watch, waiting.look, stop_seconds(job))
    except BaseException:
        board.request_stop()  # a Ray that was there before this run stays, and its workers with it
        raise
    if (error := fitting.exception()) is not None:
        raise explain(error) from error
    outcome: Result | RaydistillError = fitting.result()
    if isinstance(outcome, RaydistillError):
        raise outcome
    return outcome


def in_background(name: str, function: Callable[[], Any]) -> Future[Any]:
    """Run ``function`` in a thread of its own, which ends with it."""
    thread = ThreadPoolExecutor(1, thread_name_prefix=name)
    found = thread.submit(function)
    thread.shutdown(wait=False)
    return found


def await_end(
    fitting: Future[Any],
    board: Board,
    show: Show,
    stop: threading.Event,
    watch: Callable[[], None],
    look_for_room: Callable[[bool], bool] = lambda is_waiting: False,
    patience: float = 0.0,
) -> None:
    """Watch a worker group until it ends. Raises Interrupted where it was stopped and does not answer in ``patience``
    seconds, at least ``STOP_SECONDS``.

    ``look_for_room`` is told whether the workers are still to begin, or to begin again; whether they lack room.
    """
    asked_at: float | None = None
    look_at, progress = 0.0, None
    while not wait([fitting], timeout=0.2).done:
        watch()
        if stop.is_set() and asked_at is None:
            asked_at = time.monotonic()
            board.request_stop()
        if (now := time.monotonic()) >= look_at:
            look_at = now + board.look_s
            with suppress(ArtifactError):  # what ends a run is an error of its workers, which write
                progress = board.read() or progress
            is_lacking = asked_at is None and look_for_room(progress is None or progress["phase"] == RESTART)
            if progress is not None and not is_lacking:
                show(progress)
        if asked_at is not None and progress is None:
            raise Interrupted("The run was stopped before its workers started; everything finished so far is kept.")
        if asked_at is not None and time.monotonic() - asked_at > max(STOP_SECONDS, patience):
            raise Interrupted("The run was stopped; the workers did not answer in time, the last checkpoint is kept.")


def stop_seconds(job: Job) -> float:
    """How long the workers may take to write a checkpoint of the largest model that the run begins with: students are
    cut from these."""
    models = [one.config.lead for one in job.teachers]
    names = {(one.model, one.revision, one.trust_remote_code) for one in models} | job.models.keys()
    largest = max(num_weights(resolve_model(*name)) for name in names)
    return max(STOP_SECONDS, largest * CHECKPOINT_BYTES / CHECKPOINT_BYTES_PER_SECOND)


def make_trainer(
    job: Job,
    phases: Callable[[Context], Any],
    name: str,
    resources: dict[str, float],
    callbacks: Sequence[Any] = (),
) -> Any:
    """A trainer whose workers, each with ``resources``, run ``phases``. ``name``: a fresh one a start, as Ray would
    silently resume, or refuse, a run of the same name."""
    import ray.train
    from ray.train.torch import TorchTrainer

    from raydistill.cluster.hosts import HostsConfig

    train = job.config.train
    storage_path, filesystem = ray_storage(job.storage)
    settings: Any = ray.train  # Ray's own types are those of its first version
    start_failures = START_FAILURES + int(train.max_wait_minutes)

    def run() -> bytes:  # in no train_loop_config, which Ray's dashboard shows
        return pickle.dumps(_worker(job, phases))

    return TorchTrainer(
        cast("Any", run),
        torch_config=HostsConfig(backend=backend(resources.get("GPU", 0.0), train.num_workers)),
        scaling_config=settings.ScalingConfig(
            num_workers=num_workers(job),
            elastic_resize_monitor_interval_s=RESIZE_SECONDS,
            use_gpu=resources.get("GPU", 0.0) > 0,
            resources_per_worker=resources,
        ),
        run_config=settings.RunConfig(
            name=name,
            storage_path=storage_path,
            storage_filesystem=filesystem,
            failure_config=settings.FailureConfig(
                max_failures=train.max_failures, controller_failure_limit=start_failures
            ),
            callbacks=list(callbacks),
        ),
    )


def outcome_of(trainer: Any) -> Any:
    """Let a trainer run to its end; what its ``phases`` returned on rank 0, or the error that met every rank.

    It comes as bytes: Ray's controller, through which it goes, would import all that it refers to, 4 s of a core.
    """
    return pickle.loads(trainer.fit().return_value)


def backend(gpus: float, num_workers: int) -> str:
    """How workers with so many GPUs each reach one another, where their torch can. nccl refuses workers that share a
    GPU; gloo takes tensors on it, too."""
    is_shared = gpus < 1 and num_workers > 1
    return "gloo" if not gpus or is_shared else "nccl"


def num_workers(job: Job) -> int | tuple[int, int]:
    """Workers of a group; where it is elastic, the fewest and the most. A trial keeps the place that Tune gave it."""
    train = job.config.train
    if train.min_workers is None or job.folder:
        return train.num_workers
    return train.min_workers, train.num_workers


def lost_worker_callback(board: Board) -> Any:
    """Hears from Ray which workers were lost, and posts it as progress: new nodes may take minutes to come."""
    from ray.train import UserCallback

    class LostWorkerCallback(UserCallback):
        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            ranks = ", ".join(str(rank) for rank in sorted(worker_exceptions))
            causes = ", ".join(sorted({type(error).__name__ for error in worker_exceptions.values()}))
            note = f"lost worker {ranks} ({causes}); the group goes on from its last checkpoint when it has room"
            with suppress(ArtifactError), tried_once():  # in Ray's controller, which must not wait
                board.post(RESTART, 0, 0, "", 0.0, note)

    return LostWorkerCallback()


def _worker(job: Job, phases: Callable[[Context], Any]) -> Any:
    """What every Ray Train worker runs; returns the outcome, or the error that met every rank."""
    import ray.train
    import ray.train.torch

    keep_freed_memory()
    device = Device(str(ray.train.torch.get_device()) if has_gpu() else "cpu", job.dtype)
    if threads := os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(threads))
    board = Board(job.storage, job.board_parts, job.owner)
    notice = Notice(preemption_deadline)
    group = Group(device.torch_device)
    context = Context(job, group, device, board, observed=ray.train.report, should_save=notice.is_due)
    context.report.notes += notes_on_device(device, ray.get_gpu_ids())
    try:
        check_storage(job.storage, job.run_parts, context.group, job.owner)
        return phases(context)
    except OF_ONE_RANK:
        raise
    except RaydistillError as error:
        if not group.all_come("error", TOGETHER_SECONDS):
            raise
        return error
    finally:
        context.report.flush()


def notes_on_device(device: Device, gpu_ids: Sequence[Any]) -> list[str]:
    """What a run says where a worker computes on CPUs although Ray gave it GPUs."""
    if device.torch_device.type != "cpu" or not gpu_ids:
        return []
    return [
        "Workers were given GPUs that their torch cannot use, and computed on CPUs. Install a torch with CUDA, and "
        "NVIDIA's driver, on the cluster's nodes; raydistill doctor --address auto tells which lack it."
    ]


def preemption_deadline() -> float | None:
    """When a node with workers of this group will be taken away, in seconds since the epoch; None without notice.

    Ray's own function for it is a collective, which every step would have to pay for; the loop's ranks agree anyway.
    """
    from ray.train.v2._internal.execution.context import get_train_context

    info = get_train_context().preemption_context.preemption_info
    return None if info is None else (info.deadline_ms or 0) / 1000


def check_storage(storage: Storage, run: tuple[str, ...], group: Group, owner: Owner | None = None) -> None:
    """Every rank writes a marker that every rank reads: storage that nodes do not share is found before any work.

    The file of the ``owner`` is the driver's marker: all ranks may be on one node, which is not the driver's.
    """
    storage.write_bytes(b"", *run, "markers", str(group.rank))
    group.barrier()
    missing = [rank for rank in range(group.size) if not storage.exists(*run, "markers", str(rank))]
    missing += [-1] if owner is not None and not storage.exists(*owner.folder, "owner.json") else []
    if group.any(bool(missing)):
        raise not_common(storage.url)


def ray_storage(storage: Storage) -> tuple[str, Any]:
    """Where Ray Train keeps its own few files: beside ours, through the same file system."""
    path = storage.path("ray")
    if storage.is_local:
        return path, None
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    return path, PyFileSystem(FSSpecHandler(storage.fs))
