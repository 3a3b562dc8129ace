"""Several teachers: what they say in the mean, each with its own tokenizer and order of labels, what is made of each
alone and found again, and what has no mean."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kit.finished import write_numbers_csv
from kit.ranks import run_ranks
from kit.runs import (
    artifacts_of_run,
    find_run,
    keys_by_kind,
    make_context,
    make_shared,
    metric_steps,
    predictions,
    read_weights,
    same_weights,
)
from kit.tagged import tagged_config
from kit.tiny import save_tiny, tiny_config
from kit.toy import changed, relative_difference, toy_config, without_key_biases
from scipy.special import expit, softmax
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, BertConfig

from raydistill.cli.submit.request import config_references
from raydistill.config.loading import load_config
from raydistill.data.rows import Rows, read_texts
from raydistill.errors import ConfigError, Interrupted, ModelError, RaydistillError
from raydistill.evaluate.report.card import model_card
from raydistill.pipeline.distill import distill
from raydistill.pipeline.job import Job
from raydistill.pipeline.phases import run_phases
from raydistill.pipeline.plan import make_plan
from raydistill.pipeline.prepare import prepare
from raydistill.search.sharing import load_shared, save_shared
from raydistill.search.trial import TrialSpec, trial_job, trial_reports
from raydistill.storage.artifacts import Artifact
from raydistill.storage.ownership import Owner
from raydistill.storage.storage import Storage
from raydistill.tasks import MultiLabelClassification, TextClassification, TextRegression, TokenClassification
from raydistill.teacher.cached import RecordedSignals

ORDER = ("sport", "film", "money")
"""Of the second teacher's labels; the data has film, money, sport."""
SHARES = (0.75, 0.25)


def with_other_ids(folder: Path) -> Path:
    """Give a tokenizer's words their ids in the other order."""
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    words = [word for word in vocabulary if not word.startswith("[")]
    vocabulary |= dict(zip(words, [vocabulary[word] for word in reversed(words)], strict=True))
    path.write_text(json.dumps(content))
    return folder


def mixture_config(folder: Path, **changes: Any) -> dict[str, Any]:
    """The toy with its encoder, fine-tuned, and a classifier of another family, tokenizer and order of labels."""
    config = toy_config(folder, evaluate__tfidf=False)
    second = folder / "second"
    if not second.exists():
        with_other_ids(save_tiny(second, "roberta", num_layers=2, seed=5, labels=ORDER))
    tuned = {name: config["teacher"][name] for name in ("model", "finetune")}
    members = {"big": {**tuned, "weight": 3.0}, "small": {"model": str(second), "finetune": None}}
    config["teacher"] = {"type": "mixture", "members": members, "allow_chance": True}
    return changed(config, changes)


Ran = tuple[dict[str, Any], Storage, Path]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    folder = tmp_path_factory.mktemp("mixture")
    config = load_config(mixture_config(folder))
    return distill(config), Storage(config.storage), folder


def said(artifact: Artifact, num_rows: int) -> np.ndarray:
    (values,) = RecordedSignals({"logits": artifact}, num_rows).rows(np.arange(num_rows)).values()  # type: ignore[dict-item]
    return values.numpy()


def recorded(results: dict[str, Any], storage: Storage, split: str = "train") -> dict[str, Artifact]:
    """The records of a split that a run refers to, by the teacher's digest."""
    made = artifacts_of_run(storage, find_run(results, storage))["signals"]
    recipes = [(one, one.manifest().recipe) for one in made]
    return {recipe["teacher"]: one for one, recipe in recipes if recipe["split"] == split}


