"""The three loops that the bench compares; each is an iterator that comes back between steps."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from datasets import Dataset
from problem import BATCH_SIZE, INFERENCE_TOKENS, LEARNING_RATE, USUAL_DROPOUT, WARMUP_RATIO, Problem, make_setup
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
)

from raydistill.cluster.device import KEPT_BYTES, Device, keep_freed_memory
from raydistill.cluster.group import Group
from raydistill.data.rows import Rows
from raydistill.models.folder import model_digest
from raydistill.models.signals import LOGITS
from raydistill.teacher.cached import RecordedSignals
from raydistill.teacher.record import record
from raydistill.teacher.store import signal_artifact
from raydistill.train.loop import train

TEMPERATURE, TASK_WEIGHT = 2.0, 0.5
DISTILLATION = {
    "kd": {"type": "forward_kl", "temperature": TEMPERATURE},
    "task": {"type": "task", "weight": TASK_WEIGHT},
}


USUAL_MALLOC = (32 * 2**20, 64 * 2**20)
"""The upper ends of glibc's dynamic thresholds, where a process that trains a model soon arrives."""


@dataclass
class Contender:
    """One way to train ``model``; ``steps`` yields the step it has come to."""

    model: PreTrainedModel
    steps: Iterator[int]
    dropout: float
    dtype: str
    malloc: tuple[int, ...] = USUAL_MALLOC
    """Bytes of the largest block that is kept when freed, and of all that are kept."""
    reached: int = 0
    seconds: float = 0.0
    record_seconds: float = 0.0
    ms_per_row: list[float] = field(default_factory=list)
    """Of each turn, training alone."""

    def take_turn(self, stop: int, rows_per_step: float, device: Device) -> None:
        """Train to step ``stop``, or as far beyond as the loop goes at once, and note the time."""
        keep_freed_memory(*self.malloc)
        before, recorded = self.reached, self.record_seconds
        started = time.perf_counter()
        while self.reached < stop:
            self.reached = next(self.steps)
        synchronize(device)
        taken = time.perf_counter() - started
        self.seconds += taken
        if self.reached > before:
            training = taken - (self.record_seconds - recorded)
            self.ms_per_row.append(1000 * training / (self.reached - before) / rows_per_step)

    def finish(self) -> None:
        """Let the loop end, which puts its last weights into the model."""
        for _ in self.steps:
            pass


def raydistill_loop(problem: Problem) -> Contender:
    """Record the teacher's logits, then train from the record; the recording belongs to the first turn."""
    model = problem.load(problem.student, 0.0)
    teacher = problem.load(problem.teacher, 0.0)
    contender = Contender(model, iter(()), 0.0, problem.device.dtype, malloc=(KEPT_BYTES, KEPT_BYTES))

    def steps() -> Iterator[int]:
        started = time.perf_counter()
        digest = model_digest(problem.teacher)
        artifact = signal_artifact(
            problem.storage, LOGITS, "train", teacher_digest=digest, tokens_digest="0", dtype=problem.device.dtype
        )
        wanted = {LOGITS: artifact}
        record(teacher, problem.rows, wanted, tokens=INFERENCE_TOKENS, device=problem.device, group=Group())
        signals = RecordedSignals(wanted, problem.rows.num_rows, verify=True)
        synchronize(problem.device)
        contender.record_seconds = time.perf_counter() - started
        for report in train(make_setup(problem, "student", model, DISTILLATION, signals, problem.num_epochs)):
            yield report.step

    contender.steps = steps()
    return contender


class DistillationTrainer(Trainer):
    """What one writes by hand: soft targets from a teacher that runs beside the student."""

    teacher: PreTrainedModel

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        labels = inputs.pop("labels")
        logits = model(**inputs).logits
        with torch.no_grad():
            teacher_logits = self.teacher(**inputs).logits
        log_student = F.log_softmax(logits / TEMPERATURE, dim=-1)
        log_teacher = F.log_softmax(teacher_logits / TEMPERATURE, dim=-1)
        soft = F.kl_div(log_student, log_teacher, log_target=True, reduction="batchmean") * TEMPERATURE**2
        return soft + TASK_WEIGHT * F.cross_entropy(logits, labels)


