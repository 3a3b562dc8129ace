"""Linear heads and temperatures against scikit-learn and a grid."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_iris, load_wine
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import normalize
from torch import nn

from raydistill.tasks import MultiLabelClassification, Targets, TextClassification, TextRegression
from raydistill.train import probe
from raydistill.train.calibration import fit_temperature
from raydistill.train.probe import constant_loss, fit_head, sees_nothing

FEATURES, LABELS = load_iris(return_X_y=True)
EMBEDDINGS = torch.tensor(normalize(FEATURES), dtype=torch.float32)


def targets(values: np.ndarray) -> Targets:
    return Targets(values, np.ones(len(values), bool))


@pytest.mark.parametrize("strength", [0.1, 1.0, 100.0])
def test_classes_are_a_logistic_regression(strength: float) -> None:
    layer = nn.Linear(4, 3)
    assert fit_head(layer, EMBEDDINGS, targets(LABELS), TextClassification("abc"), [strength]) == strength
    judge = LogisticRegression(C=strength, max_iter=5000, tol=1e-8).fit(EMBEDDINGS.numpy(), LABELS)
    with torch.no_grad():
        found = layer(EMBEDDINGS).softmax(-1).numpy()
    assert found == pytest.approx(judge.predict_proba(EMBEDDINGS.numpy()), abs=2e-3)


def test_numbers_are_a_ridge_regression() -> None:
    values = (FEATURES[:, 3] - FEATURES[:, 3].mean()) / FEATURES[:, 3].std()
    layer = nn.Linear(4, 1)
    task = TextRegression()
    fit_head(layer, EMBEDDINGS, targets(values.astype(np.float32)), task, [1.0])
    ridge = Ridge(alpha=0.5).fit(EMBEDDINGS.numpy(), values)  # |error|² + |W|² / 2C
    with torch.no_grad():
        assert layer(EMBEDDINGS)[:, 0].numpy() == pytest.approx(ridge.predict(EMBEDDINGS.numpy()), abs=2e-3)


def test_cross_validation_chooses_a_weak_head_for_noise_and_a_strong_one_for_signal() -> None:
    draw = np.random.default_rng(0)
    noise = draw.integers(0, 2, 150)
    task = TextClassification("ab")
    wide = torch.tensor(normalize(draw.normal(size=(150, 60))), dtype=torch.float32)
    chosen = [
        fit_head(nn.Linear(e.shape[1], 2), e, targets(v), task)
        for e, v in ((wide, noise), (EMBEDDINGS, (LABELS > 0).astype(int)))
    ]
    assert chosen == [0.1, 100.0]


def test_each_strength_is_fitted_to_four_fifths_of_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, fitted = [], probe._fitted
    monkeypatch.setattr(probe, "_fitted", lambda *given: sizes.append(len(given[2])) or fitted(*given))
    fit_head(nn.Linear(4, 3), EMBEDDINGS, targets(LABELS), TextClassification("abc"), [1.0, 10.0])
    assert sizes == [120] * 10 + [150]


def test_both_orders_of_a_pair_are_in_one_fold() -> None:
    """Twins that are known from the other folds would make the head that remembers them the best."""
    draw = np.random.default_rng(0)
    noise, task = np.tile(draw.integers(0, 2, 60), 2), TextClassification("ab")
    wide = torch.tensor(normalize(np.tile(draw.normal(size=(60, 80)), (2, 1))), dtype=torch.float32)
    ids = np.arange(120) % 60
    assert fit_head(nn.Linear(80, 2), wide, targets(noise), task, example_ids=ids) == 0.1
    assert fit_head(nn.Linear(80, 2), wide, targets(noise), task) == 100.0


def test_labels_that_are_sorted_are_dealt_out_over_the_folds() -> None:
    """A fold of one class alone would make every head of the other folds worthless on it."""
    layer = nn.Linear(4, 3)
    assert fit_head(layer, EMBEDDINGS, targets(LABELS), TextClassification("abc")) > 1.0


def test_the_loss_of_a_constant_answer() -> None:
    share = np.array([0.5, 0.3, 0.2])
    labels = targets(np.repeat([0, 1, 2], [50, 30, 20]))
    assert constant_loss(TextClassification("abc"), labels) == pytest.approx(-(share * np.log(share)).sum(), abs=1e-4)
    several = targets(np.repeat([[1.0, 0.0], [1.0, 1.0]], 10, axis=0).astype(np.float32))
    found = constant_loss(MultiLabelClassification(("a", "b")), several)
    assert found == pytest.approx(math.log(2) / 2, abs=2e-3)  # the one label is certain
    numbers = targets(np.array([-1.0, 1.0, 3.0], np.float32))
    assert constant_loss(TextRegression(), numbers) == pytest.approx(8 / 3, rel=1e-4)


@pytest.mark.parametrize("factor", [0.3, 1.0, 4.0])
def test_a_temperature_undoes_a_factor_on_calibrated_logits(factor: float) -> None:
    draw = np.random.default_rng(1)
    logits = draw.normal(0, 2, (5000, 3))
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = (probabilities.cumsum(1) > draw.random((5000, 1))).argmax(1)
    task = TextClassification("abc")
    assert fit_temperature(task, (factor * logits).astype(np.float32), labels) == pytest.approx(factor, rel=0.06)


def test_it_is_the_most_likely_one_and_a_few_lucky_rows_make_no_model_sure() -> None:
    features, labels = load_wine(return_X_y=True)
    judge = LogisticRegression(C=100.0, max_iter=5000).fit(features[::3], labels[::3])
    outputs, rest = judge.decision_function(features[1::3]), labels[1::3]
    task = TextClassification("abc")

    def best(logits: np.ndarray, labels: np.ndarray) -> float:
        """Where log T is normal around 0 with deviation 0.5."""

        def cost(t: float) -> float:
            loss = nn.functional.cross_entropy(torch.tensor(logits / t), torch.tensor(labels), reduction="sum")
            return float(loss) + math.log(t) ** 2 / (2 * 0.5**2)

        return min(np.geomspace(0.05, 20, 2001), key=cost)

    assert fit_temperature(task, outputs, rest) == pytest.approx(best(outputs, rest), rel=0.01)
    right, labels = np.eye(3)[np.arange(10) % 3] * 2.0, np.arange(10) % 3
    found = fit_temperature(task, right, labels)
    assert 0.3 < found < 1.0
    assert found == pytest.approx(best(right, labels), rel=0.01)


@pytest.mark.parametrize(
    ("kind", "sees"), [("right", True), ("one answer", False), ("confident", False), ("chance", False)]
)
@pytest.mark.parametrize("task", [TextClassification("abc"), MultiLabelClassification("abc"), TextRegression()])
def test_a_model_that_sees_nothing_of_its_rows_is_told(task: Any, kind: str, sees: bool) -> None:
    """Few right answers among confident wrong ones are no sight: of five classes 32 % were right at a rate of 50."""
    draw = np.random.default_rng(0)
    classes = draw.integers(0, 3, 300)
    values = {"categorical": classes, "bernoulli": np.eye(3, dtype=np.int8)[classes], "value": classes - 1.0}[task.kind]
    clear = (np.eye(3)[classes] - 0.5) * 4 if task.kind != "value" else values[:, None]
    others = {
        "right": clear + 0.5 * draw.normal(size=clear.shape),
        "one answer": np.tile(clear[:1], (300, 1)),
        "confident": 2 * clear + 40 * draw.normal(size=clear.shape),
        "chance": 0.3 * draw.permutation(clear),
    }
    assert sees_nothing(task, others[kind], values) != sees
