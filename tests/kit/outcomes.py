"""What runs of known strength found: models' outputs on rows, for results, pages and cards."""

from dataclasses import replace
from typing import Any

import numpy as np

from raydistill.evaluate.results import ModelOutcome, RunMeasurements, SplitRows
from raydistill.tasks import Targets, Task
from raydistill.tasks.multi_label import MultiLabelClassification
from raydistill.tasks.regression import TextRegression
from raydistill.tasks.text_classification import TextClassification

LATENCY = {"batch_size": 32, "length": 16, "repeats": 40, "threads": 2, "device": "cpu", "dtype": "float32"}


def names_of(num_classes: int) -> list[str]:
    return [f"class {i}" for i in range(num_classes)]


def outcome(
    num_classes: int = 3,
    num_rows: int = 500,
    teacher: float = 2.5,
    student: float = 2.3,
    baseline: float = 1.6,
    seed: int = 0,
) -> RunMeasurements:
    """A run whose models find the same rows hard; the numbers say how much each knows (0: chance)."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(num_classes), rng.integers(0, num_classes, num_rows - num_classes)])
    shared = rng.normal(size=(num_rows, num_classes))

    def outputs(strength: float) -> np.ndarray:
        return 0.8 * shared + 0.3 * rng.normal(size=shared.shape) + strength * np.eye(num_classes)[labels]

    found = {"teacher": outputs(teacher), "student": outputs(student), "baseline": outputs(baseline)}
    return outcome_of(TextClassification(names_of(num_classes)), labels, found)


def multi_label_outcome(num_labels: int = 4, num_rows: int = 500, seed: int = 0) -> RunMeasurements:
    """As ``outcome``, of rows with any number of labels; logits lie too low, so that thresholds matter."""
    rng = np.random.default_rng(seed)
    targets = (rng.random((num_rows, num_labels)) < 0.3).astype(np.int8)
    shared = rng.normal(size=targets.shape)
    found = {
        name: strength * (targets - 0.5) + shared + 0.3 * rng.normal(size=targets.shape) - 1.5
        for name, strength in (("teacher", 4.0), ("student", 3.6), ("baseline", 2.2))
    }
    return outcome_of(MultiLabelClassification([f"label {i}" for i in range(num_labels)]), targets, found)


def regression_outcome(
    num_rows: int = 500, seed: int = 0, noise: tuple[float, float, float] = (0.5, 0.6, 1.2)
) -> RunMeasurements:
    """As ``outcome``, of numbers around 10; ``noise`` of teacher, student and baseline."""
    rng = np.random.default_rng(seed)
    targets = rng.normal(10, 2, num_rows)
    shared = rng.normal(size=num_rows)
    found = {
        name: (targets + size * (0.8 * shared + 0.6 * rng.normal(size=num_rows)))[:, None]
        for name, size in zip(("teacher", "student", "baseline"), noise, strict=True)
    }
    return outcome_of(TextRegression(float(targets.mean()), float(targets.std())), targets, found)


def with_perturbed(run: RunMeasurements, lost: dict[str, tuple[float, float]], seed: int = 1) -> RunMeasurements:
    """The run with test rows written otherwise: by perturbation the noise that it adds to the teacher's outputs and to
    those of the others. ``lower`` is there too, and changes nothing."""
    rng = np.random.default_rng(seed)
    names, num_rows = ("teacher", "student", "baseline"), len(run.test.targets)

    def perturbed(model: ModelOutcome, place: int) -> ModelOutcome:
        noisy = {k: model.test + sizes[place > 0] * rng.normal(size=model.test.shape) for k, sizes in lost.items()}
        return replace(model, perturbed=noisy)

    models = {name: perturbed(getattr(run, name), place) for place, name in enumerate(names)}
    counts = {"lower": {"texts": num_rows, "tokens": 0}}
    counts |= {kind: {"texts": num_rows, "tokens": num_rows // 2} for kind in lost}
    return replace(run, perturbed=counts, **models)


def outcome_of(task: Task, values: np.ndarray, outputs: dict[str, np.ndarray]) -> RunMeasurements:
    """A run in which models have these outputs on validation rows and the same ones on test rows."""
    num_rows = len(values)

    def model(name: str, size: int, speed: float, **more: Any) -> ModelOutcome:
        found = outputs[name]
        latency = LATENCY | {"latency_ms": {"p50": 12.0 / speed, "p95": 14.0 / speed}, "throughput": 400.0 * speed}
        return ModelOutcome("models/x", size, 4 * size + 700, task.fitted(found, values), found, found, latency, **more)

    targets = Targets(values, np.ones(num_rows, bool))
    rows = SplitRows(targets, np.arange(num_rows))
    curve = [{"step": s, "metrics": {"train/loss": 2 / s, "train/loss/kd": 1 / s}} for s in range(1, 1001)]
    curve[-1]["metrics"]["validation/accuracy"] = 0.9
    return RunMeasurements(
        task=task,
        validation=rows,
        test=rows,
        teacher=model("teacher", 22_700_000, 1),
        student=model("student", 10_300_000, 2.9),
        baseline=model("baseline", 10_300_000, 2.9, more={"steps": 730, "start": "same"}),
        run_id="0123",
        num_rows={"train": 4000, "validation": num_rows, "test": num_rows},
        labeled={"train": 150},
        summary=task.summary(targets),
        seconds={"train": 30.123456789},
        reused=("data", "teacher"),
        curves={"student": curve, "baseline": curve[:300]},
        config={"evaluate": {"metric": None}, "stages": {"distill": {"learning_rate": 5e-5}}},
        num_samples=300,
    )