def by_hand(folder: Path, texts: list[str], labels: list[str]) -> np.ndarray:
    """Probabilities as transformers computes them, in the order of the data's labels."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    order = [model.config.label2id[label] for label in labels]
    rows = []
    for text in texts:
        with torch.no_grad():
            logits = model(**tokenizer(text, truncation=True, max_length=20, return_tensors="pt")).logits[0]
        rows.append(softmax(logits.double().numpy())[order])
    return np.stack(rows)


def test_the_mean_is_that_of_transformers_own_probabilities(ran: Ran) -> None:
    results, storage, folder = ran
    made = artifacts_of_run(storage, find_run(results, storage))
    (data,), (tuned,) = made["data"], made["teacher"]
    texts = read_texts(data, "train")[0].to_pylist()
    each = [by_hand(one, texts, results["labels"]) for one in (tuned.local() / "model", folder / "second")]
    assert np.abs(each[0] - each[1]).max() > 0.2  # else a mix-up of both would not show
    records = recorded(results, storage)
    assert len(records) == 3
    (mean,) = [one for one in records.values() if "teacher 1" in one.manifest().parents]
    wanted = SHARES[0] * each[0] + SHARES[1] * each[1]
    np.testing.assert_allclose(softmax(said(mean, len(texts)), axis=1), wanted, atol=2e-6)
    np.testing.assert_allclose(said(mean, len(texts)), np.log(wanted), atol=2e-5)


def test_the_teacher_of_the_results_is_the_mean(ran: Ran) -> None:
    results, storage, _ = ran
    kept = predictions(results, storage)
    records = recorded(results, storage, "test")
    (mean,) = [one for one in records.values() if "teacher 1" in one.manifest().parents]
    np.testing.assert_array_equal(kept.outputs["teacher"], said(mean, len(kept.hashes)))
    accuracy = float((kept.outputs["teacher"].argmax(1) == kept.targets.values).mean())
    assert results["teacher"]["test"]["accuracy"]["value"] == pytest.approx(accuracy, rel=1e-5)
    student = results["student"]["test"]["accuracy"]["value"]
    assert results["retention"]["accuracy"] == pytest.approx(student / accuracy, rel=1e-4)
    sizes = [sum(t.numel() for t in read_weights(path).values()) for path in models_of(results, storage)]
    assert results["teacher"]["num_parameters"] == sum(sizes)


def test_results_have_each_teacher_alone(ran: Ran) -> None:
    results, storage, _ = ran
    about = results["teacher"]
    assert about["path"] is None
    assert {name: one["weight"] for name, one in about["members"].items()} == {"big": 3.0, "small": 1.0}
    assert [one["path"] for one in about["members"].values()] == [*map(str, models_of(results, storage))]
    for split in ("validation", "test"):
        kept = predictions(results, storage, split)
        for artifact in recorded(results, storage, split).values():
            if "teacher 1" not in (parents := artifact.manifest().parents):
                name = "big" if parents["teacher"] in tuned_digests(results, storage) else "small"
                hits = said(artifact, len(kept.hashes)).argmax(1) == kept.targets.values
                assert about["members"][name][split]["accuracy"] == pytest.approx(hits.mean(), rel=1e-5)


def models_of(results: dict[str, Any], storage: Storage) -> list[Path]:
    (tuned,) = artifacts_of_run(storage, find_run(results, storage))["teacher"]
    second = results["config"]["teacher"]["members"]["small"]["model"]
    return [tuned.local() / "model", Path(second)]


def test_what_each_teacher_reaches_alone_is_told(ran: Ran) -> None:
    results, storage, _ = ran
    kept = predictions(results, storage, "validation")
    accuracies = {}
    for artifact in recorded(results, storage, "validation").values():
        hits = said(artifact, len(kept.hashes)).argmax(1) == kept.targets.values
        parents = artifact.manifest().parents
        name = "big" if parents.get("teacher") in tuned_digests(results, storage) else "small"
        accuracies["mean" if "teacher 1" in parents else name] = f"{100 * hits.mean():.1f}"
    told = "the mean of the teachers has accuracy {mean}; big {big}, small {small}.".format(**accuracies)
    assert f"On the validation rows {told}" in results["notes"]
    (chance,) = [note for note in results["notes"] if note.startswith("Teacher small is no better than guessing")]
    assert chance.endswith("The mean may be better without it.")
    is_better = float(accuracies["big"]) >= float(accuracies["mean"])
    advice = "Alone big would be no worse a teacher by that, and cost less than all."
    assert (advice in results["notes"]) == is_better
    assert any(note.startswith("Teacher big: The teacher's logits were divided by") for note in results["notes"])


def tuned_digests(results: dict[str, Any], storage: Storage) -> set[str]:
    return {one.digest for one in artifacts_of_run(storage, find_run(results, storage))["teacher"]}


def test_pages_name_every_teacher(ran: Ran) -> None:
    results, _, folder = ran
    card = model_card(results)
    assert "the weighted mean of what 2 models predict" in card
    assert "weight 3: encoder, fine-tuned on the labelled rows for 6 epochs" in card
    assert "weight 1: second" in card
    page = Path(results["report"]).read_text("utf-8")
    assert f"{folder / 'encoder'} + {folder / 'second'}" in page


@pytest.mark.slow
def test_a_member_is_found_again_that_a_run_of_its_own_has_made(tmp_path: Path) -> None:
    """And the other way round; another member records itself alone, another weight no teacher at all."""
    config = mixture_config(tmp_path, evaluate__baseline=False)
    single = {**config["teacher"]["members"]["big"], "allow_chance": True}
    del single["weight"]
    first = distill(load_config(config | {"teacher": single}))
    assert "teacher" not in first["reused"]
    storage = Storage(config["storage"])
    before = keys_by_kind(storage)
    second = distill(load_config(config))
    assert {"teacher (big)", *(f"signals of {split} (big)" for split in ("train", "validation", "test"))} <= {
        *second["reused"]
    }
    made = {kind: len(keys - before[kind]) for kind, keys in keys_by_kind(storage).items()}
    assert (made["teacher"], made["signals"], made["tokens"], made["student"]) == (0, 6, 1, 1)  # of small, and the mean
    third = save_tiny(tmp_path / "third", "distilbert", num_layers=2, seed=9, labels=ORDER)
    before = keys_by_kind(storage)
    config["teacher"]["members"]["small"]["model"] = str(third)
    again = distill(load_config(config))
    assert {"teacher (big)", "signals of train (big)"} <= {*again["reused"]}
    assert "signals of train (small)" not in again["reused"]
    made = {kind: len(keys - before[kind]) for kind, keys in keys_by_kind(storage).items()}
    assert (made["teacher"], made["signals"], made["student"]) == (0, 6, 1)
    before = keys_by_kind(storage)
    config["teacher"]["members"]["small"]["weight"] = 2.0
    weighed = distill(load_config(config))
    assert {"signals of train (big)", "signals of train (small)"} <= {*weighed["reused"]}
    made = {kind: len(keys - before[kind]) for kind, keys in keys_by_kind(storage).items()}
    assert (made["teacher"], made["signals"], made["student"]) == (0, 3, 1)
    assert {"signals of train", "student"} & {*weighed["reused"]} == set()
    config["teacher"] = {"model": str(third), "finetune": None, "allow_chance": True}
    assert "signals of test" in distill(load_config(config))["reused"]  # alone it is what it was beside others


@pytest.mark.slow
def test_a_single_member_is_the_teacher_that_it_is(tmp_path: Path) -> None:
    config = mixture_config(tmp_path)
    del config["teacher"]["members"]["small"]
    mixed = distill(load_config(config))
    plain = {name: value for name, value in config["teacher"]["members"]["big"].items() if name != "weight"}
    alone = distill(load_config(config | {"teacher": {**plain, "allow_chance": True}}))
    assert {"teacher", "signals of train", "student", "baseline", "evaluation"} <= {*alone["reused"]}
    assert alone["student"]["path"] == mixed["student"]["path"]


@pytest.mark.slow
def test_a_baseline_knows_nothing_of_further_teachers(ran: Ran, tmp_path: Path) -> None:
    _, _, folder = ran
    config = mixture_config(folder)
    single = {name: value for name, value in config["teacher"]["members"]["big"].items() if name != "weight"}
    alone = distill(load_config(config | {"teacher": {**single, "allow_chance": True}}))
    assert {"teacher", "baseline"} <= {*alone["reused"]}
    assert "student" not in alone["reused"]


@pytest.mark.slow
def test_a_stopped_run_goes_on_with_the_teachers_that_are_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from raydistill.pipeline import teaching

    config, asked = load_config(mixture_config(tmp_path, evaluate__baseline=False)), []
    record = teaching.record

    def stopping(*given: Any, **options: Any) -> None:
        record(*given, **options)
        asked.append(given)
        if len(asked) == 4:  # all splits of the first teacher, one of the second
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(teaching, "record", stopping)
        with pytest.raises(Interrupted):
            distill(config)
    storage = Storage(config.storage)
    assert len(keys_by_kind(storage)["signals"]) >= 4
    made, counted = keys_by_kind(storage)["signals"], []

    def counting(*given: Any, **options: Any) -> None:
        counted.append(given)
        record(*given, **options)

    monkeypatch.setattr(teaching, "record", counting)
    results = distill(config)
    assert len(counted) == 9 - len(made)
    whole = distill(load_config(mixture_config(tmp_path, evaluate__baseline=False, storage=str(tmp_path / "whole"))))
    assert results["student"]["test"] == whole["student"]["test"]


def phases_in_ranks(job: Job) -> dict[str, Any]:
    """What a rank has after all phases."""
    context = make_context(job)
    outcome = run_phases(context)
    num_rows = context.rows["train"].num_rows
    made = [Artifact(job.storage, "signals", key) for key in job.storage.list("signals")]
    (record,) = filter(is_mean, made)
    return {"record": said(record, num_rows), "student": read_weights(outcome.student.local() / "model")}


def is_mean(artifact: Artifact) -> bool:
    manifest = artifact.manifest() if len(artifact.key) == 20 and artifact.exists() else None
    return manifest is not None and manifest.recipe["split"] == "train" and "teacher 1" in manifest.parents


@pytest.mark.slow
def test_two_workers_are_one(tmp_path: Path) -> None:
    """Both record their share of each teacher, and of the mean."""
    found = []
    for size in (1, 2):
        changes = {"evaluate__baseline": False, "storage": str(tmp_path / f"of-{size}")}
        config = load_config(mixture_config(tmp_path, teacher__members__big__finetune=None, **changes))
        model = save_tiny(tmp_path / "encoder", "bert", seed=3, labels=ORDER)
        assert config.lead.model == str(model)
        storage = Storage(config.storage)
        prepared = prepare(config, storage)
        job = prepared.job(Owner.acquire(storage, "runs", prepared.run_key), None)
        found.append(run_ranks(phases_in_ranks, size, tmp_path / f"ranks-{size}", job))
    (one,), (first, second) = found
    np.testing.assert_array_equal(first["record"], second["record"])
    np.testing.assert_allclose(first["record"], one["record"], atol=1e-5)
    differences = relative_difference(*(without_key_biases(made["student"]) for made in (first, one)))
    assert max(differences.values()) < 5e-3


@pytest.mark.slow
def test_a_run_on_s3_equals_one_on_a_local_disk(
    remote: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = {"evaluate__baseline": False, "stages__distill__num_epochs": 1}
    local = distill(load_config(mixture_config(tmp_path, **short)))
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    config = load_config(mixture_config(tmp_path, **short, storage=remote.url))
    results = distill(config)
    assert keys_by_kind(remote) == keys_by_kind(Storage(str(tmp_path / "storage")))
    for model in ("student", "teacher"):
        assert results[model]["test"] == local[model]["test"]
    assert same_weights(read_weights(results["student"]["path"]), read_weights(local["student"]["path"]))
    assert metric_steps(uri, results["run_id"], "big/teacher/train/loss")
    shutil.rmtree(tmp_path / "node-cache")  # or another node
    assert distill(config)["reused"] == ["run"]


@pytest.mark.slow
def test_a_plan_has_the_passes_of_every_teacher(tmp_path: Path) -> None:
    config = load_config(mixture_config(tmp_path))
    plan = make_plan(config)
    states = {phase["phase"]: phase["state"] for phase in plan["phases"]}
    assert [*states] == [
        *("data", "tokens", "teacher (big)", "signal logits (big)", "teacher (small)", "signal logits (small)"),
        *("signal logits", "baseline", "student"),
    ]
    assert states["teacher (small)"] == "there"
    assert (plan["teacher"]["mode"], plan["teacher"]["weights"]) == ("cached", {"big": 3.0, "small": 1.0})
    assert {"teacher (big)", "student.distill", "baseline.distill"} == set(plan["steps"])
    distill(config)
    done = make_plan(config)
    assert {phase["state"] for phase in done["phases"]} == {"there"}


def test_open_settings_are_chosen_for_each_teacher(tmp_path: Path) -> None:
    config = mixture_config(tmp_path, data__max_length="auto")
    for member in config["teacher"]["members"].values():
        member.pop("finetune")
    plan = make_plan(load_config(config), check=True)
    chosen = {choice["name"]: choice["value"] for choice in plan["choices"]}
    assert chosen["teacher.members.big.finetune.method"] == "contrastive"
    assert chosen["teacher.members.small.finetune"] is None  # it has a trained head
    assert {"data.max_length", "data.max_length of teacher.members.small"} <= chosen.keys()
    assert not any(name.startswith("teacher.finetune") for name in chosen)
    findings = " ".join(plan["findings"])
    assert "The losses were checked with teacher big alone as it is before its fine-tuning." in findings


def test_trials_share_the_mean(tmp_path: Path) -> None:
    plain = mixture_config(tmp_path, train__num_workers=1, evaluate__baseline=False)
    plain["sweep"] = {"space": {"student.num_layers": {"choice": [1, 2]}}, "scheduler": "none"}
    shared = make_shared(plain)
    (record,) = shared.signals.values()
    assert is_mean(record)
    save_shared(shared)
    again = load_shared(shared.job)
    assert again is not None
    assert again.teacher == shared.teacher
    assert again.signals == shared.signals
    before = keys_by_kind(shared.job.storage)
    spec = TrialSpec(0, "00000", [(0, {"student.num_layers": 1})])
    *_, last = trial_reports(make_context(trial_job(shared, spec)), shared)
    assert last["finished"]
    made = {kind: len(keys - before[kind]) for kind, keys in keys_by_kind(shared.job.storage).items()}
    assert {kind: count for kind, count in made.items() if count} == {"student": 1}


def test_each_kind_of_prediction_has_its_own_mean() -> None:
    draw = np.random.default_rng(0)
    outputs = [*draw.normal(scale=3, size=(3, 7, 4)).astype(np.float32)]
    weights, shares = [1.0, 2.0, 5.0], np.array([1, 2, 5]) / 8
    exact = np.asarray(outputs, np.float64)
    several, one_class = MultiLabelClassification(tuple("abcd")), TextClassification(tuple("abcd"))
    mean = np.einsum("k,knc->nc", shares, expit(exact))
    np.testing.assert_allclose(expit(several.averaged(outputs, weights)), mean, rtol=1e-5)
    mean = np.einsum("k,knc->nc", shares, softmax(exact, axis=2))
    np.testing.assert_allclose(softmax(one_class.averaged(outputs, weights), axis=1), mean, rtol=1e-5)
    words = TokenClassification(tuple("abcd")).averaged(outputs, weights)
    np.testing.assert_allclose(softmax(words, axis=1), mean, rtol=1e-5)
    numbers = TextRegression(3.0, 2.0)
    values = numbers.restored(numbers.averaged(outputs, weights))
    np.testing.assert_allclose(values, np.einsum("k,knc->nc", shares, 3 + 2 * exact), rtol=1e-5)


@pytest.mark.slow
def test_teachers_of_numbers_and_of_vectors(tmp_path: Path) -> None:
    """The teacher's row in the results is the mean of what each was recorded to say, in the units of the targets."""
    made = []
    for name, config in (("numbers", number_config(tmp_path / "n")), ("vectors", vector_config(tmp_path / "v"))):
        results, storage = distill(load_config(config)), Storage(config["storage"])
        kept = predictions(results, storage)
        records = recorded(results, storage, "test").values()
        (mean,) = [one for one in records if "teacher 1" in one.manifest().parents]
        each = [said(one, len(kept.hashes)) for one in records if one != mean]
        np.testing.assert_allclose(said(mean, len(kept.hashes)), np.mean(each, axis=0), atol=1e-5)
        center, scale = kept.tasks["teacher"].output_scale
        np.testing.assert_allclose(
            kept.outputs["teacher"], center + scale * np.mean(each, axis=0), rtol=1e-4, atol=1e-4
        )
        made.append((name, center))
    assert made[0][1] != 0.0


