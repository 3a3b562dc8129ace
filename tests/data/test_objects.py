"""Objects in pictures: one form out of all that files have them in, and what is wrong named by picture and object."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from kit.pictures import png
from kit.scenes import NAMES, Objects, save_tiny_detector, scene_config, toy_scenes, write_coco, write_scenes
from PIL import Image

from raydistill.cli.proposal import propose
from raydistill.config.loading import data_config, load_config
from raydistill.data.draft import make_draft, read_draft
from raydistill.data.prepare import data_key, prepare_data
from raydistill.data.rows import map_batch
from raydistill.errors import ConfigError, DataError
from raydistill.storage.storage import Storage
from raydistill.tasks import Targets, task_of
from raydistill.tasks.object_detection.reading import BOX, CLASS, CROWD, SIZE, crowds, objects, objects_of, size_of

SCENES = toy_scenes(40)


def read(folder: Path, path: Path | None = None, **changes: Any) -> Any:
    """The rows of a folder, before splits are cut."""
    if not (folder / "yolos").exists():
        save_tiny_detector(folder / "yolos")
        (folder / "scenes").mkdir(exist_ok=True)
    given = {"data__path": str(path)} if path is not None else {}
    return read_draft(load_config(scene_config(folder, **given, **changes)))


def one_row(folder: Path, image: Image.Image, cell: Any, **changes: Any) -> Any:
    """The training rows of a table of one picture, and one with an object."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "one.png").write_bytes(png(image))
    (folder / "other.png").write_bytes(png(Image.new("RGB", (10, 10), (9, 9, 9))))
    rows = [{"image": "one.png", "objects": cell}, {"image": "other.png", "objects": [box("cat", 1, 1, 3, 3)]}]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read(folder.parent, folder / "rows.jsonl", **changes).parts["train"]


def box(name: Any, *sides: float, **more: Any) -> dict[str, Any]:
    return {"bbox": list(sides), "category": name, **more}


@pytest.mark.parametrize("form", ["coco", "yolo", "jsonl"])
def test_all_forms_say_the_same(form: str, tmp_path: Path) -> None:
    draft = read(tmp_path, write_scenes(tmp_path / "made", SCENES, form))
    part = draft.parts["train"]
    assert draft.task.outputs == NAMES
    assert part.targets.labeled.all()
    names = [name.rpartition("/")[2] for name in part.texts["name"].to_pylist()]
    assert names == [f"{i:03d}.png" for i in range(len(SCENES))]
    there = objects(part.targets.values)
    for row, (image, found) in enumerate(SCENES):
        own = there[row]
        assert [NAMES[int(one)] for one in own[:, CLASS]] == [name for name, _ in found]
        wide = own[:, BOX] * np.tile(image.size, 2)
        left = np.concatenate([wide[:, :2] - wide[:, 2:] / 2, wide[:, 2:]], 1)
        np.testing.assert_allclose(left, np.reshape([sides for _, sides in found], (-1, 4)), atol=1e-4)
        np.testing.assert_allclose(part.targets.values[row][:, SIZE], np.tile(image.size, (max(len(found), 1), 1)))
    assert draft.task.mean_objects == sum(len(found) for _, found in SCENES) / len(SCENES)


def test_pictures_lie_anywhere_in_a_folder_of_cocos(tmp_path: Path) -> None:
    """As COCO has them, and as Roboflow: pictures of two splits by one name, in JSON's own folder, hidden or not."""
    first, second = toy_scenes(8, seed=1), toy_scenes(6, seed=2)
    for name, own in (("train2017", first), ("val2017", second)):
        write_scenes(tmp_path / "coco", own).joinpath("images").rename(tmp_path / "coco" / name)
        (tmp_path / "coco" / "annotations").mkdir(exist_ok=True)
        (tmp_path / "coco" / "annotations.json").rename(tmp_path / f"coco/annotations/instances_{name}.json")
    for name, own in (("train", first), ("valid", second)):
        write_scenes(tmp_path / "made", own).joinpath("images").rename(tmp_path / "made" / name)
        (tmp_path / "made" / "annotations.json").rename(tmp_path / f"made/{name}/_annotations.coco.json")
    for folder in ("coco", "made"):
        parts = read(tmp_path, tmp_path / folder).parts
        assert {split: part.num_rows for split, part in parts.items()} == {"train": 8, "validation": 6}
        assert parts["validation"].texts["image"].to_pylist() == [png(image) for image, _ in second]
    alone = read(tmp_path, tmp_path / "made" / "train" / "_annotations.coco.json")
    assert alone.parts["train"].num_rows == 8


