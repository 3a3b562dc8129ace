"""Ways to a teacher: a head on frozen states, pairs of rows, trainings that fail and begin again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from kit.ranks import run_ranks
from kit.runs import make_context, read_weights
from kit.toy import relative_difference, toy_config, without_key_biases
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import normalize

from raydistill.config.loading import load_config
from raydistill.config.section import known
from raydistill.data.rows import Rows
from raydistill.errors import ConfigError
from raydistill.models.load import load_model
from raydistill.pipeline import context
from raydistill.pipeline.completion import check_validation
from raydistill.pipeline.defaults import FEW_VALIDATION
from raydistill.pipeline.distill import distill
from raydistill.pipeline.finetuning import patience, tune, watched
from raydistill.pipeline.job import Job
from raydistill.pipeline.prepare import prepare
from raydistill.pipeline.stages import StageReport
from raydistill.storage.ownership import Owner
from raydistill.storage.storage import Storage
from raydistill.tasks import Targets, TextClassification, TextRegression, TokenClassification
from raydistill.tasks.targets import Ragged
from raydistill.tracking.endpoint import tracking_uri
from raydistill.tracking.journal import read_points, write_history
from raydistill.tracking.runs import open_client
from raydistill.train.checkpoint import WORST
from raydistill.train.loop import Report, StageRun
from raydistill.train.schedule import Schedule

pytestmark = pytest.mark.usefixtures("mlflow_uri")


def distilled(folder: Path, finetune: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return distill(load_config(toy_config(folder, teacher__finetune=finetune, **changes)))


def test_a_probe_is_the_logistic_regression_of_the_mean_states(tmp_path: Path) -> None:
    results = distilled(tmp_path, {"method": "probe"}, evaluate__baseline=False)
    path = Path(results["teacher"]["path"])
    assert any("a linear head on frozen states; cross-validation chose its C" in note for note in results["notes"])
    assert any("logits were divided by" in note for note in results["notes"])
    before = read_weights(tmp_path / "encoder")
    after = {name.removeprefix("bert."): tensor for name, tensor in read_weights(path).items()}
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items() if name in after)
    (tokens,) = (tmp_path / "storage" / "tokens").iterdir()
    train = Rows.open(tokens, "train")
    ids = np.flatnonzero(train.targets.labeled)
    encoder = load_model(path, None)
    with torch.no_grad():
        states = encoder.base_model(**train.inputs(ids)).last_hidden_state
    mask = train.inputs(ids)["attention_mask"][..., None]
    embeddings = normalize(((states * mask).sum(1) / mask.sum(1)).numpy())
    (strength,) = (float(n.split("chose its C, ")[1].rstrip(".")) for n in results["notes"] if "chose its C" in n)
    judge = LogisticRegression(C=strength, max_iter=5000).fit(embeddings, train.targets.values[ids])
    with torch.no_grad():
        found = encoder(**train.inputs(ids)).logits.numpy()
    temperature = float(next(n for n in results["notes"] if "divided by" in n).split("divided by ")[1].split(",")[0])
    expected = judge.decision_function(embeddings) / temperature
    assert (found - found.mean(1, keepdims=True)) == pytest.approx(expected, rel=0.02, abs=0.05)


@pytest.mark.slow
def test_pairs_of_rows_make_a_better_teacher_than_frozen_states(tmp_path: Path) -> None:
    probe = distilled(tmp_path, {"method": "probe"}, evaluate__baseline=False)
    pairs = {"method": "contrastive", "num_epochs": 20, "learning_rate": 3e-3}
    trained = distilled(tmp_path, pairs, evaluate__baseline=False)
    losses = [r["teacher"]["test"]["log_loss"]["value"] for r in (trained, probe)]
    assert losses[0] < losses[1]
    curve = trained["curves"]["teacher"]
    told = [point["metrics"]["train/loss/pairs"] for point in curve]
    assert told[-1] < 0.7 * told[0]
    assert trained["teacher"]["test"]["accuracy"]["value"] > 0.6
    config = Path(trained["student"]["path"], "config.json").read_text()
    assert "sentence_head" not in config


def test_a_training_that_learns_nothing_is_given_up_early_and_begun_again(tmp_path: Path) -> None:
    steps: list[tuple[str, float, int]] = []
    taken = StageRun.take_step

    def noting(self: StageRun, step: int, *rest: Any) -> None:
        if self.setup.name.startswith("teacher."):
            steps.append((self.setup.name, known(self.setup.optimization.learning_rate), self.setup.seed))
        taken(self, step, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StageRun, "take_step", noting)
        slow = {"num_epochs": 5, "learning_rate": 1e-9, "max_attempts": 3}
        results = distilled(tmp_path, slow, evaluate__baseline=False)
    counts = {entry: steps.count(entry) for entry in dict.fromkeys(steps)}
    whole = counts[("teacher.attempt3", 2.5e-10, 2)]
    assert list(counts) == [
        ("teacher.finetune", 1e-9, 0),
        ("teacher.attempt2", 5e-10, 1),
        ("teacher.attempt3", 2.5e-10, 2),
    ]
    assert whole == 20
    assert all(
        0.4 * whole <= count <= 0.5 * whole + 1 for name, count in counts.items() if name[0] != "teacher.attempt3"
    )
    assert sum("was begun again, with another order" in note for note in results["notes"]) == 2
    client = open_client(tracking_uri(Storage(str(tmp_path / "storage"))))
    drawn = {
        prefix: [point.step for point in client.get_metric_history(results["run_id"], f"{prefix}/train/loss")]
        for prefix in ("teacher", "teacher/attempt-2", "teacher/attempt-3")
    }
    assert all(steps == sorted({*steps}) and steps for steps in drawn.values())
    assert [steps[0] for steps in drawn.values()] == [drawn["teacher"][0]] * 3  # each from its beginning on
    assert drawn["teacher"][-1] <= 0.5 * whole + 1 < drawn["teacher/attempt-3"][-1] == whole
    history = json.loads((Path(results["teacher"]["path"]).parent / "training.json").read_text())["history"]
    assert {entry["attempt"] for entry in history} == {3}
    write_history(tmp_path / "sent.jsonl", {"teacher": history})
    sent = [point.key for point in read_points(tmp_path / "sent.jsonl", 0, 1000)[0]]
    assert {key.rpartition("train/")[0] for key in sent if "train/" in key} == {"teacher/attempt-3/"}


def test_a_training_that_diverges_is_begun_again_and_one_that_learns_is_not(tmp_path: Path) -> None:
    taken, broken = StageRun.take_step, []

    def breaking(self: StageRun, step: int, *rest: Any) -> None:
        taken(self, step, *rest)
        if self.setup.name == "teacher.finetune" and step == 3:
            broken.append(step)
            self._norm = torch.tensor(float("inf"))

    good = {"num_epochs": 12, "learning_rate": 4e-3, "max_attempts": 2}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StageRun, "take_step", breaking)
        results = distilled(tmp_path, good, evaluate__baseline=False)
    assert broken == [3]
    (note,) = (note for note in results["notes"] if "was begun again" in note)
    assert "is not finite" in note
    assert "a learning rate of 0.002" in note
    assert results["teacher"]["test"]["accuracy"]["value"] > 0.6


def _tuned(job: Job, folder: Path) -> dict[str, torch.Tensor]:
    settings = known(job.config.teacher.finetune)
    assert settings is not None
    return tune(make_context(job), folder, settings)[0].state_dict()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["probe", "contrastive"])
def test_two_workers_make_the_same_teacher_as_one(method: str, tmp_path: Path) -> None:
    finetune = {"method": method} | ({"num_epochs": 3, "learning_rate": 1e-3} if method == "contrastive" else {})
    config = load_config(toy_config(tmp_path, teacher__finetune=finetune))
    prepared = prepare(config, Storage(config.storage))
    job = prepared.job(Owner.acquire(prepared.storage, "runs", prepared.run_key), None)  # not tracked
    one = _tuned(replace(job, folder=("one",)), prepared.source)
    both = run_ranks(_tuned, 2, tmp_path / "two", replace(job, folder=("two",)), prepared.source)
    assert all(torch.equal(both[0][name], both[1][name]) for name in one)
    different = relative_difference(without_key_biases(one), without_key_biases(both[0]))
    assert max(different.values()) < 0.01


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task__type": "text_regression"}, "contrastive needs one class a row"),
        ({"train__global_batch_size": 18}, "18 is not a multiple of 4"),
    ],
)
def test_pairs_that_cannot_be_made_are_refused_before_any_work(changes: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(toy_config(tmp_path, teacher__finetune={"method": "contrastive"}, **changes))


def test_weights_whose_metric_is_not_defined_count_as_the_worst(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model may leave a metric undefined that the rows define: the run goes on, and a note says so."""
    report = SimpleNamespace(notes=[])
    targets = np.array([0.5])
    fake = SimpleNamespace(
        task=TextRegression(),
        report=report,
        config=SimpleNamespace(epoch_metric="r2"),
        labeled=lambda *_, **__: (np.array([[1.0]], np.float32), targets),
    )
    monkeypatch.setattr(context, "saved_settings", lambda model: {})
    found = context.Context.validate(fake, None, "r2")
    assert (found.score, len(found.samples), "r2" in found.metrics) == (WORST, 0, False)
    (note,) = report.notes
    assert "R² is not defined on the validation rows, because their targets are all the same" in note
    other = context.Context.validate(fake, None, "rmse")
    assert (other.score, other.main) == (-0.5, None)  # an open end goes by what is defined


