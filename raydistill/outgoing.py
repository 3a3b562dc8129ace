"""What of a model folder goes to a hub, and what must not: other kinds of files, credentials, paths of this machine."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from raydistill.errors import ConfigError
from raydistill.formats import EXPORT_FILE
from raydistill.models.folder import CARD, TOKENIZER_FILES

FILES = (
    *("config.json", "*_config.json", "*.safetensors", "*.safetensors.index.json", "*.onnx", "*.onnx[._]data"),
    *(*TOKENIZER_FILES, "chat_template.jinja", EXPORT_FILE, CARD, "LICENSE*", "NOTICE*"),
)
"""Names that are sent; Python files only where config.json says that the model's code is in them."""
CREDENTIALS = tuple(
    re.compile(pattern)
    for pattern in (
        r"://(?:[^/\s\"'<>@:]*:(?!\*\*\*@)[^/\s\"'<>]+|[^/\s\"'<>@:]{16,})@",  # user:password@ or token@ in an address
        r"[?&](?i:(?:[\w-]*(?:token|signature|key|secret)|sig|password)=)[\w%+/.~-]{8,}",
        r"\"(?i:(?:api_?key|\w*secret\w*|password|access_?token|auth_?token)\"\s*:\s*)\"(?!\*\*\*)[^\"\s]{8,}\"",
        r"hf_[A-Za-z0-9]{20,}",
        r"gh[pousr]_[A-Za-z0-9]{20,}",
        r"A(?:KIA|SIA)(?<![\w+/]{5})[0-9A-Z]{16}(?![\w+/])",  # no part of base64, as tokenizers hold
    )
)
"""Stricter than ``lineage.redact``, which takes out ``"bos_token": "<s>"`` too: this refuses to send."""
BINARY = ("*.safetensors", "*.onnx", "*.onnx[._]data", "*.model")
OWN_PATH = re.compile(r'"((?:~|/[\w.-]+|[A-Za-z]:\\)[/\\][^"]*)"')


def chosen_files(folder: Path) -> tuple[list[Path], list[str]]:
    """The files of a model folder that are sent, and the names of what is not."""
    has_code = '"auto_map"' in (folder / "config.json").read_text(encoding="utf-8")
    patterns = (*FILES, "*.py") if has_code else FILES
    entries = sorted(folder.iterdir())
    files = [path for path in entries if path.is_file() and any(fnmatch(path.name, p) for p in patterns)]
    return files, [path.name + "/" * path.is_dir() for path in entries if path not in files]


def check_credentials(files: Sequence[Path]) -> None:
    """Raises ConfigError for a file that would take a credential to the hub."""
    for path in files:
        if any(fnmatch(path.name, pattern) for pattern in BINARY):
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        found = next(filter(None, (pattern.search(text) for pattern in CREDENTIALS)), None)
        if found is not None:
            line = text.count("\n", 0, found.start()) + 1
            raise ConfigError(
                f"{path} names a credential in line {line}, so nothing was sent. Take it out of the file (and revoke "
                "it where others have seen the file), then push again."
            )


def advice(folder: Path, files: Sequence[Path]) -> list[str]:
    """What the user may want to mend before others see it."""
    found = []
    if not (folder / CARD).is_file():
        found.append(f"The model has no card, so others cannot know what it is. Put a {CARD} beside its config.json.")
    for path in files:
        if path.name.endswith(("config.json", EXPORT_FILE)):
            named = OWN_PATH.search(path.read_text(encoding="utf-8", errors="replace"))
            if named is not None:
                found.append(f"{path.name} names a folder of this machine: {named[1]}.")
    return found
