"""What a run leaves for later judgements, and how a model's own test rows are found again."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path

import numpy as np
import pytest
from kit.toy import toy_config
from mlflow import MlflowClient

from raydistill.config.loading import load_config, load_data
from raydistill.deploy.inference import evaluate_model
from raydistill.deploy.own_rows import find_test_rows
from raydistill.errors import ArtifactError, ConfigError, TrackingError
from raydistill.evaluate.evidence import read_kept_predictions, read_seen
from raydistill.pipeline.distill import distill
from raydistill.storage.storage import Storage
from raydistill.tasks.text_classification import TextClassification
from raydistill.tracking.endpoint import tracking_uri

TASK = TextClassification(("film", "money", "sport"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("run")
    results = distill(load_config(toy_config(folder)))
    return folder, results


@pytest.fixture(scope="module")
def storage(made: tuple[Path, dict]) -> str:
    return str(made[0] / "storage")


def source_rows(folder: Path) -> dict[str, str]:
    """Text -> label of the source, read without the product."""
    with (folder / "toy.csv").open() as file:
        return {row["text"]: row["label"] for row in csv.DictReader(file)}


def test_seen_rows_are_all_rows_but_those_of_test(made: tuple[Path, dict], storage: str) -> None:
    folder, results = made
    uri = tracking_uri(Storage(storage))
    seen, kept = read_seen(results["run_id"], uri), read_kept_predictions(results["run_id"], uri)
    assert seen is not None
    assert kept is not None
    hashes = {hashlib.sha256(text.encode()).hexdigest()[:32] for text in source_rows(folder)}
    known = {value.hex() for value in seen.table.column("hash").to_pylist()}
    assert known | set(kept.hashes) == hashes
    assert not known & set(kept.hashes)
    splits = seen.table.column("split").to_pylist()
    counts = {split: splits.count(split) for split in ("train", "validation")}
    assert counts == {split: results["data"]["num_rows"][split] for split in counts}
    some = sorted(known)[:5]
    assert sum(seen.leaked([*some, *kept.hashes, "0" * 32]).values()) == 5
    assert set(kept.outputs) == set(kept.tasks) == {"teacher", "student", "baseline"}


@pytest.mark.parametrize("kind", ["folder", "runs", "models", "teacher"])
def test_a_models_own_test_rows_are_found(made: tuple[Path, dict], storage: str, kind: str) -> None:
    folder, results = made
    name = {
        "folder": results["student"]["path"],
        "runs": f"runs:/{results['run_id']}/student",
        "models": "models:/toy@challenger",
        "teacher": results["teacher"]["path"],
    }[kind]
    rows = find_test_rows(name, TASK, None, "test", storage)
    wanted, labels = source_rows(folder), [rows.task.spoken_target(value) for value in rows.targets.values]
    assert rows.num_rows == results["data"]["num_rows"]["test"]
    assert all(wanted[text] == label for text, label in zip(rows.texts, labels, strict=True))  # type: ignore[index]
    kept = read_kept_predictions(results["run_id"], tracking_uri(Storage(storage)))
    assert kept is not None
    assert rows.hashes == kept.hashes


def test_evaluate_takes_them_and_finds_the_figures_of_the_run(made: tuple[Path, dict], storage: str) -> None:
    _, results = made
    scores = evaluate_model("models:/toy@challenger", storage=storage)
    expected = results["student"]["test"]["accuracy"]["value"]
    assert scores["metrics"]["accuracy"]["value"] == pytest.approx(expected, abs=1e-6)
    assert scores["notes"] == []
    baseline = evaluate_model(results["baseline"]["path"], storage=storage, split="validation")
    expected = results["baseline"]["validation"]["accuracy"]["value"]
    assert baseline["metrics"]["accuracy"]["value"] == pytest.approx(expected, abs=1e-6)


def test_rows_given_by_hand_come_first(made: tuple[Path, dict], storage: str) -> None:
    folder, _ = made
    rows = find_test_rows("models:/toy@challenger", TASK, load_data(str(folder / "toy.csv")), "test", storage)
    assert rows.num_rows == 240


def test_what_cannot_be_found_is_said(made: tuple[Path, dict], storage: str, tmp_path: Path) -> None:
    for name in (str(tmp_path), "pkg://somewhere/model"):
        with pytest.raises(ConfigError, match=r"comes from no run of the storage .* --data"):
            find_test_rows(name, TASK, None, "test", storage)
    with pytest.raises(TrackingError, match="no alias 'champion'"):
        find_test_rows("models:/toy@champion", TASK, None, "test", storage)
    with pytest.raises(TrackingError, match="names no version"):
        find_test_rows("models:/toy", TASK, None, "test", storage)
    with pytest.raises(TrackingError, match="no such run"):
        find_test_rows("runs:/0123456789abcdef0123456789abcdef/student", TASK, None, "test", storage)


def test_a_run_without_evidence_gives_none_and_damaged_evidence_is_named(
    made: tuple[Path, dict], storage: str, tmp_path: Path
) -> None:
    _, results = made
    uri = tracking_uri(Storage(storage))
    client = MlflowClient(tracking_uri=uri)
    run = client.create_run(client.get_run(results["run_id"]).info.experiment_id).info.run_id
    assert read_seen(run, uri) is None
    assert read_kept_predictions(run, uri) is None
    (tmp_path / "seen-rows.parquet").write_bytes(np.random.default_rng(0).bytes(200))
    client.log_artifact(run, str(tmp_path / "seen-rows.parquet"), "evaluation")
    with pytest.raises(ArtifactError, match=r"seen-rows\.parquet of the run cannot be read"):
        read_seen(run, uri)
