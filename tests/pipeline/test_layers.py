"""``layers: auto`` in whole runs: measured once, the same for ranks, seeds, restarts and trials, and told with why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from kit.ranks import run_ranks
from kit.runs import artifacts_of_run, find_run, make_context, make_shared
from kit.toy import toy_config
from transformers import AutoModel

from raydistill.config.loading import load_config
from raydistill.config.tree import Config
from raydistill.data.rows import Rows
from raydistill.models.layer_map import closest_layers
from raydistill.models.load import load_model
from raydistill.models.student import build_student
from raydistill.pipeline import layers
from raydistill.pipeline.distill import distill
from raydistill.pipeline.job import Job
from raydistill.pipeline.layers import settle_layers
from raydistill.pipeline.plan import make_plan
from raydistill.pipeline.pooled import PooledRun
from raydistill.pipeline.prepare import prepare
from raydistill.pipeline.teaching import fit_teacher
from raydistill.search.trial import TrialSpec, trial_job, trial_reports
from raydistill.storage.artifacts import Artifact
from raydistill.storage.ownership import Owner
from raydistill.storage.storage import Storage
from raydistill.tasks import task_of

pytestmark = pytest.mark.usefixtures("mlflow_uri")
HIDDEN = "stages.distill.losses.hidden"
NARROW = {"student": {"num_layers": 3, "hidden_size": 16, "num_heads": 2}}
ATTENTION = {"type": "attention_kl", "layers": "auto", "weight": 0.1}


def similar_config(folder: Path, **changes: Any) -> Config:
    return load_config(similar(folder, **changes))


def similar(folder: Path, **changes: Any) -> dict[str, Any]:
    hidden = {"type": "hidden_mse", "layers": "auto", "weight": 0.1}
    own = {"stages__distill__losses__hidden": hidden, "stages__distill__losses__attention": ATTENTION}
    return toy_config(folder, **{**own, **NARROW, "evaluate__baseline": False, **changes})


def never(*arguments: Any) -> Any:
    raise AssertionError("measured again")


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Config]:
    config = similar_config(tmp_path_factory.mktemp("similar"))
    return distill(config), config


@pytest.mark.slow
def test_the_layers_most_alike_before_training_are_compared(ran: tuple[dict[str, Any], Config]) -> None:
    results, config = ran
    found, storage = results["layers"], Storage(config.storage)
    made = artifacts_of_run(storage, find_run(results, storage))
    (tokens,), (kept,) = made["tokens"], made["layers"]
    rows, teacher = Rows.open(tokens.local(), "train"), Path(results["teacher"]["path"])
    head = task_of(results["task"]["facts"]).head
    student = build_student(load_model(teacher, head), config.student, seed=0, sample=rows.sample())
    student.save_pretrained(folder := Path(config.storage) / "untaught")
    states = [hidden_states_of(AutoModel.from_pretrained(place), rows) for place in (folder, teacher)]
    expected = [[by_definition(x, y) for y in states[1]] for x in states[0]]
    for own, others in zip(found["similarities"], expected, strict=True):
        assert own == pytest.approx(others, abs=2e-3)
    pairs = [list(pair) for pair in closest_layers(found["similarities"])]
    assert found["losses"] == {HIDDEN: pairs, "stages.distill.losses.attention": pairs[1:]}
    assert json.loads((kept.local() / layers.FILE).read_text()) == [
        pytest.approx(row, rel=1e-5) for row in found["similarities"]
    ]
    (student_recipe,) = [one.manifest().recipe["stages"]["distill"]["losses"] for one in made["student"]]
    assert student_recipe["hidden"]["layers"] == pairs
    named = {one.manifest().recipe["signal"] for one in made["signals"]}
    assert {f"hidden_states[{layer}]" for _, layer in pairs} <= named
    (note,) = [note for note in results["notes"] if "similarity" in note]
    assert f"{pairs[2][0]} ← {pairs[2][1]} ({found['similarities'][2][pairs[2][1]]:.2f})" in note
    assert HIDDEN in note


def hidden_states_of(model: Any, rows: Rows) -> list[torch.Tensor]:
    """Hidden states of the real tokens of all of the sample, read row by row, in float64."""
    every: list[list[torch.Tensor]] = []
    with torch.no_grad():
        for batch in rows.sample():
            for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
                found = model(input_ids=ids[mask.bool()][None], output_hidden_states=True).hidden_states
                every.append([layer[0].double() for layer in found])
    return [torch.cat(parts) for parts in zip(*every, strict=True)]


def by_definition(x: torch.Tensor, y: torch.Tensor) -> float:
    x, y = x - x.mean(0), y - y.mean(0)
    return float((y.T @ x).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm()))


@pytest.mark.slow
def test_what_is_kept_decides_for_restarts_and_other_runs(
    ran: tuple[dict[str, Any], Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another rate, another dropout and other seeds of the training: the same layers, and nothing is measured."""
    results, config = ran
    monkeypatch.setattr(layers, "layer_similarities", never)
    storage = Storage(config.storage)
    storage.delete("runs", find_run(results, storage), "results.json")
    again = distill(config)
    assert {"layer similarities", "student"} <= set(again["reused"])
    assert again["layers"] == results["layers"]
    folder = Path(config.storage).parent
    changes = {"stages__distill__learning_rate": 2e-3, "student": {**NARROW["student"], "dropout": 0.1}}
    other = distill(similar_config(folder, train__seed=5, evaluate__seeds=2, **changes))
    assert other["layers"] == results["layers"]
    assert "layer similarities" in other["reused"]
    assert "student" not in other["reused"]


