"""What a small student keeps of its teacher on pictures, and what the teacher adds to the labels: on digits.

    python jobs/bench/digits.py              # ten minutes on 2 cores

scikit-learn's 1,797 digits of 8 x 8 pixels: 600 are the test, 200 of the others have labels unless ``--labels`` says
more. No model of pictures can be had without a download, so the teacher, a ViT of 6 layers of width 64 that sees 17
patches, starts from random weights and is fitted to the labels by raydistill itself. Students: 2 of its layers, and a
ResNet of two stages. Each and its baseline, which sees the labels alone, are trained with three seeds. With
``--augment each_epoch``, or a number of copies, they see crops of half of a digit or more.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import raydistill  # before torch

SIZE, PIXELS = 32, 8
STUDENTS = {"2 of 6 layers": {"num_layers": 2}, "ResNet": {"start": "resnet"}}
SEEDS = 3


def write_digits(folder: Path) -> Path:
    """A folder a digit, a third of all in the folder test."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(pixels))
    for place, row in enumerate(order):
        split = folder / ("test" if place < 600 else "train") / str(labels[row])
        split.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray((pixels[row].reshape(PIXELS, PIXELS) * (255 / 16)).astype(np.uint8))
        picture.save(split / f"{row:04d}.png")
    return folder


def save_models(folder: Path) -> None:
    """A ViT and a ResNet with random weights, and the processor of both."""
    import torch
    from transformers import AutoModel, ResNetConfig, ViTConfig, ViTImageProcessorPil

    shape = {"hidden_size": 64, "num_hidden_layers": 6, "num_attention_heads": 4, "intermediate_size": 128}
    configs = {
        "vit": ViTConfig(**shape, image_size=SIZE, patch_size=8),
        "resnet": ResNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic"),
    }
    for name, config in configs.items():
        torch.manual_seed(0)
        AutoModel.from_config(config).save_pretrained(folder / name)
        ViTImageProcessorPil(size={"height": SIZE, "width": SIZE}).save_pretrained(folder / name)


def measure(folder: Path, student: dict[str, Any], labels: int, copies: str | None) -> dict[str, Any]:
    """The results of one student and its baseline; ``copies``: of the training rows, see ``data.augment``."""
    start = {"start": str(folder / student["start"])} if "start" in student else {}
    number = copies if copies is None or copies == "each_epoch" else int(copies)
    crops = {} if number is None else {"augment": {"copies": number, "ways": ["crop"], "crop_area": 0.5}}
    return raydistill.distill(
        {
            "storage": str(folder / "storage"),
            "data": {"path": str(folder / "digits"), "max_labeled": labels, **crops},
            "task": {"type": "image_classification"},
            "teacher": {"model": str(folder / "vit"), "finetune": {"num_epochs": 60, "learning_rate": 1e-3}},
            "student": student | start,
            "stages": {"distill": {"num_epochs": 20, "learning_rate": 1e-3}},
            "train": {"num_workers": 0},
            "evaluate": {"baseline": True, "seeds": SEEDS},
        }
    )


def main() -> None:
    reader = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    reader.add_argument("--labels", type=int, default=200)
    reader.add_argument("--augment", metavar="COPIES")
    given = reader.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_digits(folder / "digits")
        save_models(folder)
        print(f"accuracy on 600 digits, %, mean of {SEEDS} seeds ± deviation; {given.labels} labels")
        for name, student in STUDENTS.items():
            found = measure(folder, student, given.labels, given.augment)
            teacher, seeds = found["teacher"]["test"]["accuracy"], found["seeds"]
            means = [seeds[model]["test"]["accuracy"] for model in ("student", "baseline")]
            told = [f"{100 * one['mean']:.1f} ± {100 * one['sd']:.1f}" for one in means]
            ratio = f"{100 * found['ratios']['num_parameters']:.0f} % of the parameters"
            faster = f"{1 / found['ratios']['latency_p50']:.1f} x as fast"
            print(f"{name}: teacher {100 * teacher['value']:.1f}, student {told[0]}, without teacher {told[1]}")
            print(f"    {ratio}, {faster}")


if __name__ == "__main__":
    main()
