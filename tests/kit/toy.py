"""A toy problem in code: sentences whose topic is told by their words, a tiny fine-tuned or plain teacher, a config."""

from __future__ import annotations

import csv
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from kit.tiny import WORDS, save_tiny, tiny_classifier
from raydistill.cluster.device import Device
from raydistill.cluster.group import Group
from raydistill.config.loading import load_config
from raydistill.config.student import EncoderStudent
from raydistill.config.training import Optimization, Stage
from raydistill.config.training import Train as TrainSettings
from raydistill.config.tree import Config
from raydistill.data.prepare import prepare_data, read_info
from raydistill.data.rows import Rows
from raydistill.data.tokens import tokenize_data
from raydistill.evaluate.predict import predict
from raydistill.losses import Losses, build_losses
from raydistill.models.student import build_student
from raydistill.storage.artifacts import Artifact
from raydistill.storage.storage import Storage
from raydistill.tasks import TextClassification
from raydistill.teacher.signals import OnlineSignals
from raydistill.train.checkpoint import Checkpoints
from raydistill.train.loop import Setup, Validation
from raydistill.train.schedule import Schedule

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
        "teacher": {"model": str(teacher), "finetune": {"num_epochs": 6, "learning_rate": 2e-3}, "allow_chance": True},
        "student": {"num_layers": 2},
        "stages": {
            "distill": {
                "num_epochs": 2,
                "learning_rate": 1e-3,
                "losses": {"kd": {"type": "forward_kl"}, "task": {"type": "task", "weight": 0.5}},
            }
        },
        **small_run("toy"),
    }
    return changed(config, changes)


def small_run(name: str) -> dict[str, Any]:
    """Sections of a run in local mode that is over soon; ``name``: in the registry."""
    return {
        "train": {"num_workers": 0, "global_batch_size": 16, "dtype": "float32", "checkpoint_steps": 5},
        "evaluate": {"bootstrap_samples": 100, "latency": False, "baseline": True},
        "tracking": {"system_metrics": False},
        "registry": {"name": name, "challenger": True},
    }


def changed(config: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """The config, changed in place: ``changes`` are dotted names with __."""
    for name, value in changes.items():
        *parents, leaf = name.split("__")
        section = config
        for parent in parents:
            section = section.setdefault(parent, {})
        section[leaf] = value
    return config


def relative_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> dict[str, float]:
    """Largest difference of each tensor, as a share of the tensor's largest value."""
    assert a.keys() == b.keys()
    return {n: float((a[n] - b[n]).abs().max() / a[n].abs().max().clamp_min(1e-12)) for n in a}


def without_key_biases(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Drop key-projection biases: their true gradient is zero, so all they hold is rounding."""
    return {name: tensor for name, tensor in tensors.items() if not name.endswith("key.bias")}


@dataclass(frozen=True)
class Toy:
    """The toy data, prepared and tokenised, with a tiny teacher: what a loop needs, without a pipeline."""

    folder: Path
    storage: Storage
    tokens: Artifact
    labels: tuple[str, ...]

    def rows(self, split: str = "train") -> Rows:
        return Rows.open(self.tokens.local(), split)

    def teacher(self) -> PreTrainedModel:
        return tiny_classifier("bert", num_layers=4, seed=3, labels=self.labels)

    def student(self, **shape: Any) -> PreTrainedModel:
        return build_student(self.teacher(), EncoderStudent(num_layers=2, **shape), seed=0)

    def losses(self, student: PreTrainedModel, **terms: dict[str, Any]) -> Losses:
        terms = terms or {"kd": {"type": "forward_kl"}, "task": {"type": "task", "weight": 0.5}}
        stage = Stage.model_validate({"losses": terms})
        task = TextClassification(self.labels)
        return build_losses(stage.losses, task, student.config, self.teacher().config, seed=0)

    def setup(
        self, name: str, losses: Losses | None = None, model: PreTrainedModel | None = None, **changes: Any
    ) -> Setup:
        """Two epochs of batch 32 on all training rows, teacher online; ``changes`` replace fields of the setup."""
        model = model or self.student()
        losses = losses if losses is not None else self.losses(model)
        rows, validation = self.rows(), self.rows("validation")
        device, group = Device(), Group()
        settings = TrainSettings.model_validate(
            {"num_workers": 0, "global_batch_size": 32, "checkpoint_steps": 3, **changes.pop("train", {})}
        )
        optimization = Optimization.model_validate({"learning_rate": 1e-3, **changes.pop("optimization", {})})

        def validate() -> Validation:
            logits = predict(model, validation, tokens=4096, device=device, group=group)
            accuracy = float((logits.argmax(1) == validation.targets.values).mean())
            return Validation({"accuracy": accuracy}, accuracy)

        fields: dict[str, Any] = {
            "name": name,
            "model": model,
            "losses": losses,
            "signals": OnlineSignals(self.teacher(), losses.teacher_needs, device),
            "rows": rows,
            "row_ids": np.arange(rows.num_rows),
            "schedule": Schedule.of_epochs(rows.num_rows, settings.global_batch_size, Optimization(num_epochs=2)),
            "optimization": optimization,
            "settings": settings,
            "seed": 0,
            "validate": validate,
            "checkpoints": Checkpoints(self.storage, ("runs", "toy", name)),
            "group": group,
            "device": device,
        }
        return Setup(**(fields | changes))


def make_toy(folder: Path, max_labeled: int | None = 60) -> Toy:
    folder.mkdir(parents=True, exist_ok=True)
    config = load_config(toy_config(folder, data__max_labeled=max_labeled))
    storage = Storage(config.storage)
    data = prepare_data(config, storage)
    tokens = tokenize_data(data, folder / "encoder", config.data.max_length, storage)
    return Toy(folder, storage, tokens, read_info(data).labels)


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def sweep_config(folder: Path, space: dict[str, Any] | None = None, **changes: Any) -> Config:
    """The toy with a sweep: ``changes`` of the config are dotted names with __, those of its ``sweep`` plain."""
    about = {name: changes.pop(name) for name in list(changes) if "__" not in name}
    chosen = space or {
        "stages.distill.losses.kd.temperature": {"uniform": [1, 8]},
        "student.num_layers": {"choice": [1, 2, 4]},
    }
    content = toy_config(folder, **{"train__num_workers": 1, **changes})
    return load_config({**content, "sweep": {"space": chosen, "scheduler": "none", **about}})
