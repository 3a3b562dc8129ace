"""Order of a classifier's labels: mapped by name onto the order of the task, or refused."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from raydistill.errors import ModelError

_GENERIC = re.compile(r"LABEL_\d+", re.IGNORECASE)


def config_labels(config: PreTrainedConfig) -> tuple[str, ...]:
    """Return the label names of a classifier in the order of its logits."""
    return tuple(str(name) for _, name in sorted((config.id2label or {}).items()))


def label_order(found: Sequence[str], labels: Sequence[str]) -> tuple[tuple[int, ...], str | None]:
    """Return which of the model's logits is which of ``labels``, and a sentence to show where that is an assumption.

    Names are compared as they are, then without regard to case. ``LABEL_0, LABEL_1, ...`` say nothing and are taken in
    their order. Raises ModelError with both lists where the names do not match.
    """
    for normal in (str, _folded):
        have, want = [normal(name) for name in found], [normal(name) for name in labels]
        if len(set(want)) == len(want) and sorted(have) == sorted(want):
            return tuple(have.index(name) for name in want), None
    if len(found) == len(labels) and all(_GENERIC.fullmatch(name) for name in found):
        notice = (
            f"The model names its labels {', '.join(found)} only, so they are taken in this order for "
            f"{', '.join(labels)}. If that is wrong, name them in id2label of its config.json."
        )
        return tuple(range(len(found))), notice
    raise ModelError(
        f"The classifier's labels do not match the task's. Model: {list(found)}. Task: {list(labels)}. Rename them "
        "in id2label of the model's config.json, set task.labels to the model's names, or start from a plain encoder."
    )


def _folded(name: str) -> str:
    return name.strip().casefold()


def set_labels(config: PreTrainedConfig, labels: Sequence[str]) -> None:
    """Name the logits of a config in the order of ``labels``."""
    config.id2label = dict(enumerate(labels))
    config.label2id = {name: index for index, name in enumerate(labels)}


def reorder_labels(model: PreTrainedModel, order: Sequence[int]) -> None:
    """Permute the rows of the last linear layer, so that logit i becomes what logit ``order[i]`` was."""
    if list(order) == list(range(len(order))):
        return
    layer = output_layer(model)
    rows = torch.tensor(order, device=layer.weight.device)
    with torch.no_grad():
        layer.weight.copy_(layer.weight.index_select(0, rows))
        if layer.bias is not None:
            layer.bias.copy_(layer.bias.index_select(0, rows))


def output_layer(model: PreTrainedModel) -> nn.Linear:
    """Return the linear layer that makes the logits: the last one of the head with one output a label."""
    inside = model.base_model_prefix + "."
    found = [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and not name.startswith(inside)
        and module.out_features == model.config.num_labels
    ]
    if not found:
        raise ModelError(f"{type(model).__name__} has no linear layer that makes its {model.config.num_labels} logits.")
    return found[-1]
