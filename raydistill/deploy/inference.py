"""A finished model at work: answers for texts, and its measure on labelled data. One process, no Ray."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from raydistill.config.data import Data
from raydistill.config.tree import STORAGE
from raydistill.data.pictures import Picture, is_readable
from raydistill.deploy.opening import open_model
from raydistill.deploy.own_rows import find_test_rows
from raydistill.deploy.predictor import BATCH_ROWS, Predictor, Text
from raydistill.evaluate.figure import Figure
from raydistill.evaluate.intervals import intervals
from raydistill.evaluate.results import strict_json
from raydistill.evaluate.scoreboard import describe_task

if TYPE_CHECKING:
    from rich.console import Console

R = TypeVar("R")


def answer_rows(
    predictor: Predictor, rows: Iterable[tuple[R, Text]], batch: int = BATCH_ROWS
) -> Iterator[tuple[R, dict[str, Any]]]:
    """Each row, whatever it is, with {text[, text_pair]}, or {image}, the name of a picture, and the answer for it;
    ``batch`` are held at a time.

    The answer depends on the model's task, see its ``answer_columns``: {label, score, scores}, {labels, scores} or
    {value}, all None for an empty text, or a picture that cannot be read.
    """
    left, task = iter(rows), predictor.task
    while chunk := list(islice(left, batch)):
        texts = [text for _, text in chunk if not is_empty(text)]
        units = task.units(texts) if task.has_units else None
        answers = iter(task.of_rows(texts, units).answers(predictor.outputs(texts, units)))
        for row, text in chunk:
            yield row, {**names_of(text), **(dict.fromkeys(task.answer_columns) if is_empty(text) else next(answers))}


def names_of(text: Text) -> dict[str, str]:
    """A row as answers have it beside them."""
    if isinstance(text, Picture):
        return {"image": text.name}
    return {"text": text} if isinstance(text, str) else {"text": text[0], "text_pair": text[1]}


def is_empty(text: Text) -> bool:
    """Whether there is nothing to answer: no text, one of two is missing, or no picture that can be read. Training
    leaves such rows out, too."""
    if isinstance(text, Picture):
        return not is_readable(text.content)
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
    """Measure a model on the labelled rows of a split: metrics with 95 % intervals, and the details of its task.

    Without `data` they are the test rows of the run that the model comes from. Data without splits of its own is taken
    whole, and `notes` says so. Raises DataError, ModelError or ConfigError.
    """
    predictor = open_model(model, max_length, storage)
    rows = find_test_rows(model, predictor.task, data, split, storage)
    scores = predictor.task.scores(predictor.outputs(rows.texts, rows.targets.values), rows.targets.values)
    found = {
        "model": model,
        "data": rows.source,
        "split": split,
        "num_rows": rows.num_rows,
        "max_length": predictor.max_length,
        "task": describe_task(predictor.task, [scores]),
        "labels": predictor.task.outputs,
        "metrics": intervals(scores, num_samples, seed),
        **scores.details(),
        "num_parameters": predictor.num_parameters,
        "notes": rows.notes,
    }
    told: dict[str, Any] = strict_json(found, digits=None)
    return told


def print_scores(console: Console, scores: Mapping[str, Any]) -> None:
    """The headline metrics with their intervals, then those of each output."""
    print(f"{scores['model']} on {scores['num_rows']:,} rows of {scores['data']}")
    shown = [Figure.of(name, scores["metrics"][name]) for name in scores["task"]["metrics"]]
    width = max(len(figure.about.title) for figure in shown)
    for figure in shown:
        bounds = f"[{figure.bounds(', ')}]" if figure.bounds() else figure.why
        print(f"  {figure.about.title:{width}}  {figure.text:>6}  {bounds}")
    for entry in scores.get("per_class", ()):
        named = (f"{key} {value:.3f}" if isinstance(value, float) else f"{key} {value}" for key, value in entry.items())
        print("  " + "  ".join(named).removeprefix("name "))
    for note in scores["notes"]:
        console.print(note, style="dim", markup=False)
