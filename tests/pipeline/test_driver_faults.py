"""A driver on a cluster, killed once inside every stage: the same command goes on, and ends with the same weights."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from kit.clusters import LocalCluster
from kit.faults import patience, tracking_uri
from kit.runs import Command, check_artifacts, mlflow_runs, read_weights, same_weights, versions, write_config
from kit.toy import toy_config

from raydistill.storage.storage import Storage

pytestmark = pytest.mark.chaos

STAGES = ("prepare", "record", "train", "evaluate", "register")
MODELS = ("teacher", "student", "baseline")
CHECKPOINT_STEPS = 5
SLOWED = {"RAYDISTILL_SHARD_ROWS": "40", "RAYDISTILL_SHARD_SECONDS": "0.2", "RAYDISTILL_STEP_SECONDS": "0.02"}


def make_config(folder: Path, num_workers: int) -> Path:
    folder.mkdir()
    config = toy_config(
        folder,
        stages__distill__num_epochs=6,
        train__num_workers=num_workers,
        train__checkpoint_steps=CHECKPOINT_STEPS,
        evaluate__latency=True,
    )
    return write_config(folder, config)


class Phases:
    """When each phase began and ended, of all processes that count into one of the files."""

    def __init__(self, *counts: Path) -> None:
        self.files = [path.with_name(f"{path.name}.phases") for path in counts]
        self.before = {path: len(self._words(path)) for path in self.files}

    def _words(self, path: Path) -> list[list[str]]:
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []

    def when(self, kind: str, phase: str) -> float | None:
        """Seconds since the epoch at which the phase first began or ended since this object was made."""
        for path in self.files:
            for words in self._words(path)[self.before[path] :]:
                if words[:2] == [kind, phase]:
                    return float(words[2])
        return None

    def seconds(self, phase: str) -> float:
        begin, end = self.when("begin", phase), self.when("end", phase)
        assert begin is not None
        assert end is not None
        return end - begin


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """One node of one CPU beside the head, where the drivers are."""
    cluster = LocalCluster(tmp_path_factory.mktemp("cluster"), **SLOWED)
    try:
        cluster.add(num_cpus=1)
        yield cluster
    finally:
        cluster.stop()


def work_done(lines: list[str]) -> Counter[str]:
    return Counter(" ".join(line.split()[:3]) for line in lines if not line.startswith("start "))


def kill_inside(command: Command, phases: Phases, stage: str, after: float) -> bool:
    """Kill the driver so many seconds after the stage has begun; whether the stage was still going on."""
    assert command.wait_until(lambda: phases.when("begin", stage) is not None, patience(180.0)), command.out.read_text()
    begun = phases.when("begin", stage)
    assert begun is not None
    time.sleep(max(0.0, begun + after - time.time()))
    is_inside = phases.when("end", stage) is None and command.process.poll() is None
    command.kill(signal.SIGKILL)
    command.process.wait(20)
    return is_inside


def test_a_driver_killed_in_every_stage_ends_with_the_same_student(cluster, tmp_path, measured):
    """The undisturbed run is one without Ray, slowed down in the same way, which also tells how long stages take."""
    folder = tmp_path / "whole"
    alone = Command(make_config(folder, 0), folder / "counts", **SLOWED)
    try:
        phases = Phases(folder / "counts")
        code, whole, err = alone.end(patience(180.0))
        assert code == 0, err
        lengths = {stage: phases.seconds(stage) for stage in STAGES}
        every_piece = work_done(alone.lines())
    finally:
        alone.clean_up()

    folder, draw = tmp_path / "killed", np.random.default_rng(15)
    config, counts = make_config(folder, 1), folder / "driver-counts"
    moments, inside = {}, {}
    try:
        for stage in STAGES:
            phases = Phases(counts, cluster.counts)
            command = cluster.start(config, folder, **SLOWED)
            moments[stage] = float(draw.uniform(0.0, 0.8)) * lengths[stage]
            inside[stage] = kill_inside(command, phases, stage, moments[stage])
        command = cluster.start(config, folder, **SLOWED)
        code, results, err = command.end(patience(180.0))
    finally:
        if command.process.poll() is None:
            os.killpg(command.process.pid, signal.SIGKILL)
    assert code == 0, err
    assert sum(inside.values()) >= len(STAGES) - 1  # on a busy machine a stage may end while this process sleeps
    for model in MODELS:
        assert same_weights(read_weights(results[model]["path"]), read_weights(whole[model]["path"])), model
    (run,) = mlflow_runs(tracking_uri(folder))
    assert run.info.status == "FINISHED"
    assert [int(version.version) for version in versions(tracking_uri(folder))] == [1]
    assert check_artifacts(Storage(str(folder / "storage"))) == check_artifacts(
        Storage(str(tmp_path / "whole/storage"))
    )
    work = work_done(cluster.lines())
    assert work.keys() == every_piece.keys()
    repeated = {kind: sum(n - 1 for line, n in work.items() if line.startswith(kind)) for kind in ("step", "shard")}
    assert repeated["step"] <= CHECKPOINT_STEPS
    assert repeated["shard"] <= 1
    at = ", ".join(f"{stage} at {moments[stage]:.2f} of {lengths[stage]:.1f} s" for stage in STAGES)
    measured.fault("driver on a cluster, 5 times", at, f"{repeated['step']} steps, {repeated['shard']} shards")
