"""Runs with perturbed test rows: what is predicted, by one worker or two, kept, resumed and looked at again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kit.finished import NUMBERS, WRITERS
from kit.ranks import run_ranks
from kit.runs import artifacts_of_run, check_artifacts, find_run, make_context, perturbed_artifacts
from kit.tiny import tiny_tokenizer
from kit.toy import TOPICS, toy_config
from rich.console import Console
from tokenizers import normalizers

from raydistill.cli.show.results import print_found
from raydistill.config.loading import load_config
from raydistill.config.tree import Config
from raydistill.data.perturbations import perturbed_splits, rewrite
from raydistill.data.rows import read_texts
from raydistill.deploy.opening import open_folder
from raydistill.evaluate.compare import read_predictions
from raydistill.pipeline import measure
from raydistill.pipeline.distill import distill
from raydistill.pipeline.job import Job
from raydistill.pipeline.phases import run_phases
from raydistill.pipeline.prepare import prepare
from raydistill.storage.garbage import collect_garbage
from raydistill.storage.ownership import Owner
from raydistill.storage.storage import Storage
from raydistill.teacher import record

pytestmark = pytest.mark.usefixtures("mlflow_uri")


def robust_config(folder: Path, **changes: Any) -> Config:
    return load_config(toy_config(folder, **{"evaluate__robustness": True, "data__split": {"test": 0.3}, **changes}))


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Storage, Path]:
    folder = tmp_path_factory.mktemp("robust")
    config = robust_config(folder)
    return distill(config), Storage(config.storage), folder


@pytest.mark.slow
def test_kept_outputs_are_the_models_answers_to_the_texts_so_written(
    ran: tuple[dict[str, Any], Storage, Path],
) -> None:
    results, storage, _ = ran
    tokens, found = perturbed_artifacts(results)
    (data,) = artifacts_of_run(storage, find_run(results, storage))["data"]
    assert perturbed_splits(tokens) == ["test-upper", "test-typos", "test-half"]  # its words are in lower case
    for name in ("upper", "typos"):
        (texts,) = rewrite(read_texts(data, "test"), name, 0)
        outputs = read_predictions(found.local(), f"test-{name}")
        for model in ("teacher", "student", "baseline"):
            predictor = open_folder(Path(results[model]["path"]), 20, "cpu")
            np.testing.assert_allclose(outputs.outputs[model], predictor.outputs(texts.to_pylist()), atol=2e-3)
    assert check_artifacts(storage)


@pytest.mark.slow
def test_results_are_those_of_what_is_kept(ran: tuple[dict[str, Any], Storage, Path]) -> None:
    results, _, _ = ran
    _, found = perturbed_artifacts(results)
    robustness = results["robustness"]
    assert robustness["perturbations"]["lower"]["same_because"] == "the texts have no upper-case letter"
    for name in ("upper", "typos", "half"):
        outputs = read_predictions(found.local(), f"test-{name}")
        assert outputs.targets.labeled.all()
        for model, figure in robustness["perturbations"][name]["models"].items():
            hits = outputs.outputs[model].argmax(axis=1) == outputs.targets.values
            assert figure["value"] == pytest.approx(hits.mean(), rel=1e-5)
            change = hits.mean() - results[model]["test"]["accuracy"]["value"]
            assert figure["change"]["value"] == pytest.approx(change, abs=1e-5)
    page = Path(results["report"]).read_text("utf-8")
    assert '<section id="robustness"' in page
    assert '<section id="pairs"' in page
    console = Console(width=80)
    with console.capture() as shown:
        print_found(console, results)
    assert max(map(len, shown.get().splitlines())) <= 80
    assert "with typos, %" in shown.get()


@pytest.mark.slow
def test_another_run_makes_nothing_twice_and_garbage_leaves_it(
    ran: tuple[dict[str, Any], Storage, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another student: the teacher has answered the perturbed rows; a run without them finds all that it needs."""
    results, storage, folder = ran
    before = perturbed_artifacts(results)
    collect_garbage(storage, older_than_seconds=0)
    assert all(artifact.exists() for artifact in before)
    monkeypatch.setattr(record, "record_shard", None)
    other = distill(robust_config(folder, stages__distill__learning_rate=2e-3))
    assert {"signals of test-upper", "signals of test-typos", "signals of test-half"} <= set(other["reused"])
    teachers = [r["robustness"]["perturbations"]["typos"]["models"]["teacher"] for r in (results, other)]
    assert teachers[0] == teachers[1]
    without = distill(robust_config(folder, evaluate__robustness=False))
    assert without["robustness"] is None
    assert "evaluation" in without["reused"]
    assert {m: without[m]["test"] for m in ("teacher", "student")} == {
        m: results[m]["test"] for m in ("teacher", "student")
    }


