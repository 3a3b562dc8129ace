"""Processes of a gloo group, forked from a server that has imported everything once: to import it takes each 6 s."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

CONTEXT = multiprocessing.get_context("forkserver")
PRELOADED = ["kit.toy", "raydistill.pipeline.phases"]
CONTEXT.set_forkserver_preload(PRELOADED)


def take_environment(environment: Mapping[str, str]) -> None:
    """In a process of the server, which has the environment of the test that came first: have this one."""
    os.environ.clear()
    os.environ.update(environment)


def _rank_main(
    rank: int, environment: dict[str, str], function: Callable[..., Any], size: int, folder: str, arguments: Any
) -> None:
    take_environment(environment)
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=size)
    try:
        torch.save(function(*arguments), f"{folder}/{rank}.pt")
    finally:
        torch.distributed.destroy_process_group()


def run_ranks(function: Callable[..., Any], size: int, folder: Path, *arguments: Any) -> list[Any]:
    """Run ``function(*arguments)`` in ``size`` gloo processes and return what each returned."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.multiprocessing.start_processes(
        _rank_main, (dict(os.environ), function, size, str(folder), arguments), size, start_method="forkserver"
    )
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(size)]
