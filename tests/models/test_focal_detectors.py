"""RT-DETR and its kin: their loss against transformers' own, heads for other classes, and what is read of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kit.scenes import FOCAL_CONFIGS, NAMES, QUERIES, save_tiny_focal, tiny_focal_config
from torch import Tensor
from transformers import AutoImageProcessor, AutoModelForObjectDetection
from transformers.loss.loss_rt_detr import RTDetrForObjectDetectionLoss

from raydistill.data.batches import Batch
from raydistill.losses import Boxes, ForwardKl
from raydistill.models import detection
from raydistill.models.capture import capture
from raydistill.models.detection import Focal
from raydistill.models.head import OBJECTS, Head, class_parameters, num_queries, reorder_outputs
from raydistill.models.load import load_model, new_model
from raydistill.models.pictures import look
from raydistill.models.signals import LOGITS, Signal
from raydistill.tasks import Targets
from raydistill.tasks.object_detection import ObjectDetection
from raydistill.tasks.object_detection.detections import Detections
from raydistill.tasks.targets import Ragged

COUNTS = (2, 0, 3, 1, QUERIES + 4)
KINDS = tuple(FOCAL_CONFIGS)


def pictures(num_rows: int, seed: int = 0) -> Tensor:
    return torch.rand(num_rows, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


def objects(counts: tuple[int, ...] = COUNTS, seed: int = 0) -> tuple[Targets, list[dict[str, Tensor]]]:
    """Targets of pictures with so many objects, and as transformers has them."""
    draw, rows, labels = np.random.default_rng(seed), [], []
    for count in counts:
        own = np.column_stack([draw.integers(0, 2, count), draw.uniform(0.2, 0.6, (count, 4)), np.ones((count, 3))])
        rows.append((own if count else np.array([[-1, 0, 0, 0, 0, 0, 1, 1]])).astype(np.float32))
        told = torch.tensor(own, dtype=torch.float32)
        labels.append({"class_labels": told[:, 0].long(), "boxes": told[:, 1:5]})
    lengths = np.array([len(row) for row in rows], np.int64)
    return Targets(Ragged(np.concatenate(rows), lengths), np.ones(len(counts), bool)), labels


def task_of(targets: Targets) -> ObjectDetection:
    """Whose training rows are these."""
    mean = sum(ObjectDetection(NAMES).counts(targets).values()) / len(targets)
    return ObjectDetection(NAMES, mean_objects=mean, focal=True)


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_of_the_training_set_is_that_of_transformers(kind: str) -> None:
    """Value and gradient at every parameter; theirs is the sum over the layers of the decoder and the proposals,
    without D-FINE's own two terms."""
    targets, labels = objects()
    model = new_model(tiny_focal_config(kind, num_denoising=0), seed=0).train()
    found = model(pixel_values=pictures(len(COUNTS)))
    expected, *_ = RTDetrForObjectDetectionLoss(
        found.logits,
        labels,
        torch.device("cpu"),
        found.pred_boxes,
        model.config,
        found.intermediate_logits,
        found.intermediate_reference_points,
        enc_topk_logits=found.enc_topk_logits,
        enc_topk_bboxes=found.enc_topk_bboxes,
    )
    stages = found.intermediate_logits.shape[1] + 1
    outputs = capture(model, {"pixel_values": pictures(len(COUNTS))}, [LOGITS])[LOGITS]
    assert outputs.shape == (len(COUNTS), stages, (QUERIES + 2) * 6)
    own = task_of(targets).batch_loss(outputs, targets).sum() / len(targets)
    torch.testing.assert_close(own * stages, expected)
    parameters = [p for p in model.parameters() if p.requires_grad]
    wanted, given = (
        torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True) for loss in (expected, own * stages)
    )
    for name, a, b in zip((n for n, p in model.named_parameters() if p.requires_grad), wanted, given, strict=True):
        assert (a is None) == (b is None), name
        if a is not None and b is not None:
            torch.testing.assert_close(b, a, rtol=1e-3, atol=1e-5, msg=name)
    proposals = dict(zip((n for n, p in model.named_parameters() if p.requires_grad), given, strict=True))
    gradient = proposals["model.enc_score_head.weight"]
    assert gradient is not None  # which picks the queries, and learns by its own stage alone
    assert gradient.abs().max() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    """The likeliest of all classes of all queries."""
    folder = save_tiny_focal(tmp_path / kind, kind)
    model = AutoModelForObjectDetection.from_pretrained(folder).eval()
    with torch.no_grad():
        output = model(pixel_values=pictures(3))
        outputs = capture(model, {"pixel_values": pictures(3)}, [LOGITS])[LOGITS]
    assert outputs.shape == (3, LOGITS.width(model.config)) == (3, num_queries(model.config) * 6)
    processor = AutoImageProcessor.from_pretrained(folder)
    expected = processor.post_process_object_detection(output, threshold=0.0, target_sizes=[(1, 1)] * 3)
    found = Detections(outputs.numpy(), 2, focal=True)
    for row, one in enumerate(expected):
        classes, scores, boxes = found.found(row, 0.0)
        order = torch.argsort(-one["scores"], stable=True)
        assert classes.tolist() == one["labels"][order].tolist()
        np.testing.assert_allclose(scores, one["scores"][order], rtol=1e-5)
        corners = np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1)
        np.testing.assert_allclose(corners, one["boxes"][order], atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_classes_in_another_order_give_the_same_answers(kind: str) -> None:
    model = new_model(tiny_focal_config(kind, num_labels=3), seed=0)
    inputs = {"pixel_values": pictures(2)}
    with torch.no_grad():
        before = model(**inputs)
        reorder_outputs(model, [2, 0, 1])
        after = model(**inputs)
    torch.testing.assert_close(after.logits, before.logits[..., [2, 0, 1]])
    torch.testing.assert_close(after.pred_boxes, before.pred_boxes)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("names", [("a", "b", "c"), ("a", "b")])
def test_a_head_for_other_classes_is_new_and_all_else_is_kept(
    kind: str, names: tuple[str, ...], tmp_path: Path
) -> None:
    """Also where as many classes would fit."""
    folder = save_tiny_focal(tmp_path / "other", kind)
    other = AutoModelForObjectDetection.from_pretrained(folder)
    model = load_model(folder, Head(names, None, kind=OBJECTS))
    own, kept = class_parameters(model), dict(other.named_parameters())
    assert len(own) == 7
    for name, parameter in model.named_parameters():
        if name in own:
            assert parameter.shape[0] - len(names) == ("denoising" in name)
            assert "denoising" in name or parameter.shape != kept[name].shape or not torch.equal(parameter, kept[name])
        else:
            assert torch.equal(parameter, kept[name]), name
    with torch.no_grad():
        scores = model(pixel_values=pictures(2)).logits.sigmoid()
    assert scores.max() < 0.5


def test_hidden_states_are_the_maps_of_the_encoder() -> None:
    for kind in KINDS:
        model = new_model(tiny_focal_config(kind), seed=0)
        sight = look(model.config, (3, 64, 64))
        assert [(state.positions, state.width) for state in sight.states] == [(64, 16), (16, 16), (4, 16)]
        assert [grid.size for grid in sight.grids] == [(8, 8), (4, 4), (2, 2)]
        assert not sight.is_stack
        signals = [Signal.of("hidden_states", i) for i in range(3)]
        with torch.no_grad():
            found = capture(model, {"pixel_values": pictures(2)}, signals)
            maps = model(pixel_values=pictures(2)).encoder_last_hidden_state
        for signal, expected in zip(signals, maps, strict=True):
            torch.testing.assert_close(found[signal], expected.permute(0, 2, 3, 1).reshape(-1, 16))


def made(num_rows: int, num_queries: int, seed: int, stages: int = 0) -> Tensor:
    draw = np.random.default_rng(seed)
    shape = (num_rows, *([stages] if stages else []), num_queries)
    units = np.concatenate([draw.normal(-1, 2, (*shape, 2)), draw.uniform(0.2, 0.6, (*shape, 4))], -1)
    return torch.tensor(units, dtype=torch.float32).flatten(-2)


def values_of(loss: Any, student: Tensor, teacher: Tensor) -> Tensor:
    rows = np.arange(len(student))
    batch = Batch(rows, rows, Targets(Ragged(np.zeros((0, 8), np.float32), np.zeros(len(rows), np.int64)), rows < 0))
    values: Tensor = loss({LOGITS: student}, {LOGITS: teacher}, batch)
    assert values.shape == (len(rows),)
    return values


def test_what_a_teacher_finds_is_found_by_all_stages_whatever_the_order_of_queries() -> None:
    """By loops: KL of the two outcomes of each class, and L1 and GIoU of boxes, of the queries that the last layer
    pairs."""
    problem, temperature = Focal(2, 1.5), 2.0
    teacher = made(2, 5, seed=1)
    order = torch.tensor([3, 1, 4, 0, 2])
    last = problem.units(teacher)[:, order]
    near = last + 0.01 * torch.randn(last.shape, generator=torch.Generator().manual_seed(0))
    other = problem.stages(made(2, 5, seed=2, stages=2))
    student = torch.cat([near[:, None], other], 1).flatten(2)
    soft, boxes = ForwardKl(temperature=temperature, kind="boxes"), Boxes(problem)
    soft.problem = problem
    expected = torch.zeros(2, 2, dtype=torch.float64)
    stages, units = problem.stages(student).double(), problem.units(teacher).double()
    for row in range(2):
        for stage in range(3):
            for place in range(5):
                own, its = stages[row, stage, place], units[row, order[place]]
                sure = its[:2].sigmoid().max()
                p, q = ((one[:2] / temperature).sigmoid() for one in (its, own))
                kl = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum() * temperature**2
                expected[0, row] += (0.1 + 0.9 * sure) * kl / 3 / (1.5 + 0.1 * 3.5)
                (x, y, w, h), (u, v, s, t) = own[2:], its[2:]
                wide = min(x + w / 2, u + s / 2) - max(x - w / 2, u - s / 2)
                high = min(y + h / 2, v + t / 2) - max(y - h / 2, v - t / 2)
                inside = max(wide, 0) * max(high, 0)
                hull = max(x + w / 2, u + s / 2) - min(x - w / 2, u - s / 2)
                hull = hull * (max(y + h / 2, v + t / 2) - min(y - h / 2, v - t / 2))
                union = w * h + s * t - inside
                far = 5 * (own[2:] - its[2:]).abs().sum() + 2 * (1 - inside / union + (hull - union) / hull)
                expected[1, row] += sure * far / 3 / 1.5
    torch.testing.assert_close(values_of(soft, student, teacher).double(), expected[0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(values_of(boxes, student, teacher).double(), expected[1], rtol=1e-4, atol=1e-6)
    same = values_of(soft, last.flatten(1), teacher)
    assert same.abs().max() < 1e-5


def test_fewer_queries_learn_what_the_teacher_is_surest_of() -> None:
    problem = Focal(2, 1.0)
    units = problem.units(made(3, 6, seed=3))
    units[..., :2] = -6.0
    units[:, [1, 4], 0] = 4.0
    loss = ForwardKl(kind="boxes")
    loss.problem = problem
    student = units[:, [4, 0, 1]].flatten(1)
    assert values_of(loss, student, units.flatten(1)).abs().max() < 1e-4
    assert values_of(loss, units[:, [0, 2, 3]].flatten(1), units.flatten(1)).min() > 1


def test_queries_that_find_least_are_paired_as_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each once, whatever is matched; what the teacher is sure of is matched by what it finds."""
    monkeypatch.setattr(detection, "MATCHED", 2)
    problem = Focal(2, 1.0)
    units = problem.units(made(3, 6, seed=4))
    units[..., :2] = -6.0 - torch.rand(3, 6, 2, generator=torch.Generator().manual_seed(0))
    units[:, [1, 4], 0] = 4.0
    student = units[:, [4, 0, 1, 5, 3]]
    first, second = detection.match_queries(student, units, problem)
    assert first.shape == second.shape == (3, 5)
    for row in range(3):
        assert sorted(first[row].tolist()) == list(range(5))
        assert len(set(second[row].tolist())) == 5
        assert {0: 4, 2: 1}.items() <= dict(zip(first[row].tolist(), second[row].tolist(), strict=True)).items()
