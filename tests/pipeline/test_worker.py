"""Whole runs on Ray: one worker group, any number of workers, errors that arrive as what they are."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from kit import ROOT
from kit.faults import patience
from kit.runs import metric_steps, mlflow_runs, only_run_key, predictions, read_weights, recorded_rows, versions
from kit.toy import relative_difference, toy_config, without_key_biases

from raydistill.cluster.placement import can_grow
from raydistill.cluster.resources import device_type, worker_resources
from raydistill.cluster.room import Node
from raydistill.config.loading import load_config
from raydistill.config.teacher import ModelTeacher
from raydistill.config.training import Train
from raydistill.config.tree import Config
from raydistill.errors import ConfigError, Interrupted, RaydistillError
from raydistill.pipeline.distill import distill
from raydistill.pipeline.prepare import prepare
from raydistill.storage.artifacts import Artifact
from raydistill.storage.garbage import list_artifacts
from raydistill.storage.ownership import Owner
from raydistill.storage.storage import Storage

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("mlflow_uri")]

QUICKSTART = ROOT / "jobs" / "quickstart.yaml"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy; its teacher is fine-tuned with dropout 0.1."""
    folder = tmp_path_factory.mktemp("inputs")
    toy_config(folder)
    return folder


def shrunk(inputs: Path, storage: Path, *more: str) -> Config:
    """The quick start with the toy's data and teacher, and fewer epochs."""
    return load_config(
        QUICKSTART,
        [
            f"storage={storage}",
            f"data.path={inputs / 'toy.csv'}",
            "data.format=csv",
            "data.max_labeled=60",
            f"teacher.model={inputs / 'encoder'}",
            "teacher.finetune.num_epochs=2",
            "teacher.finetune.learning_rate=0.002",
            "teacher.allow_chance=true",
            "data.split.test=0.1",
            "stages.distill.num_epochs=1",
            "stages.distill.learning_rate=0.001",
            "train.dtype=float32",
            "train.global_batch_size=16",
            "evaluate.bootstrap_samples=100",
            "registry.name=toy",
            *more,
        ],
    )


@dataclass
class Ran:
    results: dict[str, Any]
    storage: Storage
    starts: list[str]
    """Ranks of the workers that began their phases."""


def ranks_started(counts: Path, since: int) -> list[str]:
    lines = counts.read_text().splitlines()[since:]
    return sorted(line.split()[3] for line in lines if line.startswith("start "))


def run(counts: Path, config: Config, **options: Any) -> Ran:
    before = len(counts.read_text().splitlines())
    results = distill(config, **options)
    return Ran(results, Storage(config.storage), ranks_started(counts, before))


@pytest.fixture(scope="module")
def one(ray_cluster: Path, inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return run(ray_cluster, shrunk(inputs, tmp_path_factory.mktemp("one"), "train.num_workers=1"))


def assert_equal_within_rounding(a: Ran, b: Ran) -> None:
    for model in ("teacher", "student", "baseline"):
        mine, theirs = (without_key_biases(read_weights(ran.results[model]["path"])) for ran in (a, b))
        assert max(relative_difference(mine, theirs).values()) < 1e-4
        logits = [predictions(ran.results, ran.storage).outputs[model] for ran in (a, b)]
        np.testing.assert_allclose(logits[0], logits[1], atol=1e-3)


def assert_recorded_once(storage: Storage) -> None:
    signals = [Artifact(storage, row.kind, row.key) for row in list_artifacts(storage) if row.kind == "signals"]
    sizes = sorted(len(recorded_rows(artifact)) for artifact in signals)
    assert sizes == [24, 24, 192]
    assert all(np.array_equal(rows := recorded_rows(artifact), np.arange(len(rows))) for artifact in signals)


def test_the_quick_start_runs_end_to_end_in_one_worker_group(one, mlflow_uri):
    assert one.starts == ["0"]
    assert len(one.storage.list("ray")) == 1
    assert one.results["reused"] == []
    assert one.results["student"]["latency_ms"]["p50"] > 0
    (tracked,) = [r for r in mlflow_runs(mlflow_uri) if r.info.run_id == one.results["run_id"]]
    assert tracked.info.status == "FINISHED"
    assert metric_steps(mlflow_uri, tracked.info.run_id, "train/loss")[-1] == 12
    assert metric_steps(mlflow_uri, tracked.info.run_id, "baseline/train/loss")[-1] == 12
    assert one.results["model_version"] in [int(v.version) for v in versions(mlflow_uri)]
    assert_recorded_once(one.storage)


@pytest.mark.slow
def test_two_workers_give_the_same_student(one, ray_cluster, inputs, tmp_path):
    two = run(ray_cluster, shrunk(inputs, tmp_path, "train.num_workers=2"))
    assert two.starts == ["0", "1"]
    assert len(two.storage.list("ray")) == 1
    assert_equal_within_rounding(one, two)
    assert_recorded_once(two.storage)
    assert two.storage.list("runs") == one.storage.list("runs")


@pytest.mark.slow
def test_a_run_stopped_with_one_worker_goes_on_with_two(one, ray_cluster, inputs, tmp_path):
    sent: list[int] = []

    def stop(entry: Any) -> None:
        if entry["phase"] == "teacher" and not sent:  # early: driver and worker look at each other every 0.2 s
            sent.append(1)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted, match="same command"):
        distill(shrunk(inputs, tmp_path, "train.num_workers=1"), progress=stop)
    again = run(ray_cluster, shrunk(inputs, tmp_path, "train.num_workers=2"))
    assert again.starts == ["0", "1"]
    assert again.storage.read_json("runs", only_run_key(again.storage), "owner.json")["number"] == 2
    assert_equal_within_rounding(one, again)