@pytest.mark.parametrize(("num_rows", "is_taken_to"), [(FEW_VALIDATION, False), (FEW_VALIDATION - 1, True)])
def test_few_rows_do_not_tell_that_a_model_has_learned_nothing(
    num_rows: int, is_taken_to: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else an open end would go on to its limit where a good model is at chance on ten of them."""
    fake = SimpleNamespace(
        task=TextClassification(["a", "b"]),
        config=SimpleNamespace(epoch_metric="accuracy"),
        labeled=lambda *_, **__: (np.tile(np.float32([[1, 0]]), (num_rows, 1)), np.arange(num_rows) % 2),
    )
    monkeypatch.setattr(context, "saved_settings", lambda model: {})
    assert context.Context.validate(fake, None, "accuracy").has_learned() == is_taken_to


def test_words_of_few_rows_tell_that_a_tagger_has_learned_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of persons in 270 sentences answered none for 100 steps, and its 30 validation rows have 900 words."""
    lengths = np.full(10, FEW_VALIDATION // 10)
    place = np.arange(FEW_VALIDATION) % 10
    values = Ragged(np.stack([2 * place, 2 * place + 1, place // 9], axis=1), lengths)  # each last word is a person
    task = TokenClassification(["O", "B-PER"])
    answers = {"none": np.zeros_like(place), "all": place // 9}
    monkeypatch.setattr(context, "saved_settings", lambda model: {})
    for name, answer in answers.items():
        outputs = Ragged(np.eye(2, dtype=np.float32)[answer], lengths)
        fake = SimpleNamespace(
            task=task,
            config=SimpleNamespace(epoch_metric="entity_f1"),
            labeled=lambda *_, outputs=outputs, **__: (outputs, values),
        )
        assert context.Context.validate(fake, None, "entity_f1").has_learned() == (name == "all")


@pytest.mark.parametrize(("learns_after", "failure"), [(6, None), (99, "after 10 of 15 steps its loss was 0.500")])
def test_a_training_with_an_open_end_has_its_least_length_to_begin_to_learn(
    learns_after: int, failure: str | None
) -> None:
    """Half the rate is no help for a slow start: it is slower still."""
    told = (
        StageReport(Report(step, 15, {"train/loss": 0.5 if step <= learns_after else 0.1}, False), step, 15, step == 15)
        for step in range(1, 16)
    )
    found = watched(told, {}, patience(Schedule(40, 5, 10)), 0.49)
    assert found is None if failure is None else found is not None and found.startswith(failure)
    assert (next(told, None) is None) == (failure is None)
    assert patience(Schedule(10, 5)) == 4  # one that has an end is not made longer


@pytest.mark.parametrize(
    ("section", "place"),
    [
        ({"evaluate": {"metric": "r2"}}, "evaluate.metric"),
        ({"teacher": {"model": "x", "finetune": {"metric": "r2"}}}, "teacher.finetune.metric"),
        ({"sweep": {"space": {"train.seed": {"choice": [1, 2]}}, "objectives": {"validation/r2": "max"}}},
         "sweep.objectives.validation/r2"),
        ({"teacher": {"type": "mixture", "members": {"one": {"model": "x", "finetune": {"metric": "r2"}}}}},
         "teacher.members.one.finetune.metric"),
    ],
)  # fmt: skip
def test_a_metric_that_the_validation_rows_do_not_define_is_refused(section: dict[str, Any], place: str) -> None:
    losses = {"kd": {"type": "logit_mse"}}
    plain = {"data": {"path": "rows.csv"}, "teacher": {"model": "x"}, "task": {"type": "text_regression"}, **section}
    config = load_config({**plain, "stages": {"distill": {"losses": losses}}})
    task, labeled = TextRegression(), np.ones(2, bool)
    check_validation(config, task, Targets(np.array([1.0, 2.0]), labeled))
    with pytest.raises(ConfigError, match=rf"{place}: R² is not defined on the validation rows.*rmse.*data\.split"):
        check_validation(config, task, Targets(np.array([1.0, 1.0]), labeled))
