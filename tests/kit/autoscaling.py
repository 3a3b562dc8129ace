"""Namespaces of network, processes and mounts in which a test has a cluster for itself, and one that grows by itself.

Nothing in there meets another Ray on this machine, and the end of the namespace's first process ends everything in it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

IDLE_SECONDS = 8.0
"""A shorter time lets the last node go while the finals begin, and 15 s are lost until the next one is there."""
HEAD_NODE_ID = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"
"""Of Ray's fake provider, which takes this very node for the head."""
LISTS = (
    *("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands"),
    *("head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files", "rsync_exclude", "rsync_filter"),
)
NAMESPACES = ("net", "pid", "mnt")
UNSHARE = ["unshare", "--net", "--pid", "--mount", "--fork", "--kill-child", "--mount-proc"]
INSIDE = """
set -e
ip link set lo up
mkdir -p /tmp/ray
mount --bind "$1" /tmp/ray
shift
"$@"
exit $?
"""
"""The shell is the namespace's first process, and stays: somebody has to wait for processes that lost their parent."""


def run_apart(script: str, folder: Path, *arguments: str, seconds: float, environment: dict[str, str]) -> None:
    """Run a script of Python, with ``folder`` as its first argument, in namespaces; Ray's files go into the folder."""
    (ray_folder := folder / "ray").mkdir()
    (folder / "outside.json").write_text(json.dumps(namespaces()))
    inside = ["sh", "-c", INSIDE, "sh", str(ray_folder), sys.executable, script, str(folder), *arguments]
    done = subprocess.run(
        [*UNSHARE, *inside], env=environment, timeout=seconds, capture_output=True, text=True, check=False
    )
    told = folder / "err"
    assert done.returncode == 0, f"{done.stderr[-5000:]}\n{told.read_text() if told.exists() else ''}"


def check_apart(folder: Path) -> None:
    """Inside: every namespace is another one than outside."""
    assert not namespaces().items() & json.loads((folder / "outside.json").read_text()).items()


def namespaces() -> dict[str, str]:
    return {name: os.readlink(f"/proc/self/ns/{name}") for name in NAMESPACES}


def autoscaling(groups: dict[str, int], marks: bool = False, head_cpus: int = 1) -> dict[str, Any]:
    """A head without GPU and, by group, up to so many nodes with one each, which are no real ones.

    ``marks``: nodes have their group's name as a resource.
    """
    nodes = {
        name: {
            "resources": {"CPU": 1, "GPU": 1, "object_store_memory": 80 * 2**20, **({name: 1} if marks else {})},
            "node_config": {},
            "min_workers": 0,
            "max_workers": count,
        }
        for name, count in groups.items()
    }
    return {
        "cluster_name": "fake",
        "max_workers": sum(groups.values()),
        "idle_timeout_minutes": IDLE_SECONDS / 60,
        "upscaling_speed": 1.0,
        "provider": {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "launch_multiple": True,
            "head_node_id": HEAD_NODE_ID,
        },
        "available_node_types": {
            **nodes,
            "ray.head.default": {"resources": {"CPU": head_cpus}, "node_config": {}, "max_workers": 0},
        },
        "head_node_type": "ray.head.default",
        "auth": {},
        "docker": {},
        "file_mounts": {},
        **{name: [] for name in LISTS},
    }


def environment() -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {
        **clean,
        "PATH": f"{Path(sys.executable).parent}:{clean['PATH']}",  # the provider starts nodes by commands of Ray
        "RAY_AUTH_MODE": "disabled",  # nobody else can reach this network
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": HEAD_NODE_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_NODE_ID,
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "OMP_NUM_THREADS": "1",
    }
