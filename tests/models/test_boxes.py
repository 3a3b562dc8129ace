"""Matching and loss of detectors, against transformers' own, and under any cut of a batch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from kit.scenes import NAMES, QUERIES, SIZE, queries, tiny_detector_config
from torch import Tensor
from transformers.loss.loss_for_object_detection import ForObjectDetectionLoss, HungarianMatcher, generalized_box_iou

from raydistill.config import losses as settings
from raydistill.data.batches import Batch
from raydistill.losses import Boxes, BoxFeatures, ForwardKl, build_losses
from raydistill.losses.task import TaskLoss
from raydistill.models.boxes import corners, giou
from raydistill.models.capture import capture
from raydistill.models.detection import Problem, Softmax, match, paired
from raydistill.models.head import logits_of
from raydistill.models.load import new_model
from raydistill.models.signals import LOGITS, Signal
from raydistill.tasks import Targets
from raydistill.tasks.object_detection import ObjectDetection
from raydistill.tasks.targets import Ragged

COUNTS = (2, 0, 3, 1, QUERIES + 2, 4)
"""Objects of pictures: none, and more than there are queries."""


def made(counts: tuple[int, ...] = COUNTS, seed: int = 0, labeled: Any = None) -> tuple[Tensor, Targets]:
    """Outputs (B, Q · (C + 5)) and targets of pictures with so many objects."""
    draw = np.random.default_rng(seed)
    logits, boxes = draw.normal(0, 2, (len(counts), QUERIES, 3)), draw.uniform(0.1, 0.9, (len(counts), QUERIES, 4))
    rows = []
    for count in counts:
        objects = np.column_stack([draw.integers(0, 2, count), draw.uniform(0.1, 0.9, (count, 4)), np.ones((count, 3))])
        rows.append((objects if count else np.array([[-1, 0, 0, 0, 0, 0, 1, 1]])).astype(np.float32))
    lengths = np.array([len(row) for row in rows], np.int64)
    known = np.ones(len(counts), bool) if labeled is None else np.array(labeled)
    outputs = torch.tensor(np.concatenate([logits, boxes], -1), dtype=torch.float32).flatten(1)
    return outputs, Targets(Ragged(np.concatenate(rows), lengths), known)


def as_transformers(outputs: Tensor, targets: Targets) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    logits, boxes = queries(outputs, 2)
    labels = []
    for row in range(len(targets)):
        objects = torch.as_tensor(targets.values[row])
        objects = objects[objects[:, 0] >= 0]
        labels.append({"class_labels": objects[:, 0].long(), "boxes": objects[:, 1:5]})
    return {"logits": logits, "pred_boxes": boxes}, labels


def task_of(targets: Targets) -> ObjectDetection:
    """Whose training rows are these."""
    task = ObjectDetection(NAMES)
    task.mean_objects = sum(task.counts(targets).values()) / len(targets)
    return task


def test_giou_is_that_of_transformers() -> None:
    draw = torch.Generator().manual_seed(0)
    a, b = (torch.rand(n, 4, generator=draw) * 0.5 + 0.1 for n in (7, 5))
    expected = generalized_box_iou(corners(a), corners(b))
    torch.testing.assert_close(giou(a[:, None], b[None]), expected)
    same = torch.tensor([0.5, 0.5, 0.2, 0.4])
    assert giou(same, same) == pytest.approx(1)
    far = torch.tensor([[0.1, 0.5, 0.2, 0.2], [0.9, 0.5, 0.2, 0.2]])
    assert giou(far[0], far[1]) == pytest.approx(-0.6)  # a hull of 0.2, 0.08 of which are boxes


def test_matches_are_those_of_transformers() -> None:
    outputs, targets = made()
    found, labels = as_transformers(outputs, targets)
    expected = HungarianMatcher(class_cost=1, bbox_cost=5, giou_cost=2)(found, labels)
    lengths = np.array([len(one["boxes"]) for one in labels])
    block = torch.zeros(len(labels), lengths.max(), 5) + 0.5
    for row, one in enumerate(labels):
        block[row, : lengths[row]] = torch.cat([one["class_labels"][:, None], one["boxes"]], 1)
    problem = Softmax(2, 1.0)
    own = match(problem.units(outputs), block[..., 0].long(), block[..., 1:], lengths, problem)
    for row, (query, item) in enumerate(expected):
        assert own[1][own[0] == row].tolist() == query.tolist()
        assert own[2][own[0] == row].tolist() == item.tolist()
    assert (own[0] == 4).sum() == QUERIES


@pytest.mark.parametrize("counts", [(2, 0, 3, 1, 6, 4), (1, 1, 1), (0, 5)])
def test_the_loss_of_the_training_set_is_that_of_transformers(counts: tuple[int, ...]) -> None:
    """Value and gradient, where a mean row's objects and weights are those of the batch."""
    outputs, targets = made(counts)
    outputs.requires_grad_()
    found, labels = as_transformers(outputs, targets)
    config = tiny_detector_config()
    expected, *_ = ForObjectDetectionLoss(
        found["logits"], labels, outputs.device, found["pred_boxes"], config, None, None
    )
    own = task_of(targets).batch_loss(outputs, targets).sum() / len(targets)
    torch.testing.assert_close(own, expected)
    wanted, given = (torch.autograd.grad(loss, outputs, retain_graph=True)[0] for loss in (expected, own))
    torch.testing.assert_close(given, wanted)


