"""Pictures as rows: what is read, from where, and what a model is given of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import transformers
from kit.pictures import KINDS, SIZE, picture_config, png, save_processor, save_tiny_pictures, write_toy_pictures
from PIL import Image

from raydistill.config.loading import load_config
from raydistill.data.draft import make_draft
from raydistill.data.pictures import Processor, decoded, thumbnail
from raydistill.data.prepare import data_key, prepare_data, read_info
from raydistill.data.rows import Rows
from raydistill.data.tokens import tokenize_data
from raydistill.errors import ConfigError, DataError, ModelError
from raydistill.storage.storage import Storage

GREY = Image.fromarray(np.arange(0, 240, 2, dtype=np.uint8).reshape(10, 12))
COLOUR = Image.fromarray(np.random.default_rng(0).integers(0, 256, (10, 12, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (GREY, np.repeat(np.asarray(GREY)[..., None], 3, 2)),
        (GREY.convert("LA"), np.repeat(np.asarray(GREY)[..., None], 3, 2)),
        (COLOUR.convert("RGBA"), np.asarray(COLOUR)),
        (COLOUR.quantize(8), np.asarray(COLOUR.quantize(8).convert("RGB"))),
        (Image.new("1", (3, 2), 1), np.full((2, 3, 3), 255)),
        (Image.new("RGB", (1, 1), (1, 2, 3)), np.array([[[1, 2, 3]]])),
        (Image.fromarray(np.full((4, 4), 0x8080, np.uint16)), np.full((4, 4, 3), 0x80)),
    ],
    ids=["grey", "grey and alpha", "alpha", "palette", "black and white", "one pixel", "16 bits"],
)
def test_every_kind_of_picture_is_read_as_rgb(image: Image.Image, expected: np.ndarray) -> None:
    found = decoded(png(image))
    assert found.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(found), expected)


def test_a_picture_stands_upright_as_its_exif_says() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    found = decoded(png(COLOUR, exif=exif))
    np.testing.assert_array_equal(np.asarray(found), np.rot90(np.asarray(COLOUR), -1))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no bytes"),
        (b"hello", "no picture of a format"),
        (png(COLOUR)[:200], "truncated"),
        (png(COLOUR, "JPEG")[:400], "cannot be read"),
    ],
)
def test_what_is_no_picture_says_why(content: bytes, said: str) -> None:
    with pytest.raises(DataError, match=said):
        decoded(content)


@pytest.mark.parametrize(
    "family", ["ViT", "Beit", "ConvNext", "EfficientNet", "MobileNetV2", "MobileViT", "CLIP", "Bit"]
)
def test_kept_pixels_give_what_the_image_processor_gives(family: str, tmp_path: Path) -> None:
    """A byte a colour and a line for each channel, whatever a family's processor does: crops, flips, two means."""
    own = getattr(transformers, f"{family}ImageProcessorPil")()
    own.save_pretrained(tmp_path)
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (50, 40, 3), dtype=np.uint8))
    processor = Processor.open(tmp_path)
    pixels = processor.pixels([png(image)])
    assert pixels.dtype == np.uint8
    expected = own([image], return_tensors="np")["pixel_values"]
    read = Processor.of(processor.facts()).values(pixels)
    assert read.dtype == np.float32
    np.testing.assert_allclose(read, expected, atol=1e-4 * np.abs(processor.scale).max())


def test_a_folder_without_a_processor_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="AutoImageProcessor"):
        Processor.open(tmp_path)
    save_processor(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"image_processor_type": "NoSuchProcessor"}')
    with pytest.raises(ModelError, match=r"preprocessor_config.json cannot be loaded"):
        Processor.open(tmp_path)


def read(folder: Path, **changes: Any) -> Any:
    return make_draft(load_config(picture_config(folder, **changes)))


