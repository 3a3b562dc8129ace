"""What a loaded model must satisfy: every weight in its place, every token in the embedding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel

from raydistill.errors import ModelError
from raydistill.models.embedding import LAYERS
from raydistill.models.folder import VOCABULARIES, weight_names
from raydistill.models.head import CLASS_LAYERS, is_focal


def check_report(folder: Path, model: PreTrainedModel, report: dict[str, Any], fine_tuned: bool) -> None:
    """Refuse weights that the model lacks, that have another shape, or that nothing in it takes."""
    inside = model.base_model_prefix + "."
    mismatched = {key for key, *_ in report["mismatched_keys"]}
    wrong = set(report["missing_keys"]) | mismatched
    if not fine_tuned:
        own = "" if model.base_model is model else inside  # a sentence encoder is the base model itself
        head = ("pooler.", *(CLASS_LAYERS if is_focal(model.config) else ()))
        wrong = {k for k in wrong if k.startswith(own) and not any(p in k for p in head) and not k.startswith(LAYERS)}
    if wrong:
        raise ModelError(
            f"The weights in {folder} do not fit its config.json ({type(model).__name__}): missing or of another "
            f"shape: {_some(wrong)}. Give weights and config that were saved together."
        )
    stored = weight_names(folder)
    prefixed = any(key.startswith(inside) for key in stored)
    harmless = ("pooler.", "seq_relationship.", "position_ids", "inv_freq")  # unused heads, buffers of old versions
    unknown = {
        key
        for key in report["unexpected_keys"]
        if (key.startswith(inside) or fine_tuned or not prefixed) and not any(part in key for part in harmless)
    }
    if unknown:
        raise ModelError(
            f"The weights in {folder} hold tensors that {type(model).__name__} has no place for: {_some(unknown)}. "
            "Give weights and config that were saved together."
        )


def check_vocabulary(folder: Path, config: PreTrainedConfig) -> None:
    """Refuse a tokenizer whose ids reach beyond the embedding: an index error in the middle of training otherwise."""
    if not any((folder / name).is_file() for name in VOCABULARIES):
        return  # a checkpoint of the training loop, whose tokenizer lies elsewhere, or a model of pictures
    try:
        if (folder / "tokenizer.json").is_file():  # 0.05 s, AutoTokenizer 0.3 s
            vocabulary = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab(with_added_tokens=True)
        else:
            vocabulary = AutoTokenizer.from_pretrained(folder, local_files_only=True).get_vocab()
    except Exception as error:  # tokenizers raises bare Exception for a damaged file
        raise ModelError(f"Cannot read the tokenizer in {folder}: {first_line(error)}. Copy it again.") from error
    tokens = max(vocabulary.values(), default=-1) + 1
    if tokens > config.vocab_size:
        raise ModelError(
            f"The tokenizer in {folder} has {tokens} tokens, the model's embedding only {config.vocab_size}. Give the "
            "model's own tokenizer, or call `model.resize_token_embeddings(len(tokenizer))` and save both."
        )


def has_position_table(model: PreTrainedModel) -> bool:
    """Whether positions are rows of a table, which longer inputs fall out of; relative and rotated ones go on."""
    tables = ("position_embeddings", "embed_positions", "wpe")
    return any(name.rpartition(".")[2] in tables and hasattr(m, "num_embeddings") for name, m in model.named_modules())


def first_line(error: BaseException) -> str:
    """Return the first line of a library's message, without its full stop; the rest is advice for its own users."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__


def _some(names: set[str], limit: int = 5) -> str:
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(sorted(names)[:limit]) + rest
