"""What of a training's reports says that it diverged, and who tells of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from kit.outcomes import outcome
from kit.results import CONFIG, make_results

from raydistill.cli.show.results import refusal
from raydistill.evaluate.divergence import rise
from raydistill.evaluate.report.page import page_text


def reports(losses: Any, **more: float) -> list[dict[str, Any]]:
    return [
        {"step": i, "train/loss": float(loss), "train/loss/kd": float(loss), **more} for i, loss in enumerate(losses)
    ]


NOISE = 1 + 0.3 * np.random.default_rng(0).standard_normal(48)


@pytest.mark.parametrize(
    ("losses", "has_risen"),
    [
        (np.geomspace(1.2, 0.1, 48) * NOISE, False),  # it learns
        (1.2 * NOISE, False),  # it stays where it was: too low a rate
        (np.linspace(2.3, 1.6, 48) * NOISE, False),  # it falls, and is not there yet
        ([0.0, *NOISE], False),  # a student that is its teacher has nothing to begin with
        ([1.2, *np.geomspace(900, 70, 47)], True),  # too high a rate, from the first step on
        ([*np.geomspace(1.2, 0.5, 30), *np.geomspace(5, 500, 18)], True),  # and in the middle of it
        ([1.2, *np.geomspace(40, 1.1, 47)], True),  # it comes back to what a constant answer has
        ([1.2], False),
        ([], False),
    ],
)
def test_a_loss_that_rises_is_told_from_one_that_stays(losses: Any, has_risen: bool) -> None:
    found = rise(reports(losses), "stages.distill.learning_rate", 50)
    assert (found is not None) == has_risen
    if found is not None:
        assert f"its loss was {losses[0]:.3g} at the first step and rose to" in found.why
        assert found.advice == "lower stages.distill.learning_rate (now 50)"


def test_a_weight_that_rises_is_no_divergence() -> None:
    history = [
        {"train/loss": weight * 2.0, "train/loss/kd": 2.0, "train/weight/kd": weight}
        for weight in np.linspace(0.1, 1, 40)
    ]
    assert rise(history, "stages.distill.learning_rate", 1e-4) is None
    assert rise([{"train/loss": entry["train/loss"]} for entry in history], "", 1e-4) is not None


def diverged(model: str) -> dict[str, Any]:
    setting = "teacher.finetune.learning_rate" if model == "teacher" else "stages.distill.learning_rate"
    found = rise(reports([1.2, *[900] * 9]), setting, 5)
    made = outcome(**{"teacher": 0.0, "student": 0.0} if model == "teacher" else {"student": 0.0})
    return make_results(
        made=replace(made, **{model: replace(getattr(made, model), diverged=found)}), model_version=None
    )


def test_a_student_that_diverged_is_not_shipped_and_the_rate_is_named_everywhere() -> None:
    results = diverged("student")
    assert results["decision"]["decision"] == "do not ship"
    assert results["decision"]["reason"].startswith("The student's training diverged: its loss was 1.2")
    assert results["decision"]["next"] == "To mend it, lower stages.distill.learning_rate (now 5)."
    assert "lower stages.distill.learning_rate (now 5)" in results["verdict"]
    assert "lower stages.distill.learning_rate (now 5)" in page_text(results)
    assert (refusal(results), refusal(results | {"model_version": 1})) == (3, 0)
    assert refusal(results | {"config": CONFIG | {"registry": {"name": None}}}) == 0


def test_a_teacher_that_diverged_is_what_is_to_be_mended() -> None:
    results = diverged("teacher")
    assert results["verdict"].startswith("The training of the teacher diverged")
    assert "lower teacher.finetune.learning_rate (now 5)" in results["decision"]["next"]
