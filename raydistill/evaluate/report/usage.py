"""The lines of Python that use a student: the same on a run's page and in a model card."""

from __future__ import annotations

import json

from raydistill.tasks.base import Task


def loading_code(task: Task, model: str, max_length: int, has_pairs: bool = False) -> str:
    """Three lines that cut texts as in training."""
    name = json.dumps(model, ensure_ascii=False)
    options = ["truncation=True", f"max_length={max_length}", task.pipeline_options]
    text = '{"text": "…", "text_pair": "…"}' if has_pairs else '"…"'
    return (
        "from transformers import pipeline\n"
        f'model = pipeline("{task.pipeline_tag}", {name}, {", ".join(filter(None, options))})\n'
        f"print(model({text}))"
    )
