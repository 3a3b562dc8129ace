"""Light students: a small convolutional network that starts from its teacher's table of embeddings."""

from __future__ import annotations

import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from raydistill.config.student import ConvStudent
from raydistill.errors import ConfigError
from raydistill.models.crf import set_crf
from raydistill.models.fields import embedding_width
from raydistill.models.head import head_in, set_head
from raydistill.models.modeling_conv import (
    ConvConfig,
    ConvForSequenceClassification,
    ConvForTokenClassification,
    ConvModel,
)

AutoConfig.register(ConvConfig.model_type, ConvConfig, exist_ok=True)
ConvConfig.register_for_auto_class()
for _kind in (ConvModel, ConvForSequenceClassification, ConvForTokenClassification):
    _auto = _kind.__name__.replace("ConvModel", "AutoModel").replace("ConvFor", "AutoModelFor")
    getattr(transformers, _auto).register(ConvConfig, _kind, exist_ok=True)
    _kind.register_for_auto_class(_auto)  # save_pretrained then copies the code beside the weights, and names it


def conv_config(teacher: PreTrainedConfig, student: ConvStudent) -> ConvConfig:
    """Return the config of a light student with the teacher's outputs. Raises ConfigError for one that is too wide."""
    widest = embedding_width(teacher)
    width = student.hidden_size or widest
    if width > widest and student.start != "random":
        raise ConfigError(
            f"student.hidden_size is {width}, wider than the {widest} of the teacher's embeddings that it starts from. "
            f"Set it to at most {widest}, or student.start to random."
        )
    types = getattr(teacher, "type_vocab_size", None) or 0
    config = ConvConfig(
        vocab_size=teacher.vocab_size,
        hidden_size=width,
        num_hidden_layers=student.num_layers,
        kernel_size=student.kernel_size,
        type_vocab_size=types if types > 1 else 0,
        hidden_dropout_prob=student.dropout,
        pad_token_id=teacher.pad_token_id,
    )
    config.dtype = torch.float32
    set_head(config, head_in(teacher))
    set_crf(config, student.head)
    return config


@torch.no_grad()
def copy_embeddings(teacher: PreTrainedModel, model: PreTrainedModel) -> None:
    """Start a light student from its teacher's table of embeddings."""
    (given,), (table,) = (list(m.get_input_embeddings().parameters()) for m in (teacher, model))
    table.copy_(narrowed(given.to(table.device), table.shape[1]))


def narrowed(table: Tensor, width: int) -> Tensor:
    """Return a table of embeddings (V, D) in ``width`` dimensions: the principal components of its rows, their mean
    kept; the table itself where it is no wider."""
    if width == table.shape[1]:
        return table
    centered = (table - table.mean(0)).double()
    _, axes = torch.linalg.eigh(centered.T @ centered)
    axes = axes[:, -width:].flip(1)
    largest = axes.gather(0, axes.abs().argmax(0, keepdim=True))
    return (centered @ (axes * largest.sign())).to(table.dtype)  # each axis has two signs, and libraries differ
