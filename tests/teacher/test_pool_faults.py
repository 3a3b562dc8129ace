"""Nodes with teachers that vanish, while they record and while they feed a student: the student stays what it was."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kit.clusters import LocalCluster, Node
from kit.faults import patience
from kit.runs import Command, check_artifacts, read_weights, same_weights, write_config
from kit.toy import toy_config

from raydistill.storage.storage import Storage

pytestmark = pytest.mark.chaos

SLOWED = {
    "RAYDISTILL_SHARD_ROWS": "20",
    "RAYDISTILL_SHARD_SECONDS": "0.5",
    "RAYDISTILL_STEP_SECONDS": "0.1",
}
NUM_STEPS = 72
CHECKPOINT_STEPS = 5
STEPS_AHEAD = 2
STEP_BYTES = 16 * 3 * 4
"""Signals of a step: logits of 16 rows."""


def make_config(folder: Path, mode: str, **changes: Any) -> Path:
    folder.mkdir()
    config = toy_config(
        folder,
        teacher__mode=mode,
        teacher__finetune__num_epochs=2,
        stages__distill__num_epochs=6,
        evaluate__baseline=False,
        train__checkpoint_steps=CHECKPOINT_STEPS,
        **changes,
    )
    return write_config(folder, config)


@dataclass
class Place:
    """A node for training, and nodes for teachers that come and go."""

    cluster: LocalCluster
    teachers: list[Node] = field(default_factory=list)

    def have_teachers(self, count: int) -> None:
        alive = self.cluster.alive()
        self.teachers = [node for node in self.teachers if node.id in alive]
        while len(self.teachers) < count:
            self.teachers.append(self.cluster.add(num_cpus=1, resources={"teacher": 1}))

    def kill_node_of(self, pid: int) -> None:
        (node,) = [node for node in self.teachers if node.runs(pid)]
        self.cluster.kill(node)
        self.teachers.remove(node)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    cluster = LocalCluster(tmp_path_factory.mktemp("cluster"), **SLOWED)
    try:
        cluster.add(num_cpus=1, resources={"trainer": 1})
        yield Place(cluster)
    finally:
        cluster.stop()


@dataclass
class Ran:
    results: dict[str, Any]
    lines: list[str]
    told: str


def run_alone(folder: Path, mode: str, num_workers: int = 0) -> dict[str, Any]:
    """The same without a pool and, without workers, without Ray."""
    config = make_config(folder, mode, train__num_workers=num_workers)
    with Command(config, folder / "counts", RAYDISTILL_SHARD_ROWS="20") as command:
        return command.results(patience(180.0))


@pytest.fixture
def commands() -> Iterator[list[Command]]:
    """What is put here is ended after the test."""
    started: list[Command] = []
    yield started
    for command in started:
        if command.process.poll() is None:
            os.killpg(command.process.pid, signal.SIGKILL)


def wait_for_work(place: Place, command: Command, kind: str, begin: int, count: int) -> int:
    """Wait until teachers have begun so many pieces of a kind; the process of the newest one."""

    def found() -> list[str]:
        return [line for line in place.cluster.lines()[begin:] if line.startswith(f"{kind} ")]

    assert command.wait_until(lambda: len(found()) >= count, patience(180.0)), command.out.read_text()
    return int(found()[-1].split()[-1])


def assert_same(folder: Path, results: dict[str, Any], alone: dict[str, Any]) -> None:
    for model in ("teacher", "student"):
        assert same_weights(read_weights(results[model]["path"]), read_weights(alone[model]["path"])), model
    check_artifacts(Storage(str(folder / "storage")))


def test_a_node_lost_while_its_teacher_records(place, commands, tmp_path, measured):
    alone = run_alone(tmp_path / "alone", "cached")
    folder, moment = tmp_path / "run", int(np.random.default_rng(21).integers(2, 8))
    place.have_teachers(2)
    begin = len(place.cluster.lines())
    config = make_config(folder, "cached", teacher__pool={"min": 1, "max": 2}, train__num_workers=1)
    command = place.cluster.start(config, folder, **SLOWED)
    commands.append(command)
    place.kill_node_of(wait_for_work(place, command, "shard", begin, moment))
    results = command.results(patience(240.0))
    assert_same(folder, results, alone)
    shards = Counter(" ".join(line.split()[:3]) for line in place.cluster.lines()[begin:] if line.startswith("shard "))
    repeated = sum(shards.values()) - len(shards)
    assert repeated <= 2  # the one it worked on, and the next, if it was told to begin it
    measured.fault("node of a teacher that records", f"shard {moment} of {len(shards)}", f"{repeated} shards")


def test_nodes_lost_while_their_teachers_feed_a_student(place, commands, tmp_path, measured):
    """First one of two, then the last: training waits, says so, and goes on once a node is there."""
    alone = run_alone(tmp_path / "alone", "online")
    folder = tmp_path / "run"
    moments = sorted(int(n) for n in np.random.default_rng(22).integers(10, NUM_STEPS - 20, 2))
    place.have_teachers(2)
    begin = len(place.cluster.lines())
    pool = {"min": 1, "max": 2, "max_ahead_bytes": STEPS_AHEAD * STEP_BYTES}
    command = place.cluster.start(
        make_config(folder, "pool", teacher__pool=pool, train__num_workers=1), folder, **SLOWED
    )
    commands.append(command)
    for moment in moments:
        pid = wait_for_work(place, command, "signals", begin, moment)
        told = len(command.err.read_text())
        place.kill_node_of(pid)
    assert place.teachers == []
    assert command.wait_until(lambda: "waiting for a teacher" in command.err.read_text()[told:], patience(90.0))
    place.have_teachers(1)
    results = command.results(patience(240.0))
    assert_same(folder, results, alone)
    asked = [line.split()[1:4] for line in place.cluster.lines()[begin:] if line.startswith("signals ")]
    repeated = len(asked) - NUM_STEPS - 1  # one for the check before the training
    assert repeated <= len(moments) * (STEPS_AHEAD + 2)
    steps = [line for line in place.cluster.lines()[begin:] if line.startswith("step student.")]
    assert len(steps) == NUM_STEPS
    measured.fault(
        "nodes of both teachers of a pool, one after the other",
        f"micro-batches {moments[0]} and {moments[1]} of {NUM_STEPS}",
        f"{repeated} micro-batches, 0 steps",
    )


def test_a_worker_lost_while_teachers_feed_two(place, commands, tmp_path, measured):
    """Both draw on the same teachers, and so does the next group, from the checkpoint on."""
    alone = run_alone(tmp_path / "alone", "online", num_workers=2)
    folder, draw = tmp_path / "run", np.random.default_rng(23)
    step, who = int(draw.integers(10, NUM_STEPS - 20)), int(draw.integers(2))
    place.cluster.add(num_cpus=1, resources={"trainer": 1})
    place.have_teachers(2)
    begin = len(place.cluster.lines())
    config = make_config(folder, "pool", teacher__pool={"min": 1, "max": 2}, train__num_workers=2)
    command = place.cluster.start(config, folder, **SLOWED)
    commands.append(command)

    def steps(*words: object) -> list[str]:
        start = " ".join(("step student.distill", *map(str, words)))
        return [line for line in place.cluster.lines()[begin:] if line.startswith(start)]

    assert command.wait_until(lambda: bool(steps(step, who, "")), patience(180.0)), command.out.read_text()
    os.kill(int(steps(step, who, "")[0].split()[-1]), signal.SIGKILL)
    results = command.results(patience(240.0))
    assert_same(folder, results, alone)
    repeated = [sum(line.split()[3] == rank for line in steps()) - NUM_STEPS for rank in ("0", "1")]
    assert max(repeated) <= CHECKPOINT_STEPS
    when = f"step {step} of {NUM_STEPS}"
    measured.fault(f"worker {who} of two that a pool feeds", when, f"{max(repeated)} steps")
