"""Pictures seen otherwise: crops and mirror images by hand, drawn by seed, epoch and row, and rows that show them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kit.pictures import picture_config
from kit.scenes import scene_config
from PIL import Image

from raydistill.config.data import Augment
from raydistill.config.loading import load_config
from raydistill.data.pictures import Processor
from raydistill.data.rows import PictureRows, Rows
from raydistill.data.views import RATIO, SMALLEST, TRIES, Views, boxes, enlarged
from raydistill.errors import ConfigError
from raydistill.pipeline.plan import make_plan
from raydistill.pipeline.prepare import Prepared, prepare
from raydistill.storage.storage import Storage
from raydistill.tasks import Targets
from raydistill.tasks.object_detection import ObjectDetection
from raydistill.tasks.object_detection.crops import LEAST_VISIBLE
from raydistill.tasks.object_detection.reading import AREA, BOX, objects
from raydistill.tasks.targets import Array, Ragged

DRAW = np.random.default_rng(0)
PIXELS = DRAW.integers(0, 256, (40, 3, 24, 32), dtype=np.uint8)
NUMBERS = np.arange(40)
BOTH = Views(SMALLEST, 0.5)


def test_a_crop_is_what_pillow_makes_of_its_box() -> None:
    """Within a grey level: Pillow counts in whole numbers."""
    starts, sizes = boxes(DRAW.random((40, 2 * TRIES + 2)), 24, 32, SMALLEST)
    made = enlarged(PIXELS, starts, sizes)
    assert len(np.unique(sizes, axis=0)) > 20
    for picture, found, (top, left), (height, width) in zip(PIXELS, made, starts, sizes, strict=True):
        whole = Image.fromarray(picture.transpose(1, 2, 0))
        box = (left, top, left + width, top + height)
        expected = np.asarray(whole.crop(box).resize((32, 24), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
        assert np.abs(found.astype(int) - expected).max() <= 1


def test_the_whole_picture_is_a_crop_that_changes_nothing() -> None:
    nowhere, all_of_it = np.zeros((40, 2), int), np.tile([24, 32], (40, 1))
    np.testing.assert_array_equal(enlarged(PIXELS, nowhere, all_of_it), PIXELS)
    np.testing.assert_array_equal(Views(None, 0.0).seen(PIXELS, NUMBERS, (0, 0)), PIXELS)


def test_a_flip_turns_half_of_the_pictures_left_to_right() -> None:
    numbers = np.arange(4000)
    pixels = np.arange(4000 * 2, dtype=np.int64).reshape(4000, 1, 1, 2).astype(np.uint8)
    found = Views(None, 0.5).seen(pixels, numbers, (3, 1))
    is_mirrored = (found == pixels[..., ::-1]).all((1, 2, 3))
    assert ((found == pixels).all((1, 2, 3)) ^ is_mirrored).all()
    assert is_mirrored.mean() == pytest.approx(0.5, abs=0.03)
    np.testing.assert_array_equal(Views(None, 1.0).seen(pixels, numbers, (3, 1)), pixels[..., ::-1])


@pytest.mark.parametrize(("height", "width"), [(224, 224), (160, 320), (300, 100)])
def test_boxes_are_of_the_sizes_and_places_that_are_meant(height: int, width: int) -> None:
    """Areas and ratios are uniform between their bounds where nothing is in their way, places all inside."""
    starts, sizes = boxes(np.random.default_rng(1).random((20_000, 2 * TRIES + 2)), height, width, 0.2)
    assert (starts >= 0).all()
    assert (starts + sizes <= [height, width]).all()
    ratios, areas = sizes[:, 1] / sizes[:, 0], sizes.prod(1) / (height * width)
    assert ratios.max() <= RATIO * 1.05
    assert ratios.min() >= 0.95 / RATIO
    assert areas.min() > 0.19
    small = areas < 0.3  # such boxes always fit
    assert np.log(ratios[small]).mean() == pytest.approx(0, abs=0.02)
    assert np.mean(areas[small] < 0.25) == pytest.approx(0.5, abs=0.05)
    room = np.array([height, width]) - sizes
    assert (starts / np.maximum(room, 1))[small].mean(0) == pytest.approx([0.5, 0.5], abs=0.02)


def test_where_no_box_fits_the_largest_one_in_the_middle_is_taken() -> None:
    most = np.full((1, 2 * TRIES + 2), 0.999)
    for (height, width), box in {(100, 300): ([0, 83], [100, 133]), (300, 100): ([83, 0], [133, 100])}.items():
        starts, sizes = boxes(most, height, width, 0.9)
        assert (starts.tolist(), sizes.tolist()) == ([box[0]], [box[1]])
    starts, sizes = boxes(np.zeros((1, 2 * TRIES + 2)), 1, 1, SMALLEST)  # of one pixel nothing smaller can be had
    assert (starts.tolist(), sizes.tolist()) == ([[0, 0]], [[1, 1]])


def test_what_is_seen_hangs_on_seed_epoch_and_row_alone() -> None:
    first = BOTH.seen(PIXELS, NUMBERS, (7, 2))
    order = DRAW.permutation(40)
    np.testing.assert_array_equal(BOTH.seen(PIXELS[order], NUMBERS[order], (7, 2)), first[order])
    for part in (slice(0, 1), slice(5, 23)):
        np.testing.assert_array_equal(BOTH.seen(PIXELS[part], NUMBERS[part], (7, 2)), first[part])
    for epoch in ((7, 3), (8, 2)):
        other = BOTH.seen(PIXELS, NUMBERS, epoch)
        assert (other != first).any((1, 2, 3)).all()
    same = BOTH.seen(np.repeat(PIXELS[:1], 40, 0), NUMBERS, (7, 2))
    assert len(np.unique(same, axis=0)) == 40


def framed(seed: int) -> tuple[PictureRows, Array, Array]:
    """Rows of black pictures, each with a white box of 6 pixels a side or more, which boxes have white pixels (N, H, W)
    and how many of them a crop shows (N,)."""
    draw, (height, width) = np.random.default_rng(seed), (48, 64)
    sides = np.array([6, 6]) + draw.integers(0, (20, 30), (300, 2))
    starts = draw.integers(0, np.array([height, width]) - sides + 1)
    lines, columns = np.arange(height)[None, :, None], np.arange(width)[None, None]
    (top, left), (tall, wide) = starts.T[..., None, None], sides.T[..., None, None]
    is_white = (lines >= top) & (lines < top + tall) & (columns >= left) & (columns < left + wide)
    center = (starts + sides / 2)[:, ::-1] / (width, height)
    own = np.hstack([np.zeros((300, 1)), center, sides[:, ::-1] / (width, height), sides.prod(1, keepdims=True)])
    flat = np.hstack([own, np.tile([width, height], (300, 1))]).astype(np.float32)
    targets = Targets(Ragged(flat, np.ones(300, np.int64)), np.ones(300, bool))
    pixels = np.repeat(255 * is_white[:, None].astype(np.uint8), 3, axis=1)
    views, processor = Views(0.15, 0.5), Processor((3, height, width), (0.0,) * 3, (1.0,) * 3)
    rows = PictureRows.of_pixels(pixels, targets, np.arange(300), 9, processor, views, ObjectDetection(("a",)))
    parts, _ = views.parts(np.arange(300), (7, seed), (height, width))
    corners = np.rint(parts * (width, height, width, height)).astype(int)
    shown = [white[y : y + h, x : x + w].sum() for white, (x, y, w, h) in zip(is_white, corners, strict=True)]
    return rows, is_white, np.array(shown)


@pytest.mark.parametrize("seed", range(3))
def test_boxes_are_where_their_objects_are_seen(seed: int) -> None:
    """Found again in the pixels of what is seen: a side lies where these turn from black to white."""
    rows, is_white, shown = framed(seed)
    batch = rows.batch(np.arange(300), (7, seed))
    share = shown / is_white.sum((1, 2))
    found = objects(batch.targets.values)
    sure = np.abs(share - LEAST_VISIBLE) > 1e-6
    assert np.array_equal(found.lengths[sure] == 1, share[sure] >= LEAST_VISIBLE)
    assert batch.targets.labeled.all()
    assert min((found.lengths == 0).sum(), (share < 1).sum(), (share == 1).sum()) > 20
    for row in np.flatnonzero(found.lengths):
        white = batch.inputs["pixel_values"][row, 0].numpy() > 127.5
        columns, lines = (np.flatnonzero(white.any(axis)) for axis in (0, 1))
        edges = np.array([columns[0], lines[0], columns[-1] + 1, lines[-1] + 1])
        x, y, w, h = found[row][0, BOX] * (64, 48, 64, 48)
        np.testing.assert_allclose([x - w / 2, y - h / 2, x + w / 2, y + h / 2], edges, atol=0.501)
        assert found[row][0, AREA] == pytest.approx(w * h, rel=1e-4)


def test_boxes_hang_on_seed_epoch_and_row_alone() -> None:
    rows, *_ = framed(0)
    order = DRAW.permutation(300)
    whole = rows.batch(np.arange(300), (3, 1)).targets.values[order]
    parts = [rows.batch(part, (3, 1)).targets.values for part in np.split(order, [1, 40, 220])]
    np.testing.assert_array_equal(np.concatenate([part.flat for part in parts]), whole.flat)
    np.testing.assert_array_equal(np.concatenate([part.lengths for part in parts]), whole.lengths)
    assert len(rows.batch(order, (3, 2)).targets.values.flat) == 300
    assert not np.array_equal(rows.batch(order, (3, 2)).targets.values.flat, whole.flat)
    np.testing.assert_array_equal(rows.batch(order).targets.values.flat, rows.targets.values[order].flat)


def prepared(folder: Path, **changes: Any) -> Prepared:
    config = load_config(picture_config(folder, **changes))
    return prepare(config, Storage(config.storage))


def rows_of(made: Prepared, split: str = "train") -> Rows:
    return Rows.open(made.tokens.local(), split)


def test_copies_follow_the_training_rows_without_labels(tmp_path: Path) -> None:
    plain, made = prepared(tmp_path), prepared(tmp_path, data__augment={"copies": 2})
    assert (made.tokens.key != plain.tokens.key, made.data.key == plain.data.key) == (True, True)
    rows, before = rows_of(made), rows_of(plain)
    size = before.num_rows
    assert rows.num_rows == 3 * size
    assert np.array_equal(rows.example_ids, np.tile(before.example_ids, 3))
    assert np.array_equal(rows.targets.labeled[:size], before.targets.labeled)
    assert not rows.targets.labeled[size:].any()
    own = before.values["pixels"]
    assert np.array_equal(rows.values["pixels"][:size], own)
    for copy in range(2):
        expected = BOTH.seen(own, np.arange(size), (0, copy))
        assert np.array_equal(rows.values["pixels"][(1 + copy) * size : (2 + copy) * size], expected)
    assert rows.batch(np.array([3]), (0, 1)).inputs["pixel_values"].equal(rows.inputs(np.array([3]))["pixel_values"])
    for split in ("validation", "test"):
        assert np.array_equal(rows_of(made, split).values["pixels"], rows_of(plain, split).values["pixels"])
    settings = picture_config(tmp_path, data__augment={"copies": 2})
    before_it, after = (
        make_plan(load_config({**settings, "storage": str(tmp_path / name)})) for name in ("empty", "storage")
    )
    assert before_it["data"]["tokens"] == after["data"]["tokens"]
    assert after["data"]["tokens"]["train"] == 17 * rows.num_rows
    (note,) = [note for note in after["data"]["notes"] if "data.augment" in note]
    assert note.startswith("Each training row has 2 copies seen otherwise (crop, flip: data.augment), without labels")


def test_a_single_flipped_copy_is_always_flipped(tmp_path: Path) -> None:
    rows = rows_of(prepared(tmp_path, data__augment={"copies": 1, "ways": ["flip"]}))
    own, copies = np.split(rows.values["pixels"], 2)
    np.testing.assert_array_equal(copies, own[..., ::-1])


def test_rows_are_seen_otherwise_at_each_epoch_with_their_labels(tmp_path: Path) -> None:
    """Recorded and measured are pictures as they are: only a batch that is told its epoch is another one."""
    plain, made = prepared(tmp_path), prepared(tmp_path, data__augment={"copies": "each_epoch", "crop_area": 0.3})
    assert made.tokens.digest != plain.tokens.digest
    assert made.config.teacher.mode == "online"
    rows, before = rows_of(made), rows_of(plain)
    assert np.array_equal(rows.values["pixels"], before.values["pixels"])
    ids = np.array([4, 9, 30])
    assert rows.batch(ids).inputs["pixel_values"].equal(before.batch(ids).inputs["pixel_values"])
    batch = rows.batch(ids, (5, 2))
    expected = Views(0.3, 0.5).seen(before.values["pixels"][ids], ids, (5, 2))
    np.testing.assert_array_equal(batch.inputs["pixel_values"].numpy(), rows.processor.values(expected))  # type: ignore[attr-defined]
    assert np.array_equal(batch.targets.values, before.targets.values[ids])
    assert batch.targets.labeled.all()
    alone = [rows.batch(ids[[i]], (5, 2)).inputs["pixel_values"] for i in range(3)]
    assert all(one.equal(batch.inputs["pixel_values"][[i]]) for i, one in enumerate(alone))
    (note,) = [note for note in make_plan(made.config)["data"]["notes"] if "data.augment" in note]
    assert note.startswith("Each training row is seen otherwise at every epoch (crop, flip: data.augment), with its")


def test_copies_of_scenes_have_the_boxes_that_they_show(tmp_path: Path) -> None:
    """Those that an epoch of that number has."""
    augment = {"copies": 2, "crop_area": 0.3}
    settings = {name: scene_config(tmp_path, data__augment=augment | {"copies": name}) for name in (2, "each_epoch")}
    plans = [make_plan(load_config(settings[2]))]
    made, anew = (rows_of(prepare(load_config(own), Storage(own["storage"]))) for own in settings.values())
    plans.append(make_plan(load_config(settings[2])))
    size = anew.num_rows
    assert (made.num_rows, made.targets.labeled.all()) == (3 * size, True)
    assert np.array_equal(made.targets.values[np.arange(size)].flat, anew.targets.values.flat)
    for copy in range(2):
        stored, seen = made.batch(np.arange(size) + (1 + copy) * size), anew.batch(np.arange(size), (0, copy))
        assert stored.inputs["pixel_values"].equal(seen.inputs["pixel_values"])
        np.testing.assert_array_equal(stored.targets.values.flat, seen.targets.values.flat)
        np.testing.assert_array_equal(stored.targets.values.lengths, seen.targets.values.lengths)
    batches = math.ceil(3 * size / load_config(settings[2]).train.global_batch_size)
    sections = settings[2]["teacher"]["finetune"], settings[2]["stages"]["distill"]
    alone, own = (section["num_epochs"] * batches for section in sections)
    steps = {"teacher": alone, "student.distill": own, "baseline.distill": own}
    assert [plan["steps"] for plan in plans] == [steps] * 2
    (note,) = [note for note in plans[0]["data"]["notes"] if "data.augment" in note]
    assert note.startswith("Each training row has 2 copies seen otherwise (crop, flip: data.augment), with the boxes")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data__augment": {"ways": ["words", "crop"]}}, r"ways: words is not for pictures.*For these: crop, flip\."),
        ({"data__augment": {"ways": ["lower", "upper"]}}, r"ways: lower, upper are not for pictures"),
        ({"data__augment": {"ways": ["flip"]}}, r"copies: 2 copies would be the same.*Write 1, or add crop"),
        ({"data__augment": {"ways": ["flip"], "crop_area": 0.5}}, r"crop_area: has no effect: ways lacks crop"),
        ({"data__augment": {"crop_area": 0}}, r"crop_area: Input should be greater than 0, got 0"),
        ({"data__augment": {"copies": "always"}}, r"valid integer or 'each_epoch', got 'always'"),
        ({"data__augment": {"copies": 0}}, r"copies: Input should be greater than or equal to 1, got 0"),
        ({"data__augment": {"copies": "each_epoch"}, "teacher__mode": "cached"}, r"teacher\.mode: .*Write online, or"),
        ({"data__augment": {"copies": "each_epoch"}, "teacher__mode": "pool"}, r"teacher\.mode: .*Write online, or"),
        ({"data__augment": {"copies": "each_epoch"}, "teacher__pool": {}}, r"teacher\.pool: .*Leave it out, or"),
        (
            {"task__type": "object_detection", "data__augment": {"copies": "each_epoch"}, "teacher__mode": "cached"},
            r"teacher\.mode: .*Write online, or",
        ),
        (
            {"task__type": "text_classification", "data__augment": {"ways": ["words", "flip"]}},
            r"ways: flip is not for texts, which text_classification reads\. For these: words, masked",
        ),
        (
            {"task__type": "text_classification", "data__augment": {"copies": "each_epoch"}},
            r"copies: each_epoch is for pictures, and text_classification reads texts\. Write a number",
        ),
        (
            {"task__type": "text_classification", "data__augment": {"crop_area": 0.5}},
            r"crop_area: is for pictures, and text_classification reads texts\. Leave it out",
        ),
    ],
)
def test_what_cannot_be_is_refused_with_a_way_out(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        load_config(picture_config(tmp_path, **changes))


def test_copies_of_texts_are_known_by_what_they_were_before_pictures_had_some() -> None:
    from raydistill.data.augmentation import Augmentation

    found = Augmentation(Augment(copies=1, ways=("crop",)), 3, Path()).recipe()
    assert found == {"copies": 1, "ways": ["crop"], "seed": 3, "rules": 1}
