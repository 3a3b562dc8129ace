"""Sentence encoders: an encoder whose states are pooled into one vector a text, as the modules of a folder say.

A folder is one of sentence-transformers (https://www.sbert.net): the encoder as ``AutoModel`` loads it, and beside it
``modules.json`` with a pooling, linear layers (``Dense``) and a last step to length 1 (``Normalize``). In memory the
linear layers are part of the model, so that they are trained and checkpointed with it.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from raydistill.errors import ModelError
from raydistill.models.folder import MODULES, read_json
from raydistill.models.head import EMBEDDING, EMBEDDING_FIELD, Head, set_head, vector_width

LAYERS = "sentence_layers"
"""The linear layers, in the names of weights."""
ACTIVATIONS = {"Identity": "torch.nn.modules.linear.Identity", "Tanh": "torch.nn.modules.activation.Tanh"}
"""What may follow a linear layer, by its name: as sentence-transformers writes it."""
FLAGS = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token"}
"""Poolings, and how sentence-transformers up to version 5 writes them."""
WAY_OUT = "Known are Transformer, Pooling (mean or cls), Dense and Normalize. Name another teacher."


def set_embedding(config: PreTrainedConfig, folder: Path, wanted: Mapping[str, Any] | None) -> None:
    """Let a config speak of the sentence encoder in ``folder``; one without modules is pooled by the mean, to length 1.

    ``wanted``: what is to be otherwise, {pooling, normalize, width}. Raises ModelError for modules that are not known.
    """
    told = read_modules(folder) or getattr(config, EMBEDDING_FIELD, None)
    told = copy.deepcopy(told or {"pooling": "mean", "normalize": True, "layers": []})
    given = {name: value for name, value in (wanted or {}).items() if value is not None}
    told |= {name: given[name] for name in ("pooling", "normalize") if name in given}
    setattr(config, EMBEDDING_FIELD, told)
    width = given.get("width")
    if width is not None and width != vector_width(config):
        told["layers"] = [linear(config.hidden_size, width)]


def recognise(config: PreTrainedConfig, folder: Path) -> PreTrainedConfig:
    """The config of a finished model, which speaks of a sentence encoder also where only the modules beside it do."""
    is_plain = not any("For" in name for name in config.architectures or [])
    if is_plain and (folder / MODULES).is_file() and not getattr(config, EMBEDDING_FIELD, None):
        set_embedding(config, folder, None)
    return config


def set_head_of(config: PreTrainedConfig, folder: Path, head: Head) -> None:
    """Let the config in ``folder`` speak of a head, of whichever kind."""
    if head.kind == EMBEDDING:
        set_embedding(config, folder, head.embedding)
    else:
        set_head(config, head)


def linear(in_features: int, out_features: int) -> dict[str, Any]:
    """A linear layer in a config."""
    return {"in_features": in_features, "out_features": out_features, "bias": False, "activation": "Identity"}


def fit_layers(config: PreTrainedConfig, source: PreTrainedConfig) -> None:
    """Let a student of another width than ``source`` reach the width of its vectors, by a linear layer of its own where
    there is none."""
    told = copy.deepcopy(getattr(config, EMBEDDING_FIELD, None))
    if told is None or config.hidden_size == source.hidden_size:
        return
    if told["layers"]:
        told["layers"][0]["in_features"] = config.hidden_size
    else:
        told["layers"] = [linear(config.hidden_size, source.hidden_size)]
    setattr(config, EMBEDDING_FIELD, told)


def add_layer(model: PreTrainedModel, weight: Tensor) -> None:
    """Put one more linear layer (out, in) behind those of a sentence encoder, before its step to length 1."""
    told = copy.deepcopy(getattr(model.config, EMBEDDING_FIELD))
    told["layers"].append(linear(weight.shape[1], weight.shape[0]))
    setattr(model.config, EMBEDDING_FIELD, told)
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    with torch.no_grad():
        layer.weight.copy_(weight)
    getattr(model, LAYERS).append(layer)


def identities(model: PreTrainedModel, source: PreTrainedModel) -> dict[str, Tensor]:
    """Weights by name, as wide as ``source``, of the linear layers that a student has and the source of its weights
    lacks: they begin as the identity of what goes in."""
    before = len(getattr(source, LAYERS, ()))
    layers = list(getattr(model, LAYERS, ()))
    return {
        f"{LAYERS}.{i}.weight": torch.eye(layer.out_features, source.config.hidden_size)
        for i, layer in enumerate(layers)
        if i >= before
    }


def embedding_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The class of sentence encoders in the family of ``config``. Raises ModelError for one that transformers lacks."""
    family: Any = transformers.MODEL_MAPPING.get(type(config), None)
    if family is None:
        raise ModelError(f"transformers has no plain encoder of type {config.model_type}, so it gives no embeddings.")
    return _class(family[0] if isinstance(family, tuple) else family)


