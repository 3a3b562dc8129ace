"""All phases in the calling process, without Ray: notebooks, debuggers, most tests."""

from __future__ import annotations

import threading

import torch

from raydistill.cluster.device import Device, keep_freed_memory
from raydistill.cluster.group import Group
from raydistill.errors import RaydistillError
from raydistill.pipeline.context import Context
from raydistill.pipeline.failures import known
from raydistill.pipeline.job import Job
from raydistill.pipeline.phases import PhaseResults, run_phases
from raydistill.storage.board import Board, Show


def run_local(job: Job, show: Show, stop: threading.Event) -> PhaseResults:
    """Run all phases here; ``show`` gets their progress, ``stop`` ends them with a checkpoint."""
    keep_freed_memory()
    device = Device("cuda" if torch.cuda.is_available() else "cpu", job.dtype)
    board = Board(job.storage, job.run_parts, job.owner, listener=show, stop=stop.is_set)
    context = Context(job, Group(device.torch_device), device, board)
    try:
        return run_phases(context)
    except Exception as error:
        if isinstance(error, RaydistillError) or (found := known(error, "The run")) is None:
            raise
        raise found from error
    finally:
        context.report.flush()
