"""What of a model folder goes to a hub, and what must not: other kinds of files, credentials, paths of this machine."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from raydistill.deploy.export import EXPORT_FILE
from raydistill.errors import ConfigError
from raydistill.models.folder import CARD, TOKENIZER_FILES
from raydistill.tracking.lineage import credential_line

FILES = (
    *("config.json", "*_config.json", "*.safetensors", "*.safetensors.index.json", "*.onnx", "*.onnx[._]data"),
    *(*TOKENIZER_FILES, "chat_template.jinja", EXPORT_FILE, CARD, "LICENSE*", "NOTICE*"),
)
"""Names that are sent; Python files only where config.json says that the model's code is in them."""
BINARY = ("*.safetensors", "*.onnx", "*.onnx[._]data", "*.model")
OWN_PATH = re.compile(r'"((?:~|/[\w.-]+|[A-Za-z]:\\)[/\\][^"]*)"')


def chosen_files(folder: Path) -> tuple[list[Path], list[str]]:
    """The files of a model folder that are sent, and the names of what is not."""
    has_code = '"auto_map"' in (folder / "config.json").read_text(encoding="utf-8")
    patterns = (*FILES, "*.py") if has_code else FILES
    entries = sorted(folder.iterdir())
    files = [path for path in entries if path.is_file() and any(fnmatch(path.name, p) for p in patterns)]
    return files, [path.name + "/" * path.is_dir() for path in entries if path not in files]


def check_links(folder: Path, files: Sequence[Path]) -> None:
    """Raises ConfigError for a link that leads out of the folder, unless into its own part of the hub's cache."""
    root = folder.resolve()
    blobs = root.parents[1] / "blobs" if root.parent.name == "snapshots" else root
    for path in files:
        target = path.resolve()
        if not target.is_relative_to(root) and target.parent != blobs:
            raise ConfigError(
                f"{path} is a link that leads to {target}, out of the folder, so nothing was sent. Put a copy of what "
                "you mean in its place, then push again."
            )


def check_credentials(files: Sequence[Path]) -> None:
    """Raises ConfigError for a file that would take a credential to the hub."""
    for path in files:
        if any(fnmatch(path.name, pattern) for pattern in BINARY):
            continue
        if (line := credential_line(path.read_bytes())) is not None:
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
