"""Whole runs in local mode: what they compute, reuse, track, register and keep, and how they go on after Ctrl-C."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kit.runs import (
    Command,
    artifacts_of_run,
    check_artifacts,
    find_run,
    keys_by_kind,
    metric_steps,
    mlflow_runs,
    predictions,
    read_weights,
    same_weights,
    versions,
    write_config,
)
from kit.tiny import save_tiny
from kit.toy import TOPICS, relative_difference, toy_config, without_key_biases, write_toy_csv
from mlflow import MlflowClient
from rich.console import Console

from raydistill.cli.show.results import print_found
from raydistill.config.loading import load_config
from raydistill.config.teacher import MODES
from raydistill.data.rows import Rows
from raydistill.deploy.opening import open_folder
from raydistill.errors import Interrupted, ModelError
from raydistill.models.folder import CARD, model_digest
from raydistill.models.signals import LOGITS
from raydistill.pipeline.distill import distill
from raydistill.pipeline.prepare import Prepared, prepare
from raydistill.pipeline.recipes import TeacherIdentity, baseline_artifact, student_artifact, teacher_recipe
from raydistill.search.sweep import sweep_key
from raydistill.storage.garbage import collect_garbage, remove_artifact
from raydistill.storage.storage import Storage
from raydistill.teacher.store import signal_artifact
from raydistill.train.loop import StageRun

pytestmark = pytest.mark.usefixtures("mlflow_uri")

HIDDEN = {"type": "hidden_mse", "layers": [[1, 2], [2, 4]], "weight": 0.1}
BASE = {
    "student": {"num_layers": 2, "hidden_size": 16, "num_heads": 2},
    "stages__distill__num_epochs": 4,
    "stages__distill__losses__hidden": HIDDEN,
    "evaluate__metric": "log_loss",
}
"""A narrower student, so that there are projections; three kinds of losses; a score that moves at every validation."""
OTHER = {"stages__distill__learning_rate": 5e-3, "evaluate__metric": "log_loss"}
"""Another student for the same teacher, at full width."""


@dataclass
class Spy:
    """What every stage of training saw: its first weights, the rows of each step, the labels of these rows."""

    start: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)
    rows: dict[str, list[np.ndarray]] = field(default_factory=dict)
    labeled: dict[str, list[np.ndarray]] = field(default_factory=dict)

    @property
    def num_steps(self) -> dict[str, int]:
        return {name: len(rows) for name, rows in self.rows.items()}


@dataclass
class Ran:
    folder: Path
    results: dict[str, Any]
    spy: Spy

    @property
    def storage(self) -> Storage:
        return Storage(str(self.folder / "storage"))

    def weights(self, model: str = "student") -> dict[str, torch.Tensor]:
        return read_weights(self.results[model]["path"])


def run(folder: Path, **changes: Any) -> Ran:
    """Distil the toy and note what the loop saw."""
    spy = Spy()
    collate, init = StageRun.collate, StageRun.__init__

    def noting_collate(self: StageRun, step: int) -> Any:
        batches, name = collate(self, step), self.setup.name
        spy.rows.setdefault(name, []).append(np.concatenate([batch.row_ids for batch in batches]))
        spy.labeled.setdefault(name, []).append(np.concatenate([batch.targets.labeled for batch in batches]))
        return batches

    def noting_init(self: StageRun, setup: Any) -> None:
        spy.start[setup.name] = {name: tensor.clone() for name, tensor in setup.model.state_dict().items()}
        init(self, setup)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StageRun, "collate", noting_collate)
        patch.setattr(StageRun, "__init__", noting_init)
        results = distill(load_config(config_of(folder, **changes)))
    return Ran(folder, results, spy)


def config_of(folder: Path, **changes: Any) -> dict[str, Any]:
    unlabeled = folder / "more.csv"
    if not unlabeled.exists():
        with write_toy_csv(folder / "labeled.csv", 40, seed=9).open(newline="") as source:
            texts = [row["text"] for row in csv.DictReader(source)]
        unlabeled.write_text("\n".join(["text", *texts]) + "\n")
    return toy_config(folder, data__unlabeled=str(unlabeled), **changes)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return run(tmp_path_factory.mktemp("base"), **BASE)


@pytest.fixture(scope="module")
def other(base: Ran) -> Ran:
    """Another student in the same storage; its baseline starts from the encoder before fine-tuning."""
    return run(base.folder, **OTHER, evaluate__baseline={"start": "pretrained"})


@pytest.fixture(scope="module")
def unsteady(base: Ran, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """A teacher that is fine-tuned already, and a learning rate at which the last epoch is not the best."""
    folder = save_tiny(tmp_path_factory.mktemp("teacher"), "bert", labels=tuple(sorted(TOPICS)), seed=5)
    hasty = {"num_epochs": 6, "learning_rate": 0.03, "schedule": "constant"}
    stages = {f"stages__distill__{name}": value for name, value in hasty.items()}
    return run(base.folder, teacher={"model": str(folder), "allow_chance": True}, evaluate__metric="log_loss", **stages)


def run_key(ran: Ran) -> str:
    return find_run(ran.results, ran.storage)


def test_the_same_config_returns_at_once_and_computes_nothing(base, mlflow_uri):
    before = keys_by_kind(base.storage)
    again = run(base.folder, **BASE)
    assert again.results["reused"] == ["run"]
    assert again.spy.num_steps == {}
    without = {"reused"}
    assert {k: v for k, v in again.results.items() if k not in without} == {
        k: v for k, v in base.results.items() if k not in without
    }
    assert keys_by_kind(base.storage) == before
    assert [int(v.version) for v in versions(mlflow_uri) if v.run_id == base.results["run_id"]] == [
        base.results["model_version"]
    ]


def test_without_its_results_a_run_is_put_together_from_its_artifacts(base, mlflow_uri):
    run_id, before = base.results["run_id"], keys_by_kind(base.storage)
    steps = metric_steps(mlflow_uri, run_id, "train/loss")
    base.storage.delete("runs", run_key(base), "results.json")
    again = run(base.folder, **BASE)
    assert again.spy.num_steps == {}
    assert keys_by_kind(base.storage) == before
    named = {"data", "tokens", "teacher", "signals of train", "signals of test", "student", "baseline", "evaluation"}
    assert named <= set(again.results["reused"])
    changing = {"reused", "seconds", "notes"}
    assert {k: v for k, v in again.results.items() if k not in changing} == {
        k: v for k, v in base.results.items() if k not in changing
    }
    assert len([r for r in mlflow_runs(mlflow_uri) if r.info.run_id == run_id]) == 1
    assert len([v for v in versions(mlflow_uri) if v.run_id == run_id]) == 1
    assert metric_steps(mlflow_uri, run_id, "train/loss") == steps


def test_a_student_that_was_removed_is_made_anew(base, mlflow_uri):
    """In an MLflow run of its own: a version that may have been judged keeps the files that it was judged by."""
    changes = {**BASE, "train__seed": 3, "evaluate__baseline": False}
    first = run(base.folder, **changes)
    before, keys = first.weights(), keys_by_kind(base.storage)
    (student,) = artifacts_of_run(base.storage, run_key(first))["student"]
    remove_artifact(base.storage, str(student), force=True)
    again = run(base.folder, **changes)
    assert list(again.spy.num_steps) == ["student.distill"]
    assert again.results["student"]["path"] == first.results["student"]["path"]
    assert same_weights(again.weights(), before)
    assert keys_by_kind(base.storage) == keys
    made = {v.run_id: int(v.version) for v in versions(mlflow_uri)}
    assert {made[one.results["run_id"]] for one in (first, again)} == {
        first.results["model_version"],
        first.results["model_version"] + 1,
    }


def test_a_run_that_waits_for_its_workers_keeps_what_it_needs(base, monkeypatch):
    """And what it referred to before: nothing that is sealed already goes."""
    key, before = run_key(base), keys_by_kind(base.storage)
    referred_before = base.storage.read_json("runs", key, "run.json")
    base.storage.delete("runs", key, "results.json")
    waited: list[dict[str, Any]] = []

    def wait(job: Any, stop: Any, show: Any) -> Any:
        waited.append(base.storage.read_json("runs", job.run_key, "run.json"))
        collect_garbage(base.storage, older_than_seconds=0)
        raise Interrupted("waited for room")

    monkeypatch.setattr("raydistill.pipeline.distill.run_phases_somewhere", wait)
    with pytest.raises(Interrupted, match="room"):
        run(base.folder, **BASE)
    with pytest.raises(Interrupted, match="room"):
        run(base.folder, **BASE, data__max_length=11)
    monkeypatch.undo()
    old, new = waited
    assert old == referred_before
    assert [name.split("/")[0] for name in new["artifacts"]] == ["data", "tfidf", "tokens"]
    kept = keys_by_kind(base.storage)
    assert all(before[kind] <= kept[kind] for kind in before)
    assert {name.split("/")[1] for name in new["artifacts"]} <= kept["data"] | kept["tokens"] | kept["tfidf"]
    assert run(base.folder, **BASE).spy.num_steps == {}


def test_one_mlflow_run_holds_parameters_metrics_data_and_files(base, mlflow_uri):
    client = MlflowClient(tracking_uri=mlflow_uri)
    keys = [r.data.tags["raydistill.run_key"] for r in mlflow_runs(mlflow_uri)]
    assert keys.count(run_key(base)) == 1
    tracked = client.get_run(base.results["run_id"])
    assert tracked.info.status == "FINISHED"
    assert tracked.data.params["stages.distill.losses.kd.temperature"] == "2.0"
    assert tracked.data.params["student.num_layers"] == "2"
    num_steps = base.results["baseline"]["steps"]
    for prefix in ("", "baseline/"):
        steps = metric_steps(mlflow_uri, tracked.info.run_id, f"{prefix}train/loss")
        assert steps == sorted(set(steps))
        assert steps[-1] == num_steps
        validated = metric_steps(mlflow_uri, tracked.info.run_id, f"{prefix}validation/accuracy")
        assert validated == [num_steps // 4 * i for i in range(1, 5)]
    assert len(metric_steps(mlflow_uri, tracked.info.run_id, "teacher/validation/accuracy")) == 6
    (data,) = artifacts_of_run(base.storage, run_key(base))["data"]
    (entry,) = tracked.inputs.dataset_inputs
    assert data.digest.startswith(entry.dataset.digest)
    files = {file.path for file in client.list_artifacts(tracked.info.run_id)}
    assert files >= {"config.yaml", "lineage.json", "results.json", "report.html", "student"}


def test_results_are_strict_json(base, other):
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    raw = other.storage.read_bytes("runs", run_key(other), "results.json")
    stored = json.loads(raw, parse_constant=refuse)
    assert stored == json.loads(json.dumps(other.results))
    assert stored["schema"] == 2
    kept = predictions(stored, other.storage)
    for name in ("student", "teacher", "baseline"):
        value = kept.tasks[name].scores(kept.outputs[name], kept.targets.values).values["accuracy"]
        assert stored[name]["test"]["accuracy"]["value"] == pytest.approx(value, rel=1e-5)
    phases = {"prepare", "teacher", "record", "train", "baseline", "tfidf", "evaluate", "register", "start"}
    *seconds, total = stored["seconds"].values()
    assert set(stored["seconds"]) == phases | {"total"}
    assert total == pytest.approx(sum(seconds), abs=0.01)
    assert base.results["reused"] == []


def test_the_student_is_registered_with_alias_and_tags(base, mlflow_uri):
    (version,) = [v for v in versions(mlflow_uri) if v.run_id == base.results["run_id"]]
    assert int(version.version) == base.results["model_version"]
    assert float(version.tags["test/accuracy"]) == pytest.approx(
        base.results["student"]["test"]["accuracy"]["value"], rel=1e-5
    )
    client = MlflowClient(tracking_uri=mlflow_uri)
    latest = max(versions(mlflow_uri), key=lambda v: int(v.version))
    assert client.get_model_version_by_alias("toy", "challenger").version == latest.version


def changed_keys(folder: Path) -> dict[str, str]:
    config = load_config(toy_config(folder))
    made = prepare(config, Storage(config.storage))
    teacher = teacher_recipe(config, model_digest(made.source), made.tokens.digest, made.dtype)
    return {"data": made.data.key, "tokens": made.tokens.key, "run": made.run_key, "teacher": json.dumps(teacher)}


@pytest.mark.parametrize(
    ("changed", "missed"),
    [
        ("toy.csv", {"data", "tokens", "teacher", "run"}),
        ("encoder/tokenizer.json", {"tokens", "teacher", "run"}),
        ("encoder/model.safetensors", {"teacher", "run"}),
        ("the end of a text that is cut off", {"data", "tokens", "run"}),
    ],
)
def test_a_changed_byte_of_an_input_is_a_miss_of_what_is_made_from_it(tmp_path, changed, missed):
    toy_config(tmp_path)
    is_long = changed.startswith("the end")
    if is_long:  # models see 20 tokens; hashes of rows are of all of them. Without a label it is a training row
        changed = "toy.csv"
        with (tmp_path / changed).open("a") as file:
            file.write(f"{'the film ' * 20}movie,\n")
    before = changed_keys(tmp_path)
    assert changed_keys(tmp_path) == before
    path = tmp_path / changed
    content = path.read_bytes()
    if changed == "encoder/model.safetensors":
        content = content[:-1] + bytes([content[-1] ^ 1])
    else:
        place = content.rindex(b"movie") if is_long else content.index(b"movie")
        content = content[:place] + b"m0vie" + content[place + 5 :]
    path.write_bytes(content)
    after = changed_keys(tmp_path)
    assert {name for name in before if before[name] != after[name]} == missed


def write_numbered(folder: Path, names: list[str] | None = None, **changes: Any) -> dict[str, Any]:
    """A config for the toy with its topics as class ids, in a parquet file that gives them ``names``, if any."""
    from datasets import ClassLabel, Dataset, Features, Value

    toy = toy_config(folder)
    with (folder / "toy.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    label = ClassLabel(names=names) if names else Value("int64")
    columns = {"text": [row["text"] for row in rows], "label": [sorted(TOPICS).index(row["label"]) for row in rows]}
    data = Dataset.from_dict(columns, Features({"text": Value("string"), "label": label}))
    toy["data"]["path"] = str(folder / f"{names}.parquet")
    data.to_parquet(toy["data"]["path"])
    return toy | changes


@pytest.mark.parametrize("how", ["renamed", "task.labels", "ClassLabel"])
def test_class_names_are_part_of_all_that_is_made_from_the_rows(tmp_path, how):
    """The very same texts and class ids under other names are other rows: nothing of theirs is reused."""
    names, turned = sorted(TOPICS), sorted(TOPICS, reverse=True)
    match how:
        case "renamed":
            before = toy_config(tmp_path)
            other = tmp_path / "renamed.csv"
            other.write_text((tmp_path / "toy.csv").read_text().replace(",film\n", ",cinema\n"))
            after = toy_config(tmp_path, data__path=str(other))
        case "task.labels":
            before, after = (write_numbered(tmp_path, task={"labels": order}) for order in (names, turned))
        case _:
            before, after = (write_numbered(tmp_path, names=order) for order in (names, turned))
    made = [prepare(load_config(config), Storage(str(tmp_path / "storage"))) for config in (before, after)]
    rows = [Rows.open(each.tokens.local(), "train") for each in made]
    assert np.array_equal(rows[0].targets.values, rows[1].targets.values)
    assert np.array_equal(rows[0].values["input_ids"], rows[1].values["input_ids"])
    keys = [all_keys(each) for each in made]
    assert [name for name in keys[0] if keys[0][name] == keys[1][name]] == []


def all_keys(made: Prepared) -> dict[str, str]:
    """Keys of a run and of what it makes and records, were its teacher the same."""
    teacher = TeacherIdentity(made.config.lead, "digest", "digest", None)
    common = (made.config, made.storage, teacher, made.tokens.digest, made.dtype)
    signal = {"teacher_digest": "digest", "tokens_digest": made.tokens.digest, "dtype": made.dtype}
    return {
        "run": made.run_key,
        "teacher": json.dumps(teacher_recipe(made.config, "digest", made.tokens.digest, made.dtype)),
        "signal": signal_artifact(made.storage, LOGITS, "train", **signal).key,
        "student": student_artifact(*common, MODES["cached"]).key,
        "baseline": baseline_artifact(*common).key,
    }


@pytest.mark.parametrize("place", ["path", "pkg"])
def test_a_start_that_was_trained_again_in_its_place_is_another_start(tmp_path, monkeypatch, place):
    package = tmp_path / "starts"
    folder = save_tiny(package / "model", "bert", num_layers=2, labels=tuple(sorted(TOPICS)), seed=1)
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    start = str(folder) if place == "path" else "pkg://starts/model"
    space = {"space": {"student.start": {"choice": [start, "teacher_layers"]}}, "num_trials": 2}

    def keys() -> tuple[str, str]:
        config = load_config(toy_config(tmp_path, student={"start": start}))
        run = prepare(config, Storage(config.storage))
        searched = toy_config(tmp_path, sweep=space, train__num_workers=1)
        return run.run_key, sweep_key(prepare(load_config(searched), Storage(config.storage)), fresh=False)

    before = keys()
    assert keys() == before
    save_tiny(folder, "bert", num_layers=2, labels=tuple(sorted(TOPICS)), seed=2)
    assert not set(keys()) & set(before)


def test_settings_that_do_not_change_a_result_change_no_artifact(base):
    before = keys_by_kind(base.storage)
    again = run(
        base.folder,
        **BASE,
        tracking__tags={"team": "blue"},
        train__checkpoint_steps=7,
        train__tokens_per_micro_batch=100,
        train__max_failures=1,
        registry__name="another",
    )
    assert keys_by_kind(base.storage) == before
    assert again.spy.num_steps == {}
    assert again.results["model_version"] == 1


LOAD = """
import json, sys
sys.modules["raydistill"] = None
from transformers import pipeline
model = pipeline("text-classification", sys.argv[1], top_k=None, device="cpu")
print(json.dumps(model(json.load(sys.stdin), truncation=True, max_length=20)))
"""


def test_the_student_is_an_ordinary_folder_without_projections(base):
    import pyarrow as pa

    assert base.spy.start["student.distill"].keys() == base.weights().keys()
    assert not any("projection" in name for name in base.weights())
    (data,) = artifacts_of_run(base.storage, run_key(base))["data"]
    with pa.memory_map(str(data.local() / "test.arrow")) as source:
        texts = pa.ipc.open_file(source).get_batch(0).column("text").to_pylist()
    command = [sys.executable, "-c", LOAD, base.results["student"]["path"]]
    done = subprocess.run(command, input=json.dumps(texts), capture_output=True, text=True, check=True)
    scores = [{entry["label"]: entry["score"] for entry in row} for row in json.loads(done.stdout)]
    kept = torch.tensor(predictions(base.results, base.storage).outputs["student"]).softmax(-1)
    np.testing.assert_allclose([[row[name] for name in sorted(TOPICS)] for row in scores], kept, atol=1e-5)


def test_the_student_sees_all_rows_and_the_baseline_labelled_ones_as_many_steps(base, mlflow_uri):
    data, spy = base.results["data"], base.spy
    assert data["labeled"]["train"] == 60
    assert data["num_rows"]["train"] == 192 + 40
    num_steps = 4 * -(-232 // 16)
    assert base.results["baseline"]["steps"] == num_steps
    assert spy.num_steps == {"teacher.finetune": 24, "student.distill": num_steps, "baseline.distill": num_steps}
    for epoch in range(4):
        seen = np.concatenate(spy.rows["student.distill"][15 * epoch : 15 * (epoch + 1)])
        assert sorted(seen) == list(range(232))
    for name in ("baseline.distill", "teacher.finetune"):
        assert np.concatenate(spy.labeled[name]).all()
        assert len(set(np.concatenate(spy.rows[name]).tolist())) == 60
    client = MlflowClient(tracking_uri=mlflow_uri)
    rates = {
        prefix: {
            metric.step: metric.value
            for metric in client.get_metric_history(base.results["run_id"], f"{prefix}train/learning_rate")
        }
        for prefix in ("", "baseline/")
    }
    assert len(rates[""]) > 10
    assert rates[""] == rates["baseline/"]


def test_the_baseline_starts_where_the_student_does(base):
    assert same_weights(base.spy.start["baseline.distill"], base.spy.start["student.distill"])
    assert base.results["baseline"]["start"] == "same"


def test_a_pretrained_baseline_starts_from_the_encoder_before_fine_tuning(other):
    name = "embeddings.word_embeddings.weight"
    encoder = read_weights(other.folder / "encoder")[name]
    assert other.results["baseline"]["start"] == "pretrained"
    assert torch.equal(other.spy.start["baseline.distill"][f"bert.{name}"], encoder)
    assert torch.equal(other.spy.start["student.distill"][f"bert.{name}"], other.weights("teacher")[f"bert.{name}"])
    assert not torch.equal(other.weights("teacher")[f"bert.{name}"], encoder)


def test_another_student_reuses_everything_to_its_left(base, other):
    assert {"data", "tokens", "teacher", "signals of train", "signals of test"} <= set(other.results["reused"])
    assert set(other.spy.num_steps) == {"student.distill", "baseline.distill"}
    mine, theirs = (artifacts_of_run(base.storage, run_key(ran)) for ran in (other, base))
    assert mine["teacher"] == theirs["teacher"]
    assert set(mine["signals"]) < set(theirs["signals"])
    assert mine["student"] != theirs["student"]
    assert other.results["teacher"]["test"] == base.results["teacher"]["test"]


@pytest.mark.slow
def test_the_best_epoch_of_every_model_or_a_later_one_is_kept_whatever_the_others_scored(base, unsteady):
    best_is_last = []
    for ran in (base, unsteady):
        for name, curve in ran.results["curves"].items():
            losses = [p["metrics"]["validation/log_loss"] for p in curve if "validation/log_loss" in p["metrics"]]
            kept = ran.results[name]["validation"]["log_loss"]["value"]
            best = losses.index(min(losses))
            if name == "teacher":  # its probabilities were calibrated on these rows afterwards
                assert kept < min(losses[best:]) + 0.01
            else:
                assert any(kept == pytest.approx(loss, rel=1e-4) for loss in losses[best:])
            best_is_last.append(best == len(losses) - 1)
    assert len(best_is_last) == 5
    assert not all(best_is_last), "this toy cannot tell the best from the last"


@pytest.mark.slow
def test_a_fine_tuned_teacher_is_used_as_it_is(unsteady):
    assert set(unsteady.spy.num_steps) == {"student.distill", "baseline.distill"}
    assert "teacher" not in artifacts_of_run(unsteady.storage, run_key(unsteady))
    assert "teacher" not in unsteady.results["curves"]
    assert not same_weights(unsteady.weights("teacher"), unsteady.spy.start["student.distill"])


def test_an_encoder_without_a_head_is_refused_with_the_way_out(base):
    with pytest.raises(ModelError, match=r"Leave teacher\.finetune out, which trains it first"):
        run(base.folder, teacher={"model": str(base.folder / "encoder"), "finetune": None})


def nameless_teacher(base: Ran, folder: Path) -> dict[str, str]:
    """The fine-tuned teacher of ``base``, as one of which nobody has named the classes."""
    shutil.copytree(base.results["teacher"]["path"], folder)
    config = json.loads((folder / "config.json").read_text())
    names = {f"LABEL_{i}": i for i in range(len(TOPICS))}
    config |= {"label2id": names, "id2label": {str(i): name for name, i in names.items()}}
    (folder / "config.json").write_text(json.dumps(config))
    return {"model": str(folder), "allow_chance": True}


@pytest.mark.slow
def test_classes_that_are_known_by_position_only_are_told_everywhere(base, tmp_path, capsys):
    teacher = nameless_teacher(base, tmp_path / "teacher")
    results = run(base.folder, teacher=teacher, evaluate__baseline=False).results
    (note,) = [note for note in results["notes"] if "LABEL_0, LABEL_1, LABEL_2" in note]
    assert note.startswith("teacher.model: ")
    print_found(Console(width=1000), results)
    assert note in capsys.readouterr().out
    assert "taken in this order for film, money, sport" in (Path(results["student"]["path"]) / CARD).read_text()
    named = run(base.folder, **OTHER).results
    assert not [note for note in named["notes"] if note.startswith("teacher.model: ")]


@pytest.mark.slow
def test_an_order_of_classes_that_the_rows_contradict_is_refused(base, tmp_path):
    """The labels are what the teacher itself says, so in its own order it is right on every row."""
    with (base.folder / "toy.csv").open(newline="") as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    for seed in range(50):  # until one says every class often
        folder = save_tiny(tmp_path / str(seed), "bert", seed=seed)
        said = open_folder(folder, max_length=20).outputs(texts).argmax(axis=1)
        if np.bincount(said, minlength=3).min() >= 30:
            break
    teacher = {"model": str(folder)}
    with (tmp_path / "said.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *zip(texts, (sorted(TOPICS)[i] for i in said), strict=True)])
    turned = {"data__path": str(tmp_path / "said.csv"), "data__max_labeled": None, "teacher": teacher}
    message = "no better than guessing.*LABEL_0, LABEL_1, LABEL_2 only, so they are taken in this order for sport, film"
    with pytest.raises(ModelError, match=message):
        run(base.folder, task={"labels": ["sport", "film", "money"]}, **turned)


def test_a_teacher_at_chance_ends_the_run_before_a_student_learns_from_it(tmp_path):
    """With the override the run goes on with the same teacher."""
    weak = {"teacher__finetune": {"num_epochs": 1, "learning_rate": 1e-9}, "evaluate__baseline": False}
    message = r"the teacher is no better than guessing.*num_epochs, now 1\).*now 1e-09\).*labels \(now 60\)"
    with pytest.raises(ModelError, match=message):
        run(tmp_path, **weak, teacher__allow_chance=False)
    storage = Storage(str(tmp_path / "storage"))
    made = keys_by_kind(storage)
    assert (len(made["teacher"]), len(made["student"]), len(made["signals"])) == (1, 0, 1)  # of validation rows
    results = run(tmp_path, **weak, teacher__allow_chance=True).results
    assert "teacher" in results["reused"]
    assert keys_by_kind(storage)["teacher"] == made["teacher"]
    finished = run(tmp_path, **weak, teacher__allow_chance=False).results  # the same run, which needs no judgement now
    assert finished["reused"] == ["run"]


def test_a_teacher_worse_than_no_teacher_is_told_before_a_student_learns_from_it(tmp_path):
    """The student without it learns the words of the topics; its teacher was trained for one step."""
    told: list[dict[str, Any]] = []
    weak = {
        "teacher__finetune": {"num_epochs": 0.1, "learning_rate": 1e-9, "method": "full"},
        "data__max_labeled": None,
    }
    stage = {"stages__distill__num_epochs": 12, "stages__distill__learning_rate": 4e-3}
    results = distill(load_config(config_of(tmp_path, **weak, **stage)), progress=told.append)
    (note,) = (note for note in results["notes"] if "worse than the student without it" in note)
    assert "--set teacher.finetune.num_epochs=" in note
    order = [entry["phase"] for entry in told if entry["phase"] == "train" or entry.get("note") == note]
    assert order[0] == "baseline"
    assert "train" in order


@pytest.mark.parametrize(
    ("rate", "told"),
    [
        (5, r"Its training diverged: .* lower teacher\.finetune\.learning_rate \(now 5\)"),
        (0.05, r"at a lower rate, such as 0\.0001, \(teacher\.finetune\.learning_rate, now 0\.05\)"),
    ],
)
def test_a_teacher_at_far_too_high_a_rate_is_told_to_lower_it(tmp_path, rate, told):
    wild = {"teacher__finetune": {"num_epochs": 6, "learning_rate": rate}, "evaluate__baseline": False}
    with pytest.raises(ModelError, match=f"no better than guessing.*{told}"):
        run(tmp_path, **wild, teacher__allow_chance=False)


def test_a_student_that_diverged_is_registered_only_when_asked(tmp_path, mlflow_uri):
    wild = {"stages__distill__learning_rate": 50, "evaluate__baseline": False, "registry__challenger": False}
    first = run(tmp_path, **wild).results
    assert (first["model_version"], first["decision"]["decision"]) == (None, "do not ship")
    assert first["student"]["diverged"] | {"why": ""} == {
        "setting": "stages.distill.learning_rate",
        "value": 50.0,
        "why": "",
    }
    assert "registry.allow_diverged=true registers it" in first["notes"][-1]
    assert first["run_id"] not in {version.run_id for version in versions(mlflow_uri)}
    again = run(tmp_path, **wild)
    assert (again.results["reused"], again.results["model_version"], again.spy.num_steps) == (["run"], None, {})
    asked = run(tmp_path, **wild, registry__allow_diverged=True)
    assert (asked.results["run_id"], asked.spy.num_steps) == (first["run_id"], {})
    assert asked.results["model_version"] in {
        int(v.version) for v in versions(mlflow_uri) if v.run_id == first["run_id"]
    }


@pytest.mark.slow
def test_a_ready_made_teacher_at_chance_ends_the_run(tmp_path):
    toy_config(tmp_path)
    save_tiny(tmp_path / "guessing", "bert", labels=tuple(sorted(TOPICS)))
    with pytest.raises(ModelError, match=r"no better than guessing.*Name one that was fine-tuned for this task"):
        run(tmp_path, teacher={"model": str(tmp_path / "guessing")})


def test_online_gives_the_student_of_cached(other):
    online = run(other.folder, **OTHER, teacher__mode="online", evaluate__baseline={"start": "pretrained"})
    assert online.spy.num_steps == {"student.distill": other.spy.num_steps["student.distill"]}
    assert online.results["student"]["path"] != other.results["student"]["path"]
    differences = relative_difference(without_key_biases(online.weights()), without_key_biases(other.weights()))
    assert max(differences.values()) < 1e-3
    a, b = (predictions(ran.results, ran.storage).outputs["student"] for ran in (online, other))
    np.testing.assert_allclose(a, b, atol=1e-3)


@pytest.mark.slow
def test_two_stages_follow_each_other(base):
    losses = {"kd": {"type": "forward_kl"}}
    stages = {
        "copy": {"num_epochs": 1, "learning_rate": 1e-3, "losses": {"hidden": HIDDEN}},
        "distill": {"num_epochs": 2, "learning_rate": 1e-3, "freeze": ["*embeddings*"], "losses": losses},
    }
    ran = run(
        base.folder, student=BASE["student"], stages=stages, evaluate__baseline=False, evaluate__metric="log_loss"
    )
    assert ran.spy.num_steps == {"student.copy": 15, "student.distill": 30}
    curve = ran.results["curves"]["student"]
    first = [p["step"] for p in curve if "train/loss/hidden" in p["metrics"]]
    second = [p["step"] for p in curve if "train/loss/kd" in p["metrics"]]
    assert first == list(range(1, 16))
    assert second == list(range(16, 46))
    name = "bert.embeddings.word_embeddings.weight"
    before, between, after = ran.spy.start["student.copy"], ran.spy.start["student.distill"], ran.weights()
    assert not torch.equal(before[name], between[name])
    assert torch.equal(between[name], after[name])


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["teacher", "baseline"])
def test_a_signal_stops_the_run_with_a_checkpoint_and_the_next_goes_on(base, tmp_path, phase):
    """In any training phase; the second run takes the remaining steps only and ends with the very same weights."""
    for name in ("toy.csv", "more.csv", "encoder"):
        (tmp_path / name).symlink_to(base.folder / name)

    def stop(entry: Any) -> None:
        if entry["phase"] == phase and entry.get("done", 0) >= 4:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    config = load_config(config_of(tmp_path, **BASE))
    with pytest.raises(Interrupted):
        distill(config, progress=stop)
    assert signal.getsignal(signal.SIGTERM) is before
    storage = Storage(config.storage)
    (key,) = storage.list("runs")
    (stage,) = storage.list("runs", key, phase)
    stopped_at = storage.read_json("runs", key, phase, stage, "last.json")["step"]
    assert stopped_at >= 4
    resumed = run(tmp_path, **BASE)
    name = f"{phase}.{stage}"
    assert resumed.spy.num_steps[name] == base.spy.num_steps[name] - stopped_at
    for model in ("teacher", "student", "baseline"):
        assert same_weights(resumed.weights(model), base.weights(model))


@pytest.mark.slow
def test_ctrl_c_ends_the_command_with_130_and_says_how_to_go_on(base, tmp_path, mlflow_uri):
    for name in ("toy.csv", "more.csv", "encoder"):
        (tmp_path / name).symlink_to(base.folder / name)
    config = write_config(tmp_path, config_of(tmp_path, **BASE))
    command = Command(config, tmp_path / "counts")
    try:
        assert command.wait_for_line("step student.distill 3 ")
        command.kill(signal.SIGINT)
        code, answer, _ = command.end()
    finally:
        left = command.clean_up()
    assert code == 130
    assert left == []
    assert answer["error"]["type"] == "Interrupted"
    assert "same command" in answer["error"]["message"]
    storage = Storage(str(tmp_path / "storage"))
    (key,) = storage.list("runs")
    assert storage.exists("runs", key, "student", "distill", "last.json")
    resumed = run(tmp_path, **BASE)
    assert same_weights(resumed.weights(), base.weights())
    statuses = {r.data.tags["raydistill.run_key"]: r.info.status for r in mlflow_runs(mlflow_uri)}
    assert statuses[key] == "FINISHED"


def test_storage_holds_nothing_half_made(base, other):
    assert check_artifacts(base.storage) >= 12
