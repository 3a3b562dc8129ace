"""Shape of a student: the teacher's config with fewer layers, another width, other dropout."""

from __future__ import annotations

import copy
import re

import torch
from transformers import PreTrainedConfig

from raydistill.config.student import ConvStudent, EncoderStudent, Student
from raydistill.errors import ConfigError, ModelError
from raydistill.models.conv import conv_config
from raydistill.models.crf import set_crf
from raydistill.models.embedding import fit_layers, set_head_of
from raydistill.models.fields import (
    FOLLOWING_FIELDS,
    LAYER_FIELDS,
    head_width,
    intermediate,
    is_staged,
    set_dropout_config,
)
from raydistill.models.folder import resolve_model
from raydistill.models.head import head_in, is_focal
from raydistill.models.layer_map import choose_layers
from raydistill.models.load import new_model, read_config
from raydistill.models.pooled import set_pooled
from raydistill.models.shared import set_shared


def student_config(teacher_config: PreTrainedConfig, student: Student) -> PreTrainedConfig:
    """Return the student's config, without weights. Raises ConfigError for a shape that cannot be, ModelError.

    ``hidden_size`` alone keeps the heads' width where it divides, and the ratio of ``intermediate_size``. A student
    that starts from a checkpoint has that checkpoint's shape where the config does not say otherwise.
    """
    if isinstance(student, ConvStudent):
        return conv_config(teacher_config, student)
    if student.checkpoint is not None:
        folder = resolve_model(student.checkpoint)
        source = read_config(folder)
        set_head_of(source, folder, head_in(teacher_config))
        return shape(source, student)
    return shape(teacher_config, student)


