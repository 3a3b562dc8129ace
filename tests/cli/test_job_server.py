"""Finding the job server, without one: addresses, tokens, what answers and is none, versions."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest
from kit.servers import free_port

from raydistill.cli.submit import jobs
from raydistill.cli.submit.answers import Transcript
from raydistill.errors import ConfigError, RaydistillError


@pytest.fixture(autouse=True)
def no_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def stranger() -> Iterator[str]:
    """A web server that is not Ray's."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(302)
            self.send_header("Location", "https://elsewhere.example/api/version")
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("http://head:8265/", "http://head:8265"),
        ("head:8265", "http://head:8265"),
        ("https://ray.example/cluster-1", "https://ray.example/cluster-1"),
    ],
)
def test_addresses(given: str, found: str) -> None:
    assert jobs.server_address(given) == found


@pytest.mark.parametrize("address", ["auto", "", "ray://head:10001", "http://", "http://a b", "http://h?x=1", "s3://b"])
def test_other_addresses_are_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="the dashboard's, http://HEAD:8265"):
        jobs.server_address(address)


def test_a_token_comes_from_where_ray_takes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert jobs.sent_token() is None
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("of-home\n")
    assert jobs.sent_token() == "of-home"
    (tmp_path / "file").write_text("of-file")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "file"))
    assert jobs.sent_token() == "of-file"
    monkeypatch.setenv("RAY_AUTH_TOKEN", " of-variable ")
    assert jobs.sent_token() == "of-variable"
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert jobs.sent_token() is None


def test_what_answers_is_not_ray_or_nothing_does(stranger: str) -> None:
    with pytest.raises(RaydistillError, match=r"is not Ray's job server \(HTTP 302\)"):
        jobs.ask_version(stranger)
    with pytest.raises(RaydistillError, match="cannot be reached"):
        jobs.ask_version(f"http://127.0.0.1:{free_port()}")


def test_versions_differ_by_minor() -> None:
    ours = version("ray")
    major, minor, *_ = ours.split(".")
    assert jobs.version_warning(ours) is None
    assert jobs.version_warning(f"{major}.{minor}.99") is None
    assert f"Ray is {major}.{int(minor) + 1}.0 on the cluster" in (
        jobs.version_warning(f"{major}.{int(minor) + 1}.0") or ""
    )


def test_a_job_is_described_without_credentials() -> None:
    info = SimpleNamespace(
        submission_id="x",
        status=SimpleNamespace(value="SUCCEEDED"),
        entrypoint="cd 'a b' && exec python -m raydistill distill --set a=http://me:pw@h/ --json c.yaml",
        start_time=1000,
        end_time=3500,
        driver_exit_code=0,
        message="Job finished",
    )
    assert jobs.describe(info) == {
        "id": "x",
        "status": "SUCCEEDED",
        "command": "raydistill distill --set a=http://***@h/ c.yaml",
        "started": 1.0,
        "seconds": 2.5,
        "exit_code": 0,
        "message": "",
    }


def test_a_log_that_the_stream_did_not_bring_is_read_at_the_end() -> None:
    class Client:
        """A job that ends while its log's stream is broken after the first line."""

        status = "RUNNING"

        def get_job_info(self, job_id: str) -> SimpleNamespace:
            ended = self.status == "SUCCEEDED"
            return SimpleNamespace(status=SimpleNamespace(value=self.status, is_terminal=lambda: ended))

        async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
            yield "first line\n"
            self.status = "SUCCEEDED"
            raise RuntimeError("connection closed")

        def get_job_logs(self, job_id: str) -> str:
            return 'first line\n{"ok": true}\n'

    lines: list[str] = []
    transcript = Transcript(lines.append)
    jobs.follow(Client(), "x", transcript, lambda entry: None)
    assert (lines, transcript.result) == (["first line"], {"ok": True})


def test_the_command_line_starts_without_ray() -> None:
    code = "import sys; from raydistill.cli.main import execute; assert execute(['submit', '--help']) == 0; "
    code += (
        "assert execute(['submit', 'no.yaml', '--address', 'h:1']) == 2; assert not {'ray', 'torch'} & {*sys.modules}"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_request_has_an_end_and_a_large_project_its_time() -> None:
    given: list[tuple[object, float]] = []

    def request(method: str, *, data: bytes | None = None, timeout: float) -> None:
        given.append((data, timeout))

    jobs.bounded(request, "GET")
    jobs.bounded(request, "PUT", data=bytes(10**6))
    assert given == [(None, 60.0), (bytes(10**6), 70.0)]
