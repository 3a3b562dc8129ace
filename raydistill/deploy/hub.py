"""A finished model's way to a Hugging Face hub (``raydistill push``): its files and its card, in one commit.

Only files of a kind that a model consists of are sent, never pickles or what MLflow needs. The token comes from the
environment or the hub's own login, and is taken out of everything that is printed, logged or raised.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raydistill.deploy.export import EXPORT_FILE
from raydistill.deploy.opening import model_folder
from raydistill.errors import ConfigError, RaydistillError
from raydistill.models.folder import CARD, TOKENIZER_FILES
from raydistill.storage.redaction import HIDDEN, harmless, redact
from raydistill.tracking.lineage import credential_line, package_versions

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from rich.console import Console

MAIN = "main"
MAX_REASON = 300
WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "*.onnx", "*.onnx[._]data", EXPORT_FILE)
"""Names that decide what a repository is loaded as: such files of an earlier model would be taken for this one's."""
TOKENS = "https://huggingface.co/settings/tokens"
WAYS_OUT = {
    401: f"Make a token with write access at {TOKENS} and set HF_TOKEN to it, or log in with `hf auth login`.",
    403: "Use a token with write access to that owner's models, or another owner's name; or free storage on the hub.",
    404: "Check the repository's name, --revision, and that the token may see the repository.",
    **dict.fromkeys((409, 412, 429, 500, 502, 503, 504), "Run the command again, later if need be."),
}
FILES = (
    *("config.json", "*_config.json", "*.safetensors", "*.safetensors.index.json", "*.onnx", "*.onnx[._]data"),
    *(*TOKENIZER_FILES, "chat_template.jinja", EXPORT_FILE, CARD, "LICENSE*", "NOTICE*"),
)
"""Names that are sent; Python files only where config.json says that the model's code is in them."""
BINARY = ("*.safetensors", "*.onnx", "*.onnx[._]data", "*.model")


class PushError(RaydistillError):
    """The hub did not take the model."""


def push_model(
    model: str,
    repo: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    message: str | None = None,
    storage: str,
) -> dict[str, Any]:
    """Send the model MODEL to the hub repository ``repo``, made private where it is new and ``private`` is None.

    An existing one keeps its visibility; where ``private`` says otherwise nothing is sent. Weights of an earlier model
    are deleted in the same commit. Raises ConfigError or ModelError for names and folders that cannot be meant and for
    a credential in a file, PushError for what the hub refuses.
    """
    check_repo(repo)
    folder = model_folder(model, storage)
    files, left_out = chosen_files(folder)
    check_links(folder, files)
    check_credentials(files)
    work = partial(send, repo=repo, files=files, private=private, revision=revision or MAIN, message=message)
    pushed = talk(repo, work)
    sizes = [{"name": path.name, "bytes": path.stat().st_size} for path in files]
    return {"model": model, **pushed, "files": sizes, "left_out": left_out}


