"""Pictures with objects, made in code: bright and dark boxes in noise; the same in every form; tiny detectors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from transformers import (
    DFineConfig,
    HGNetV2Config,
    PreTrainedConfig,
    RTDetrConfig,
    RTDetrImageProcessorPil,
    RTDetrResNetConfig,
    RTDetrV2Config,
    YolosConfig,
    YolosImageProcessorPil,
)

from kit.pictures import png
from kit.toy import changed, small_run
from raydistill.models.detection import Softmax
from raydistill.models.load import new_model

NAMES = ("bright", "dark")
SIZE = (24, 32)
"""Height and width of pictures, as tiny models read them."""
QUERIES = 6
FOCAL_CONFIGS: dict[str, Any] = {"rt_detr": RTDetrConfig, "rt_detr_v2": RTDetrV2Config, "d_fine": DFineConfig}

Objects = list[tuple[str, tuple[float, float, float, float]]]
"""Name, and left, top, width, height in pixels, of each."""


def toy_scene(draw: np.random.Generator, most: int = 3) -> tuple[Image.Image, Objects]:
    """A picture of 48 x 36 pixels with up to so many boxes, in a third of its columns each."""
    pixels = draw.normal(128, 12, (36, 48))
    found: Objects = []
    for place in draw.permutation(3)[: draw.integers(0, most + 1)]:
        name = NAMES[draw.integers(2)]
        width, height = (int(side) for side in draw.integers(8, 15, 2))
        left, top = 16 * int(place) + int(draw.integers(0, 17 - width)), int(draw.integers(0, 37 - height))
        pixels[top : top + height, left : left + width] += 90 if name == "bright" else -90
        found.append((name, (left, top, width, height)))
    grey = np.repeat(pixels.clip(0, 255)[..., None], 3, 2)
    return Image.fromarray(grey.astype(np.uint8)), found


def toy_scenes(num_rows: int, seed: int = 0) -> list[tuple[Image.Image, Objects]]:
    draw = np.random.default_rng(seed)
    return [toy_scene(draw) for _ in range(num_rows)]


def write_scenes(folder: Path, scenes: Sequence[tuple[Image.Image, Objects]], form: str = "coco") -> Path:
    """Pictures with their objects, as ``coco``, ``yolo``, or ``jsonl`` (metadata beside pictures)."""
    pictures = folder / "images" if form != "jsonl" else folder
    pictures.mkdir(parents=True, exist_ok=True)
    for i, (image, _) in enumerate(scenes):
        (pictures / f"{i:03d}.png").write_bytes(png(image))
    match form:
        case "coco":
            write_coco(folder / "annotations.json", scenes)
        case "yolo":
            (folder / "labels").mkdir(exist_ok=True)
            (folder / "data.yaml").write_text(f"names: {json.dumps(NAMES)}\n")
            for i, (image, found) in enumerate(scenes):
                lines = [yolo_line(name, box, image.size) for name, box in found]
                (folder / "labels" / f"{i:03d}.txt").write_text("".join(lines))
        case "jsonl":
            rows = [
                {
                    "file_name": f"{i:03d}.png",
                    "objects": {"bbox": [b for _, b in own], "categories": [n for n, _ in own]},
                }
                for i, (_, own) in enumerate(scenes)
            ]
            (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def write_coco(path: Path, scenes: Sequence[tuple[Image.Image, Objects]]) -> None:
    """COCO's JSON for pictures 000.png, 001.png, …"""
    images = [{"id": i, "file_name": f"{i:03d}.png"} for i in range(len(scenes))]
    pairs = [(i, name, box) for i, (_, found) in enumerate(scenes) for name, box in found]
    annotations = [
        {
            "id": k,
            "image_id": i,
            "category_id": NAMES.index(name) + 1,
            "bbox": box,
            "area": box[2] * box[3],
            "iscrowd": 0,
        }
        for k, (i, name, box) in enumerate(pairs, 1)
    ]
    categories = [{"id": i, "name": name} for i, name in enumerate(NAMES, 1)]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))


def yolo_line(name: str, box: tuple[float, float, float, float], size: tuple[int, int]) -> str:
    (x, y, w, h), (width, height) = box, size
    return f"{NAMES.index(name)} {(x + w / 2) / width} {(y + h / 2) / height} {w / width} {h / height}\n"


