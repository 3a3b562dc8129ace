"""What runs of known strength found: models' outputs on rows, for results, pages and cards."""

from typing import Any

import numpy as np

from raydistill.evaluate.results import ModelOutcome, Outcome, SplitRows

LATENCY = {"batch_size": 32, "length": 16, "repeats": 40, "threads": 2, "device": "cpu", "dtype": "float32"}


def outcome(
    num_classes: int = 3,
    num_rows: int = 500,
    teacher: float = 2.5,
    student: float = 2.3,
    baseline: float = 1.6,
    seed: int = 0,
) -> Outcome:
    """A run whose models find the same rows hard; the numbers say how much each knows (0: chance)."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(num_classes), rng.integers(0, num_classes, num_rows - num_classes)])
    shared = rng.normal(size=(num_rows, num_classes))

    def model(strength: float, size: int, speed: float, **more: Any) -> ModelOutcome:
        logits = 0.8 * shared + 0.3 * rng.normal(size=shared.shape) + strength * np.eye(num_classes)[labels]
        latency = LATENCY | {"latency_ms": {"p50": 12.0 / speed, "p95": 14.0 / speed}, "throughput": 400.0 * speed}
        path = "models/x"
        return ModelOutcome(path, size, 4 * size + 700, logits, logits, latency, **more)

    rows = SplitRows(labels, np.arange(num_rows))
    curve = [{"step": s, "metrics": {"train/loss": 2 / s, "train/loss/kd": 1 / s}} for s in range(1, 1001)]
    curve[-1]["metrics"]["validation/accuracy"] = 0.9
    return Outcome(
        class_names=[f"class {i}" for i in range(num_classes)],
        validation=rows,
        test=rows,
        teacher=model(teacher, 22_700_000, 1),
        student=model(student, 10_300_000, 2.9),
        baseline=model(baseline, 10_300_000, 2.9, steps=730, start="same"),
        run_id="0123",
        num_rows={"train": 4000, "validation": num_rows, "test": num_rows},
        labeled={"train": 150},
        seconds={"train": 30.123456789},
        reused=("data", "teacher"),
        curves={"student": curve, "baseline": curve[:300]},
        config={"evaluate": {"metric": "accuracy"}, "stages": {"distill": {"learning_rate": 5e-5}}},
        num_samples=300,
    )