@cache
def _class(family: Any) -> type[PreTrainedModel]:
    class SentenceEncoder(family):
        """Vectors (B, width) as ``logits``; on disk its own weights are the encoder's, as ``AutoModel`` names them."""

        def __init__(self, config: PreTrainedConfig, *arguments: Any, **options: Any) -> None:
            super().__init__(config, *arguments, **options)
            told = getattr(config, EMBEDDING_FIELD)["layers"]
            made = [nn.Linear(one["in_features"], one["out_features"], bias=one["bias"]) for one in told]
            setattr(self, LAYERS, nn.Sequential(*made))  # no ModuleList: the stack of layers is found as one
            self.post_init()

        @classmethod
        def from_config(
            cls,
            config: PreTrainedConfig,
            *,
            dtype: torch.dtype = torch.float32,
            trust_remote_code: bool = False,
            attn_implementation: str | None = None,
        ) -> Any:
            made = cls(config).to(dtype)
            if attn_implementation is not None:
                made.set_attn_implementation(attn_implementation)
            return made

        @classmethod
        def from_pretrained(cls, folder: Any, *arguments: Any, **options: Any) -> Any:
            made = super().from_pretrained(folder, *arguments, **options)
            load_layers(made[0] if isinstance(made, tuple) else made, Path(folder))
            return made

        def save_pretrained(self, folder: Any, state_dict: Any = None, **options: Any) -> None:
            whole = self.state_dict() if state_dict is None else state_dict
            own = {name: tensor for name, tensor in whole.items() if not name.startswith(LAYERS)}
            super().save_pretrained(folder, state_dict=own, **options)
            write_modules(self, Path(folder))

        def forward(
            self,
            input_ids: Tensor | None = None,
            attention_mask: Tensor | None = None,
            token_type_ids: Tensor | None = None,
            output_hidden_states: bool = False,
        ) -> SequenceClassifierOutput:
            given = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
            inputs = {name: tensor for name, tensor in given.items() if tensor is not None}
            found = super().forward(**inputs, output_hidden_states=output_hidden_states, return_dict=True)
            vectors = pooled(found[0], attention_mask, self.config, getattr(self, LAYERS))
            return SequenceClassifierOutput(logits=vectors, hidden_states=found.hidden_states)

    SentenceEncoder.__name__ = SentenceEncoder.__qualname__ = family.__name__
    return SentenceEncoder


def pooled(states: Tensor, mask: Tensor | None, config: PreTrainedConfig, layers: nn.Sequential) -> Tensor:
    """Vectors (B, width) of states (B, L, hidden width); padding at the right does not count."""
    told = getattr(config, EMBEDDING_FIELD)
    if told["pooling"] == "cls":
        vectors = states[:, 0]
    else:
        weights = torch.ones_like(states[..., :1]) if mask is None else mask[..., None].to(states.dtype)
        vectors = (states * weights).sum(1) / weights.sum(1)
    for layer, about in zip(layers, told["layers"], strict=True):
        vectors = layer(vectors)
        vectors = torch.tanh(vectors) if about["activation"] == "Tanh" else vectors
    return F.normalize(vectors, dim=-1) if told["normalize"] else vectors


# folders


