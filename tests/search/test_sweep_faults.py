"""Whole sweeps whose driver, or one of whose trial actors, is killed at moments drawn at random under a fixed seed."""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kit.runs import Command, check_artifacts, mlflow_runs, read_weights, replay, same_weights, write_config
from kit.toy import toy_config

from raydistill.config.loading import load_config
from raydistill.search.ledger import Ledger, Trial
from raydistill.storage.artifacts import Artifact
from raydistill.storage.storage import Storage

CHECKPOINT_STEPS, NUM_STEPS, NUM_TRIALS, NUM_SEEDS = 5, 96, 4, 2
AT_ONCE = 2
STEP = "step student.distill "


def make_config(folder: Path) -> Path:
    """Four trials of 96 steps, two at a time; finals with two seeds."""
    sweep = {
        "space": {
            "stages.distill.learning_rate": {"loguniform": [1e-4, 3e-3]},
            "stages.distill.losses.kd.temperature": {"uniform": [1, 6]},
        },
        "search": "random",
        "scheduler": "none",
        "num_trials": NUM_TRIALS,
        "max_concurrent_trials": AT_ONCE,
        "final_seeds": NUM_SEEDS,
    }
    config = toy_config(
        folder,
        stages__distill__num_epochs=8,
        teacher__finetune__num_epochs=2,
        evaluate__baseline=False,
        train__num_workers=1,
        train__checkpoint_steps=CHECKPOINT_STEPS,
        sweep=sweep,
    )
    return write_config(folder, config)


def start(config: Path, folder: Path) -> Command:
    return Command(config, folder / "counts", name="sweep")


def read_ledger(folder: Path, name: str) -> dict[int, Trial]:
    """The trials that storage knows of, which is what another process would find."""
    storage = Storage(str(folder / "storage"))
    keys = [key for key in storage.list("runs") if storage.list("runs", key, "trials")]
    return {trial.number: trial for key in keys for trial in Ledger(storage, ("runs", key), name=name)}


def completed(folder: Path) -> dict[tuple[str, int], Trial]:
    """Finished trials and finals."""
    ledgers = [(name, read_ledger(folder, name)) for name in ("trials", "finals")]
    return {(name, n): trial for name, known in ledgers for n, trial in known.items() if trial.state == "completed"}


def student_steps(command: Command) -> list[list[str]]:
    return [line.split() for line in command.lines() if line.startswith(STEP)]


def kill_driver(command: Command, steps: int) -> None:
    """Kill the driver once so many steps were taken, some of them by actors of its own."""
    before = {fields[-1] for fields in student_steps(command)}

    def is_due() -> bool:
        taken = student_steps(command)
        return len(taken) >= steps and any(fields[-1] not in before for fields in taken)

    assert command.wait_until(is_due), command.err.read_text()
    command.kill(signal.SIGKILL)
    command.process.wait()


def check_work(counts: Path, num_students: int, repeated: int) -> int:
    """Every step of every student was taken, and at most so many of them twice, which are counted; the teacher once."""
    lines = [line.split() for line in counts.read_text().splitlines()]
    steps = Counter(int(fields[2]) for fields in lines if " ".join(fields[:2]) == STEP.strip())
    assert steps.keys() == set(range(NUM_STEPS))
    more = [count - num_students for count in steps.values()]
    assert min(more) >= 0
    assert sum(more) <= repeated < NUM_STEPS
    others = Counter(tuple(fields[:3]) for fields in lines if fields[0] == "shard" or fields[1] == "teacher.finetune")
    assert set(others.values()) == {1}
    return sum(more)


