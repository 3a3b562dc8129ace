"""The last phase of the worker group: every model's logits on validation and test rows, its size and its speed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from raydistill.data.rows import Rows
from raydistill.evaluate.compare import write_predictions
from raydistill.evaluate.latency import measure_models, measure_shapes
from raydistill.models.folder import is_model_file
from raydistill.pipeline import recipes
from raydistill.pipeline.recipes import Recorded, TeacherIdentity
from raydistill.pipeline.workplace import Workplace
from raydistill.storage.artifacts import Artifact
from raydistill.teacher.cached import RecordedSignals

BATCH_SIZES = (1, 2, 4, 8, 16, 32)


def evaluate(
    place: Workplace, teacher: TeacherIdentity, recorded: Recorded, student: Artifact, baseline: Artifact | None
) -> Artifact:
    """Store every model's logits on validation and test rows, and its size and speed."""
    with place.phase("evaluate"):
        digests = {"student": student.digest, "teacher": teacher.digest}
        if baseline is not None:
            digests["baseline"] = baseline.digest
        speed = "latency, by size" if place.config.evaluate.latency else ""
        recipe = {**digests, "tokens": place.job.tokens.digest, "dtype": place.device.dtype, "measured": speed}
        artifact = recipes.artifact_of(place.job.storage, "evaluation", recipe)
        if place.has(artifact, "evaluation"):
            return artifact
        folders = {"teacher": teacher.folder, "student": student.local() / "model"}
        if baseline is not None:
            folders["baseline"] = baseline.local() / "model"
        logits = {split: predict_split(place, split, recorded, folders) for split in ("validation", "test")}
        if place.group.is_first:
            place.job.owner.check()
            parents = {"student": student.digest, **teacher.parents}
            parents |= {"baseline": baseline.digest} if baseline else {}
            with artifact.write(recipe, parents) as folder:
                for split, by_model in logits.items():
                    rows = place.rows[split]
                    write_predictions(
                        folder,
                        split,
                        place.hashes(split),
                        rows.labels,
                        by_model,
                        example_ids=rows.example_ids,
                        class_names=place.job.labels,
                    )
                (folder / "models.json").write_text(json.dumps(describe_models(place, folders)))
        place.group.barrier()
    return artifact


def predict_split(place: Workplace, split: str, recorded: Recorded, folders: dict[str, Path]) -> dict[str, np.ndarray]:
    rows = place.rows[split]
    signals = RecordedSignals(recorded[split], rows.num_rows)
    logits = {"teacher": signals.batch(np.arange(rows.num_rows))["logits"].numpy()}
    for name in (name for name in folders if name != "teacher"):  # in the same order on every rank, as a set is not
        model = place.load(folders[name], dropout=0.0)
        logits[name] = place.predict(model, split)
    return logits


def describe_models(place: Workplace, folders: dict[str, Path]) -> dict[str, Any]:
    """Size on disk, parameters and, where asked for, speed of each model; speeds are measured interleaved."""
    models = {name: place.load(folder, dropout=0.0) for name, folder in folders.items()}
    about: dict[str, Any] = {
        name: {
            "num_parameters": sum(p.numel() for p in model.parameters()),
            "bytes": sum(path.stat().st_size for path in folders[name].iterdir() if is_model_file(path.name)),
            "latency": None,
            "latency_by_shape": None,
        }
        for name, model in models.items()
    }
    if place.config.evaluate.latency:
        shapes = place.latency_inputs()
        for model in models.values():
            nn.Module.to(model, place.device.torch_device)
        entries = {name: (model, *shapes) for name, model in models.items()}
        measured = measure_models(entries, dtype=place.device.dtype)
        for name, latency in measured.items():
            about[name]["latency"] = latency
        compared = {name: models[name] for name in ("teacher", "student")}  # a baseline has the student's shape
        longest = place.config.data.max_length
        blocks = shapes_to_time(place.rows["validation"], measured["student"]["length"], longest)
        for name, times in measure_shapes(compared, blocks, dtype=place.device.dtype).items():
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
