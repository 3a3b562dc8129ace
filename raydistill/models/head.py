"""The head of a model: names and order of its outputs, what they are for, and the unit that they are in."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from raydistill.errors import ModelError

if TYPE_CHECKING:  # tasks know heads, and pages and tables know tasks: none of them needs torch
    from torch import Tensor, nn
    from transformers import PreTrainedConfig, PreTrainedModel

SEQUENCE, TOKEN, SPAN = "SequenceClassification", "TokenClassification", "QuestionAnswering"
MASKED, EMBEDDING, IMAGE, OBJECTS = "MaskedLM", "SentenceEmbedding", "ImageClassification", "ObjectDetection"
OF_PICTURES = (IMAGE, OBJECTS)
"""Heads of models that read pictures. Nearly every checkpoint of these has a head for classes of its own."""
SIDES = ("xmin", "ymin", "xmax", "ymax")
"""Of a box in pixels, as transformers' pipeline names them."""
NUM_SIDES = len(SIDES)
FOCAL = ("rt_detr", "rt_detr_v2", "d_fine")
"""Detectors whose queries say of each class by itself whether they found it, by ``model_type``; each layer of their
decoder, and what picks the queries, is trained by a loss of its own."""
CLASS_LAYERS = ("class_embed", "enc_score_head")
"""Parts of the names of the layers of these that know classes: of the decoder, of the proposals, and by which some
learn to repair boxes."""
DETECTORS = ("yolos", *FOCAL)
"""Families with a head for objects whose outputs and losses are those of ``models.detection``."""
UNNAMED = (MASKED, EMBEDDING)
"""Heads whose outputs have no names: tokens of the vocabulary, numbers of a vector."""
EMBEDDING_FIELD = "sentence_embedding"
"""Of the config.json of a sentence encoder, see ``models.embedding``."""
_GENERIC = re.compile(r"LABEL_\d+", re.IGNORECASE)


@dataclass(frozen=True)
class Head:
    """What a task wants of a model's last layer."""

    outputs: tuple[str, ...]
    """Names of the outputs, in their order."""
    problem_type: str | None = None
    """As Hugging Face's configs call it."""
    scale: tuple[float, float] = (0.0, 1.0)
    """Center and scale: a model that is trained answers in units in which these are 0 and 1. On disk it never does."""
    kind: str = SEQUENCE
    """What a prediction is of: the rest of ``transformers.AutoModelFor…``, or EMBEDDING."""
    embedding: Mapping[str, Any] | None = None
    """Of vectors: {pooling, normalize, width}; what is missing or None is as the model has it."""


SPAN_OUTPUTS = ("start", "end")
"""Of a model that answers questions, whatever its config calls them: its class says which is which."""


def output_names(config: PreTrainedConfig) -> tuple[str, ...]:
    """Return the names of a model's outputs, in their order."""
    if kind_of_head(config) == SPAN:
        return SPAN_OUTPUTS
    return tuple(str(name) for _, name in sorted((config.id2label or {}).items()))


def vector_width(config: PreTrainedConfig) -> int:
    """Return the width of a sentence encoder's vectors."""
    layers = (getattr(config, EMBEDDING_FIELD, None) or {}).get("layers")
    return int(layers[-1]["out_features"] if layers else config.hidden_size)


def head_of(model: PreTrainedModel) -> Head:
    """Return the head that a loaded model has."""
    return replace(head_in(model.config), scale=getattr(model, "output_scale", (0.0, 1.0)))


def head_in(config: PreTrainedConfig) -> Head:
    """Return the head that a model's config speaks of."""
    if told := getattr(config, EMBEDDING_FIELD, None):
        return Head((), None, kind=EMBEDDING, embedding={**told, "width": vector_width(config)})
    return Head(output_names(config), getattr(config, "problem_type", None), kind=kind_of_head(config))


def kind_of_head(config: PreTrainedConfig) -> str:
    """Return the kind of head that a model's config speaks of; a plain encoder gets one for whole rows."""
    if config.model_type in DETECTORS or kind_of_architectures(config.architectures) == OBJECTS:
        return OBJECTS
    if hasattr(config, "num_channels"):
        return IMAGE  # only models of pictures have channels
    return EMBEDDING if getattr(config, EMBEDDING_FIELD, None) else kind_of_architectures(config.architectures)


def kind_of_architectures(names: Sequence[str] | None) -> str:
    """Return the kind of head of such classes, as config.json names them."""
    known = (TOKEN, SPAN, MASKED, *OF_PICTURES)
    return next((kind for kind in known if any(kind in name for name in names or [])), SEQUENCE)


def set_head(config: PreTrainedConfig, head: Head) -> None:
    """Name the outputs of a config, and what they are for."""
    if head.kind not in UNNAMED:
        config.id2label = dict(enumerate(head.outputs))
        config.label2id = {name: index for index, name in enumerate(head.outputs)}
        kind: Any = head.problem_type
        config.problem_type = kind
    if kind_of_head(config) != head.kind:
        config.architectures = [head.kind]  # by which a model of this config is made; its class, once it is saved