def number_config(folder: Path) -> dict[str, Any]:
    folder.mkdir()
    config = mixture_config(folder, task__type="text_regression", evaluate__baseline=False)
    config["data"] |= {"path": str(write_numbers_csv(folder / "numbers.csv")), "max_labeled": None}
    members = config["teacher"]["members"]
    save_tiny(folder / "plain", "roberta", num_layers=2, seed=5, classifier=False)
    tuned = {**members["big"], "weight": 1.0, "finetune": {"num_epochs": 1, "learning_rate": 1e-3}}
    config["teacher"]["members"] = {"a": tuned, "b": {**tuned, "model": str(folder / "plain")}}
    config["stages"]["distill"]["losses"] = {"kd": {"type": "logit_mse"}}
    return config


def vector_config(folder: Path) -> dict[str, Any]:
    folder.mkdir()
    config = mixture_config(folder, task__type="embeddings", evaluate__baseline=False)
    config["data"]["max_labeled"] = None
    save_tiny(folder / "plain", "bert", num_layers=2, seed=5, classifier=False)
    models = {"a": folder / "encoder", "b": with_other_ids(folder / "plain")}
    config["teacher"]["members"] = {name: {"model": str(model), "finetune": None} for name, model in models.items()}
    config["stages"]["distill"]["losses"] = {"vectors": {"type": "vector_mse"}}
    return config