def read_modules(folder: Path) -> dict[str, Any] | None:
    """What the modules of a folder say, {pooling, normalize, layers}; None where it has none. Raises ModelError."""
    if not (folder / MODULES).is_file():
        return None
    told: dict[str, Any] = {"pooling": "mean", "normalize": False, "layers": []}
    for kind, place in modules_of(folder):
        match kind:
            case "Transformer":
                continue
            case "Pooling":
                told["pooling"] = read_pooling(read_json(place / "config.json"), folder)
            case "Dense" if not told["normalize"]:
                own = read_json(place / "config.json")
                activation = str(own.get("activation_function", ACTIVATIONS["Tanh"])).rpartition(".")[2]
                if activation not in ACTIVATIONS:
                    raise ModelError(f"{place} has the activation {activation}; known are {', '.join(ACTIVATIONS)}.")
                sizes = {name: own[name] for name in ("in_features", "out_features")}
                told["layers"].append({**sizes, "bias": bool(own.get("bias", True)), "activation": activation})
            case "Normalize":
                told["normalize"] = True
            case _:
                raise ModelError(f"The sentence encoder in {folder} has the module {kind} there. {WAY_OUT}")
    return told


def modules_of(folder: Path) -> list[tuple[str, Path]]:
    """Kind and folder of each module, in their order."""
    try:
        listed = json.loads((folder / MODULES).read_text(encoding="utf-8"))
        return [(str(one["type"]).rpartition(".")[2], folder / one["path"]) for one in listed]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"Cannot read {folder / MODULES}: {error}. Copy or download the model again.") from error


def read_pooling(own: Mapping[str, Any], folder: Path) -> str:
    flags = [name for name, value in own.items() if name.startswith("pooling_mode_") and value]
    named = {flag: mode for mode, flag in FLAGS.items()}
    modes = [named.get(flag, flag.removeprefix("pooling_mode_")) for flag in flags] or [own.get("pooling_mode", "mean")]
    if len(modes) != 1 or modes[0] not in FLAGS:
        raise ModelError(f"The sentence encoder in {folder} pools by {' and '.join(map(str, modes))}. {WAY_OUT}")
    return str(modes[0])


def layer_folders(folder: Path) -> list[Path]:
    return [place for kind, place in modules_of(folder) if kind == "Dense"] if (folder / MODULES).exists() else []


@torch.no_grad()
def load_layers(model: PreTrainedModel, folder: Path) -> None:
    """Read the linear layers that lie beside an encoder; a model that is given others keeps its own."""
    places, layers = layer_folders(folder), getattr(model, LAYERS)
    if len(places) != len(layers):
        return
    for place, layer in zip(places, layers, strict=True):
        if not (place / "model.safetensors").is_file():
            raise ModelError(f"{place} has no model.safetensors. Save the model again with sentence-transformers.")
        for name, tensor in load_file(place / "model.safetensors").items():
            own = getattr(layer, name.rpartition(".")[2])
            if own.shape != tensor.shape:
                raise ModelError(f"The weights in {place} do not fit its config.json. Copy the model again.")
            own.copy_(tensor)


def write_modules(model: PreTrainedModel, folder: Path) -> None:
    """Write what sentence-transformers wants beside an encoder."""
    told, width = getattr(model.config, EMBEDDING_FIELD), model.config.hidden_size
    flags = {flag: told["pooling"] == mode for mode, flag in FLAGS.items()}
    modules: list[tuple[str, dict[str, Any] | None]] = [
        ("Transformer", None),
        ("Pooling", {"word_embedding_dimension": width, **flags}),
        *(("Dense", {**one, "activation_function": ACTIVATIONS[one["activation"]]}) for one in told["layers"]),
        *([("Normalize", {})] if told["normalize"] else []),
    ]
    layers, listed = iter(getattr(model, LAYERS)), []
    for i, (kind, about) in enumerate(modules):
        path = "" if about is None else f"{i}_{kind}"
        listed.append({"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"})
        if about is None:
            continue
        (folder / path).mkdir(parents=True, exist_ok=True)
        if kind == "Dense":
            weights = {f"linear.{name}": p.detach().contiguous() for name, p in next(layers).named_parameters()}
            save_file(weights, folder / path / "model.safetensors", metadata={"format": "pt"})
            about.pop("activation")
        if about:
            (folder / path / "config.json").write_text(json.dumps(about, indent=2))
    (folder / MODULES).write_text(json.dumps(listed, indent=2))