def test_the_loss_does_not_depend_on_how_a_batch_is_cut() -> None:
    """Rows without objects are among the parts, and one without a label."""
    outputs, targets = made(labeled=[True, True, True, False, True, True])
    loss = TaskLoss(task_of(targets))
    assert loss.count(Batch(np.arange(6), np.ones(6, int), targets)) == 5

    def gradient(parts: list[list[int]]) -> Tensor:
        given = outputs.clone().requires_grad_()
        for ids in parts:
            batch = Batch(np.array(ids), np.ones(len(ids), int), targets.take(np.array(ids)))
            values = loss({LOGITS: given[ids]}, {}, batch)
            assert values.shape == (loss.count(batch),)
            values.sum().backward()
        assert given.grad is not None
        return given.grad

    whole = gradient([[0, 1, 2, 3, 4, 5]])
    assert whole[3].abs().max() == 0
    assert whole[1].abs().max() > 0
    torch.testing.assert_close(gradient([[1], [0, 3], [5, 4, 2]]), whole)


def test_a_model_that_diverges_still_gives_a_loss() -> None:
    outputs, targets = made()
    outputs[0] = float("nan")
    assert not torch.isfinite(ObjectDetection(NAMES).batch_loss(outputs, targets)[0])


def test_outputs_are_those_of_the_queries_one_after_another() -> None:
    output = {"logits": torch.arange(12.0).view(2, 2, 3), "pred_boxes": torch.arange(100.0, 116.0).view(2, 2, 4)}
    flat = logits_of(output)
    assert flat[1].tolist() == [6, 7, 8, 108, 109, 110, 111, 9, 10, 11, 112, 113, 114, 115]
    logits, boxes = queries(flat, 2)
    assert torch.equal(logits, output["logits"])
    assert torch.equal(boxes, output["pred_boxes"])


