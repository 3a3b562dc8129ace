"""Model folders as files: where a name leads, what identifies the content, what the weights file holds."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raydistill.errors import ModelError
from raydistill.storage.artifacts import Artifact
from raydistill.storage.manifest import file_digest
from raydistill.storage.paths import is_url, resolve_path
from raydistill.storage.redaction import redact
from raydistill.storage.storage import Storage

PROCESSOR = "preprocessor_config.json"
"""How a model reads pictures."""
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "bpe.codes",
    "spiece.model",
    "spm.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
    PROCESSOR,
)
"""What a model reads rows with: the files of a tokenizer, or of an image processor."""
VOCABULARIES = {
    name for name in TOKENIZER_FILES if "config" not in name and "special" not in name and "added" not in name
}
CARD = "README.md"
MODULES = "modules.json"
"""Of a sentence encoder, see ``models.embedding``."""
_INDEX = "model.safetensors.index.json"
_MADE = re.compile(r"(.+)/(student|teacher)/([0-9a-f]{20})/model")
_PICKLED = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclass(frozen=True)
class Found:
    """What a model's name has led to where a run began."""

    commit: str | None
    """Of the hub's repository; None for a folder."""
    digest: str


Names = dict[tuple[str, str | None, bool], Found]
"""By name, revision and trust in its code."""
_settled: Names = {}
_takes_notes = False
_checked: set[tuple[str, str]] = set()
"""Folders, as they lay there, that had the content with this digest: to read a GB takes 0.7 s."""


@contextmanager
def settled_models() -> Iterator[None]:
    """Inside, a run's: a name goes on to lead to what it first led to, however its branch on the hub moves on."""
    global _takes_notes
    settle({})
    _takes_notes = True
    try:
        yield
    finally:
        _takes_notes = False
        settle({})


def settled() -> Names:
    """What names have led to in this run; its workers, whenever they join, are handed it."""
    return dict(_settled)


def settle(names: Names) -> None:
    """From here on these names lead to these commits, and a folder of other content is refused."""
    _settled.clear()
    _settled.update(names)


def resolve_model(name: str, revision: str | None = None, trust_remote_code: bool = False) -> Path:
    """Return the local folder of a model with config, tokenizer and safetensors weights.

    ``name``: a folder, ``pkg://package/path``, or a name on the Hugging Face hub, which is downloaded at ``revision``
    (safetensors, config and tokenizer only; Python files only with ``trust_remote_code``); or what a run has made, by
    its URL in a storage, of which each node keeps a copy. Raises ModelError, also where a name that is settled (see
    ``settle``) leads to other content here.
    """
    if is_url(name) and not name.startswith("file://"):
        return _of_storage(name)
    known, local = _settled.get((name, revision, trust_remote_code)), resolve_path(name)
    commit = known.commit if known is not None else None
    folder = local if local is not None else _download(name, commit or revision, trust_remote_code)
    _check_folder(folder, name)
    if known is not None:
        check_content(folder, name, known.digest, trust_remote_code)
    elif _takes_notes:
        commit = folder.name if local is None and folder.parent.name == "snapshots" else None
        _settled[name, revision, trust_remote_code] = Found(commit, model_digest(folder, trust_remote_code))
    return folder


def check_content(folder: Path, name: str, known: str, with_code: bool = True) -> None:
    """ModelError where a folder of this node is not what the run began with, by its digest, which signals and students
    carry."""
    if (_stamp(folder), known) not in _checked and (digest := model_digest(folder, with_code)) != known:
        raise ModelError(
            f"The model {name!r} is not here what it was where the run began: the content of {folder} has the digest "
            f"{digest[:12]}, not {known[:12]}. Copy the same folder to every node and leave it alone while runs go "
            "on, or name the model by its name on the hub."
        )


def _stamp(folder: Path) -> str:
    """Changes with any file of a folder."""
    files = [(str(file), file.stat()) for file in sorted(folder.rglob("*")) if file.is_file()]
    return str([(name, about.st_size, about.st_mtime_ns) for name, about in files])


def _of_storage(url: str) -> Path:
    found = _MADE.fullmatch(url)
    if found is None:
        raise ModelError(
            f"The model {redact(url)!r} is not one that a run made. Copy it into a folder that all nodes have, "
            "or upload it to the Hugging Face hub."
        )
    root, kind, key = found.groups()
    return Artifact(Storage(root), kind, key).local() / "model"


