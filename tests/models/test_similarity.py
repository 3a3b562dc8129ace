"""Linear CKA against its definition by Gram matrices, and of the layers of real models on rows of unlike length."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from kit.tiny import FAMILIES, tiny_classifier
from transformers import PreTrainedModel

from raydistill.config.student import ConvStudent, EncoderStudent
from raydistill.models import similarity
from raydistill.models.similarity import layer_similarities, linear_cka
from raydistill.models.student import build_student


def by_grams(x: np.ndarray, y: np.ndarray) -> float:
    """HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) of the linear kernels K and L, (N, N), in float64."""
    centring = np.eye(len(x)) - 1 / len(x)
    own, other = (centring @ (side @ side.T) @ centring for side in (x.astype(np.float64), y.astype(np.float64)))
    return float((own * other).sum() / np.sqrt((own * own).sum() * (other * other).sum()))


def test_it_is_that_of_gram_matrices() -> None:
    draw = np.random.default_rng(0)
    first = [draw.normal(size=(60, width)) + 3 for width in (5, 8)]
    second = [first[0] @ draw.normal(size=(5, 7)) + draw.normal(size=(60, 7)), draw.normal(size=(60, 3))]
    found = linear_cka(*([torch.tensor(side) for side in sides] for sides in (first, second)))
    expected = [[by_grams(x, y) for y in second] for x in first]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)
    assert 0 < found.min() < 0.3 < found.max() < 1


def test_turning_moving_and_scaling_change_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(50, 6, generator=generator, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64)).Q
    assert float(linear_cka([states], [7 * states @ turn - 2])) == pytest.approx(1, abs=1e-12)
    assert float(linear_cka([states], [torch.ones(50, 3, dtype=torch.float64)])) == 0


def states_by_hand(model: PreTrainedModel, rows: list[torch.Tensor]) -> list[np.ndarray]:
    """All hidden states of the tokens of rows, read one by one."""
    with torch.no_grad():
        found = [model(input_ids=row[None], output_hidden_states=True).hidden_states for row in rows]
    return [np.concatenate([one[layer][0].numpy() for one in found]) for layer in range(len(found[0]))]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("most", [10_000, 40])
def test_layers_are_compared_on_real_tokens(family: str, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Padding has no part in it; of many tokens so many are taken, spread evenly."""
    monkeypatch.setattr(similarity, "MAX_TOKENS", most)
    teacher = tiny_classifier(family, num_layers=4, seed=3).eval()
    student = build_student(teacher, EncoderStudent(num_layers=2, start="random"), seed=1)
    generator = torch.Generator().manual_seed(0)
    rows = [
        torch.randint(5, 40, (length,), generator=generator) for length in (3, 9, 14, 5, 12, 8, 11, 7, 13, 14, 6, 8)
    ]
    batches = []
    for start in range(0, len(rows), 5):
        part = rows[start : start + 5]
        ids = torch.nn.utils.rnn.pad_sequence(part, batch_first=True)
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in part], batch_first=True)
        batches.append({"input_ids": ids, "attention_mask": mask})
    found = np.array(layer_similarities(student, teacher, batches))
    assert found.shape == (3, 5)
    step = -(-sum(map(len, rows)) // most)
    sides = [[states[::step] for states in states_by_hand(model, rows)] for model in (student, teacher)]
    expected = [[by_grams(x, y) for y in sides[1]] for x in sides[0]]
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-4)


def test_what_is_copied_is_the_same_and_other_networks_have_layers_too() -> None:
    teacher = tiny_classifier("bert", num_layers=4, seed=3).eval()
    batch = {"input_ids": torch.arange(5, 35).view(5, 6), "attention_mask": torch.ones(5, 6, dtype=torch.long)}
    copied = layer_similarities(build_student(teacher, EncoderStudent(num_layers=None), seed=0), teacher, [batch])
    assert [row[i] for i, row in enumerate(copied)] == pytest.approx([1.0] * 5, abs=1e-5)
    light = build_student(teacher, ConvStudent(type="conv", num_layers=3), seed=0)
    found = layer_similarities(light, teacher, [batch])
    assert np.array(found).shape == (4, 5)
    assert ((np.array(found) > 0) & (np.array(found) < 1 + 1e-5)).all()
