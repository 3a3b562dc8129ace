"""What a run says about itself in flat form: parameters, figures, code and package versions, with secrets taken out."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from raydistill.config.loading import flatten
from raydistill.storage.redaction import redact, redact_tree

if TYPE_CHECKING:
    from raydistill.config.tree import Config

PACKAGES = (
    "raydistill",
    "ray",
    "torch",
    "transformers",
    "tokenizers",
    "datasets",
    "mlflow",
    "numpy",
    "pyarrow",
    "scipy",
)
MODEL_FIGURES = ("test", "agreement", "num_parameters", "bytes", "latency_ms", "throughput", "steps")


TOKENS = (
    r"hf_[A-Za-z0-9]{20,}",
    r"gh[pousr]_[A-Za-z0-9]{20,}",
    r"(?<![\w-])(?:github_pat_\w{20,}|glpat-[\w-]{20,}|xox[abprs]-[\w-]{10,}|AIza[\w-]{35}|sk-(?:[a-z]+-)?\w{20,})",
    r"A(?:KIA|SIA)(?<![\w+/]{5})[0-9A-Z]{16}(?![\w+/])",  # no part of base64, as tokenizers hold
    r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY",
)
CREDENTIALS = tuple(
    re.compile(pattern)
    for pattern in (
        r"://(?:[^/\s\"'<>@:]*:(?!\*\*\*@)[^/\s\"'<>]+|[^/\s\"'<>@:]{16,})@",  # user:password@ or token@ in an address
        r"[?&](?i:(?:[\w-]*(?:token|signature|key|secret)|sig|password)=)[\w%+/.~-]{8,}",
        r"\"(?i:(?:api_?key|\w*secret\w*|password|access_?token|auth_?token)\"\s*:\s*)\"(?!\*\*\*)[^\"\s]{8,}\"",
        *TOKENS,
    )
)
"""For files that leave this machine. Stricter than ``redact``, which takes out ``"bos_token": "<s>"`` too."""


def credential_line(content: bytes) -> int | None:
    """The first line of a text that holds a credential; None without one, and for what is no text."""
    if b"\0" in content[:8192]:
        return None
    text = content.decode("utf-8", errors="replace")
    found = next(filter(None, (pattern.search(text) for pattern in CREDENTIALS)), None)
    return None if found is None else text.count("\n", 0, found.start()) + 1


def parameters(config: Config) -> dict[str, str]:
    """Every leaf of the config, defaults included, by dotted name; values as ``--set`` takes them, secrets redacted."""
    return {name: _spell(redact_tree(value, name)) for name, value in flatten(config).items()}


def config_hash(config: Config) -> str:
    """20 hex digits over the whole config, whatever the order of its keys."""
    text = json.dumps(config.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def describe_environment(folder: Path | None = None) -> dict[str, Any]:
    """Code version, package versions and platform of this process; git is asked about ``folder`` (default: here)."""
    return {
        "git": git_state(folder or Path.cwd()) or git_state(Path(__file__).parent),
        "packages": package_versions(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
    }


def git_state(folder: Path) -> dict[str, Any] | None:
    """``{"commit", "dirty"}`` of the repository around the folder; None without git, repository or a first commit."""
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return None
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": changes != ""}


def package_versions() -> dict[str, str]:
    """Versions of the installed packages that determine results, read from metadata without importing them."""
    found = {}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def headline(results: Mapping[str, Any]) -> dict[str, float]:
    """The student's figures that runs and versions are compared by: ``test/<metric>``, ``retention/<metric>``,
    ``agreement``, ``num_parameters``, ``bytes``, ``latency_ms/p50``."""
    student = results.get("student") or {}
    kept = {name: student.get(name) for name in ("test", "num_parameters", "bytes")}
    kept["latency_ms"] = {"p50": (student.get("latency_ms") or {}).get("p50")}
    return dict(_numbers(kept | {name: results.get(name) for name in ("retention", "agreement")}))


def figures(results: Mapping[str, Any]) -> dict[str, float]:
    """The headline and every other number of ``results.json`` by path, for example ``teacher/test/accuracy``; the
    student's have no prefix, as its curves have none."""
    models = {}
    for name in ("student", "teacher", "baseline", "tfidf", "champion"):
        model = results.get(name) or {}
        models[name] = {part: model.get(part) for part in MODEL_FIGURES}
        # of the weights that were kept; "<name>/validation/…" is the curve over the steps
        models[name]["best_validation"] = model.get("validation")
    student, rest = models.pop("student"), {name: results.get(name) for name in ("ratios", "seconds", "seeds")}
    perturbations = (results.get("robustness") or {}).get("perturbations", {})
    rest["robustness"] = {name: one["models"] for name, one in perturbations.items()}
    return dict(_numbers(student | models | rest)) | headline(results)


def run_name(config: Config, kind: str = "distill") -> str:
    """What a run is, in words: ``mood 2 layers kd+task``, or ``mood sweep``."""
    place = redact(config.data.path).partition("?")[0].rstrip("/")
    subject = config.registry.name or PurePosixPath(place.replace("\\", "/")).stem
    if kind == "sweep":
        return f"{subject[:100]} sweep"
    number, size = config.student.num_layers, config.student.hidden_size
    layers = "all layers" if number is None else "1 layer" if number == 1 else f"{number} layers"
    if number is None and config.student.checkpoint is not None:
        layers = PurePosixPath(config.student.checkpoint).name
    width = (" conv" if config.student.type == "conv" else "") + ("" if size is None else f" of {size}")
    losses = dict.fromkeys(name for stage in config.stages.values() for name in stage.losses)
    return f"{subject[:100]} {layers}{width} {'+'.join(losses)[:100]}"


def lineage_tags(facts: Mapping[str, Any]) -> dict[str, str]:
    """Tags ``raydistill.<name>`` of what is one value, and the commit where MLflow's own pages look for it."""
    tags = {f"raydistill.{name}": _spell(value) for name, value in facts.items() if not isinstance(value, Mapping)}
    git = facts.get("git")
    if git:
        tags |= {"raydistill.git_commit": git["commit"], "raydistill.git_dirty": _spell(git["dirty"])}
        tags["mlflow.source.git.commit"] = git["commit"]
    return tags


def _numbers(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, float]]:
    if isinstance(node, Mapping):
        if "value" in node:  # {"value", "low", "high"}: the interval stays in results.json
            yield from _numbers(node["value"], path)
            return
        for name, child in node.items():
            yield from _numbers(child, (*path, str(name)))
    elif isinstance(node, int | float) and not isinstance(node, bool):
        yield "/".join(path), float(node)


def _spell(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
