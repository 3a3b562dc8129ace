"""One format's folder: weights, config, tokenizer, and an export.json that says what it is and how to load it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raydistill.deploy.export import EXPORT_FILE, FORMATS, SCHEMA, packages
from raydistill.deploy.predictor import Predictor, TorchPredictor
from raydistill.evaluate.report.naming import source_of
from raydistill.models.folder import TOKENIZER_FILES, model_digest, read_json
from raydistill.models.head import EMBEDDING, NUM_SIDES, OBJECTS, SPAN, logit_names, num_scores
from raydistill.storage.paths import is_url, resolve_path
from raydistill.storage.redaction import redact

OF_ENCODING = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
"""Model input -> attribute of ``tokenizers.Encoding``."""


EXAMPLES = ('["a text", "another one"]', '["a question"], ["its context"]')
ENCODED = ('["a text", "another one"]', '[("a question", "its context")]')
"""Two texts, or a pair, as transformers and tokenizers take them."""


def write_export(form: str, source: TorchPredictor, model: str, scratch: Path) -> dict[str, Any]:
    """Write one format's folder without its checks into ``scratch``/<format>; the content of its export.json."""
    folder = scratch / form
    folder.mkdir()
    copy_companions(source, folder)
    made = write_weights(form, source, folder)
    is_text = source.tokenizer is not None
    inputs = list(source.tokenizer(["one"])) if is_text else ["pixel_values"]
    shape: list[Any] = ["length"] if source.processor is None else [*source.processor.shape]
    dtype = "bfloat16" if form == "safetensors-bf16" else "float32"
    content = {
        "schema": SCHEMA,
        "format": form,
        "good": None,
        "runtime": FORMATS[form],
        "versions": packages.versions(form),
        "source": {"model": public_name(model), "digest": model_digest(source.folder)},
        "task": source.task.facts(),
        "max_length": source.max_length,
        "opset": None,
        "inputs": [
            {"name": name, "dtype": "int64" if is_text else "float32", "axes": ["batch", *shape]} for name in inputs
        ],
        "outputs": [
            {"name": name, "dtype": dtype, "axes": axes(source, name)} for name in logit_names(source.task.head_kind)
        ],
        **made,
        "load": load_lines(form, source, inputs),
    }
    write_about(folder, content)
    return content


