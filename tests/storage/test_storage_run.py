"""Whole runs on object storage, and several processes at once in one storage."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from kit.runs import (
    Command,
    artifacts_of_run,
    check_artifacts,
    find_run,
    keys_by_kind,
    mlflow_runs,
    read_weights,
    same_weights,
    versions,
    write_config,
)
from kit.toy import toy_config

from raydistill.config.loading import load_config
from raydistill.errors import TrackingError
from raydistill.pipeline.distill import distill
from raydistill.storage.storage import Storage

SHORT = {"teacher__finetune__num_epochs": 2, "stages__distill__num_epochs": 1}


@pytest.mark.slow
def test_a_run_on_s3_equals_one_on_a_local_disk(remote, tmp_path, monkeypatch):
    local = distill(load_config(toy_config(tmp_path, **SHORT)))
    config = load_config(toy_config(tmp_path, **SHORT, storage=remote.url))
    with pytest.raises(TrackingError, match="MLFLOW_TRACKING_URI"):
        distill(config)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    results = distill(config)
    assert keys_by_kind(remote) == keys_by_kind(Storage(str(tmp_path / "storage")))
    assert check_artifacts(remote) == 10
    for model in ("student", "teacher", "baseline"):
        assert results[model]["test"] == local[model]["test"]
        assert same_weights(read_weights(results[model]["path"]), read_weights(local[model]["path"]))
    (run,) = mlflow_runs(uri)
    assert run.info.status == "FINISHED"
    assert run.info.artifact_uri.startswith(f"{remote.url}/mlruns")
    cache = tmp_path / "node-cache"
    assert not list(cache.rglob("metrics.jsonl"))  # MLflow has all of it
    shutil.rmtree(cache)  # or another node
    again = distill(config)
    assert again["reused"] == ["run"]
    for model in ("student", "teacher", "baseline"):
        assert same_weights(read_weights(again[model]["path"]), read_weights(local[model]["path"]))


def run_together(tmp_path: Path, *configs: dict[str, Any]) -> list[dict[str, Any]]:
    """Start one process a config at the same moment; all must end well. Their results."""
    files = [write_config(tmp_path, config, f"{number}.yaml") for number, config in enumerate(configs)]
    with ExitStack() as stack:
        commands = [stack.enter_context(Command(file, tmp_path / "counts")) for file in files]
        return [command.results() for command in commands]


@pytest.mark.slow
def test_two_processes_with_one_config_make_one_run(tmp_path):
    config = toy_config(tmp_path, **SHORT)
    first, second = run_together(tmp_path, config, config)
    uri = f"sqlite:///{tmp_path / 'storage' / 'mlflow.db'}"
    assert first["run_id"] == second["run_id"]
    assert sorted([first["reused"], second["reused"]])[-1] == ["run"]
    assert [run.info.run_id for run in mlflow_runs(uri)] == [first["run_id"]]
    assert [int(version.version) for version in versions(uri)] == [1]
    assert check_artifacts(Storage(str(tmp_path / "storage"))) == 10
    steps = [line for line in (tmp_path / "counts").read_text().splitlines() if line.startswith("step ")]
    assert len(steps) == len({" ".join(line.split()[:3]) for line in steps})


@pytest.mark.slow
def test_two_students_at_once_share_teacher_and_signals(tmp_path):
    changed = {**SHORT, "student__num_layers": 1}
    first, second = run_together(tmp_path, toy_config(tmp_path, **SHORT), toy_config(tmp_path, **changed))
    storage = Storage(str(tmp_path / "storage"))
    assert first["run_id"] != second["run_id"]
    mine, theirs = (artifacts_of_run(storage, find_run(results, storage)) for results in (first, second))
    for kind in ("data", "tokens", "teacher", "signals"):
        assert mine[kind] == theirs[kind]
    assert len(mine["signals"]) == 3
    assert first["teacher"]["test"] == second["teacher"]["test"]
    assert first["student"]["num_parameters"] > second["student"]["num_parameters"]
    assert check_artifacts(storage) == 1 + 1 + 1 + 1 + 3 + 2 * 3
    uri = f"sqlite:///{tmp_path / 'storage' / 'mlflow.db'}"
    assert sorted(int(version.version) for version in versions(uri)) == [1, 2]
    assert {run.info.status for run in mlflow_runs(uri)} == {"FINISHED"}
