"""Pictures made in code: a toy of four kinds of stripes and blots, and tiny models that read them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    BeitConfig,
    Dinov2Config,
    MobileNetV2Config,
    PreTrainedConfig,
    PreTrainedModel,
    ResNetConfig,
    SwinConfig,
    ViTConfig,
    ViTImageProcessorPil,
)

from kit.toy import changed, small_run

SIZE = 16
"""Pixels of a side, as tiny models read it."""
KINDS = ("blank", "dots", "flat", "tall")
SHAPE = {"num_hidden_layers": 4, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}


def png(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    """An encoded picture."""
    made = io.BytesIO()
    image.save(made, form, **options)
    return made.getvalue()


def toy_picture(kind: str, draw: np.random.Generator) -> Image.Image:
    """Stripes that lie or stand, dots, or nothing, in noise; 12 x 20 pixels."""
    rows, columns = np.mgrid[0:12, 0:20] + draw.integers(0, 6, 2)[:, None, None]
    shapes = {
        "tall": columns % 6 < 3,
        "flat": rows % 6 < 3,
        "dots": (columns % 6 < 3) & (rows % 6 < 3),
        "blank": np.zeros_like(rows, bool),
    }
    grey = 80 + 70 * shapes[kind] + draw.normal(0, 70, rows.shape)
    return Image.fromarray(np.repeat(grey.clip(0, 255)[..., None], 3, 2).astype(np.uint8))


def write_toy_pictures(folder: Path, num_rows: int = 160, seed: int = 0) -> Path:
    """A folder a kind."""
    draw = np.random.default_rng(seed)
    for number in range(num_rows):
        kind = KINDS[number % len(KINDS)]
        (folder / kind).mkdir(parents=True, exist_ok=True)
        (folder / kind / f"{number:03d}.png").write_bytes(png(toy_picture(kind, draw)))
    return folder


def tiny_picture_config(family: str, num_layers: int = 4, num_labels: int = 4) -> PreTrainedConfig:
    """A config of width 32, or of two stages, for pictures of 16 x 16 pixels."""
    shape = {**SHAPE, "num_hidden_layers": num_layers, "image_size": SIZE, "patch_size": 4, "num_labels": num_labels}
    match family:
        case "vit":
            return ViTConfig(**shape, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        case "beit":
            return BeitConfig(**shape, layer_scale_init_value=0.1)
        case "dinov2":
            return Dinov2Config(**{name: value for name, value in shape.items() if name != "intermediate_size"})
        case "resnet":
            return ResNetConfig(
                embedding_size=8, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic", num_labels=num_labels
            )
        case "swin":
            stages = {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 2}
            return SwinConfig(image_size=SIZE, patch_size=4, num_labels=num_labels, **stages)
        case "mobilenet_v2":
            return MobileNetV2Config(image_size=SIZE, depth_multiplier=0.25, num_labels=num_labels)
    raise ValueError(family)


def save_tiny_pictures(
    folder: Path,
    family: str = "vit",
    *,
    num_layers: int = 4,
    num_labels: int | None = None,
    seed: int = 0,
    image_size: int = SIZE,
) -> Path:
    """An ordinary Hugging Face folder; without ``num_labels`` of an encoder that has no head."""
    config = tiny_picture_config(family, num_layers, num_labels or 2)
    config.image_size = image_size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        auto: Any = AutoModel if num_labels is None else AutoModelForImageClassification
        model: PreTrainedModel = auto.from_config(config)
    model.save_pretrained(folder)
    save_processor(folder)
    return folder


def save_processor(folder: Path) -> None:
    """One that brings pictures to 16 x 16 pixels, from -1 to 1."""
    ViTImageProcessorPil(size={"height": SIZE, "width": SIZE}).save_pretrained(folder)


def picture_config(folder: Path, **changes: Any) -> dict[str, Any]:
    """A config that distils a tiny ViT on the toy's pictures in local mode; ``changes`` are dotted names with __."""
    data, teacher = folder / "pictures", folder / "vit"
    if not data.exists():
        write_toy_pictures(data)
        save_tiny_pictures(teacher)
    config: dict[str, Any] = {
        "storage": str(folder / "storage"),
        "data": {"path": str(data), "split": {"validation": 0.15, "test": 0.25}},
        "task": {"type": "image_classification"},
        "teacher": {"model": str(teacher), "finetune": {"num_epochs": 12, "learning_rate": 3e-3}, "allow_chance": True},
        "student": {"num_layers": 2},
        "stages": {
            "distill": {
                "num_epochs": 3,
                "learning_rate": 1e-3,
                "losses": {"kd": {"type": "forward_kl"}, "task": {"type": "task", "weight": 0.5}},
            }
        },
        **small_run("stripes"),
    }
    return changed(config, changes)
