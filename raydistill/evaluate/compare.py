"""Models against each other on the same rows: paired differences, agreement, retention, chance, kept predictions."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from raydistill.errors import ArtifactError
from raydistill.evaluate import metrics
from raydistill.evaluate.intervals import difference_intervals, num_examples
from raydistill.evaluate.metrics import Array

# Metrics for which "the student keeps x % of its teacher" makes sense: higher is better, and 0 means worthless.
RETAINED = ("accuracy", "macro_f1", "weighted_f1", "auc", "mcc")


def paired_difference(
    metric: str,
    logits_a: Array,
    logits_b: Array,
    labels: Array,
    *,
    example_ids: Array | None = None,
    num_samples: int = 1000,
    seed: int = 0,
) -> dict[str, float | None]:
    """{value, low, high} of metric(a) - metric(b), 95 %, both models on the same examples; see ``intervals``.

    Logits (N, C), labels (N,); pairing takes out what the rows do to both models alike, so the interval is narrower
    than the two models' own intervals suggest.
    """
    logits = {"a": logits_a, "b": logits_b}
    samples = metrics.bootstrap(logits, labels, example_ids, num_samples, seed)
    values = {name: metrics.classification_metrics(found, labels) for name, found in logits.items()}
    num = num_examples(example_ids, labels)
    return difference_intervals("b", "a", logits, labels, values, samples, num)[metric]


def agreement(logits_a: Array, logits_b: Array) -> float:
    """Share of the rows for which two models (N, C) name the same class; labels are not needed."""
    return float((logits_a.argmax(axis=1) == logits_b.argmax(axis=1)).mean())


def mcnemar(logits_a: Array, logits_b: Array, labels: Array) -> dict[str, Any]:
    """McNemar's exact test of two classifiers on the same rows: {only_first, only_second, p}.

    ``only_first`` counts rows that only the first model gets right. Under the hypothesis that both err equally often
    each such row is a fair coin, so ``p`` is the two-sided binomial probability (McNemar 1947; exact form); 1 where the
    models never differ.
    """
    from scipy.stats import binomtest

    right_a, right_b = logits_a.argmax(axis=1) == labels, logits_b.argmax(axis=1) == labels
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    p = float(binomtest(only_a, only_a + only_b, 0.5).pvalue) if only_a + only_b else 1.0
    return {"only_first": only_a, "only_second": only_b, "p": p}


def other_order(logits: Array, labels: Array) -> tuple[int, ...] | None:
    """The order in which logits (N, C) fit labels (N,) far better, where in their own they are no better than chance.

    Class i is logit ``order[i]``. None unless the accuracy is at most the share of the most frequent label, and that of
    the best order at least 20 points above it, with p < 0.001 in McNemar's test, divided by the number of orders: among
    the 3.6 million of ten classes some fit 30 rows well by luck.
    """
    from scipy.optimize import linear_sum_assignment

    predicted, num_classes = logits.argmax(axis=1), logits.shape[1]
    table = np.zeros((num_classes, num_classes))
    np.add.at(table, (labels, predicted), 1)
    keeps = np.eye(num_classes) / (2 * num_classes)  # what no row speaks about stays in its place
    order = linear_sum_assignment(table + keeps, maximize=True)[1]
    own, other = float((predicted == labels).mean()), float((predicted == order[labels]).mean())
    share = float(np.bincount(labels).max() / len(labels))
    if own > share or other - own < 0.2:
        return None
    p = mcnemar(logits, logits[:, order], labels)["p"]
    if p > 0 and math.log(p) >= math.log(1e-3) - math.lgamma(num_classes + 1):
        return None
    return tuple(order.tolist())


def retention(student: Mapping[str, float], teacher: Mapping[str, float]) -> dict[str, float | None]:
    """Student ÷ teacher for each metric of RETAINED; None where the teacher's is not above 0 or not defined."""
    return {
        name: student[name] / teacher[name] if teacher[name] > 0 and np.isfinite(student[name]) else None
        for name in RETAINED
    }