def queries(outputs: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Of a YOLOS: logits (B, Q, C + 1), no object the last, and boxes (B, Q, 4)."""
    units = Softmax(num_classes, 1.0).units(outputs)
    return units[..., :-4], units[..., -4:]


def tiny_detector_config(num_layers: int = 3, num_labels: int = 2, **changes: Any) -> PreTrainedConfig:
    """A YOLOS of width 32 for pictures of 24 x 32 pixels."""
    shape = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64, "patch_size": 8}
    given = {**shape, "image_size": SIZE, "num_detection_tokens": QUERIES, "num_labels": num_labels, **changes}
    return YolosConfig(num_hidden_layers=num_layers, **given)


def tiny_focal_config(kind: str = "rt_detr", num_labels: int = 2, **changes: Any) -> PreTrainedConfig:
    """An RT-DETR, or ``rt_detr_v2`` or ``d_fine``, of width 16 for pictures of 64 x 64 pixels."""
    if kind == "d_fine":
        stages = {
            "stage_in_channels": [8, 8, 16, 16],
            "stage_mid_channels": [4, 4, 8, 8],
            "stage_numb_of_layers": [1] * 4,
        }
        stages |= {"stage_out_channels": [8, 16, 16, 16], "stage_num_blocks": [1] * 4, "stem_channels": [3, 8, 8]}
        backbone: Any = HGNetV2Config(hidden_sizes=[8, 16, 16, 16], depths=[1] * 4, out_indices=[2, 3, 4], **stages)
    else:
        sizes: dict[str, Any] = {"embedding_size": 8, "hidden_sizes": [8, 16, 16, 16], "depths": [1] * 4}
        backbone = RTDetrResNetConfig(**sizes, layer_type="basic", out_indices=[2, 3, 4])
    widths = {"d_model": 16, "encoder_hidden_dim": 16, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    widths |= {"encoder_in_channels": [16] * 3, "decoder_in_channels": [16] * 3}
    given = {**widths, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "num_labels": num_labels}
    given |= {"num_queries": QUERIES + 2, "decoder_layers": 2, "freeze_backbone_batch_norms": False, **changes}
    return FOCAL_CONFIGS[kind](backbone_config=backbone, **given)


def save_tiny_focal(folder: Path, kind: str = "rt_detr", *, names: Sequence[str] = NAMES, **changes: Any) -> Path:
    """An ordinary Hugging Face folder."""
    config = tiny_focal_config(kind, len(names), **changes)
    config.id2label = dict(enumerate(names))
    config.label2id = {name: i for i, name in enumerate(names)}
    new_model(config, seed=0).save_pretrained(folder)
    RTDetrImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


def save_tiny_detector(folder: Path, *, names: Sequence[str] = ("a", "b", "c"), seed: int = 0, **changes: Any) -> Path:
    """An ordinary Hugging Face folder."""
    config = tiny_detector_config(num_labels=len(names), **changes)
    config.id2label = dict(enumerate(names))
    config.label2id = {name: i for i, name in enumerate(names)}
    new_model(config, seed=seed).save_pretrained(folder)
    YolosImageProcessorPil(size={"height": SIZE[0], "width": SIZE[1]}, do_pad=False).save_pretrained(folder)
    return folder


def scene_config(folder: Path, **changes: Any) -> dict[str, Any]:
    """A config that distils a tiny YOLOS on toy scenes in local mode; ``changes`` are dotted names with __."""
    data, teacher = folder / "scenes", folder / "yolos"
    if not data.exists():
        write_scenes(data, toy_scenes(256))
        save_tiny_detector(teacher, num_layers=4, hidden_size=64, intermediate_size=128)
    config: dict[str, Any] = {
        "storage": str(folder / "storage"),
        "data": {"path": str(data), "split": {"validation": 0.2, "test": 0.2}},
        "task": {"type": "object_detection"},
        "teacher": {"model": str(teacher), "finetune": {"num_epochs": 60, "learning_rate": 1e-3}, "allow_chance": True},
        "student": {"num_layers": 2},
        "stages": {"distill": {"num_epochs": 10, "learning_rate": 1e-3}},
        **small_run("scenes"),
    }
    return changed(config, changes)
