"""Linear models by kind of target, against scikit-learn's own and against what no row had."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.multiclass import OneVsRestClassifier

from raydistill.tasks.linear import NEVER, fit_classes, fit_labels, fit_numbers

RNG = np.random.default_rng(0)
FEATURES = csr_matrix(RNG.random((120, 12)) * (RNG.random((120, 12)) < 0.4))
WEIGHTS = RNG.normal(size=(12, 4))
ASKED = FEATURES[:30]


@pytest.mark.parametrize("num_classes", [2, 4])
def test_classes_are_scikit_learns(num_classes: int) -> None:
    ids = (FEATURES @ WEIGHTS[:, :num_classes]).argmax(axis=1)
    found = fit_classes(FEATURES, ids, num_classes, 3.0)(ASKED)
    expected = LogisticRegression(C=3.0, max_iter=100).fit(FEATURES, ids).predict_proba(ASKED)
    np.testing.assert_allclose(softmax(found, axis=1), expected, atol=1e-6)


def test_a_class_without_a_row_is_never_answered() -> None:
    told = FEATURES @ WEIGHTS[:, 0]
    ids = np.where(told > np.median(told), 3, 1)
    found = fit_classes(FEATURES, ids, 4, 1.0)(ASKED)
    assert (found[:, [0, 2]] == NEVER).all()
    assert set(found.argmax(axis=1)) == {1, 3}
    assert (fit_classes(FEATURES, np.full(120, 2), 4, 1.0)(ASKED).argmax(axis=1) == 2).all()


def test_labels_are_one_against_the_rest() -> None:
    values = ((FEATURES @ WEIGHTS) > 0).astype(np.int8)
    found = fit_labels(FEATURES, values, 3.0)(ASKED)
    expected = OneVsRestClassifier(LogisticRegression(C=3.0)).fit(FEATURES, values).decision_function(ASKED)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
    values[:, 1], values[:, 2] = 0, 1
    same = fit_labels(FEATURES, values, 3.0)(ASKED)
    assert (same[:, 1] == NEVER).all()
    assert (same[:, 2] == -NEVER).all()
    np.testing.assert_array_equal(same[:, [0, 3]], found[:, [0, 3]])


def test_numbers_do_not_depend_on_their_unit() -> None:
    values = FEATURES @ WEIGHTS[:, 0] + 0.1 * RNG.normal(size=120)
    found = fit_numbers(FEATURES, values, 10.0)(ASKED)
    assert found.shape == (30, 1)
    np.testing.assert_allclose(found[:, 0], Ridge(alpha=1.0).fit(FEATURES.toarray(), values).predict(ASKED), atol=1e-3)
    np.testing.assert_allclose(fit_numbers(FEATURES, 50 + 1000 * values, 10.0)(ASKED), 50 + 1000 * found, rtol=1e-2)
