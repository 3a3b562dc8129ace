"""Notice of a spot market reaches Ray: the metadata of AWS, from a server of this machine, and a pod's hook."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from kit.clusters import LocalCluster
from kit.faults import patience

from raydistill.cluster import spot
from raydistill.cluster.connection import WATCHER, connected, set_environment


class Instance(ThreadingHTTPServer):
    """The metadata service of one instance, version 2: without a token of its own it tells nothing."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Service)
        self.life_cycle = "spot"
        self.notice: dict[str, str] | None = None
        self.notice_after = 0
        """Questions that are still answered with 404."""
        self.tokens = 0
        self.away = 0
        """Requests that are met with an error of the service."""

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Service(BaseHTTPRequestHandler):
    server: Instance

    def do_PUT(self) -> None:
        assert self.path == "/latest/api/token"
        assert int(self.headers["X-aws-ec2-metadata-token-ttl-seconds"]) > 0
        self.server.tokens += 1
        self.answer(200, f"token-{self.server.tokens}")

    def do_GET(self) -> None:
        if self.server.away:
            self.server.away -= 1
            return self.answer(503, "")
        if self.headers["X-aws-ec2-metadata-token"] != f"token-{self.server.tokens}":
            return self.answer(401, "")
        if self.path == "/latest/meta-data/instance-life-cycle":
            return self.answer(200, self.server.life_cycle)
        assert self.path == "/latest/meta-data/spot/instance-action"
        self.server.notice_after -= 1
        if self.server.notice is None or self.server.notice_after >= 0:
            return self.answer(404, "<html>")
        return self.answer(200, json.dumps(self.server.notice))

    def answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def instance() -> Iterator[Instance]:
    server = Instance()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A command ``ray`` that writes down what it is told, and fails while a file says so."""
    (stub := tmp_path / "bin" / "ray").parent.mkdir()
    lines = tmp_path / "told"
    stub.write_text(
        f'#!/bin/sh\necho "$@" >> {lines}\nif [ -f {tmp_path}/fail ]; then rm {tmp_path}/fail; exit 1; fi\n'
    )
    stub.chmod(0o755)
    monkeypatch.setenv("PATH", str(stub.parent), prepend=os.pathsep)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.5:6379")
    monkeypatch.setattr(spot, "POLL_SECONDS", 0.01)
    return lines


def notice(seconds: float) -> dict[str, str]:
    end = datetime.fromtimestamp(time.time() + seconds, UTC)
    return {"action": "terminate", "time": end.strftime("%Y-%m-%dT%H:%M:%SZ")}


def seconds_told(line: str) -> int:
    words = line.split()
    assert words[0] == "drain-node"
    assert words[words.index("--reason") + 1] == "DRAIN_NODE_REASON_PREEMPTION"
    assert words[words.index("--address") + 1] == "10.0.0.5:6379"
    return int(words[words.index("--deadline-remaining-seconds") + 1])


def test_notice_is_passed_on_once_with_the_time_that_is_left(instance, told, monkeypatch):
    monkeypatch.setenv(spot.ENDPOINT, instance.endpoint)
    instance.notice, instance.notice_after = notice(120), 3
    end = spot.watch(0.01)
    assert end == pytest.approx(time.time() + 120, abs=60)
    assert spot.main([]) == 0
    (line,) = told.read_text().splitlines()
    assert 30 <= seconds_told(line) <= 120


def test_metadata_is_not_asked_through_a_proxy(instance, monkeypatch):
    monkeypatch.setenv(spot.ENDPOINT, instance.endpoint)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # where nobody listens
    monkeypatch.setenv("no_proxy", "")
    assert spot.metadata("instance-life-cycle") == "spot"


def test_ray_looks_for_notice_every_second_unless_told_otherwise(monkeypatch):
    environment: dict[str, str] = {"RAY_ADDRESS": "h:6379"}
    monkeypatch.setattr("os.environ", environment)
    set_environment()
    assert float(environment["RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S"]) <= 1  # of 30 s that some clouds give
    environment["RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S"] = "7"
    set_environment()
    assert environment["RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S"] == "7"


def test_an_instance_on_demand_is_not_watched(instance, told, monkeypatch):
    monkeypatch.setenv(spot.ENDPOINT, instance.endpoint)
    instance.life_cycle = "on-demand"
    assert spot.main([]) == 0
    assert not told.exists()


def test_a_service_that_is_away_is_waited_for(instance, monkeypatch):
    monkeypatch.setenv(spot.ENDPOINT, instance.endpoint)
    instance.notice, instance.away = notice(120), 2
    assert spot.watch(0.01) is not None


def test_a_ray_that_fails_is_told_again(told, tmp_path):
    (tmp_path / "fail").touch()
    assert spot.drain_until(time.time() + 60)
    assert len(told.read_text().splitlines()) == 2


def test_a_hook_waits_for_the_end_of_rays_node(told, monkeypatch):
    names = [["raylet"], ["sh", "raylet"], ["sh"]]
    monkeypatch.setattr(spot.psutil, "process_iter", lambda attributes: map(Process, names.pop(0)))
    assert spot.main(["--seconds", "60"]) == 0
    assert names == []
    assert 50 <= seconds_told(told.read_text()) <= 60


class Process:
    def __init__(self, name: str) -> None:
        self.info = {"name": name}


@pytest.mark.slow
def test_ray_itself_takes_it(instance, tmp_path):
    """On a machine with one node, as nodes of clusters are."""
    instance.notice = notice(100)
    cluster = LocalCluster(tmp_path)
    try:
        environment = {**os.environ, **cluster.environment, spot.ENDPOINT: instance.endpoint}
        command = [sys.executable, "-m", "raydistill.cluster.spot"]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=patience(90), check=False
        )
        assert done.returncode == 0, done.stderr
    finally:
        cluster.stop()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [({}, "0"), ({"RAY_ADDRESS": "auto"}, None), ({WATCHER: "1"}, "1")],
    ids=["a cluster of its own", "a cluster that others own", "asked for"],
)
def test_ray_looks_for_nodes_that_go_only_where_there_may_be_any(monkeypatch, environment, expected):
    for name in ("RAY_ADDRESS", WATCHER):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", lambda **options: None)
    monkeypatch.setattr("ray.shutdown", lambda: None)
    with connected():
        assert os.environ.get(WATCHER) == expected
    assert os.environ.get(WATCHER) == environment.get(WATCHER)
