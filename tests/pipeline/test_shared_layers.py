"""Early and late distillation: runs whose students share their teacher's first layers, and never run them to learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kit.ranks import run_ranks
from kit.stages import assert_ranks_equal_one, batch_gradients, gradient_differences, record_signals, stage_setup
from kit.toy import Toy, make_toy, toy_config
from safetensors.torch import load_file

from raydistill.cluster.group import Group
from raydistill.config.loading import load_config
from raydistill.config.student import EncoderStudent as Student
from raydistill.models.layers import layer_stack
from raydistill.models.shared import check_shared, shared_parameters
from raydistill.models.student import build_student
from raydistill.pipeline.distill import distill
from raydistill.pipeline.plan import make_plan
from raydistill.tasks import TextClassification
from raydistill.train.checkpoint import TrainProgress
from raydistill.train.loop import StageRun

TERMS = {
    "kd": {"type": "forward_kl"},
    "hidden": {"type": "hidden_mse", "layers": "last", "weight": 0.1},
    "task": {"type": "task", "weight": 0.5},
}
ROWS = np.arange(48)


def setup_of(toy: Toy, name: str, *, recorded: bool = False, share_layers: int | None = 2) -> Any:
    teacher = toy.teacher()
    student = build_student(teacher, Student(teacher_layers=(0, 1, 2), share_layers=share_layers), seed=0)
    signals = record_signals(toy, teacher, ["logits", "hidden_states[2]", "hidden_states[4]"]) if recorded else None
    return stage_setup(toy, name, (student, teacher), TextClassification(toy.labels), TERMS, ROWS, signals)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return make_toy(tmp_path_factory.mktemp("toy"))


def test_recorded_states_teach_what_running_the_layers_does(toy: Toy) -> None:
    whole = setup_of(toy, "student.whole", share_layers=None)
    names = [name for name, _ in whole.model.named_parameters()]
    online, recorded = (setup_of(toy, f"student.{r}", recorded=r) for r in (False, True))
    shared = shared_parameters(online.model)
    expected = {name: g for name, g in batch_gradients(whole).items() if name not in shared}
    assert set(shared) < set(names)
    for setup, tolerance in ((online, 1e-4), (recorded, 2e-2)):  # half precision on disk
        differences = gradient_differences(expected, batch_gradients(setup))
        assert max(differences.values()) < tolerance, differences


def test_a_step_does_not_run_shared_layers(toy: Toy) -> None:
    setup = setup_of(toy, "student.counted", recorded=True)
    stage = StageRun(setup)
    check_shared(setup.model)
    run = []
    for index, layer in enumerate(layer_stack(setup.model)[1]):
        next(layer.children()).register_forward_hook(lambda *_, i=index: run.append(i))
    batches = stage.collate(0)
    stage.take_step(0, batches, [float(count) for count in setup.losses.counts(batches)], TrainProgress())
    assert run == [2] * len(batches)


def rank_gradients(folder: Path) -> dict[str, Any]:
    setup = setup_of(make_toy(folder), "student.ranks")
    return {"rank": Group().rank, "gradients": batch_gradients(setup)}


def test_two_ranks_learn_as_one(toy: Toy, tmp_path: Path) -> None:
    one = {"gradients": batch_gradients(setup_of(toy, "student.one"))}
    assert_ranks_equal_one(one, run_ranks(rank_gradients, 2, tmp_path, toy.folder))


def weights_of(results: dict[str, Any], model: str) -> dict[str, torch.Tensor]:
    return load_file(Path(results[model]["path"]) / "model.safetensors")


def run(folder: Path, **changes: Any) -> dict[str, Any]:
    return dict(distill(load_config(toy_config(folder, **changes)), progress=False))


@pytest.mark.parametrize("mode", ["cached", "online"])
def test_early_distillation(tmp_path: Path, mode: str) -> None:
    changes = {"student": {"num_layers": 3, "share_layers": 2, "start": "random"}, "teacher__mode": mode}
    results = run(tmp_path, **changes, stages__distill__num_epochs=6)
    teacher, student, baseline = (weights_of(results, model) for model in ("teacher", "student", "baseline"))
    is_shared = {name: "embeddings" in name or ".layer.0." in name or ".layer.1." in name for name in student}
    assert {name for name in student if torch.equal(student[name], teacher[name])} == {
        name for name, shared in is_shared.items() if shared
    }
    assert all(torch.equal(baseline[name], teacher[name]) for name, shared in is_shared.items() if shared)
    assert results["student"]["test"]["accuracy"]["value"] > 0.5  # three topics
    card = (Path(results["student"]["path"]) / "README.md").read_text()
    assert "its embeddings and first 2 layers are the teacher's, and did not learn" in card
    recorded = list((tmp_path / "storage" / "signals").glob("*"))
    assert len(recorded) == (4 if mode == "cached" else 2)  # logits of three splits, and states of one


@pytest.mark.slow
def test_late_distillation_trains_a_head_alone(tmp_path: Path) -> None:
    results = run(tmp_path, student={"num_layers": 4, "share_layers": 4}, stages__distill__num_epochs=3)
    teacher, student = (weights_of(results, model) for model in ("teacher", "student"))
    changed = {name for name in student if not torch.equal(student[name], teacher[name])}
    assert changed == {"bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight", "classifier.bias"}


@pytest.mark.slow
def test_stages_thaw_one_after_another(tmp_path: Path) -> None:
    """The head alone, then a layer with it: what stays frozen in both is the teacher's."""
    stage = {"learning_rate": 1e-3, "num_epochs": 1, "losses": {"kd": {"type": "forward_kl"}}}
    stages = {
        "head": stage | {"freeze": ["*", "!classifier.*"]},
        "top": stage | {"freeze": ["*", "!classifier.*", "!*.layer.1.*"]},
    }
    results = run(tmp_path, stages=stages, evaluate__baseline=False, student={"teacher_layers": [0, 1]})
    teacher, student = (weights_of(results, model) for model in ("teacher", "student"))
    changed = {name for name in student if not torch.equal(student[name], teacher[name])}
    assert changed == {name for name in student if name.startswith("classifier.") or ".layer.1." in name}


def test_the_plan_counts_what_is_recorded(tmp_path: Path) -> None:
    student = {"num_layers": 3, "share_layers": 2}
    plan = make_plan(load_config(toy_config(tmp_path, student=student)), check=True)
    assert set(plan["teacher"]["signal_bytes"]) == {"logits", "hidden_states[2]"}
    assert plan["student"]["teacher_layers"] == [0, 1, 2]
    assert plan["student"]["share_layers"] == 2
