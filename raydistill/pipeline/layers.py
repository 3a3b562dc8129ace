"""Which layers are compared where a loss leaves it to their similarity (``layers: auto``): measured once, and kept.

The student is measured as it is cut, with the config's own seed, beside the teacher that speaks. From then on pairs
stand in the config in place of ``auto``: every rank, every seed and every restart compares the same layers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from raydistill.config.losses import LayerLossSection
from raydistill.config.tree import Config
from raydistill.models.layer_map import closest_layers
from raydistill.models.similarity import layer_similarities
from raydistill.pipeline import recipes
from raydistill.pipeline.context import Context
from raydistill.pipeline.recipes import TeacherIdentity
from raydistill.storage.storage import Storage

Similarities = list[list[float]]
"""Of each hidden state of the student with each of the teacher, 0 being the embeddings."""
FILE = "similarities.json"
REUSED = "layer similarities"
"""What they are called in a run that finds them in storage."""


def by_similarity(config: Config) -> Iterator[tuple[str, str]]:
    """Stage and name of each loss whose layers are to be measured."""
    for stage_name, stage in config.stages.items():
        for name, loss in stage.losses.items():
            if isinstance(loss, LayerLossSection) and loss.layers == "auto":
                yield stage_name, name


def settle_layers(context: Context, teacher: TeacherIdentity) -> None:
    """Let a rank go on with the pairs of layers that are measured, or are known; every rank runs this."""
    config = with_layers(context, teacher, context.config)
    context.job, context.config = replace(context.job, config=config), config


def with_layers(context: Context, teacher: TeacherIdentity, config: Config) -> Config:
    """The config with pairs in place of ``auto``. What is not in storage rank 0 measures; every rank runs this."""
    if not any(by_similarity(config)):
        return config
    job = context.job
    artifact = recipes.layers_artifact(config, job.storage, teacher, job.tokens.digest)
    if not context.report.has(artifact, REUSED):
        if context.group.is_first:
            job.owner.check()
            start, sample = context.teacher(teacher), context.rows["train"].sample
            student = context.untaught(start, config, config.seed)
            found = layer_similarities(student.eval(), start.eval(), sample())
            with artifact.write() as folder:
                (folder / FILE).write_text(json.dumps(found))
        context.group.barrier()
    settled, _ = known_layers(config, job.storage, teacher, job.tokens.digest)
    return settled


def known_layers(
    config: Config, storage: Storage, teacher: TeacherIdentity, tokens_digest: str
) -> tuple[Config, Similarities | None]:
    """The config with pairs in place of ``auto``, and the similarities that they follow from; the config as it is, and
    None, where nothing is left to them, or they are not measured yet."""
    if not any(by_similarity(config)):
        return config, None
    artifact = recipes.layers_artifact(config, storage, teacher, tokens_digest)
    if not artifact.exists():
        return config, None
    found: Similarities = json.loads((artifact.local() / FILE).read_text())
    stages = dict(config.stages)
    for stage_name, name in by_similarity(config):
        stage = stages[stage_name]
        losses: dict[str, Any] = dict(stage.losses)
        pairs = closest_layers(found)[losses[name].first_layer :]
        losses[name] = losses[name].model_copy(update={"layers": pairs})
        stages[stage_name] = stage.model_copy(update={"losses": losses})
    return config.model_copy(update={"stages": stages}), found


def told(config: Config, found: Similarities) -> str:
    """The pairs and why, in a sentence."""
    names = ", ".join(f"stages.{stage}.losses.{name}" for stage, name in by_similarity(config))
    pairs = ", ".join(
        f"{student} ← {teacher} ({found[student][teacher]:.2f})" for student, teacher in closest_layers(found)
    )
    return (
        f"Layers of {names} by similarity (student ← teacher, in brackets the linear CKA of the student as it was cut "
        f"with the teacher, on training rows): {pairs}."
    )
