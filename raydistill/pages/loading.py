"""The lines of Python that use a student: the same on a run's page and in a model card."""

from __future__ import annotations

import json


def loading_code(model: str, max_length: int | None = None, has_pairs: bool = False) -> str:
    """Three lines that cut texts as in training; ``max_length`` None, of results that do not say it: as the tokenizer
    does."""
    name = json.dumps(model, ensure_ascii=False)
    length = "" if max_length is None else f", max_length={max_length}"
    text = '{"text": "…", "text_pair": "…"}' if has_pairs else '"…"'
    return (
        "from transformers import pipeline\n"
        f'classify = pipeline("text-classification", {name}, truncation=True{length})\n'
        f"print(classify({text}))"
    )
