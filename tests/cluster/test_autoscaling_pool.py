"""A recording pool on a cluster of which only the head is there: teachers bring nodes for teachers, workers theirs."""

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
from kit.faults import patience
from kit.runs import COUNTING, write_config
from kit.tiny import save_tiny
from kit.toy import toy_config

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="needs root, for namespaces"),
]

GROUPS = {"trainer": 1, "teacher": 2}
NUM_SHARDS = 6


def start_head(folder: Path) -> None:
    path = folder / "autoscaling.json"
    path.write_text(json.dumps(autoscaling(GROUPS, marks=True, head_cpus=0)))
    told = {}
    for name, count in GROUPS.items():
        told |= {f"{name}_group": count, f"{name}_group_cpus": 1, f"{name}_group_gpus": 1}
    command = ["ray", "start", "--head", "--num-cpus=0", f"--resources={json.dumps(told)}"]
    command += [f"--object-store-memory={100 * 2**20}", "--include-dashboard=false", f"--autoscaling-config={path}"]
    subprocess.run(command, check=True, timeout=patience(90), stdout=2)


def run_inside(folder: Path, config: Path) -> None:
    """In the namespaces: the cluster, the plan, the run, and how many nodes of each group there were and when."""
    start_head(folder)
    import ray

    ray.init(address="127.0.0.1:6379", log_to_driver=False)
    code = "from raydistill.cli.main import main; main()"
    own = {**os.environ, "RAY_ADDRESS": "127.0.0.1:6379"}
    with (folder / "plan").open("w") as out:
        subprocess.run([sys.executable, "-c", code, "plan", str(config), "--cluster", "--json"], env=own, stdout=out)
    started, trace = time.monotonic(), []
    with (folder / "out").open("w") as out, (folder / "err").open("w") as err:
        run = subprocess.Popen(
            [sys.executable, "-c", code, "distill", str(config), "--json"],
            env=own,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
        )
        ended: float | None = None
        while ended is None or (any(trace[-1][1:]) and time.monotonic() - ended < patience(60)):
            alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            counts = [sum(name in resources for resources in alive) for name in GROUPS]
            if not trace or trace[-1][1:] != counts:
                trace.append([round(time.monotonic() - started, 1), *counts])
            if ended is None and run.poll() is not None:
                ended = time.monotonic()
            time.sleep(0.2)
    (folder / "trace.json").write_text(json.dumps({"trace": trace, "code": run.returncode, "ended": ended - started}))


def test_teachers_bring_their_nodes_and_workers_theirs(tmp_path, measured):
    config = toy_config(
        tmp_path,
        data__max_labeled=None,
        teacher__mode="cached",
        teacher__pool={"min": 2, "max": 2},
        evaluate__baseline=False,
        train__num_workers=1,
    )
    save_tiny(tmp_path / "classifier", "bert", num_layers=4, seed=3, labels=("film", "money", "sport"))
    config["teacher"] |= {"model": str(tmp_path / "classifier")}
    del config["teacher"]["finetune"]
    (ray_folder := tmp_path / "ray").mkdir()
    settings = {
        "PYTHONPATH": os.pathsep.join((str(COUNTING), os.environ["PYTHONPATH"])),
        "RAYDISTILL_COUNT_FILE": str(tmp_path / "counts"),
        "RAYDISTILL_SHARD_ROWS": "32",
        "RAYDISTILL_SHARD_SECONDS": "1",
    }
    script = ["sh", "-c", INSIDE, "sh", str(ray_folder), sys.executable, __file__]
    arguments = [str(tmp_path), str(write_config(tmp_path, config))]
    apart = ["unshare", "--net", "--pid", "--mount", "--fork", "--kill-child", "--mount-proc"]
    done = subprocess.run(
        [*apart, *script, *arguments],
        env=environment() | settings,
        timeout=patience(400),
        capture_output=True,
        text=True,
        check=False,
    )
    log = f"{done.stderr[-3000:]}\n{(tmp_path / 'err').read_text() if (tmp_path / 'err').exists() else ''}"
    assert done.returncode == 0, log
    told = json.loads((tmp_path / "trace.json").read_text())
    trace = ", ".join(f"{trainers} + {teachers} from {second} s" for second, trainers, teachers in told["trace"])
    measured.line(f"trainer + teacher nodes of an autoscaled pool, which ended at {told['ended']:.1f} s: {trace}")
    assert told["code"] == 0, log

    roles = json.loads((tmp_path / "plan").read_text())["cluster"]["roles"]
    assert [role["new"] for role in roles] == [{"trainer": 1}, {"teacher": 2}]
    assert all(role["resources"]["GPU"] == 1 for role in roles)

    _, trainers, teachers = zip(*told["trace"], strict=True)
    assert (trainers[0], teachers[0]) == (trainers[-1], teachers[-1]) == (0, 0)
    assert (max(trainers), max(teachers)) == (1, 2)
    shards = [line for line in (tmp_path / "counts").read_text().splitlines() if line.startswith("shard train")]
    assert len(shards) == len({line.split()[2] for line in shards}) >= NUM_SHARDS  # each once
    assert len({line.split()[-1] for line in shards}) == 2  # both teachers


if __name__ == "__main__":
    run_inside(Path(sys.argv[1]), Path(sys.argv[2]))