def test_a_folder_of_folders_has_its_classes_and_tells_of_what_cannot_be_read(tmp_path: Path) -> None:
    pictures = write_toy_pictures(tmp_path / "pictures", 40)
    (pictures / "dots" / "broken.png").write_bytes(b"junk")
    (pictures / "dots" / "empty.jpg").touch()
    (pictures / "dots" / "notes.md").write_text("nothing")
    (pictures / "tall" / "again.png").write_bytes((pictures / "tall" / "003.png").read_bytes())
    (pictures / "flat" / "other.png").write_bytes((pictures / "blank" / "000.png").read_bytes())
    save_tiny_pictures(tmp_path / "vit")
    draft = read(tmp_path)
    notes = " ".join(draft.notes)
    assert draft.task.outputs == KINDS
    assert "dots/broken.png cannot be read as a picture: it is no picture of a format that is known." in notes
    assert "dots/empty.jpg cannot be read as a picture: it has no bytes." in notes
    assert "or are no pictures: dots/notes.md." in notes
    assert draft.skipped == {"no picture that can be read": 2}
    assert draft.removed["train_repeated"] == 1
    assert draft.removed["train_conflicting"] == 2
    assert (
        sum(part.num_rows for part in draft.parts.values()) == 40 - 1
    )  # one of the two that are alike but their label


def test_splits_may_lie_above_the_classes(tmp_path: Path) -> None:
    for split, rows in (("train", 40), ("val", 12), ("test", 16)):
        write_toy_pictures(tmp_path / "pictures" / split, rows, seed=rows)
    save_tiny_pictures(tmp_path / "vit")
    draft = read(tmp_path)
    assert {split: part.num_rows for split, part in draft.parts.items()} == {"train": 40, "validation": 12, "test": 16}


@pytest.mark.parametrize("kind", ["parquet", "bytes", "csv", "jsonl", "datasets"])
def test_tables_hold_pictures_or_name_them(kind: str, tmp_path: Path) -> None:
    """As datasets writes them, as bytes, or as paths from the table on."""
    folder = write_toy_pictures(tmp_path / "made", 24)
    files = sorted(folder.rglob("*.png"))
    names, labels = [str(file.relative_to(tmp_path)) for file in files], [file.parent.name for file in files]
    contents = [file.read_bytes() for file in files]
    save_tiny_pictures(tmp_path / "vit")
    write_toy_pictures(tmp_path / "pictures", 4)
    path = tmp_path / f"rows.{'parquet' if kind == 'bytes' else kind}"
    if kind == "csv":
        path.write_text(
            "".join(f"{name},{label}\n" for name, label in [("file_name", "label"), *zip(names, labels, strict=True)])
        )
    elif kind == "jsonl":
        path.write_text(
            "".join(f'{{"img": "{name}", "label": "{label}"}}\n' for name, label in zip(names, labels, strict=True))
        )
    elif kind == "bytes":
        pq.write_table(pa.table({"picture": contents, "label": labels}), path)
    else:
        import datasets

        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=sorted(KINDS))})
        made = datasets.Dataset.from_dict(
            {"image": [{"bytes": c, "path": None} for c in contents], "label": labels}, features
        )
        made.to_parquet(path) if kind == "parquet" else made.save_to_disk(path)
    draft = read(tmp_path, data__path=str(path))
    held = pa.concat_arrays([part.texts["image"].combine_chunks() for part in draft.parts.values()]).to_pylist()
    assert sorted(held) == sorted(contents)
    assert draft.task.outputs == tuple(sorted(KINDS))


def test_a_table_that_names_pictures_is_known_by_their_content(tmp_path: Path) -> None:
    write_toy_pictures(tmp_path / "pictures", 24)
    save_tiny_pictures(tmp_path / "vit")
    names = sorted(str(file.relative_to(tmp_path)) for file in (tmp_path / "pictures").rglob("*.png"))
    rows = [f"{name},{name.split('/')[1]}" for name in names]
    (tmp_path / "rows.csv").write_text("\n".join(["image,label", *rows, "gone.png,dots"]))
    config = load_config(picture_config(tmp_path, data__path=str(tmp_path / "rows.csv")))
    before = data_key(config)
    assert any("gone.png is missing." in note for note in make_draft(config).notes)
    assert data_key(config) == before
    (tmp_path / names[0]).write_bytes(png(COLOUR))
    assert data_key(config) != before