@pytest.mark.slow
def test_what_was_done_before_the_end_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, write = robust_config(tmp_path), measure.write_predictions

    def fail(folder: Path, split: str, *rest: Any, **more: Any) -> Path:
        if split == "test-half":
            raise KeyboardInterrupt
        return write(folder, split, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(measure, "write_predictions", fail)
        with pytest.raises(KeyboardInterrupt):
            distill(config)
    monkeypatch.setattr(record, "record_shard", None)
    results = distill(config)
    assert {"student", "evaluation", "signals of test-half"} <= set(results["reused"])
    assert "robustness" not in results["reused"]
    assert results["robustness"]["perturbations"]["half"]["models"] is not None


def phases_in_ranks(job: Job) -> dict[str, np.ndarray]:
    """What a rank finds in the artefact of the perturbed rows after all phases."""
    outcome = run_phases(make_context(job))
    assert outcome.robustness is not None
    assert job.perturbed is not None
    folder = outcome.robustness.local()
    return {
        f"{split} {model}": found
        for split in perturbed_splits(job.perturbed)
        for model, found in read_predictions(folder, split).outputs.items()
    }


@pytest.mark.slow
def test_two_workers_are_one(tmp_path: Path, ran: tuple[dict[str, Any], Storage, Path]) -> None:
    """The same models are at the rows again, their answers and the teacher's recording of them being gone."""
    results, storage, folder = ran
    tokens, found = perturbed_artifacts(results)
    alone = {split: read_predictions(found.local(), split).outputs for split in perturbed_splits(tokens)}
    made = artifacts_of_run(storage, find_run(results, storage))["signals"]
    for artifact in [found, *(one for one in made if one.manifest().parents["tokens"] == tokens.digest)]:
        artifact.delete()
    config = robust_config(folder)
    prepared = prepare(config, storage)
    job = prepared.job(Owner.acquire(storage, "runs", prepared.run_key), None)
    first, second = run_ranks(phases_in_ranks, 2, tmp_path / "ranks", job)
    assert len(first) == 9
    for name, outputs in first.items():
        split, model = name.split()
        np.testing.assert_array_equal(outputs, second[name])
        np.testing.assert_allclose(outputs, alone[split][model], atol=1e-5)


@pytest.mark.slow
def test_an_uncased_tokenizer_is_named_and_not_measured(tmp_path: Path) -> None:
    config = toy_config(tmp_path, evaluate__robustness=True, evaluate__baseline=False)
    tokenizer = tiny_tokenizer("bert")
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.save_pretrained(tmp_path / "encoder")
    rows = Path(config["data"]["path"])
    head, *lines = rows.read_text().splitlines()
    rows.write_text("\n".join([head, *(line[0].upper() + line[1:] for line in lines)]) + "\n")
    results = distill(load_config(config))
    for name in ("lower", "upper"):
        one = results["robustness"]["perturbations"][name]
        assert (one["rows_changed"], one["models"]) == (0.0, None)
        assert one["same_because"] == "the tokenizer makes no difference between cases"
    tokens, _ = perturbed_artifacts(results)
    assert perturbed_splits(tokens) == ["test-typos", "test-half"]
    assert set(results["labels"]) == set(TOPICS)


@pytest.mark.slow
def test_numbers_are_compared_by_their_correlation(tmp_path: Path) -> None:
    rows = WRITERS[NUMBERS](tmp_path / "rows.csv", 200)
    kd = {"type": "logit_mse"}
    own = {"task": {"type": NUMBERS}, "data__path": str(rows), "data__max_labeled": None, "evaluate__baseline": False}
    results = distill(robust_config(tmp_path, **own, stages__distill__losses__kd=kd))
    robustness = results["robustness"]
    assert robustness["metric"] == "pearson"
    _, found = perturbed_artifacts(results)
    outputs = read_predictions(found.local(), "test-half")
    value = np.corrcoef(outputs.outputs["student"][:, 0], outputs.targets.values)[0, 1]
    assert robustness["perturbations"]["half"]["models"]["student"]["value"] == pytest.approx(value, rel=1e-3)
