"""Two hosts: network namespaces joined by a virtual link, a head in one, a node in the other, a token between them.

All of it runs in network, process and mount namespaces of its own: nothing here meets another Ray on this machine, and
the end of the namespaces' first process ends everything in them, links and mounts included.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kit.autoscaling import UNSHARE, check_apart, run_apart
from kit.faults import patience
from kit.runs import COUNTING, read_weights, write_config
from kit.toy import toy_config

HEAD, NODE = "10.77.0.1", "10.77.0.2"
PORT = 6379


def why_not() -> str:
    """Why two hosts cannot be had here, or nothing: containers often forbid it to root too."""
    if os.geteuid() != 0 or not all(shutil.which(name) for name in ("ip", "unshare", "nsenter", "mount")):
        return "needs root, ip, unshare, nsenter and mount"
    link = "ip link add eth0 type veth peer name eth1 && mount -t tmpfs tmpfs /mnt"
    tried = subprocess.run([*UNSHARE, "sh", "-c", link], capture_output=True, text=True, timeout=30)
    return f"no namespaces here: {tried.stderr.strip()[-200:]}" if tried.returncode else ""


REASON = why_not()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(REASON), reason=REASON)]


class Hosts:
    """The two hosts as the process in the outer namespaces sees them: itself, and one behind the link."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.other = subprocess.Popen(["unshare", "--net", "--mount", "--uts", "sleep", "infinity"])
        own = os.readlink("/proc/self/ns/net")
        while os.readlink(f"/proc/{self.other.pid}/ns/net") == own:
            time.sleep(0.01)
        run(["ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", str(self.other.pid)])
        for place, address in ((self.here, HEAD), (self.there, NODE)):
            run(place(["ip", "addr", "add", f"{address}/24", "dev", "eth0"]))
            run(place(["ip", "link", "set", "lo", "up"]))
            run(place(["ip", "link", "set", "eth0", "up"]))
        run(self.there(["hostname", "other"]))
        run(self.there(["mount", "--bind", str(folder / "ray-other"), "/tmp/ray"]))
        run(self.there(["mount", "-t", "tmpfs", "tmpfs", str(folder / "private")]))

    def here(self, command: list[str]) -> list[str]:
        return command

    def there(self, command: list[str]) -> list[str]:
        return ["nsenter", f"--target={self.other.pid}", "--net", "--mount", "--uts", *command]

    def beside(self, command: list[str]) -> list[str]:
        """On this host, but without the files of its Ray, as a machine that is no node."""
        return ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs tmpfs /tmp/ray && exec "$@"', "sh", *command]

    def start_cluster(self) -> None:
        common = ["--num-cpus=1", f"--object-store-memory={100 * 2**20}"]
        head = ["ray", "start", "--head", f"--port={PORT}", f"--node-ip-address={HEAD}", "--include-dashboard=false"]
        run(self.here([*head, *common]), **counted(self.folder, "here"))
        node = ["ray", "start", f"--address={HEAD}:{PORT}", f"--node-ip-address={NODE}", '--resources={"other": 1}']
        run(self.there([*node, *common]), **counted(self.folder, "other"))


def run(command: list[str], **environment: str) -> None:
    subprocess.run(command, check=True, timeout=90, stdout=2, env={**os.environ, **environment})


def counted(folder: Path, host: str) -> dict[str, str]:
    """What makes the workers of a host count their steps in a file of its own."""
    path = os.pathsep.join([str(COUNTING), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))])
    return {"PYTHONPATH": path, "RAYDISTILL_COUNT_FILE": str(folder / f"counts-{host}")}


def raydistill(*arguments: str, place: Callable[[list[str]], list[str]] = list, **environment: str) -> dict[str, Any]:
    """Run a command on the head's host, or at another place; exit code, its JSON object, stderr, and seconds."""
    started = time.monotonic()
    done = subprocess.run(
        place([sys.executable, "-c", "from raydistill.cli.main import main; main()", *arguments, "--json"]),
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=patience(180),
    )
    out = json.loads(done.stdout) if done.stdout.strip() else None
    return {"code": done.returncode, "out": out, "err": done.stderr, "seconds": time.monotonic() - started}