def _download(name: str, revision: str | None, trust_remote_code: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = ["config.json", "*/config.json", MODULES, "*.safetensors", _INDEX, *TOKENIZER_FILES]
    patterns += ["*.py"] if trust_remote_code else []
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except HFValidationError as error:
        raise ModelError(
            f"No model {name!r}: there is no such folder, and it is not a valid name on the Hugging Face hub. "
            "Check the path, or write the name as owner/model."
        ) from error
    except LocalEntryNotFoundError as error:
        raise ModelError(
            f"Cannot get the model {name!r}: there is no such folder here, {hub_is_away()}, and its cache here lacks "
            "it. Check the path, or download the model where the hub can be reached and give the folder."
        ) from error
    except (HfHubHTTPError, OSError) as error:
        where = f"{name!r}" + (f" at revision {revision!r}" if revision else "")
        raise ModelError(
            f"Cannot get the model {where}: there is no such folder here, and the Hugging Face hub does not give it "
            f"({type(error).__name__}). Check the name and the revision, log in with `hf auth login` for a private "
            "model, or download it elsewhere and give the folder."
        ) from error


def hub_is_away() -> str:
    """Why nothing comes from the Hugging Face hub, where it did not answer."""
    from huggingface_hub.constants import HF_HUB_OFFLINE

    if HF_HUB_OFFLINE:
        return "the Hugging Face hub is not asked (HF_HUB_OFFLINE is set)"
    return "the Hugging Face hub cannot be reached"


def _check_folder(folder: Path, name: str) -> None:
    if not folder.is_dir():
        raise ModelError(
            f"The model {name!r} leads to {folder}, which is not a folder. Give the folder that holds config.json."
        )
    if not (folder / "config.json").is_file():
        raise ModelError(f"The model folder {folder} has no config.json. Give a folder written by `save_pretrained`.")
    weight_files(folder)
    if not any((folder / file).is_file() for file in (*VOCABULARIES, PROCESSOR)):
        raise ModelError(
            f"The model folder {folder} has no tokenizer. Put its files there: "
            f'`AutoTokenizer.from_pretrained(...).save_pretrained("{folder}")`; of a model that reads pictures, with '
            "AutoImageProcessor."
        )


def weight_files(folder: Path) -> tuple[Path, ...]:
    """Return the safetensors file or shards of a model folder; ModelError where there are none, or only pickled."""
    single, index = folder / "model.safetensors", folder / _INDEX
    if single.is_file():
        return (single,)
    if index.is_file():
        shards = tuple(folder / file for file in sorted(set(read_json(index).get("weight_map", {}).values())))
        missing = [shard.name for shard in shards if not shard.is_file()]
        if missing or not shards:
            raise ModelError(
                f"The model folder {folder} lacks {', '.join(missing) or 'its shards'}. Copy it again, whole."
            )
        return shards
    pickled = sorted(path.name for pattern in _PICKLED for path in folder.glob(pattern))
    if pickled:
        raise ModelError(
            f"The model folder {folder} holds only pickled weights ({', '.join(pickled)}). They are refused, because "
            "loading them can run code. Convert them where you trust the file: "
            '`AutoModel.from_pretrained(folder).save_pretrained("converted")`, and copy the tokenizer files.'
        )
    raise ModelError(f"The model folder {folder} has no model.safetensors. Give a folder written by `save_pretrained`.")


def weight_names(folder: Path) -> set[str]:
    """Return the names of all tensors in the weights, read from the headers only."""
    return set(weight_shapes(folder))


def num_weights(folder: Path) -> int:
    """Return how many numbers the weights hold, read from the headers only."""
    return sum(math.prod(shape) for shape in weight_shapes(folder).values())


def weight_shapes(folder: Path) -> dict[str, list[int]]:
    """Return the shapes of all tensors in the weights by name, read from the headers only."""
    from safetensors import SafetensorError, safe_open

    shapes: dict[str, list[int]] = {}
    for file in weight_files(folder):
        try:
            with safe_open(file, framework="pt") as opened:
                shapes |= {name: opened.get_slice(name).get_shape() for name in opened.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ModelError(f"The weights {file} are damaged ({error}). Copy or download the file again.") from error
    return shapes


def model_digest(folder: Path, with_code: bool = True) -> str:
    """Return the sha256 (hex) over the content of weights, config, tokenizer and code, and of what a sentence encoder
    has in folders of its own; a README does not count."""
    weights = weight_files(folder)
    names = {file.name for file in weights} | {"config.json"}
    names |= {file.name for file in folder.glob("*.py")} if with_code else set()
    names |= {_INDEX} if len(weights) > 1 else set()
    if (folder / MODULES).is_file():
        beside = [*folder.glob("*/config.json"), *folder.glob("*/model.safetensors")]
        names |= {MODULES, *(file.relative_to(folder).as_posix() for file in beside)}
    stamp, digest = _stamp(folder), _digest(folder, [*names, *TOKENIZER_FILES])
    _checked.add((stamp, digest))
    return digest


def tokenizer_digest(folder: Path) -> str:
    """Return the sha256 (hex) over the content of the tokenizer's files; ModelError where there are none."""
    if not any((folder / file).is_file() for file in TOKENIZER_FILES):
        raise ModelError(f"The folder {folder} has no tokenizer files. Give a model folder with its tokenizer.")
    return _digest(folder, TOKENIZER_FILES)


def _digest(folder: Path, names: Iterable[str]) -> str:
    total = hashlib.sha256()
    for name in sorted(set(names)):
        if (folder / name).is_file():
            total.update(f"{name}\0{file_digest(folder / name)}\n".encode())  # 90 MB: 0.06 s
    return total.hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file of a model folder; ModelError where it is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"Cannot read {path}: {error}. Copy or download the model again.") from error
    if not isinstance(found, dict):
        raise ModelError(f"{path} holds no JSON object. Copy or download the model again.")
    return found


def model_bytes(folder: Path) -> int:
    """Size on disk of what is needed to compute: weights and config, with the linear layers of a sentence encoder."""
    files = [path for path in folder.iterdir() if is_model_file(path.name)]
    return sum(path.stat().st_size for path in [*files, *folder.glob("*_Dense/model.safetensors")])


def is_model_file(name: str) -> bool:
    """Whether a file of a model folder counts for its size on disk: weights and config."""
    return name.endswith((".safetensors", ".onnx", ".onnx.data")) or name == "config.json"
