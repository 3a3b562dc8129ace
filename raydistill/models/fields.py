"""Config fields whose names differ from family to family."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

INTERMEDIATE_FIELDS = ("intermediate_size", "hidden_dim", "ffn_dim", "d_inner", "n_inner")
LAYER_FIELDS = ("layer_types", "attention_window")
"""Lists with one entry a layer: global and local attention of ModernBERT, windows of Longformer."""
FOLLOWING_FIELDS = ("embedding_size", "input_embedding_size", "pooler_hidden_size")
"""Widths that go with hidden_size where they equal it in the teacher."""


def embedding_width(config: PreTrainedConfig) -> int:
    """Numbers of a token's embedding: fewer than a state has where a family projects them."""
    return int(getattr(config, "embedding_size", None) or config.hidden_size)


def set_dropout_config(config: PreTrainedConfig, value: float) -> None:
    """Set every dropout of a config, whatever its family calls it; before the model is built (some copy the number)."""
    for name in dropout_fields(config):
        setattr(config, name, float(value))


def dropout_fields(config: PreTrainedConfig) -> dict[str, float]:
    """Return every dropout of a config by its name."""
    numbers = {
        name: value
        for name, value in config.to_dict().items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    return {name: value for name, value in numbers.items() if "dropout" in name or name.endswith("pdrop")}


def intermediate(config: PreTrainedConfig) -> tuple[str | None, int | None]:
    """Return name and value of the field with the feed-forward width, (None, None) where the family has none."""
    for field in INTERMEDIATE_FIELDS:
        if isinstance(getattr(config, field, None), int):
            return field, getattr(config, field)
    return None, None


def head_width(config: PreTrainedConfig) -> int:
    """Return the width of one attention head."""
    heads = getattr(config, "num_attention_heads", 1)  # a network of convolutions has none
    return int(getattr(config, "head_dim", None) or config.hidden_size // heads)
