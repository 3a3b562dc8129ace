"""A Ray cluster of several nodes on this machine, in processes of its own, whose nodes come, go and are drained."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from kit.runs import COUNTING, Command

OBJECT_STORE_BYTES = 80 * 2**20


@dataclass(frozen=True)
class Node:
    """A node by Ray's id, and the process id of its raylet, whose children are the node's workers."""

    id: str
    raylet: int

    def runs(self, pid: int) -> bool:
        """Whether this node started the process."""
        with suppress(psutil.Error):
            return psutil.Process(pid).ppid() == self.raylet
        return False


class LocalCluster:
    """A head without CPUs, where drivers live, and the nodes that ``add`` brings. Closed to others by a token.

    Its workers count into ``counts``; ``environment`` is what a driver's process needs to join.
    """

    def __init__(self, folder: Path, **environment: str) -> None:
        self.counts = folder / "cluster-counts"
        self.counts.touch()
        # short: the names of Ray's sockets may have 107 characters, and pytest's folders take most of them
        self.folder = Path(tempfile.mkdtemp(prefix="rd-", dir="/tmp"))
        clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        path = os.pathsep.join(filter(None, (str(COUNTING), clean.get("PYTHONPATH"))))
        counting = {"PYTHONPATH": path, "RAYDISTILL_COUNT_FILE": str(self.counts), "OMP_NUM_THREADS": "1"}
        own = {"RAY_TMPDIR": str(self.folder), "RAY_USAGE_STATS_ENABLED": "0", "OMP_WAIT_POLICY": "PASSIVE"}
        own |= {"RAY_worker_niceness": "0", "RAY_prestart_worker_first_driver": "0"}  # as where a run starts Ray
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            env={**clean, **token, **counting, **own, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(self.folder / "err").open("w"),
            text=True,
            start_new_session=True,
        )
        try:
            self.environment = {**token, "RAY_ADDRESS": self._ask("start")["address"]}
        except BaseException:
            self.stop()
            raise

    def add(self, num_cpus: int = 1, **options: Any) -> Node:
        """Start a node; ``options`` as Ray's, such as ``resources``."""
        return Node(**self._ask("add", num_cpus=num_cpus, **options))

    def kill(self, node: Node) -> None:
        """Let a node vanish with all that runs on it."""
        self._ask("kill", node=node.id)

    def drain(self, node: Node, seconds: float) -> None:
        """Give notice that the node will be taken away in so many seconds, as a spot market does."""
        self._ask("drain", node=node.id, seconds=seconds)

    def alive(self) -> list[str]:
        """Ids of the living nodes, the head's included."""
        return list(self._ask("alive")["nodes"])

    def lines(self) -> list[str]:
        """What the cluster's workers have counted so far."""
        return self.counts.read_text().splitlines()

    def start(self, config: Path, folder: Path, name: str = "distill", **environment: str) -> Command:
        """A command in a process of its own that joins the cluster; what the driver itself does is counted apart."""
        return Command(config, folder / "driver-counts", name=name, **self.environment, **environment)

    def stop(self) -> None:
        """End all of it."""
        assert self.process.stdin is not None
        with suppress(OSError):
            self.process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(20)
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get("RAYDISTILL_COUNT_FILE") == str(self.counts):
                    process.kill()
        self.process.wait(20)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([command, arguments]) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, (self.folder / "err").read_text()
        found: dict[str, Any] = json.loads(answer)
        return found


class Nodes:
    """The other side of a LocalCluster: owns the nodes, and answers one question after another in the main thread."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        options = {"num_cpus": 0, "object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False}
        self.cluster = Cluster(initialize_head=True, head_node_args=options)

    def start(self) -> dict[str, Any]:
        return {"address": self.cluster.address}

    def add(self, **options: Any) -> dict[str, Any]:
        node = self.cluster.add_node(object_store_memory=OBJECT_STORE_BYTES, **options)
        (raylet,) = node.all_processes["raylet"]
        return {"id": node.node_id, "raylet": raylet.process.pid}

    def kill(self, node: str) -> dict[str, Any]:
        (found,) = [other for other in self.cluster.worker_nodes if other.node_id == node]
        (raylet,) = found.all_processes["raylet"]
        for process in psutil.Process(raylet.process.pid).children(recursive=True):
            with suppress(psutil.Error):
                process.kill()
        self.cluster.remove_node(found, allow_graceful=False)
        return {}

    def drain(self, node: str, seconds: float) -> dict[str, Any]:
        from ray._raylet import GcsClient
        from ray.core.generated import autoscaler_pb2

        reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        deadline_ms = int((time.time() + seconds) * 1000)
        accepted, why = GcsClient(self.cluster.address).drain_node(node, reason, "spot", deadline_ms)
        assert accepted, why
        return {}

    def alive(self) -> dict[str, Any]:
        return {"nodes": sorted(self.cluster.global_state._live_node_ids())}


def main() -> None:
    answers = os.dup(1)
    os.dup2(2, 1)  # Ray prints
    nodes = Nodes()
    try:
        for line in sys.stdin:
            command, arguments = json.loads(line)
            os.write(answers, (json.dumps(getattr(nodes, command)(**arguments)) + "\n").encode())
    finally:
        nodes.cluster.shutdown()


if __name__ == "__main__":
    main()
