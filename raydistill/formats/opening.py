"""An exported folder as a classifier, told apart by its export.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from raydistill.classifier import Classifier
from raydistill.errors import ModelError
from raydistill.formats import EXPORT_FILE, FORMATS
from raydistill.models.folder import read_json


def read_export(folder: Path) -> dict[str, Any]:
    """The content of export.json. Raises ModelError where it is damaged or of a format that is not known."""
    found = read_json(folder / EXPORT_FILE)
    if found.get("format") not in FORMATS:
        raise ModelError(
            f"{folder / EXPORT_FILE} names the format {found.get('format')!r}; this raydistill knows "
            f"{', '.join(FORMATS)}. Export the model again, or use the raydistill that made it."
        )
    return found


def open_export(folder: Path, max_length: int | None = None, device: str | None = None) -> Classifier:
    """The classifier in an exported folder; one with onnx runs on the CPU. Raises ModelError, ConfigError."""
    form = read_export(folder)["format"]
    if form.startswith("onnx"):
        from raydistill.formats.onnx import OnnxClassifier

        return OnnxClassifier(folder, max_length, form=form)
    from raydistill.formats.torch_formats import ExportedTorchClassifier

    return ExportedTorchClassifier(folder, max_length, device, form=form)