def send(
    api: HfApi, *, repo: str, files: Sequence[Path], private: bool | None, revision: str, message: str | None
) -> dict[str, Any]:
    """Make the repository where there is none, commit the files, and say what became of it.

    A branch that is not there begins at main. The same commit deletes other models' weights: ``upload_folder`` may make
    several commits, between which the repository loads as neither model, and its patterns reach into folders, too. What
    is there unchanged is not sent.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    name = api.create_repo(repo, private=private is not False, exist_ok=True).repo_id
    is_private = bool(api.repo_info(name).private)
    if private is not None and private is not is_private:
        raise PushError(
            f"{name} exists and is {visibility(is_private)}, but --{visibility(private)} was given, so nothing was "
            "sent. Leave the option out, change the repository's settings on the hub, or name another one."
        )
    if revision != MAIN and not revision.startswith("refs/"):
        api.create_branch(name, branch=revision, exist_ok=True)
    present = {entry for entry in api.list_repo_files(name, revision=revision) if "/" not in entry}
    others = sorted(present - {path.name for path in files})
    stale = [entry for entry in others if any(fnmatch(entry, pattern) for pattern in WEIGHTS)]
    operations: list[Any] = [CommitOperationAdd(path.name, str(path)) for path in files]
    operations += map(CommitOperationDelete, stale)
    text = message or f"Upload with raydistill {package_versions().get('raydistill', '')}".rstrip()
    commit = api.create_commit(name, operations, commit_message=text, revision=revision)
    made = {"repo": name, "private": is_private, "revision": revision, "deleted": stale}
    return {**made, "commit": commit.oid, "url": str(commit.commit_url)}


def check_repo(repo: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ConfigError(f"{repo!r} is no name of a hub repository: {error} Write OWNER/NAME.") from error


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


def talk(repo: str, work: Callable[[HfApi], dict[str, Any]]) -> dict[str, Any]:
    """Return what ``work`` does, with what the hub warned of; the hub's errors become PushErrors without the token."""
    from huggingface_hub import HfApi, constants, get_token
    from huggingface_hub.utils import disable_progress_bars

    endpoint, token = redact(constants.ENDPOINT), get_token()
    if not token:
        raise PushError(f"There is no token for the hub at {endpoint}. {WAYS_OUT[401]}")
    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        api = HfApi(token=token, library_name="raydistill", library_version=package_versions().get("raydistill"))
        with hidden(token), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            done = work(api)
        told = [warning.message for warning in caught if issubclass(warning.category, UserWarning)]  # no deprecations
        return {**done, "warnings": [without(token, str(text)) for text in told]}
    except RaydistillError:
        raise
    except Exception as error:  # of the hub client, its HTTP library, its upload library: they share no base class
        failure = without(token, explain(error, repo, endpoint))
    raise PushError(failure)  # not in the handler: the context would hold what the hub said, perhaps the token


@contextmanager
def hidden(token: str) -> Iterator[None]:
    """Take the token out of what the hub's client logs."""

    def hide(record: logging.LogRecord) -> bool:
        record.msg, record.args = harmless(without(token, record.getMessage())), ()
        return True

    handlers = logging.getLogger("huggingface_hub").handlers
    for handler in handlers:
        handler.addFilter(hide)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(hide)


def without(token: str, text: str) -> str:
    """Take this token and any other credential out of a text."""
    return redact(text.replace(token, HIDDEN))


def explain(error: BaseException, repo: str, endpoint: str) -> str:
    """Say what the hub refused and the way out; an upload's error carries the hub's own as its cause."""
    answered: BaseException | None = error
    while answered is not None and getattr(answered, "response", None) is None:
        answered = answered.__cause__
    if answered is None:
        return (
            f"The hub at {endpoint} did not take {repo}: {type(error).__name__}: {one_line(error)}. Check the network, "
            "HF_ENDPOINT, the model card, and that HF_HUB_OFFLINE is not set; where the hub has no Xet storage, set "
            "HF_HUB_DISABLE_XET=1."
        )
    status = int(answered.response.status_code)  # type: ignore[attr-defined]
    said = one_line(error if isinstance(error, ValueError) else getattr(answered, "server_message", None) or answered)
    what = "does not accept the token" if status == 401 else f"did not take {repo}"
    way_out = WAYS_OUT.get(status, "Mend what it says and run the command again.")
    return f"The hub at {endpoint} {what} ({status}: {said}). {way_out}"


def one_line(error: object) -> str:
    return " ".join(str(error).split())[:MAX_REASON].rstrip(".") or type(error).__name__


def visibility(is_private: bool) -> str:
    return "private" if is_private else "public"


def print_pushed(console: Console, pushed: dict[str, Any]) -> None:
    from rich.filesize import decimal
    from rich.text import Text

    files = pushed["files"]
    size = decimal(sum(file["bytes"] for file in files))
    told = [f"{len(files)} files, {size}: {', '.join(file['name'] for file in files)}."]
    if pushed["left_out"]:
        told.append(f"Not sent: {', '.join(pushed['left_out'])}.")
    if pushed["deleted"]:
        told.append(f"Deleted there, as it was of an earlier model: {', '.join(pushed['deleted'])}.")
    told.append(f"Pushed to {pushed['repo']} ({visibility(pushed['private'])}), {pushed['revision']}: {pushed['url']}")
    told += [f"The hub warns: {text}" for text in pushed["warnings"]]
    for line in told:
        console.print(Text(harmless(line)), soft_wrap=True)
