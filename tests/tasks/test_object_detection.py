"""Average precision as pycocotools has it, weighted and not; answers, agreement and what is told of objects."""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from kit.pictures import png
from kit.scenes import NAMES
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from raydistill.data.pictures import Picture
from raydistill.data.prepare import write_batch
from raydistill.evaluate.compare import Predictions
from raydistill.evaluate.disagreements import describe_rows
from raydistill.tasks import task_of
from raydistill.tasks.object_detection import ObjectDetection
from raydistill.tasks.object_detection.detections import Detections
from raydistill.tasks.object_detection.reading import CLASS, CROWD, NOTHING, crowds, objects, with_crowds
from raydistill.tasks.object_detection.scoring import SIZES, BoxScores
from raydistill.tasks.targets import Array, Ragged, Targets

C, Q = 3, 12
CLASSES = ("a", "b", "c")


def made(num_rows: int = 30, seed: int = 0, crowds: float = 0.4) -> tuple[Array, Ragged]:
    """Outputs (N, Q · (C + 5)) near the objects, some of them twice, and objects of all sizes; some rows have none. A
    share of them are crowds, of almost twice the size of what is found in them."""
    draw = np.random.default_rng(seed)
    rows, outputs = [], draw.normal(0, 1, (num_rows, Q, C + 5))
    for row in range(num_rows):
        size = draw.integers(60, 800, 2)
        count = int(draw.integers(0, 6))
        boxes = np.concatenate([draw.uniform(0.3, 0.7, (count, 2)), draw.uniform(0.03, 0.5, (count, 2))], 1)
        classes = draw.integers(0, C - 1, count)  # the last one has no object
        area = boxes[:, 2:].prod(1) * size.prod() * draw.uniform(0.5, 1, count)
        is_crowd = draw.random(count) < crowds
        around = np.where(is_crowd[:, None], boxes * (1, 1, 1.4, 1.4), boxes)
        own = np.column_stack([np.where(is_crowd, CROWD - classes, classes), around, area, np.tile(size, (count, 1))])
        rows.append((own if count else np.array([[-1, 0, 0, 0, 0, 0, *size]])).astype(np.float32))
        outputs[row, :, C + 1 :] = draw.uniform(0.1, 0.6, (Q, 4))
        for query in range(min(2 * count, Q)):
            outputs[row, query, C + 1 :] = boxes[query // 2] * draw.uniform(0.9, 1.1, 4)
            outputs[row, query, classes[query // 2]] += draw.normal(2, 2)
    lengths = np.array([len(own) for own in rows], np.int64)
    return outputs.reshape(num_rows, -1).astype(np.float32), Ragged(np.concatenate(rows), lengths)


def coco_values(outputs: Array, targets: Ragged, rows: Array) -> tuple[dict[str, float], Array]:
    """What pycocotools says of these pictures, each as often as it stands among them; average precisions (C, sizes)."""
    annotations: list[dict[str, Any]] = []
    detections: list[dict[str, Any]] = []
    found = Detections(outputs, C)
    for image, row in enumerate(rows, 1):
        width, height = targets[int(row)][0][6:8].astype(float)
        scale = np.array([width, height, width, height])
        for label, *box, area, _, _ in targets[int(row)].astype(float):
            if label == NOTHING:
                continue
            sides, is_crowd = np.array(box) * scale, label <= CROWD
            one = {"image_id": image, "category_id": int(CROWD - label if is_crowd else label) + 1, "area": area}
            one["iscrowd"] = int(is_crowd)
            annotations.append({**one, "bbox": [*(sides[:2] - sides[2:] / 2), *sides[2:]], "id": len(annotations) + 1})
        for label, score, box in zip(*found.found(int(row), 0.0), strict=True):
            sides = box * scale
            one = {"image_id": image, "category_id": int(label) + 1, "score": float(score)}
            detections.append({**one, "bbox": [*(sides[:2] - sides[2:] / 2), *sides[2:]]})
    with redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "info": {},
            "images": [{"id": i} for i in range(1, len(rows) + 1)],
            "annotations": annotations,
            "categories": [{"id": i + 1} for i in range(C)],
        }
        coco.createIndex()
        judge = COCOeval(coco, coco.loadRes(detections), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    names = ("map", "map_50", "map_75", "map_small", "map_medium", "map_large", "_", "_", "mar")
    precision = judge.eval["precision"][..., -1]  # t, recall, class, size
    precision = np.where(precision < 0, np.nan, precision).mean((0, 1))
    return dict(zip(names, judge.stats, strict=False)), precision


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5])
def test_metrics_are_those_of_pycocotools(share: float) -> None:
    """With crowds among the objects, and without."""
    outputs, targets = made(40, crowds=share)
    assert 0.5 * share <= len(crowds(targets).flat) / len(with_crowds(targets)[0].flat) <= 1.5 * share
    scores = BoxScores(outputs, targets, CLASSES, 0.5)
    expected, precision = coco_values(outputs, targets, np.arange(40))
    assert 0.1 < expected["map"] < 0.8
    for name, value in scores.values.items():
        assert value == pytest.approx(expected[name], abs=1e-9), name
    for place in range(len(SIZES)):
        own = scores.averages(np.ones((40, 1)), place)[0].mean(1)[:, 0]
        np.testing.assert_allclose(own, precision[:, place], atol=1e-9)
    told = scores.details()["per_class"]
    assert [one["map"] for one in told[:2]] == pytest.approx(precision[:2, 0])
    assert told[2]["map"] is None


def test_a_resample_is_worth_what_its_pictures_are() -> None:
    """Pictures drawn twice or never, ten times over at once."""
    outputs, targets = made(16, seed=1)
    drawn = np.random.default_rng(0).integers(0, 16, (10, 16))
    weights = np.stack([np.bincount(rows, minlength=16) for rows in drawn], 1).astype(np.float32)
    found = BoxScores(outputs, targets, CLASSES, 0.5).weighted(weights)
    for sample, rows in enumerate(drawn):
        expected, _ = coco_values(outputs, targets, rows)
        for name, values in found.items():
            wanted = np.nan if expected[name] < 0 else expected[name]
            np.testing.assert_allclose(values[sample], wanted, atol=1e-6, err_msg=f"{name} of {rows}")
    some = BoxScores(outputs, targets, CLASSES, 0.5).weighted(weights, {"map"})
    np.testing.assert_array_equal(some["map"], found["map"])


def test_a_size_has_both_its_ends() -> None:
    """One find too many of 32 by 32 pixels counts against the small objects and against the medium ones."""
    outputs = np.zeros((1, 2, 6), np.float32)
    outputs[0, :, 0] = 1, 2
    outputs[0, :, 2:] = (0.125, 0.125, 0.25, 0.25), (0.5, 0.5, 0.5, 0.5)
    for side, place in ((0.25, "small"), (0.625, "medium")):
        outputs[0, 0, 2:] = (side / 2, side / 2, side, side)
        own = [0, *outputs[0, 0, 2:], (64 * side) ** 2, 64, 64]
        targets = Ragged(np.array([own], np.float32), np.array([1]))
        found = BoxScores(outputs.reshape(1, -1), targets, ("a",), 0.5).values
        assert found[f"map_{place}"] == pytest.approx(0.5)


def test_only_a_hundred_detections_of_a_class_count() -> None:
    draw = np.random.default_rng(0)
    outputs = np.zeros((1, 120, 6), np.float32)
    outputs[0, :, 0], outputs[0, :, 2:] = draw.uniform(1, 2, 120), (0.5, 0.5, 0.01, 0.01)
    last = outputs[0, :, 0].argsort()[0]
    outputs[0, last, 2:] = (0.2, 0.2, 0.2, 0.2)
    targets = Ragged(np.array([[0, 0.2, 0.2, 0.2, 0.2, 400, 100, 100]], np.float32), np.array([1]))
    assert BoxScores(outputs.reshape(1, -1), targets, ("a",), 0.5).values["map"] == 0
    outputs[0, last, 0] = 3
    assert BoxScores(outputs.reshape(1, -1), targets, ("a",), 0.5).values["map"] == pytest.approx(1)


def said(*queries: tuple[int, float, tuple[float, ...]]) -> Array:
    """Outputs (1, Q · 7) of a model of two classes that is so sure of the class of each query."""
    found = np.zeros((1, 4, 7), np.float32)
    found[0, :, 2], found[0, :, 3:] = 9, (0.5, 0.5, 0.1, 0.1)
    for i, (label, score, box) in enumerate(queries):
        rest = (1 - score) / 2
        found[0, i, :3] = np.log(rest)
        found[0, i, label] = np.log(score)
        found[0, i, 3:] = box
    return found.reshape(1, -1)


LEFT, RIGHT, NEAR = (0.2, 0.5, 0.2, 0.4), (0.8, 0.5, 0.2, 0.4), (0.28, 0.5, 0.2, 0.4)
TWO = Ragged(np.array([[0, *LEFT, 32, 20, 10], [1, *RIGHT, 32, 20, 10]], np.float32), np.array([2]))


def test_a_row_that_is_shown_has_the_boxes_of_label_student_and_teacher(tmp_path: Path) -> None:
    task, student, teacher = ObjectDetection(NAMES, threshold=0.5), said((0, 0.9, LEFT)), said((1, 0.8, RIGHT))
    image = png(Image.new("RGB", (20, 10)))
    columns = {"example_id": pa.array([0]), "name": pa.array(["one"]), "image": pa.array([image])}
    write_batch(tmp_path / "test.arrow", columns)
    outputs, tasks = {"student": student, "teacher": teacher}, {"student": task, "teacher": task}
    kept = Predictions(("0",), Targets(TWO, np.ones(1, bool)), np.arange(1), outputs, tasks)
    (row,) = describe_rows([0], kept, tmp_path / "test.arrow")
    expected = {"label": task.marked_target(TWO[0]), "student": task.marked(student)[0]}
    assert row["marks"] == expected | {"teacher": task.marked(teacher)[0]}
    assert [one["label"] for marks in row["marks"].values() for one in marks] == [*NAMES, *NAMES]


def test_answers_are_objects_in_pixels_the_surest_first() -> None:
    task = ObjectDetection(NAMES, threshold=0.5)
    outputs = said((1, 0.6, RIGHT), (0, 0.9, LEFT), (0, 0.4, NEAR))
    picture = Picture("one", png(Image.new("RGB", (20, 10))))
    for bound in (task.of_rows([picture], None), task.of_rows(["one"], TWO)):
        (answer,) = bound.answers(outputs)
        assert [one["label"] for one in answer["objects"]] == ["bright", "dark"]
        assert [one["score"] for one in answer["objects"]] == pytest.approx([0.9, 0.6])
        assert answer["objects"][0]["box"] == pytest.approx({"xmin": 2, "ymin": 3, "xmax": 6, "ymax": 7})
    assert task.spoken(outputs) == [("1 bright, 1 dark", None)]
    first, second = task.marked(outputs)[0]
    assert (first["label"], second["label"]) == ("bright", "dark")
    assert first["box"] == pytest.approx([0.1, 0.3, 0.3, 0.7])
    assert first["score"] == pytest.approx(0.9)
    assert task.marked_target(TWO[0])[1] == {"label": "dark", "score": None, "box": [0.7, 0.3, 0.9, 0.7]}
    assert task.spoken(said()) == [("nothing", None)]
    assert task.spoken_target(TWO[0]) == "1 bright, 1 dark"
    assert task.spoken_target(np.array([[-1, 0, 0, 0, 0, 0, 5, 5]])) == "nothing"


def test_models_agree_on_objects_that_both_find() -> None:
    task = ObjectDetection(NAMES)
    both, one = said((0, 0.9, LEFT), (1, 0.8, RIGHT)), said((0, 0.7, LEFT), (0, 0.6, RIGHT))
    assert task.agreement(both, both) == 1
    assert task.agreement(said(), said()) == 1
    assert task.agreement(both, one) == 0.5
    np.testing.assert_allclose(task.disagreements(both, one), [1.4], atol=1e-6)
    assert task.disagreements(both, both).tolist() == [0]
    np.testing.assert_allclose(task.errors(one, TWO), [1.6], atol=1e-6)  # one of another class, and one missed
    assert task.errors(both, TWO).tolist() == [0]


def test_errors_are_told_by_their_kind() -> None:
    outputs = said((0, 0.9, LEFT), (0, 0.8, NEAR), (0, 0.7, RIGHT), (1, 0.6, (0.5, 0.1, 0.1, 0.1)))
    found = BoxScores(outputs, TWO, NAMES, 0.5).details()
    assert found["box_errors"] == {"right": 1, "misplaced": 1, "confused": 1, "invented": 1, "missed": 1}
    first, second = found["per_class"]
    assert (first["precision"], first["recall"], first["support"], first["predicted"]) == (1 / 3, 1.0, 1, 3)
    assert (second["precision"], second["recall"], second["f1"]) == (0, 0, 0)


def test_answers_in_a_crowd_are_neither_right_nor_wrong() -> None:
    """By half of themselves, of its class, and only where they find no object; they find it all the same."""
    crowd = [CROWD, 0.3, 0.5, 0.4, 0.4, 32, 20, 10]
    targets = Ragged(np.array([[0, *LEFT, 32, 20, 10], crowd], np.float32), np.array([2]))
    outputs = said((0, 0.9, LEFT), (0, 0.8, LEFT), (0, 0.7, (0.55, 0.5, 0.2, 0.4)), (1, 0.6, LEFT))
    found = BoxScores(outputs, targets, NAMES, 0.5).details()
    assert found["box_errors"] == {"right": 1, "misplaced": 0, "confused": 1, "invented": 1, "missed": 0}
    first, second = found["per_class"]
    assert (first["predicted"], first["support"], first["precision"], first["recall"]) == (2, 1, 0.5, 1.0)
    assert (second["predicted"], second["support"]) == (1, 0)
    task = ObjectDetection(NAMES)
    np.testing.assert_allclose(task.errors(outputs, targets), [1.3], atol=1e-6)
    assert task.spoken_target(targets[0]) == "1 bright"
    assert [one["label"] for one in task.marked_target(targets[0])] == ["bright"]
    assert task.counts(Targets(targets, np.ones(1, bool))) == {"bright": 1, "dark": 0}
    alone = Ragged(np.array([crowd], np.float32), np.array([1]))
    assert BoxScores(said((0, 0.9, LEFT)), alone, NAMES, 0.5).details()["box_errors"]["missed"] == 0
    assert task.spoken_target(alone[0]) == "nothing"


def test_a_crowd_is_no_target_in_training() -> None:
    outputs, targets = made(8, crowds=0.5)
    task, labeled = ObjectDetection(CLASSES), np.ones(8, bool)
    there = objects(targets)
    rows = [
        there[row] if len(there[row]) else np.array([[NOTHING, 0, 0, 0, 0, 0, 9, 9]], np.float32) for row in range(8)
    ]
    without = Ragged.of(rows, there.flat[:0])
    assert len(crowds(targets).flat) > 3
    losses = [task.batch_loss(torch.tensor(outputs), Targets(own, labeled)) for own in (targets, without)]
    torch.testing.assert_close(*losses)


def f1_of(scores: BoxScores) -> float:
    """Of all answers at an IoU of 0.5."""
    errors = scores.details()["box_errors"]
    given = sum(errors[kind] for kind in ("right", "misplaced", "confused", "invented"))
    return 2 * errors["right"] / (given + errors["right"] + errors["missed"])


@pytest.mark.parametrize("seed", range(4))
def test_no_threshold_has_a_better_f1(seed: int) -> None:
    """Each score tried; average precision is the same whatever the threshold is."""
    outputs, targets = made(12, seed)
    cuts = [*Detections(outputs, C).scores.ravel(), 1.0]
    tried = max(f1_of(BoxScores(outputs, targets, CLASSES, cut)) for cut in cuts)
    fitted = ObjectDetection(CLASSES).fitted(outputs, targets)
    found = fitted.scores(outputs, targets)
    assert f1_of(found) == pytest.approx(tried)
    assert f1_of(found) > f1_of(ObjectDetection(CLASSES).scores(outputs, targets))
    assert found.details()["threshold"] == fitted.threshold == fitted.model_settings()["object_detection"]["threshold"]
    np.testing.assert_equal(found.values, ObjectDetection(CLASSES).scores(outputs, targets).values)


def test_a_threshold_by_hand_stays_and_what_finds_nothing_has_the_usual_one() -> None:
    outputs, targets = made(12)
    assert ObjectDetection(CLASSES, threshold=0.25).fitted(outputs, targets).threshold == 0.25
    task, crowd = ObjectDetection(NAMES), np.array([[CROWD, *LEFT, 32, 20, 10]], np.float32)
    for own in (TWO, Ragged(crowd, np.array([1]))):
        assert task.fitted(said((0, 0.9, (0.5, 0.1, 0.1, 0.1))), own).threshold == 0.5
    assert "threshold" not in task.model_settings()["object_detection"]
    fitted = task.fitted(said((0, 0.9, LEFT), (0, 0.8, (0.5, 0.1, 0.1, 0.1)), (1, 0.6, RIGHT), (1, 0.5, NEAR)), TWO)
    assert fitted.threshold == pytest.approx(0.55)
    assert task.pipeline_arguments(0) + fitted.pipeline_arguments(0) == ["threshold=0.5", "threshold=0.55"]


def test_each_model_answers_from_its_own_threshold_on() -> None:
    sure, less = said((0, 0.9, LEFT), (1, 0.8, RIGHT)), said((0, 0.4, LEFT), (1, 0.45, RIGHT))
    task, low = ObjectDetection(NAMES), ObjectDetection(NAMES, threshold=0.2)
    assert (task.agreement(sure, less), task.agreement(sure, less, low)) == (0, 1)
    np.testing.assert_allclose(task.disagreements(sure, less), [1.7], atol=1e-6)
    assert task.disagreements(sure, less, low).tolist() == [0]


def test_a_task_is_rebuilt_from_its_facts_and_from_a_model() -> None:
    task = ObjectDetection(CLASSES, mean_objects=2.5, threshold=0.3)
    settings = task.model_settings()
    for again in (task_of(task.facts()), ObjectDetection.of_model(CLASSES, settings)):
        assert again.facts() == task.facts()


def test_outputs_and_targets_follow_the_classes() -> None:
    outputs, targets = made(8)
    first, order = ObjectDetection(CLASSES), [2, 0, 1]
    second = first.reordered(order)
    moved = first.reordered_outputs(outputs, order)
    known = Targets(targets, np.ones(8, bool))
    again, _ = second.translate(known, first)
    assert second.outputs == ("c", "a", "b")
    assert second.scores(moved, again.values).values["map"] == first.scores(outputs, targets).values["map"]
    found, expected = (np.unique(crowds(own).flat[:, CLASS], return_counts=True) for own in (again.values, targets))
    assert dict(zip(*found, strict=True)) == {
        order.index(int(one)): count for one, count in zip(*expected, strict=True)
    }
    assert second.counts(again) == {name: first.counts(known)[name] for name in second.outputs}


def test_a_part_of_a_picture_has_the_objects_that_it_shows() -> None:
    """Its left half, turned: what lies on the right, or reaches in by less than a quarter, is gone."""
    size = (200, 100)
    first = [[0, 0.2, 0.5, 0.2, 0.4, 800, *size], [1, 0.5, 0.5, 0.2, 0.4, 600, *size], [0, 0.58, 0.5, 0.2, 1, 1, *size]]
    rows = [first, [[-1, 0, 0, 0, 0, 0, *size]], [[2, 0.9, 0.5, 0.1, 0.1, 5, *size]], []]
    first.append([CROWD - 1, 0.4, 0.5, 0.2, 0.4, 800, *size])
    flat = np.array([unit for row in rows for unit in row], np.float32)
    targets = Targets(Ragged(flat, np.array([len(row) for row in rows])), np.array([True, True, True, False]))
    half, whole = np.tile([0, 0, 0.5, 1.0], (4, 1)), np.tile([0, 0, 1.0, 1.0], (4, 1))
    task, yes, no = ObjectDetection(CLASSES), np.ones(4, bool), np.zeros(4, bool)
    found = task.seen(targets, half, yes)
    assert found.labeled.tolist() == targets.labeled.tolist()
    assert found.values.lengths.tolist() == [3, 1, 1, 0]
    expected = [[0, 0.6, 0.5, 0.4, 0.4, 1600, *size], [1, 0.1, 0.5, 0.2, 0.4, 600, *size]]
    expected.append([CROWD - 1, 0.2, 0.5, 0.4, 0.4, 1600, *size])
    np.testing.assert_allclose(found.values[0], expected, rtol=1e-5)
    for row in (1, 2):
        assert found.values[row].tolist() == [[-1, 0, 0, 0, 0, 0, *size]]
    np.testing.assert_allclose(task.seen(targets, whole, no).values.flat, flat, rtol=1e-5)
    twice = task.seen(task.seen(targets, whole, yes), whole, yes)
    np.testing.assert_allclose(twice.values.flat, flat, rtol=1e-5)
