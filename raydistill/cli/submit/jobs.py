"""Ray's job server: is it there, submitting, following, stopping; what it says in the user's words."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from raydistill.cli.submit.answers import Transcript, failure, read
from raydistill.cli.submit.refusals import STOP_SECONDS
from raydistill.errors import ConfigError, RaydistillError
from raydistill.storage.board import Show
from raydistill.storage.redaction import redact

CONNECT_SECONDS = 5.0
REQUEST_SECONDS = 60.0
"""Ray's client itself waits for ever."""
SLOWEST_UPLOAD = 100_000.0
"""Bytes a second below which sending the project is given up."""
AWAY_SECONDS = 60.0
"""So long a job server may be away while a job is followed."""
QUIET_SECONDS = 5.0
"""After so long without a line the server is asked whether the job still runs: a lost connection tells nothing."""
COMMAND = "raydistill.command"
"""Metadata of a job: which command it runs."""
CHATTY = tuple(
    f"ray.{name}"
    for name in ("dashboard.modules.dashboard_sdk", "dashboard.modules.job.sdk", "_private.runtime_env.packaging")
)


def known_token() -> str | None:
    """The cluster token: RAY_AUTH_TOKEN, the file RAY_AUTH_TOKEN_PATH, or ~/.ray/auth_token; None where it is off."""
    if os.environ.get("RAY_AUTH_MODE") == "disabled":
        return None
    if token := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return token
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def server_address(address: str) -> str:
    """The address with its scheme. Raises ConfigError for addresses of other kinds than a job server's."""
    address = address.strip()
    text = address if "://" in address else f"http://{address}"
    if not re.fullmatch(r"https?://[^\s/?#]+(/[^\s?#]*)?", text) or address == "auto":
        raise ConfigError(
            f"--address {redact(address)}: a job server's address is the dashboard's, http://HEAD:8265 (not the one "
            "for ray.init). `ray dashboard cluster.yaml` brings it to http://127.0.0.1:8265."
        )
    return text.rstrip("/")


def connect(address: str) -> Any:
    """Ray's client for the job server. Raises RaydistillError where none answers, or it wants another token."""
    # Ray's client prefers this variable, and RAY_ADDRESS, to the address it is given
    os.environ["RAY_API_SERVER_ADDRESS"] = address
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    class Client(JobSubmissionClient):
        """Whose requests have an end; sending the project takes longer through a tunnel."""

        def _do_request(self, *arguments: Any, data: bytes | None = None, **options: Any) -> Any:
            seconds = CONNECT_SECONDS, REQUEST_SECONDS + len(data or b"") / SLOWEST_UPLOAD
            return super()._do_request(*arguments, data=data, timeout=seconds, **options)

    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    token, shown = known_token(), redact(address)
    try:
        return Client(address, headers={"Authorization": f"Bearer {token}"} if token else None)
    except AuthenticationError as error:
        raise RaydistillError(
            f"The cluster at {shown} does not let us in: {error.message.splitlines()[0]}. Set RAY_AUTH_TOKEN, or "
            "RAY_AUTH_TOKEN_PATH to a file with its token (on the head node `ray get-auth-token` prints it), and unset "
            "RAY_AUTH_MODE=disabled."
        ) from error
    except (RuntimeError, OSError, ValueError, KeyError, TypeError) as error:
        why = redact(first_line(error)).rstrip(".")
        raise RaydistillError(
            f"No job server of Ray answers at {shown} ({why}). Check --address (the dashboard's, its port is 8265 by "
            "default) and that the cluster is up; a private dashboard is brought here by: ray dashboard cluster.yaml"
        ) from error


def first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


@contextmanager
def reported(job_id: str | None = None) -> Iterator[None]:
    """Turn what Ray's client raises into one message."""
    from ray.exceptions import RayError

    try:
        yield
    except (RuntimeError, OSError, ValueError, RayError) as error:
        text = redact(str(error))
        if job_id is not None and "does not exist" in text:
            raise RaydistillError(f"There is no job {job_id} on this cluster. raydistill jobs lists them.") from error
        if job_id is not None and "already" in text:
            raise ConfigError(f"--id {job_id}: the cluster has a job of that name. Choose another.") from error
        raise RaydistillError(f"Ray's job server: {redact(first_line(error))}") from error