@pytest.mark.slow
def test_teachers_of_words_need_one_tokenizer(tmp_path: Path) -> None:
    config = tagged_config(tmp_path, evaluate__baseline=False, evaluate__tfidf=False)
    one = {"model": config["teacher"]["model"], "finetune": {"num_epochs": 2, "learning_rate": 2e-3}}
    other = save_tiny(tmp_path / "other", "bert", num_layers=2, seed=5, classifier=False)
    members = {"a": {**one, "weight": 2.0}, "b": {**one, "model": str(other)}}
    config["teacher"] = {"type": "mixture", "allow_chance": True, "members": members}
    results, storage = distill(load_config(config)), Storage(config["storage"])
    records = recorded(results, storage)
    (mean,) = [one for one in records.values() if "teacher 1" in one.manifest().parents]
    by_teacher = {Artifact(storage, "teacher", key).digest: key for key in storage.list("teacher") if len(key) == 20}
    each = {one.manifest().parents["teacher"]: one for one in records.values() if one != mean}
    assert each.keys() == by_teacher.keys()
    num_rows = Rows.open(artifacts_of_run(storage, find_run(results, storage))["tokens"][0].local(), "train").num_rows
    first, second = (said(each[mean.manifest().parents[f"teacher {i}"]], num_rows) for i in (0, 1))
    wanted = (2 * softmax(first, axis=1) + softmax(second, axis=1)) / 3
    np.testing.assert_allclose(softmax(said(mean, num_rows), axis=1), wanted, atol=1e-5)
    with_other_ids(other)
    with pytest.raises(ConfigError, match=r"members\.b: its tokens are not those of the first teacher, and task"):
        distill(load_config(config))


