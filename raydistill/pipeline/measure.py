"""The last phase of the worker group: every model's outputs on validation and test rows, its size and its speed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from raydistill.config.section import known
from raydistill.data.paths import SPLITS
from raydistill.data.prepare import read_info
from raydistill.data.rows import Rows
from raydistill.evaluate.compare import read_predictions, write_predictions
from raydistill.evaluate.latency import measure_models, measure_shapes
from raydistill.models.folder import model_bytes
from raydistill.pipeline.context import Context
from raydistill.pipeline.recipes import Recipe, Recorded, TeacherIdentity
from raydistill.pipeline.spoken import describe_members
from raydistill.storage.artifacts import Artifact
from raydistill.tasks import Task
from raydistill.tasks.targets import Values

BATCH_SIZES = (1, 2, 4, 8, 16, 32)

Outputs = dict[str, Values]
"""Of each model (num_rows, C)."""


def evaluate(context: Context, models: Models, recorded: Recorded, *, latency: bool) -> Artifact:
    """Store every model's outputs on validation and test rows, its size and, with ``latency``, its speed."""
    with context.report.phase("evaluate"):
        speed = "latency, by size" if latency else ""
        tokens = context.job.tokens.digest
        recipe = {
            **models.digests,
            "tokens": tokens,
            "dtype": context.device.dtype,
            "measured": speed,
            **rows_of(context),
        }
        artifact = Artifact.of(context.job.storage, "evaluation", recipe, models.parents)
        if context.report.has(artifact, "evaluation"):
            return artifact
        outputs = predict_splits(context, ("validation", "test"), recorded, models.folders)
        known, _ = context.rows["validation"].examples
        tasks = {}
        for name, found in outputs["validation"].items():
            task = context.task.for_model(context.read_config(models.folders[name]).to_dict())
            tasks[name] = task.fitted(found[known.labeled], known.values[known.labeled])
        members = describe_members(context, models.teacher)
        with written(context, artifact) as folder:
            if folder is not None:
                keep(context, folder, outputs, tasks)
                about = describe_models(context, models, latency=latency)
                about["teacher"]["members"] = members
                (folder / "models.json").write_text(json.dumps(about))
    return artifact


def evaluate_perturbed(context: Context, models: Models, recorded: Recorded, evaluation: Artifact) -> Artifact | None:
    """Store every model's outputs on the perturbed test rows; None where ``evaluate.robustness`` is off.

    ``evaluation``: of the rows as they are, with what the models' answers need.
    """
    rows = context.job.perturbed
    if rows is None:
        return None
    with context.report.phase("robustness"):
        recipe = {**models.digests, "tokens": rows.digest, "dtype": context.device.dtype, **rows_of(context)}
        artifact = Artifact.of(context.job.storage, "evaluation", recipe, models.parents)
        if context.report.has(artifact, "robustness"):
            return artifact
        outputs = predict_splits(context, context.perturbed, recorded, models.folders)
        with written(context, artifact) as folder:
            if folder is not None:
                keep(context, folder, outputs, read_predictions(evaluation.local(), "test").tasks)
    return artifact


def rows_of(context: Context) -> Recipe:
    """What names the texts whose hashes are kept beside the outputs: equal tokens may be of others."""
    return {"rows": read_info(context.job.data).row_digest}


@dataclass(frozen=True)
class Models:
    """The models that a run compares."""

    teacher: TeacherIdentity
    trained: Mapping[str, Artifact]
    """``student``, and ``baseline`` where there is one."""

    @classmethod
    def of(cls, teacher: TeacherIdentity, student: Artifact, baseline: Artifact | None) -> Models:
        return cls(teacher, {"student": student} | ({"baseline": baseline} if baseline is not None else {}))

    @property
    def digests(self) -> dict[str, str]:
        return {"teacher": self.teacher.digest} | {name: made.digest for name, made in self.trained.items()}

    @property
    def parents(self) -> dict[str, str]:
        return {name: made.digest for name, made in self.trained.items()} | self.teacher.parents

    @property
    def folders(self) -> dict[str, Path]:
        """Where they lie on this node, the teacher first."""
        return {"teacher": self.teacher.folder} | {name: made.local() / "model" for name, made in self.trained.items()}


@contextmanager
def written(context: Context, artifact: Artifact) -> Iterator[Path | None]:
    """A folder for rank 0 to fill, which becomes the artefact; None on other ranks, which wait until it is there."""
    if context.group.is_first:
        context.job.owner.check()
        with artifact.write() as folder:
            yield folder
    else:
        yield None
    context.group.barrier()


