"""Joining or starting a Ray cluster."""

from __future__ import annotations

import logging
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from raydistill.cluster import threads
from raydistill.cluster.entry import check_entry
from raydistill.errors import RaydistillError

DEFAULTS = {
    # Ray Train empties its result queue at this interval: at its default of 2 s a run of ten reports loses 20 s.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
    # Some clouds give 30 s of notice before they take a node; Ray's default would take 5 of them.
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
    # Workers keep the driver's folder, so that relative paths mean the same everywhere.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    # For workers, where this process has loaded torch without it: see threads.py.
    threads.POLICY: "PASSIVE",
    # Ray gives workers a niceness of 15: whatever else runs on a core leaves them a thirtieth of it, in training and in
    # what is measured as latency. A run without Ray is not nice either.
    "RAY_worker_niceness": "0",
    # With its first driver Ray starts a worker for each core, half a second of one, and later ends most of them unused.
    "RAY_prestart_worker_first_driver": "0",
    # Tune's own files are not read by anybody: a sweep's trials lie in its ledger.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "600",
    # A trial that fails before its first validation has no metric; Tune would end the whole sweep over it.
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}

OBJECT_STORE_BYTES = 128 * 2**20
"""Nothing large passes through the object store of a local cluster: rows and signals are memory-mapped files."""

WATCHER = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"
"""Ray's actor that looks whether the nodes of a worker group will be taken away. Nobody takes away the only node of a
cluster that this process has started, and to start the actor takes each group 2 s of a core."""


def set_environment() -> None:
    """Set Ray's switches, which it reads when it is first imported; what the user has set stays.

    A cluster that this process starts is closed to others by a token that lives as long as the process does.
    """
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    # Ray reads mode and token once, when it is imported or first started; its daemons would read what is set later, and
    # turn this process away. A Ray that was there before us has chosen both by itself.
    if not os.environ.get("RAY_ADDRESS") and "ray" not in sys.modules:
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        if os.environ["RAY_AUTH_MODE"] == "token" and "RAY_AUTH_TOKEN_PATH" not in os.environ:
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


@contextmanager
def connected(object_store_bytes: int = OBJECT_STORE_BYTES) -> Iterator[None]:
    """Join the cluster that ``RAY_ADDRESS`` names or that this process is in; otherwise start one here, and end it.

    ``object_store_bytes``: size of the object store of a cluster that is started. Raises RaydistillError where the
    cluster cannot be reached.
    """
    set_environment()
    import ray

    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
    with ExitStack() as ending:
        if not address and WATCHER not in os.environ:
            os.environ[WATCHER] = "0"
            ending.callback(os.environ.pop, WATCHER, None)  # the next cluster may be one of many nodes
        _begin(address, object_store_bytes)
        ending.callback(ray.shutdown)
        yield


def _begin(address: str | None, object_store_bytes: int) -> None:
    """Join the cluster at the address; start one where there is none."""
    import ray

    try:
        if address:
            if address not in ("auto", "local") and not address.startswith("ray://"):
                check_entry(address)  # Ray itself tries for 20 s with a wrong token, and for minutes at a wrong port
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        else:
            ray.init(
                address="local",
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                object_store_memory=object_store_bytes,
            )
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        where = f"the Ray cluster at {address}" if address else "a local Ray cluster"
        way_out = "Check RAY_ADDRESS, RAY_AUTH_MODE and RAY_AUTH_TOKEN" if address else "Run raydistill doctor"
        raise RaydistillError(f"Could not connect to {where}: {error}. {way_out}.") from error


def has_gpu() -> bool:
    """Whether this worker or actor was given a GPU; one that asked for none sees them all the same."""
    import ray
    import torch

    return torch.cuda.is_available() and bool(ray.get_gpu_ids())