@pytest.mark.parametrize("kind", ["saved", "parquet"])
def test_classes_of_hugging_faces_columns_have_their_names(kind: str, tmp_path: Path) -> None:
    label = datasets.ClassLabel(names=["dark", "bright", "none"])
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "objects": datasets.List({"bbox": datasets.List(datasets.Value("float32"), 4), "category": label}),
        }
    )
    rows = [
        {"image": image, "objects": [{"bbox": b, "category": name} for name, b in found]} for image, found in SCENES
    ]
    made = datasets.Dataset.from_list(rows, features=features)
    path = tmp_path / "made" / "train.parquet"
    path.parent.mkdir()
    made.save_to_disk(str(tmp_path / "saved")) if kind == "saved" else made.to_parquet(str(path))
    draft = read(tmp_path, tmp_path / "saved" if kind == "saved" else path)
    assert draft.task.outputs == ("dark", "bright", "none")
    assert "No training picture has an object of the class 'none'." in draft.notes
    found = objects(draft.parts["train"].targets.values).flat[:, CLASS]
    assert [("dark", "bright")[int(one)] for one in found] == [name for _, own in SCENES for name, _ in own]


def test_boxes_are_those_of_the_picture_as_it_is_seen(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees: 20 x 10 pixels are seen as 10 x 20
    content = png(Image.new("RGB", (20, 10)), exif=exif)
    assert size_of(content) == (10, 20)
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "one.png").write_bytes(content)
    row = {"image": "one.png", "objects": [box("cat", 0, 15, 10, 5)]}
    (tmp_path / "made" / "rows.jsonl").write_text(json.dumps(row) + "\n")
    found = read(tmp_path, tmp_path / "made" / "rows.jsonl").parts["train"].targets.values[0][0]
    np.testing.assert_allclose(found, [0, 0.5, 0.875, 1, 0.25, 50, 10, 20])


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_any_kind_of_picture_may_have_objects(mode: str, tmp_path: Path) -> None:
    part = one_row(tmp_path / "made", Image.new(mode, (10, 10)), [box("cat", 2, 2, 4, 4)])
    assert part.num_rows == 2


def test_nothing_in_a_picture_is_a_label_and_no_cell_is_none(tmp_path: Path) -> None:
    for cell, is_labeled in (([], True), (None, False)):
        part = one_row(tmp_path / "made", Image.new("RGB", (10, 10)), cell)
        again = Targets.of_arrow(part.targets.to_arrow())
        for targets in (part.targets, again):
            assert targets.labeled.tolist() == [is_labeled, True]
            assert objects(targets.values).lengths.tolist() == [0, 1]


def test_a_box_is_cut_off_at_its_picture_within_a_pixel(tmp_path: Path) -> None:
    part = one_row(tmp_path / "made", Image.new("RGB", (10, 10)), [box("cat", -0.5, 4, 5.5, 6.9)])
    np.testing.assert_allclose(part.targets.values[0][0, BOX], [0.25, 0.7, 0.5, 0.6], atol=1e-6)


def test_crowds_are_known_and_areas_kept(tmp_path: Path) -> None:
    """In a list of objects, in an object of lists, and as a text; a picture of crowds alone has a label."""
    cell = [box("cat", 0, 0, 10, 5, iscrowd=1, area=3.0), box("dog", 1, 1, 4, 4, iscrowd=0, area=7.0)]
    lists = {key: [one[key] for one in cell] for key in cell[0]}
    assert objects_of(cell, None) == objects_of(lists, None) == objects_of(json.dumps(cell), None)
    part = one_row(tmp_path / "made", Image.new("RGB", (10, 10)), cell)
    assert part.targets.values[0][:, [CLASS, 5]].tolist() == [[CROWD, 3], [1, 7]]
    assert objects(part.targets.values).lengths.tolist() == [1, 1]
    part = one_row(tmp_path / "alone", Image.new("RGB", (10, 10)), cell[:1])
    again = Targets.of_arrow(part.targets.to_arrow())
    assert (again.labeled.tolist(), objects(again.values).lengths.tolist()) == ([True, True], [0, 1])
    assert crowds(again.values)[0].tolist() == pytest.approx(np.array([[0, 0.5, 0.25, 1, 0.5, 3, 10, 10]]))