def refused(config: dict[str, Any]) -> str:
    with pytest.raises(RaydistillError) as caught:
        prepare(load_config(config), Storage(config["storage"]))
    return str(caught.value)


REFUSED = {
    "teacher__members": ({}, "teacher.members: Dictionary should have at least 1 item"),
    "teacher__members__big__weight": (-1, "teacher.members.big.weight: Input should be greater than or equal to 0"),
    "teacher__members__small__weight": (0, "teacher.members.small.weight: only the first, from which the student"),
    "teacher__mode": ("online", "teacher.mode: a mixture is recorded, as its teachers are there one after the other"),
    "teacher__pool": ({"max": 2}, "teacher.pool: a mixture is recorded"),
    "teacher__max_cache_bytes": (5, "teacher.max_cache_bytes: unknown name for this type of teacher."),
    "teacher__members__small__finetune": (
        {"method": "full", "head": "crf"},
        "teacher.members.small.finetune.head: crf reads labels of words",
    ),
    "teacher__members__big__finetune": ({"metric": "rmse"}, "teacher.members.big.finetune.metric: rmse is no metric"),
    "stages__distill__losses__kd": (
        {"type": "hidden_mse"},
        "stages.distill.losses.kd: hidden_mse compares hidden states, of which several teachers have no mean",
    ),
    "task__type": ("question_answering", "teacher.type: mixture has no mean of the spans of question_answering"),
    "evaluate__robustness": (
        True,
        "teacher.members.small: its tokens are not those of the first teacher, and",
    ),
    "data__augment": (
        {"copies": 1, "ways": ["words"]},
        "teacher.members.small: it has another tokenizer",
    ),
    "teacher__members__small__model": ("/nowhere", "teacher.members.small: /nowhere does not exist."),
}


