"""Doctor on a cluster: what nodes are asked, what their answers amount to, and that a silent node is a line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from kit.clusters import LocalCluster
from kit.faults import patience

from raydistill.cli import main as cli
from raydistill.cli.doctor import health, probe
from raydistill.cli.doctor.nodes import NodeReport
from raydistill.cluster.entry import check_entry
from raydistill.errors import ConfigError, RaydistillError

GIGABYTE = 10**9
FACTS: dict[str, Any] = {
    "python": "3.11.7",
    "platform": "Linux x86_64",
    "packages": {"raydistill": "0.1.0", "ray": "2.60.0", "torch": "2.13.0", "transformers": "5.24.0", "mlflow": "3.17"},
    "code": "0123abcd",
    "missing": "",
    "auth": True,
    "gpus": 0,
    "nvidia": False,
    "disk": {"/cache": 80 * GIGABYTE, "/tmp": 60 * GIGABYTE},
    "shared_memory": 16 * GIGABYTE,
    "tracking": "",
}
SERVER = "http://10.0.0.9:5000"


def node(name: str, *, resources: dict[str, float] | None = None, fields: dict[str, Any] | None = None, **facts: Any):
    known = {"CPU": 4.0, "object_store_memory": 2.0 * GIGABYTE, **(resources or {})}
    return NodeReport(name, f"id of {name}", known, facts=FACTS | facts, **(fields or {}))


HERE, A, B = node("here"), node("10.0.0.1 (head)"), node("10.0.0.2")


def judge(*reports: NodeReport, tracking: str | None = SERVER) -> dict[str, Any]:
    checks = health.judge([HERE, A, *reports], "s3://bucket/runs", tracking)
    assert all(bool(check.hint) == (check.state != "ok") for check in checks)
    return {check.name: check for check in checks}


def packages(**versions: str) -> dict[str, Any]:
    return {"packages": FACTS["packages"] | versions}


def test_all_is_well() -> None:
    checks = judge(B)
    assert {check.state for check in checks.values()} == {"ok"}
    assert checks["nodes"].detail == "2 answer: 10.0.0.1 (head), 10.0.0.2"
    assert "60.0 GB free (/tmp on here)" in checks["disk"].detail
    assert "transformers 5.24.0" in checks["versions"].detail


@pytest.mark.parametrize(
    ("name", "state", "says", "other"),
    [
        ("nodes", "fail", "10.0.0.2: no answer", NodeReport("10.0.0.2", "b", {}, problem="no answer within 30 s")),
        ("versions", "fail", "0.2.0 on 10.0.0.2", node("10.0.0.2", **packages(raydistill="0.2.0"))),
        ("versions", "warn", "torch is 2.13.0 on here, 10.0.0.1", node("10.0.0.2", **packages(torch="2.12.0"))),
        ("versions", "fail", "mlflow is 3.17 on", node("10.0.0.2", **packages(mlflow="missing"))),
        ("versions", "fail", "python is", node("10.0.0.2", python="3.12.1")),
        ("versions", "warn", "platform is Linux x86_64 on", node("10.0.0.2", platform="Linux aarch64")),
        ("versions", "ok", "the same", node("10.0.0.2", python="3.11.9")),
        ("versions", "warn", "code is 0123abcd on", node("10.0.0.2", code="ffffffff")),
        ("packages", "fail", "10.0.0.2: scipy is missing", node("10.0.0.2", missing="scipy is missing")),
        ("token", "warn", "not asked for on 10.0.0.2", node("10.0.0.2", auth=False)),
        ("storage", "fail", "10.0.0.2: no such bucket", node("10.0.0.2", fields={"write_problem": "no such bucket"})),
        ("storage", "fail", "from 10.0.0.2 nothing of here", node("10.0.0.2", fields={"unseen": ("here",)})),
        ("tracking", "fail", "10.0.0.2: timed out", node("10.0.0.2", tracking="timed out")),
        ("gpus", "fail", "Ray has 2, torch sees 1", node("10.0.0.2", gpus=1, resources={"GPU": 2.0})),
        ("gpus", "fail", "could not be asked", node("10.0.0.2", gpus=None, resources={"GPU": 1.0})),
        ("gpus", "warn", "not offered to Ray on 10.0.0.2", node("10.0.0.2", gpus=1, nvidia=True)),
        ("gpus", "ok", "4, all seen", node("10.0.0.2", gpus=4, resources={"GPU": 4.0})),
        ("clocks", "ok", "within 0.900 s", node("10.0.0.2", fields={"offset_s": 0.9, "round_trip_s": 0.01})),
        ("clocks", "ok", "", node("10.0.0.2", fields={"offset_s": 2.0, "round_trip_s": 3.0})),
        ("clocks", "warn", "3.0 s behind", node("10.0.0.2", fields={"offset_s": -3.0, "round_trip_s": 0.1})),
        ("clocks", "fail", "61.0 s ahead", node("10.0.0.2", fields={"offset_s": 61.0, "round_trip_s": 0.1})),
        ("disk", "warn", "2.0 GB free for /tmp on 10.0.0.2", node("10.0.0.2", disk={"/tmp": 2 * GIGABYTE})),
        ("disk", "fail", "0.1 GB free", node("10.0.0.2", disk={"/tmp": GIGABYTE // 10})),
        ("shared memory", "warn", "1.00 GB on 10.0.0.2", node("10.0.0.2", shared_memory=GIGABYTE)),
        ("shared memory", "ok", "", node("10.0.0.2", shared_memory=None)),
    ],
)
def test_what_is_wrong_is_named_with_its_node_and_a_hint(name: str, state: str, says: str, other: NodeReport) -> None:
    checks = judge(other)
    assert checks[name].state == state
    assert says in checks[name].detail
    assert {check.state for check in checks.values() if check.name != name} == {"ok"}


def test_no_node_answers() -> None:
    checks = health.judge([HERE, NodeReport("10.0.0.1", "a", {}, problem="no answer within 30 s")], "/shared", None)
    states = {check.name: check.state for check in checks}
    assert states == {"nodes": "fail", "versions": "ok", "packages": "ok", "storage": "ok", "disk": "ok"}


def test_sqlite_is_for_one_machine() -> None:
    assert judge(B, tracking="sqlite:////shared/mlflow.db")["tracking"].state == "warn"
    twice = node("10.0.0.1/abcdef")
    assert judge(twice, tracking="sqlite:////shared/mlflow.db")["tracking"].state == "ok"


def test_credentials_are_not_shown() -> None:
    secret = "http://user:geheim@10.0.0.9:5000"
    other = node("10.0.0.2", tracking=f"{secret} is away", fields={"write_problem": "s3://key:geheim@bucket is away"})
    assert "geheim" not in str(judge(other, tracking=secret))


def test_many_nodes_are_counted() -> None:
    others = [node(f"10.0.1.{number}", auth=False) for number in range(20)]
    assert judge(*others)["token"].detail == "not asked for on 10.0.1.0, 10.0.1.1, 10.0.1.2 and 17 more"


@pytest.mark.parametrize("address", ["10.0.0.5", "ray://10.0.0.5:10001", "10.0.0.5:port", ":6379", "local", ""])
def test_addresses_of_another_kind_are_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="HOST:PORT"):
        check_entry(address)


@pytest.mark.parametrize("address", ["127.0.0.1:9", "127.0.0.1:99999", "[::1]:9", "no-such-host.invalid:6379"])
def test_a_port_that_does_not_answer_is_told_at_once(address: str) -> None:
    with pytest.raises(RaydistillError, match="Nothing answers"):
        check_entry(address)


def test_another_server_is_told_from_a_head() -> None:
    """The dashboard's port is a likely slip; Ray would try for minutes."""
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(RaydistillError, match="not the head of a Ray cluster"):
            check_entry(f"127.0.0.1:{server.server_port}")
        server.shutdown()


