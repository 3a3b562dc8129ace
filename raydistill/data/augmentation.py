"""Copies of training texts, written otherwise (data.augment): more texts of which a teacher can say something. Of
pictures see ``views``.

``words``  each word of two letters or more that the vocabulary has whole is replaced, with probability ``WORD_SHARE``,
           by one of the ``NEAREST`` words whose token embeddings have the highest cosine with its own. After TinyBERT
           (https://arxiv.org/abs/1909.10351), which lets a masked language model guess where a word has several tokens
``masked`` as many words are masked at once, and each replaced by one of the ``NEAREST`` words that a masked language
           model finds likeliest there
``crop``   a run of half of the words or more, any as likely
``typos``, ``lower``, ``upper``: see ``perturbations``

What a copy says depends on the seed, the row and the copy's number alone.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from raydistill.config.data import Augment, Way
from raydistill.data.typos import WORD, in_case, with_typos

WORD_SHARE = 0.2
NEAREST = 8
WORDS_PER_CALL = 1000
RULES = 1
"""Raised when copies are written otherwise: they are then written, and everything from them made, anew."""
_BEGINS = ("Ġ", "▁")
"""What tokens begin with, in byte-level and SentencePiece vocabularies, that stand after a space."""


@dataclass(frozen=True)
class Augmentation:
    """What copies are made, and in which folder the model is whose embeddings say which words are near."""

    settings: Augment
    seed: int
    model: Path
    trusted: bool = False
    """Whether the model's own code may run."""
    masked: Path | None = None
    """The folder of the masked language model, where words are guessed."""
    keeps_labels: bool = False
    """Whether copies have the labels of their rows, as far as they show what these speak of."""

    def recipe(self) -> dict[str, Any]:
        """What the copies depend on, beside the texts."""
        from raydistill.models.folder import model_digest

        own = self.settings.recipe(exclude={"masked_model"})
        own |= {"seed": self.seed, "rules": RULES}
        own |= {"masked_model": model_digest(self.masked)} if self.masked is not None else {}
        own |= {"keeps_labels": True} if self.keeps_labels and self.settings.num_copies else {}
        return own | ({"model": model_digest(self.model)} if "words" in self.settings.ways else {})

    def copies_of(self, texts: Sequence[pa.Array], tokenizer: Any, masking: Any = None) -> Iterator[list[pa.Array]]:
        """The texts of all rows, one column or two, once for each copy; ``masking``: the masked language model's
        tokenizer."""
        columns = [column.to_pylist() for column in texts]
        ways = self.settings.ways
        used = {word for column in columns for text in column for word in WORD.findall(text.lower())}
        others = similar_words(token_embeddings(self.model, self.trusted), tokenizer, used) if "words" in ways else {}
        guess = self._guesses(masking)
        for copy in range(self.settings.num_copies):
            way = ways[copy % len(ways)]
            draws = [random.Random(f"{self.seed} {copy} {number}") for number in range(len(columns[0]))]
            made = []
            for column in columns:
                if way == "masked":
                    made.append(guess(column, draws))
                else:
                    made.append([written(text, way, draw, others) for text, draw in zip(column, draws, strict=True)])
            yield [pa.array(column, old.type) for column, old in zip(made, texts, strict=True)]

    def _guesses(self, tokenizer: Any) -> Any:
        """What writes copies of texts in which words are guessed, given what draws for each."""
        if self.masked is None:
            return None
        from raydistill.data.masked import MaskedModel, masked_copies

        model = MaskedModel(self.masked, tokenizer, whole_words(tokenizer))
        return partial(masked_copies, model=model, share=WORD_SHARE, count=NEAREST)


def written(text: str, way: Way, draw: random.Random, others: Mapping[str, Sequence[str]]) -> str:
    """A text in another way; ``others``: what words, lower-cased, may be replaced by."""
    match way:
        case "words":
            return WORD.sub(lambda found: replaced(found[0], draw, others), text)
        case "crop":
            words = text.split()
            kept = draw.randint((len(words) + 1) // 2, len(words)) if words else 0
            start = draw.randint(0, len(words) - kept)
            return " ".join(words[start : start + kept])
        case "typos":
            return with_typos(text, draw)
        case _:  # lower, upper
            return str(getattr(text, way)())


def replaced(word: str, draw: random.Random, others: Mapping[str, Sequence[str]]) -> str:
    """A word, or another one in its place, with a capital where it has one."""
    near = others.get(word.lower())
    if draw.random() >= WORD_SHARE or not near:
        return word
    return in_case(word, draw.choice(near))


def similar_words(table: np.ndarray, tokenizer: Any, used: set[str]) -> dict[str, list[str]]:
    """The nearest other words of each ``used`` word that is one token, by cosines in the ``table`` of embeddings."""
    whole = whole_words(tokenizer)
    words, wanted = [*whole], sorted(used & whole.keys())
    table = table[[whole[word] for word in words]]
    table = table / np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-12)
    place = {word: i for i, word in enumerate(words)}
    found: dict[str, list[str]] = {}
    for start in range(0, len(wanted), WORDS_PER_CALL):
        some = wanted[start : start + WORDS_PER_CALL]
        cosines = table[[place[word] for word in some]] @ table.T
        cosines[np.arange(len(some)), [place[word] for word in some]] = -2.0
        nearest = np.argsort(-cosines, axis=1, kind="stable")[:, :NEAREST]
        found |= {word: [words[i] for i in row] for word, row in zip(some, nearest, strict=True)}
    return found


def whole_words(tokenizer: Any) -> dict[str, int]:
    """Ids of the vocabulary's tokens that are words, lower-cased, of two letters or more."""
    vocabulary = tokenizer.get_vocab()
    marks = [mark for mark in _BEGINS if sum(token.startswith(mark) for token in vocabulary) > len(vocabulary) // 10]
    found: dict[str, int] = {}
    for token, number in sorted(vocabulary.items(), key=lambda pair: pair[1]):
        if marks and not token.startswith(marks[0]):
            continue
        word = token.removeprefix(marks[0]) if marks else token
        if WORD.fullmatch(word):
            found.setdefault(word.lower(), number)
    return found


def token_embeddings(folder: Path, trusted: bool) -> np.ndarray:
    """The table of token embeddings of a model's folder, float32, (vocabulary, width)."""
    from raydistill.models.head import Head
    from raydistill.models.load import load_model

    model = load_model(folder, Head(("0", "1")), trust_remote_code=trusted)
    table: Any = model.get_input_embeddings().weight
    found: np.ndarray = table.detach().float().numpy()
    return found
