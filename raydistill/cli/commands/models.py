"""Commands on finished models: evaluate, compare, predict, export, push."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raydistill.cli.commands import app
from raydistill.cli.console import REFUSED, CommandResult, Progress
from raydistill.cli.options import DataOverrides, DataPath, Json, MaxLength, Model, SplitName, StorageUrl
from raydistill.config.tree import STORAGE
from raydistill.deploy.export import FORMATS

if TYPE_CHECKING:
    from rich.console import Console

    from raydistill.config.data import Columns
    from raydistill.config.tasks import TaskSection
    from raydistill.deploy.predictor import Predictor


@app.command()
def evaluate(
    model: Model,
    data: DataPath = None,
    split: SplitName = "test",
    max_length: MaxLength = None,
    overrides: DataOverrides = None,
    storage: StorageUrl = STORAGE,
    json: Json = False,
) -> CommandResult:
    """Measure a model on labelled data, with 95 % intervals."""
    from raydistill.config.loading import optional_data

    settings = optional_data(data, overrides)
    from raydistill.deploy import inference

    scores = inference.evaluate_model(model, settings, split, max_length=max_length, storage=storage)
    return CommandResult(lambda: scores, lambda console: inference.print_scores(console, scores))


@app.command()
def compare(
    models: Annotated[list[str], typer.Argument(metavar="A B [C…]", help="Models, named as for evaluate.")],
    data: DataPath = None,
    split: SplitName = "test",
    max_length: MaxLength = None,
    overrides: DataOverrides = None,
    latency: Annotated[bool, typer.Option("--latency/--no-latency", help="Also time them, alternately.")] = True,
    storage: StorageUrl = STORAGE,
    json: Json = False,
) -> CommandResult:
    """Measure several models on the same rows, each paired with the first: differences, McNemar's test, latency."""
    from raydistill.config.loading import optional_data

    settings = optional_data(data, overrides)
    from raydistill.deploy import comparison

    summary = comparison.compare_models(
        models, settings, split, max_length=max_length, latency=latency, storage=storage
    )
    return CommandResult(lambda: summary, lambda console: comparison.print_comparison(console, summary))


@app.command()
def predict(
    model: Model,
    text: Annotated[list[str] | None, typer.Option("--text", help="A text to predict for. Repeatable.")] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            "--file",
            help="A table (CSV, JSON lines, parquet), one text a line, a picture or a folder of them; else stdin.",
        ),
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option("--column", help="Of a table, where the text is; twice for pairs. Default: as trained, or usual."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="The table to write: .csv, .tsv, .jsonl or .parquet.")
    ] = None,
    max_length: MaxLength = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Texts of one forward pass.")] = 32,
    storage: StorageUrl = STORAGE,
    json: Json = False,
) -> CommandResult:
    """Predict for texts: one line each with the answer (label and score, labels, or a number) and the text.

    --json and --out also have the scores of all labels. An empty text gets no answer.
    """
    from raydistill.cli import predictions, texts

    if out is not None:
        predictions.check_out(out, file)

    def known() -> Columns:
        from raydistill.deploy.own_rows import columns_of

        return columns_of(model, storage)

    @cache
    def opened() -> Predictor:
        from raydistill.deploy import inference

        return inference.open_model(model, max_length, storage)

    def section() -> TaskSection:
        return opened().task.Settings()

    given, columns = texts.read_given(text, file, column or [], sys.stdin, known, section)
    from raydistill.deploy import inference

    predictor = opened()
    found = inference.answer_rows(predictor, given, batch_size)
    if out is not None:
        counts = predictions.write_predictions(found, predictor.task, columns, out)
        told = {"model": model, "written": str(out), **counts}
        return CommandResult(lambda: told, lambda console: print(predictions.describe_written(told)))

    def show(console: Console) -> None:
        for _, row in found:
            print(predictions.line(row, predictor.task), flush=True)

    return CommandResult(lambda: {"model": model, "predictions": [row for _, row in found]}, show)


@app.command()
def export(
    model: Model,
    formats: Annotated[
        list[str], typer.Option("--format", help=f"{', '.join(FORMATS)}, or all. Repeatable: each in OUT/FORMAT.")
    ],
    out: Annotated[Path, typer.Option("--out", help="The folder to make; a refused export goes to OUT.rejected.")],
    data: DataPath = None,
    split: SplitName = "test",
    rows: Annotated[int, typer.Option("--rows", min=1, help="Check on at most so many rows.")] = 2000,
    metric: Annotated[
        str | None, typer.Option("--metric", help="What an export must keep. Default: what the task is judged by.")
    ] = None,
    margin: Annotated[float, typer.Option("--margin", min=0, help="How much it may lose: 0.01 is one point.")] = 0.01,
    max_length: MaxLength = None,
    overrides: DataOverrides = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an export that is there.")] = False,
    storage: StorageUrl = STORAGE,
    json: Json = False,
) -> CommandResult:
    """Write a model for other runtimes, and check it on real rows. Exits 3 if an export is not good."""
    from raydistill.config.loading import optional_data

    settings = optional_data(data, overrides)
    from raydistill.deploy.export.export import export as work
    from raydistill.deploy.export.table import print_export

    with Progress() as progress:
        found = work(
            model,
            formats,
            out,
            data=settings,
            split=split,
            storage=storage,
            max_length=max_length,
            max_rows=rows,
            metric=metric,
            margin=margin,
            force=force,
            progress=progress,
        )
    return CommandResult(lambda: found, lambda console: print_export(console, found), 0 if found["good"] else REFUSED)


@app.command()
def push(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A folder, pkg://…, runs:/… or models:/NAME@ALIAS.")],
    repo: Annotated[str, typer.Argument(metavar="REPO", help="OWNER/NAME on the hub; NAME alone is your own.")],
    private: Annotated[
        bool | None,
        typer.Option("--private/--public", help="Of a new repository: private by default. An old one stays as it is."),
    ] = None,
    revision: Annotated[str | None, typer.Option("--revision", help="The branch to commit to; main.")] = None,
    message: Annotated[str | None, typer.Option("--message", help="Of the commit.")] = None,
    storage: StorageUrl = STORAGE,
    json: Json = False,
) -> CommandResult:
    """Send a model's files and its card to a Hugging Face hub; the token comes from HF_TOKEN or `hf auth login`."""
    from raydistill.deploy import hub

    pushed = hub.push_model(model, repo, private=private, revision=revision, message=message, storage=storage)
    return CommandResult(lambda: pushed, lambda console: hub.print_pushed(console, pushed))
