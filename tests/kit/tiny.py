"""Tiny random encoders of six families, their tokenizers and folders, built in code."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    ModernBertConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
)

FAMILIES = ("bert", "roberta", "distilbert", "electra", "modernbert", "deberta-v2")
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = (
    *("a", "an", "the", "good", "bad", "great", "poor", "film", "movie", "plot", "actor", "scene", "music", "song"),
    *("story", "book", "team", "match", "goal", "win", "lose", "play", "market", "share", "price", "bank", "money"),
    *("tax", "vote", "party", "law", "minister", "phone", "net", "game", "code", "chip", "web", "and", "or", "not"),
    *("very", "is", "was", "in", "on", "at", "of", "to", "with"),
)
VOCABULARY = {token: index for index, token in enumerate((*SPECIAL_TOKENS, *WORDS))}
HIDDEN_SIZE, NUM_HEADS, INTERMEDIATE_SIZE, MAX_LENGTH = 32, 4, 64, 64


def tiny_config(family: str, num_layers: int = 4, num_labels: int = 3) -> PreTrainedConfig:
    """A config of width 32 with 4 heads of 8; dropout 0.1, as published models have it."""
    ids = {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
    shared = {
        "vocab_size": len(VOCABULARY),
        "max_position_embeddings": MAX_LENGTH + 2,
        "num_labels": num_labels,
        "initializer_range": 0.2,
        **ids,
    }
    sizes = {
        "hidden_size": HIDDEN_SIZE,
        "num_hidden_layers": num_layers,
        "num_attention_heads": NUM_HEADS,
        "intermediate_size": INTERMEDIATE_SIZE,
    }
    match family:
        case "bert":
            return BertConfig(**shared, **sizes)
        case "roberta":
            return RobertaConfig(**shared, **sizes, type_vocab_size=1)
        case "distilbert":
            return DistilBertConfig(**shared, dim=32, hidden_dim=64, n_layers=num_layers, n_heads=4)
        case "electra":
            return ElectraConfig(**shared, **sizes, embedding_size=20)
        case "modernbert":
            dropout = {"attention_dropout": 0.1, "mlp_dropout": 0.1, "embedding_dropout": 0.1}
            return ModernBertConfig(**shared, **sizes, **dropout, local_attention=8)
        case "deberta-v2":
            relative = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8}
            newer = {"norm_rel_ebd": "layer_norm", "share_att_key": True, "position_biased_input": False}
            return DebertaV2Config(**shared, **sizes, **relative, **newer, type_vocab_size=0)
    raise ValueError(f"Unknown family {family!r}; known: {', '.join(FAMILIES)}.")


def tiny_classifier(
    family: str, num_layers: int = 4, num_labels: int = 3, seed: int = 0, labels: tuple[str, ...] | None = None
) -> PreTrainedModel:
    """A random classifier in eval mode whose biases and norms are random too, so that a mix-up shows."""
    config = tiny_config(family, num_layers, len(labels) if labels else num_labels)
    if labels:
        config.id2label = dict(enumerate(labels))
        config.label2id = {name: index for index, name in enumerate(labels)}
    return _random(AutoModelForSequenceClassification, config, seed)


def tiny_masked_model(family: str, num_layers: int = 4, seed: int = 0) -> PreTrainedModel:
    """A random masked language model, whose decoder is its embedding where the family has it so."""
    model = _random(AutoModelForMaskedLM, tiny_config(family, num_layers), seed)
    model.config.architectures = [type(model).__name__]  # as in a saved model's config
    return model


def tiny_encoder(family: str, num_layers: int = 4, seed: int = 0) -> PreTrainedModel:
    """A random encoder without a head."""
    return _random(AutoModel, tiny_config(family, num_layers), seed)


def _random(auto: type, config: PreTrainedConfig, seed: int) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(seed)
        model = auto.from_config(config)
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model.eval()


def tiny_tokenizer(family: str = "bert") -> PreTrainedTokenizerFast:
    """A word tokenizer over WORDS; it returns token_type_ids for the families that have them."""
    backend = Tokenizer(models.WordLevel(VOCABULARY, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    token_types = ["token_type_ids"] if family in ("bert", "electra") else []
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=MAX_LENGTH,
        model_input_names=["input_ids", *token_types, "attention_mask"],
    )


def tiny_inputs(family: str, num_rows: int = 5, seed: int = 0, length: int | None = None) -> dict[str, torch.Tensor]:
    """A right-padded batch of random rows of 3 to 12 words (pairs where the family has token types)."""
    generator = torch.Generator().manual_seed(seed)
    texts, pairs = [], []
    for row in range(num_rows):
        words = [WORDS[i] for i in torch.randint(len(WORDS), (3 + 2 * row % 10,), generator=generator).tolist()]
        texts.append(" ".join(words))
        pairs.append(" ".join(reversed(words[:3])))
    padding = {"padding": "max_length", "max_length": length} if length else {"padding": True}
    second = [pairs] if family in ("bert", "electra") else []
    return dict(tiny_tokenizer(family)(texts, *second, return_tensors="pt", **padding))


def save_tiny(
    folder: Path,
    family: str = "bert",
    *,
    num_layers: int = 4,
    num_labels: int = 3,
    seed: int = 0,
    labels: tuple[str, ...] | None = None,
    classifier: bool = True,
) -> Path:
    """Write an ordinary Hugging Face folder (config, safetensors, tokenizer) and return it."""
    model = (
        tiny_classifier(family, num_layers, num_labels, seed, labels)
        if classifier
        else tiny_encoder(family, num_layers, seed)
    )
    model.save_pretrained(folder)
    tiny_tokenizer(family).save_pretrained(folder)
    return Path(folder)


def without_tokenizer_limit(folder: Path) -> Path:
    """Many published tokenizers name no length; transformers then says 10^30."""
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": 10**30}))
    return folder
