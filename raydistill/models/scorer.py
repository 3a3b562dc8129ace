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
    """Texts in, answers out: what they look like depends on the ``problem_type`` in config.json."""

    def __init__(self, folder: str, max_length: int | None = None) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForSequenceClassification.from_pretrained(folder).to(self.device).eval()
        limits = [max_length, self.tokenizer.model_max_length, num_positions(self.model)]
        self.max_length = min((limit for limit in limits if limit and limit < NO_LIMIT), default=None)
        """Tokens that a row is cut to; None for a model that takes any number."""
        self.names = [name for _, name in sorted(self.model.config.id2label.items())]
        usual = "regression" if len(self.names) == 1 else "single_label_classification"
        self.answers = {"regression": self._value, "multi_label_classification": self._labels}.get(
            self.model.config.problem_type or usual, self._label
        )
        thresholds = getattr(self.model.config, "thresholds", None) or [0.5] * len(self.names)
        self.thresholds = torch.tensor(thresholds, dtype=torch.float64)
        """Probabilities from which on a label is given, where a row has any number of them."""

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> list[dict[str, Any]]:
        """A DataFrame with a column ``text`` [and ``text_pair``], or one column of any name.

        A row gives ``{"label", "score"}``, the best label and its probability; with any number of labels a row
        ``{"labels", "scores"}``, those given and the probabilities of all; or ``{"value"}``, a number.
        """
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
        return self.answers(self.model(**inputs.to(self.device)).logits.float().cpu())

    def _label(self, logits: torch.Tensor) -> list[dict[str, Any]]:
        scores, labels = logits.softmax(-1).max(-1)
        found = zip(labels.tolist(), scores.tolist(), strict=True)
        return [{"label": self.names[label], "score": score} for label, score in found]

    def _labels(self, logits: torch.Tensor) -> list[dict[str, Any]]:
        scores = logits.double().sigmoid()
        return [
            {
                "labels": [name for name, is_given in zip(self.names, given, strict=True) if is_given],
                "scores": dict(zip(self.names, row, strict=True)),
            }
            for row, given in zip(scores.tolist(), (scores >= self.thresholds).tolist(), strict=True)
        ]

    def _value(self, logits: torch.Tensor) -> list[dict[str, Any]]:
        return [{"value": value} for value in logits[:, 0].tolist()]


def num_positions(model: torch.nn.Module) -> int | None:
    """Tokens that the model has positions for; RoBERTa's kin count them from behind their padding index."""
    positions = getattr(model.config, "max_position_embeddings", None)
    for name, module in model.named_modules():
        if positions and name.endswith(".position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return int(positions - module.padding_idx - 1)
    return positions


def _load_pyfunc(folder: str, model_config: dict[str, Any] | None = None) -> Scorer:
    return Scorer(folder, (model_config or {}).get("max_length"))
