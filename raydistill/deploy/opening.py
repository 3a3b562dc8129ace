"""A finished model's folder, or its name in MLflow, ready to predict; exported ones are told apart by export.json."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from raydistill.deploy.export import EXPORT_FILE, FORMATS
from raydistill.errors import ModelError
from raydistill.models.folder import read_json, resolve_model
from raydistill.storage.paths import resolve_path
from raydistill.storage.storage import Storage

if TYPE_CHECKING:
    from raydistill.deploy.predictor import Predictor


def open_folder(folder: Path, max_length: int | None = None, device: str | None = None) -> Predictor:
    """The model in a local folder, exported or not; ``device`` None takes the GPU where that is of use, which it is not
    for one with onnx.

    Raises ModelError for a folder that is none or a damaged one, ConfigError for a wrong length or a missing package.
    """
    from raydistill.deploy.predictor import TorchPredictor

    if not (folder / EXPORT_FILE).is_file():
        return TorchPredictor(folder, max_length, device)
    form = read_json(folder / EXPORT_FILE).get("format")
    if form not in FORMATS:
        raise ModelError(
            f"{folder / EXPORT_FILE} names the format {form!r}; this raydistill knows {', '.join(FORMATS)}. Export the "
            "model again, or use the raydistill that made it."
        )
    if form.startswith("onnx"):
        from raydistill.deploy.export.onnx import OnnxPredictor

        return OnnxPredictor(folder, max_length, form=form)
    from raydistill.deploy.export.torch_formats import open_torch

    return open_torch(folder, max_length, device, form)


def model_folder(model: str, storage: str) -> Path:
    """The local folder of MODEL: a folder, pkg://, a hub name, or an MLflow URI of the store beside ``storage``.

    Raises ModelError where it is no folder of a model that transformers loads, nor an export.
    """
    if model.startswith(("runs:/", "models:/")):
        from raydistill.tracking.registry.versions import resolve_model_uri

        model = str(resolve_model_uri(model, Storage(storage)))
    local = resolve_path(model)
    if local is not None and (local / EXPORT_FILE).is_file():
        return local
    try:
        return resolve_model(model)
    except ModelError as error:
        if local is None:
            raise ModelError(f"{error} A registered model is called models:/NAME@ALIAS.") from error
        raise


def open_model(model: str, max_length: int | None, storage: str) -> Predictor:
    """The model that MODEL names, see ``model_folder``."""
    return open_folder(model_folder(model, storage), max_length)
