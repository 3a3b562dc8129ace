"""A finished classifier at work: labels for texts, and its measure on labelled data. One process, no Ray."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from raydistill.config.data import Data
from raydistill.config.tree import STORAGE
from raydistill.deploy.classifier import BATCH_ROWS, Classifier, Text
from raydistill.deploy.opening import open_classifier
from raydistill.deploy.own_rows import find_test_rows
from raydistill.deploy.paired import label_ids
from raydistill.evaluate.intervals import intervals
from raydistill.evaluate.metrics import confusion, per_class

if TYPE_CHECKING:
    from rich.console import Console

R = TypeVar("R")
SHOWN = ("accuracy", "macro_f1", "mcc", "auc", "log_loss", "calibration_error")


def predict_texts(
    model: str,
    texts: Iterable[Text],
    batch: int = BATCH_ROWS,
    *,
    max_length: int | None = None,
    storage: str = STORAGE,
) -> Iterator[dict[str, Any]]:
    """Yield {text[, text_pair], label, score, scores} for every text in order; `batch` of them are held at a time.

    `scores` are the probabilities of all classes, `score` is that of the label; all three are None for an empty text.
    Raises ModelError for a model that is no classifier, before the first text.
    """
    labelled = label_rows(open_classifier(model, max_length, storage), ((None, text) for text in texts), batch)
    return (found for _, found in labelled)


def label_rows(
    classifier: Classifier, rows: Iterable[tuple[R, Text]], batch: int = BATCH_ROWS
) -> Iterator[tuple[R, dict[str, Any]]]:
    """Each row, whatever it is, with the prediction for its text, as ``predict_texts`` has it."""
    left = iter(rows)
    while chunk := list(islice(left, batch)):
        logits = classifier.logits([text for _, text in chunk if not is_empty(text)])
        scores = iter(torch.from_numpy(logits).softmax(-1).tolist())
        for row, text in chunk:
            named = {"text": text} if isinstance(text, str) else {"text": text[0], "text_pair": text[1]}
            if is_empty(text):
                yield row, {**named, "label": None, "score": None, "scores": None}
                continue
            found = dict(zip(classifier.labels, next(scores), strict=True))
            best = max(found, key=lambda name: found[name])
            yield row, {**named, "label": best, "score": found[best], "scores": found}


def is_empty(text: Text) -> bool:
    """Whether there is nothing to label: no text, or one of two is missing. Training leaves such rows out, too."""
    return not all(part.strip() for part in ((text,) if isinstance(text, str) else text))


def evaluate_model(
    model: str,
    data: Data | None = None,
    split: str = "test",
    *,
    max_length: int | None = None,
    storage: str = STORAGE,
    num_samples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure a classifier on the labelled rows of a split: metrics with 95 % intervals, per class, confusion.

    Without `data` they are the test rows of the run that the model comes from. Data without splits of its own is taken
    whole, and `notes` says so. Raises DataError, ModelError or ConfigError.
    """
    rows = find_test_rows(model, data, split, storage)
    classifier = open_classifier(model, max_length, storage)
    labels, notice = label_ids(rows.labels, classifier.labels, rows.class_names)
    logits = classifier.logits(rows.texts)
    notes = [*rows.notes, *([notice] if notice else [])]
    return {
        "model": model,
        "data": rows.source,
        "split": split,
        "num_rows": rows.num_rows,
        "max_length": classifier.max_length,
        "labels": list(classifier.labels),
        "metrics": intervals(logits, labels, num_samples, seed),
        "per_class": per_class(logits, labels, classifier.labels),
        "confusion": confusion(logits, labels, len(classifier.labels)),
        "num_parameters": classifier.num_parameters,
        "notes": notes,
    }


def print_scores(console: Console, scores: Mapping[str, Any]) -> None:
    """The headline metrics with their intervals, then the classes."""
    print(f"{scores['model']} on {scores['num_rows']:,} rows of {scores['data']}")
    for name in SHOWN:
        if (found := scores["metrics"].get(name)) and found["value"] is not None:
            bounds = f"  [{found['low']:.3f}, {found['high']:.3f}]" if found.get("low") is not None else ""
            print(f"  {name:18} {found['value']:.3f}{bounds}")
    for entry in scores["per_class"]:
        print(
            "  "
            + "  ".join(
                f"{key} {value:.3f}" if isinstance(value, float) else str(value) for key, value in entry.items()
            )
        )
    for note in scores["notes"]:
        console.print(note, style="dim", markup=False)
