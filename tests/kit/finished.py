"""Finished tiny models of every task, and data that they have learned: its words tell what a text is about."""

from __future__ import annotations

import csv
import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from kit.tiny import WORDS, tiny_classifier, tiny_tokenizer
from kit.toy import TOPICS, write_toy_csv
from raydistill.config.data import Data
from raydistill.config.tasks import SECTIONS
from raydistill.data.sources import read_source
from raydistill.deploy.inference import answer_rows
from raydistill.deploy.opening import open_folder
from raydistill.models.head import rescale, scaled, set_head
from raydistill.models.load import quiet
from raydistill.tasks import kind_of

LENGTH = 20
POSITIVE, NEGATIVE = ("good", "great", "win"), ("bad", "poor", "lose")
NUMBERS, TAGS, TOPIC = "text_regression", "multi_label_classification", "text_classification"


def write_numbers_csv(path: Path, num_rows: int = 120, seed: int = 0) -> Path:
    """Columns text and rating: 100, and 10 more for each positive word, 10 less for each negative one."""
    rows = []
    for words in _sentences(num_rows, seed, (*POSITIVE, *NEGATIVE)):
        rating = 100 + 10 * sum((word in POSITIVE) - (word in NEGATIVE) for word in words)
        rows.append((" ".join(words), rating))
    return _write(path, ("text", "rating"), rows)


def write_tags_csv(path: Path, num_rows: int = 120, seed: int = 0) -> Path:
    """Columns text and tags: the topics of which the text has a word, with a comma between; none in some rows."""
    rows = []
    for words in _sentences(num_rows, seed, tuple(word for topic in TOPICS.values() for word in topic)):
        found = [topic for topic, known in TOPICS.items() if set(known) & set(words)]
        rows.append((" ".join(words), ",".join(found) or "[]"))  # an empty cell would be a row without a label
    return _write(path, ("text", "tags"), rows)


WRITERS: dict[str, Callable[..., Path]] = {TOPIC: write_toy_csv, NUMBERS: write_numbers_csv, TAGS: write_tags_csv}


def finish(folder: Path, rows: Path, task_type: str, num_steps: int = 60, seed: int = 0) -> Path:
    """A folder with a tiny BERT that has learned the rows of a file: a refusal needs something to lose.

    Its outputs are in the unit of the rows, and its thresholds, if it has any, were chosen on them.
    """
    settings = SECTIONS[task_type]()
    source = read_source(Data(path=str(rows)), settings)
    table = source.tables["train"]
    read = kind_of(settings).read(settings, {"train": table["label"]}, source.label_names)
    task, targets = read.task, read.targets["train"]
    model, tokenizer = tiny_classifier("bert", 2, seed=seed, labels=task.outputs).train(), tiny_tokenizer("bert")
    set_head(model.config, task.head)
    inputs = tokenizer(table["text"].to_pylist(), padding=True, truncation=True, max_length=LENGTH, return_tensors="pt")
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for _ in range(num_steps):
            task.loss_values(model(**inputs).logits, torch.tensor(targets.values)).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    scaled(model, task.output_scale)
    rescale(model, (0.0, 1.0))
    with torch.inference_mode():
        outputs = model.eval()(**inputs).logits.numpy()
    for name, value in task.fitted(outputs, targets.values).model_settings().items():
        setattr(model.config, name, value)
    with quiet():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def predict_texts(model: Path | str, texts: Iterable[Any], batch: int = 32, max_length: int | None = None) -> Any:
    """What ``raydistill predict`` says of each text, one after the other."""
    predictor = open_folder(Path(model), max_length)
    return (found for _, found in answer_rows(predictor, ((None, text) for text in texts), batch))


def _sentences(num_rows: int, seed: int, telling: tuple[str, ...]) -> Iterator[list[str]]:
    """Different sentences of 4 to 18 words, an eighth of them telling."""
    draw, seen = random.Random(seed), set()
    others = [word for word in WORDS if word not in telling]
    while len(seen) < num_rows:
        words = [draw.choice(telling if draw.random() < 0.125 else others) for _ in range(draw.randint(4, 18))]
        if (text := " ".join(words)) not in seen:
            seen.add(text)
            yield words


def _write(path: Path, header: tuple[str, ...], rows: list[tuple[object, ...]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path
