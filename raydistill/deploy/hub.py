"""A finished model's way to a Hugging Face hub (``raydistill push``): its files and its card, in one commit.

Only files of a kind that a model consists of are sent, never pickles or what MLflow needs. The token comes from the
environment or the hub's own login, and is taken out of everything that is printed, logged or raised.
"""

from __future__ import annotations

import logging
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raydistill.deploy.export import EXPORT_FILE
from raydistill.deploy.outgoing import advice, check_credentials, check_links, chosen_files
from raydistill.errors import ConfigError, ModelError, RaydistillError
from raydistill.models.folder import is_model_file
from raydistill.storage.paths import is_url, resolve_path
from raydistill.storage.redaction import HIDDEN, harmless, redact
from raydistill.storage.storage import Storage
from raydistill.tracking.lineage import package_versions

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from rich.console import Console

MAIN = "main"
MAX_REASON = 300
WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "*.onnx", "*.onnx[._]data", EXPORT_FILE)
"""Names that decide what a repository is loaded as: such files of an earlier model would be taken for this one's."""
TOKENS = "https://huggingface.co/settings/tokens"
WAYS_OUT = {
    400: "Mend what it says and run the command again.",
    401: f"Make a token with write access at {TOKENS} and set HF_TOKEN to it, or log in with `hf auth login`.",
    403: "Use a token with write access to that owner's models, or another owner's name.",
    404: "Check the repository's name, --revision, and that the token may see the repository.",
    **dict.fromkeys((402, 413), "Free storage or change the plan in the account's settings on the hub."),
    **dict.fromkeys((409, 412), "Somebody else was writing to it; run the command again."),
    429: "Wait some minutes and run the command again; what has arrived is not sent twice.",
}
FULL = re.compile(r"(?i)storage|quota|billing")


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
    warn: Callable[[str], None],
) -> dict[str, Any]:
    """Send the model MODEL to the hub repository ``repo``, made private where it is new and ``private`` is None.

    An existing one keeps its visibility; where ``private`` says otherwise nothing is sent. Weights of an earlier model
    are deleted in the same commit. ``warn`` is told, before anything is sent, what the user may want to
    mend. Raises ConfigError or ModelError for names and folders that cannot be meant and for a credential in a
    file, PushError for what the hub refuses.
    """
    check_repo(repo)
    folder = local_folder(model, storage)
    files, left_out = chosen_files(folder)
    check_links(folder, files)
    check_credentials(files)
    told = advice(folder, files)
    for text in told:
        warn(text)
    work = partial(send, repo=repo, files=files, private=private, revision=revision or MAIN, message=message)
    pushed = talk(repo, work)
    for text in (told_by_hub := pushed.pop("warnings")):
        warn(text)
    sizes = [{"name": path.name, "bytes": path.stat().st_size} for path in files]
    return {"model": model, **pushed, "files": sizes, "left_out": left_out, "warnings": told + told_by_hub}


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


def local_folder(model: str, storage: str) -> Path:
    """Find the local folder of a finished model, exported or not, without loading torch."""
    if model.startswith(("runs:/", "models:/")):
        from raydistill.tracking.registry import resolve_model_uri

        folder = resolve_model_uri(model, Storage(storage))
    else:
        path = None if is_url(model) else resolve_path(model)
        if path is None:
            raise ConfigError(f"{model} is no folder here. Name a folder, pkg://…, runs:/… or models:/NAME@ALIAS.")
        folder = path
    if not (folder / "config.json").is_file():
        hint = f" Did you mean {folder / 'model'}?" if (folder / "model" / "config.json").is_file() else ""
        raise ModelError(f"{folder} has no config.json. Give the folder of a finished model.{hint}")
    if not any(is_model_file(path.name) and path.name != "config.json" for path in folder.iterdir()):
        raise ModelError(
            f"{folder} holds no weights as safetensors or ONNX, and pickled ones are not sent: loading them can run "
            'code. Convert them: `AutoModel.from_pretrained(folder).save_pretrained("converted")`.'
        )
    return folder


def talk(repo: str, work: Callable[[HfApi], dict[str, Any]]) -> dict[str, Any]:
    """Return what ``work`` does, with what the hub warned of; the hub's errors become PushErrors without the token."""
    from huggingface_hub import HfApi, constants

    endpoint, token = redact(constants.ENDPOINT), None
    try:
        token = required_token(endpoint)
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


def required_token(endpoint: str) -> str:
    """Return the token that the hub's client finds; PushError for none, or for one that no header can hold."""
    from huggingface_hub import get_token

    token = get_token()
    if not token:
        raise PushError(f"There is no token for the hub at {endpoint}. {WAYS_OUT[401]}")
    if not re.fullmatch(r"[!-~]+", token):
        raise PushError(f"The token for the hub at {endpoint} has characters that no token has. {WAYS_OUT[401]}")
    return token


@contextmanager
def hidden(token: str) -> Iterator[None]:
    """Take the token out of what the hub's client logs; show its progress bars on a terminal only."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    def hide(record: logging.LogRecord) -> bool:
        record.msg, record.args = harmless(without(token, record.getMessage())), ()
        return True

    handlers = logging.getLogger("huggingface_hub").handlers
    for handler in handlers:
        handler.addFilter(hide)
    is_quiet = not sys.stderr.isatty() and not are_progress_bars_disabled()
    if is_quiet:
        disable_progress_bars()
    try:
        yield
    finally:
        if is_quiet:
            enable_progress_bars()
        for handler in handlers:
            handler.removeFilter(hide)


def without(token: str | None, text: str) -> str:
    """Take this token and any other credential out of a text."""
    return redact(text.replace(token, HIDDEN) if token else text)


def explain(error: BaseException, repo: str, endpoint: str) -> str:
    """Say what the hub refused and the way out; an upload's error carries the hub's own as its cause."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    answered: BaseException | None = error
    while answered is not None and getattr(answered, "response", None) is None:
        answered = answered.__cause__
    if isinstance(error, OfflineModeIsEnabled):
        return "The hub client is in offline mode. Unset HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE to push."
    if answered is None:
        if isinstance(error, ValueError | KeyError):
            return (
                f"The hub at {endpoint} did not take {repo}: {one_line(error)}. Check HF_ENDPOINT and the model card."
            )
        return (
            f"The hub at {endpoint} cannot be reached: {type(error).__name__}: {one_line(error)}. Check the network "
            "and HF_ENDPOINT; where the hub has no Xet storage, set HF_HUB_DISABLE_XET=1."
        )
    status = int(answered.response.status_code)  # type: ignore[attr-defined]
    said = one_line(error if isinstance(error, ValueError) else getattr(answered, "server_message", None) or answered)
    way_out = WAYS_OUT.get(status, "The fault is the hub's; try again later." if status >= 500 else WAYS_OUT[400])
    if status == 403 and FULL.search(said):
        way_out = WAYS_OUT[402]
    what = "does not accept the token" if status == 401 else f"did not take {repo}"
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
    for line in told:
        console.print(Text(line), soft_wrap=True)
