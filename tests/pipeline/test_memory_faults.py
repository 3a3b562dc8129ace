"""Out of memory, on a GPU, a machine or in the object store: the message names the setting to change."""

from __future__ import annotations

import errno
import multiprocessing
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from kit.toy import toy_config

from raydistill.cluster.connection import connected
from raydistill.config.loading import load_config
from raydistill.errors import ArtifactError, RaydistillError
from raydistill.pipeline.distill import distill
from raydistill.pipeline.failures import KEPT, explain, known
from raydistill.train import loop

CUDA = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB\nOf the allocated ..."
GB = 10**9
ROOM_BYTES = 4 * GB
"""The workers of the test may take so much before Ray kills them; what else the machine holds does not count."""


class GroupError(Exception):
    """As Ray Train's: one error a rank."""

    def __init__(self, failures: dict[int, Exception]) -> None:
        super().__init__(f"{len(failures)} workers failed")
        self.worker_failures = failures


def text_of(*failures: Exception) -> str:
    return str(explain(GroupError(dict(enumerate(failures)))))


def test_the_rank_that_failed_is_named_and_not_those_that_waited_for_it():
    echo = RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:2121")
    assert text_of(echo, torch.OutOfMemoryError(CUDA)).startswith("Worker 1 ran out of GPU memory")
    assert text_of(echo, ValueError("odd")) == f"Worker 1 failed: ValueError: odd{KEPT}"
    assert text_of(echo, echo).startswith("Worker 0 failed: RuntimeError")
    own = ArtifactError("of ours")
    assert explain(GroupError({0: torch.OutOfMemoryError(CUDA), 1: own})) is own
    assert str(explain(ValueError("early"))) == f"Worker 0 failed: ValueError: early{KEPT}"


def test_gpu_memory_names_the_micro_batch_and_one_line_of_torch():
    text = str(known(torch.OutOfMemoryError(CUDA), "Worker 3"))
    assert "train.tokens_per_micro_batch" in text
    assert "79.10 GiB" in text
    assert "Of the allocated" not in text


def test_memory_that_torch_cannot_get_is_known():
    with pytest.raises(RuntimeError) as found:
        torch.empty(10**15)
    text = str(known(found.value, "The run"))
    assert text.startswith("The run was ended because its machine ran out of memory")
    assert "train.resources_per_worker" in text
    assert known(MemoryError(), "x") is not None
    assert known(ValueError("x"), "x") is None


def test_a_full_disk_is_known():
    found = known(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/tmp/shard.arrow"), "Worker 0")
    assert isinstance(found, ArtifactError)
    assert "/tmp/shard.arrow: the disk is full" in str(found)
    assert "TMPDIR" in str(found)


@pytest.mark.slow
def test_without_ray_the_run_says_it_too_and_goes_on(tmp_path, monkeypatch):
    step = loop.StageRun.take_step

    def take_step(self: Any, number: int, *arguments: Any) -> None:
        if self.setup.name == "student.distill" and number == 7:
            raise torch.OutOfMemoryError(CUDA)
        step(self, number, *arguments)

    config = load_config(toy_config(tmp_path, evaluate__baseline=False))
    with monkeypatch.context() as patch:
        patch.setattr(loop.StageRun, "take_step", take_step)
        with pytest.raises(RaydistillError, match=r"ran out of GPU memory.*79.10 GiB.*tokens_per_micro_batch"):
            distill(config)
    assert "teacher" in distill(config)["reused"]


def worker() -> Callable[[dict[str, Any]], None]:
    """What a worker does, made here so that it travels by value: the last rank fails, the others wait for it."""

    def work(config: dict[str, Any]) -> None:
        import time

        import numpy as np
        import ray.train

        context = ray.train.get_context()
        if context.get_world_rank() == context.get_world_size() - 1:
            if config["kind"] == "gpu":
                raise torch.OutOfMemoryError(config["text"])
            kept: list[Any] = []
            while config["kind"] == "host":
                kept.append(np.ones(25_000_000))  # 200 MB
                time.sleep(0.05)
            kept = [ray.put(np.ones(4_000_000)) for _ in range(12)]
        torch.distributed.barrier()

    return work


def failures_of(groups: Mapping[str, int], folder: Path, **settings: str) -> list[str]:
    """What a user would read of groups of so many workers that fail one after another, under a Ray of these settings.

    In a process of its own, which must have no other Ray.
    """
    context = multiprocessing.get_context("spawn")
    with pytest.MonkeyPatch.context() as patch, ProcessPoolExecutor(1, mp_context=context) as pool:
        for name in [name for name in os.environ if name.startswith("RAY_")]:
            patch.delenv(name)
        for name, value in settings.items():
            patch.setenv(f"RAY_{name}", value)
        return pool.submit(run_groups, groups, folder).result()


def run_groups(groups: Mapping[str, int], folder: Path) -> list[str]:
    with connected():
        return [failure_of(kind, num_workers, folder) for kind, num_workers in groups.items()]


def failure_of(kind: str, num_workers: int, folder: Path) -> str:
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.config import FailureConfig

    trainer = TorchTrainer(
        worker(),
        train_loop_config={"kind": kind, "text": CUDA},
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(num_workers=num_workers),
        run_config=RunConfig(
            name=kind,
            storage_path=str(folder),
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=0),
        ),
    )
    try:
        trainer.fit()
    except Exception as error:
        return str(explain(error))
    raise AssertionError("nothing failed")


@pytest.mark.slow
def test_gpu_memory_and_a_full_object_store_on_ray(tmp_path):
    gpu, store = failures_of({"gpu": 2, "store": 1}, tmp_path, local_fs_capacity_threshold="0.0001")
    assert gpu.startswith("Worker 1 ran out of GPU memory"), gpu
    assert "object store" in store, store
    assert "teacher.pool.max_ahead_bytes" in store


@pytest.mark.chaos
def test_a_worker_that_takes_all_memory_of_a_machine_on_ray(tmp_path):
    """Ray may end its own helpers as well: what they say of it is understood too."""
    memory = psutil.virtual_memory()
    share = min((memory.total - memory.available + ROOM_BYTES) / memory.total, 0.95)
    settings = {"memory_usage_threshold": f"{share:.3f}", "memory_monitor_refresh_ms": "100"}
    (host,) = failures_of({"host": 1}, tmp_path, **settings)
    assert "its machine ran out of memory" in host, host
    assert "GB used" in host
    assert "train.tokens_per_micro_batch" in host
    assert len(host.splitlines()) == 2
