"""What a small detector keeps of its teacher, and what the teacher adds to the labels: on scenes of digits.

    python jobs/bench/scenes.py                     # half an hour on 2 busy cores
    python jobs/bench/scenes.py --family rt_detr --labels 300

A scene of 48 x 48 pixels has one to four of scikit-learn's digits, zeros to threes, 14 to 24 pixels high, on a ground
of blots; a digit may hide a fifth of another one. Digits of test scenes are in no other scene. No detector can be had
without a download, so the teacher starts from random weights and is fitted to the labelled scenes by raydistill itself:
a YOLOS of 4 layers of width 64, whose students have 2 of its layers, or an RT-DETR, whose students have half the width,
two layers of three in their decoder, and random weights, too. Each and its baseline, which sees the labels alone, are
trained with as many seeds. ``--labels``: of the 2,000 training scenes, the others are seen without. ``--losses``:
beside the labels, ``forward_kl boxes`` by default. With ``--crops 0.3`` all see other crops at each epoch, of that
share of a scene or more, and the boxes in them.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import raydistill  # before torch

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

SIZE, PIXELS, CLASSES = 48, 8, 4
ENLARGED = 64
"""Pixels of a side as RT-DETR sees them: its coarsest map has a cell for 32 of them."""
MOST, LEAST_HEIGHT, MOST_HEIGHT = 4, 14, 24
HIDDEN = 0.2
"""Of a digit's box that others may cover."""
ROWS = {"train": 2000, "validation": 300, "test": 500}
QUERIES = 12

Box = tuple[int, int, int, int]


def draw_scene(
    draw: np.random.Generator, digits: np.ndarray, labels: np.ndarray
) -> tuple[Image.Image, list[tuple[str, Box]]]:
    """A scene and its digits: name, and left, top, width, height of each."""
    import numpy as np
    from PIL import Image, ImageFilter

    ground = Image.fromarray(draw.integers(0, 256, (SIZE, SIZE), dtype=np.uint8)).filter(ImageFilter.GaussianBlur(3))
    pixels = (np.asarray(ground, float) - 127) * 2 + draw.uniform(50, 90) + draw.normal(0, 8, (SIZE, SIZE))
    found: list[tuple[str, Box]] = []
    for row in draw.integers(0, len(digits), draw.integers(1, MOST + 1)):
        inked = digits[row]
        columns = np.flatnonzero(inked.max(0) > 3)
        inked = inked[:, columns[0] : columns[-1] + 1]
        height = int(draw.integers(LEAST_HEIGHT, MOST_HEIGHT + 1))
        width = max(4, round(height * inked.shape[1] / PIXELS))
        for _ in range(20):
            left, top = int(draw.integers(0, SIZE - width + 1)), int(draw.integers(0, SIZE - height + 1))
            box = (left, top, width, height)
            if all(max(covered(box, other), covered(other, box)) <= HIDDEN for _, other in found):
                ink = Image.fromarray((inked * (255 / 16)).astype(np.uint8)).resize((width, height), Image.BICUBIC)
                share = np.asarray(ink, float) / 255 * draw.uniform(0.7, 1)
                place = pixels[top : top + height, left : left + width]
                place += share * (255 - place)
                found.append((str(labels[row]), box))
                break
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).convert("RGB"), found


def covered(box: Box, other: Box) -> float:
    """Share of a box that another one covers."""
    sides = [min(a + w, b + v) - max(a, b) for a, w, b, v in zip(box[:2], box[2:], other[:2], other[2:], strict=True)]
    return max(0, sides[0]) * max(0, sides[1]) / (box[2] * box[3])


def write_scenes(folder: Path) -> Path:
    """A folder a split, with COCO's JSON beside them."""
    import numpy as np
    from sklearn.datasets import load_digits

    values, labels = load_digits(return_X_y=True)
    digits = values.reshape(-1, PIXELS, PIXELS)
    order = np.random.default_rng(0).permutation(np.flatnonzero(labels < CLASSES))
    own = {"train": order[:450], "validation": order[450:550], "test": order[550:]}
    for split, rows in ROWS.items():
        (folder / split).mkdir(parents=True, exist_ok=True)
        draw = np.random.default_rng(len(split))
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number in range(rows):
            picture, found = draw_scene(draw, digits[own[split]], labels[own[split]])
            picture.save(folder / split / f"{number:05d}.png")
            images.append({"id": number, "file_name": f"{number:05d}.png"})
            for name, box in found:
                one = {"id": len(annotations) + 1, "image_id": number, "category_id": int(name), "bbox": box}
                annotations.append({**one, "area": box[2] * box[3], "iscrowd": 0})
        categories = [{"id": i, "name": str(i)} for i in range(CLASSES)]
        told = {"images": images, "annotations": annotations, "categories": categories}
        (folder / split / "annotations.json").write_text(json.dumps(told))
    return folder


