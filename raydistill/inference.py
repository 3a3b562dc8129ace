"""A finished classifier at work: labels for texts, and its measure on labelled data. One process, no Ray."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
import yaml
from transformers import AutoTokenizer

from raydistill.config import Data
from raydistill.data.sources import Source, read_source
from raydistill.errors import ConfigError, DataError, ModelError
from raydistill.evaluate.metrics import confusion, intervals, per_class
from raydistill.models.labels import config_labels, label_order
from raydistill.models.load import load_classifier, quiet, resolve_model
from raydistill.schema import nearest
from raydistill.storage import Storage

if TYPE_CHECKING:
    from rich.console import Console

Text = str | tuple[str, str]
BATCH_ROWS = 32
SHOWN = ("accuracy", "macro_f1", "mcc", "auc", "log_loss", "calibration_error")


class Classifier:
    """A model folder with its tokenizer, on the GPU where there is one; float32."""

    def __init__(self, folder: Path, max_length: int | None = None) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = load_classifier(folder, None).to(self.device)  # type: ignore[arg-type]
        with quiet():
            self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.labels = config_labels(self.model.config)
        limits = [stored_length(folder), self.tokenizer.model_max_length, position_limit(self.model.config)]
        longest = min(limit for limit in limits[1:] if limit)
        if max_length is not None and max_length > longest:
            raise ConfigError(f"--max-length {max_length} is more than this model can take ({longest}).")
        self.max_length = max_length or min(limit for limit in limits if limit)

    @torch.inference_mode()
    def logits(self, texts: Sequence[Text]) -> np.ndarray:
        """Logits (N, C) in the order of the texts; the forward passes go by length, which saves padding."""
        order = np.argsort([len("".join(text)) for text in texts], kind="stable")
        result = np.empty((len(texts), len(self.labels)), dtype=np.float32)
        for start in range(0, len(texts), BATCH_ROWS):
            rows = order[start : start + BATCH_ROWS]
            batch: Any = [texts[row] for row in rows]
            inputs = self.tokenizer(
                batch, padding=True, truncation=True, max_length=self.max_length, return_tensors="pt"
            )
            result[rows] = self.model(**inputs.to(self.device)).logits.float().cpu().numpy()
        return result


def stored_length(folder: Path) -> int | None:
    """The length that a registered student was trained with: its MLmodel file says so; None for any other folder."""
    if not (folder / "MLmodel").is_file():
        return None
    flavors = yaml.safe_load((folder / "MLmodel").read_text(encoding="utf-8")).get("flavors", {})
    stored = flavors.get("python_function", {}).get("config") or {}
    return stored.get("max_length")


def position_limit(config: Any) -> int | None:
    """Positions the embeddings have; RoBERTa's kin count them from behind the padding index."""
    positions = getattr(config, "max_position_embeddings", None)
    offset = config.pad_token_id + 1 if config.model_type in ("roberta", "xlm-roberta", "camembert") else 0
    return positions - offset if positions and positions > offset else None


def open_classifier(model: str, max_length: int | None, storage: str) -> Classifier:
    """The classifier that MODEL names: a folder, pkg://, a hub name, or an MLflow URI of the store beside `storage`."""
    if model.startswith(("runs:/", "models:/")):
        from raydistill.registry import resolve_model_uri

        folder = resolve_model_uri(model, Storage(storage))
    else:
        folder = resolve_model(model)
    return Classifier(folder, max_length)


def predict_texts(
    model: str,
    texts: Iterable[Text],
    batch: int = BATCH_ROWS,
    *,
    max_length: int | None = None,
    storage: str = "raydistill-storage",
) -> Iterator[dict[str, Any]]:
    """Yield {text[, text_pair], label, score} for every text in order; `batch` of them are held at a time.

    `score` is the probability of the label. Raises ModelError for a model that is no classifier, before the first text.
    """
    classifier = open_classifier(model, max_length, storage)
    return _predictions(classifier, iter(texts), batch)


