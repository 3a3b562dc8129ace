"""The pre-flight: terms that have no say, and weights against the rule of thumb."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from kit.toy import Toy

from raydistill.cluster.device import Device
from raydistill.train.preflight import check_losses


def findings(toy: Toy, terms: dict[str, dict[str, Any]]) -> list[str]:
    student = toy.student(hidden_size=16, num_heads=2)
    losses = toy.losses(student, **terms)
    setup = toy.setup("preflight", losses, student)
    rows = toy.rows()
    return check_losses("distill", student, losses, setup.signals, rows, np.arange(rows.num_rows), Device())


def test_balanced_terms_give_no_finding(toy):
    assert findings(toy, {"kd": {"type": "forward_kl"}, "task": {"type": "task", "weight": 0.5}}) == []


def test_a_term_a_hundred_times_larger_is_named_with_its_ratio(toy):
    found = findings(toy, {"kd": {"type": "forward_kl", "weight": 1e4}, "task": {"type": "task", "weight": 0.5}})
    assert len(found) == 1
    assert "the gradient of 'kd' is" in found[0]
    assert "raise that of 'task'" in found[0]


def test_a_term_without_effect_is_named(toy):
    found = findings(toy, {"kd": {"type": "forward_kl"}, "task": {"type": "task", "weight": 0.0}})
    assert found == ["stages.distill: the term 'task' has no gradient; it has no effect."]


@pytest.mark.parametrize(("weight", "num_findings"), [(0.5, 0), (1.0, 0), (3.0, 1)])
def test_a_representation_heavier_than_the_distillation_is_named(toy, weight, num_findings):
    hidden = {"type": "hidden_mse", "layers": [[2, 4]], "weight": weight}
    found = findings(toy, {"kd": {"type": "forward_kl"}, "hidden": hidden})
    assert sum("rule of thumb" in finding for finding in found) == num_findings
