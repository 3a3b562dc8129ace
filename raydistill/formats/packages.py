"""The packages of the extra ``export``: present, or a message that names it; and their versions."""

from __future__ import annotations

import importlib
from importlib.metadata import version
from importlib.util import find_spec

from raydistill.errors import ConfigError
from raydistill.formats.silence import silent

NEEDED = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "onnx-int8": ("onnx", "onnxscript", "onnxruntime"),
    "torch-int8": ("torchao",),
    "safetensors-bf16": (),
}
COMMON = ("raydistill", "torch", "transformers", "tokenizers")


def need(form: str, packages: tuple[str, ...] | None = None) -> None:
    """Import what a format is made with (or only ``packages``). Raises ConfigError where something is missing."""
    for name in NEEDED[form] if packages is None else packages:
        if find_spec(name) is None:
            raise ConfigError(
                f"The format {form} needs the package {name}, which is not installed. "
                "pip install 'raydistill[export]' brings all that export needs."
            )
        with silent():
            importlib.import_module(name)


def versions(form: str) -> dict[str, str]:
    """Package -> version, of all that has a part in a format."""
    return {name: version(name) for name in (*COMMON, *NEEDED[form])}


def release(package: str) -> str:
    """Major and minor version, for people."""
    return ".".join(version(package).split(".")[:2])
