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


def is_staged(config: PreTrainedConfig) -> bool:
    """Whether a model has stages of layers, of other widths each, so that no layers can be taken from it."""
    has_one_width = hasattr(config, "num_hidden_layers") and getattr(config, "hidden_size", None) is not None
    return hasattr(config, "depths") or not has_one_width


def depth(config: PreTrainedConfig) -> int:
    """Layers of a model; of one with stages those of all stages, 0 where its config does not say."""
    layers = sum(config.depths) if hasattr(config, "depths") else getattr(config, "num_hidden_layers", 0)
    return int(layers)


def width(config: PreTrainedConfig) -> int:
    """Numbers of a state; of a model with stages those of the last one, 0 where its config does not say."""
    return int(getattr(config, "hidden_size", None) or (getattr(config, "hidden_sizes", None) or [0])[-1])


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
    return {name: n for name, n in numbers.items() if "dropout" in name or name.endswith(("pdrop", "drop_path_rate"))}


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
