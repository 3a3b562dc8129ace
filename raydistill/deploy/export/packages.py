"""The packages of the extra ``export``: present and new enough, or a message that names them; and their versions."""

from __future__ import annotations

import importlib
import re
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from raydistill.deploy.export.silence import silent
from raydistill.errors import ConfigError

NEEDED = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "onnx-int8": ("onnx", "onnxscript", "onnxruntime"),
    "torch-int8": ("torchao",),
    "safetensors-bf16": (),
}
COMMON = ("raydistill", "torch", "transformers", "tokenizers")
LEAST = {"torch": (2, 11), "onnx": (1, 18), "onnxscript": (0, 5), "onnxruntime": (1, 22), "torchao": (0, 18)}
"""As in the extra ``export``: older torch takes no names for dynamic axes, and torchao 0.18 does not load with it."""
EXTRA = "pip install 'raydistill[export]', or pip install -e '.[export]' in a checkout, brings all that export needs."


def need(form: str, packages: tuple[str, ...] | None = None) -> None:
    """Import what a format is made with (or only ``packages``). Raises ConfigError for what is missing or too old."""
    for name in NEEDED[form] if packages is None else packages:
        if find_spec(name) is None:
            raise ConfigError(f"The format {form} needs the package {name}, which is not installed. {EXTRA}")
        check_version(form, name)
        with silent():
            importlib.import_module(name)
    if packages is None and NEEDED[form]:
        check_version(form, "torch")


def check_version(form: str, name: str) -> None:
    """Raises ConfigError where a package is older than the format needs."""
    found = installed(name)
    if found is not None and tuple(map(int, re.findall(r"\d+", found)[:2])) < LEAST[name]:
        least = ".".join(map(str, LEAST[name]))
        raise ConfigError(f"The format {form} needs {name} {least} or newer; {found} is installed. {EXTRA}")


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
