"""Finding the job server, without one: addresses, tokens, what answers and is none, versions."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

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
def server() -> Iterator[str]:
    """A web server that answers with the status that the path begins with."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(int(self.path.split("/")[1]))
            self.end_headers()
            self.wfile.write(b"a page")

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_addresses() -> None:
    for given in ("http://head:8265/", "head:8265"):
        assert jobs.server_address(given) == "http://head:8265"
    assert jobs.server_address("https://ray.example/cluster-1") == "https://ray.example/cluster-1"
    for other in ("auto", "", "ray://head:10001", "http://", "http://a b", "http://h?x=1", "s3://b"):
        with pytest.raises(ConfigError, match="the dashboard's, http://HEAD:8265"):
            jobs.server_address(other)


def test_a_token_comes_from_where_ray_takes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert jobs.known_token() is None
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("of-home\n")
    assert jobs.known_token() == "of-home"
    (tmp_path / "file").write_text("of-file")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "file"))
    assert jobs.known_token() == "of-file"
    monkeypatch.setenv("RAY_AUTH_TOKEN", " of-variable ")
    assert jobs.known_token() == "of-variable"
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert jobs.known_token() is None


@pytest.mark.parametrize(
    ("status", "problem"),
    [(200, "No job server.*Check --address"), (404, "No job server.*8265"), (403, "not let us in.*Set RAY_AUTH_TOKEN")],
)
def test_what_answers_is_not_ray_or_wants_another_token(
    server: str, status: int, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "a-token")
    with pytest.raises(RaydistillError, match=problem) as caught:
        jobs.connect(f"{server}/{status}")
    assert "a-token" not in str(caught.value)
    with pytest.raises(RaydistillError, match="No job server of Ray answers at"):
        jobs.connect(f"http://127.0.0.1:{free_port()}")


def test_a_job_is_described_without_credentials() -> None:
    info = SimpleNamespace(
        submission_id="x",
        status=SimpleNamespace(value="SUCCEEDED"),
        entrypoint="exec python -m raydistill distill --set a=http://me:pw@h/ --json c.yaml",
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


def test_every_request_has_an_end_and_a_large_project_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[object, tuple[float, float]]] = []

    def request(*arguments: Any, data: bytes | None, timeout: tuple[float, float], **options: Any) -> Any:
        given.append((data, timeout))
        answer = {"ray_version": "2.60.0"}
        return SimpleNamespace(status_code=200, text="", raise_for_status=lambda: None, json=lambda: answer)

    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")
    monkeypatch.setattr("requests.request", request)
    jobs.connect("http://head:8265")._do_request("PUT", "/", data=bytes(10**6))
    assert {*given} == {(None, (5.0, 60.0)), (bytes(10**6), (5.0, 70.0))}