def check_problem(config: PreTrainedConfig, head: Head) -> None:
    """Refuse a model that says it was trained for another kind of problem. Raises ModelError."""
    own = getattr(config, "problem_type", None)
    if own is not None and head.problem_type is not None and own != head.problem_type:
        raise ModelError(
            f"The model was trained for {own.replace('_', ' ')}, the task is {head.problem_type.replace('_', ' ')}. "
            "Set task.type, name another model, or start from a plain encoder."
        )


def logit_names(kind: str) -> list[str]:
    """Return what a model with this kind of head calls its outputs."""
    if kind == SPAN:
        return [f"{name}_logits" for name in SPAN_OUTPUTS]
    return ["logits", "pred_boxes"] if kind == OBJECTS else ["logits"]


def logits_of(output: Any) -> Tensor:
    """Return what a model's head computed, (B, C), or (B, L, C) of one with outputs for each token; of a detector those
    of all queries, see ``models.detection``."""
    import torch

    if "pred_boxes" in output:
        return torch.cat([output["logits"], output["pred_boxes"]], dim=-1).flatten(1)
    if "logits" in output:
        logits: Tensor = output["logits"]
        return logits
    return torch.stack([output["start_logits"], output["end_logits"]], dim=-1)


def is_focal(config: PreTrainedConfig) -> bool:
    """Return whether a detector says of each class by itself whether a query found it, see ``models.detection``."""
    return config.model_type in FOCAL


def num_queries(config: PreTrainedConfig) -> int:
    """Return how many objects a detector can find in a picture."""
    return int(config.num_queries if is_focal(config) else config.num_detection_tokens)


def num_scores(num_classes: int, focal: bool) -> int:
    """Return how many logits a query of a detector has: one a class, and one for no object where it says that."""
    return num_classes + (not focal)


def output_order(found: Sequence[str], labels: Sequence[str]) -> tuple[tuple[int, ...], str | None]:
    """Return which of the model's logits is which of ``labels``, and a sentence to show where that is an assumption.

    Names are compared as they are, then without regard to case. ``LABEL_0, LABEL_1, ...`` say nothing and are taken in
    their order, and a single output's name says nothing. Raises ModelError with both lists where names do not match.
    """
    if len(found) == len(labels) == 1:
        return (0,), None
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


def reorder_outputs(model: PreTrainedModel, order: Sequence[int]) -> None:
    """Permute the rows of the last linear layer, so that logit i becomes what logit ``order[i]`` was."""
    if list(order) == list(range(len(order))):
        return
    import torch

    for parameter in class_parameters(model).values():
        rows = torch.tensor([*order, *range(len(order), len(parameter))], device=parameter.device)
        with torch.no_grad():
            parameter.copy_(parameter.index_select(0, rows))
    chain: Any = getattr(model, "crf", None)
    if chain is not None:
        chain.reorder(order)


def output_layer(model: PreTrainedModel) -> nn.Linear:
    """Return the linear layer that makes the logits: the last one of the head with one output a label, and of a
    detector one more for no object, where it says that."""
    return next(reversed(output_layers(model).values()))


def output_layers(model: PreTrainedModel) -> dict[str, nn.Linear]:
    """Return the layers that make logits, by their names: one; of a focal detector one a layer of its decoder, and that
    which picks the queries. Raises ModelError where there is none."""
    from torch import nn

    config, inside = model.config, model.base_model_prefix + "."
    focal, width = is_focal(config), int(config.num_labels or 0)
    width = num_scores(width, focal) if kind_of_head(config) == OBJECTS else width
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    found = {
        name: module
        for name, module in linear.items()
        if module.out_features == width
        and "bbox" not in name
        and (knows_classes(name) if focal else not name.startswith(inside))
    }
    if not found:
        raise ModelError(f"{type(model).__name__} has no linear layer that makes its {config.num_labels} logits.")
    return found if focal else dict([found.popitem()])


def class_parameters(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """Return the parameters with a row a class, and maybe one for no object behind them; tied ones are there once."""
    layers, focal = tuple(f"{name}." for name in output_layers(model)), is_focal(model.config)
    parameters = model.named_parameters()
    return {n: found for n, found in parameters if (knows_classes(n) if focal else n.startswith(layers))}


def knows_classes(name: str) -> bool:
    """Return whether a parameter or layer of a focal detector has a row a class, by its name."""
    return any(part in name for part in CLASS_LAYERS)


def scaled(model: PreTrainedModel, scale: tuple[float, float]) -> None:
    """Note the unit in which a model answers."""
    setattr(model, "output_scale", scale)  # noqa: B010, a plain attribute of a module


def rescale(model: PreTrainedModel, scale: tuple[float, float]) -> None:
    """Change the unit of a model's outputs: what was ``scale`` (center and scale) becomes 0 and 1, before any other
    change of it. Raises ModelError for a last layer without a bias, which has no place for the center."""
    import torch

    old_center, old_scale = getattr(model, "output_scale", (0.0, 1.0))
    center, size = scale
    if (old_center, old_scale) != scale:
        layer = output_layer(model)
        if layer.bias is None:
            raise ModelError(f"The last layer of {type(model).__name__} has no bias, so its unit cannot be changed.")
        with torch.no_grad():
            layer.weight.mul_(old_scale / size)
            layer.bias.mul_(old_scale / size).add_((old_center - center) / size)
    scaled(model, scale)
