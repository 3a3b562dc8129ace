"""Documents whose hidden words can be told by their neighbours, a tiny BERT with a WordPiece vocabulary, a config."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from kit.tiny import MAX_LENGTH, tiny_encoder, tiny_masked_model
from kit.toy import changed, small_run

PAIRS = {
    "good": "film",
    "bad": "movie",
    "market": "price",
    "team": "goal",
    "law": "party",
    "web": "code",
    "music": "song",
    "the": "play",
    "very": "poor",
}
"""Words, and what mostly stands behind them."""
PIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "##s", "##ed", "##ing", "and", "was", "in", ".", ",")
VOCABULARY = (*PIECES, *PAIRS, *PAIRS.values())


def wordpiece() -> PreTrainedTokenizerFast:
    """A lower-casing tokenizer of BERT's kind over VOCABULARY."""
    ids = {token: i for i, token in enumerate(VOCABULARY)}
    backend = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    special = [("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])]
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=special
    )
    names = {f"{name.lower()}_token": f"[{name}]" for name in ("PAD", "UNK", "CLS", "SEP", "MASK")}
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=MAX_LENGTH, **names)


def document(draw: random.Random, num_words: int) -> str:
    """Pairs of words one after another, one in ten pairs broken."""
    words: list[str] = []
    while len(words) < num_words:
        first = draw.choice(list(PAIRS))
        second = PAIRS[first] if draw.random() < 0.9 else draw.choice(list(PAIRS.values()))
        words += [first, draw.choice((second, f"{second}s")), *draw.choice(((), ("and",), (".",)))]
    return " ".join(words)


def documents(num: int, seed: int = 0, longest: int = 90) -> list[str]:
    """Different documents of 3 words and more."""
    draw = random.Random(seed)
    return list(dict.fromkeys(document(draw, draw.randint(3, longest)) for _ in range(num)))


def write_corpus(folder: Path, num: int = 300, seed: int = 0) -> Path:
    """A folder of .txt files."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, text in enumerate(documents(num, seed)):
        (folder / f"{i:04d}.txt").write_text(text)
    return folder


def save_masked(folder: Path, *, has_head: bool = True, num_layers: int = 2, seed: int = 3) -> Path:
    """A model folder; without a head one of an encoder."""
    make = tiny_masked_model if has_head else tiny_encoder
    model = make("bert", num_layers, seed)
    model.resize_token_embeddings(len(VOCABULARY))
    model.save_pretrained(folder)
    wordpiece().save_pretrained(folder)
    return folder


def masked_config(folder: Path, **changes: Any) -> dict[str, Any]:
    """A config that adapts a tiny BERT to the documents and distils it, in local mode; see ``toy_config``."""
    if not (folder / "corpus").exists():
        write_corpus(folder / "corpus")
        save_masked(folder / "bert")
    config: dict[str, Any] = {
        "storage": str(folder / "storage"),
        "data": {"path": str(folder / "corpus"), "max_length": 32},
        "task": {"type": "masked_language_modeling"},
        "teacher": {
            "model": str(folder / "bert"),
            "finetune": {"num_epochs": 2, "learning_rate": 3e-3},
            "allow_chance": True,
        },
        "student": {"num_layers": 1},
        "stages": {"distill": {"num_epochs": 2, "learning_rate": 3e-3}},
        **small_run("toy"),
    }
    return changed(config, changes)
