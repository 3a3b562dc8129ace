"""A stage of training taken apart: its gradients, the signals it reads, and what ranks have to agree on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from kit.toy import Toy, relative_difference, without_key_biases
from raydistill.cluster.device import Device
from raydistill.cluster.group import Group
from raydistill.config.training import Stage
from raydistill.losses import build_losses
from raydistill.models.signals import Signal
from raydistill.storage.artifacts import Artifact
from raydistill.tasks import Task
from raydistill.teacher.cached import RecordedSignals
from raydistill.teacher.record import record
from raydistill.teacher.signals import OnlineSignals, Signals
from raydistill.teacher.store import signal_artifact
from raydistill.train.loop import Setup, StageRun


def stage_setup(
    toy: Toy,
    name: str,
    models: tuple[PreTrainedModel, PreTrainedModel],
    task: Task,
    terms: Mapping[str, Any],
    row_ids: np.ndarray,
    signals: Signals | None = None,
) -> Setup:
    """A stage of ``terms`` on these rows; ``models``: student and teacher, who speaks unless ``signals`` are given."""
    student, teacher = models
    stage = Stage.model_validate({"losses": terms})
    losses = build_losses(stage.losses, task, student.config, teacher.config, seed=0)
    online = OnlineSignals(teacher, losses.teacher_needs, Device())
    return toy.setup(name, losses, student, signals=signals or online, row_ids=row_ids)


def batch_gradients(setup: Setup, step: int = 0) -> dict[str, torch.Tensor]:
    """Return the gradients of one global batch, of the model and of the losses' projections."""
    stage = StageRun(setup)
    batches = stage.collate(step)
    counts = setup.group.sum([float(n) for n in setup.losses.counts(batches)])
    stage.accumulate(step, batches, counts)
    named = [*setup.model.named_parameters(), *setup.losses.named_parameters(prefix="losses")]
    return {name: p.grad.clone() for name, p in named if p.grad is not None}


def wanted_signals(toy: Toy, signals: Sequence[str], teacher: str = "t") -> dict[Signal, Artifact]:
    """Where signals of the training rows lie; ``teacher``: the digest by which it is known."""
    given = {"teacher_digest": teacher, "tokens_digest": toy.tokens.digest, "dtype": "float32"}
    return {
        signal: signal_artifact(toy.storage, signal, "train", **given, parents={"teacher": teacher})
        for signal in map(Signal, signals)
    }


def record_signals(toy: Toy, teacher: PreTrainedModel, signals: Sequence[str]) -> RecordedSignals:
    """Record signals of the training rows in this process."""
    items = wanted_signals(toy, signals)
    record(teacher, toy.rows(), items, tokens=400, device=Device(), group=Group())
    return RecordedSignals(items, toy.rows().num_rows)


def gradient_differences(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> dict[str, float]:
    """Largest relative difference of each gradient, but of those that are rounding alone."""
    return relative_difference(without_key_biases(a), without_key_biases(b))


def assert_ranks_equal_one(one: Mapping[str, Any], ranks: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Two ranks have what one process has, and the same as each other; the gradients' differences.

    Each gives its ``rank``, its ``gradients`` and perhaps ``outputs``, an array.
    """
    first, second = ranks
    assert [first["rank"], second["rank"]] == [0, 1]
    difference = gradient_differences(one["gradients"], first["gradients"])
    assert max(difference.values()) < 2e-5
    assert all(torch.equal(first["gradients"][name], second["gradients"][name]) for name in first["gradients"])
    if "outputs" in one:
        assert np.array_equal(first["outputs"], second["outputs"])
        assert np.allclose(one["outputs"], first["outputs"], atol=1e-5)
    return difference
