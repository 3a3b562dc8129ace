"""The signal store: what a teacher said about every row, one artefact a signal, one Arrow file a shard.

A shard is a fixed set of rows of like length, cut as a pure function of the rows' lengths, so that any number of
workers can record any part of it at any time. Signals are read by row number, memory-mapped, without padding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from raydistill.errors import ArtifactError
from raydistill.models.ragged import num_positions
from raydistill.models.signals import Signal
from raydistill.storage.artifacts import Artifact
from raydistill.storage.faults import Damaged
from raydistill.storage.locks import lock
from raydistill.storage.manifest import MANIFEST, FileInfo
from raydistill.storage.storage import Storage
from raydistill.storage.verified import contents, read_file

SHARD_ROWS = 1_000
SHARD_TOKENS = 65_536
"""Longer rows make smaller shards: at width 768 a shard of one token-level signal stays at 100 MB."""

MAX_MAPS = 8_192
"""Shards that are mapped at a time, all signals together: Linux allows a process 65,530 maps, torch and threads need
some, and the trials of a sweep may keep several sets of signals. Mapping a shard again takes 0.1 ms."""


def cut_shards(lengths: np.ndarray) -> list[np.ndarray]:
    """Cut the rows of a split into shards, longest rows first: the last ones, which ranks wait for, are quick."""
    order = np.argsort(-lengths, kind="stable")
    shards, start = [], 0
    ends = np.cumsum(lengths[order], dtype=np.int64)
    while start < len(order):
        fits = int(np.searchsorted(ends, (ends[start - 1] if start else 0) + SHARD_TOKENS, side="right"))
        end = max(start + 1, min(start + SHARD_ROWS, fits))
        shards.append(order[start:end])
        start = end
    return shards


def signal_artifact(
    storage: Storage,
    signal: Signal,
    split: str,
    *,
    teacher_digest: str,
    tokens_digest: str,
    dtype: str,
    parents: Mapping[str, str] | None = None,
) -> Artifact:
    """Where a signal lies, by the teacher's weights (not how they came about), the rows and the dtype."""
    recipe = {
        "signal": signal,
        "split": split,
        "teacher": teacher_digest,
        "tokens": tokens_digest,
        "dtype": dtype,
        "shard_rows": SHARD_ROWS,
        "shard_tokens": SHARD_TOKENS,
    }
    return Artifact.of(storage, "signals", recipe, parents)


def write_shard(
    path: Path,
    row_ids: np.ndarray,
    lengths: np.ndarray,
    values: Tensor,
    signal: Signal,
    units: np.ndarray | None = None,
) -> None:
    """Write one signal of one shard. ``values`` are (B, C) or, for token-level signals, (N, width) in row order; (M, C)
    of rows that have so many ``units`` (B,), a prediction each."""
    counts = num_positions(len(values), lengths) if signal.is_token_level else units
    if counts is not None:
        flat = values.to(getattr(torch, signal.dtype)).numpy()
        if signal.is_token_level and not np.isfinite(flat).all():
            raise ArtifactError(
                f"{signal} of this teacher exceeds half precision (65504), so it cannot be recorded exactly. "
                "Set teacher.mode: online."
            )
        offsets = np.concatenate(([0], np.cumsum(counts, dtype=np.int64))) * flat.shape[1]
        column: pa.Array = pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(flat.reshape(-1)))
    else:
        array = values.to(torch.float32).numpy()
        column = pa.FixedSizeListArray.from_arrays(pa.array(array.reshape(-1)), array.shape[1])
    width = str(values.shape[1])
    schema = pa.schema([("row_id", pa.int64()), ("value", column.type)], metadata={"signal": signal, "width": width})
    batch = pa.record_batch([pa.array(row_ids, pa.int64()), column], schema=schema)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(batch)


def shard_name(index: int, digest: str) -> str:
    """The content is part of the name: two writers of one shard never overwrite each other with other bytes."""
    return f"{index:05d}-{digest[:16]}.arrow"


def find_shards(artifact: Artifact, found: Mapping[str, FileInfo] | None = None) -> dict[int, tuple[str, FileInfo]]:
    """Return the whole shards of an artefact that is not sealed yet; damaged ones are removed.

    ``found``: what its files hold; by default that is looked at here.
    """
    found = contents(artifact.storage, artifact.kind, artifact.key) if found is None else found
    shards: dict[int, tuple[str, FileInfo]] = {}
    for name in sorted(artifact.names()):
        if not name.endswith(".arrow") or name.startswith("."):
            continue
        index = int(name.partition("-")[0])
        if index in shards:
            continue
        if (info := found.get(name)) is None:
            continue  # another process has written it since
        if name != shard_name(index, info.sha256):  # or has mended it
            info = read_file(artifact.storage, artifact.kind, artifact.key, name)
        if info is not None and name == shard_name(index, info.sha256):
            shards[index] = (name, info)
        else:
            artifact.storage.delete(artifact.kind, artifact.key, name)
    return shards


def reopen_damaged(artifact: Artifact, found: Mapping[str, FileInfo] | None = None) -> list[str]:
    """Open an artefact whose files do not fit its manifest for recording them again, and no others. ``found`` as of
    ``find_shards``.

    Names of these files, which are removed; none where all fit or nothing is sealed yet.
    """
    if not artifact.exists() or fits(artifact, found):
        return []
    with lock(artifact.storage, "commit", artifact.kind, artifact.key):
        if not artifact.exists() or fits(artifact):  # another process has mended it meanwhile
            return []
        try:
            names = set(artifact.manifest().files)
        except Damaged:
            names = {MANIFEST}
        artifact.unseal()
        return sorted(names - {name for name, _ in find_shards(artifact).values()})


def fits(artifact: Artifact, found: Mapping[str, FileInfo] | None = None) -> bool:
    """Whether every file of a sealed artefact has the size and checksum that its manifest names. ``found`` as of
    ``find_shards``."""
    try:
        files = artifact.manifest().files
    except Damaged:
        return False
    found = contents(artifact.storage, artifact.kind, artifact.key, names=files) if found is None else found
    return all(found.get(name) == info for name, info in files.items())


@dataclass(frozen=True)
class Shard:
    """One shard of one signal, mapped into memory while this object or one of its arrays lives."""

    row_ids: np.ndarray
    values: np.ndarray
    """(rows, C), or (tokens, width) of a token-level signal, or (units, C)."""
    offsets: np.ndarray | None
    """Where each row's tokens, or units, begin, and the last ones end; None where each has one row of numbers."""

    @classmethod
    def open(cls, path: Path) -> Shard:
        try:
            mapped = pa.memory_map(str(path))
        except FileNotFoundError as error:
            raise ArtifactError(f"{path} is gone; remove its folder to record it anew.") from error
        except OSError as error:
            raise ArtifactError(
                f"Cannot map {path} into memory: {error}. It need not be damaged: this process may hold as many maps "
                "as the system allows (sysctl vm.max_map_count), or all of its memory (ulimit -v). Raise that limit."
            ) from error
        try:
            reader = pa.ipc.open_file(mapped)
            batch = reader.get_batch(0)
        except (pa.ArrowInvalid, OSError) as error:
            raise ArtifactError(f"{path} is damaged ({error}); remove its folder to record it anew.") from error
        value, width = batch.column("value"), int(reader.schema.metadata[b"width"])
        values = value.values.to_numpy(zero_copy_only=True).reshape(-1, width)
        offsets = value.offsets.to_numpy() // width if pa.types.is_large_list(value.type) else None
        return cls(batch.column("row_id").to_numpy(), values, offsets)
