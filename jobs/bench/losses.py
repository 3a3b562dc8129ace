"""What each loss adds to a student's step, the teacher's signals being there already.

    python jobs/bench/losses.py            # all of them, about 4 minutes on 2 cores
    python jobs/bench/losses.py minilm_v2 attention_kl --tokens 128

A student of 3 layers, cut from a small encoder of 6, takes forward and backward passes of 32 sentences of BBC news. The
losses take turns, batch by batch; a ratio is the median over the batches of a loss's time beside that of ``forward_kl``
alone on the same batch. Each loss but ``forward_kl`` is computed beside it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import numpy as np
import torch
from problem import BATCH_SIZE, ENCODER, cut_sentences, tokenize
from rich.console import Console
from rich.table import Table

from raydistill.cluster.device import Device
from raydistill.config.losses import SECTIONS
from raydistill.config.schema import list_losses
from raydistill.config.student import EncoderStudent as Student
from raydistill.config.training import Stage
from raydistill.data.encoding import load_tokenizer
from raydistill.losses import Losses, build_losses
from raydistill.models.capture import capture
from raydistill.models.folder import resolve_model
from raydistill.models.head import Head
from raydistill.models.load import load_model
from raydistill.models.precision import attention_implementation, compute_dtype
from raydistill.models.student import build_student
from raydistill.tasks import TextClassification

ALONE = "forward_kl"
ROUNDS, BATCHES = 3, 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("losses", nargs="*", choices=[[], *SECTIONS], default=[])
    parser.add_argument("--tokens", type=int, default=64, help="longest row")
    given = parser.parse_args()
    known = [name for name, about in list_losses().items() if TextClassification.type in about["tasks"]]
    kinds = [name for name in given.losses or known if name not in (ALONE, "task")]

    name = "cuda" if torch.cuda.is_available() else "cpu"
    device, source = Device(name, compute_dtype("auto", name)), resolve_model(ENCODER)
    texts, _ = cut_sentences(BATCH_SIZE * BATCHES, 1)
    labels = tuple(sorted(set(texts[1])))
    rows = tokenize(texts, labels, load_tokenizer(source, given.tokens), given.tokens)
    attention = attention_implementation(name, device.dtype, given.tokens)
    teacher = load_model(source, Head(labels), attn_implementation=attention).to(device.torch_device).eval()
    student = build_student(teacher, Student(num_layers=3), seed=0).to(device.torch_device).train()
    built = {
        kind: with_soft_targets(kind, labels, student, teacher).to(device.torch_device) for kind in (ALONE, *kinds)
    }

    order = np.argsort(rows.lengths)
    batches = [rows.batch(order[i : i + BATCH_SIZE]) for i in range(0, len(order), BATCH_SIZE)]
    seconds: dict[str, list[float]] = {kind: [] for kind in built}
    for _ in range(ROUNDS):
        for batch in batches:
            inputs = device.move(batch.inputs)
            with torch.no_grad(), device.autocast():
                taught = capture(teacher, inputs, {s for losses in built.values() for s in losses.teacher_needs})
            for kind, losses in built.items():
                started = time.perf_counter()
                with device.autocast():
                    found = capture(student, inputs, losses.student_needs)
                    total, _ = losses(found, taught, batch, [float(n) for n in losses.counts([batch])])
                total.backward()
                if name == "cuda":
                    torch.cuda.synchronize()
                seconds[kind].append(time.perf_counter() - started)
                student.zero_grad(set_to_none=True)

    shown = Table("loss", "ms a step", f"times {ALONE} alone")
    for kind, own in seconds.items():
        timed = zip(own[BATCHES:], seconds[ALONE][BATCHES:], strict=True)  # the first round warms up
        ratios = [a / b for a, b in timed]
        shown.add_row(kind, f"{1e3 * statistics.median(own[BATCHES:]):.0f}", f"{statistics.median(ratios):.2f}")
    Console().print(shown)


def with_soft_targets(kind: str, labels: tuple[str, ...], student: Any, teacher: Any) -> Losses:
    """A loss of this kind beside ``forward_kl``."""
    terms = {ALONE: {"type": ALONE}} | ({kind: {"type": kind}} if kind != ALONE else {})
    stage = Stage.model_validate({"losses": terms})
    return build_losses(stage.losses, TextClassification(labels), student.config, teacher.config, seed=0)


if __name__ == "__main__":
    main()
