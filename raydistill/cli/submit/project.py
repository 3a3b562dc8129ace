"""What of a project travels to a cluster with a job: its code and small files; no data, weights, caches or secrets."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory

from raydistill.config.tree import STORAGE
from raydistill.errors import ConfigError
from raydistill.tracking.lineage import credential_line

MAX_FILE_BYTES = 10 * 10**6
MAX_BYTES = 100 * 10**6
"""Of the whole package: Ray keeps it in the memory of the head node."""
MAX_FILES = 10_000
SECRETS = (
    *("*.pem", "*.key", "*.p12", "*.pfx", "*.jks", "*.keystore", "*.kdbx", "*.ppk", "*.ovpn", "*.env", ".env*"),
    *("id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*", "credentials*", "*_credentials.*", "*-credentials.*"),
    *("secret", "secrets", "secret.*", "secrets.*", "*.secret", "*.secrets", "token", "*_token", "*.token", "token.*"),
    *("*_token.*", "*api_key*", "*api-key*", "*apikey*", "password*", "passwd*", "*-key.json", "*_key.json"),
    *("*service_account*.json", "*service-account*.json", "kubeconfig*", "*.tfstate*", "*.tfvars", "htpasswd"),
    *("*[-_.]secret", "*[-_.]secrets", "*[-_.]secret[-_.]*", "*[-_.]secrets[-_.]*", "secret[-_]*", "secrets[-_]*"),
    *("*[-_.]password", "*[-_.]passwords", "*[-_.]password[-_.]*", "*[-_.]passwords[-_.]*", "*[-_.]passwd*"),
    *("*-token", "*-token.*", "token[-_]*", "*[-_]credential", "*[-_]credentials", "*[-_]credential.*"),
    *(".netrc", "_netrc", ".pgpass", ".git", ".ssh", ".aws", ".azure", ".gnupg", ".kube", ".ray"),
)
"""Names of files and folders that never leave this machine, not even where a command names them; Python code may have
names such as secrets.py."""
DATA = (
    *("*.parquet", "*.pq", "*.arrow", "*.feather", "*.csv", "*.tsv", "*.jsonl", "*.ndjson", "*.h5", "*.hdf5"),
    *("*.npy", "*.npz", "*.pkl", "*.pickle", "*.joblib", "*.db", "*.db-*", "*.sqlite*", "*.zip", "*.gz", "*.tar"),
    *("*.tgz", "*.bz2", "*.xz", "*.zst", "*.7z", "*.safetensors", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.onnx"),
    *("*.onnx[._]data", "*.gguf", "*.tflite", "*.model"),
)
CACHES = (
    *("__pycache__", "node_modules", "site-packages", "*.egg-info", "mlruns", "mlartifacts", "wandb", "lightning_logs"),
    *("*.pyc", "*.pyo", STORAGE),
)
NOT_WALKED = (".*", "venv", "build", "dist", *CACHES)
"""Folders that are not looked into where git does not tell what belongs to the project."""


@dataclass(frozen=True)
class Selection:
    """Paths below the root that travel, and how many files stay, by reason."""

    files: tuple[str, ...]
    num_bytes: int
    left_out: dict[str, int]


NOTHING = Selection((), 0, {})


def open_project(is_sent: bool = True) -> Path:
    """The project: the working directory. Raises ConfigError where that is too much to be sent."""
    root = Path.cwd().resolve()
    if is_sent and (Path.home().resolve().is_relative_to(root) or root == Path(root.anchor)):
        raise ConfigError(f"{root} is too much to be a project. Change to the folder of your code.")
    return root


def holds(root: Path, path: Path) -> bool:
    """Whether the path lies in the project, links followed."""
    return path.resolve().is_relative_to(root)


def name_of(root: Path, path: Path) -> str:
    """Where a path that the project holds lies below the root, as it is spelt where that tells."""
    plain = Path(os.path.abspath(path))
    return (plain if plain.is_relative_to(root) else path.resolve()).relative_to(root).as_posix()


def select(root: Path, named: Collection[Path] = (), storage: Path | None = None) -> Selection:
    """Choose the files: in a git checkout what git does not ignore, else all, without what never travels.

    ``named``: files that the command needs, taken whatever their kind. ``storage``: a folder that stays. Raises
    ConfigError for a named secret, a credential in a named file, a named file above 10 MB, more than 10,000 files, or
    more than 100 MB.
    """
    sizes = {named_file(root, path): path.stat().st_size for path in named}
    left_out: Counter[str] = Counter()
    for name in listed(root):
        if len(sizes) > MAX_FILES:
            break
        if name in sizes:
            continue
        if (reason := why_not(root, name, storage)) is None:
            sizes[name] = (root / name).stat().st_size
        else:
            left_out[reason] += 1
    if (total := sum(sizes.values())) > MAX_BYTES or len(sizes) > MAX_FILES:
        largest = sorted(sizes.items(), key=lambda item: -item[1])[:5]
        shown = ", ".join(f"{name} ({size / 1e6:.1f} MB)" for name, size in largest)
        raise ConfigError(
            f"{root} would send {len(sizes):,} files or more, {total / 1e6:.0f} MB; at most {MAX_FILES:,} files and "
            f"{MAX_BYTES / 1e6:.0f} MB can travel with a job. The largest: {shown}. Have git ignore what does not "
            "belong to it, and put data where the cluster can read it, for example s3://bucket/…"
        )
    return Selection(tuple(sorted(sizes)), total, left_out)


def named_file(root: Path, path: Path) -> str:
    """Path below the root of a file that the command names. Raises ConfigError where it must not travel."""
    if not holds(root, path):
        raise ConfigError(f"{path} leads out of the project {root}. Copy the file.")
    name = name_of(root, path)
    if is_secret(name) or is_secret(path.resolve().relative_to(root).as_posix()):
        raise ConfigError(f"{name} is called like a secret and is not sent. Rename it if it is none.")
    if (size := path.stat().st_size) > MAX_FILE_BYTES:
        raise ConfigError(
            f"{name} has {size / 1e6:.1f} MB, and no more than {MAX_FILE_BYTES / 1e6:.0f} MB a file travel with a job. "
            "Put it where the cluster can read it, for example s3://bucket/…, and name that."
        )
    if (line := credential_line(path.read_bytes())) is not None:
        raise ConfigError(
            f"{name} holds a credential in line {line} and is not sent. Take it out, or put the file where the cluster "
            "can read it, for example s3://bucket/…"
        )
    return name


def listed(root: Path) -> list[str]:
    """Files below the root: by git, which knows what is ignored, or all but hidden and cache folders.

    Raises ConfigError in a repository that git does not read: files that it ignores would be sent.
    """
    if not any((above / ".git").exists() for above in (root, *root.parents)):
        return sorted(walk(root))
    command = ["git", "-C", str(root), "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        done = subprocess.run(command, capture_output=True, timeout=60, check=False)
        why = os.fsdecode(done.stderr).strip().splitlines()[:1] if done.returncode else []
    except (OSError, subprocess.TimeoutExpired) as error:
        why = [str(error)]
    if why:
        raise ConfigError(
            f"git does not tell what belongs to {root} ({why[0]}), and files that it ignores must not be sent. "
            "Mend that."
        )
    if not done.stdout:  # a folder that a repository around it ignores lists nothing
        return sorted(walk(root))
    return sorted({os.fsdecode(name) for name in done.stdout.split(b"\0") if name})


def walk(root: Path) -> Iterator[str]:
    for folder, below, names in os.walk(root):
        below[:] = [name for name in below if not matches(name, NOT_WALKED) and not is_venv(Path(folder, name))]
        yield from (Path(folder, name).relative_to(root).as_posix() for name in names)


def is_venv(folder: Path) -> bool:
    return (folder / "pyvenv.cfg").is_file()


def why_not(root: Path, name: str, storage: Path | None) -> str | None:
    """Why a file stays here: its kind in the plural; None for one that travels."""
    path = root / name
    target = path.resolve()
    if not target.is_file():
        return "links to folders and missing files"
    if not target.is_relative_to(root):
        return "links that leave the project"
    for spelt in {name, target.relative_to(root).as_posix()}:  # a link to .env is no better than .env
        parts = spelt.split("/")
        if is_secret(spelt):
            return "called like secrets"
        if any(part.startswith(".") for part in parts):
            return "hidden"
        if any(matches(part, CACHES) for part in parts):
            return "caches"
        if any(is_venv(above) for above in (root / spelt).parents if above.is_relative_to(root)):
            return "caches"
        if matches(parts[-1], DATA):
            return "data or weights"
    if storage is not None and target.is_relative_to(storage):
        return "storage"
    if target.stat().st_size > MAX_FILE_BYTES:
        return "above 10 MB"
    line = credential_line(target.read_bytes())
    return None if line is None else f"for a credential in line {line} of {name}"


def is_secret(name: str) -> bool:
    *folders, last = name.split("/")
    parts = folders if last.endswith(".py") else [*folders, last]
    return any(matches(part, SECRETS) for part in parts)


def matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(name.lower(), pattern) for pattern in patterns)


@contextmanager
def staged(root: Path, selection: Selection) -> Iterator[Path]:
    """A temporary folder with copies of the selected files; links are copied as what they lead to."""
    with TemporaryDirectory(prefix="raydistill-submit-") as folder:
        target = Path(folder) / "project"
        for name in selection.files:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / name, target / name)
        target.mkdir(exist_ok=True)
        yield target
