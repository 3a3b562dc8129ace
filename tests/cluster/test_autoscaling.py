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

import pytest
from kit.autoscaling import INSIDE, autoscaling, environment
from kit.runs import write_config
from kit.toy import toy_config

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="needs root, for namespaces"),
]

MAX_NODES = 3
NUM_TRIALS = 6
NAMESPACES = ("net", "pid", "mnt")


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
            [sys.executable, "-c", "from raydistill.cli.main import main; main()", "sweep", str(config), "--json"],
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
