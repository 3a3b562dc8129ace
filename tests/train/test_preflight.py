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


@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (1.0, 0.0)])
def test_a_weight_that_begins_or_ends_at_0_has_an_effect(toy, start, end):
    rising = {"type": "task", "weight": {"type": "linear", "start": start, "end": end}}
    assert findings(toy, {"kd": {"type": "forward_kl"}, "task": rising}) == []


@pytest.mark.parametrize(
    ("weight", "word", "beside"),
    [(30.0, "Divide", "distillation"), (1e-3, "Multiply", "distillation"), (30.0, "Divide", "task")],
)
def test_gradients_against_the_rule_of_thumb_are_told_with_what_would_mend_them(toy, weight, word, beside):
    """Following the advice ends it; the norms are shown in any case. Where nothing distils labels take its place."""
    first = {"distillation": {"type": "forward_kl"}, "task": {"type": "task"}}[beside]

    def told(weight: float) -> str:
        hidden = {"type": "hidden_mse", "layers": [[2, 4]], "weight": weight}
        found = findings(toy, {"kd": first, "hidden": hidden})
        return next(line for line in found if line.startswith("stages.distill: gradient norms on real rows: kd "))

    before = told(weight)
    assert "where 1 to 3 is the rule of thumb" in before
    factor = float(before.split(f"{word} the weight of hidden by ")[1].split()[0]) * 1.1
    after = told(weight / factor if word == "Divide" else weight * factor)
    assert "rule of thumb" not in after
    assert 1 <= float(after.split(f"; {beside} ")[1].split()[0]) <= 3


def test_a_representation_that_hardly_pulls_is_no_fault_beside_labels(toy):
    hidden = {"type": "hidden_mse", "layers": [[2, 4]], "weight": 1e-3}
    found = findings(toy, {"labels": {"type": "task"}, "hidden": hidden})
    assert not [line for line in found if "rule of thumb" in line]