def yolos() -> Any:
    from transformers import YolosConfig

    shape = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 128}
    return YolosConfig(**shape, image_size=[SIZE, SIZE], patch_size=6, num_detection_tokens=QUERIES)


def rt_detr(width: int, num_layers: int) -> Any:
    from transformers import RTDetrConfig, RTDetrResNetConfig

    sizes: dict[str, Any] = {"embedding_size": width // 2, "hidden_sizes": [width // 2, width // 2, width, 2 * width]}
    backbone = RTDetrResNetConfig(**sizes, depths=[1] * 4, layer_type="basic", out_indices=[2, 3, 4])
    widths = {"d_model": width, "encoder_hidden_dim": width, "encoder_ffn_dim": 2 * width, "decoder_ffn_dim": 2 * width}
    widths |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "decoder_layers": num_layers}
    maps = {"encoder_in_channels": sizes["hidden_sizes"][1:], "decoder_in_channels": [width] * 3}
    more = {"num_queries": QUERIES, "num_denoising": 0, "freeze_backbone_batch_norms": False}
    return RTDetrConfig(backbone_config=backbone, **widths, **maps, **more)


def save_models(folder: Path, family: str) -> dict[str, Any]:
    """A teacher with random weights, and its processor; the config's section of the student."""
    from transformers import RTDetrImageProcessorPil, YolosImageProcessorPil

    from raydistill.models.load import new_model  # a new detector is fit to be trained

    if family == "yolos":
        new_model(yolos(), seed=0).save_pretrained(folder / "teacher")
        YolosImageProcessorPil(size={"height": SIZE, "width": SIZE}, do_pad=False).save_pretrained(folder / "teacher")
        return {"num_layers": 2}
    for name, config in (("teacher", rt_detr(64, 3)), ("small", rt_detr(32, 2))):
        new_model(config, seed=0).save_pretrained(folder / name)
        RTDetrImageProcessorPil(size={"height": ENLARGED, "width": ENLARGED}).save_pretrained(folder / name)
    return {"start": str(folder / "small")}


def measure(folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """The results of the student and its baseline."""
    terms = {"task": {"type": "task", "weight": 0.5}, **{name: {"type": name} for name in given.losses}}
    seen = {"augment": {"copies": "each_epoch", "ways": ["crop"], "crop_area": given.crops}} if given.crops else {}
    return raydistill.distill(
        {
            "storage": str(folder / "storage"),
            "data": {"path": str(folder / "scenes"), "max_labeled": given.labels, **seen},
            "task": {"type": "object_detection"},
            "teacher": {
                "model": str(folder / "teacher"),
                "finetune": {"num_epochs": given.epochs, "learning_rate": given.rate},
                "allow_chance": True,
            },
            "student": save_models(folder, given.family),
            "stages": {"distill": {"num_epochs": given.epochs // 3, "learning_rate": given.rate / 2, "losses": terms}},
            "train": {"num_workers": 0, "global_batch_size": 32},
            "evaluate": {"baseline": True, "seeds": given.seeds},
        }
    )


def main() -> None:
    reader = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    reader.add_argument("--family", choices=["yolos", "rt_detr"], default="yolos")
    reader.add_argument("--rate", type=float, default=2e-3, help="of the teacher; students have half of it")
    reader.add_argument("--losses", nargs="*", default=["forward_kl", "boxes"])
    reader.add_argument("--labels", type=int, default=None)
    reader.add_argument("--crops", type=float, metavar="SHARE")
    reader.add_argument("--epochs", type=int, default=48, help="of the teacher; students have a third")
    reader.add_argument("--seeds", type=int, default=2)
    given = reader.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_scenes(folder / "scenes")
        found = measure(folder, given)
    print(f"Losses: task, {', '.join(given.losses)}")
    print(f"{ROWS['test']} test scenes, %, mean of {given.seeds} seeds ± deviation; {given.labels or 'all'} labels")
    for name in ("map", "map_50", "map_75"):
        seeds = [found["seeds"][model]["test"][name] for model in ("student", "baseline")]
        told = [f"{100 * one['mean']:.1f} ± {100 * one['sd']:.1f}" for one in seeds]
        teacher = 100 * found["teacher"]["test"][name]["value"]
        print(f"{name}: teacher {teacher:.1f}, student {told[0]}, without teacher {told[1]}")
    ratio = f"{100 * found['ratios']['num_parameters']:.0f} % of the parameters"
    print(f"{ratio}, {1 / found['ratios']['latency_p50']:.1f} x as fast; seconds {found['seconds']}")


if __name__ == "__main__":
    main()