@pytest.mark.parametrize(("name", "value", "told"), [(name, *rest) for name, rest in REFUSED.items()], ids=[*REFUSED])
def test_what_several_teachers_cannot_is_refused_with_its_place(
    tmp_path: Path, name: str, value: Any, told: str
) -> None:
    assert told in refused(mixture_config(tmp_path, **{name: value}))


def test_vectors_of_two_widths_have_no_mean(tmp_path: Path) -> None:
    config = vector_config(tmp_path / "v")
    wide = AutoModel.from_config(BertConfig(**tiny_config("bert").to_diff_dict() | {"hidden_size": 48}))
    wide.save_pretrained(tmp_path / "v" / "plain")
    assert "teacher.members: vectors of other widths (a 32, b 48) have no mean. Bring all to one" in refused(config)


def test_nobody_with_a_weight_is_refused(tmp_path: Path) -> None:
    config = mixture_config(tmp_path, teacher__members__big__weight=0, teacher__members__small__weight=0)
    assert "teacher.members: nobody has a weight above 0" in refused(config)


def test_a_student_learns_from_a_teacher_with_another_tokenizer(ran: Ran, tmp_path: Path) -> None:
    """The first has no say: what is recorded in the mean is what the other one says, in the order of the labels."""
    _, _, folder = ran
    config = mixture_config(folder, teacher__members__big__weight=0, storage=str(tmp_path / "storage"))
    results, storage = distill(load_config(config)), Storage(config["storage"])
    records = recorded(results, storage)
    assert len(records) == 2  # of the other one, and in the mean
    (mean,) = [one for one in records.values() if "teacher 1" in one.manifest().parents]
    (data,) = artifacts_of_run(storage, find_run(results, storage))["data"]
    texts = read_texts(data, "train")[0].to_pylist()
    wanted = by_hand(folder / "second", texts, results["labels"])
    np.testing.assert_allclose(softmax(said(mean, len(texts)), axis=1), wanted, atol=2e-6)
    assert results["teacher"]["members"]["big"]["weight"] == 0
    tokenizers = [AutoTokenizer.from_pretrained(path) for path in (results["student"]["path"], folder / "second")]
    assert tokenizers[0].get_vocab() != tokenizers[1].get_vocab()