def test_rows_are_pixels_in_a_mapped_file_and_normalised_in_a_batch(tmp_path: Path) -> None:
    config = load_config(picture_config(tmp_path))
    storage = Storage(config.storage)
    data = prepare_data(config, storage)
    tokens = tokenize_data(data, tmp_path / "vit", 17, storage)
    rows = Rows.open(tokens.local(), "train")
    assert isinstance(rows.values["pixels"], np.memmap)
    assert rows.values["pixels"].shape == (rows.num_rows, 3, SIZE, SIZE)
    assert (rows.lengths == 17).all()
    batch = rows.batch(np.array([5, 2]))
    assert batch.num_tokens == 34
    pictures = pa.ipc.open_file(pa.memory_map(str(data.local() / "train.arrow"))).get_batch(0).column("image")
    own = transformers.ViTImageProcessorPil.from_pretrained(tmp_path / "vit")
    expected = own([decoded(pictures[row].as_py()) for row in (5, 2)], return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(batch.inputs["pixel_values"].numpy(), expected, atol=1e-6)
    assert list(batch.targets.values) == [rows.targets.values[5], rows.targets.values[2]]
    assert read_info(data).counts["train"].rows == rows.num_rows
    assert tokenize_data(data, tmp_path / "vit", 17, storage).key == tokens.key


def test_a_thumbnail_is_a_small_picture_in_the_page() -> None:
    assert thumbnail(png(COLOUR)).startswith("data:image/jpeg;base64,")
    assert len(thumbnail(png(Image.new("RGB", (3000, 2000))))) < 3000


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data__symmetric": True}, "data.symmetric: is made for texts"),
        ({"data__columns": {"text": "a"}}, "data.columns.text: is made for texts"),
        ({"data__format": "text_folder"}, "data.format: is made for texts"),
        ({"evaluate__robustness": True}, "evaluate.robustness: is made for texts"),
        ({"teacher__finetune": {"method": "probe"}}, "teacher.finetune.method: is made for texts"),
        ({"student": {"type": "conv"}}, "student.type: is made for texts"),
        ({"student__hidden_size": 16}, "student.hidden_size: is cut from models of texts alone"),
        ({"student__share_layers": 1}, "student.share_layers: is cut from models of texts alone"),
        ({"stages__distill__losses": {"g": {"type": "gradient_match"}}}, "gradients of token embeddings"),
        ({"student__head": "crf"}, "crf reads labels of words"),
        ({"teacher": {"type": "mixture", "members": {"a": {"model": "b"}}}}, "mixture reads texts"),
        ({"task__type": "text_classification", "data__columns": {"image": "a"}}, "reads texts"),
    ],
)
def test_what_is_made_for_texts_is_refused_with_a_reason(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        load_config(picture_config(tmp_path, **changes))


def test_texts_and_pictures_do_not_pass_for_each_other(tmp_path: Path) -> None:
    config = picture_config(tmp_path)
    with pytest.raises(ConfigError, match=r"holds pictures, and text_classification reads texts.*task\.type"):
        make_draft(load_config({**config, "task": {"type": "text_classification"}}))
    (tmp_path / "texts" / "a").mkdir(parents=True)
    (tmp_path / "texts" / "a" / "1.txt").write_text("a text")
    with pytest.raises(ConfigError, match="holds no pictures"):
        read(tmp_path, data__path=str(tmp_path / "texts"))
    pq.write_table(pa.table({"image": [1, 2], "label": ["a", "b"]}), tmp_path / "numbers.parquet")
    with pytest.raises(DataError, match="holds int64, not pictures"):
        read(tmp_path, data__path=str(tmp_path / "numbers.parquet"))


def test_a_transformers_that_reads_pictures_with_torchvision_alone_is_refused(tmp_path, monkeypatch):
    save_tiny_pictures(tmp_path / "vit")
    monkeypatch.setattr("raydistill.data.pictures.version", lambda name: "5.17.3")
    with pytest.raises(ConfigError, match=r"transformers 5\.18 or later.*here is 5\.17\.3"):
        Processor.open(tmp_path / "vit")