def run_inside(folder: Path) -> None:
    """In the namespaces: the cluster, and what each command said."""
    check_apart(folder)
    hosts = Hosts(folder)
    hosts.start_cluster()
    address = f"{HEAD}:{PORT}"
    cluster = {"RAY_ADDRESS": address}
    common, private = str(folder / "storage"), str(folder / "private" / "storage")
    config = str(folder / "config.yaml")
    there = ["--set", "train.num_workers=1", "--set", "train.resources_per_worker={CPU: 1, other: 0.1}"]
    told = {
        "doctor": raydistill("doctor", "--address", address, "--storage", common),
        "doctor private": raydistill("doctor", "--address", "auto", "--storage", private),
        "doctor wrong token": raydistill("doctor", "--address", address, RAY_AUTH_TOKEN="f" * 32),
        "doctor without token": raydistill("doctor", "--address", address, RAY_AUTH_MODE="disabled"),
        "doctor elsewhere": raydistill("doctor", "--address", address, place=hosts.beside),
        "distill": raydistill("distill", config, "--set", f"storage={common}", **cluster),
        "private": raydistill("distill", config, "--set", f"storage={private}", **cluster),
        "private there": raydistill("distill", config, "--set", f"storage={private}", *there, **cluster),
    }
    (folder / "told.json").write_text(json.dumps(told))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that both hosts have, but for ``private`` in it, and in it ``told.json``: what every command said."""
    folder = tmp_path_factory.mktemp("hosts")
    for name in ("ray-other", "private"):
        (folder / name).mkdir()
    config = toy_config(folder, train__num_workers=2, teacher__finetune__num_epochs=2, evaluate__baseline=False)
    write_config(folder, config)
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "GLOO_", "MLFLOW_"))}
    environment = {
        **clean,
        "PATH": f"{Path(sys.executable).parent}:{clean['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(16),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TMPDIR": "/tmp",  # whatever TMPDIR says: /tmp/ray is what every host has for itself
        "OMP_NUM_THREADS": "1",
    }
    run_apart(__file__, folder, seconds=patience(500), environment=environment)
    return folder


@pytest.fixture(scope="module")
def told(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "told.json").read_text())


def checks_of(answer: dict[str, Any]) -> dict[str, dict[str, str]]:
    return {check["name"]: check for check in answer["out"]["checks"]}


def test_two_hosts_train_together_over_the_link(folder: Path, told: dict[str, Any], measured: Any) -> None:
    """Nobody names an interface: by its own name each host is 127.0.0.1."""
    answer = told["distill"]
    assert answer["code"] == 0, answer
    measured.line(f"a run of two workers on two hosts: {answer['seconds']:.0f} s")
    steps = {host: count_steps(folder / f"counts-{host}") for host in ("here", "other")}
    ranks = [{rank for _, _, rank in steps[host]} for host in ("here", "other")]
    assert sorted(ranks, key=min) == [{"0"}, {"1"}]
    assert {step[:2] for step in steps["here"]} == {step[:2] for step in steps["other"]}
    assert len(steps["here"]) > 24  # of the student alone
    assert read_weights(answer["out"]["student"]["path"])


def count_steps(path: Path) -> set[tuple[str, str, str]]:
    """Loop, number and rank of every training step that a host counted."""
    lines = [line.split() for line in path.read_text().splitlines()]
    return {(words[1], words[2], words[3]) for words in lines if words[0] == "step"}


@pytest.mark.parametrize("name", ["private", "private there"])
def test_storage_that_is_not_common_is_named_before_any_work(folder: Path, told: dict[str, Any], name: str) -> None:
    """Also where all workers are on one host, which is not the one that prepared the data."""
    answer = told[name]
    assert answer["code"] == 1
    message = answer["out"]["error"]["message"]
    assert str(folder / "private" / "storage") in message
    assert "not the same place on every node" in message
    assert "s3://" in message
    assert "teacher" not in answer["err"]  # the first phase


def test_doctor_looks_at_both_hosts(told: dict[str, Any]) -> None:
    found, checks = told["doctor"], checks_of(told["doctor"])
    assert (found["code"], found["out"]["ok"]) == (0, True), found
    assert [node["name"] for node in found["out"]["nodes"]] == ["here", f"{HEAD} (head)", NODE]
    states = {name: check["state"] for name, check in checks.items()}
    assert states.pop("disk") != "fail"
    assert states.pop("shared memory") in ("ok", "warn")
    assert states.pop("tracking") == "warn"  # sqlite, from two machines
    assert set(states.values()) == {"ok"}, checks
    assert states.keys() == {"nodes", "versions", "packages", "token", "storage", "gpus", "clocks"}


def test_doctor_finds_storage_that_is_not_common(folder: Path, told: dict[str, Any]) -> None:
    found = told["doctor private"]
    storage = checks_of(found)["storage"]
    assert (found["code"], storage["state"]) == (1, "fail")
    assert NODE in storage["detail"]
    assert "shared folder" in storage["hint"]
    assert not list((folder / "private" / "storage").rglob("doctor-*"))


@pytest.mark.parametrize(
    ("name", "why"),
    [("wrong token", "its token"), ("without token", "its token"), ("elsewhere", "not a node of the Ray cluster")],
)
def test_who_cannot_join_is_told_why_at_once(told: dict[str, Any], name: str, why: str) -> None:
    """Ray alone takes 20 s to say nothing, or ends the process with a stack trace."""
    found = told[f"doctor {name}"]
    assert found["code"] == 1
    assert why in found["out"]["error"]["message"]
    assert "f" * 32 not in json.dumps(found)
    assert found["seconds"] < patience(15)


if __name__ == "__main__":
    run_inside(Path(sys.argv[1]))