def test_the_same_teacher_twice_is_refused(tmp_path: Path) -> None:
    config = mixture_config(tmp_path)
    config["teacher"]["members"]["again"] = {**config["teacher"]["members"]["small"], "weight": 5.0}
    told = "teacher.members.again: is the same teacher as small. Leave it out, and add its weight to that of small."
    assert told in refused(config)


@pytest.mark.slow
def test_other_labels_and_an_untrained_head_name_their_teacher(tmp_path: Path) -> None:
    config = mixture_config(tmp_path)
    strange = save_tiny(tmp_path / "strange", "bert", num_layers=2, labels=("film", "weather"))
    config["teacher"]["members"]["small"]["model"] = str(strange)
    with pytest.raises(ModelError, match=r"^teacher.members.small: .*weather"):
        distill(load_config(config))
    config["teacher"]["members"]["small"]["model"] = str(
        save_tiny(tmp_path / "plain", "bert", seed=3, classifier=False)
    )
    with pytest.raises(ModelError, match=r"^teacher.members.small: .* is an encoder without a trained"):
        distill(load_config(config))


@pytest.mark.slow
def test_a_mean_at_chance_ends_the_run(tmp_path: Path) -> None:
    config = mixture_config(tmp_path, teacher__allow_chance=False)
    config["teacher"]["members"]["big"] = {"model": str(save_tiny(tmp_path / "random", labels=ORDER)), "finetune": None}
    with pytest.raises(ModelError, match="On the validation rows the mean of the teachers is no better than guessing"):
        distill(load_config(config))


def test_a_submitted_job_brings_every_teacher(tmp_path: Path) -> None:
    config = load_config(mixture_config(tmp_path))
    found = {one.setting: one.value for one in config_references(config) if one.kind == "model"}
    assert found == {f"teacher.members.{name}.model": member.model for name, member in config.members.items()}