@pytest.mark.slow
def test_a_plan_says_what_is_measured_and_then_what_was(ran: tuple[dict[str, Any], Config], tmp_path: Path) -> None:
    results, config = ran
    plan = make_plan(config)
    assert plan["layer_maps"] == results["layers"]["losses"]
    assert {entry["state"] for entry in plan["phases"]} == {"there"}
    assert not [finding for finding in plan["findings"] if "is measured" in finding]
    before = make_plan(similar_config(tmp_path))
    assert before["layer_maps"][HIDDEN] == [[0, 0], [1, 1], [2, 3], [3, 4]]
    assert any(f"{HIDDEN}: which layers are compared is measured" in finding for finding in before["findings"])


def layers_in_ranks(job: Job) -> dict[str, Any]:
    context = make_rank_context(job)
    settle_layers(context, fit_teacher(context))
    losses = context.config.stages["distill"].losses
    return {name: losses[name].layers for name in ("hidden", "attention")}


def make_rank_context(job: Job) -> Any:
    context = make_context(job)
    if not context.group.is_first:  # rank 0 alone measures
        layers.layer_similarities = never
    return context


@pytest.mark.slow
def test_two_ranks_compare_the_same_layers(tmp_path: Path, ran: tuple[dict[str, Any], Config]) -> None:
    config = similar_config(tmp_path)
    prepared = prepare(config, Storage(config.storage))
    job = prepared.job(Owner.acquire(prepared.storage, "runs", prepared.run_key), None)
    first, second = run_ranks(layers_in_ranks, 2, tmp_path / "ranks", job)
    assert first == second
    assert [list(pair) for pair in first["hidden"]] == ran[0]["layers"]["losses"][HIDDEN]


def test_trials_of_any_depth_and_map_find_their_layers_recorded(tmp_path: Path) -> None:
    depth, chosen = "student.num_layers", f"{HIDDEN}.layers"
    finetune = {"num_epochs": 2, "learning_rate": 3e-3}
    plain = similar(tmp_path, train__num_workers=1, teacher__finetune=finetune, stages__distill__num_epochs=1)
    plain["stages"]["distill"]["losses"].pop("attention")
    space = {depth: {"choice": [1, 2]}, chosen: {"choice": ["auto", "last"]}, "student.dropout": {"uniform": [0, 0.2]}}
    shared = make_shared(plain | {"sweep": {"space": space, "scheduler": "none"}})
    storage = Storage(plain["storage"])
    measured = [key for key in storage.list("layers") if Artifact(storage, "layers", key).exists()]
    assert len(measured) == 2  # a student of each depth
    for number, (layer, layers_of) in enumerate([(1, "auto"), (2, "auto"), (2, "last")]):
        params = {depth: layer, chosen: layers_of, "student.dropout": 0.1}
        spec = TrialSpec(number, f"t{number}", ((0, params),))
        reports = list(trial_reports(make_context(trial_job(shared, spec)), shared))
        recipe = Artifact(storage, "student", reports[-1]["student"]).manifest().recipe
        pairs = recipe["stages"]["distill"]["losses"]["hidden"]["layers"]
        assert pairs == "last" if layers_of == "last" else [student for student, _ in pairs] == list(range(layer + 1))
    assert measured == [key for key in storage.list("layers") if Artifact(storage, "layers", key).exists()]


def test_the_driver_of_a_pool_measures_nothing_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker group that fits the teacher measures, too; where both are there none is started."""
    from raydistill.pipeline import pooled

    config = similar_config(tmp_path, train__num_workers=1, teacher__pool={"min": 1, "max": 1})
    prepared = prepare(config, Storage(config.storage))
    job = prepared.job(Owner.acquire(prepared.storage, "runs", prepared.run_key), None)
    started = []

    def here(job: Job, show: Any, stop: Any, function: Any) -> Any:
        started.append(function.func.__name__)
        return function(make_context(job))

    monkeypatch.setattr(pooled, "run_workers", here)
    monkeypatch.setattr(pooled, "check_teachers", lambda settings: None)
    monkeypatch.setattr(pooled, "worker_resources", lambda *given, **more: None)
    run = PooledRun(job, lambda entry: None, None)  # type: ignore[arg-type]
    teacher = run.teacher([config])
    assert started == ["fine_tune"]
    assert run.made == {"teacher", "layer similarities"}  # so that they are not called reused
    monkeypatch.setattr(layers, "layer_similarities", never)
    assert run.teacher([config]).digest == teacher.digest
    settle_layers(run.context, teacher)
    pairs = run.context.config.stages["distill"].losses["hidden"].layers
    assert [student for student, _ in pairs] == [0, 1, 2, 3]
    assert started == ["fine_tune"]