@pytest.mark.slow
def test_a_mistake_found_in_a_worker_arrives_as_its_own_error_at_once(ray_cluster, inputs, tmp_path):
    before = len(ray_cluster.read_text().splitlines())
    config = shrunk(inputs, tmp_path, "train.num_workers=2", 'teacher.finetune.freeze=["*nothing*"]')
    with pytest.raises(ConfigError) as caught:
        distill(config)
    assert str(caught.value).startswith("teacher.finetune.freeze: '*nothing*' matches no parameter")
    assert "Traceback" not in str(caught.value)
    assert ranks_started(ray_cluster, before) == ["0", "1"]


@pytest.mark.slow
def test_a_mistake_that_meets_one_rank_ends_the_others_as_well(ray_cluster, inputs, tmp_path):
    """Such as a model that only one node cannot load: the others wait at the next collective, for up to 30 minutes."""
    import raydistill.pipeline.worker as module

    def phases(place):
        if place.group.rank == 1:
            raise ConfigError("of one rank")
        place.group.barrier()

    config = shrunk(inputs, tmp_path, "train.num_workers=2", "train.max_failures=0")
    prepared = prepare(config, Storage(config.storage))
    job = replace(prepared.job(Owner.acquire(prepared.storage, "runs", prepared.run_key), None), run=None)
    started = time.monotonic()
    with pytest.raises(ConfigError, match="of one rank"):
        module.run_workers(job, lambda entry: None, threading.Event(), phases)
    assert time.monotonic() - started < module.TOGETHER_SECONDS + patience(60)


def test_more_workers_than_the_cluster_can_hold_are_refused_at_once(ray_cluster, inputs, tmp_path):
    before = len(ray_cluster.read_text().splitlines())
    with pytest.raises(
        ConfigError, match=r"workers need 3 × \(1 CPU\); 1 node with 2 CPU hold 2 of them\. Lower train\.num_w"
    ):
        distill(shrunk(inputs, tmp_path, "train.num_workers=3"))
    assert ranks_started(ray_cluster, before) == []
    assert not Path(tmp_path, "ray").exists()
    assert Storage(str(tmp_path)).exists("runs", only_run_key(Storage(str(tmp_path))), "owner.json")


def test_on_a_cluster_that_others_own_room_is_looked_for_first(ray_cluster, inputs, tmp_path, monkeypatch):
    """Nodes may come there; so many minutes are waited for them, here none."""
    import ray

    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
    before = len(ray_cluster.read_text().splitlines())
    with pytest.raises(RaydistillError, match=r"3 × \(1 CPU\); 1 node with 2 CPU hold 2 of them\. The run gave up"):
        distill(shrunk(inputs, tmp_path, "train.num_workers=3", "train.max_wait_minutes=0"))
    assert ranks_started(ray_cluster, before) == []


def test_a_process_that_joined_a_cluster_waits_for_nodes_and_computes_as_its_nodes_do(ray_cluster, monkeypatch):
    """An actor's raylet may know no RAY_ADDRESS, and ``ray.init(address)`` sets none."""
    import ray

    def seen() -> tuple[bool, str, float]:
        os.environ.pop("RAY_ADDRESS", None)
        with pytest.MonkeyPatch.context() as patch:  # a head without a GPU, before nodes with one
            patch.setattr("raydistill.cluster.resources.known_nodes", lambda: [Node("head", {"CPU": 2.0, "GPU": 1.0})])
            config = Config.model_construct(train=Train(num_workers=3), teacher=ModelTeacher(model="x"))
            return can_grow(), device_type(config), worker_resources(config.train, is_trial=True)["GPU"]

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert ray.get(ray.remote(seen).remote()) == (True, "cuda", 1.0)
    assert not can_grow()  # this process has started it


def test_ray_hands_on_what_a_group_found_without_opening_it(local, monkeypatch):
    """Its controller would import all of torch and transformers for it."""
    import raydistill.pipeline.worker as module

    job: Any = SimpleNamespace(config=Config.model_construct(train=Train()), storage=local, folder="")
    monkeypatch.setattr(module, "_worker", lambda job, phases: phases("place"))
    run = module.make_trainer(job, lambda place: [place], "x", {"CPU": 1.0}).train_loop_per_worker
    assert isinstance(run(), bytes)
    done: Any = SimpleNamespace(fit=lambda: SimpleNamespace(return_value=run()))
    assert module.outcome_of(done) == ["place"]


def test_the_dashboard_is_shown_no_config(ray_cluster, inputs, tmp_path):
    """Ray shows a trainer's settings as they print."""
    from raydistill.pipeline.worker import make_trainer

    config = shrunk(inputs, tmp_path, 'tracking.tags={"note": "hunter22"}')
    prepared = prepare(config, Storage(config.storage))
    job = replace(prepared.job(Owner.acquire(prepared.storage, "runs", prepared.run_key), None), run=None)
    trainer = make_trainer(job, lambda place: None, "x", {"CPU": 1.0})
    assert trainer.train_loop_config is None
    assert "hunter22" in repr(job)
    assert "hunter22" not in f"{trainer.run_config} {trainer.scaling_config} {trainer.backend_config}"
