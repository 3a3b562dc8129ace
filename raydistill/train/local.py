"""All phases in the calling process, without Ray: notebooks, debuggers, most tests."""

from __future__ import annotations

import threading

import torch

from raydistill.board import Board, Show
from raydistill.errors import RaydistillError
from raydistill.phases import Outcome, run_phases
from raydistill.train.device import Device, keep_freed_memory
from raydistill.train.failures import known
from raydistill.train.group import Group
from raydistill.workplace import Job, Workplace


def run_local(job: Job, show: Show, stop: threading.Event) -> Outcome:
    """Run all phases here; ``show`` gets their progress, ``stop`` ends them with a checkpoint."""
    keep_freed_memory()
    device = Device("cuda" if torch.cuda.is_available() else "cpu", job.dtype)
    board = Board(job.storage, job.run_parts, job.owner, listener=show, stop=stop.is_set)
    place = Workplace(job, Group(device.torch_device), device, board)
    try:
        return run_phases(place)
    except Exception as error:
        if isinstance(error, RaydistillError) or (found := known(error, "The run")) is None:
            raise
        raise found from error
    finally:
        place.flush()
