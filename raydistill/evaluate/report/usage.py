"""The lines of Python that use a student: the same on a run's page and in a model card."""

from __future__ import annotations

import json
import os

from raydistill.tasks.base import Task


def loading_code(task: Task, model: str, max_length: int | None = None, has_pairs: bool = False) -> str:
    """Three lines that cut texts as in training; ``max_length`` None, of results that do not say it: as the tokenizer
    does."""
    name = json.dumps(model, ensure_ascii=False)
    options = ["truncation=True", *([] if max_length is None else [f"max_length={max_length}"]), task.pipeline_options]
    text = '{"text": "…", "text_pair": "…"}' if has_pairs else '"…"'
    return (
        "from transformers import pipeline\n"
        f'model = pipeline("{task.pipeline_tag}", {name}, {", ".join(filter(None, options))})\n'
        f"print(model({text}))"
    )


def registered_code(name: str, version: int, storage: str, has_pairs: bool = False) -> str:
    """Lines that load a registered student by its name; without raydistill, as ``loading_code``."""
    text = '{"text": "…", "text_pair": "…"}' if has_pairs else '"…"'
    is_elsewhere = "://" in storage or bool(os.environ.get("MLFLOW_TRACKING_URI", "").strip())
    store = f"mlflow.set_tracking_uri({json.dumps(f'sqlite:///{storage}/mlflow.db', ensure_ascii=False)})\n"
    return (
        f"import mlflow{'  # set MLFLOW_TRACKING_URI' if is_elsewhere else ''}\n\n"
        f"{'' if is_elsewhere else store}"
        f'model = mlflow.pyfunc.load_model("models:/{name}/{version}")\n'
        f"print(model.predict([{text}]))"
    )
