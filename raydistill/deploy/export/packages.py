"""The packages of the extra ``export``: present and new enough, or a message that names them; and their versions."""

from __future__ import annotations

import importlib
import re
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from raydistill.deploy.export.silence import silent
from raydistill.errors import ConfigError

ONNX = {"onnx": (1, 18), "onnxscript": (0, 5), "onnxruntime": (1, 22), "torch": (2, 11)}
NEEDED: dict[str, dict[str, tuple[int, int]]] = {
    "onnx": ONNX,
    "onnx-int8": ONNX,
    "torch-int8": {"torchao": (0, 18), "torch": (2, 11)},
    "safetensors-bf16": {},
}
"""As in the extra ``export``: older torch takes no names for dynamic axes, and torchao 0.18 does not load with it."""
COMMON = ("raydistill", "torch", "transformers", "tokenizers")
EXTRA = "pip install 'raydistill[export]', or pip install -e '.[export]' in a checkout, brings all that export needs."


def need(form: str, only: str | None = None) -> None:
    """Import what a format is made with (or ``only`` one of it). Raises ConfigError for what is missing or too old."""
    for name, least in NEEDED[form].items():
        if only not in (None, name):
            continue
        found = installed(name)
        if find_spec(name) is None or (found and tuple(map(int, re.findall(r"\d+", found)[:2])) < least):
            wanted = ".".join(map(str, least))
            raise ConfigError(
                f"The format {form} needs {name} {wanted} or newer; {found or 'none'} is installed. {EXTRA}"
            )
        with silent():
            importlib.import_module(name)


def installed(name: str) -> str | None:
    """The version of a package; None where it came under another name, as onnxruntime-gpu does."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def versions(form: str) -> dict[str, str | None]:
    """Package -> version, of all that has a part in a format."""
    return {name: installed(name) for name in (*COMMON, *NEEDED[form])}


def release(package: str) -> str:
    """Major and minor version, for people."""
    return ".".join((installed(package) or "").split(".")[:2])
