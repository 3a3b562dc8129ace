"""Classifiers on the mean of an encoder's last hidden states: teachers of few labels.

A family's own head reads one token and has to be learned from labels; the mean is of use as it is, as sentence encoders
were trained for it. Students never have this head: they are the family's own classifiers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from raydistill.errors import ModelError

FIELD = "sentence_head"
"""Of config.json: "mean" for such a model. Its head has a name of its own in the weights, so that transformers, which
knows nothing of it, says that the family's head is missing."""
HEAD = "mean_head"


def is_pooled(config: PreTrainedConfig) -> bool:
    return getattr(config, FIELD, None) == "mean"


def set_pooled(config: PreTrainedConfig, pooled: bool) -> None:
    if pooled:
        setattr(config, FIELD, "mean")
    else:
        config.__dict__.pop(FIELD, None)


def pooled_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The class of such models in the family of ``config``. Raises ModelError for one that transformers lacks."""
    families = transformers.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    family = families.get(type(config), None)
    if family is None:
        raise ModelError(
            f"Models of type {config.model_type} have no classifier in transformers, so none can be built on the mean "
            "of their states. Set teacher.finetune.method: full."
        )
    return _class(family)


@cache
def _class(family: Any) -> type[PreTrainedModel]:
    class MeanPooled(family):
        def __init__(self, config: PreTrainedConfig) -> None:
            super().__init__(config)
            for name, _ in list(self.named_children()):
                if name != self.base_model_prefix:
                    delattr(self, name)
            setattr(self, HEAD, nn.Linear(config.hidden_size, len(config.id2label or ())))
            self.post_init()

        def _init_weights(self, module: nn.Module) -> None:
            if module is not self:  # ModernBERT would look for the head that is gone
                super()._init_weights(module)

        def forward(self, output_hidden_states: bool = False, **inputs: Tensor) -> SequenceClassifierOutput:
            found = self.base_model(**inputs, output_hidden_states=output_hidden_states)
            embedding = mean_embedding(found[0], inputs)
            return SequenceClassifierOutput(logits=getattr(self, HEAD)(embedding), hidden_states=found.hidden_states)

    MeanPooled.__name__ = MeanPooled.__qualname__ = f"MeanPooled{family.__name__}"
    return MeanPooled


@contextmanager
def headless(model: PreTrainedModel) -> Iterator[None]:
    """Let such a model give its embeddings (B, width) in place of its outputs."""
    head = getattr(model, HEAD)
    setattr(model, HEAD, nn.Identity())
    try:
        yield
    finally:
        setattr(model, HEAD, head)


def mean_embedding(states: Tensor, inputs: dict[str, Tensor]) -> Tensor:
    """Mean over the real tokens of (B, L, width), of length 1, (B, width): as sentence encoders are compared."""
    if states.dim() != 3 or states.shape[:2] != next(iter(inputs.values())).shape[:2]:
        raise ModelError(
            "This family does not give one state a token, so no classifier can be built on their mean. Set "
            "teacher.finetune.method: full."
        )
    mask = inputs.get("attention_mask")
    weights = torch.ones_like(states[..., :1]) if mask is None else mask[..., None].to(states.dtype)
    return F.normalize((states * weights).sum(1) / weights.sum(1), dim=-1)
