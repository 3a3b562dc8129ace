"""What does a small student keep of its teacher, task by task, and what does the teacher add to the labels?

    python jobs/bench/tasks.py --ratings tweets_GroundTruth.txt --cells tasks.jsonl
    python jobs/bench/tasks.py --tasks titles entities --labels 300 --draws 0 1 2    # little data
    python jobs/bench/tasks.py --tasks --speed     # what a step, and recording vectors, cost; a minute on 2 cores

All texts are of BBC news (extra ``quickstart``), but those of ``--ratings``: a list of rated texts as in the source
archive of vaderSentiment 0.5 (number, mean rating, text). The teacher is a MiniLM of 6 layers, students have 2 of these
(3 for vectors), and all else is what a config without settings gets. 600 rows are the test, of the others
a few hundred have labels. Each student and its baseline are trained with three seeds; the table has the mean of their
test values, and the one with the median validation value for intervals, agreement and speed. Gain is the student's
value less the baseline's, lead is the teacher's less the baseline's.

    topics      headlines, one of five topics (accuracy)
    pairs       a headline and the beginning of an article: do they belong together? Others are from the same topic
    labels      which kinds of entities a sentence has, by rule (micro F1)
    ratings     how glad a tweet is, the mean of twenty people (Pearson)
    entities    persons, amounts, dates and places in sentences, by rule (entity F1)
    titles      persons in the same sentences, a kind for each title; most sentences have none (entity F1)
    answers     questions about a few sentences, by rule, a fifth of them without an answer there (answer F1)
    vectors     headlines' vectors as the teacher has them (rank correlation of similarities), no labels

``--labels``: so many labelled rows and no others, drawn once for each of ``--draws``, of which a tenth (ten at least)
validates; a student of each.

``--speed``: a step (forward and backward pass of soft targets and labels, 32 sentences, student of 3 layers) of words
beside one of rows of the same tokens, and the vectors of these sentences, recorded into storage, beside the teacher's
bare forward passes of the same batches. Both sides take turns; a ratio is the median over the turns.
"""

from __future__ import annotations

import argparse
import logging
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from news import articles, news_questions, news_sentences
from paired import keep, read_cells, write_rows
from problem import BATCH_SIZE, ENCODER, INFERENCE_TOKENS
from rich.console import Console
from rich.table import Table

import raydistill
from raydistill.cluster.device import Device
from raydistill.cluster.group import Group
from raydistill.config.student import EncoderStudent as Student
from raydistill.config.training import Stage
from raydistill.data.batches import Batch, micro_batches
from raydistill.data.encoding import encode_task, load_tokenizer
from raydistill.data.rows import Rows
from raydistill.losses import Losses, build_losses
from raydistill.models.capture import capture
from raydistill.models.folder import resolve_model
from raydistill.models.load import load_model
from raydistill.models.precision import attention_implementation, compute_dtype
from raydistill.models.signals import LOGITS, Signal
from raydistill.models.student import build_student
from raydistill.storage.storage import Storage
from raydistill.tasks import Embeddings, Targets, TextClassification, TokenClassification
from raydistill.teacher.record import record
from raydistill.teacher.store import cut_shards, signal_artifact

TESTED, SEEDS, FEWEST_VALIDATION = 600, 3, 10
WORDS = TokenClassification(["O", *(f"{place}-{kind}" for kind in ("DATE", "LOC", "MONEY", "PER") for place in "BI")])
Examples = list[dict[str, Any]]


def topics(_: Path) -> Examples:
    return [{"text": headline, "label": topic} for topic, headline, _ in articles()]


def pairs(_: Path) -> Examples:
    """Every article once: with its own headline, or with the one of another of its topic."""
    every, draw = articles(), random.Random(1)
    rows = []
    for index, (topic, headline, text) in enumerate(every):
        if index % 2:
            headline = draw.choice([other for kind, other, _ in every if kind == topic and other != headline])
        rows.append({"text": headline, "text_pair": text[:200], "label": "other" if index % 2 else "own"})
    return rows