def axes(source: Predictor, name: str) -> list[str | int]:
    """Of an output: a row each, or a token, or query, of each row."""
    if source.task.head_kind == OBJECTS:
        scores = num_scores(len(source.task.outputs), source.task.focal)
        return ["batch", source.width // (scores + NUM_SIDES), NUM_SIDES if name == "pred_boxes" else scores]
    is_one = len(logit_names(source.task.head_kind)) == 1
    return ["batch", *(["length"] if source.task.has_units else []), *([source.width] if is_one else [])]


def write_weights(form: str, source: TorchPredictor, folder: Path) -> dict[str, Any]:
    """Weights, and config.json where the format has a config of its own; of a graph {opset, …}."""
    match form:
        case "onnx" | "onnx-int8":
            from raydistill.deploy.export import onnx

            exact = folder.with_name("onnx")
            if form == "onnx":
                return onnx.write_onnx(source, folder)
            if not exact.is_dir():
                exact = folder.with_name("onnx.exact")  # goes with the workplace
                exact.mkdir()
                onnx.write_onnx(source, exact)
            # onnxruntime has no int8 convolution on every CPU, and the layers of a transformer are products
            return onnx.write_int8(exact, folder, None if source.processor is None else ["MatMul"])
        case "torch-int8":
            from raydistill.deploy.export import torch_formats

            torch_formats.write_int8(source, folder)
        case "safetensors-bf16":
            from raydistill.deploy.export import torch_formats

            torch_formats.write_bfloat16(source, folder)
    return {}


def copy_companions(source: Predictor, folder: Path) -> None:
    """config.json and the tokenizer's files; tokenizer.json also where the model has an older kind."""
    for name in ("config.json", *TOKENIZER_FILES):
        if (source.folder / name).is_file():
            shutil.copyfile(source.folder / name, folder / name)
    backend = getattr(source.tokenizer, "backend_tokenizer", None)
    if backend is not None and not (folder / "tokenizer.json").is_file():
        backend.save(str(folder / "tokenizer.json"))


def public_name(name: str) -> str:
    """What a folder that leaves this machine calls a model or data: no credentials and no path of this machine."""
    if name.startswith(("runs:/", "models:/")):
        return redact(name)
    path = None if name.startswith("pkg://") or is_url(name) else resolve_path(name)
    return source_of(name if path is None else str(path)).name


def write_about(folder: Path, content: Mapping[str, Any]) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    (folder / EXPORT_FILE).write_text(text + "\n", encoding="utf-8")


def picture_lines(form: str, kind: str) -> list[str]:
    """The same of two pictures, for a head of this kind."""
    model, names = f"AutoModelFor{kind}", logit_names(kind)
    opened = [
        "from PIL import Image",
        "from transformers import AutoImageProcessor" + ("" if form.startswith("onnx") else ", " + model),
        'processor = AutoImageProcessor.from_pretrained(".")',
        'pictures = [Image.open(name).convert("RGB") for name in ("one.jpg", "another.jpg")]',
    ]
    if not form.startswith("onnx"):
        return [
            *opened,
            f'model = {model}.from_pretrained(".")',
            'output = model(**processor(pictures, return_tensors="pt").to(model.dtype))',
            f"{', '.join(names)} = {', '.join(f'output.{name}' for name in names)}",
        ]
    return [
        "import onnxruntime",
        *opened,
        'session = onnxruntime.InferenceSession("model.onnx")',
        'feeds = {"pixel_values": processor(pictures, return_tensors="np")["pixel_values"]}',
        f"{', '.join(names)} = session.run({json.dumps(names)}, feeds){'[0]' * (len(names) == 1)}",
    ]


def load_lines(form: str, source: Predictor, inputs: Sequence[str]) -> list[str]:
    """Python that gives logits of two texts in the exported folder, without raydistill."""
    length, tokenizer, model = source.max_length, source.tokenizer, f"AutoModelFor{source.task.head_kind}"
    names, is_pair = logit_names(source.task.head_kind), source.task.head_kind == SPAN
    if source.processor is not None:
        return picture_lines(form, source.task.head_kind)
    if not form.startswith("onnx") and source.task.head_kind == EMBEDDING:
        return (source.task.loading_code('"."', length) or "").splitlines()
    if not form.startswith("onnx"):
        has_code = "auto_map" in read_json(source.folder / "config.json")
        trusted = ", trust_remote_code=True" if has_code else ""
        return [
            f"from transformers import {model}, AutoTokenizer",
            f'tokenizer, model = (kind.from_pretrained("."{trusted}) for kind in (AutoTokenizer, {model}))',
            f"rows = tokenizer({EXAMPLES[is_pair]}, "
            f'padding=True, truncation=True, max_length={length}, return_tensors="pt")',
            *([] if len(names) == 1 else ["output = model(**rows)"]),
            *([f"logits = model(**rows).{names[0]}"] if len(names) == 1 else [f"{n} = output.{n}" for n in names]),
        ]
    feeds = ", ".join(f"{name!r}: numpy.array([row.{OF_ENCODING[name]} for row in rows])" for name in inputs)
    return [
        "import numpy, onnxruntime, tokenizers",
        'tokenizer, session = tokenizers.Tokenizer.from_file("tokenizer.json"), '
        'onnxruntime.InferenceSession("model.onnx")',
        f"tokenizer.enable_truncation({length})",
        f"tokenizer.enable_padding(direction={str(tokenizer.padding_side)!r}, pad_id={tokenizer.pad_token_id}, "
        f"pad_type_id={tokenizer.pad_token_type_id}, pad_token={str(tokenizer.pad_token)!r})",
        f"rows = tokenizer.encode_batch({ENCODED[is_pair]})",
        f"{', '.join(names)} = session.run({json.dumps(names)}, {{{feeds}}}){'[0]' * (len(names) == 1)}",
    ]
