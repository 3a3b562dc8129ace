"""A light network: embeddings, blocks of depthwise-separable convolutions, and a head on the mean of the states.

A saved model brings this file with it, so it needs torch and transformers only.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, SequenceClassifierOutput, TokenClassifierOutput


class ConvConfig(PreTrainedConfig):
    """Shape of such a network; it reads rows of any length, and knows of positions by its convolutions alone."""

    model_type = "raydistill_conv"

    def __init__(
        self,
        vocab_size: int = 30522,
        hidden_size: int = 384,
        num_hidden_layers: int = 3,
        kernel_size: int = 5,
        type_vocab_size: int = 0,
        hidden_dropout_prob: float = 0.0,
        initializer_range: float = 0.02,
        layer_norm_eps: float = 1e-12,
        pad_token_id: int | None = 0,
        **more: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.kernel_size = kernel_size
        self.type_vocab_size = type_vocab_size
        self.hidden_dropout_prob = hidden_dropout_prob
        self.initializer_range = initializer_range
        self.layer_norm_eps = layer_norm_eps
        self.pad_token_id = pad_token_id
        super().__init__(**more)


class ConvEmbeddings(nn.Module):
    """Embeddings of tokens and, where there are any, of which text of a pair they are in; (B, L) to (B, L, width)."""

    def __init__(self, config: ConvConfig) -> None:
        super().__init__()
        self.word_embeddings: nn.Module = nn.Embedding(config.vocab_size, config.hidden_size)
        self.token_type_embeddings = (
            nn.Embedding(config.type_vocab_size, config.hidden_size) if config.type_vocab_size else None
        )
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor | None) -> Tensor:
        states = self.word_embeddings(input_ids)
        if self.token_type_embeddings is not None:
            types = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
            states = states + self.token_type_embeddings(types)
        found: Tensor = self.dropout(self.norm(states))
        return found


class ConvLayer(nn.Module):
    """A convolution of each channel along the row, one over the channels, residual and norm."""

    def __init__(self, config: ConvConfig) -> None:
        super().__init__()
        width, kernel = config.hidden_size, config.kernel_size
        self.depthwise = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width)
        self.pointwise = nn.Linear(width, width)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """``mask`` (B, L, 1) keeps padding out of what its neighbours see."""
        near = self.depthwise((states * mask).transpose(1, 2)).transpose(1, 2)
        found: Tensor = self.norm(states + self.dropout(F.gelu(self.pointwise(near))))
        return found


class ConvPreTrainedModel(PreTrainedModel):
    config_class = ConvConfig
    base_model_prefix = "conv"


class ConvModel(ConvPreTrainedModel):
    """States of tokens (B, L, width), without a head."""

    def __init__(self, config: ConvConfig) -> None:
        super().__init__(config)
        self.embeddings = ConvEmbeddings(config)
        self.layers = nn.ModuleList([ConvLayer(config) for _ in range(config.num_hidden_layers)])
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embeddings.word_embeddings = value

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        output_hidden_states: bool | None = None,
        **unused: Any,
    ) -> BaseModelOutput:
        states = self.embeddings(input_ids, token_type_ids)
        mask = real(input_ids, attention_mask).to(states.dtype)
        found = [states]
        for layer in self.layers:
            found.append(layer(found[-1], mask))
        wants = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        return BaseModelOutput(last_hidden_state=found[-1], hidden_states=tuple(found) if wants else None)


class ConvClassifier(ConvPreTrainedModel):
    """A linear head on what ``summary`` makes of the states."""

    output: Any
    """The class of what ``forward`` returns."""

    def __init__(self, config: ConvConfig) -> None:
        super().__init__(config)
        self.conv = ConvModel(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(config.hidden_size, len(config.id2label or ()))
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        **unused: Any,
    ) -> Any:
        found = self.conv(input_ids, attention_mask, token_type_ids, output_hidden_states)
        states = found.last_hidden_state
        mask = real(input_ids, attention_mask).to(states.dtype)
        logits = self.classifier(self.dropout(self.summary(states, mask)))
        loss = None if labels is None else self.loss_of(logits, labels)
        return self.output(loss=loss, logits=logits, hidden_states=found.hidden_states)

    def summary(self, states: Tensor, mask: Tensor) -> Tensor:
        """What of the states (B, L, width) is classified; ``mask`` (B, L, 1)."""
        raise NotImplementedError

    def loss_of(self, logits: Tensor, labels: Tensor) -> Tensor:
        """transformers' own loss of this head."""
        raise NotImplementedError


class ConvForSequenceClassification(ConvClassifier):
    """Outputs (B, C) from the mean of the states of real tokens."""

    output = SequenceClassifierOutput

    def summary(self, states: Tensor, mask: Tensor) -> Tensor:
        return (states * mask).sum(1) / mask.sum(1).clamp_min(1)

    def loss_of(self, logits: Tensor, labels: Tensor) -> Tensor:
        loss: Tensor = self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        return loss


class ConvForTokenClassification(ConvClassifier):
    """Outputs (B, L, C), of each token."""

    output = TokenClassifierOutput

    def summary(self, states: Tensor, mask: Tensor) -> Tensor:
        return states

    def loss_of(self, logits: Tensor, labels: Tensor) -> Tensor:
        loss: Tensor = self.loss_function(logits, labels, self.config)
        return loss


def real(input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Which tokens are no padding, (B, L, 1)."""
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    return mask[..., None]
