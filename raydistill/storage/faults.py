"""What file systems and object stores raise, and what it means for a user: what happened, why, and the way out."""

from __future__ import annotations

import errno
import os
from contextlib import suppress

from raydistill.errors import ArtifactError, RaydistillError
from raydistill.storage.redaction import redact

TRANSIENT = {
    *(errno.EIO, errno.EREMOTEIO, errno.ESTALE, errno.EBUSY, errno.EAGAIN, errno.EINTR, errno.ETIMEDOUT),
    *(errno.ENETDOWN, errno.ENETUNREACH, errno.ENETRESET, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENOTCONN),
    *(errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.EPIPE, errno.ESHUTDOWN),
}
LIBRARIES = ("botocore", "aiobotocore", "aiohttp", "urllib3", "requests")
LOST_CONNECTION = {
    *("HTTPClientError", "ConnectionError", "ResponseParserError", "ClientConnectionError", "ClientPayloadError"),
    *("Timeout", "TimeoutError", "IncompleteRead", "ProtocolError", "ChunkedEncodingError"),
}
"""Names of these libraries' base classes for a connection that did not come about or broke."""
BUSY = {"408", "429", "500", "502", "503", "504"}
"""Answers of a server that has too much to do, or is being started again."""


class Missing(ArtifactError):
    """Nothing lies at that place in storage."""


class Damaged(ArtifactError):
    """Something in storage is not what was written there."""


class NotAFolder(ArtifactError):
    """The place that is given as storage is a file, or lies below one."""

    exit_code = 2


def explain(error: Exception, action: str, place: str) -> ArtifactError:
    """What happened, why, and the way out, for an error of a file system; without credentials of a URL."""
    what, said = redact(f"Cannot {action} {place}"), redact(str(error))
    if is_disk_full(error):
        return ArtifactError(
            f"{what}: the disk is full. Free space (`raydistill cache gc` removes what no run refers to) "
            "or name a place on a bigger disk: `storage`, RAYDISTILL_CACHE for a node's copies, TMPDIR for temporary "
            "files. Then run the command again."
        )
    if isinstance(error, PermissionError) or getattr(error, "errno", None) == errno.EROFS:
        return ArtifactError(
            f"{what}: permission denied ({said}). Make it writable for this user, check the credentials, "
            "or name another place as `storage`."
        )
    if isinstance(error, FileNotFoundError):
        return Missing(f"{what}: it does not exist. Check `storage` (a bucket must exist) and the name.")
    if isinstance(error, FileExistsError | NotADirectoryError | IsADirectoryError):
        return NotAFolder(f"{what}: a file lies where a folder is needed, or the reverse. Name another `storage`.")
    remote = "the network, the credentials and the endpoint (AWS_ENDPOINT_URL for S3)"
    check = remote if "://" in place else "the disk, or the server behind it"
    return ArtifactError(f"{what}: {type(error).__name__}: {said}. Check {check}, then run the command again.")


def not_common(place: str) -> RaydistillError:
    """What to say of storage at ``place`` that another node does not find there."""
    return RaydistillError(
        f"storage: {redact(place)} is not the same place on every node. Use a URL (s3://, gs://) or a shared folder."
    )


def is_transient(error: BaseException) -> bool:
    """Whether the same request may go well in a while: lost connections, a busy server, an I/O error of a disk."""
    if isinstance(error, PermissionError | FileNotFoundError | FileExistsError) or is_disk_full(error):
        return False
    if isinstance(error, ConnectionError | TimeoutError) or getattr(error, "errno", None) in TRANSIENT:
        return True
    status = getattr(error, "status", None) or getattr(error, "code", None)
    bases = [base for base in type(error).__mro__ if base.__module__.partition(".")[0] in LIBRARIES]
    if any("SSL" in base.__name__ or "Certificate" in base.__name__ for base in bases):
        return False
    return str(status) in BUSY or any(base.__name__ in LOST_CONNECTION for base in bases)


def is_disk_full(error: BaseException) -> bool:
    """True for a full disk or quota, also where a library (safetensors, torch) hides the error number in its text."""
    full = (errno.ENOSPC, errno.EDQUOT)
    return getattr(error, "errno", None) in full or any(os.strerror(number) in str(error) for number in full)


def is_there(place: str) -> bool:
    """Whether a local path exists; fsspec says no as well where the disk does not answer."""
    try:
        os.stat(place)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def raise_unless_missing(error: Exception) -> None:
    """Raise what a listing met, unless it is that there is nothing to list."""
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


def number_set(variable: str, default: float) -> float:
    """A number that the environment may set; ArtifactError where it is none, or below 0."""
    text = os.environ.get(variable) or str(default)
    with suppress(ValueError):
        if 0 <= float(text) < float("inf"):
            return float(text)
    raise ArtifactError(f"{variable} is {text!r}. Set it to a number, such as {default:g}.")