def labels(_: Path) -> Examples:
    return [
        {"text": row["text"], "label": sorted({kind for _, _, kind in row["label"]})} for row in news_sentences(2000)
    ]


def ratings(path: Path) -> Examples:
    lines = [line.split("\t", 2) for line in path.read_text(encoding="utf-8", errors="replace").splitlines()]
    rows = {text: {"text": text, "score": float(rating)} for _, rating, text in lines}
    return random.Random(0).sample(list(rows.values()), 2500)


def entities(_: Path) -> Examples:
    return news_sentences(2000)


def titles(_: Path) -> Examples:
    rows = news_sentences(2000)
    for row in rows:
        spans = [(begin, end, row["text"][:begin].split()) for begin, end, kind in row["label"] if kind == "PER"]
        row["label"] = [[begin, end, before[-1]] for begin, end, before in spans if before]
    return rows


def answers(_: Path) -> Examples:
    rows = {row["context"]: row for row in news_questions(2100)}  # those without an answer are the first
    return random.Random(1).sample(list(rows.values()), len(rows))


def vectors(_: Path) -> Examples:
    return [{"text": headline} for _, headline, _ in articles()]


TASKS: dict[str, tuple[Callable[[Path], Examples], int, dict[str, Any]]] = {
    "topics": (topics, 150, {"task": {"type": "text_classification"}}),
    "pairs": (pairs, 800, {"task": {"type": "text_classification"}}),
    "labels": (labels, 300, {"task": {"type": "multi_label_classification"}}),
    "ratings": (ratings, 300, {"task": {"type": "text_regression"}}),
    "entities": (entities, 300, {"task": {"type": "token_classification"}}),
    "titles": (titles, 300, {"task": {"type": "token_classification"}}),
    "answers": (answers, 300, {"task": {"type": "question_answering"}}),
    "vectors": (vectors, 0, {"task": {"type": "embeddings"}, "student": {"num_layers": 3}}),
}
"""Rows, how many have labels, settings."""


