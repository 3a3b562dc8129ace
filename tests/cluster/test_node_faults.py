"""Nodes that vanish, are taken away with notice, or join, while two workers train: the student stays what it was."""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from kit.clusters import LocalCluster, Node
from kit.faults import patience, tracking_uri
from kit.runs import (
    Command,
    check_artifacts,
    mlflow_runs,
    only_run_key,
    predictions,
    read_weights,
    same_weights,
    write_config,
)
from kit.toy import relative_difference, toy_config, without_key_biases

from raydistill.pipeline.notice import LAST_SECONDS
from raydistill.storage.storage import Storage

STEP_SECONDS = 0.1
NUM_STEPS = 240
MODELS = ("teacher", "student")


def make_config(folder: Path, checkpoint_steps: int = 5, **changes: Any) -> Path:
    """32 steps of the teacher, which has dropout, 7 shards, 240 steps of the student, which the cluster slows down."""
    folder.mkdir(exist_ok=True)
    config = toy_config(
        folder,
        teacher__finetune__num_epochs=8,
        stages__distill__num_epochs=20,
        evaluate__baseline=False,
        train__num_workers=2,
        train__checkpoint_steps=checkpoint_steps,
        **changes,
    )
    return write_config(folder, config)


class Whole:
    """An undisturbed run of two workers on a cluster of this machine alone, not slowed down."""

    def __init__(self, folder: Path) -> None:
        with Command(make_config(folder), folder / "counts") as command:
            self.results = command.results(patience(180.0))
        self.storage = Storage(str(folder / "storage"))
        self.weights = {model: read_weights(self.results[model]["path"]) for model in MODELS}

    def assert_same(self, folder: Path, results: dict[str, Any]) -> None:
        """The other run ended with the very same weights, in one MLflow run, with every artefact whole."""
        for model, weights in self.weights.items():
            assert same_weights(read_weights(results[model]["path"]), weights), model
        self._assert_ended(folder)

    def assert_close(self, folder: Path, results: dict[str, Any]) -> float:
        """The other run ended with the same student within rounding; the largest difference, relative."""
        largest = 0.0
        for model, mine in self.weights.items():
            theirs = read_weights(results[model]["path"])
            differences = relative_difference(without_key_biases(mine), without_key_biases(theirs))
            largest = max(largest, *differences.values())
        assert largest < 1e-4
        logits = [
            predictions(*run).outputs["student"] for run in ((self.results, self.storage), (results, _storage(folder)))
        ]
        np.testing.assert_allclose(*logits, atol=1e-3)
        self._assert_ended(folder)
        return largest

    def _assert_ended(self, folder: Path) -> None:
        (run,) = mlflow_runs(tracking_uri(folder))
        assert run.info.status == "FINISHED"
        assert check_artifacts(_storage(folder)) == check_artifacts(self.storage)


