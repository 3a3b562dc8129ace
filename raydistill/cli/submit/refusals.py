"""What cannot work on a cluster, found here before anything is sent: paths that only this machine has, and secrets."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from raydistill.cli.submit.project import holds, name_of, named_file
from raydistill.cli.submit.request import Reference, Request
from raydistill.errors import ConfigError, RaydistillError
from raydistill.storage.redaction import redact, redact_values
from raydistill.storage.runs import LINKS
from raydistill.tracking.endpoint import sqlite_path
from raydistill.tracking.lineage import credential_line

STOP_SECONDS = 15
"""Ray's job server ends a job that was asked to stop with SIGKILL after so long; 3 s is its default, a checkpoint and
the end of the workers take up to 10."""
ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
"""Of S3, the one that counts first."""
CARRIED = ("MLFLOW_TRACKING_URI", *ENDPOINTS, "AWS_DEFAULT_REGION")
"""Variables of this environment that a job gets; they are addresses and no secrets."""
SECRET_WORDS = ("token", "secret", "password", "passwd", "passphrase", "key", "credential", "credentials", "auth")
SECRET_PARTS = {"pass", "pwd", "pat", "cookie"}
LOOPBACK = ("localhost", "127.0.0.1", "::1", "0.0.0.0")
HOST_ONLY = "Job environments and command lines can be read on the dashboard."


@dataclass
class Findings:
    """What the checks found, and what has to be different in the command that runs on the cluster."""

    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    """Files of the project that the command names."""
    changes: dict[str, str] = field(default_factory=dict)
    """Settings whose value is spelt otherwise there."""
    environment: dict[str, str] = field(default_factory=dict)


def examine(
    request: Request, root: Path, shared: Sequence[str], environment: Mapping[str, str], address: str
) -> Findings:
    """Every check of a request; ``environment`` is what ``--env`` gives, ``shared`` what ``--shared`` names."""
    found = Findings(environment=job_environment(environment))
    common = shared_folders(shared, found)
    for reference in request.references():
        check_reference(reference, root, common, found)
    if request.needs_tracking():
        check_tracking(request, common, address, found)
    endpoint = next((name for name in ENDPOINTS if found.environment.get(name)), None)
    if endpoint is not None and any(
        reference.value.startswith(("s3://", "s3a://")) for reference in request.references()
    ):
        check_server_host(endpoint, found.environment[endpoint], address, found)
    check_secrets(request, environment, found)
    if request.config is not None and request.config.train.num_workers == 0:
        found.warnings.append(
            "train.num_workers: 0 runs everything on the head node, without Ray. Write 1 or more to use the cluster."
        )
    return found


def job_environment(more: Mapping[str, str]) -> dict[str, str]:
    """The variables that a job gets: where tracking and storage are, how long it may take to stop, and ``--env``."""
    carried = {name: os.environ[name].strip() for name in CARRIED if os.environ.get(name, "").strip()}
    return {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS), **carried, **more}


def parse_environment(assignments: Sequence[str]) -> dict[str, str]:
    """``NAME=VALUE`` as a dict. Raises ConfigError."""
    found = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII) or "\0" in value:
            raise ConfigError("--env: expected NAME=VALUE, for example --env MLFLOW_TRACKING_URI=http://mlflow:5000")
        found[name] = value
    return found


def shared_folders(names: Sequence[str], found: Findings) -> list[Path]:
    """The folders that are the same on every node, absolute."""
    folders = []
    for name in names:
        folder = Path(os.path.abspath(os.path.expanduser(name)))
        if folder == Path(folder.anchor):
            found.problems.append(
                "--shared / would mean that all nodes are one machine. Name the common folder itself."
            )
        folders.append(folder)
    return folders


def below_one(path: Path, folders: Sequence[Path]) -> Path | None:
    """The path as it is spelt below one of the folders; None where it lies in none of them, links followed or not."""
    for folder in folders:
        if path.is_relative_to(folder):
            return path
        if path.resolve().is_relative_to(folder.resolve()):
            return folder / path.resolve().relative_to(folder.resolve())
    return None


def check_reference(reference: Reference, root: Path, shared: Sequence[Path], found: Findings) -> None:
    """Note what is wrong with a reference, or what it is called on the cluster, or the files that have to travel."""
    value = reference.value.removeprefix("file://")
    if reference.kind == "hub" or value.startswith(("pkg://", *LINKS)):
        return
    path = reference.local
    if path is None:
        if value.startswith(("memory:", "local:")):
            found.problems.append(
                f"{reference.setting}: {redact(value)} exists in one process only. Use a URL (s3://, gs://)."
            )
        return
    if (spelt := below_one(path, shared)) is not None:
        change(reference, str(spelt), found)
    elif reference.kind == "storage":
        found.problems.append(
            f"storage: {reference.value} is a folder of this machine, which the cluster's nodes do not have. Name a "
            "URL, for example s3://bucket/prefix, or say with --shared FOLDER that it is the same on every node."
        )
    elif not os.path.exists(path):
        check_missing(reference, found)
    elif reference.kind == "model":
        found.problems.append(
            f"{reference.setting}: {value} is a folder of this machine, and models do not travel with a job. "
            f"Use a hub name or pkg://package/path, or put it into a common folder named by --shared."
        )
    elif not holds(root, path):
        found.problems.append(
            f"{reference.setting}: {value} lies outside the project {root}, so it exists only here. Copy it "
            f"into the project{', put it behind a URL' * (reference.kind == 'data')}, call the command from a folder "
            "above both, or name a common folder with --shared."
        )
    else:
        add_files(reference, path, root, found)
        if os.path.normpath(reference.value) != name_of(root, path):
            change(reference, name_of(root, path), found)


def change(reference: Reference, value: str, found: Findings) -> None:
    if value == reference.value:
        return
    if reference.setting.startswith("sweep.space"):
        found.problems.append(f"{reference.setting}: write {reference.value} as an absolute path, {value}.")
    else:
        found.changes[reference.setting] = value


def check_missing(reference: Reference, found: Findings) -> None:
    """A name that is no path here: a hub name is found there too, all else is a mistake."""
    from raydistill.storage.paths import resolve_path

    try:
        resolve_path(reference.value)
    except RaydistillError as error:
        found.problems.append(f"{reference.setting}: {error} If it is a folder of the cluster, name it with --shared.")


def add_files(reference: Reference, path: Path, root: Path, found: Findings) -> None:
    """Take the file, or all files of the folder, along; what must not travel is a problem."""
    from raydistill.data.paths import list_files

    for file in [Path(file.path) for file in list_files(path)] if path.is_dir() else [path]:
        try:
            named_file(root, file)
            found.files.append(file)
        except ConfigError as error:
            found.problems.append(f"{reference.setting}: {error}")


def check_tracking(request: Request, shared: Sequence[Path], address: str, found: Findings) -> None:
    """MLflow must be a server that every node reaches, without a password that the dashboard would show."""
    uri = found.environment.get("MLFLOW_TRACKING_URI", "")
    scheme = uri.partition("://")[0].lower() if "://" in uri else ""
    if not uri:
        storage = request.storage().local
        spelt = below_one(storage, shared) if storage is not None else None
        if spelt is not None:
            found.warnings.append(shared_sqlite(spelt / "mlflow.db"))
        else:
            found.problems.append(
                "tracking: MLFLOW_TRACKING_URI is not set, and a cluster needs an MLflow server that all nodes reach. "
                "Add --env MLFLOW_TRACKING_URI=http://HOST:5000 (mlflow server --host 0.0.0.0 behind a firewall)."
            )
    elif scheme in ("http", "https"):
        check_server_host("tracking", uri, address, found)
    elif (sqlite := sqlite_path(uri)) is not None and (path := below_one(sqlite, shared)) is not None:
        found.environment["MLFLOW_TRACKING_URI"] = f"sqlite:///{path}"
        found.warnings.append(shared_sqlite(path))
    elif sqlite is not None or scheme == "file" or (not scheme and uri != "databricks"):
        found.problems.append(
            f"tracking: {redact(uri)} is a file or folder of this machine. Set MLFLOW_TRACKING_URI to an MLflow server."
        )


def shared_sqlite(path: Path) -> str:
    return (
        f"tracking: {path} is sqlite on a common folder, whose locks network file systems do not always keep. "
        "An MLflow server (MLFLOW_TRACKING_URI) is safer."
    )


def check_server_host(setting: str, uri: str, address: str, found: Findings) -> None:
    try:
        host = urlsplit(uri).hostname or ""
    except ValueError as error:
        found.problems.append(f"{setting}: {redact(uri)} is no address ({error}). Correct it.")
        return
    if host not in LOOPBACK:
        return
    text = f"{setting}: {redact(uri)} means each node itself."
    if urlsplit(address).hostname in LOOPBACK:  # the head itself, or a tunnel to it
        found.warnings.append(f"{text} That is right only where the server runs on the cluster's one node.")
    else:
        found.problems.append(f"{text} Name the server by the address under which the cluster reaches it.")


def check_secrets(request: Request, environment: Mapping[str, str], found: Findings) -> None:
    """Nothing secret goes into what Ray's dashboard shows to everybody who can reach it."""
    for name, value in found.environment.items():
        if is_secret_name(name) and name in environment:
            found.problems.append(
                f"--env {name}: called like a secret, and not sent. {HOST_ONLY} Set it where the nodes start "
                "(cluster.yaml, a Kubernetes secret, an instance profile)."
            )
        elif holds_secret(value):
            found.problems.append(
                f"{name}: holds a password or a key. {HOST_ONLY} Give the address without it, and set "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (or AWS_*) where the nodes start."
            )
    told = []
    for name, value in request.settings().items():
        if holds_secret(value, name) or credential_line(value.encode()):
            told.append(name)
            found.problems.append(
                f"{name}: holds a password or a key. A config goes into logs, results and MLflow. Take it out, and set "
                "what it is for where the nodes start (AWS_*, HF_TOKEN, MLFLOW_TRACKING_PASSWORD)."
            )
    for word in request.words(found.changes):
        if not word.startswith(tuple(f"{name}=" for name in told)) and holds_secret(word):
            found.problems.append(
                f"{redact(word)}: the command line holds a password or a key. {HOST_ONLY} Set it where the nodes start."
            )


def is_secret_name(name: str) -> bool:
    """Whether a variable is called like a secret: HF_TOKEN, AWS_SECRET_ACCESS_KEY, but not TOKENIZERS_PARALLELISM."""
    parts = name.lower().split("_")
    return any(part.endswith(SECRET_WORDS) or part in SECRET_PARTS for part in parts)


def holds_secret(value: str, name: str = "") -> bool:
    """Whether a value, in the light of its name, would be redacted, or an address in it has something before an @."""
    return redact_values({name: value})[name] != value or re.search(r"://[^/\s@]*@", value) is not None
