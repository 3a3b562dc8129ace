"""Several seeds in one run: what they share, which one counts, what is told of them, and that a stopped run goes on."""

from __future__ import annotations

import os
import signal
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kit.runs import artifacts_of_run, find_run, keys_by_kind, metric_steps, read_weights, same_weights
from kit.toy import toy_config

from raydistill.config.loading import load_config
from raydistill.config.tree import Config
from raydistill.errors import Interrupted
from raydistill.evaluate.compare import read_predictions
from raydistill.evaluate.report.card import model_card
from raydistill.pipeline.distill import distill
from raydistill.pipeline.plan import make_plan
from raydistill.storage.storage import Storage
from raydistill.tracking.endpoint import tracking_uri

SEEDS = (0, 1, 2)
Run = tuple[dict[str, Any], Storage, Path]


def config_of(folder: Path, **changes: Any) -> Config:
    own = {"evaluate__seeds": 3, "evaluate__tfidf": False, "teacher__finetune__num_epochs": 3}
    return load_config(toy_config(folder, **(own | changes)))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("seeds")
    config = config_of(folder)
    return distill(config), Storage(config.storage), folder


@pytest.mark.slow
def test_seeds_share_all_but_student_and_baseline(run: Run) -> None:
    _, storage, _ = run
    found = {kind: len(keys) for kind, keys in keys_by_kind(storage).items() if keys}
    shared = {"data": 1, "tokens": 1, "teacher": 1, "signals": 3}
    evaluations = found.pop("evaluation")
    assert found == {**shared, "student": 3, "baseline": 3}
    assert evaluations in (3, 4)  # one more where median student and median baseline are of two seeds
    (key,) = storage.list("runs")
    assert not [name for name in storage.list("runs", key) if "seed" in name]  # no checkpoint is left


@pytest.mark.slow
def test_each_seed_is_the_student_of_that_seed_alone(run: Run) -> None:
    """So that a run of one of them trains nothing."""
    results, storage, folder = run
    before = keys_by_kind(storage, "evaluation")
    for seed in SEEDS:
        alone = distill(config_of(folder, evaluate__seeds=1, train__seed=seed))
        assert {"student", "baseline"} <= set(alone["reused"])
        for name in ("student", "baseline"):
            (told,) = [values for values in results["seeds"][name]["values"] if values["seed"] == seed]
            assert told["accuracy"] == alone[name]["test"]["accuracy"]["value"]
        assert (alone["student"]["path"] == results["student"]["path"]) == (results["seeds"]["student"]["seed"] == seed)
    assert keys_by_kind(storage, "evaluation") == before


@pytest.mark.slow
def test_the_median_by_validation_counts_and_the_table_tells_mean_and_spread(run: Run) -> None:
    results, storage, folder = run
    seeds = results["seeds"]
    assert seeds["num"] == 3
    for name in ("student", "baseline"):
        reached = {}
        for seed in SEEDS:
            alone = distill(config_of(folder, evaluate__seeds=1, train__seed=seed))
            reached[seed] = alone[name]["validation"]["accuracy"]["value"]
        assert seeds[name]["seed"] == sorted(SEEDS, key=lambda seed: reached[seed])[1]
        assert reached[seeds[name]["seed"]] == statistics.median(reached.values())
        assert results[name]["validation"]["accuracy"]["value"] == statistics.median(reached.values())
        for metric, found in seeds[name]["test"].items():
            values = [entry[metric] for entry in seeds[name]["values"]]
            assert found["mean"] == pytest.approx(np.mean(values), rel=1e-5)
            assert found["sd"] == pytest.approx(np.std(values, ddof=1), rel=1e-4, abs=1e-6)
    around = seeds["student"]["test"]["accuracy"]
    told = f"{100 * around['mean']:.1f} ± {100 * around['sd']:.1f}"
    assert f"Over 3 seeds, mean ± standard deviation: accuracy {told} % with the teacher, " in results["verdict"]
    assert told in Path(results["report"]).read_text("utf-8")
    assert f"seed {seeds['student']['seed']}, the median of 3;" in model_card(results)
    assert f"the student of seed {seeds['student']['seed']}" in results["notes"][-1]
    (evaluation,) = [
        artifact
        for artifact in artifacts_of_run(storage, find_run(results, storage))["evaluation"]
        if set(artifact.manifest().parents.values()) >= parents_of(results, storage)
    ]
    kept = read_predictions(evaluation.local(), "test")
    value = (kept.outputs["student"].argmax(1) == kept.targets.values).mean()
    assert results["student"]["test"]["accuracy"]["value"] == pytest.approx(value, rel=1e-5)


def parents_of(results: dict[str, Any], storage: Storage) -> set[str]:
    """Digests of the student and the baseline that results show."""
    made = artifacts_of_run(storage, find_run(results, storage))
    return {
        artifact.digest
        for name in ("student", "baseline")
        for artifact in made[name]
        if artifact.key in results[name]["path"]
    }


@pytest.mark.slow
def test_metrics_of_later_seeds_have_a_prefix(run: Run) -> None:
    results, storage, _ = run
    uri = tracking_uri(storage)
    steps = metric_steps(uri, results["run_id"], "train/loss")
    assert steps == sorted(set(steps))
    for name in ("seed-1/train/loss", "seed-2/baseline/train/loss"):
        assert metric_steps(uri, results["run_id"], name) == steps


@pytest.mark.slow
def test_plan_names_every_student(run: Run) -> None:
    _, _, folder = run
    states = {phase["phase"]: phase["state"] for phase in make_plan(config_of(folder, evaluate__seeds=4))["phases"]}
    known = ["student", "student (seed 1)", "student (seed 2)", "baseline (seed 2)"]
    assert [states[name] for name in known] == ["there"] * 4
    assert (states["student (seed 3)"], states["baseline (seed 3)"]) == ("to do", "to do")


@pytest.mark.slow
@pytest.mark.parametrize(("phase", "seed"), [("student", 1), ("baseline", 2)])
def test_a_stopped_run_goes_on_in_its_seed(run: Run, tmp_path: Path, phase: str, seed: int) -> None:
    results, _, folder = run
    for name in ("toy.csv", "encoder"):
        (tmp_path / name).symlink_to(folder / name)

    def stop(entry: Any) -> None:
        if entry["phase"] == phase and f"seed-{seed}" in entry.get("note", "") and entry.get("done", 0) >= 4:
            os.kill(os.getpid(), signal.SIGTERM)

    config = config_of(tmp_path)
    with pytest.raises(Interrupted):
        distill(config, progress=stop)
    storage = Storage(config.storage)
    assert len(keys_by_kind(storage)[phase]) == seed  # those before it
    (key,) = storage.list("runs")
    assert storage.read_json("runs", key, f"{phase}-seed-{seed}", "distill", "last.json")["step"] >= 4
    again = distill(config)
    assert "teacher" in again["reused"]
    assert again["seeds"] == results["seeds"]
    for name in ("student", "baseline"):
        assert same_weights(read_weights(again[name]["path"]), read_weights(results[name]["path"]))
