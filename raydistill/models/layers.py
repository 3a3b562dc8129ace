"""Where the layers of an encoder are, and the projections to queries, keys and values in them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from raydistill.errors import ModelError

_LEAVES = {
    "queries": ("query", "q_lin", "q_proj", "query_proj", "q"),
    "keys": ("key", "k_lin", "k_proj", "key_proj", "k"),
    "values": ("value", "v_lin", "v_proj", "value_proj", "v"),
}
"""Names of the linear layers in the families of transformers."""
_FUSED = "Wqkv"
"""One linear layer for all three, one after another."""


def layer_stack(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """Return name and modules of the stack of layers: the one ModuleList with ``num_hidden_layers`` entries.

    Lists inside a layer do not count. Raises ModelError where there is none (albert shares its layers, funnel has
    blocks) or more than one.
    """
    depth = model.config.num_hidden_layers
    lists = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
    lists = [(n, m) for n, m in lists if not isinstance(m[0], nn.Linear)]  # a head of as many
    outer = [(n, m) for n, m in lists if not any(n.startswith(other + ".") for other, _ in lists)]
    if len(outer) != 1 or model.config.model_type == "albert":  # albert with one layer has one list of one group
        raise ModelError(
            f"{type(model).__name__} has no single stack of {depth} layers that could be chosen from (found "
            f"{len(outer)}). Set student.num_layers to null, without student.teacher_layers, and use losses on logits; "
            "or set student.start to random, or take a teacher of another family (bert, roberta, modernbert, ...)."
        )
    return outer[0]


@torch.no_grad()
def added_between(source: PreTrainedModel, layers: Sequence[int]) -> dict[str, Tensor]:
    """Return, for a student of these layers, the tensors of what the family adds to the states behind each layer but
    the last (YOLOS: positions): behind each one's all that is added on the way to the next, and to the embeddings what
    comes before the first."""
    tensors = source.state_dict()
    name = next((name for name in tensors if name.endswith("mid_position_embeddings")), None)
    if name is None or not layers:
        return {}
    first = next(name for name in tensors if name.endswith("embeddings.position_embeddings"))
    own = [tensors[name][here:there].sum(0) for here, there in pairwise(layers)]
    added = torch.stack(own) if own else tensors[name][:0]
    return {name: added, first: tensors[first] + tensors[name][: layers[0]].sum(0)}


def projection(model: PreTrainedModel, layer: int, name: str) -> tuple[nn.Linear, slice | None]:
    """Return the linear layer that makes the queries, keys or values (``name``) of a layer, counted from 1, and which
    part of its output they are (None: all of it).

    Raises ModelError for a family whose attention has none, or several.
    """
    _, layers = layer_stack(model)
    if not 1 <= layer <= len(layers):
        raise ModelError(f"There is no {name}[{layer}]: the model has layers 1 to {len(layers)}.")
    linear = {n.rpartition(".")[2]: m for n, m in layers[layer - 1].named_modules() if isinstance(m, nn.Linear)}
    found = [module for leaf, module in linear.items() if leaf in _LEAVES[name]]
    if not found and _FUSED in linear:
        width = linear[_FUSED].out_features // 3
        place = list(_LEAVES).index(name)
        return linear[_FUSED], slice(place * width, (place + 1) * width)
    if len(found) != 1:
        raise ModelError(
            f"{type(model).__name__} has no single linear layer that makes its {name} in layer {layer}, so no loss can "
            "look at them. Use losses on hidden states or logits."
        )
    return found[0], None