def _predictions(classifier: Classifier, texts: Iterator[Text], batch: int) -> Iterator[dict[str, Any]]:
    while chunk := list(islice(texts, batch)):
        scores = torch.from_numpy(classifier.logits(chunk)).softmax(-1).numpy()
        for text, row in zip(chunk, scores, strict=True):
            named = {"text": text} if isinstance(text, str) else {"text": text[0], "text_pair": text[1]}
            best = int(row.argmax())
            yield {**named, "label": classifier.labels[best], "score": float(row[best])}


def evaluate_model(
    model: str,
    data: Data,
    split: str = "test",
    *,
    max_length: int | None = None,
    storage: str = "raydistill-storage",
    num_samples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure a classifier on the labelled rows of a split: metrics with 95 % intervals, per class, confusion.

    Data without splits of its own is taken whole, and `notes` says so. Raises DataError, ModelError or ConfigError.
    """
    source = read_source(data)
    texts, wanted, notes = labelled_rows(source, split)
    classifier = open_classifier(model, max_length, storage)
    names = class_names(source, wanted)
    labels, notice = label_ids(wanted, classifier.labels, names)
    logits = classifier.logits(texts)
    notes += [*source.notes, *([notice] if notice else [])]
    return {
        "model": model,
        "data": data.path,
        "split": split,
        "num_rows": len(texts),
        "max_length": classifier.max_length,
        "labels": list(classifier.labels),
        "metrics": intervals(logits, labels, num_samples, seed),
        "per_class": per_class(logits, labels, classifier.labels),
        "confusion": confusion(logits, labels, len(classifier.labels)),
        "num_parameters": sum(parameter.numel() for parameter in classifier.model.parameters()),
        "notes": notes,
    }


def labelled_rows(source: Source, split: str) -> tuple[list[Text], list[str], list[str]]:
    """Texts, label names and notes of the rows of a split that have a label."""
    notes = []
    if split not in source.tables:
        if len(source.tables) > 1:
            near = nearest(split, source.tables)
            hint = f"did you mean {near}? " if near else ""
            raise ConfigError(f"--split {split}: no such split; {hint}The data has {', '.join(source.tables)}.")
        notes.append(
            f"The data has no split of its own, so all its rows were taken instead of {split!r}: the figures are too "
            "good where the model was trained on some of them."
        )
    table = source.tables.get(split, next(iter(source.tables.values())))
    if "label" not in table.column_names:
        raise DataError(
            "The data has no labels, so nothing can be measured. Name the column: --set data.columns.label=…"
        )
    labels = table.column("label").to_pylist()
    columns = [table.column(name).to_pylist() for name in ("text", "text_pair") if name in table.column_names]
    kept = [row for row, label in enumerate(labels) if label is not None and columns[0][row]]
    if not kept:
        raise DataError(f"No row of {split!r} has a label, so nothing can be measured.")
    if len(kept) < len(labels):
        notes.append(f"{len(labels) - len(kept)} rows without a label or text were left out.")
    texts = [cast(Text, tuple(c[row] or "" for c in columns) if len(columns) > 1 else columns[0][row]) for row in kept]
    return texts, [labels[row] for row in kept], notes


def class_names(source: Source, labels: Sequence[str]) -> tuple[str, ...]:
    """The classes of the data: in its own order, or those that occur, integers by value."""
    if source.label_names:
        return source.label_names
    found = set(labels)
    return tuple(sorted(found, key=int) if all(name.lstrip("-").isdecimal() for name in found) else sorted(found))


def label_ids(labels: Sequence[str], own: Sequence[str], names: Sequence[str]) -> tuple[np.ndarray, str | None]:
    """Class ids in the model's order, by name; a notice where the order had to be assumed.

    The data may hold some of the model's classes only. Raises ModelError where a label is unknown to the model.
    """
    ids = {name: index for index, name in enumerate(own)}
    if set(labels) <= set(own):
        return np.array([ids[label] for label in labels], dtype=np.int64), None
    if len(names) != len(own):
        unknown = sorted(set(labels) - set(own))
        raise ModelError(
            f"The data has labels the model does not know: {', '.join(unknown[:5])}. Model: {', '.join(own)}. Rename "
            "them in the data, or in id2label of the model's config.json."
        )
    order, notice = label_order(own, names)
    place = {name: order[index] for index, name in enumerate(names)}
    return np.array([place[label] for label in labels], dtype=np.int64), notice


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
