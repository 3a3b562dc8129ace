"""Several processes in one storage and one MLflow database at once: nothing is lost, broken or done by halves."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest
from kit.ranks import take_environment
from kit.runs import Command, check_artifacts, mlflow_runs, read_weights, same_weights, write_config
from kit.servers import make_config
from kit.toy import toy_config

from raydistill.storage.storage import Storage
from raydistill.tracking.runs import Tracker, finish_run, open_client, prepare_store, start_run

NUM_TRIALS, NUM_STEPS = 20, 60
SHORT = {"teacher__finetune__num_epochs": 4, "stages__distill__num_epochs": 2}


def log_in_a_process(environment: dict[str, str], *arguments: Any) -> None:
    take_environment(environment)
    log_trial(*arguments)


def log_trial(storage: str, number: int, folder: str, begin: Any) -> None:
    """What a trial's process does: a run of its own, metrics step by step, an end."""
    begin.wait(60)
    ref = start_run(make_config(seed=number), Storage(storage), f"trial-{number}")
    tracker = Tracker(ref, Path(folder) / f"{number}.jsonl")
    for step in range(NUM_STEPS):
        tracker.log({"train/loss": number + step / 1000, "validation/accuracy": step / NUM_STEPS}, step)
        time.sleep(0.01)
    left = tracker.close(timeout=60)
    finish_run(ref)
    if left:
        raise SystemExit(f"{left} values were not sent")


def run_at_once(target: Callable[..., None], jobs: list[tuple[Any, ...]], context: Any) -> None:
    processes = [context.Process(target=target, args=job) for job in jobs]
    for process in processes:
        process.start()
    for process in processes:
        process.join(180)
    assert [process.exitcode for process in processes] == [0] * len(jobs)


@pytest.mark.slow
def test_twenty_processes_log_to_one_sqlite_and_lose_nothing(tmp_path):
    storage = Storage(str(tmp_path / "storage"))
    context = multiprocessing.get_context("forkserver")  # MLflow is imported once, 2 s, and not twenty times
    context.set_forkserver_preload(["mlflow", "raydistill.tracking.runs", "test_concurrency"])
    begin = context.Barrier(NUM_TRIALS)
    trials = [(dict(os.environ), storage.url, n, str(tmp_path), begin) for n in range(NUM_TRIALS)]
    run_at_once(log_in_a_process, trials, context)
    uri = f"sqlite:///{tmp_path / 'storage' / 'mlflow.db'}"
    runs = mlflow_runs(uri)
    assert {run.data.tags["raydistill.run_key"] for run in runs} == {f"trial-{n}" for n in range(NUM_TRIALS)}
    assert {run.info.status for run in runs} == {"FINISHED"}
    client = open_client(uri)
    for run in runs:
        number = int(run.data.tags["raydistill.seed"])
        points = {
            key: sorted((point.step, point.value) for point in client.get_metric_history(run.info.run_id, key))
            for key in ("train/loss", "validation/accuracy")
        }
        assert points["train/loss"] == [(step, number + step / 1000) for step in range(NUM_STEPS)]
        assert points["validation/accuracy"] == [(step, step / NUM_STEPS) for step in range(NUM_STEPS)]


@pytest.mark.slow
def test_twenty_threads_log_to_one_sqlite_and_lose_nothing(tmp_path):
    """As the trials of a sweep on one machine do whose driver starts their runs."""
    from concurrent.futures import ThreadPoolExecutor

    storage = Storage(str(tmp_path / "storage"))
    uri = f"sqlite:///{tmp_path / 'storage' / 'mlflow.db'}"
    prepare_store(uri)
    begin = Barrier(NUM_TRIALS)
    with ThreadPoolExecutor(NUM_TRIALS) as pool:
        list(pool.map(lambda n: log_trial(storage.url, n, str(tmp_path), begin), range(NUM_TRIALS)))
    client = open_client(uri)
    for run in mlflow_runs(uri):
        history = client.get_metric_history(run.info.run_id, "train/loss")
        assert sorted(point.step for point in history) == list(range(NUM_STEPS))


@pytest.mark.chaos
def test_one_of_two_runs_that_share_a_teacher_is_killed_again_and_again(tmp_path, measured):
    """The other one finishes, and neither leaves anything broken, whatever the first was just writing."""
    draw = np.random.default_rng(17)
    alone = toy_config(tmp_path, **SHORT, storage=str(tmp_path / "alone"))
    shared = [
        write_config(tmp_path, toy_config(tmp_path, **SHORT, student__num_layers=layers), f"{layers}.yaml")
        for layers in (1, 2)
    ]
    killed, other = (Command(path, tmp_path / "counts") for path in shared)
    try:
        for _ in range(3):
            assert killed.wait_for_line("")
            time.sleep(draw.uniform(0, 2.5))
            killed.kill(signal.SIGKILL)
            killed.process.wait()
            killed = Command(shared[0], tmp_path / "counts")
        ends = [command.end() for command in (killed, other)]
    finally:
        for command in (killed, other):
            left = command.clean_up()
    assert [code for code, _, _ in ends] == [0, 0], ends
    assert left == []
    storage = Storage(str(tmp_path / "storage"))
    assert check_artifacts(storage) == 1 + 1 + 1 + 1 + 3 + 2 * 3
    with Command(write_config(tmp_path, alone, "alone.yaml"), tmp_path / "alone-counts") as reference:
        results = reference.results()
    second = ends[1][1]
    assert results["student"]["num_parameters"] == second["student"]["num_parameters"]
    for model in ("teacher", "student", "baseline"):
        assert same_weights(read_weights(results[model]["path"]), read_weights(second[model]["path"])), model
    alone, both = (sum(line.startswith(("step ", "shard ")) for line in c.lines()) for c in (reference, other))
    shared_work = sum(line.startswith(("step teacher.", "shard ")) for line in reference.lines())
    repeated = both - (2 * alone - shared_work)
    measured.fault(
        "one of two runs that share a teacher, 3 times",
        "at most 2.5 s after its first step",
        f"{repeated} of {alone} steps and shards",
    )


@pytest.mark.slow
def test_threads_that_open_one_run_at_once_get_the_same(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    storage = Storage(str(tmp_path / "storage"))
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: start_run(make_config(), storage, "one"), range(8)))
    assert len({ref.run_id for ref in found}) == 1