def num_layers(source: PreTrainedConfig, student: EncoderStudent) -> int:
    """Return how many layers a student of the model ``source`` has, where it does not say which."""
    depth: int = source.num_hidden_layers
    if student.num_layers == "auto":
        half = max((depth + 1) // 2, student.share_layers or 0)
        return half if student.start == "teacher_layers" and student.hidden_size is None else depth
    return student.num_layers or depth


def start_layers(source: PreTrainedConfig, student: Student) -> tuple[int, ...]:
    """Return the layers (from 0) of the source model that the student starts from; () where it starts without."""
    if isinstance(student, ConvStudent) or student.start == "random":
        return ()
    depth, chosen = source.num_hidden_layers, student.teacher_layers
    if chosen == "auto":
        return _shared_and_chosen(student.share_layers or 0, num_layers(source, student), source)
    if max(chosen) >= depth:
        raise ConfigError(
            f"student.teacher_layers is {list(chosen)}; the teacher has layers 0 to {depth - 1}. Name some of these."
        )
    return chosen


def _shared_and_chosen(num_shared: int, num_student: int, source: PreTrainedConfig) -> tuple[int, ...]:
    """The first layers, as many as are shared, and those chosen of all others."""
    kinds = getattr(source, "layer_types", None)
    chosen = choose_layers(num_student, source.num_hidden_layers, kinds)  # refuses what cannot be
    if num_shared == 0:
        return chosen
    rest = range(num_shared, source.num_hidden_layers)
    if num_student == num_shared:
        return tuple(range(num_shared))
    own = choose_layers(num_student - num_shared, len(rest), kinds and kinds[num_shared:])
    return (*range(num_shared), *(rest[i] for i in own))


def shape(source: PreTrainedConfig, student: EncoderStudent) -> PreTrainedConfig:
    """Return the config of a student that is cut from a model with the config ``source``."""
    if is_staged(source):
        return staged(source, student)
    config = copy.deepcopy(source)
    config.dtype = torch.float32
    set_pooled(config, False)
    set_shared(config, student.share_layers)
    for head in ("softmax", student.head):  # what the source has learned is copied with its weights, or not at all
        set_crf(config, head)
    if (student.share_layers or 0) > source.num_hidden_layers:
        raise ConfigError(
            f"student.share_layers is {student.share_layers}, but the teacher has {source.num_hidden_layers} layers."
        )
    layers = start_layers(source, student)
    depth = len(layers) or num_layers(source, student)
    for field in LAYER_FIELDS:
        entries = getattr(source, field, None)
        if isinstance(entries, list) and len(entries) == source.num_hidden_layers:
            setattr(config, field, [entries[i] for i in layers or _pattern(depth, source, student)])
    if depth != source.num_hidden_layers:
        _set(config, "num_hidden_layers", depth)
        if hasattr(config, "stage_names"):  # of a backbone: its layers by name, and which of them are given out
            config.stage_names = ["stem", *(f"stage{i}" for i in range(1, depth + 1))]
            setattr(config, "out_features", config.stage_names[-1:])  # noqa: B010, which not all configs have
    _set_widths(config, source, student)
    _set_heads(config, source, student)
    fit_layers(config, source)
    if student.start != "random":
        _check_not_wider(config, source)
        _check_projection(config, source)
    set_dropout_config(config, student.dropout)
    return config


def staged(source: PreTrainedConfig, student: EncoderStudent) -> PreTrainedConfig:
    """Return the config of a student that has the shape of a model of stages, as that is; but for the layers of a focal
    detector's decoder, of which it may have the first ones. Raises ConfigError."""
    sizes = ("hidden_size", "num_heads", "intermediate_size", "share_layers")
    fixed = sizes if is_focal(source) else ("num_layers", *sizes)
    asked = [name for name in fixed if getattr(student, name) not in (None, "auto")]
    if student.teacher_layers != "auto":
        asked.append("teacher_layers")
    elif student.checkpoint is None and student.num_layers == "auto" and not is_focal(source):
        asked.append("num_layers")
    if asked:
        raise ConfigError(
            f"student.{asked[0]}: a {source.model_type} model has stages of other widths, so no layers and no width "
            "can be chosen. Set student.start to a smaller checkpoint, or student.num_layers to null for one as large."
        )
    config = copy.deepcopy(source)
    config.dtype = torch.float32
    if is_focal(source):
        set_decoder(config, student)
    set_dropout_config(config, student.dropout)
    return config


def set_decoder(config: PreTrainedConfig, student: EncoderStudent) -> None:
    """Give a focal detector the first layers of its decoder, each of which has learned to answer; where it is cut from
    its teacher and nothing is said, half of them. Raises ConfigError for more than there are."""
    depth, wanted = int(config.decoder_layers), student.num_layers
    if wanted == "auto":
        wanted = (depth + 1) // 2 if student.start == "teacher_layers" else depth
    if wanted is not None and wanted > depth:
        raise ConfigError(f"student.num_layers is {wanted}, but the decoder has {depth} layers. Ask for fewer.")
    _set(config, "decoder_layers", wanted or depth)
    if hasattr(config, "eval_idx"):
        _set(config, "eval_idx", -1)  # D-FINE's layer that answers: the last one


def _pattern(depth: int, source: PreTrainedConfig, student: EncoderStudent) -> tuple[int, ...]:
    """Layers whose kind a random student takes: the same as a copied one's, or all of them again for a deeper one."""
    if depth <= source.num_hidden_layers:
        return _shared_and_chosen(student.share_layers or 0, depth, source)
    return tuple(i % source.num_hidden_layers for i in range(depth))


def _set_widths(config: PreTrainedConfig, source: PreTrainedConfig, student: EncoderStudent) -> None:
    field, before = intermediate(source)
    width, inner = student.hidden_size, student.intermediate_size
    if width is not None and width != source.hidden_size:
        _set(config, "hidden_size", width)
        for name in FOLLOWING_FIELDS:
            if getattr(source, name, None) == source.hidden_size:
                _set(config, name, width)
        if inner is None and before is not None:
            inner = max(1, round(before * width / source.hidden_size))
    if inner is not None:
        if field is None:
            raise ModelError(
                f"The config of {source.model_type} has no field for the width of the feed-forward layers, so "
                "student.intermediate_size cannot be set. Remove it."
            )
        _set(config, field, inner)


def _set_heads(config: PreTrainedConfig, source: PreTrainedConfig, student: EncoderStudent) -> None:
    width = config.hidden_size
    rotary = getattr(source, "rope_parameters", None) is not None
    valid = [n for n in range(1, width + 1) if width % n == 0 and not (rotary and (width // n) % 2)]
    heads = student.num_heads
    has_heads = hasattr(source, "num_attention_heads")
    if heads is not None and not has_heads:
        raise ConfigError(f"student.num_heads is {heads}, but a {source.model_type} model has none. Leave it out.")
    if heads is None and (width == source.hidden_size or not has_heads):
        return
    if not valid or (heads is not None and heads not in valid):
        odd = " into heads of even width (rotary positions)" if rotary else ""
        raise ConfigError(
            f"student.hidden_size {width} cannot be split evenly{odd}: student.num_heads is {heads}. "
            f"Valid numbers of heads: {', '.join(map(str, valid)) or 'none, choose another hidden_size'}."
        )
    if heads is None:  # the same head width where it divides, else the nearest
        heads = min(valid, key=lambda n: (abs(width // n - head_width(source)), n))
    groups = getattr(source, "num_key_value_heads", None)
    if groups:
        shared = source.num_attention_heads // groups
        _set(config, "num_key_value_heads", heads // shared if heads % shared == 0 else heads)
    _set(config, "num_attention_heads", heads)
    if getattr(source, "head_dim", None):
        _set(config, "head_dim", width // heads)


def _check_not_wider(config: PreTrainedConfig, source: PreTrainedConfig) -> None:
    for field in ("hidden_size", intermediate(source)[0]):
        if field and getattr(config, field) > getattr(source, field):
            named = "hidden_size" if field == "hidden_size" else "intermediate_size"
            raise ConfigError(
                f"student.{named} is {getattr(config, field)}, wider than the {getattr(source, field)} of the model "
                f"it starts from. Set it to at most {getattr(source, field)}, or student.start to random."
            )


def _check_projection(config: PreTrainedConfig, source: PreTrainedConfig) -> None:
    """Refuse a student as wide as narrower embeddings, where the family (electra) then leaves out their projection."""
    narrow = getattr(source, "embedding_size", None)
    if narrow in (None, source.hidden_size) or narrow != config.hidden_size:
        return
    with torch.device("meta"):
        models = [new_model(copy.deepcopy(shaped), seed=0) for shaped in (source, config)]
    before, after = ({re.sub(r"\d+", "", name) for name in model.state_dict()} for model in models)
    if before - after:
        raise ConfigError(
            f"student.hidden_size is {narrow}, as wide as the teacher's embeddings: such a {source.model_type} model "
            "has no projection between embeddings and layers, so the teacher's would be lost. Choose another "
            "hidden_size, or student.start: random."
        )


def _set(config: PreTrainedConfig, field: str, value: int) -> None:
    try:
        setattr(config, field, value)
    except (NotImplementedError, AttributeError) as error:
        raise ModelError(
            f"The config of {config.model_type} does not let {field} be changed, so its students cannot have another "
            "shape. Leave that field of student: out, or take a teacher of another family."
        ) from error


def count_parameters(config: PreTrainedConfig) -> int:
    """Parameters of a classifier of this shape; nothing is allocated."""
    with torch.device("meta"):
        model = new_model(config, seed=0)
    return sum(parameter.numel() for parameter in model.parameters())
