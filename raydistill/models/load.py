"""Loading and saving Hugging Face models with a head: safetensors only, nothing random that was not asked for."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from raydistill.config.losses import SequenceHead
from raydistill.errors import ModelError
from raydistill.models import conv  # noqa: F401, transformers gets to know its models
from raydistill.models.boxes import fit_to_be_trained
from raydistill.models.checks import check_report, check_vocabulary, first_line
from raydistill.models.crf import add_crf, saved_settings, set_crf
from raydistill.models.embedding import embedding_class, recognise, set_embedding
from raydistill.models.fields import set_dropout_config
from raydistill.models.folder import TOKENIZER_FILES, tokenizer_digest, weight_files, weight_names
from raydistill.models.head import (
    EMBEDDING,
    IMAGE,
    MASKED,
    OBJECTS,
    OF_PICTURES,
    SEQUENCE,
    UNNAMED,
    Head,
    check_problem,
    is_focal,
    kind_of_head,
    output_layers,
    output_names,
    output_order,
    reorder_outputs,
    rescale,
    scaled,
    set_head,
)
from raydistill.models.pooled import HEAD, is_pooled, pooled_class, set_pooled

FIRST_SCORE = 0.01
"""What a new focal detector gives each class, so that its many queries without an object do not outweigh the rest."""


def load_model(
    folder: Path,
    head: Head | None,
    *,
    dropout: float | None = None,
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    pooled: bool = False,
    sequences: SequenceHead | None = None,
    seed: int = 0,
) -> PreTrainedModel:
    """Return the model in a folder, in float32 and eval mode, with its outputs in the order and unit of ``head``.

    A plain encoder gets a new head, drawn from ``seed`` without touching torch's global generator. ``head`` None keeps
    the model's own. ``dropout`` replaces every dropout of the config. ``pooled``: a new head on the mean of the
    states (``models.pooled``) instead of any other. ``sequences``: what makes labels of the logits of a row, instead of
    what the folder says (``models.crf``). Raises ModelError for missing or unknown weights, outputs that do
    not match, a tokenizer that is larger than the embedding.
    """
    config = read_config(folder, trust_remote_code)
    config = recognise(config, folder) if head is None else config
    check_vocabulary(folder, config)
    if pooled:
        set_pooled(config, True)
    if head is None:
        fine_tuned = _has_head(folder, config, trust_remote_code, kind_of_head(config))
    else:
        fine_tuned = _is_tuned(folder, config, head, trust_remote_code)
    if head is None and not fine_tuned:
        raise ModelError(f"{folder} is an encoder without a classification head; a new one needs labels. Name them.")
    if sequences is not None:
        set_crf(config, sequences)
    names, order = output_names(config) if fine_tuned or head is None else head.outputs, tuple[int, ...]()
    kind = head.kind if head else kind_of_head(config)
    is_named = kind not in UNNAMED
    if kind == EMBEDDING:
        set_embedding(config, folder, head.embedding if head else None)
    elif head is not None:
        if fine_tuned and is_named:
            check_problem(config, head)
            order, _ = output_order(names, head.outputs)
        set_head(config, head)
    if dropout is not None:
        set_dropout_config(config, dropout)
    model, report = _load(folder, config, attn_implementation, trust_remote_code, seed)
    check_report(folder, model, report, fine_tuned and kind != EMBEDDING)
    add_crf(model, names)
    if order:
        reorder_outputs(model, order)
    elif not fine_tuned and kind != MASKED:  # whose decoder is the embedding
        _renew_output_layer(model, report, seed)
    if head is not None and is_named:
        scaled(model, (0.0, 1.0) if fine_tuned else head.scale)  # a new head knows no unit
        rescale(model, head.scale)
    return model.eval()


def _load(
    folder: Path, config: PreTrainedConfig, attention: str | None, trust_remote_code: bool, seed: int
) -> tuple[PreTrainedModel, dict[str, Any]]:
    weight_files(folder)
    try:
        with quiet(), seeded(seed):
            kind: Any = pooled_class(config) if is_pooled(config) else auto_class(config)
            return kind.from_pretrained(
                folder,
                config=config,
                dtype=torch.float32,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=trust_remote_code,
                attn_implementation=supported_attention(config, attention),
                ignore_mismatched_sizes=True,  # reported, and then judged by check_report
                output_loading_info=True,
            )
    except Exception as error:  # transformers has no error class of its own: ValueError to AssertionError
        raise ModelError(f"Cannot load the model in {folder}: {first_line(error)}") from error


def _renew_output_layer(model: PreTrainedModel, report: dict[str, Any], seed: int) -> None:
    """Draw the output layers where weights were found for them: another task's head must not pass for this one's."""
    drawn = {*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])}  # the way the family does it
    first = math.log(FIRST_SCORE / (1 - FIRST_SCORE)) if is_focal(model.config) else 0.0
    with seeded(seed), torch.no_grad():
        for name, layer in output_layers(model).items():
            if f"{name}.weight" in drawn:
                continue
            layer.weight.normal_(std=getattr(model.config, "initializer_range", 0.02))
            if layer.bias is not None:
                layer.bias.fill_(first)


def new_model(
    config: PreTrainedConfig, *, seed: int, attn_implementation: str | None = None, like: PreTrainedModel | None = None
) -> PreTrainedModel:
    """Return a model of this shape with random weights drawn from ``seed``, in float32 and eval mode.

    Code that came with a model is run again where the config, or the model ``like``, is of such code already.
    """
    trusted = any(type(made).__module__.startswith("transformers_modules.") for made in (config, like))
    try:
        with quiet(), seeded(seed):
            model = auto_class(config).from_config(
                config,
                dtype=torch.float32,
                trust_remote_code=trusted,
                attn_implementation=supported_attention(config, attn_implementation),
            )
            if kind_of_head(config) == OBJECTS:
                fit_to_be_trained(model)
    except Exception as error:  # transformers has no error class of its own: ValueError to AssertionError
        raise ModelError(f"Cannot build a {config.model_type} model of this shape: {first_line(error)}") from error
    add_crf(model, output_names(config))
    return model.eval()


def auto_class(config: PreTrainedConfig) -> Any:
    """Return the class that makes models with the kind of head that a config speaks of: of transformers, or a sentence
    encoder's."""
    if kind_of_head(config) == EMBEDDING:
        return embedding_class(config)
    return getattr(transformers, f"AutoModelFor{kind_of_head(config)}")