def chance(intervals: Mapping[str, Mapping[str, float | None]], logits: Array, labels: Array) -> dict[str, Any]:
    """Whether a model is no better than always giving the most frequent label.

    ``at_chance`` holds when the model names one class only, or when the 95 % interval of its accuracy includes or lies
    below ``majority_share``, the share of the most frequent label ``majority_class`` (an index). ``reason`` says which:
    ``one_class``; ``accuracy``; ``accuracy_only`` (not more accurate than the share, but the interval of its MCC lies
    above 0, as happens with skewed classes: it has learned something); or None.
    """
    counts = np.bincount(labels)
    share = float(counts.max() / counts.sum())
    low, mcc_low = intervals["accuracy"]["low"], intervals["mcc"]["low"]
    reason = None
    if len(np.unique(logits.argmax(axis=1))) == 1:
        reason = "one_class"
    elif low is not None and low <= share:
        reason = "accuracy_only" if mcc_low is not None and mcc_low > 0 else "accuracy"
    return {
        "at_chance": reason is not None,
        "reason": reason,
        "majority_class": int(counts.argmax()),
        "majority_share": share,
    }


@dataclass(frozen=True)
class Predictions:
    """Kept logits of several models on one split: a later comparison needs neither the models nor the rows."""

    hashes: tuple[str, ...]
    labels: Array
    """(N,) int64, -1 where there is none."""
    example_ids: Array
    """(N,) int64."""
    logits: dict[str, Array]
    """Model name -> (N, C) float32."""
    class_names: tuple[str, ...]

    def of_rows(self, model: str, hashes: Sequence[str], class_names: Sequence[str]) -> Array | None:
        """A model's logits of these rows, classes in the order of ``class_names``, which are its own; None where the
        model or one of the rows is not among those kept."""
        place = {value: row for row, value in enumerate(self.hashes)}
        if model not in self.logits or not place.keys() >= set(hashes):
            return None
        order = [self.class_names.index(name) for name in class_names]
        found: Array = self.logits[model][[place[value] for value in hashes]][:, order]
        return found


def write_predictions(
    folder: Path,
    split: str,
    hashes: Sequence[str],
    labels: Array,
    logits: Mapping[str, Array],
    *,
    example_ids: Array | None = None,
    class_names: Sequence[str] = (),
) -> Path:
    """Write ``predictions-<split>.parquet``: columns hash, label, example_id and ``logits.<model>`` (C floats each)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    ids = np.arange(len(labels)) if example_ids is None else example_ids
    columns: dict[str, pa.Array] = {
        "hash": pa.array(list(hashes), pa.string()),
        "label": pa.array(np.asarray(labels, dtype=np.int64)),
        "example_id": pa.array(np.asarray(ids, dtype=np.int64)),
    }
    for name, values in logits.items():
        flat = pa.array(np.ascontiguousarray(values, dtype=np.float32).ravel())
        columns[f"logits.{name}"] = pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
    table = pa.table(columns).replace_schema_metadata({"class_names": json.dumps(list(class_names))})
    path = Path(folder) / f"predictions-{split}.parquet"
    pq.write_table(table, path, compression="zstd")
    return path


def read_predictions(folder: Path, split: str) -> Predictions:
    """Read what ``write_predictions`` wrote. Raises ArtifactError when it is missing or damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(folder) / f"predictions-{split}.parquet"
    try:
        table = pq.read_table(path)
        class_names = json.loads(table.schema.metadata[b"class_names"])
        hashes, labels, ids = (table[name] for name in ("hash", "label", "example_id"))
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"Predictions cannot be read from {path}: {error}. Evaluate the model again to write them."
        ) from error
    logits = {}
    for name in table.column_names:
        if name.startswith("logits."):
            column = table[name].combine_chunks()
            logits[name.removeprefix("logits.")] = column.flatten().to_numpy().reshape(len(column), -1)
    return Predictions(tuple(hashes.to_pylist()), labels.to_numpy(), ids.to_numpy(), logits, tuple(class_names))
