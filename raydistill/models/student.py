"""Students: a smaller copy of the teacher, built for any Hugging Face encoder by finding its stack of layers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from transformers import PreTrainedModel

from raydistill.config.student import ConvStudent, EncoderStudent, Student
from raydistill.errors import ConfigError, ModelError
from raydistill.models.checks import first_line
from raydistill.models.conv import conv_config, copy_embeddings
from raydistill.models.embedding import identities
from raydistill.models.fields import head_width, is_staged
from raydistill.models.folder import resolve_model
from raydistill.models.head import OF_PICTURES, head_of, kind_of_head, scaled
from raydistill.models.layers import added_between, layer_stack
from raydistill.models.load import load_model, new_model
from raydistill.models.narrowing import narrowed
from raydistill.models.pictures import settle
from raydistill.models.shape import shape, start_layers
from raydistill.models.shared import shared_parameters
from raydistill.models.slices import Heads, Kept, cut


def build_student(
    teacher: PreTrainedModel,
    student: Student,
    *,
    seed: int,
    attn_implementation: str | None = None,
    sample: Iterable[Mapping[str, Tensor]] | None = None,
) -> PreTrainedModel:
    """Return a student of the configured shape in float32 and eval mode, with the teacher's outputs.

    Layers, embeddings and head are copied where shapes allow, cut where the student is narrower (``slices.py``), or
    random from ``seed``; shared layers are the teacher's in any case. With all layers and the full width it gives the
    teacher's logits bit for bit. A light student has the teacher's embeddings, and all else random. ``sample``: batches
    of model inputs of training rows, on which a narrower student measures what it keeps (``narrowing.py``); without
    them it keeps the first entries.
    Raises ConfigError for a shape that cannot be, ModelError for a model without a stack of layers.
    """
    if isinstance(student, ConvStudent):
        light = new_model(conv_config(teacher.config, student), seed=seed)
        scaled(light, head_of(teacher).scale)
        if student.start != "random":
            copy_embeddings(teacher, light)
        return light
    source = teacher if student.checkpoint is None else _checkpoint(teacher, student.checkpoint, seed)
    if is_staged(source.config):
        return _staged(source, student, seed, sample)
    layers = start_layers(source.config, student)
    if layers and layers != tuple(range(source.config.num_hidden_layers)):
        layer_stack(source)  # refuse before anything is built
    config = shape(source.config, student)
    attention = attn_implementation or teacher.config._attn_implementation
    model = new_model(config, seed=seed, attn_implementation=attention, like=source)
    is_other = config.hidden_size != source.config.hidden_size or bool(student.num_heads)
    if is_other and kind_of_head(config) not in OF_PICTURES:
        _check_runs(model)
    scaled(model, head_of(teacher).scale)
    if student.start != "random":
        _copy_weights(source, model, layers, sample if student.is_measured else None)
    elif student.share_layers is not None:
        model.load_state_dict({name: source.get_parameter(name) for name in shared_parameters(model)}, strict=False)
    return model


def _staged(
    source: PreTrainedModel, student: EncoderStudent, seed: int, sample: Iterable[Mapping[str, Tensor]] | None
) -> PreTrainedModel:
    """A student of a model of stages, as large, but for the last layers of a detector's decoder; one that is no copy of
    its teacher has the statistics of the sample."""
    model = new_model(shape(source.config, student), seed=seed, like=source)
    if student.start != "random":
        given = source.state_dict()
        model.load_state_dict({name: given[name] for name in model.state_dict()})
    if student.start != "teacher_layers" and sample is not None:
        settle(model, sample)
    scaled(model, head_of(source).scale)
    return model


def _checkpoint(teacher: PreTrainedModel, start: str, seed: int) -> PreTrainedModel:
    source = load_model(resolve_model(start), head_of(teacher), seed=seed)
    if kind_of_head(teacher.config) in OF_PICTURES:
        return source  # it reads pictures as the teacher's processor gives them
    if source.config.vocab_size != teacher.config.vocab_size:
        raise ConfigError(
            f"student.start {start} has {source.config.vocab_size} tokens, the teacher "
            f"{teacher.config.vocab_size}: they do not share a tokenizer. Start from a checkpoint with the teacher's "
            "tokenizer, or from teacher_layers."
        )
    return source


@torch.no_grad()
def _check_runs(model: PreTrainedModel) -> None:
    """Run four tokens through a model of a new width: families with widths of their own (mobilebert) may not fit."""
    try:
        model(input_ids=torch.zeros(1, 4, dtype=torch.long))
    except (RuntimeError, ValueError, IndexError) as error:
        config = model.config
        raise ModelError(
            f"A {config.model_type} model of width {config.hidden_size} with {config.num_attention_heads} heads cannot "
            f"run: {first_line(error)}. Leave student.hidden_size and student.num_heads out, or choose others."
        ) from error


@torch.no_grad()
def _copy_weights(
    source: PreTrainedModel,
    model: PreTrainedModel,
    layers: tuple[int, ...],
    sample: Iterable[Mapping[str, Tensor]] | None,
) -> None:
    given = source.state_dict() | identities(model, source) | added_between(source, layers)
    origin = _origins(source, model, layers)
    heads = Heads(
        wide=head_width(source.config),
        narrow=head_width(model.config),
        rotary=any("rotary" in name.lower() for name, _ in source.named_modules()),
    )
    kept, shapes = Kept(heads), {origin[name]: tensor.shape for name, tensor in model.state_dict().items()}
    is_narrower = any(given[name].shape != shape for name, shape in shapes.items() if name in given)
    if is_narrower and sample is not None:
        kept, folded = narrowed(source, shapes, heads, model.config, sample)
        given = given | folded
    tied = getattr(model, "all_tied_weights_keys", {})  # a copy of what is cut already
    for name, tensor in model.state_dict().items():
        wide = None if name in tied else given.get(origin[name])
        if wide is not None:  # ModernBERT's first layer has no attention norm: one that moves up keeps the fresh one
            tensor.copy_(cut(origin[name], wide, tensor.shape, kept))


def _origins(source: PreTrainedModel, model: PreTrainedModel, layers: tuple[int, ...]) -> dict[str, str]:
    """Return for each tensor of the student the name of the source's tensor it comes from."""
    names = list(model.state_dict())
    if layers == tuple(range(source.config.num_hidden_layers)):
        return {name: name for name in names}
    stack = layer_stack(source)[0] + "."
    origin = {}
    for name in names:
        origin[name] = name
        if name.startswith(stack):
            layer, rest = name.removeprefix(stack).split(".", 1)
            origin[name] = f"{stack}{layers[int(layer)]}.{rest}"
    return origin
