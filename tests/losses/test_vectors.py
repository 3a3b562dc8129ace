"""Losses on vectors, against loops over rows."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from raydistill.config.losses import SECTIONS
from raydistill.config.tasks import SECTIONS as TASKS
from raydistill.data.batches import Batch
from raydistill.losses import SimilarityMatrix, VectorCosine, VectorMse
from raydistill.models.signals import LOGITS
from raydistill.tasks import Targets


def batch_of(rows: int) -> Batch:
    return Batch(np.arange(rows), np.full(rows, 3), Targets(np.zeros((rows, 3)), np.zeros(rows, bool)))


def both(rows: int, width: int) -> list[torch.Tensor]:
    return [torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(a @ b / a.norm() / b.norm())


@pytest.mark.parametrize("texts", [1, 2])
def test_values_are_those_of_a_loop(texts: int) -> None:
    student, teacher = both(7, 4 * texts)
    given = {LOGITS: student}, {LOGITS: teacher}, batch_of(7)
    mse, cosines = VectorMse(4)(*given), VectorCosine(4)(*given)
    for row in range(7):
        pairs = list(zip(student[row].split(4), teacher[row].split(4), strict=True))
        assert float(mse[row]) == pytest.approx(np.mean([float((a - b) @ (a - b)) for a, b in pairs]), rel=1e-5)
        assert float(cosines[row]) == pytest.approx(np.mean([1 - cosine(a, b) for a, b in pairs]), abs=1e-6)


@pytest.mark.parametrize("texts", [1, 2])
def test_similarity_matrices_are_those_of_a_loop_over_groups(texts: int) -> None:
    student, teacher = both(7, 4 * texts)
    loss = SimilarityMatrix(4, group_size=3)
    batch = batch_of(7)
    assert loss.count(batch) == 6  # the last row is alone
    found = loss({LOGITS: student}, {LOGITS: teacher}, batch)
    assert found.shape == (6,)
    for row in range(6):
        group = range(row // 3 * 3, row // 3 * 3 + 3)
        places = list(itertools.product(group, range(texts)))
        values = []
        for text in range(texts):
            own, other = (side.view(7, texts, 4) for side in (student, teacher))
            rest = [(r, t) for r, t in places if (r, t) != (row, text)]
            squares = [
                (cosine(own[row, text], own[r, t]) - cosine(other[row, text], other[r, t])) ** 2 for r, t in rest
            ]
            values.append(np.mean(squares))
        assert float(found[row]) == pytest.approx(np.mean(values), rel=1e-4)


def test_which_losses_are_of_vectors() -> None:
    task = TASKS["embeddings"]
    known = {name for name, section in SECTIONS.items() if section.takes(task.kind, task.has_units)}
    assert {"vector_mse", "vector_cosine", "similarity_matrix", "task", "hidden_mse", "rkd_distance"} <= known
    assert not known & {"forward_kl", "logit_mse", "dkd", "cosine_pairs"}
    others = [TASKS[name] for name in TASKS if name != "embeddings"]
    assert not any(SECTIONS["vector_mse"].takes(other.kind, other.has_units) for other in others)
