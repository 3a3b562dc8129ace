"""Chains of runs: what one made is the start, or the teacher, of another."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from kit.toy import toy_config

from raydistill.config.loading import load_config
from raydistill.errors import ConfigError
from raydistill.models.folder import model_digest, resolve_model
from raydistill.pipeline.distill import distill
from raydistill.pipeline.links import linked, with_links
from raydistill.pipeline.plan import make_plan
from raydistill.storage.artifacts import Artifact
from raydistill.storage.garbage import referred
from raydistill.storage.storage import Storage


def config_of(folder: Path, **changes: Any) -> Any:
    plain = toy_config(folder, **{"evaluate__baseline": False, "evaluate__latency": False, **changes})
    return load_config(plain)


def key_of(storage: Storage) -> str:
    (key,) = [key for key in storage.list("runs") if storage.exists("runs", key, "results.json")]
    return key


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, mlflow_uri: str) -> tuple[Path, Storage, str]:
    """A finished run: its folder, storage and key."""
    folder = tmp_path_factory.mktemp("chain")
    config = config_of(folder, **{"registry__name": "first-link"})
    distill(config)
    return folder, Storage(config.storage), key_of(Storage(config.storage))


def test_names_lead_to_the_models_of_a_run(first) -> None:
    _, storage, key = first
    run_id = storage.read_json("runs", key, "run.json")["run_id"]
    student = Path(storage.read_json("runs", key, "results.json")["student"]["path"])
    for name in (f"run:{key[:5]}", f"run:{run_id[:8]}", f"run:{key}/student", "models:/first-link/1"):
        assert Path(linked(name, storage, "student.start")) == student, name
    teacher = Path(linked(f"run:{key[:5]}/teacher", storage, "teacher.model"))
    assert teacher == Path(storage.read_json("runs", key, "results.json")["teacher"]["path"])
    assert linked("bert-base-uncased", storage, "teacher.model") == "bert-base-uncased"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("run:", "names no run"),
        ("run:zzz", "student.start: .*No run 'zzz'"),
        ("run:{key}/studnet", "student.start: .*Did you mean"),
        ("models:/first-link/9", "first-link"),
    ],
)
def test_names_of_nothing_are_refused(first, name, said) -> None:
    folder, _, key = first
    start = name.format(key=key)
    with pytest.raises(Exception, match=said) as caught:
        make_plan(config_of(folder, **{"student__start": start}))
    assert type(caught.value).__module__ == "raydistill.errors"


def test_a_student_starts_from_the_student_of_a_run_and_a_teacher_can_be_one(first) -> None:
    folder, storage, key = first
    before = make_plan(config_of(folder, **{"student__start": f"run:{key[:6]}", "student__num_layers": 1}))
    assert before["student"]["num_layers"] == 1
    results = distill(config_of(folder, **{"student__start": f"run:{key[:6]}", "student__num_layers": "auto"}))
    earlier = storage.read_json("runs", key, "results.json")
    assert results["student"]["num_parameters"] == earlier["student"]["num_parameters"]
    assert "teacher" in results["reused"]
    chained = distill(config_of(folder, **{"teacher__model": f"run:{key[:6]}", "teacher__finetune": None}))
    assert chained["teacher"]["num_parameters"] == earlier["student"]["num_parameters"]
    assert chained["teacher"]["test"] == earlier["student"]["test"]
    (link,) = (artifact for artifact in referred(storage, key) if artifact.kind == "student")
    users = [run for run in storage.list("runs") if run != key and link in referred(storage, run)]
    assert len(users) == 2, "a run keeps the student of an earlier one that it needs"


def test_each_node_has_its_own_copy_of_a_link_behind_a_url(tmp_path: Path, first, monkeypatch) -> None:
    _, storage, key = first
    folder = Path(linked(f"run:{key}", storage, "student.start"))
    url = f"memory://{tmp_path.name}"
    made = Artifact(Storage(url), "student", folder.parent.name)
    monkeypatch.setenv("RAYDISTILL_CACHE", str(tmp_path / "cache"))
    with replace(made, recipe={"of": "a test"}).write() as written:
        (written / "model").mkdir()
        for file in folder.iterdir():
            (written / "model" / file.name).write_bytes(file.read_bytes())
    found = resolve_model(f"{url}/student/{made.key}/model")
    assert found.is_relative_to(tmp_path / "cache")
    assert model_digest(found) == model_digest(folder)


def test_members_are_named_where_they_are_wrong(first) -> None:
    folder, storage, key = first
    members = {"one": {"model": f"run:{key}"}, "two": {"model": "run:zzz"}}
    config = load_config({**toy_config(folder), "teacher": {"type": "mixture", "members": members}})
    with pytest.raises(ConfigError, match=r"teacher\.members\.two: model: No run 'zzz'"):
        with_links(config, storage)
