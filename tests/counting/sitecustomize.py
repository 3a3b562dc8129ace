"""On the PYTHONPATH of a process and its children: counts training steps and recorded shards in $RAYDISTILL_COUNT_FILE.

Each line is ``step <setup> <number> <rank> <pid>``, ``shard <split>/<signals> <index> <rank> <pid>`` or, where a worker
begins its phases, ``start run 0 <rank> <pid>``; appended before the work is done, so that work that a kill cuts off is
counted as well. Who opens tokenised rows is noted in a file beside it, ``$RAYDISTILL_COUNT_FILE.opened``:
``<split> <bytes of the count file by then> <pid>``.
"""

import importlib.abc
import importlib.machinery
import os
import sys
import time
from typing import Any

COUNT_FILE = os.environ.get("RAYDISTILL_COUNT_FILE")
SHARD_ROWS = os.environ.get("RAYDISTILL_SHARD_ROWS")
"""Smaller shards, for a toy to have several."""
SHARD_SECONDS = float(os.environ.get("RAYDISTILL_SHARD_SECONDS", "0"))
"""Recording the toy takes 0.1 s; a test that kills a worker in it needs longer."""


def note(*words: object, suffix: str = "") -> None:
    line = " ".join(map(str, (*words, os.getpid()))) + "\n"
    descriptor = os.open(f"{COUNT_FILE}{suffix}", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, line.encode())  # one write below 4 kB: lines of several processes never mix
    finally:
        os.close(descriptor)


def count_steps(module: Any) -> None:
    original = module.Stage.take_step

    def take_step(self: Any, step: int, *arguments: Any) -> Any:
        note("step", self.setup.name, step, self.setup.group.rank)
        return original(self, step, *arguments)

    module.Stage.take_step = take_step


def count_shards(module: Any) -> None:
    original = module._record_shard

    def record_shard(teacher: Any, rows: Any, row_ids: Any, index: int, wanted: Any, *arguments: Any) -> Any:
        split = next(iter(wanted.values())).recipe["split"]
        note("shard", f"{split}/{'+'.join(sorted(wanted))}", index, os.environ.get("RANK", "0"))
        time.sleep(SHARD_SECONDS)
        return original(teacher, rows, row_ids, index, wanted, *arguments)

    module._record_shard = record_shard


def count_starts(module: Any) -> None:
    original = module.run_phases

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


def cut_small(module: Any) -> None:
    module.SHARD_ROWS = int(SHARD_ROWS or module.SHARD_ROWS)


HOOKS = {
    "raydistill.data.rows": count_opened,
    "raydistill.phases": count_starts,
    "raydistill.train.loop": count_steps,
    "raydistill.teacher.record": count_shards,
    "raydistill.teacher.store": cut_small,
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