def test_a_dashboard_as_the_address_makes_it_a_job(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", SERVER)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")
    words = ["doctor", "--address", "http://127.0.0.1:9", "--storage", "s3://bucket/runs", "--json"]
    assert cli.execute(words) in (1, 2)
    assert "No job server of Ray answers at http" in json.loads(capfd.readouterr().out)["error"]["message"]


def test_a_probe_leaves_nothing_in_storage(tmp_path: Path) -> None:
    one, two, url = probe.Probe(), probe.Probe(), str(tmp_path / "new" / "storage")
    assert [one.write(url, ".staging/x", "a"), two.write(url, ".staging/x", "b")] == ["", ""]
    assert one.read(url, ".staging/x", ["a", "b", "c"]) == ["a", "b"]
    one.clear(url, ".staging/x")
    assert list(tmp_path.iterdir()) == []
    assert one.write("/proc/storage", ".staging/x", "a") != ""
    facts = one.facts(url, "http://127.0.0.1:9")
    assert facts.keys() == FACTS.keys()
    assert "cannot be reached" in facts["tracking"]
    assert facts["packages"].keys() == FACTS["packages"].keys()


@pytest.mark.slow
def test_a_node_that_hangs_and_one_without_raydistill_are_lines(tmp_path: Path) -> None:
    """Three nodes of this machine: a good one, one that cannot import raydistill, and one whose raylet is stopped."""
    (tmp_path / "sitecustomize.py").write_text(WITHOUT_RAYDISTILL)
    cluster, storage = LocalCluster(tmp_path), tmp_path / "storage"
    hanging = None
    try:
        bare = cluster.add(env_vars={"PYTHONPATH": str(tmp_path)})
        hanging = cluster.add()
        os.kill(hanging.raylet, signal.SIGSTOP)
        words = ["doctor", "--address", cluster.environment["RAY_ADDRESS"], "--storage", str(storage), "--json"]
        done = subprocess.run(
            [sys.executable, "-c", "from raydistill.cli.main import main; main()", *words],
            env={**os.environ, **cluster.environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=patience(120),
        )
    finally:
        if hanging is not None:
            os.kill(hanging.raylet, signal.SIGCONT)
        cluster.stop()
    found = json.loads(done.stdout)
    names = {row["name"].split("/")[-1].split(" ")[0]: row["name"] for row in found["nodes"]}
    checks = {check["name"]: check for check in found["checks"]}
    assert (done.returncode, found["ok"], len(names)) == (1, False, 4), found
    assert checks["nodes"]["state"] == "fail"
    # silent for 30 s, or given up by Ray's own health check before
    assert checks["nodes"]["detail"].startswith(f"1 of 3 do not answer: {names[hanging.id[:6]]}: ")
    assert checks["storage"]["state"] == "fail"
    assert f"{names[bare.id[:6]]}: ModuleNotFoundError: No module named 'raydistill'" in checks["storage"]["detail"]
    assert checks["token"]["state"] == checks["clocks"]["state"] == "ok"
    assert [path for path in storage.rglob("*") if path.is_file()] == []


WITHOUT_RAYDISTILL = """
import sys


class Finder:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "raydistill":
            raise ModuleNotFoundError("No module named 'raydistill'")


sys.meta_path.insert(0, Finder())
"""
