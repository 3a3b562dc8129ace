"""Recording: every rank runs the teacher over its share of the missing shards, batches by a token budget."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from raydistill.cluster.device import Device
from raydistill.cluster.group import Group
from raydistill.data.batches import micro_batches
from raydistill.data.rows import Rows
from raydistill.errors import Interrupted
from raydistill.models.capture import capture
from raydistill.models.signals import Signal
from raydistill.storage.artifacts import Artifact
from raydistill.storage.manifest import FileInfo, file_digest
from raydistill.storage.ownership import Owner
from raydistill.teacher.mixed import MixedSignals
from raydistill.teacher.store import cut_shards, find_shards, shard_name, write_shard
from raydistill.teacher.verify import verify

Files = dict[Signal, dict[str, FileInfo]]
"""Signal → file name → size and checksum."""

Present = dict[Signal, dict[int, tuple[str, FileInfo]]]
"""Signal → shard → its file on storage."""

STOPPED = "Recording stopped; the shards recorded so far are kept."


def record(
    teacher: PreTrainedModel | MixedSignals,
    rows: Rows,
    wanted: Mapping[Signal, Artifact],
    *,
    tokens: int,
    device: Device,
    group: Group,
    owner: Owner | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    progress: Callable[[int, int, float], None] = lambda done, total, rate: None,
) -> None:
    """Record the ``wanted`` signals of all ``rows`` and seal their artefacts; what is on storage already is kept.

    ``progress`` gets rows done, rows in all and rows a second (all ranks together, estimated from this one).
    Raises Interrupted when asked to stop; finished shards stay and are not computed again.
    """
    shards = cut_shards(rows.lengths)
    found = verify([*wanted.values()], group, should_stop=should_stop)
    present = group.broadcast(find_present(wanted, found) if group.is_first else None)
    missing = find_missing(len(shards), present)
    if not isinstance(teacher, MixedSignals):
        nn.Module.to(teacher, device.torch_device).eval()
    mine: Files = {signal: {} for signal in wanted}
    total = sum(len(shards[i]) for i in missing)
    started, done, stopped = time.perf_counter(), 0, False
    for index, signals in list(missing.items())[group.rank :: group.size]:
        if stopped := should_stop():
            break
        group.at_work()
        lacking = {signal: wanted[signal] for signal in signals}
        made = record_shard(teacher, rows, shards[index], index, lacking, tokens, device, owner)
        for signal, (name, info) in made.items():
            mine[signal][name] = info
        done += len(shards[index])
        progress(min(done * group.size, total), total, done * group.size / (time.perf_counter() - started))
    if group.any(stopped):
        raise Interrupted(STOPPED)
    recorded = group.gather(mine)
    if group.is_first:
        seal(wanted, present, recorded, owner)
    group.barrier()


def find_present(wanted: Mapping[Signal, Artifact], found: Sequence[Mapping[str, FileInfo]]) -> Present:
    """The whole shards of artefacts that may not be sealed yet; damaged ones are removed. ``found``: what the files of
    each hold."""
    return {s: find_shards(artifact, files) for (s, artifact), files in zip(wanted.items(), found, strict=True)}


def find_missing(num_shards: int, present: Present) -> dict[int, list[Signal]]:
    """Shards that are still to be recorded, each with the signals that lack it."""
    lacking = {i: [signal for signal in present if i not in present[signal]] for i in range(num_shards)}
    return {index: signals for index, signals in lacking.items() if signals}


def record_shard(
    teacher: PreTrainedModel | MixedSignals,
    rows: Rows,
    row_ids: np.ndarray,
    index: int,
    wanted: Mapping[Signal, Artifact],
    tokens: int,
    device: Device,
    owner: Owner | None,
) -> dict[Signal, tuple[str, FileInfo]]:
    """Run the teacher over one shard and put it on storage; by signal the file's name, size and checksum."""
    if isinstance(teacher, MixedSignals):
        spoken = teacher.rows(row_ids)
    else:
        spoken = run(teacher, rows, row_ids, wanted, tokens, device)
    if owner is not None:
        owner.check()
    files = {}
    with tempfile.TemporaryDirectory() as folder:
        for signal, artifact in wanted.items():
            path = Path(folder) / "shard.arrow"
            units = None if rows.units is None else rows.units.lengths[row_ids]
            write_shard(path, row_ids, rows.lengths[row_ids], spoken[signal], signal, units)
            name = shard_name(index, file_digest(path))
            files[signal] = (name, artifact.put(path, name))
    return files


def run(
    teacher: PreTrainedModel,
    rows: Rows,
    row_ids: np.ndarray,
    signals: Collection[Signal],
    tokens: int,
    device: Device,
) -> dict[Signal, torch.Tensor]:
    """What the teacher says of these rows, one after another, float32."""
    parts: dict[Signal, list[torch.Tensor]] = {signal: [] for signal in signals}
    for ids in micro_batches(row_ids, rows.lengths, tokens=tokens):
        with torch.inference_mode(), device.autocast():
            captured = capture(teacher, device.move(rows.inputs(ids)), signals)
        for signal, values in captured.items():
            parts[signal].append(values.float().cpu())
    return {signal: torch.cat(values) for signal, values in parts.items()}


def seal(wanted: Mapping[Signal, Artifact], present: Present, recorded: Sequence[Files], owner: Owner | None) -> None:
    """Write the manifests, once every shard is on storage: those that were ``present``, and the ``recorded`` ones."""
    if owner is not None:
        owner.check()
    for signal, artifact in wanted.items():
        files = dict(present[signal].values())
        for made in recorded:
            files |= made[signal]
        artifact.seal(dict(sorted(files.items())))
