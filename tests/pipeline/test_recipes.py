"""Which settings are in which key, where teacher and rows come from, and how much recorded signals take."""

from __future__ import annotations

import importlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kit.tiny import save_tiny
from kit.toy import toy_config

from raydistill.config.evaluate import Baseline
from raydistill.config.loading import load_config
from raydistill.config.losses import TaskLoss
from raydistill.config.teacher import MODES, ModelTeacher, Pool
from raydistill.config.tree import Config
from raydistill.errors import ConfigError, ModelError
from raydistill.models.folder import model_digest, resolve_model, settled
from raydistill.pipeline import recipes
from raydistill.pipeline.job import TeacherJob
from raydistill.pipeline.prepare import run_key
from raydistill.pipeline.recipes import TeacherIdentity
from raydistill.storage.artifacts import Artifact
from raydistill.storage.manifest import recipe_key
from raydistill.storage.storage import Storage

MODELS = {"teacher", "student", "baseline"}
ALL = MODELS | {"run"}
STUDENTS = {"student", "baseline", "run"}
PRETRAINED = {"start": "pretrained"}
CHANGE = [{"step": 2, "set": {"learning_rate": 0.5}}]


def keys(config: Config, folder: Path, *, source: str = "s", spoken: str = "t", **given: str) -> dict[str, str]:
    """The keys of what a config makes; inputs are ``tokens``, the teacher's digests, ``dtype`` and ``mode``."""
    given = {"tokens": "k", "dtype": "float32", "mode": "cached", **given}
    tokens, dtype = given["tokens"], given["dtype"]
    storage, teacher = Storage(str(folder)), TeacherIdentity(config.lead, spoken, source, None)

    class Tokens(Artifact):
        digest = tokens  # type: ignore[assignment]

    one = TeacherJob("", 1.0, config, Tokens(storage, "tokens", "k"), model_digest(folder / "encoder"))
    made = {
        "teacher": recipe_key(recipes.teacher_recipe(config, source, tokens, dtype)),
        "run": run_key(config, "rows", dtype, [one]),
    }
    artifacts = {
        "student": recipes.student_artifact(config, storage, teacher, tokens, dtype, MODES[given["mode"]]),
        "baseline": recipes.baseline_artifact(config, storage, teacher, tokens, dtype),
    }
    for kind, artifact in artifacts.items():
        assert (artifact.kind, artifact.key) == (kind, recipe_key(artifact.recipe))
        made[kind] = artifact.key
    return made


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {kind for kind in before if before[kind] != after[kind]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("recipes")


@pytest.mark.parametrize(
    ("name", "value", "missed"),
    [
        ("seed", 3, ALL),
        ("train__seed", 3, STUDENTS),
        ("train__global_batch_size", 32, ALL),
        ("train__max_grad_norm", 0.5, ALL),
        ("train__early_stopping", 3, ALL),
        ("evaluate__metric", "macro_f1", ALL),
        ("task__labels", ["film", "money", "sport"], ALL),
        ("teacher__finetune__num_epochs", 7, {"teacher", "run"}),
        ("student__num_layers", 1, STUDENTS),
        ("student__start", "random", STUDENTS),
        ("stages__distill__learning_rate", 0.5, STUDENTS),
        ("stages__distill__losses__kd__temperature", 3.0, {"student", "run"}),
        ("stages__distill__losses__task__class_weights", "balanced", STUDENTS),
        ("stages__distill__losses__task__label_smoothing", 0.1, STUDENTS),
        ("stages__distill__changes", CHANGE, {"student", "run"}),
        ("evaluate__baseline", PRETRAINED, {"baseline", "run"}),
        ("evaluate__bootstrap_samples", 200, {"run"}),
        ("registry__name", "another", {"run"}),
        ("tracking__experiment", "another", {"run"}),
        ("data__max_labeled", 50, {"run"}),  # the rest knows the rows by the tokens' digest
        ("sweep", {"space": {"train.seed": {"choice": [1, 2]}}, "num_trials": 2}, set()),
        ("teacher__pool", {"max": 3}, set()),
        ("train__num_workers", 2, set()),
        ("train__tokens_per_micro_batch", 100, set()),
        ("train__checkpoint_steps", 77, set()),
    ],
)
def test_a_setting_is_in_the_keys_of_what_it_determines(folder: Path, name: str, value: Any, missed: set[str]) -> None:
    on_ray = {"train__num_workers": 1}
    before, again = (keys(load_config(toy_config(folder, **on_ray)), folder) for _ in range(2))
    assert before == again
    assert changed(before, keys(load_config(toy_config(folder, **on_ray | {name: value})), folder)) == missed


def test_digests_of_inputs_are_in_the_keys(folder: Path) -> None:
    config = load_config(toy_config(folder))
    before = keys(config, folder)
    for given, missed in [
        ({"tokens": "other"}, ALL),
        ({"dtype": "bfloat16"}, ALL),
        ({"mode": "online"}, {"student"}),
        ({"source": "other"}, {"teacher"}),
        ({"spoken": "other"}, {"student", "baseline"}),
    ]:
        assert changed(before, keys(config, folder, **given)) == missed
    pretrained = load_config(toy_config(folder, evaluate__baseline=PRETRAINED))
    before = keys(pretrained, folder)
    assert changed(before, keys(pretrained, folder, source="other")) == {"teacher", "baseline"}
    assert changed(before, keys(pretrained, folder, spoken="other")) == {"student"}


def test_the_version_of_a_task_is_in_the_keys(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(toy_config(folder))
    before = keys(config, folder)
    monkeypatch.setattr(type(config.task), "version", 2)
    assert changed(before, keys(config, folder)) == ALL


def test_a_run_goes_by_the_content_of_its_teacher(tmp_path: Path) -> None:
    config = load_config(toy_config(tmp_path))
    before = keys(config, tmp_path)
    save_tiny(tmp_path / "encoder", "bert", classifier=False, seed=5)
    assert changed(before, keys(config, tmp_path)) == {"run"}  # the others are told the digests


@pytest.mark.parametrize("command", ["raydistill.pipeline.distill.distill", "raydistill.search.sweep.sweep"])
def test_a_run_settles_what_its_models_names_lead_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """From its first look on and no longer: a later one in this process looks anew."""
    space = {"student.num_layers": {"choice": [1, 2]}}
    config, seen = load_config(toy_config(tmp_path, sweep={"space": space}, train__num_workers=1)), []

    def looked(config: Config, storage: Storage) -> None:
        model_digest(resolve_model(config.lead.model))
        seen.append(settled())
        raise ConfigError("enough")

    module, name = command.rsplit(".", 1)
    monkeypatch.setattr(f"{module}.prepare", looked)
    monkeypatch.setattr(f"{module}.prepare_store", lambda uri: None)  # 5 s
    with pytest.raises(ConfigError, match="enough"):
        getattr(importlib.import_module(module), name)(config)
    (found,) = seen[0].values()
    assert (found.commit, found.digest) == (None, model_digest(resolve_model(config.lead.model)))
    assert settled() == {}


def test_a_recipe_is_json_of_named_parts(folder: Path) -> None:
    """Storage of earlier versions is found by it: a part that is renamed or written otherwise is made anew."""
    config = load_config(toy_config(folder))
    teacher = TeacherIdentity(config.lead, "t", "s", None)
    given = (config, Storage(str(folder)), teacher, "k", "bfloat16")
    common = {
        **{"tokens": "k", "dtype": "bfloat16", "seed": 0, "metric": "accuracy"},
        "train": {"global_batch_size": 16},
        "task": {"type": "text_classification"},
    }
    student, length = {"type": "encoder", "num_layers": 2}, {"num_epochs": 2.0, "learning_rate": 1e-3}
    losses = {"kd": {"type": "forward_kl"}, "task": {"type": "task", "weight": 0.5}}
    alone = {"task": {"type": "task"}}
    finetune = {"method": "full", "num_epochs": 6.0, "learning_rate": 2e-3}
    assert recipes.teacher_recipe(config, "s", "k", "bfloat16") == {"source": "s", "finetune": finetune, **common}
    start = {"start": "teacher_layers:t", "student": student}
    assert recipes.student_artifact(*given, MODES["online"]).recipe == {
        **{"teacher": "t", "mode": "online", "stages": {"distill": {**length, "losses": losses}}},
        **start,
        **common,
    }
    stages = {"stages": {"distill": {**length, "losses": alone}}, "speaks": ["distill"]}
    assert recipes.baseline_artifact(*given).recipe == {**stages, **start, **common}


def test_a_run_goes_by_all_of_its_config_but_by_whom_and_where_it_is_made(folder: Path) -> None:
    """The models among it by their content: a setting that is new is in the key until somebody takes it out."""
    config = load_config(toy_config(folder))
    settings = config.recipe(exclude={"storage", "sweep"})
    for section, names in (
        ("data", ("path", "unlabeled")),
        ("teacher", ("model", "pool", "allow_chance")),
        ("student", ("start",)),
        ("registry", ("challenger", "allow_diverged")),
        ("train", ("num_workers", "min_workers", "resources_per_worker", "accelerator_type", "max_failures")),
        ("train", ("max_wait_minutes", "tokens_per_micro_batch", "checkpoint_steps")),
    ):
        for name in names:
            settings[section].pop(name, None)
    source = model_digest(folder / "encoder")
    models = {"teachers": [["", source, "k"]], "start": f"teacher_layers:{source}"}
    inputs = {"rows": "rows", **models, "dtype": "float32"}
    assert keys(config, folder)["run"] == recipe_key({"config": settings, **inputs})


def test_a_stage_without_a_teacher_makes_another_baseline(folder: Path) -> None:
    """It goes over the labelled rows alone, so it has fewer steps."""
    kd, task = {"type": "forward_kl"}, {"type": "task"}
    spoken, alone = (
        load_config(toy_config(folder, stages={"a": {"losses": {"kd": kd}}, "b": {"losses": {"x": loss}}}))
        for loss in (kd, task)
    )
    assert changed(keys(spoken, folder), keys(alone, folder)) == STUDENTS


def test_what_is_kept_counts_where_a_student_is_narrower(folder: Path) -> None:
    """The setting is in the keys of no other student, nor in those of one that keeps all or begins at random."""

    def changed_by_first(**given: Any) -> set[str]:
        student = {f"student__{name}": value for name, value in given.items()}
        before, after = (
            keys(load_config(toy_config(folder, **student, **more)), folder)
            for more in ({}, {"student__width_start": "first"})
        )
        return changed(before, after)

    assert changed_by_first() == changed_by_first(start="random", hidden_size=16) == {"run"}
    for narrower in ({"hidden_size": 16}, {"num_heads": 2}, {"intermediate_size": 32}):
        assert changed_by_first(**narrower) == STUDENTS


def test_a_student_that_starts_from_a_checkpoint_goes_by_its_content(folder: Path) -> None:
    start = save_tiny(folder / "start", num_layers=2, seed=1)
    student = load_config(toy_config(folder, student__start=str(start))).student
    config = load_config(toy_config(folder, student__start=str(start)))
    before = keys(config, folder)
    save_tiny(start, num_layers=2, seed=2)
    assert changed(before, keys(config, folder)) == STUDENTS
    digests = {recipes.start_digest(student, teacher) for teacher in ("a", "b")}
    assert digests == {f"{teacher}+{model_digest(start)}" for teacher in ("a", "b")}
    for named in ("teacher_layers", "random"):
        assert recipes.start_digest(student.model_copy(update={"start": named}), "a") == f"{named}:a"


def test_a_teacher_lies_where_the_node_that_asks_has_its_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tuned on one node, handed to the driver and to trials on others, which have caches of their own."""
    settings = ModelTeacher(model=str(save_tiny(tmp_path / "source", seed=1)))
    artifact = Artifact(Storage(f"memory://{tmp_path.name}"), "teacher", "0" * 20, {})
    with artifact.write() as made:
        save_tiny(made / "model", seed=2)
    monkeypatch.setenv("RAYDISTILL_CACHE", str(tmp_path / "there"))
    tuned = recipes.identify_teacher(settings, artifact)
    voices = [tuned, recipes.mixed([tuned, recipes.identify_teacher(settings, None)], [1.0, 1.0])]
    assert all(voice.folder.is_relative_to(tmp_path / "there") for voice in voices)
    handed = pickle.dumps(voices)
    monkeypatch.setenv("RAYDISTILL_CACHE", str(tmp_path / "here"))
    for voice, before in zip(pickle.loads(handed), voices, strict=True):
        assert voice == before
        assert voice.folder.is_relative_to(tmp_path / "here")
        assert model_digest(voice.folder) == tuned.digest


def test_a_teacher_is_known_by_its_weights_and_by_what_it_was_tuned_from(tmp_path: Path) -> None:
    source, settings = save_tiny(tmp_path / "source", seed=1), ModelTeacher(model=str(tmp_path / "source"))
    plain = recipes.identify_teacher(settings, None)
    assert plain == TeacherIdentity(settings, model_digest(source), model_digest(source), None)
    assert plain.parents == {"teacher": plain.digest}
    assert recipes.teacher_folder(settings, None) == source
    artifact = Artifact(Storage(str(tmp_path / "storage")), "teacher", "0" * 20, {})
    with artifact.write() as made:
        save_tiny(made / "model", seed=2)
    tuned = recipes.identify_teacher(settings, artifact)
    folder = artifact.local() / "model"
    assert tuned == TeacherIdentity(settings, model_digest(folder), plain.digest, artifact)
    assert tuned.folder == folder
    assert recipes.fine_tuned(plain, artifact) == tuned
    assert tuned.digest != plain.digest
    assert tuned.parents == {"teacher": artifact.digest}
    assert recipes.teacher_folder(settings, artifact) == folder
    handed = pickle.dumps(tuned)
    save_tiny(folder, seed=3)
    with pytest.raises(ModelError, match="is not here what it was where the run began"):
        _ = pickle.loads(handed).folder


def test_a_baseline_takes_the_students_stages_with_labels_alone(folder: Path) -> None:
    config = load_config(toy_config(folder, stages__distill__changes=CHANGE))
    stage = config.stages["distill"]
    (alone,) = recipes.baseline_stages(config).values()
    assert alone == stage.model_copy(update={"losses": {"task": TaskLoss()}, "changes": ()})
    weighed = {"type": "task", "weight": 0.5, "class_weights": {"film": 2.0}, "label_smoothing": 0.1}
    (own,) = recipes.baseline_stages(load_config(toy_config(folder, stages__distill__losses__task=weighed))).values()
    assert own.losses == {"task": TaskLoss(class_weights={"film": 2.0}, label_smoothing=0.1)}  # as the student's, alone
    labeled = np.array([True, False, True, False])
    assert recipes.stage_rows(stage, labeled).tolist() == [0, 1, 2, 3]
    assert recipes.stage_rows(alone, labeled).tolist() == [0, 2]
    settings = [
        recipes.baseline_settings(load_config(toy_config(folder, evaluate__baseline=given)))
        for given in (True, False, PRETRAINED)
    ]
    assert settings == [Baseline(), None, Baseline(start="pretrained")]


def test_signals_are_recorded_while_they_fit() -> None:
    total = 4600
    auto = ModelTeacher(model="m", max_cache_bytes=total)
    fits = f"its outputs take {total:,} bytes, within teacher.max_cache_bytes"
    wide = f"its outputs would take {total:,} bytes, more than teacher.max_cache_bytes"
    assert auto.choose_mode(total) == (MODES["cached"], fits)
    tight = auto.model_copy(update={"max_cache_bytes": total - 1})
    assert tight.choose_mode(total) == (MODES["online"], wide)
    assert tight.model_copy(update={"pool": Pool()}).choose_mode(total) == (MODES["pool"], wide)
    forced = tight.model_copy(update={"mode": "cached"})
    assert forced.choose_mode(total) == (MODES["cached"], "teacher.mode: cached")
