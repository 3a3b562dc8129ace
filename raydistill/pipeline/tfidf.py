"""The TF-IDF row of a run's results, seen from the driver: fitted once for the rows and kept as an artefact."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from raydistill.config.metrics import metric
from raydistill.data.encoding import load_tokenizer
from raydistill.data.rows import Rows
from raydistill.evaluate.results import ModelOutcome
from raydistill.evaluate.tfidf import MAX_ROWS, MAX_WEIGHTS, MAX_WORDS, STRENGTHS, fit_tfidf
from raydistill.storage.artifacts import Artifact
from raydistill.storage.garbage import refer
from raydistill.storage.locks import lock
from raydistill.tasks import Task, task_of
from raydistill.tasks.targets import Array

if TYPE_CHECKING:
    from raydistill.pipeline.prepare import Clock, Prepared
    from raydistill.storage.board import Show

SPLITS = ("validation", "test")
VERSION = 2
"""Raised when it is fitted otherwise."""


def tfidf_outcome(prepared: Prepared, clock: Clock, show: Show) -> ModelOutcome | None:
    """The linear model's outputs and size; None where the config or the task does without, or no text has a word."""
    task, config = task_of(prepared.info.task), prepared.config
    if not config.evaluate.tfidf or not task.linear:
        return None
    with clock.phase("tfidf", lambda entry: None):
        limits = [MAX_ROWS, MAX_WORDS, MAX_WEIGHTS, *STRENGTHS]
        recipe = {"tokens": prepared.tokens.digest, "metric": config.epoch_metric, "limits": limits, "version": VERSION}
        recipe["task"] = config.task.recipe()
        artifact = Artifact.of(prepared.storage, "tfidf", recipe, {"tokens": prepared.tokens.digest})
        refer(prepared.storage, prepared.run_key, [artifact])
        if not artifact.exists():
            with lock(prepared.storage, "tfidf", artifact.key + ".lock"):
                if not artifact.exists():
                    _write(prepared, task, artifact)
        folder = artifact.local()
        about = json.loads((folder / "model.json").read_text())
        if about["task"] is None:
            return None
        outputs = {split: np.load(folder / f"{split}.npy", allow_pickle=False) for split in SPLITS}
        fitted, known = task_of(about["task"]), Rows.open(prepared.tokens.local(), "validation").targets
        main = config.task.main_metric
        reached = fitted.scores(outputs["validation"][known.labeled], known.values[known.labeled]).values[main]
    show({"phase": "tfidf", "note": f"a linear model on words: {metric(main).words} {metric(main).said(reached)}"})
    return ModelOutcome(
        path=None,
        num_parameters=about["num_parameters"],
        num_bytes=about["bytes"],
        task=fitted,
        test=outputs["test"],
        validation=outputs["validation"],
        more={"model": task.linear, "num_rows": about["num_rows"]},
    )


def _write(prepared: Prepared, task: Task, artifact: Artifact) -> None:
    rows = {split: Rows.open(prepared.tokens.local(), split) for split in ("train", *SPLITS)}
    tokenizer = load_tokenizer(prepared.source)
    found = fit_tfidf(
        task,
        lambda split, row_ids: read_back(rows[split], row_ids, tokenizer),
        {split: own.targets for split, own in rows.items()},
        prepared.config.epoch_metric,
    )
    about: dict[str, Any] = {"task": None}
    with artifact.write() as folder:
        if found is not None:
            about = {"task": found.task.facts(), "num_rows": found.num_rows, "num_parameters": found.num_parameters}
            about["bytes"] = found.num_bytes
            for split, outputs in found.outputs.items():
                np.save(folder / f"{split}.npy", outputs, allow_pickle=False)
        (folder / "model.json").write_text(json.dumps(about))


def read_back(rows: Rows, row_ids: Array, tokenizer: Any) -> list[str]:
    """What the models read of these rows, as text: cut like theirs, pairs one after the other."""
    ids, ends = rows.values["input_ids"], rows.starts + rows.lengths
    parts = [ids[rows.starts[i] : ends[i]].tolist() for i in row_ids]
    texts: list[str] = tokenizer.batch_decode(parts, skip_special_tokens=True)
    return texts
