"""A cluster that grows and shrinks, by Ray's autoscaler (v2) with nodes of its local test provider: a sweep, and a
recording pool for which only the head is there."""

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
from kit.autoscaling import autoscaling, check_apart, environment, run_apart
from kit.faults import patience
from kit.runs import COUNTING, write_config
from kit.tiny import save_tiny
from kit.toy import toy_config

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="needs root, for namespaces"),
]

MAX_NODES = 3
NUM_TRIALS = 6
GROUPS = {"trainer": 1, "teacher": 2}
NUM_SHARDS = 6
COMMAND = [sys.executable, "-c", "from raydistill.cli.main import main; main()"]


def start_head(folder: Path, name: str) -> None:
    """For a sweep a head with a CPU, for distill one without, which announces the groups that may come."""
    resources: dict[str, int] = {}
    if name == "sweep":
        config = autoscaling({"trainer": MAX_NODES})
    else:
        config = autoscaling(GROUPS, marks=True, head_cpus=0)
        for group, count in GROUPS.items():
            resources |= {f"{group}_group": count, f"{group}_group_cpus": 1, f"{group}_group_gpus": 1}
    (path := folder / "autoscaling.json").write_text(json.dumps(config))
    command = ["ray", "start", "--head", f"--num-cpus={int(name == 'sweep')}", f"--resources={json.dumps(resources)}"]
    command += [f"--object-store-memory={100 * 2**20}", "--include-dashboard=false", f"--autoscaling-config={path}"]
    subprocess.run(command, check=True, timeout=patience(90), stdout=2)


def run_inside(folder: Path, name: str, config: str) -> None:
    """In the namespaces: the cluster, the plan, the command, and how many nodes of each group there were and when."""
    check_apart(folder)
    start_head(folder, name)
    import ray

    ray.init(address="127.0.0.1:6379", log_to_driver=False)
    own = {**os.environ, "RAY_ADDRESS": "127.0.0.1:6379"}
    with (folder / "plan").open("w") as out:
        subprocess.run([*COMMAND, "plan", config, "--cluster", "--json"], env=own, stdout=out, check=True)
    started = time.monotonic()
    trace: list[list[float]] = []
    with (folder / "out").open("w") as out, (folder / "err").open("w") as err:
        run = subprocess.Popen(
            [*COMMAND, name, config, "--json"], env=own, stdin=subprocess.DEVNULL, stdout=out, stderr=err
        )
        ended: float | None = None
        while ended is None or (any(trace[-1][1:]) and time.monotonic() - ended < patience(60)):
            alive = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU")]
            marks = GROUPS if name == "distill" else ("GPU",)
            counts = [sum(mark in resources for resources in alive) for mark in marks]
            if not trace or trace[-1][1:] != counts:
                trace.append([round(time.monotonic() - started, 1), *counts])
            if ended is None and run.poll() is not None:
                ended = time.monotonic()
            time.sleep(0.2)
    (folder / "trace.json").write_text(json.dumps({"trace": trace, "code": run.returncode, "ended": ended - started}))


def watch(folder: Path, name: str, config: dict[str, Any], measured: Any, **settings: str) -> list[tuple[int, ...]]:
    """Run the command apart; how many nodes of each group there were, one after another."""
    path = write_config(folder, config)
    run_apart(__file__, folder, name, str(path), seconds=patience(400), environment=environment() | settings)
    told = json.loads((folder / "trace.json").read_text())
    trace = ", ".join(f"{' + '.join(map(str, counts))} from {second} s" for second, *counts in told["trace"])
    measured.line(f"nodes of an autoscaled {name}, which ended at {told['ended']:.1f} s: {trace}")
    assert told["code"] == 0, (folder / "err").read_text()
    found = list(zip(*told["trace"], strict=True))[1:]
    assert all(counts[0] == counts[-1] == 0 for counts in found)
    return found


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
    (counts,) = watch(tmp_path, "sweep", config, measured)
    summary = json.loads((tmp_path / "out").read_text())
    assert summary["counts"]["completed"] == sum(summary["counts"].values()) == NUM_TRIALS
    assert max(counts) == MAX_NODES


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
    trainers, teachers = watch(
        tmp_path,
        "distill",
        config,
        measured,
        PYTHONPATH=os.pathsep.join((str(COUNTING), os.environ["PYTHONPATH"])),
        RAYDISTILL_COUNT_FILE=str(tmp_path / "counts"),
        RAYDISTILL_SHARD_ROWS="32",
        RAYDISTILL_SHARD_SECONDS="1",
    )
    assert (max(trainers), max(teachers)) == (1, 2)
    roles = json.loads((tmp_path / "plan").read_text())["cluster"]["roles"]
    assert [role["new"] for role in roles] == [{"trainer": 1}, {"teacher": 2}]
    assert all(role["resources"]["GPU"] == 1 for role in roles)
    shards = [line for line in (tmp_path / "counts").read_text().splitlines() if line.startswith("shard train")]
    assert len(shards) == len({line.split()[2] for line in shards}) >= NUM_SHARDS  # each once
    assert len({line.split()[-1] for line in shards}) == 2  # both teachers


if __name__ == "__main__":
    run_inside(Path(sys.argv[1]), *sys.argv[2:])
