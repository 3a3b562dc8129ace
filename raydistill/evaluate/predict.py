"""A model's outputs for every row of a split, shared out over the ranks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from raydistill.cluster.device import Device
from raydistill.cluster.group import Group
from raydistill.data.batches import micro_batches
from raydistill.data.rows import Rows
from raydistill.errors import Interrupted
from raydistill.models.capture import capture
from raydistill.models.signals import LOGITS, Signal
from raydistill.tasks.targets import Ragged, Values


def predict(
    model: nn.Module,
    rows: Rows,
    *,
    tokens: int,
    device: Device,
    group: Group,
    should_stop: Callable[[], bool] = lambda: False,
    row_ids: np.ndarray | None = None,
    signal: Signal = LOGITS,
) -> Values:
    """Return a model's outputs (num_rows, C), or what ``signal`` keeps of them, float32, the same on every rank; of
    ``row_ids`` alone where given. Ragged where rows have several predictions.

    Rows are taken in order of length, in batches of at most ``tokens`` padded tokens. Raises Interrupted, on every
    rank, where one of them should stop.
    """
    wanted = np.arange(rows.num_rows) if row_ids is None else row_ids
    order = wanted[np.argsort(rows.lengths[wanted], kind="stable")]
    share = order[group.rank :: group.size]
    model.to(device.torch_device).eval()
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    stopped = False
    for ids in micro_batches(share, rows.lengths, tokens=tokens):
        with torch.inference_mode(), device.autocast():
            logits = capture(model, device.move(rows.inputs(ids)), {signal})[signal]
        parts.append((ids, logits.float().cpu().numpy()))
        group.at_work()
        if stopped := should_stop():
            break
    if group.any(stopped):
        raise Interrupted("The run was stopped while a model was evaluated; everything finished so far is kept.")
    gathered = [part for rank_parts in group.gather(parts) for part in rank_parts]
    width = gathered[0][1].shape[1] if gathered else 0
    if rows.units is not None:
        units = Ragged(np.empty((len(rows.units.flat), width), np.float32), rows.units.lengths)
        for ids, logits in gathered:
            units.put(ids, logits)
        return units if row_ids is None else units[row_ids]
    result = np.empty((rows.num_rows, width), dtype=np.float32)
    for ids, logits in gathered:
        result[ids] = logits
    return result if row_ids is None else result[row_ids]
