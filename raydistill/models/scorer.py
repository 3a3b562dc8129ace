"""Inference code that is stored beside a registered student; it runs without raydistill, on transformers and torch.

MLflow calls :func:`_load_pyfunc` with the folder of the model version, which is an ordinary Hugging Face folder.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

BATCH_ROWS = 32
NO_LIMIT = 10**9
"""A tokenizer that knows no limit says 10^30, which none of the fast ones takes as a length to cut to."""


class Scorer:
    """Texts in, the best label and its probability out."""

    def __init__(self, folder: str, max_length: int | None = None) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForSequenceClassification.from_pretrained(folder).to(self.device).eval()
        limits = [max_length, self.tokenizer.model_max_length, num_positions(self.model)]
        self.max_length = min((limit for limit in limits if limit and limit < NO_LIMIT), default=None)
        """Tokens that a row is cut to; None for a model that takes any number."""

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> list[dict[str, Any]]:
        """A DataFrame with a column ``text`` [and ``text_pair``], or one column of any name; a row gives
        ``{"label", "score"}``."""
        columns = list(model_input.columns)
        texts = model_input["text" if "text" in columns else columns[0]].astype(str).tolist()
        pairs = None
        if "text_pair" in columns:
            pairs = model_input["text_pair"].astype(str).tolist()
        scored: list[dict[str, Any]] = []
        for start in range(0, len(texts), BATCH_ROWS):
            rows = slice(start, start + BATCH_ROWS)
            scored.extend(self._score(texts[rows], pairs[rows] if pairs else None))
        return scored

    @torch.inference_mode()
    def _score(self, texts: list[str], pairs: list[str] | None) -> list[dict[str, Any]]:
        cut = {"truncation": True, "max_length": self.max_length} if self.max_length else {}
        inputs = self.tokenizer(texts, pairs, padding=True, return_tensors="pt", **cut)
        scores, labels = self.model(**inputs.to(self.device)).logits.float().softmax(-1).max(-1)
        names = self.model.config.id2label
        return [
            {"label": names[label], "score": score}
            for label, score in zip(labels.tolist(), scores.tolist(), strict=True)
        ]


def num_positions(model: torch.nn.Module) -> int | None:
    """Tokens that the model has positions for; RoBERTa's kin count them from behind their padding index."""
    positions = getattr(model.config, "max_position_embeddings", None)
    for name, module in model.named_modules():
        if positions and name.endswith(".position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return int(positions - module.padding_idx - 1)
    return positions


def _load_pyfunc(folder: str, model_config: dict[str, Any] | None = None) -> Scorer:
    return Scorer(folder, (model_config or {}).get("max_length"))