def test_crowds_of_a_file_of_cocos_are_told(tmp_path: Path) -> None:
    folder = write_scenes(tmp_path / "made", SCENES)
    found = json.loads((folder / "annotations.json").read_text())
    for one in found["annotations"][:3]:
        one["iscrowd"] = 1
    (folder / "annotations.json").write_text(json.dumps(found))
    draft, before = read(tmp_path, folder), read(tmp_path, write_scenes(tmp_path / "plain", SCENES))
    assert "3 crowds are no objects: what is found in them is neither right nor wrong." in draft.notes
    told, all_of_them = (sum(one.task.counts(one.parts["train"].targets).values()) for one in (draft, before))
    assert told == all_of_them - 3
    assert draft.task.mean_objects == told / len(SCENES)


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        (
            [box("cat", 1, 1, 2, 2), box("dog", 6, 1, 7, 2)],
            r"one.png: object 2, dog, reaches 3 pixels beyond the right",
        ),
        ([box("dog", 1, -4, 2, 6)], r"object 1, dog, reaches 4 pixels beyond the top of its picture of 10 x 10"),
        ([box("dog", 1, 1, 0, 2)], r"object 1, dog, is 0 x 2 pixels large"),
        ([box("dog", 1, 1, 2, -2)], r"is 2 x -2 pixels large"),
        ([box("dog", 10.2, 1, 0.5, 2)], r"lies outside its picture"),
        ([box("dog", 1, 1, float("nan"), 2)], r"object 1, dog, has the box .*no numbers"),
        ([box("dog", 1, 1, 2)], r"row 1: object 1, dog, has the bbox \[1.*not four numbers"),
        ([box(" ", 1, 1, 2, 2)], r"row 1: object 1 has no category"),
        ({"bbox": [[1, 1, 2, 2]], "category": ["a", "b"]}, r"its lists bbox \(1\), category \(2\) differ"),
    ],
)
def test_what_is_wrong_is_named_by_picture_and_object(cell: Any, said: str, tmp_path: Path) -> None:
    folder = tmp_path / "made"
    folder.mkdir()
    (folder / "one.png").write_bytes(png(Image.new("RGB", (10, 10))))
    (folder / "rows.jsonl").write_text(json.dumps({"image": "one.png", "objects": cell}) + "\n")
    with pytest.raises(DataError, match=said):
        read(tmp_path, folder / "rows.jsonl")


def test_classes_that_nobody_knows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"not among task.labels: 'cat'"):
        one_row(tmp_path / "made", Image.new("RGB", (10, 10)), [], task__labels=["dog"])
    write_scenes(tmp_path / "yolo", SCENES[:3], "yolo")
    (tmp_path / "yolo" / "labels" / "001.txt").write_text("0 .5 .5 .1 .1\n\n7 .5 .5 .1 .1\n")
    with pytest.raises(DataError, match=r"labels/001.txt, line 3 is of the class 7, and there are 0 to 1"):
        read(tmp_path, tmp_path / "yolo")
    (tmp_path / "yolo" / "data.yaml").unlink()
    with pytest.raises(DataError, match=r"does not name its classes"):
        read(tmp_path, tmp_path / "yolo")
    write_scenes(tmp_path / "coco", SCENES[:3])
    found = json.loads((tmp_path / "coco" / "annotations.json").read_text())
    for change, said in (
        ({"category_id": 9}, r"annotation 1 is of the category 9; the file has 1, 2"),
        ({"image_id": 77}, r"annotation 1 is of the image 77, which the file does not list"),
    ):
        changed = found | {"annotations": [found["annotations"][0] | change]}
        (tmp_path / "coco" / "annotations.json").write_text(json.dumps(changed))
        with pytest.raises(DataError, match=said):
            read(tmp_path, tmp_path / "coco")


@pytest.mark.parametrize(
    "line", ["0 .5 .5 .1", "cat .5 .5 .1 .1", "0 .1 .1 .2 .1 .2 .2", "0.5 .5 .5 .1 .1", "0 .5 .5 nan .1"]
)
def test_lines_that_are_no_objects_are_named(line: str, tmp_path: Path) -> None:
    write_scenes(tmp_path / "yolo", SCENES[:3], "yolo")
    (tmp_path / "yolo" / "labels" / "002.txt").write_text(line)
    with pytest.raises(DataError, match=r"labels/002.txt, line 1 "):
        read(tmp_path, tmp_path / "yolo")