def submit(client: Any, job_id: str, entry: str, folder: Path, environment: Mapping[str, str], command: str) -> None:
    """Send the folder and start the job. Raises ConfigError for an id that is taken."""
    with reported(job_id):
        client.submit_job(
            entrypoint=entry,
            submission_id=job_id,
            runtime_env={"working_dir": str(folder), "env_vars": dict(environment)},
            metadata={COMMAND: command},
        )


def describe(info: Any) -> dict[str, Any]:
    """A job as plain data: id, status, command, started (Unix seconds), seconds, exit_code, message."""
    begun, ended = (stamp / 1000 if stamp else None for stamp in (info.start_time, info.end_time))
    text = re.sub("^exec python -m ", "", info.entrypoint).replace(" --json", "")
    return {
        "id": info.submission_id,
        "status": str(info.status.value),
        "command": redact(text),
        "started": begun,
        "seconds": round((ended or time.time()) - begun, 1) if begun else None,
        "exit_code": info.driver_exit_code,
        # with an exit code it is but the log's end, the result in JSON included
        "message": redact(info.message or "")[:2000] if info.driver_exit_code is None else "",
    }


def look(client: Any, job_id: str) -> Any:
    with reported(job_id):
        return client.get_job_info(job_id)


def list_jobs(client: Any) -> list[dict[str, Any]]:
    """Jobs that were submitted, newest first."""
    with reported():
        found = client.list_jobs()
    jobs = [describe(info) for info in found if info.submission_id]
    return sorted(jobs, key=lambda job: -(job["started"] or 0))


def read_log(client: Any, job_id: str) -> str:
    with reported(job_id):
        return str(client.get_job_logs(job_id))


def follow(client: Any, job_id: str, transcript: Transcript, show: Show) -> Any:
    """Hand the job's log to the transcript until the job ends, over lost connections, and return its last info.

    Raises RaydistillError where the server is away for 60 s; the job may go on.
    """
    import aiohttp

    away_since: float | None = None
    while True:
        try:
            info = look(client, job_id)
            if info.status.value == "PENDING":
                show({"phase": "pending", "note": "the cluster makes room and unpacks the project"})
            else:
                show({"phase": "running", "note": f"job {job_id}"})
                transcript.rewind()
                with suppress(aiohttp.ClientError, RuntimeError):  # a lost connection: looked at again below
                    asyncio.run(_stream(client, job_id, transcript.feed))
                info = look(client, job_id)
            if info.status.is_terminal():
                with suppress(RaydistillError):  # what the stream did not bring in time, or at all
                    log = read_log(client, job_id)
                    transcript.rewind()
                    transcript.feed(log)
                transcript.close()
                return info
            away_since = None
        except RaydistillError as error:
            away_since = away_since or time.monotonic()
            if "no job" in str(error) or time.monotonic() - away_since > AWAY_SECONDS:
                raise RaydistillError(f"{error} Job {job_id} may go on; raydistill jobs tells.") from error
        time.sleep(0.5)


async def _stream(client: Any, job_id: str, feed: Callable[[str], None]) -> None:
    """The log as it grows, until the server closes it or the job has ended and nothing more comes."""
    stream = client.tail_job_logs(job_id)
    piece = asyncio.ensure_future(anext(stream))
    try:
        while True:
            await asyncio.wait({piece}, timeout=QUIET_SECONDS)
            if piece.done():
                feed(piece.result())
                piece = asyncio.ensure_future(anext(stream))
            elif look(client, job_id).status.is_terminal():
                return
    except StopAsyncIteration:
        return
    finally:
        piece.cancel()


def stop(client: Any, job_id: str) -> dict[str, Any]:
    """Ask the job to stop and wait until it has: its description, with ``stopped`` and what it said in ``message``.

    It gets 15 s to write a checkpoint; then Ray kills it.
    """
    began = time.monotonic()
    info = look(client, job_id)
    if info.status.is_terminal():
        return {**describe(info), "stopped": False, "message": f"Job {job_id} had ended before: {info.status.value}."}
    with reported(job_id):
        client.stop_job(job_id)
    while not (info := look(client, job_id)).status.is_terminal():
        if time.monotonic() - began > STOP_SECONDS + AWAY_SECONDS:
            raise RaydistillError(f"Job {job_id} has not stopped after {time.monotonic() - began:.0f} s. Try again.")
        time.sleep(0.2)
    job, stopped = describe(info), info.status.value == "STOPPED"
    message = f"Job {job_id} ended by itself meanwhile: {info.status.value}."
    if stopped:
        message = str(failure(job, read(read_log(client, job_id))))
    return {**job, "stopped": stopped, "message": message}
