"""Small data sets written to disk, their configs, and what was prepared from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa

from raydistill.config.tree import Config
from raydistill.data.paths import SPLITS
from raydistill.storage.artifacts import Artifact


def make_config(path: Path | str, **data: Any) -> Config:
    rest = {name: data.pop(name) for name in ("seed", "task", "storage") if name in data}
    is_of_vectors = rest.get("task", {}).get("type") == "embeddings"
    stage = {"losses": {"kd": {"type": "vector_mse" if is_of_vectors else "logit_mse"}}}
    tree = {"data": {"path": str(path), **data}, "teacher": {"model": "x"}, "stages": {"distill": stage}, **rest}
    return Config.model_validate(tree)


def write_rows(path: Path, rows: list[tuple[str, Any]]) -> Path:
    """Texts and labels (None: null) as JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"text": text, "label": label}) for text, label in rows]
    path.write_text("\n".join(lines) + "\n")
    return path


def numbered(num_rows: int, labels: str = "ab", prefix: str = "text") -> list[tuple[str, Any]]:
    return [(f"{prefix} {i}", labels[i % len(labels)]) for i in range(num_rows)]


def splits_of(artifact: Artifact) -> dict[str, pa.Table]:
    return {s: pa.ipc.open_file(pa.OSFile(str(artifact.local() / f"{s}.arrow"))).read_all() for s in SPLITS}


def texts_of(artifact: Artifact) -> dict[str, list[str]]:
    return {split: table["text"].to_pylist() for split, table in splits_of(artifact).items()}


def make_folder(root: Path, documents: dict[str, bytes | str]) -> Path:
    for name, content in documents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return root