class Pauses(TrainerCallback):
    """Stand still after every step until it is this contender's turn again."""

    def __init__(self, pause: Callable[[int], None]) -> None:
        self.pause = pause

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.pause(state.global_step)


def trainer_loop(problem: Problem, *, pad_to_max: bool) -> Contender:
    """The Trainer with its defaults: float32, its own optimizer and linear schedule, the teacher in every step."""
    tokenizer = AutoTokenizer.from_pretrained(problem.student)
    student = AutoModelForSequenceClassification.from_pretrained(problem.student)
    teacher = AutoModelForSequenceClassification.from_pretrained(problem.teacher).to(problem.device.torch_device).eval()
    length = problem.max_length if pad_to_max else None
    folder = tempfile.mkdtemp(dir=problem.student.parent)
    arguments = TrainingArguments(
        folder,
        num_train_epochs=problem.num_epochs,
        per_device_train_batch_size=BATCH_SIZE,
        learning_rate=LEARNING_RATE,
        weight_decay=0.01,
        warmup_steps=round(WARMUP_RATIO * problem.schedule.num_steps),
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=problem.device.torch_device.type == "cuda",
    )

    steps = trainer_steps(
        DistillationTrainer,
        teacher,
        model=student,
        args=arguments,
        train_dataset=as_dataset(problem.rows, length),
        data_collator=default_data_collator if pad_to_max else DataCollatorWithPadding(tokenizer),
    )
    return Contender(student, steps, USUAL_DROPOUT, "float32")


def trainer_steps(kind: type[DistillationTrainer], teacher: PreTrainedModel, **settings: Any) -> Iterator[int]:
    """The steps of a Trainer of these settings, which stands still after each one."""

    def work(pause: Callable[[int], None]) -> None:
        trainer = kind(**settings, callbacks=[Pauses(pause)])
        trainer.remove_callback(PrinterCallback)
        trainer.teacher = teacher
        pause(0)
        trainer.train()

    steps = in_turns(work)
    next(steps)  # comes back where the trainer is built and nothing has been trained
    return steps


def as_dataset(rows: Rows, length: int | None) -> Dataset:
    """The rows' tokens as a data set; padded to ``length`` where it is given."""
    size = length or 0
    columns: dict[str, list[Any]] = {"input_ids": [], "attention_mask": [], "labels": rows.targets.values.tolist()}
    for start, count in zip(rows.starts, rows.lengths, strict=True):
        ids, padding = rows.values["input_ids"][start : start + count].tolist(), max(size - int(count), 0)
        columns["input_ids"].append(ids + [rows.pad_token_id] * padding)
        columns["attention_mask"].append([1] * int(count) + [0] * padding)
    return Dataset.from_dict(columns)


def in_turns(work: Callable[[Callable[[int], None]], None]) -> Iterator[int]:
    """Run ``work`` in a thread that stands still whenever it calls its argument, and yield what it called it with."""
    go, stands = threading.Semaphore(0), threading.Semaphore(0)
    steps: list[int] = []
    ended: list[BaseException | None] = []

    def pause(step: int) -> None:
        steps.append(step)
        stands.release()
        go.acquire()

    def main() -> None:
        go.acquire()
        try:
            work(pause)
            ended.append(None)
        except BaseException as error:  # raised again in the thread that asks for the next step
            ended.append(error)
        stands.release()

    threading.Thread(target=main, daemon=True).start()
    while True:
        go.release()
        stands.acquire()
        if ended and ended[0] is not None:
            raise ended[0]
        if ended:
            return
        yield steps[-1]


def synchronize(device: Device) -> None:
    if device.torch_device.type == "cuda":
        torch.cuda.synchronize()