def check_end(folder: Path, summary: dict[str, Any], repeated: int) -> int:
    """Everything is there, and no more than so many steps were repeated: fewer than one trial has; how many were."""
    trials, finals = read_ledger(folder, "trials"), read_ledger(folder, "finals")
    assert summary["counts"]["completed"] == sum(summary["counts"].values()) == NUM_TRIALS
    assert summary["stopped_by"] == "num_trials"
    assert {trial.state for trial in finals.values()} == {"completed"}
    assert all(len(finalist["seeds"]) == NUM_SEEDS for finalist in summary["finalists"])
    assert all(seed["test"].keys() == seed["validation"].keys() for f in summary["finalists"] for seed in f["seeds"])
    assert summary["results"]["student"]["path"] == summary["winner"]["path"]
    everything = [*trials.values(), *finals.values()]
    assert len({trial.student for trial in everything}) == len(everything)
    assert len(everything) == NUM_TRIALS + len(summary["finalists"]) * NUM_SEEDS
    for trial in everything:
        assert [entry["step"] for entry in trial.history] == [12 * n for n in range(1, 9)]
    again = check_work(folder / "counts", len(everything), repeated)
    storage = Storage(str(folder / "storage"))
    check_artifacts(storage)
    work = ("runs", summary["sweep_key"], "work")
    assert storage.list(*work) == []  # checkpoints, and metrics that all reached MLflow
    runs = mlflow_runs(f"sqlite:///{folder / 'storage' / 'mlflow.db'}")
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert len(runs) == 2 + len(everything)  # the sweep, the winner's line, its trials
    return again


def check_students(folder: Path, config: Path, numbers: list[int]) -> None:
    """Trials that went through kills have the student that distill trains from their settings."""
    loaded, trials = load_config(config), read_ledger(folder, "trials")
    for number in numbers:
        trial = trials[number]
        mine = Artifact(Storage(loaded.storage), "student", str(trial.student)).local() / "model"
        theirs = replay(loaded, ((0, trial.params),), folder / "alone")
        assert same_weights(read_weights(mine), read_weights(theirs)), number


def draw_moments() -> list[int]:
    """Student steps after which the driver dies: once in the search, once in the finals."""
    draw = np.random.default_rng(2027)
    search = NUM_TRIALS * NUM_STEPS
    first = draw.integers(20, search - 2 * CHECKPOINT_STEPS * AT_ONCE)
    # beyond what the kill before may have repeated, so that the search is over for sure
    return [int(first), int(search + draw.integers(2 * CHECKPOINT_STEPS * AT_ONCE, NUM_STEPS))]


@pytest.mark.slow
def test_a_driver_killed_in_search_and_finals_loses_no_finished_trial(tmp_path, measured):
    config = make_config(tmp_path)
    command, kept, open_trials = None, {}, set()
    try:
        for steps in draw_moments():
            command = start(config, tmp_path)
            kill_driver(command, steps)
            found = completed(tmp_path)
            assert found.items() >= kept.items()  # to the last digit and second
            kept = found
            trials = read_ledger(tmp_path, "trials").values()
            open_trials |= {trial.number for trial in trials if trial.state == "running"}
        assert read_ledger(tmp_path, "finals")
        command = start(config, tmp_path)
        code, summary, err = command.end()
    finally:
        left = command.clean_up() if command else []
    assert code == 0, err
    assert left == []
    assert completed(tmp_path).items() >= kept.items()
    assert len(kept) >= NUM_TRIALS
    assert open_trials
    repeated = check_end(tmp_path, summary, 2 * AT_ONCE * CHECKPOINT_STEPS)
    check_students(tmp_path, config, sorted(open_trials)[:1])
    begun = len(command.lines())
    again = start(config, tmp_path)
    code, same, _ = again.end()
    assert (code, same) == (0, summary)
    assert len(again.lines()) == begun
    when = f"steps {', '.join(map(str, draw_moments()))} of all trials"
    measured.fault("driver of a sweep, twice", when, f"{repeated} steps")


@pytest.mark.chaos
def test_a_killed_trial_actor_is_replaced_and_its_trial_goes_on(tmp_path, measured):
    config = make_config(tmp_path)
    steps = int(np.random.default_rng(5).integers(2 * NUM_STEPS + 10, 3 * NUM_STEPS))
    command = start(config, tmp_path)
    try:
        assert command.wait_until(lambda: len(student_steps(command)) >= steps), command.err.read_text()
        victim = student_steps(command)[-1]
        os.kill(int(victim[-1]), signal.SIGKILL)
        code, summary, err = command.end()
    finally:
        left = command.clean_up()
    assert code == 0, err
    assert left == []
    assert len({fields[-1] for fields in student_steps(command)}) >= AT_ONCE + 1
    repeated = check_end(tmp_path, summary, CHECKPOINT_STEPS)
    check_students(tmp_path, config, [NUM_TRIALS - 1])
    measured.fault("actor of a trial", f"step {steps} of all trials", f"{repeated} steps")