def has_head(folder: Path, trust_remote_code: bool = False, kind: str = SEQUENCE) -> bool:
    """Return whether the folder holds the trained weights of a head of this kind, see ``models.head``."""
    return _has_head(folder, read_config(folder, trust_remote_code), trust_remote_code, kind)


def is_tuned(folder: Path, head: Head, trust_remote_code: bool = False) -> bool:
    """Return whether the folder holds the trained weights of such a head. Of pictures its labels have to be the same,
    see ``OF_PICTURES``."""
    return _is_tuned(folder, read_config(folder, trust_remote_code), head, trust_remote_code)


def _is_tuned(folder: Path, config: PreTrainedConfig, head: Head, trust_remote_code: bool) -> bool:
    if head.kind in OF_PICTURES:
        try:
            output_order(output_names(config), head.outputs)
        except ModelError:
            return False
    return _has_head(folder, config, trust_remote_code, head.kind)


def _has_head(folder: Path, config: PreTrainedConfig, trust_remote_code: bool, kind: str) -> bool:
    if kind == EMBEDDING:
        return True  # any encoder's states can be pooled
    if is_pooled(config):
        return f"{HEAD}.weight" in weight_names(folder)
    architectures = config.architectures or []
    if architectures and not any(kind in name for name in architectures):
        return False  # heads for tokens and for rows have the same names
    try:
        with quiet(), torch.device("meta"):
            model = getattr(transformers, f"AutoModelFor{kind}").from_config(
                config, trust_remote_code=trust_remote_code
            )
    except Exception as error:  # transformers has no error class of its own: ValueError to AssertionError
        raise ModelError(
            f"The model in {folder} (type {config.model_type!r}) cannot be used with a classification head: "
            f"{first_line(error)}"
        ) from error
    inside = model.base_model_prefix + "."
    tied = getattr(model, "all_tied_weights_keys", {})  # a decoder that is the embedding is kept once
    return {key for key in model.state_dict() if not key.startswith(inside) and key not in tied} <= weight_names(folder)


def order_notice(folder: Path, head: Head, trust_remote_code: bool = False) -> str | None:
    """Return a sentence where a model's outputs are only assumed to be those of ``head``; ModelError where they
    differ."""
    config = read_config(folder, trust_remote_code)
    if head.kind in UNNAMED or not _has_head(folder, config, trust_remote_code, head.kind):
        return None
    check_problem(config, head)
    return output_order(output_names(config), head.outputs)[1]


def read_config(folder: Path, trust_remote_code: bool = False) -> PreTrainedConfig:
    """Return the config of a model folder; ModelError where transformers does not know or understand it."""
    if not (folder / "config.json").is_file():
        raise ModelError(f"The model folder {folder} has no config.json. Give a folder written by `save_pretrained`.")
    try:
        with quiet():
            return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
    except Exception as error:  # transformers has no error class of its own: ValueError to AssertionError
        raise ModelError(
            f"Cannot read {folder / 'config.json'}: {first_line(error)}. A model that brings its own code can be a "
            "teacher only, with teacher.trust_remote_code: true, once you have read that code."
        ) from error


def save_model(model: PreTrainedModel, tokenizer_folder: Path, folder: Path) -> None:
    """Write an ordinary Hugging Face folder (config, safetensors, tokenizer files) that loads without raydistill.

    The model answers in the targets' unit there and from here on, whatever it was trained in.
    """
    tokenizer_digest(tokenizer_folder)  # raises where there is no tokenizer
    folder.mkdir(parents=True, exist_ok=True)
    rescale(model, (0.0, 1.0))
    saved_settings(model)
    with quiet():
        model.save_pretrained(folder)
    for name in TOKENIZER_FILES:
        if (tokenizer_folder / name).is_file() and tokenizer_folder.resolve() != folder.resolve():
            shutil.copyfile(tokenizer_folder / name, folder / name)


def supported_attention(config: PreTrainedConfig, wanted: str | None) -> str | None:
    """Return ``wanted``, or ``eager`` where the family has no SDPA (deberta-v2) or is unknown to transformers."""
    if wanted != "sdpa":
        return wanted
    names = {IMAGE: "IMAGE_CLASSIFICATION", OBJECTS: "OBJECT_DETECTION"}
    known = getattr(transformers, f"MODEL_FOR_{names.get(kind_of_head(config), 'SEQUENCE_CLASSIFICATION')}_MAPPING")
    model_class: Any = known.get(type(config), None)
    return "sdpa" if getattr(model_class, "_supports_sdpa", False) else "eager"


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from ``seed`` inside; torch's global generators stay as they were (CUDA's are never touched)."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' reports and progress bars inside; what matters in them is checked and raised by us."""
    log = transformers.utils.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity(log.CRITICAL)
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()