def run(name: str, path: Path, folder: Path, num_labels: int | None, draw: int) -> dict[str, Any]:
    """What the table has of a task; with ``num_labels`` of so many rows, by that draw."""
    read, labeled, settings = TASKS[name]
    rows = read(path)
    parts = {"test": rows[:TESTED], "train": rows[TESTED:]}
    if num_labels is not None:
        rows, tenth = random.Random(draw).sample(rows, TESTED + num_labels), max(num_labels // 10, FEWEST_VALIDATION)
        parts = {"test": rows[:TESTED], "validation": rows[TESTED:][:tenth], "train": rows[TESTED + tenth :]}
    data = folder / "data"
    for split, part in parts.items():
        write_rows(data / f"{split}.jsonl", part)
    config = {
        "storage": str(folder / "storage"),
        "seed": draw,
        "data": {"path": str(data), **({"max_labeled": labeled} if labeled and num_labels is None else {})},
        "teacher": {"model": ENCODER, "allow_chance": True},
        "student": {"num_layers": 2},
        "train": {"num_workers": 0},
        "evaluate": {"baseline": True, "seeds": SEEDS if num_labels is None else 1},
        "tracking": {"system_metrics": False},
        **settings,
    }
    started = time.perf_counter()
    results = raydistill.distill(config)
    main = results["task"]["main_metric"]
    seeds = results["seeds"] or {}
    return {
        "task": name,
        "rows": len(rows),
        "labeled": labeled,
        "drawn": num_labels and [num_labels, draw],
        "steps": {model: curve[-1]["step"] for model, curve in results["curves"].items() if curve},
        "metric": main,
        "values": {model: results[model]["test"][main] for model in ("teacher", "student", "baseline")},
        "seeds": {model: seeds[model]["test"][main] for model in ("student", "baseline") if seeds.get(model)},
        "gain": results["differences"]["student_minus_baseline"][main],
        "lead": results["differences"]["teacher_minus_baseline"][main],
        "seconds": round(time.perf_counter() - started, 1),
        "retention": results["retention"][main],
        "agreement": results["agreement"],
        "latency_ms": {m: results[m]["latency_ms"]["p50"] for m in ("teacher", "student")},
    }


def report(cells: Sequence[dict[str, Any]], console: Console) -> None:
    models = ("teacher", "student", "baseline")
    columns = ("metric", "teacher", "student", "no teacher", "gain", "lead", "kept", "agrees", "steps", "p50, ms", "s")
    table = Table("task", "labels", *columns)
    for cell in cells:
        values, seeds = cell["values"], cell["seeds"]
        means = {
            model: f"{100 * seeds[model]['mean']:.1f} ± {100 * seeds[model]['sd']:.1f}"
            if model in seeds
            else told(values[model])
            for model in models[1:]
        }
        table.add_row(
            cell["task"],
            "{}, draw {}".format(*cell["drawn"]) if cell["drawn"] else str(cell["labeled"] or "none"),
            cell["metric"],
            told(values["teacher"]),
            means["student"],
            means["baseline"],
            told(cell["gain"]),
            told(cell["lead"]),
            f"{100 * cell['retention']:.1f} %",
            "" if cell["agreement"] is None else f"{100 * cell['agreement']:.1f} %",
            ", ".join(f"{cell['steps'].get(model, 0):,}" for model in models),
            " → ".join(f"{cell['latency_ms'][model]:.1f}" for model in ("teacher", "student")),
            f"{cell['seconds']:.0f}",
        )
    console.print(table)


def speed(console: Console, num_rows: int = 512, rounds: int = 6) -> dict[str, float]:
    """Print milliseconds and ratios, and return the ratios."""
    name = "cuda" if torch.cuda.is_available() else "cpu"
    device, rows = Device(name, compute_dtype("auto", name)), word_rows(num_rows)
    taken = step_seconds(rows, device, rounds), recording_seconds(rows, device, rounds)
    table, ratios = Table("", "ms", "ratio", title=f"{num_rows} sentences, {torch.get_num_threads()} threads"), {}
    for times in taken:
        (first, own), *others = times.items()
        table.add_row(first, f"{1000 * statistics.median(own):.1f}", "1")
        for other, found in others:
            ratios[other] = statistics.median(b / a for a, b in zip(own, found, strict=True))
            table.add_row(other, f"{1000 * statistics.median(found):.1f}", f"{ratios[other]:.3f}")
    console.print(table)
    return ratios


def word_rows(num_rows: int) -> Rows:
    """Sentences of BBC news of at most 64 tokens whose words have labels, of nine, without meaning."""
    texts = [row["text"] for row in news_sentences(num_rows)]
    values = WORDS.units(texts)
    values.flat[:, 2] = np.arange(len(values.flat)) % len(WORDS.outputs)
    tokenizer = load_tokenizer(resolve_model(ENCODER), 64)
    columns = encode_task(tokenizer, WORDS, [pa.array(texts)], values, 64, tokenizer.pad_token_id)
    return Rows.of(columns, tokenizer.pad_token_id)


def step_seconds(rows: Rows, device: Device, rounds: int) -> dict[str, list[float]]:
    """Seconds of steps of both tasks, batch by batch; the first round warms up."""
    source, sides = resolve_model(ENCODER), {}
    labels = Targets(np.arange(rows.num_rows) % len(WORDS.outputs), np.ones(rows.num_rows, bool))
    for name, task, own in (
        ("a step of rows", TextClassification(WORDS.outputs), replace(rows, units=None, targets=labels)),
        ("a step of words", WORDS, rows),
    ):
        teacher = load_model(source, task.head, attn_implementation=attention_of(rows, device))
        student = build_student(teacher, Student(num_layers=3), seed=0).to(device.torch_device).train()
        stage = Stage.model_validate({"losses": {"kd": {"type": "forward_kl"}, "task": {"type": "task"}}})
        losses = build_losses(stage.losses, task, student.config, teacher.config, seed=0)
        sides[name] = (student, losses.to(device.torch_device), own)
    order, seconds = np.argsort(rows.lengths, kind="stable"), {name: [] for name in sides}
    for turn in range(rounds):
        for start in range(0, rows.num_rows, BATCH_SIZE):
            for name, (student, losses, own) in sides.items():
                batch = own.batch(order[start : start + BATCH_SIZE])
                batch = replace(batch, inputs=device.move(batch.inputs))
                taught = {LOGITS: torch.randn(batch.targets.num_units, len(WORDS.outputs), device=device.torch_device)}
                found = timed(partial(one_step, student, losses, batch, taught, device), device)
                seconds[name] += [found] if turn else []
    return seconds


def one_step(student: Any, losses: Losses, batch: Batch, taught: dict[Signal, torch.Tensor], device: Device) -> None:
    counts = [float(count) for count in losses.counts([batch])]
    with device.autocast():
        total, _ = losses(capture(student, batch.inputs, losses.student_needs), taught, batch, counts)
    total.backward()
    student.zero_grad(set_to_none=True)


def recording_seconds(rows: Rows, device: Device, rounds: int) -> dict[str, list[float]]:
    """Seconds of the forward passes of all rows, and of recording their vectors."""
    rows = replace(rows, units=None, targets=Targets(np.zeros(rows.num_rows), np.zeros(rows.num_rows, bool)))
    model = load_model(resolve_model(ENCODER), Embeddings().head, attn_implementation=attention_of(rows, device))
    model = model.to(device.torch_device).eval()
    parts = [
        ids for one in cut_shards(rows.lengths) for ids in micro_batches(one, rows.lengths, tokens=INFERENCE_TOKENS)
    ]
    batches = [device.move(rows.inputs(ids)) for ids in parts]

    @torch.inference_mode()
    def forward() -> None:
        for inputs in batches:
            with device.autocast():
                model(**inputs)

    def recorded() -> None:
        with tempfile.TemporaryDirectory() as folder:
            artifact = signal_artifact(
                Storage(folder), LOGITS, "train", teacher_digest="0", tokens_digest="0", dtype=device.dtype
            )
            record(
                model,
                rows,
                {LOGITS: artifact},
                tokens=INFERENCE_TOKENS,
                device=device,
                group=Group(),
            )

    calls = {"the teacher's forward passes": forward, "its vectors, recorded": recorded}
    found = [{name: timed(call, device) for name, call in calls.items()} for _ in range(rounds)][1:]
    return {name: [turn[name] for turn in found] for name in calls}


def attention_of(rows: Rows, device: Device) -> str:
    return attention_implementation(device.name, device.dtype, int(np.quantile(rows.lengths, 0.95)))


def timed(call: Callable[[], Any], device: Device) -> float:
    started = time.perf_counter()
    call()
    if device.torch_device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def told(value: dict[str, float]) -> str:
    return f"{100 * value['value']:.1f} [{100 * value['low']:.1f}, {100 * value['high']:.1f}]"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tasks", nargs="*", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--ratings", type=Path, help="without it there is no row for ratings")
    parser.add_argument("--labels", nargs="+", type=int, default=[None], help="rows, of all tasks, and no others")
    parser.add_argument("--draws", nargs="+", type=int, default=[0])
    parser.add_argument("--cells", type=Path, default=Path("tasks.jsonl"))
    parser.add_argument("--speed", action="store_true", help="time steps and recordings first")
    given = parser.parse_args(arguments)
    logging.disable(logging.WARNING)
    if given.speed:
        speed(Console())
    cells = read_cells(given.cells)
    done = [(cell["task"], cell["drawn"]) for cell in cells]
    for name, num_labels, draw in product(given.tasks, given.labels, given.draws):
        drawn = num_labels and [num_labels, draw]
        if (name, drawn) in done or (name == "ratings" and given.ratings is None):
            continue
        with tempfile.TemporaryDirectory() as folder:
            keep(cells, run(name, given.ratings, Path(folder), num_labels, draw), given.cells)
    if cells:
        report(cells, Console(width=200))


if __name__ == "__main__":
    main()
