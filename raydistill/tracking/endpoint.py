"""Where MLflow lives: its address, a lock around a local database, whether a server answers. Does not import MLflow."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from raydistill.errors import TrackingError
from raydistill.storage.redaction import redact

if TYPE_CHECKING:
    from raydistill.storage.storage import Storage

CONNECT_SECONDS = 4.0
DEFAULTS = {
    # MLflow's own, 120 s and 7 retries with doubling pauses, would hold a run up for minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""Environment variables that are set where the user has not."""
SERVER = ("http://", "https://")


def tracking_uri(storage: Storage) -> str:
    """``MLFLOW_TRACKING_URI`` if set (a relative sqlite path made absolute), else ``<storage>/mlflow.db``.

    Raises TrackingError for storage behind a URL without ``MLFLOW_TRACKING_URI``: sqlite needs a local disk.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI", "").strip()
    if uri:
        database = sqlite_path(uri)
        return uri if database is None else f"sqlite:///{database}"
    if not storage.is_local:
        raise TrackingError(
            f"Storage {redact(storage.url)} is not a local folder, so it cannot hold MLflow's database. Set "
            "MLFLOW_TRACKING_URI to an MLflow server, for example http://127.0.0.1:5000 (start one with: mlflow server "
            "--host 127.0.0.1), or to sqlite:////absolute/path/mlflow.db."
        )
    return f"sqlite:///{Path(storage.root).absolute() / 'mlflow.db'}"


def artifact_location(uri: str, storage: Storage) -> str | None:
    """None where a server decides; otherwise absolute, as MLflow's default depends on the current folder."""
    if uri.startswith((*SERVER, "databricks")):
        return None
    return (Path(storage.root).absolute() / "mlruns").as_uri() if storage.is_local else f"{storage.url}/mlruns"


def sqlite_path(uri: str) -> Path | None:
    """Absolute path of the database file of a sqlite URI; None for every other kind."""
    return Path(uri.split(":///", 1)[1]).absolute() if uri.startswith("sqlite") and ":///" in uri else None


def store_lock(uri: str) -> AbstractContextManager[Any]:
    """One process at a time at a sqlite database: two that create its tables at once would both fail."""
    database = sqlite_path(uri)
    if database is None:
        return nullcontext()
    database.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(f"{database}.lock")


@contextmanager
def made_whole(uri: str) -> Iterator[str]:
    """Yield the address to set a store up at: its own, or where a sqlite database is not there yet that of a file which
    takes its name at a clean exit. MLflow can neither use nor mend one whose making was cut off, say by a full disk."""
    database = sqlite_path(uri)
    if database is None or database.exists():
        yield uri
        return
    begun = f".{database.name}.part-"
    try:
        partial = database.with_name(f"{begun}{uuid.uuid4().hex[:8]}")
        yield f"sqlite:///{partial}"
        os.replace(partial, database)
    finally:
        for left in database.parent.glob(f"{begun}*"):
            left.unlink(missing_ok=True)


def check_server(uri: str) -> None:
    """TrackingError after seconds instead of minutes where nothing answers; any answer at all will do."""
    if not uri.startswith(SERVER):
        return
    import requests

    seconds = _patience()
    try:
        requests.get(uri, timeout=seconds, allow_redirects=False, stream=True).close()
    except requests.exceptions.SSLError:
        return  # MLflow has its own settings for certificates
    except requests.RequestException as error:
        why = f"no answer within {seconds:g} s" if isinstance(error, requests.Timeout) else "cannot be reached"
        raise TrackingError(f"MLflow at {redact(uri)}: {why}. {way_out(uri, why)}") from error


def _patience() -> float:
    name = "MLFLOW_HTTP_REQUEST_TIMEOUT"
    chosen = os.environ.get(name, DEFAULTS[name])
    if not chosen.isdecimal():
        raise TrackingError(f"{name} is {chosen!r}. Set it to a whole number of seconds, or unset it.")
    return CONNECT_SECONDS if chosen == DEFAULTS[name] else float(chosen)


def way_out(uri: str, reason: str) -> str:
    """What to do about a store that fails for this reason."""
    if "schema" in reason and "database" in reason:
        return f"Another MLflow version wrote it: back it up, then run: mlflow db upgrade {redact(uri)}"
    if "not found" in reason.lower() or "no run with id" in reason.lower():
        return "Check name, version and alias; the store is the storage folder's unless MLFLOW_TRACKING_URI is set."
    if any(words in reason for words in ("disk is full", os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT))):
        return "Free space there (`raydistill cache gc` removes what no run refers to), then run the command again."
    if uri.startswith(SERVER):
        return (
            "Start the server, correct MLFLOW_TRACKING_URI, or unset it to track in the storage folder; for a slow "
            "server raise MLFLOW_HTTP_REQUEST_TIMEOUT (seconds)."
        )
    return "Check that the folder is writable and on a local disk, or set MLFLOW_TRACKING_URI to an MLflow server."
