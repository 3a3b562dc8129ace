"""A sweep on a cluster that grows and shrinks: Ray's autoscaler (v2) with nodes of its local test provider.

All of it runs in network, process and mount namespaces of its own, so that nothing here meets another Ray on this
machine, and the end of the namespace's first process ends everything in it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from runs import write_config
from toy import toy_config

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="needs root, for namespaces"),
]

MAX_NODES = 3
NUM_TRIALS = 6
IDLE_SECONDS = 8.0
"""A shorter time lets the last node go while the finals begin, and 15 s are lost until the next one is there."""
NAMESPACES = ("net", "pid", "mnt")
HEAD_NODE_ID = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"
"""Of Ray's fake provider, which takes this very node for the head."""
LISTS = (
    *("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands"),
    *("head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files", "rsync_exclude", "rsync_filter"),
)
INSIDE = """
set -e
ip link set lo up
mkdir -p /tmp/ray
mount --bind "$1" /tmp/ray
"$2" "$3" "$4" "$5"
exit $?
"""
"""The shell is the namespace's first process, and stays: somebody has to wait for processes that lost their parent."""


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


def start_head(folder: Path) -> None:
    path = folder / "autoscaling.json"
    path.write_text(json.dumps(autoscaling({"trainer": MAX_NODES})))
    command = ["ray", "start", "--head", "--num-cpus=1", f"--object-store-memory={100 * 2**20}"]
    subprocess.run(
        [*command, "--include-dashboard=false", f"--autoscaling-config={path}"], check=True, timeout=90, stdout=2
    )


def run_inside(folder: Path, config: Path) -> None:
    """In the namespaces: the cluster, the sweep, and how many nodes there were at which second."""
    own = {name: os.readlink(f"/proc/self/ns/{name}") for name in NAMESPACES}
    assert not own.items() & json.loads((folder / "outside.json").read_text()).items()
    start_head(folder)
    import ray

    ray.init(address="127.0.0.1:6379", log_to_driver=False)
    started, trace = time.monotonic(), []
    with (folder / "out").open("w") as out, (folder / "err").open("w") as err:
        sweep = subprocess.Popen(
            [sys.executable, "-c", "from raydistill.cli import main; main()", "sweep", str(config), "--json"],
            env={**os.environ, "RAY_ADDRESS": "127.0.0.1:6379"},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
        )
        ended: float | None = None
        while ended is None or (trace[-1][1] > 0 and time.monotonic() - ended < 60):
            nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU")]
            now = round(time.monotonic() - started, 1)
            if not trace or trace[-1][1] != len(nodes):
                trace.append([now, len(nodes)])
            if ended is None and sweep.poll() is not None:
                ended = time.monotonic()
            time.sleep(0.2)
    (folder / "trace.json").write_text(json.dumps({"trace": trace, "code": sweep.returncode, "ended": ended - started}))


def test_nodes_come_for_teachers_and_trials_and_go_afterwards(tmp_path, measured):
    config = toy_config(
        tmp_path,
        stages__distill__num_epochs=10,
        teacher__finetune__num_epochs=2,
        teacher__pool={"min": 1, "max": 2, "resources": {"GPU": 1}},
        evaluate__baseline=False,
        train__num_workers=1,
        train__resources_per_worker={"CPU": 1, "GPU": 1},
        sweep={
            "space": {"stages.distill.learning_rate": {"choice": [1e-4 * 2**n for n in range(NUM_TRIALS)]}},
            "search": "grid",
            "scheduler": "none",
            "final_seeds": 1,
        },
    )
    (ray_folder := tmp_path / "ray").mkdir()
    outside = {name: os.readlink(f"/proc/self/ns/{name}") for name in NAMESPACES}
    (tmp_path / "outside.json").write_text(json.dumps(outside))
    script = ["sh", "-c", INSIDE, "sh", str(ray_folder), sys.executable, __file__]
    arguments = [str(tmp_path), str(write_config(tmp_path, config))]
    apart = ["unshare", "--net", "--pid", "--mount", "--fork", "--kill-child", "--mount-proc"]
    done = subprocess.run(
        [*apart, *script, *arguments], env=environment(), timeout=400, capture_output=True, text=True, check=False
    )
    log = f"{done.stderr[-3000:]}\n{(tmp_path / 'err').read_text() if (tmp_path / 'err').exists() else ''}"
    assert done.returncode == 0, log
    told = json.loads((tmp_path / "trace.json").read_text())
    trace = ", ".join(f"{count} from {second} s" for second, count in told["trace"])
    measured.line(f"nodes of an autoscaled sweep, which ended at {told['ended']:.1f} s: {trace}")
    assert told["code"] == 0, log
    summary = json.loads((tmp_path / "out").read_text())
    assert summary["counts"]["completed"] == sum(summary["counts"].values()) == NUM_TRIALS
    counts = [count for _, count in told["trace"]]
    assert counts[0] == counts[-1] == 0
    assert max(counts) == MAX_NODES


if __name__ == "__main__":
    run_inside(Path(sys.argv[1]), Path(sys.argv[2]))