def test_queries_of_a_new_model_are_told_apart() -> None:
    """transformers leaves tokens and positions at 0, and all queries would give one answer."""
    model = new_model(tiny_detector_config(), seed=0)
    pixels = torch.rand(2, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    boxes = model(pixel_values=pixels).pred_boxes
    assert boxes.std(1).min() > 1e-5
    again, other = (new_model(tiny_detector_config(), seed=seed) for seed in (0, 1))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert not torch.equal(model.vit.embeddings.detection_tokens, other.vit.embeddings.detection_tokens)


def soft(outputs: Tensor, teacher: Tensor, problem: Problem, temperature: float = 1.0) -> Tensor:
    loss = ForwardKl(temperature=temperature, kind="boxes")
    loss.problem = problem
    rows = np.arange(len(outputs))
    batch = Batch(rows, rows, Targets(Ragged(np.zeros((0, 8), np.float32), np.zeros(len(rows), np.int64)), rows < 0))
    values = loss({LOGITS: outputs}, {LOGITS: teacher}, batch)
    assert values.shape == (loss.count(batch),) == (len(rows),)
    return values


def test_soft_targets_are_of_each_query_by_what_the_teacher_finds() -> None:
    student, _ = made((2, 1), seed=1)
    teacher, _ = made((2, 1), seed=2)
    problem = Softmax(2, 1.5)
    own, other = queries(student, 2)[0], queries(teacher, 2)[0]
    for temperature in (1.0, 3.0):
        p, q = (z.div(temperature).softmax(-1) for z in (other, own))
        kl = (p * (p / q).log()).sum(-1) * temperature**2
        weights = 0.1 + 0.9 * (1 - other.softmax(-1)[..., -1])
        expected = (weights * kl).sum(1) / (1.5 + 0.1 * (QUERIES - 1.5))
        torch.testing.assert_close(soft(student, teacher, problem, temperature), expected)
    assert soft(teacher, teacher, problem).abs().max() < 1e-6


def test_boxes_are_compared_as_far_as_the_teacher_is_sure() -> None:
    student, _ = made((2, 1), seed=1)
    teacher, targets = made((2, 1), seed=2)
    loss = Boxes(Softmax(2, 1.5))
    batch = Batch(np.arange(2), np.ones(2, int), targets)
    values = loss({LOGITS: student}, {LOGITS: teacher}, batch)
    (_, own), (logits, other) = queries(student, 2), queries(teacher, 2)
    sure = 1 - logits.softmax(-1)[..., -1]
    overlap = torch.diagonal(generalized_box_iou(corners(own).flatten(0, 1), corners(other).flatten(0, 1))).view(2, -1)
    expected = (sure * (5 * (own - other).abs().sum(-1) + 2 * (1 - overlap))).sum(1) / 1.5
    torch.testing.assert_close(values, expected)
    assert loss({LOGITS: teacher}, {LOGITS: teacher}, batch).abs().max() < 1e-6


@pytest.mark.parametrize("num_queries", [QUERIES - 2, QUERIES + 3])
def test_other_queries_are_matched_to_what_the_teacher_finds(num_queries: int) -> None:
    """Those of which it is surest first; a student that says the same in another order has nothing to learn."""
    teacher, _ = made((2, 1, 4), seed=3)
    units = Softmax(2, 1.0).units(teacher)
    sure = [0, 3]
    units[:, :, 2] = 6.0
    units[:, sure, 2] = -6.0
    order = torch.randperm(max(num_queries, QUERIES), generator=torch.Generator().manual_seed(0))
    more = torch.cat([units, units[:, :3] * 0.5 + 0.3], 1)
    own = more[:, [i for i in order.tolist() if i in sure or i < num_queries][:num_queries]]
    if num_queries < QUERIES:
        own = torch.cat([units[:, [3, 1, 0]], units[:, [5]]], 1)
    first, second = (one[:, 0] for one in paired(own.flatten(1), teacher, Softmax(2, 1.0)))
    assert first.shape == second.shape == (3, min(num_queries, QUERIES), 7)
    for row in range(3):
        found = {int((units[row] == one).all(1).nonzero()[0]) for one in second[row]}
        assert set(sure) <= found
        for query in sure:
            place = int((second[row] == units[row, query]).all(1).nonzero()[0])
            torch.testing.assert_close(first[row, place], units[row, query])


FINE, COARSE = (6, 8), (3, 4)
"""Patches of a student, 4 pixels wide, and of its teacher, 8 pixels wide."""


def inside_models() -> tuple[Any, Any, Any]:
    """A student of narrower states, finer patches and other queries than its teacher; the loss between them."""
    student = new_model(tiny_detector_config(2, patch_size=4, num_detection_tokens=QUERIES - 1), seed=1)
    teacher = new_model(tiny_detector_config(3, hidden_size=48), seed=2)
    task = ObjectDetection(NAMES, mean_objects=1.5)
    term = settings.BoxFeatures(layers=((1, 2), (2, 3)))
    return student, teacher, build_losses({"it": term}, task, student.config, teacher.config, seed=0)["it"]


def seen(num_rows: int) -> Batch:
    pixels = torch.rand(num_rows, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    targets = Targets(Ragged(np.zeros((0, 8), np.float32), np.zeros(num_rows, np.int64)), np.zeros(num_rows, bool))
    return Batch(np.arange(num_rows), np.full(num_rows, 19), targets, {"pixel_values": pixels})


def states_of(model: Any, names: Any, batch: Batch, teacher: Tensor | None = None) -> dict[Signal, Tensor]:
    found = capture(model, batch.inputs, names)
    return found if teacher is None else {**found, LOGITS: teacher}


def spoken() -> Tensor:
    """What a teacher finds in three pictures: also something tiny, something that lies beside the picture in part or as
    a whole, and one thing twice."""
    outputs, _ = made((1, 2, 3), seed=5)
    units = queries(outputs, 2)[1]
    units[0, 0] = torch.tensor([0.41, 0.3, 1e-3, 2e-3])
    units[0, 1] = torch.tensor([0.95, 0.1, 0.4, 0.5])
    units[0, 2] = torch.tensor([1.4, 0.5, 0.2, 0.2])
    units[1, 3] = units[1, 2]
    return outputs


def covered(box: Any, size: tuple[int, int]) -> np.ndarray:
    """How much of a box (center, width, height) is in each cell of a picture, of sum 1 or 0."""
    x, y, w, h = (float(side) for side in box)
    found = np.zeros(size)
    for row, column in np.ndindex(*size):
        tall = min(y + h / 2, (row + 1) / size[0]) - max(y - h / 2, row / size[0])
        wide = min(x + w / 2, (column + 1) / size[1]) - max(x - w / 2, column / size[1])
        found[row, column] = max(tall, 0) * max(wide, 0)
    return found / found.sum() if found.sum() > 0 else found


def test_features_are_compared_inside_the_boxes_of_the_teacher() -> None:
    student, teacher, loss = inside_models()
    batch, outputs = seen(3), spoken()
    assert isinstance(loss, BoxFeatures)
    assert set(loss.teacher_needs) == {LOGITS, "hidden_states[2]", "hidden_states[3]"}
    own, other = states_of(student, loss.student_needs, batch), states_of(teacher, loss.teacher_needs, batch, outputs)
    values = loss(own, other, batch).detach()
    assert values.shape == (loss.count(batch),) == (3,)
    logits, boxes = (part.double().numpy() for part in queries(outputs, 2))
    for row in range(3):
        worth = np.zeros(COARSE)
        for z, box in zip(logits[row], boxes[row], strict=True):
            sure = 1 - np.exp(z[-1]) / np.exp(z).sum()
            worth = np.maximum(worth, sure * covered(box, COARSE))
        total = 0.0
        for (s, t), linear in zip(((1, 2), (2, 3)), loss.projections, strict=True):
            weight, bias = (one.detach().double().numpy() for one in (linear.weight, linear.bias))
            a = own[Signal.of("hidden_states", s)].view(3, 1 + 48 + QUERIES - 1, 32)[row, 1:49].detach().double()
            b = other[Signal.of("hidden_states", t)].view(3, 1 + 12 + QUERIES, 48)[row, 1:13].detach().double()
            fine, coarse = a.view(*FINE, 32).numpy(), b.view(*COARSE, 48).numpy()
            for y, x in np.ndindex(*COARSE):
                mine = fine[2 * y : 2 * y + 2, 2 * x : 2 * x + 2].mean((0, 1)) @ weight.T + bias
                cosine = mine @ coarse[y, x] / np.linalg.norm(mine) / np.linalg.norm(coarse[y, x])
                total += worth[y, x] * (1 - cosine) / 2
        assert float(values[row]) == pytest.approx(total / 1.5, rel=1e-4)
    alone = [
        loss(
            {signal: states.unflatten(0, (3, -1))[row] for signal, states in own.items()},
            {signal: states.unflatten(0, (3, -1))[row] for signal, states in other.items()},
            replace(batch, row_ids=batch.row_ids[[row]], inputs={"pixel_values": batch.inputs["pixel_values"][[row]]}),
        )
        for row in range(3)
    ]
    torch.testing.assert_close(torch.cat(alone).detach(), values)


@pytest.mark.parametrize("box", [None, (0.4, 0.4, 0.0, 0.0), (1.4, 0.5, 0.2, 0.2)])
def test_where_the_teacher_finds_nothing_there_is_nothing_to_learn(box: Any) -> None:
    """Nor from boxes without a size, or beside the picture."""
    student, teacher, loss = inside_models()
    batch, outputs = seen(2), made((1, 1), seed=5)[0]
    logits, boxes = queries(outputs, 2)
    if box is None:
        logits[0, :, -1] = 200.0
    else:
        boxes[0] = torch.tensor(box)
    own, other = states_of(student, loss.student_needs, batch), states_of(teacher, loss.teacher_needs, batch, outputs)
    for states in own.values():
        states.retain_grad()
    values = loss(own, other, batch)
    assert values[0] == 0 < values[1]
    values.sum().backward()
    for states in own.values():
        nothing, something = states.grad.unflatten(0, (2, -1))
        assert not nothing.any()
        assert something[1:49].any()
        assert something.isfinite().all()
        assert not something[[0, *range(49, len(something))]].any()
