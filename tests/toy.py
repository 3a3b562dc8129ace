"""A toy problem in code: sentences whose topic is told by their words, a tiny fine-tuned or plain teacher, a config."""

from __future__ import annotations

import csv
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny import WORDS, save_tiny

TOPICS = {
    "film": ("film", "movie", "plot", "actor", "scene"),
    "money": ("market", "share", "price", "bank", "money"),
    "sport": ("team", "match", "goal", "win", "lose"),
}


def write_toy_csv(path: Path, num_rows: int = 240, seed: int = 0) -> Path:
    """Write sentences of 4 to 18 words, a third of them about the topic; columns text and label."""
    draw = random.Random(seed)
    seen: set[str] = set()
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        while len(seen) < num_rows:
            topic = draw.choice(list(TOPICS))
            words = [draw.choice(TOPICS[topic] if draw.random() < 0.35 else WORDS) for _ in range(draw.randint(4, 18))]
            if (text := " ".join(words)) not in seen:
                seen.add(text)
                writer.writerow([text, topic])
    return path


def toy_config(folder: Path, **changes: Any) -> dict[str, Any]:
    """A config that distils a tiny BERT on the toy sentences in local mode; ``changes`` are dotted names with __."""
    data, teacher = folder / "toy.csv", folder / "encoder"
    if not data.exists():
        write_toy_csv(data)
        save_tiny(teacher, "bert", classifier=False)
    config: dict[str, Any] = {
        "storage": str(folder / "storage"),
        "data": {"path": str(data), "max_length": 20, "max_labeled": 60},
        "teacher": {"model": str(teacher), "finetune": {"num_epochs": 6, "learning_rate": 2e-3}},
        "student": {"num_layers": 2},
        "stages": {
            "distill": {
                "num_epochs": 2,
                "learning_rate": 1e-3,
                "losses": {"kd": {"type": "forward_kl"}, "task": {"type": "task", "weight": 0.5}},
            }
        },
        "train": {"num_workers": 0, "global_batch_size": 16, "dtype": "float32", "checkpoint_steps": 5},
        "evaluate": {"bootstrap_samples": 100, "latency": False, "baseline": True},
        "tracking": {"system_metrics": False},
        "registry": {"name": "toy"},
    }
    for name, value in changes.items():
        *parents, leaf = name.split("__")
        section = config
        for parent in parents:
            section = section.setdefault(parent, {})
        section[leaf] = value
    return config


def _rank_main(rank: int, function: Callable[..., Any], size: int, folder: str, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=size)
    try:
        torch.save(function(*arguments), f"{folder}/{rank}.pt")
    finally:
        torch.distributed.destroy_process_group()


def run_ranks(function: Callable[..., Any], size: int, folder: Path, *arguments: Any) -> list[Any]:
    """Run ``function(*arguments)`` in ``size`` gloo processes and return what each returned."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.multiprocessing.spawn(_rank_main, (function, size, str(folder), arguments), nprocs=size)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(size)]


def relative_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> dict[str, float]:
    """Largest difference of each tensor, as a share of the tensor's largest value."""
    assert a.keys() == b.keys()
    return {n: float((a[n] - b[n]).abs().max() / a[n].abs().max().clamp_min(1e-12)) for n in a}


def without_key_biases(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Drop key-projection biases: their true gradient is zero, so all they hold is rounding."""
    return {name: tensor for name, tensor in tensors.items() if not name.endswith("key.bias")}


def draw_rows(num_rows: int, of: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).permutation(of)[:num_rows]