def test_pictures_that_are_missing_or_broken_are_told(tmp_path: Path) -> None:
    folder = write_scenes(tmp_path / "made", SCENES[:12])
    (folder / "images" / "001.png").unlink()
    (folder / "images" / "002.png").write_bytes(b"junk")
    draft = read(tmp_path, folder)
    notes = " ".join(draft.notes)
    assert "001.png is missing." in notes
    assert "002.png cannot be read as a picture" in notes
    assert draft.parts["train"].num_rows == 10


def test_without_any_object_there_is_nothing_to_learn(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"No training picture has an object"):
        read(tmp_path, write_scenes(tmp_path / "made", [(image, []) for image, _ in SCENES]))


def test_splits_are_cut_by_the_rarest_class_and_rows_are_kept(tmp_path: Path) -> None:
    rare: list[tuple[Image.Image, Objects]] = [
        (image, [("rare" if i % 8 == 0 else "often", own[0][1])] if own else [])
        for i, (image, own) in enumerate(SCENES)
    ]
    write_scenes(tmp_path / "scenes", SCENES)
    write_coco_of(tmp_path / "scenes" / "annotations.json", rare)
    save_tiny_detector(tmp_path / "yolos")
    config = load_config(scene_config(tmp_path))
    draft = make_draft(config)
    assert all(draft.task.counts(part.targets)["rare"] for part in draft.parts.values())
    made = prepare_data(config, Storage(config.storage))
    batch = map_batch(made.local() / "train.arrow")
    again, first = Targets.of_arrow(batch.column("target")), draft.parts["train"].targets
    np.testing.assert_array_equal(again.values.flat, first.values.flat)
    assert task_of(draft.task.facts()).mean_objects == draft.task.mean_objects
    image = tmp_path / "scenes" / "images" / "000.png"
    before = data_key(config)
    image.write_bytes(png(Image.new("RGB", (48, 36), (1, 2, 3))))
    assert data_key(config) != before


def write_coco_of(path: Path, scenes: list[tuple[Image.Image, Objects]]) -> None:
    """With other names than the kit's."""
    names = {"rare": NAMES[0], "often": NAMES[1]}
    write_coco(path, [(image, [(names[name], sides) for name, sides in own]) for image, own in scenes])
    back = {given: name for name, given in names.items()}
    found = json.loads(path.read_text())
    found["categories"] = [one | {"name": back[one["name"]]} for one in found["categories"]]
    path.write_text(json.dumps(found))


def test_pictures_without_labels_join_from_any_folder(tmp_path: Path) -> None:
    """Whatever lies beside them, captions of COCO's among the labels."""
    folder = write_scenes(tmp_path / "made", SCENES[:20])
    (folder / "annotations.json").rename(folder / "instances_train.json")
    captions = {"images": [{"id": 0, "file_name": "000.png"}], "annotations": [{"image_id": 0, "caption": "noise"}]}
    (folder / "captions_train.json").write_text(json.dumps(captions))
    for form in ("coco", "yolo"):
        more = write_scenes(tmp_path / form, toy_scenes(7, seed=3), form)
        save_tiny_detector(tmp_path / "yolos")
        config = scene_config(tmp_path, data__path=str(folder), data__unlabeled=str(more), data__split__test=0.3)
        train = make_draft(load_config(config)).parts["train"]
        assert (~train.targets.labeled).sum() == 7
        assert objects(train.targets.values).lengths[~train.targets.labeled].sum() == 0


def test_a_config_is_written_for_a_folder(tmp_path: Path) -> None:
    folder = write_scenes(tmp_path / "made", SCENES)
    text, _ = propose(data_config(str(folder), ["task.type=object_detection"]), None)
    assert "task: {type: object_detection, picture_size: [512, 512]}" in text
    assert "teacher: {model: hustvl/yolos-small}" in text
    counts = Counter(name for _, found in SCENES for name, _ in found)
    share = 100 * counts["bright"] / counts.total()
    assert re.search(rf"bright +{counts['bright']} +{share:.1f} %", text)


def test_tasks_and_folders_have_to_fit(tmp_path: Path) -> None:
    write_scenes(tmp_path / "made", SCENES[:4])
    with pytest.raises(ConfigError, match=r"Set task.type: object_detection"):
        read(tmp_path, tmp_path / "made", task={"type": "image_classification"})
    (tmp_path / "classes" / "cat").mkdir(parents=True)
    (tmp_path / "classes" / "cat" / "a.png").write_bytes(png(SCENES[0][0]))
    with pytest.raises(DataError, match=r"nothing says which objects are in them"):
        read(tmp_path, tmp_path / "classes")