def _storage(folder: Path) -> Storage:
    return Storage(str(folder / "storage"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    return Whole(tmp_path_factory.mktemp("whole") / "run")


class Group:
    """Workers on nodes of one CPU each, seen through what they count."""

    def __init__(self, cluster: LocalCluster) -> None:
        self.cluster = cluster
        self.nodes: list[Node] = []

    def have(self, num_nodes: int) -> None:
        """Let so many nodes live."""
        alive = self.cluster.alive()
        self.nodes = [node for node in self.nodes if node.id in alive]
        while len(self.nodes) < num_nodes:
            self.nodes.append(self.cluster.add(num_cpus=1))
        for node in self.nodes[num_nodes:]:
            self.cluster.kill(node)
        self.nodes = self.nodes[:num_nodes]

    def node_of(self, pid: int) -> Node:
        (found,) = [node for node in self.nodes if node.runs(pid)]
        return found


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Group]:
    cluster = LocalCluster(tmp_path_factory.mktemp("cluster"), RAYDISTILL_STEP_SECONDS=str(STEP_SECONDS))
    yield Group(cluster)
    cluster.stop()


class Run:
    """A command on the cluster and what its workers count, several times in the same folder if need be."""

    def __init__(self, group: Group, folder: Path, **changes: Any) -> None:
        self.cluster, self.folder = group.cluster, folder
        self.config = make_config(folder, **changes)
        self.before = len(self.cluster.lines())
        self.command: Command | None = None

    def start(self, **environment: str) -> Command:
        self.command = self.cluster.start(self.config, self.folder, **environment)
        return self.command

    def lines(self) -> list[str]:
        return self.cluster.lines()[self.before :]

    def wait_for(self, start: str, since: int = 0, seconds: float = 120.0) -> list[str]:
        """Wait for a line that begins so, after ``since`` lines; its words."""

        def find() -> list[str]:
            return [line for line in self.lines()[since:] if line.startswith(start)]

        assert self.command is not None
        assert self.command.wait_until(lambda: bool(find()), patience(seconds)), self.command.err.read_text()
        return find()[0].split()

    def end(self) -> dict[str, Any]:
        assert self.command is not None
        return self.command.results(patience(240.0))

    def told(self) -> str:
        """What the newest command wrote to stderr."""
        assert self.command is not None
        return self.command.err.read_text()

    def repeated_steps(self) -> int:
        steps = Counter(
            " ".join(line.split()[:3]) for line in self.lines() if line.startswith("step ") and rank(line) == 0
        )
        return sum(steps.values()) - len(steps)

    def trains_elsewhere(self, pids: set[str]) -> bool:
        """Whether processes other than these train the student."""
        return any(line.startswith("step student.") and line.split()[-1] not in pids for line in self.lines())

    def sizes(self) -> list[int]:
        """How many workers began together, group after group."""
        kinds = itertools.groupby(self.lines(), key=lambda line: line.startswith("start "))
        return [len(list(lines)) for is_start, lines in kinds if is_start]

    def saved_step(self) -> int:
        """The step of the student's newest checkpoint; -1 where there is none."""
        storage = _storage(self.folder)
        place = ("runs", only_run_key(storage), "student", "distill", "last.json")
        return int(storage.read_json(*place)["step"]) if storage.exists(*place) else -1

    def clean_up(self) -> None:
        if self.command is not None and self.command.process.poll() is None:
            os.killpg(self.command.process.pid, signal.SIGKILL)
            self.command.process.wait(20)


def rank(line: str) -> int:
    return int(line.split()[3])


@pytest.fixture
def run(group: Group, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Run]:
    made = Run(group, tmp_path / "run", **getattr(request, "param", {}))
    yield made
    made.clean_up()


@pytest.mark.slow
def test_a_node_that_vanishes_in_training_is_replaced(whole, group, run, measured):
    group.have(3)
    draw = np.random.default_rng(11)
    step, who = int(draw.integers(20, NUM_STEPS - 60)), int(draw.integers(2))
    run.start()
    words = run.wait_for(f"step student.distill {step} {who} ")
    killed_at = time.monotonic()
    group.cluster.kill(group.node_of(int(words[-1])))
    since = len(run.lines())
    run.wait_for("step student.distill ", since=since + 4)
    again = time.monotonic() - killed_at
    results = run.end()
    whole.assert_same(run.folder, results)
    assert run.sizes() == [2, 2]
    assert run.repeated_steps() <= 5
    assert "lost worker" in run.told()
    measured.fault(
        f"node of worker {who} of two", f"step {step} of {NUM_STEPS}", f"{run.repeated_steps()} steps", went_on(again)
    )


@pytest.mark.slow
@pytest.mark.parametrize("run", [{"checkpoint_steps": 1000}], indirect=True)
def test_a_node_that_is_drained_has_its_checkpoint_written_at_once(whole, group, run, measured):
    group.have(3)
    draw = np.random.default_rng(12)
    step, who, seconds = int(draw.integers(20, 60)), int(draw.integers(2)), 15.0
    command = run.start()
    words = run.wait_for(f"step student.distill {step} {who} ")
    node = group.node_of(int(words[-1]))
    assert run.saved_step() == -1
    told_at = time.monotonic()
    group.cluster.drain(node, seconds)
    assert command.wait_until(lambda: run.saved_step() > 0)
    saved_after = time.monotonic() - told_at
    assert saved_after < patience(seconds / 2)
    pids = {line.split()[-1] for line in run.lines()}
    assert command.wait_until(lambda: run.trains_elsewhere(pids))
    again = time.monotonic() - told_at
    results = run.end()
    whole.assert_same(run.folder, results)
    assert run.sizes() == [2, 2]
    assert 0 < run.repeated_steps() <= LAST_SECONDS / STEP_SECONDS + 5
    measured.fault(
        f"node of worker {who} of two drained, {seconds:.0f} s notice",
        f"step {step} of {NUM_STEPS}",
        f"{run.repeated_steps()} steps",
        f"checkpoint after {saved_after:.1f} s, {went_on(again)}",
    )


@pytest.mark.chaos
@pytest.mark.parametrize("run", [{"train__min_workers": 1}], indirect=True)
def test_an_elastic_group_shrinks_and_grows(whole, group, run, measured):
    group.have(2)
    draw = np.random.default_rng(13)
    step, who = int(draw.integers(10, 40)), int(draw.integers(2))
    command = run.start(RAYDISTILL_RESIZE_SECONDS="3", RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S="5")
    words = run.wait_for(f"step student.distill {step} {who} ")
    killed_at = time.monotonic()
    group.cluster.kill(group.node_of(int(words[-1])))
    assert command.wait_until(lambda: len(run.sizes()) == 2)
    since = len(run.lines())
    run.wait_for("step student.distill ", since=since)
    shrunk = time.monotonic() - killed_at
    assert run.sizes() == [2, 1]
    added_at = time.monotonic()
    group.have(2)
    assert command.wait_until(lambda: run.sizes() == [2, 1, 2])
    grown = time.monotonic() - added_at
    results = run.end()
    difference = whole.assert_close(run.folder, results)
    assert run.repeated_steps() <= 2 * 5
    measured.fault(
        f"elastic, two workers to one to two: node of worker {who}",
        f"step {step} of {NUM_STEPS}",
        f"{run.repeated_steps()} steps",
        f"one worker after {shrunk:.1f} s, two {grown:.1f} s after a node came",
        difference,
    )


@pytest.mark.chaos
def test_signals_to_a_driver_on_a_cluster_end_it_with_a_checkpoint(whole, group, run, measured):
    group.have(2)
    draw = np.random.default_rng(14)
    steps = sorted(int(step) for step in draw.integers(20, NUM_STEPS - 40, 2))
    took = []
    for step, name in zip(steps, ("SIGINT", "SIGTERM"), strict=True):
        command = run.start()
        run.wait_for(f"step student.distill {step} ")
        pids = {int(line.split()[-1]) for line in run.lines()}
        sent = time.monotonic()
        if name == "SIGINT":
            os.killpg(command.process.pid, signal.SIGINT)
        else:
            command.kill(signal.SIGTERM)
        code, answer, err = command.end(patience(60.0))
        took.append(time.monotonic() - sent)
        assert code == 130, err
        assert took[-1] < patience(10.0)
        assert "same command" in answer["error"]["message"]
        assert run.saved_step() > step
        psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=patience(10.0))
        assert not any(psutil.pid_exists(pid) for pid in pids)
    run.start()
    results = run.end()
    whole.assert_same(run.folder, results)
    assert run.repeated_steps() == 0
    assert len(group.cluster.alive()) == 3
    measured.fault(
        "SIGINT, then SIGTERM, to a driver on a cluster",
        f"steps {steps[0]} and {steps[1]} of {NUM_STEPS}",
        "0 steps",
        f"ended after {took[0]:.1f} and {took[1]:.1f} s",
    )


def went_on(seconds: float) -> str:
    return f"trained again after {seconds:.1f} s"
