"""The text classification task: loss values, cost and decoding."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from raydistill.config import tasks as config
from raydistill.tasks import TextClassification, make_task


def test_make_task_gives_the_task_of_the_config() -> None:
    task = make_task(config.TextClassification(), ("no", "yes"))
    assert isinstance(task, TextClassification)
    assert (task.labels, task.num_labels, task.cost(7)) == (("no", "yes"), 2, 7)


def test_loss_values_are_cross_entropy_a_row_in_float32() -> None:
    logits = torch.tensor([[0.0, 0.0], [math.log(3.0), 0.0], [5.0, 1.0]], dtype=torch.bfloat16, requires_grad=True)
    values = TextClassification(("a", "b")).loss_values(logits, torch.tensor([0, 0, -1]))
    assert values.dtype == torch.float32
    assert values.tolist() == pytest.approx([math.log(2), math.log(4 / 3), 0.0], abs=2e-3)
    values.sum().backward()
    assert logits.grad is not None
    assert logits.grad[2].tolist() == [0.0, 0.0]


def test_decode_names_the_likeliest_class_with_its_probability() -> None:
    logits = np.array([[0.0, math.log(3.0)], [1000.0, -1000.0]], np.float32)
    decoded = TextClassification(("no", "yes")).decode(logits)
    assert [row["label"] for row in decoded] == ["yes", "no"]
    assert [row["score"] for row in decoded] == pytest.approx([0.75, 1.0])
