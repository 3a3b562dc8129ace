"""Linear models of sparse features, one for each kind of targets: what a transformer has to be better than.

Each function fits one and returns what gives the outputs (M, C) of other rows' features (M, F). ``strength`` is the
inverse of the regularisation, as in scikit-learn's ``C``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from raydistill.tasks.targets import Array

Linear = Callable[[Any], Array]
NEVER = -20.0
"""Log-probability of a class, and logit of a label, that no row had."""
RIDGE = 10.0
"""Ridge regression of unit vectors wants so many times the regularisation of logistic regression."""


def fit_classes(features: Any, ids: Array, num_classes: int, strength: float) -> Linear:
    """Multinomial logistic regression on class ids (N,): the log-probabilities of all classes."""
    seen = np.unique(ids)
    model = None if len(seen) == 1 else _logistic(features, ids, strength)

    def outputs(asked: Any) -> Array:
        found = np.full((asked.shape[0], num_classes), NEVER, np.float32)
        found[:, seen] = 0.0 if model is None else np.maximum(model.predict_log_proba(asked), NEVER)
        return found

    return outputs


def fit_labels(features: Any, values: Array, strength: float) -> Linear:
    """Logistic regression on each label of (N, L): their logits."""
    both = (values.min(axis=0) == 0) & (values.max(axis=0) == 1)
    models = {i: _logistic(features, values[:, i], strength) for i in np.flatnonzero(both)}

    def outputs(asked: Any) -> Array:
        found = np.where(values[0] > 0, -NEVER, NEVER) * np.ones((asked.shape[0], 1))
        for i, model in models.items():
            found[:, i] = model.decision_function(asked)
        return found.astype(np.float32)

    return outputs


def fit_numbers(features: Any, values: Array, strength: float) -> Linear:
    """Ridge regression on numbers (N,), in their unit."""
    from sklearn.linear_model import Ridge

    model = Ridge(alpha=RIDGE / strength).fit(features, values)
    return lambda asked: np.asarray(model.predict(asked))[:, None]


def _logistic(features: Any, ids: Array, strength: float) -> Any:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():  # after 100 steps the answers no longer change, and the time has a bound
        warnings.simplefilter("ignore", ConvergenceWarning)
        return LogisticRegression(C=strength, max_iter=100).fit(features, ids)
