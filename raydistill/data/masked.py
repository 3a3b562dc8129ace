"""Copies of texts in which a masked language model guesses some words anew (the way ``masked`` of data.augment)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForMaskedLM

from raydistill.data.typos import WORD, in_case
from raydistill.errors import ModelError
from raydistill.models.checks import first_line
from raydistill.models.scorer import num_positions

TEXTS_PER_CALL = 32


class MaskedModel:
    """A masked language model with its tokenizer; ``words``: the ids of tokens that are words, by these."""

    def __init__(self, folder: Path, tokenizer: Any, words: dict[str, int]) -> None:
        """Raises ModelError where there is no trained head, or no token for a mask."""
        try:
            self.model, about = AutoModelForMaskedLM.from_pretrained(folder, output_loading_info=True)
        except (ValueError, OSError) as error:
            raise ModelError(f"data.augment.masked_model: {folder} cannot be loaded: {first_line(error)}") from error
        if about["missing_keys"] or tokenizer.mask_token is None:
            raise ModelError(
                f"data.augment.masked_model: {folder} is not a masked language model: it has no trained head, or its "
                "tokenizer no token for a mask. Name one such as google-bert/bert-base-uncased."
            )
        self.model.eval()
        self.tokenizer = tokenizer
        self.words = [*words]
        self.ids = torch.tensor([words[word] for word in self.words])

    @torch.inference_mode()
    def likely(self, texts: Sequence[str], count: int) -> list[list[list[str]]]:
        """The ``count`` likeliest words at each mask of each text, the likeliest first; texts are cut where the model
        ends, and masks behind that are not answered."""
        limit = min(self.tokenizer.model_max_length, num_positions(self.model) or 512)
        found: list[list[list[str]]] = []
        for start in range(0, len(texts), TEXTS_PER_CALL):
            some = list(texts[start : start + TEXTS_PER_CALL])
            options = {"padding": True, "truncation": True, "max_length": limit, "return_tensors": "pt"}
            inputs = self.tokenizer(some, **options)
            logits = self.model(**inputs).logits
            for ids, scores in zip(inputs["input_ids"], logits, strict=True):
                best = scores[ids == self.tokenizer.mask_token_id][:, self.ids].topk(min(count, len(self.ids)))
                found.append([[self.words[i] for i in row] for row in best.indices.tolist()])
        return found


def masked_copies(
    texts: Sequence[str], draws: Sequence[random.Random], model: MaskedModel, share: float, count: int
) -> list[str]:
    """Each text with a ``share`` of its words masked at once, and one of the ``count`` likeliest others in their place.

    ``draws``: of each text, what decides.
    """
    spans = [
        [found.span() for found in WORD.finditer(text) if draw.random() < share]
        for text, draw in zip(texts, draws, strict=True)
    ]
    mask = model.tokenizer.mask_token
    hidden = [_with(text, own, [mask] * len(own)) for text, own in zip(texts, spans, strict=True)]
    made = []
    for text, own, guessed, draw in zip(texts, spans, model.likely(hidden, count + 1), draws, strict=True):
        words = [text[a:b] for a, b in own]
        for place, likely in enumerate(guessed[: len(own)]):
            others = [word for word in likely if word != words[place].lower()][:count]
            words[place] = in_case(words[place], draw.choice(others)) if others else words[place]
        made.append(_with(text, own, words))
    return made


def _with(text: str, spans: Sequence[tuple[int, int]], words: Sequence[str]) -> str:
    """A text with these words at these spans."""
    parts, end = [], 0
    for (a, b), word in zip(spans, words, strict=True):
        parts += [text[end:a], word]
        end = b
    return "".join([*parts, text[end:]])