def keep(context: Context, folder: Path, outputs: Mapping[str, Outputs], tasks: Mapping[str, Task]) -> None:
    """Write all models' outputs on each split into a folder."""
    for split, by_model in outputs.items():
        (targets, ids), hashes = context.rows[split].examples, context.hashes(split if split in SPLITS else "test")
        write_predictions(folder, split, hashes, targets, by_model, tasks, example_ids=ids)


def predict_splits(
    context: Context, splits: Sequence[str], recorded: Recorded, folders: Mapping[str, Path]
) -> dict[str, Outputs]:
    """By split every model's outputs (N, C) for its examples, in the units of the targets. A model is loaded once."""
    outputs: dict[str, Outputs] = {}
    for split in splits:
        outputs[split] = {"teacher": context.recorded_outputs(recorded, split)}
    for name in (name for name in folders if name != "teacher" and splits):  # in the same order on every rank
        model = context.load(folders[name], dropout=0.0)
        for split in splits:
            outputs[split][name] = context.predict(model, split)
    return outputs


class Several(nn.Module):
    """Several teachers that answer one after the other, to time them on the same token ids."""

    def __init__(self, models: Sequence[PreTrainedModel], lengths: Sequence[int]) -> None:
        """``lengths``: tokens that each takes at most."""
        super().__init__()
        self.models = nn.ModuleList(models)
        self.limits = [(model.config.vocab_size, length) for model, length in zip(models, lengths, strict=True)]

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **others: torch.Tensor) -> None:
        for model, (vocabulary, length) in zip(self.models, self.limits, strict=True):
            model(input_ids=input_ids[:, :length] % vocabulary, attention_mask=attention_mask[:, :length])


def load_all(context: Context, models: Models) -> dict[str, nn.Module]:
    """Every model by its name."""
    loaded: dict[str, nn.Module] = {
        name: context.load(folder, dropout=0.0)
        for name, folder in models.folders.items()
        if name != "teacher" or not models.teacher.members
    }
    if not models.teacher.members:
        return loaded
    pairs = [*zip(context.teachers, models.teacher.members, strict=True)]
    members = [own.load(member.folder, dropout=0.0) for own, member in pairs]
    return {"teacher": Several(members, [known(own.config.data.max_length) for own, _ in pairs]), **loaded}


def describe_models(context: Context, compared: Models, *, latency: bool) -> dict[str, Any]:
    """Size on disk, parameters and, with ``latency``, speed of each model; speeds are measured interleaved. Several
    teachers count together."""
    models, folders = load_all(context, compared), compared.folders
    sizes = {name: model_bytes(folder) for name, folder in folders.items()}
    if compared.teacher.members:
        sizes["teacher"] = sum(model_bytes(member.folder) for member in compared.teacher.members)
    about: dict[str, Any] = {
        name: {
            "num_parameters": sum(p.numel() for p in model.parameters()),
            "bytes": sizes[name],
            "latency": None,
            "latency_by_shape": None,
        }
        for name, model in models.items()
    }
    if latency:
        shapes = context.latency_inputs()
        for model in models.values():
            nn.Module.to(model, context.device.torch_device)
        entries = {name: (model, *shapes) for name, model in models.items()}
        measured = measure_models(entries, dtype=context.device.dtype)
        for name, found in measured.items():
            about[name]["latency"] = found
        rivals = {name: models[name] for name in ("teacher", "student")}  # a baseline has the student's shape
        longest = known(context.config.data.max_length)
        blocks = shapes_to_time(context.rows["validation"], measured["student"]["length"], longest)
        for name, times in measure_shapes(rivals, blocks, dtype=context.device.dtype).items():
            about[name]["latency_by_shape"] = times
    return about


def shapes_to_time(rows: Rows, length: int | None, longest: int) -> list[dict[str, torch.Tensor]]:
    """Inputs (B, L) without padding: batches of 1 to 32 rows of ``length`` tokens; 1 row, and 32, of up to ``longest``
    tokens. Of pictures, which have no ``length``, those batches alone."""
    if length is None:
        return [rows.block(size, longest) for size in BATCH_SIZES]
    lengths = [2**i for i in range(3, 20) if 2**i < longest] + [longest]
    wanted = {(size, length) for size in BATCH_SIZES}
    wanted |= {(size, tokens) for size in (BATCH_SIZES[0], BATCH_SIZES[-1]) for tokens in lengths}
    return [rows.block(*shape) for shape in sorted(wanted)]
