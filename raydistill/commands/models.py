"""Commands on finished models: evaluate, predict."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raydistill.commands import app
from raydistill.console import Outcome
from raydistill.options import STORAGE, DataOverrides, Json, MaxLength, Model, StorageUrl

if TYPE_CHECKING:
    from rich.console import Console


@app.command()
def evaluate(
    model: Model,
    data: Annotated[str, typer.Option("--data", help="A file, a folder, pkg://… or a hub data set, with labels.")],
    split: Annotated[str, typer.Option("--split", help="Which rows, where the data has splits.")] = "test",
    max_length: MaxLength = None,
    overrides: DataOverrides = None,
    storage: StorageUrl = STORAGE,
    json: Json = False,
) -> Outcome:
    """Measure a classifier on labelled data, with 95 % intervals."""
    from raydistill.loading import load_data

    settings = load_data(data, overrides or [])
    from raydistill import inference

    scores = inference.evaluate_model(model, settings, split, max_length=max_length, storage=storage)
    return Outcome(lambda: scores, lambda console: inference.print_scores(console, scores))


@app.command()
def predict(
    model: Model,
    text: Annotated[list[str] | None, typer.Option("--text", help="A text to classify. Repeatable.")] = None,
    file: Annotated[Path | None, typer.Option("--file", help="A file with one text a line; stdin without it.")] = None,
    pairs: Annotated[bool, typer.Option("--pairs", help="Each text is two, with a tab between.")] = False,
    max_length: MaxLength = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Texts of one forward pass.")] = 32,
    storage: StorageUrl = STORAGE,
    json: Json = False,
) -> Outcome:
    """Label texts: one line each with label, score and text."""
    from raydistill import texts

    lines = texts.read_texts(text, file, sys.stdin)
    inputs = texts.split_pairs(lines) if pairs else lines
    from raydistill import inference

    found = inference.predict_texts(model, inputs, batch_size, max_length=max_length, storage=storage)

    def show(console: Console) -> None:
        for row in found:
            print(f"{row['label']}\t{row['score']:.4f}\t{row['text']}", flush=True)

    return Outcome(lambda: {"model": model, "predictions": list(found)}, show)
