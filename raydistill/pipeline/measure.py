"""The last phase of the worker group: every model's outputs on validation and test rows, its size and its speed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from raydistill.config.section import known
from raydistill.data.rows import Rows
from raydistill.evaluate.compare import write_predictions
from raydistill.evaluate.latency import measure_models, measure_shapes
from raydistill.models.folder import is_model_file
from raydistill.models.signals import LOGITS
from raydistill.pipeline import recipes
from raydistill.pipeline.context import Context
from raydistill.pipeline.recipes import Recorded, TeacherIdentity
from raydistill.storage.artifacts import Artifact
from raydistill.teacher.cached import RecordedSignals

BATCH_SIZES = (1, 2, 4, 8, 16, 32)


def evaluate(
    context: Context, teacher: TeacherIdentity, recorded: Recorded, student: Artifact, baseline: Artifact | None
) -> Artifact:
    """Store every model's outputs on validation and test rows, and its size and speed."""
    with context.report.phase("evaluate"):
        digests = {"student": student.digest, "teacher": teacher.digest}
        if baseline is not None:
            digests["baseline"] = baseline.digest
        speed = "latency, by size" if context.config.evaluate.latency else ""
        recipe = {**digests, "tokens": context.job.tokens.digest, "dtype": context.device.dtype, "measured": speed}
        artifact = recipes.artifact_of(context.job.storage, "evaluation", recipe)
        if context.report.has(artifact, "evaluation"):
            return artifact
        folders = {"teacher": teacher.folder, "student": student.local() / "model"}
        if baseline is not None:
            folders["baseline"] = baseline.local() / "model"
        outputs = {split: predict_split(context, split, recorded, folders) for split in ("validation", "test")}
        known = context.rows["validation"].targets
        tasks = {
            name: context.task.fitted(found[known.labeled], known.values[known.labeled])
            for name, found in outputs["validation"].items()
        }
        if context.group.is_first:
            context.job.owner.check()
            parents = {"student": student.digest, **teacher.parents}
            parents |= {"baseline": baseline.digest} if baseline else {}
            with artifact.write(recipe, parents) as folder:
                for split, by_model in outputs.items():
                    rows = context.rows[split]
                    write_predictions(
                        folder,
                        split,
                        context.hashes(split),
                        rows.targets,
                        by_model,
                        tasks,
                        example_ids=rows.example_ids,
                    )
                (folder / "models.json").write_text(json.dumps(describe_models(context, folders)))
        context.group.barrier()
    return artifact


def predict_split(context: Context, split: str, recorded: Recorded, folders: dict[str, Path]) -> dict[str, np.ndarray]:
    """Every model's outputs (num_rows, C) on a split, in the units of the targets."""
    num_rows = context.rows[split].num_rows
    signals = RecordedSignals(recorded[split], num_rows)
    outputs = {"teacher": context.task.restored(signals.rows(np.arange(num_rows))[LOGITS].numpy())}
    for name in (name for name in folders if name != "teacher"):  # in the same order on every rank, as a set is not
        model = context.load(folders[name], dropout=0.0)
        outputs[name] = context.predict(model, split)
    return outputs


def describe_models(context: Context, folders: dict[str, Path]) -> dict[str, Any]:
    """Size on disk, parameters and, where asked for, speed of each model; speeds are measured interleaved."""
    models = {name: context.load(folder, dropout=0.0) for name, folder in folders.items()}
    about: dict[str, Any] = {
        name: {
            "num_parameters": sum(p.numel() for p in model.parameters()),
            "bytes": sum(path.stat().st_size for path in folders[name].iterdir() if is_model_file(path.name)),
            "latency": None,
            "latency_by_shape": None,
        }
        for name, model in models.items()
    }
    if context.config.evaluate.latency:
        shapes = context.latency_inputs()
        for model in models.values():
            nn.Module.to(model, context.device.torch_device)
        entries = {name: (model, *shapes) for name, model in models.items()}
        measured = measure_models(entries, dtype=context.device.dtype)
        for name, latency in measured.items():
            about[name]["latency"] = latency
        compared = {name: models[name] for name in ("teacher", "student")}  # a baseline has the student's shape
        longest = known(context.config.data.max_length)
        blocks = shapes_to_time(context.rows["validation"], measured["student"]["length"], longest)
        for name, times in measure_shapes(compared, blocks, dtype=context.device.dtype).items():
            about[name]["latency_by_shape"] = times
    return about


def shapes_to_time(rows: Rows, length: int, longest: int) -> list[dict[str, torch.Tensor]]:
    """Inputs (B, L) without padding: batches of 1 to 32 rows of ``length`` tokens; 1 row, and 32, of up to ``longest``
    tokens."""
    lengths = [2**i for i in range(3, 20) if 2**i < longest] + [longest]
    wanted = {(size, length) for size in BATCH_SIZES}
    wanted |= {(size, tokens) for size in (BATCH_SIZES[0], BATCH_SIZES[-1]) for tokens in lengths}
    return [block(rows, *shape) for shape in sorted(wanted)]


def block(rows: Rows, batch_size: int, length: int) -> dict[str, torch.Tensor]:
    """Tokens of the split, one row's after another's, in a shape of one's own: their order does not change the time."""
    shape = (batch_size, length)
    inputs = {
        n: torch.from_numpy(np.resize(v[: batch_size * length], shape).astype(np.int64)) for n, v in rows.values.items()
    }
    return {**inputs, "attention_mask": torch.ones(shape, dtype=torch.int64)}
