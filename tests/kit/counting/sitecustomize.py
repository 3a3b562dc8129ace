"""On the PYTHONPATH of a process and its children: counts training steps and recorded shards in $RAYDISTILL_COUNT_FILE.

Each line is ``step <setup> <number> <rank> <pid>``, ``shard <split>/<signals> <index> <rank> <pid>`` or, where a worker
begins its phases, ``start run 0 <rank> <pid>``, or, for a micro-batch that a teacher of a pool computes, ``signals
<names> <first row> <rows> <pid>``; appended before the work is done, so that work that a kill cuts off is
counted as well. Who opens tokenised rows is noted in a file beside it, ``$RAYDISTILL_COUNT_FILE.opened``:
``<split> <bytes of the count file by then> <pid>``. When phases begin and end is noted in
``$RAYDISTILL_COUNT_FILE.phases``: ``<begin or end> <phase> <seconds since the epoch> <pid>``.
"""

import errno
import functools
import importlib.abc
import importlib.machinery
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

COUNT_FILE = os.environ.get("RAYDISTILL_COUNT_FILE")
SHARD_ROWS = os.environ.get("RAYDISTILL_SHARD_ROWS")
"""Smaller shards, for a toy to have several."""
SHARD_SECONDS = float(os.environ.get("RAYDISTILL_SHARD_SECONDS", "0"))
"""Recording the toy takes 0.1 s; a test that kills a worker in it needs longer."""
SIGNALS_SECONDS = float(os.environ.get("RAYDISTILL_SIGNALS_SECONDS", "0"))
"""The same for a micro-batch in a teacher pool."""
STEP_SECONDS = float(os.environ.get("RAYDISTILL_STEP_SECONDS", "0"))
"""A step of the toy's student takes 10 ms; a node that is drained, or joins, needs some seconds of training."""
RESIZE_SECONDS = os.environ.get("RAYDISTILL_RESIZE_SECONDS")
"""How often an elastic group looks whether it can grow."""

AWAY_FILE = os.environ.get("RAYDISTILL_AWAY_FILE")
"""While this file is there, what a storage on a local disk writes fails with an I/O error."""


def note(*words: object, suffix: str = "") -> None:
    line = " ".join(map(str, (*words, os.getpid()))) + "\n"
    descriptor = os.open(f"{COUNT_FILE}{suffix}", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, line.encode())  # one write below 4 kB: lines of several processes never mix
    finally:
        os.close(descriptor)


def count_steps(module: Any) -> None:
    original = module.StageRun.take_step

    def take_step(self: Any, step: int, *arguments: Any) -> Any:
        note("step", self.setup.name, step, self.setup.group.rank)
        time.sleep(STEP_SECONDS if self.setup.name.startswith("student.") else 0)
        return original(self, step, *arguments)

    module.StageRun.take_step = take_step


def count_shards(module: Any) -> None:
    original = module.record_shard

    def record_shard(teacher: Any, rows: Any, row_ids: Any, index: int, wanted: Any, *arguments: Any) -> Any:
        split = next(iter(wanted.values())).recipe["split"]
        note("shard", f"{split}/{'+'.join(sorted(wanted))}", index, os.environ.get("RANK", "0"))
        time.sleep(SHARD_SECONDS)
        return original(teacher, rows, row_ids, index, wanted, *arguments)

    module.record_shard = record_shard


def count_signals(module: Any) -> None:
    original = module.Teacher.signals

    def signals(self: Any, row_ids: Any, needs: Any) -> Any:
        note("signals", "+".join(sorted(needs)), row_ids[0], len(row_ids))
        time.sleep(SIGNALS_SECONDS)
        return original(self, row_ids, needs)

    module.Teacher.signals = signals


def count_starts(module: Any) -> None:
    original = module.run_phases

    @functools.wraps(original)  # by its name, so that Ray need not pickle it with all that it refers to
    def run_phases(place: Any) -> Any:
        note("start", "run", 0, place.group.rank)
        return original(place)

    module.run_phases = run_phases


def count_opened(module: Any) -> None:
    original = module.Rows.open

    def open_rows(folder: Any, split: str) -> Any:
        counted = os.path.getsize(str(COUNT_FILE)) if os.path.exists(str(COUNT_FILE)) else 0
        note(split, counted, suffix=".opened")
        return original(folder, split)

    module.Rows.open = open_rows


def time_phases(owner: Any) -> None:
    original = owner.phase

    @contextmanager
    def phase(self: Any, name: str, *arguments: Any) -> Iterator[None]:
        with original(self, name, *arguments):
            note("begin", name, time.time(), suffix=".phases")
            yield
        note("end", name, time.time(), suffix=".phases")

    owner.phase = phase


def look_often(module: Any) -> None:
    module.RESIZE_SECONDS = float(RESIZE_SECONDS or module.RESIZE_SECONDS)


def cut_small(module: Any) -> None:
    module.SHARD_ROWS = int(SHARD_ROWS or module.SHARD_ROWS)


def fail_while_away(module: Any) -> None:
    original = module._replace

    def replace(*arguments: Any) -> None:
        if AWAY_FILE and os.path.exists(AWAY_FILE):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        original(*arguments)

    module._replace = replace


def copy_stores(module: Any) -> None:
    if "RAYDISTILL_EMPTY_STORE" in os.environ:
        from kit.stores import copied

        module.made_whole = copied(module.made_whole)


HOOKS = {
    "raydistill.tracking.runs": copy_stores,
    "raydistill.storage.storage": fail_while_away,
    "raydistill.pipeline.prepare": lambda module: time_phases(module.Clock),
    "raydistill.pipeline.reporting": lambda module: time_phases(module.Reporter),
    "raydistill.data.rows": count_opened,
    "raydistill.pipeline.phases": count_starts,
    "raydistill.train.loop": count_steps,
    "raydistill.pipeline.pool_teacher": count_signals,
    "raydistill.teacher.record": count_shards,
    "raydistill.teacher.store": cut_small,
    "raydistill.pipeline.worker": look_often,
}


class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name not in HOOKS:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        assert spec is not None
        assert spec.loader is not None
        execute = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            execute(module)
            HOOKS[name](module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if COUNT_FILE:
    sys.meta_path.insert(0, Finder())
