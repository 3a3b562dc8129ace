"""CRFs of words, from rows to a registered student: windows, workers, recorded signals, answers everywhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from kit.finished import predict_texts
from kit.ranks import run_ranks
from kit.registered import client, judge_version, verdicts
from kit.runs import make_context, make_shared
from kit.served import served
from kit.stages import assert_ranks_equal_one, batch_gradients, gradient_differences, record_signals, stage_setup
from kit.tagged import LABELS, tagged_config, tagged_rows
from kit.toy import Toy
from transformers import AutoModelForTokenClassification, pipeline

import raydistill
from raydistill.cluster.device import Device
from raydistill.cluster.group import Group
from raydistill.config.gate import Gate
from raydistill.config.loading import load_config
from raydistill.config.student import EncoderStudent
from raydistill.config.teacher import MODES
from raydistill.config.training import Stage
from raydistill.data.prepare import prepare_data
from raydistill.data.tokens import tokenize_data
from raydistill.deploy.export.export import export
from raydistill.deploy.inference import evaluate_model
from raydistill.errors import ConfigError
from raydistill.losses import build_losses
from raydistill.models.capture import capture
from raydistill.models.load import load_model, save_model
from raydistill.models.scorer import Scorer
from raydistill.models.signals import LOG_MARGINALS, LOGITS, TRANSITIONS, Signal
from raydistill.models.student import build_student
from raydistill.pipeline import recipes
from raydistill.search.trial import TrialSpec, trial_job, trial_reports
from raydistill.storage.artifacts import Artifact
from raydistill.storage.storage import Storage
from raydistill.tasks.targets import Ragged
from raydistill.tasks.token_classification import TokenClassification
from raydistill.tasks.token_classification.words import stray
from raydistill.teacher.signals import OnlineSignals, Signals
from raydistill.train.calibration import fit_temperature
from raydistill.train.loop import Setup

LENGTH = 12
"""Tokens of a window: half of the rows need several."""
TASK = TokenClassification(LABELS)
K_BEST = Signal("k_best[3]")


def make_tagged(folder: Path) -> Toy:
    folder.mkdir(parents=True, exist_ok=True)
    config = load_config(tagged_config(folder, data__max_length=LENGTH, data__max_labeled=100))
    storage = Storage(config.storage)
    tokens = tokenize_data(prepare_data(config, storage), folder / "encoder", LENGTH, storage)
    return Toy(folder, storage, tokens, LABELS)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return make_tagged(tmp_path_factory.mktemp("tagged"))


def teacher_of(toy: Toy) -> Any:
    """A CRF whose transitions say something."""
    model: Any = load_model(toy.folder / "encoder", TASK.head, sequences="crf", seed=3)
    with torch.no_grad():
        model.crf.transitions.normal_(generator=torch.Generator().manual_seed(0))
    return model


def setup_of(
    toy: Toy, name: str, row_ids: np.ndarray, signals: Signals | None = None, student_head: Any = "constrained_crf"
) -> Setup:
    teacher = teacher_of(toy)
    student = build_student(teacher, EncoderStudent(num_layers=2, head=student_head), seed=0)
    terms = {
        "kd": {"type": "forward_kl", "temperature": 1.5},
        "decoupled": {"type": "dkd", "weight": 0.1},
        "best": {"type": "k_best", "k": 3},
        "task": {"type": "task", "weight": 0.5},
    }
    return stage_setup(toy, name, (student, teacher), TASK, terms, row_ids, signals)


def test_rows_know_whether_they_begin_their_text(toy: Toy) -> None:
    rows = toy.rows()
    ids = np.random.default_rng(0).permutation(rows.num_rows)
    begins = rows.inputs(ids)["row_begins"].numpy()
    first = {int(example): int(np.flatnonzero(rows.example_ids == example)[0]) for example in rows.example_ids}
    assert begins.tolist() == [first[int(rows.example_ids[row])] == row for row in ids]
    assert 0 < (~begins).sum() < len(begins)


def test_the_task_loss_is_the_likelihood_of_whole_rows(toy: Toy) -> None:
    """By hand, row by row, each alone, over the sequences that begin as the labels do."""
    rows, model = toy.rows(), teacher_of(toy)
    setup = setup_of(toy, "hand", np.arange(30))
    batch = rows.batch(np.arange(30))
    scores = model.crf.scores().detach().double()
    with torch.no_grad():
        found = capture(model, batch.inputs, {LOGITS, TRANSITIONS, LOG_MARGINALS})
        values = setup.losses["task"](found, {}, batch)
        expected, begins = [], batch.inputs["row_begins"]
        emissions = Ragged(found[LOGITS].double().numpy(), rows.units[np.arange(30)].lengths)
        for row in np.flatnonzero(batch.targets.labeled):
            own, labels = torch.tensor(emissions[int(row)]), rows.targets.values[int(row)][:, 2]
            if not len(own):
                continue
            total = scores[-1] * float(begins[row])
            told = float(total[labels[0]])
            for t in range(len(own)):
                total = total + own[t]
                told += float(own[t, labels[t]]) + (float(scores[labels[t - 1], labels[t]]) if t else 0.0)
                if t < len(own) - 1:
                    total = (total[:, None] + scores[:-1]).logsumexp(0)
            expected.append(float(total.logsumexp(0)) - told)
    assert len(values) == setup.losses.terms["task"].count(batch)
    assert float(values.sum()) == pytest.approx(sum(expected), rel=1e-5)


def test_a_softmax_student_learns_marginals_and_a_crf_from_softmax(toy: Toy) -> None:
    """What is compared are log-probabilities of single labels, whatever makes them."""
    rows, ids = toy.rows(), np.arange(20)
    batch, teacher = rows.batch(ids), teacher_of(toy)
    plain = build_student(teacher, EncoderStudent(num_layers=2), seed=0)
    for student, spoken in ((plain, teacher), (teacher, plain)):
        terms = Stage.model_validate({"losses": {"kd": {"type": "forward_kl", "temperature": 1.0}}}).losses
        losses = build_losses(terms, TASK, student.config, spoken.config, seed=0)
        with torch.no_grad():
            own, other = (
                capture(model, batch.inputs, needs)
                for model, needs in ((student, losses.student_needs), (spoken, losses.teacher_needs))
            )
            values = losses["kd"](own, other, batch)
        (p,), (q,) = (list(found.values()) for found in (other, own))
        p, q = p.double().softmax(-1), q.double().softmax(-1)
        torch.testing.assert_close(values.double(), (p * (p / q).log()).sum(-1), rtol=1e-4, atol=1e-6)
        assert {*own} == {LOG_MARGINALS if student is teacher else LOGITS}


def test_recorded_sequences_are_the_teachers_own(toy: Toy) -> None:
    rows, teacher, signals = toy.rows(), teacher_of(toy), (LOG_MARGINALS, K_BEST)
    recorded = record_signals(toy, teacher, signals)
    ids = np.random.default_rng(0).permutation(rows.num_rows)[:50]
    stored, own = recorded.rows(ids), OnlineSignals(teacher, signals, Device()).read(rows.batch(ids))
    assert torch.equal(stored[K_BEST][:, :3], own[K_BEST][:, :3])
    for signal in signals:
        torch.testing.assert_close(stored[signal], own[signal], rtol=1e-4, atol=1e-4)
    online = batch_gradients(setup_of(toy, "online", np.arange(64)))
    cached = batch_gradients(setup_of(toy, "cached", np.arange(64), recorded))
    difference = gradient_differences(online, cached)
    assert "crf.transitions" in difference
    assert max(difference.values()) < 1e-4


def rank_gradients(folder: Path) -> dict[str, Any]:
    return {"gradients": batch_gradients(setup_of(make_tagged(folder), "ranks", np.arange(64))), "rank": Group().rank}


def test_two_workers_equal_one(tmp_path: Path) -> None:
    make_tagged(tmp_path / "two")
    one = rank_gradients(tmp_path / "one")
    difference = assert_ranks_equal_one(one, run_ranks(rank_gradients, 2, tmp_path / "ranks", tmp_path / "two"))
    assert "crf.transitions" in difference


def test_the_temperature_of_a_crf_is_that_of_whole_rows() -> None:
    """Labels drawn from a CRF are fitted best by it; one that is three times as sure is divided by 3."""
    generator = torch.Generator().manual_seed(0)
    chain = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    num_rows, length = 600, 6
    emissions = torch.randn(num_rows, length, 3, generator=generator, dtype=torch.float64)
    paths = torch.cartesian_prod(*[torch.arange(3)] * length)
    total = chain[-1, paths[:, 0]] + chain[paths[:, :-1], paths[:, 1:]].sum(1)
    drawn = []
    for row in emissions:
        sums = total + row[torch.arange(length), paths].sum(1)
        drawn.append(paths[torch.multinomial(sums.softmax(0), 1, generator=generator)[0]])
    labels = torch.cat(drawn)
    values = np.column_stack([np.zeros((len(labels), 2)), labels.numpy()]).astype(np.int32)
    lengths = np.full(num_rows, length)
    task = TokenClassification(("a", "b", "c"))
    outputs = Ragged((3 * emissions).flatten(0, 1).numpy(), lengths)
    assert fit_temperature(task, outputs, Ragged(values, lengths), 3 * chain) == pytest.approx(3, rel=0.1)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("finished")
    changes = {
        "teacher__finetune": {"num_epochs": 6, "learning_rate": 3e-3, "head": "crf"},
        "student__head": "constrained_crf",
        "stages__distill": {
            "num_epochs": 4,
            "learning_rate": 3e-3,
            "losses": {"kd": {"type": "forward_kl"}, "best": {"type": "k_best"}, "task": {"type": "task"}},
        },
        "data__split": {"validation": 0.1, "test": 0.4},
        "evaluate__baseline": False,
    }
    config = tagged_config(folder, 400, data__max_length=LENGTH, data__max_labeled=None, **changes)
    return dict(raydistill.distill(config)), folder


TEXTS = [" ".join(row["tokens"]) for row in tagged_rows(40, seed=9, longest=30)] + ["the bank " * 60]


@pytest.mark.slow
def test_a_crf_learns_from_a_crf_and_is_measured_by_its_sequences(
    finished: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    results, folder = finished
    assert results["student"]["test"]["entity_f1"]["low"] > 0.3
    assert results["agreement"] > 0.85
    own = evaluate_model(results["student"]["path"], storage=str(folder / "storage"), max_length=LENGTH)
    for name, found in results["student"]["test"].items():
        assert own["metrics"][name]["value"] == pytest.approx(found["value"], abs=2e-4), name


@pytest.mark.slow
def test_answers_of_a_crf_are_the_same_everywhere(finished: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    """``predict``, the stored scorer and an export read whole texts, also those of many windows."""
    results, folder = finished
    model, storage = results["student"]["path"], str(folder / "storage")
    found = export(model, ["onnx"], tmp_path / "out", storage=storage, max_length=LENGTH, latency=False)
    assert found["good"], found
    own, exported = (
        [row["entities"] for row in predict_texts(path, TEXTS, max_length=LENGTH)] for path in (model, tmp_path / "out")
    )
    stored = [row["entities"] for row in Scorer(model, LENGTH).predict(pd.DataFrame({"text": TEXTS}))]
    assert sum(map(len, own)) > 20
    for first, *others in zip(own, exported, stored, strict=True):
        for other in others:
            assert [{**entity, "score": 0} for entity in other] == [{**entity, "score": 0} for entity in first]
            assert [e["score"] for e in other] == pytest.approx([e["score"] for e in first], abs=1e-4)


@pytest.mark.slow
def test_the_serving_application_and_the_gate_read_sequences(
    finished: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    """Also against a champion that takes each word for itself."""
    results, folder = finished
    told = served(f"sqlite:///{folder}/storage/mlflow.db", "toy", TEXTS)
    own = predict_texts(results["student"]["path"], TEXTS, max_length=LENGTH)
    places = [
        [[(entity["label"], entity["start"], entity["end"]) for entity in one["entities"]] for one in found]
        for found in (told, own)
    ]
    assert places[0] == places[1]
    save_model(load_model(folder / "encoder", TASK.head, seed=3), folder / "encoder", tmp_path / "plain")
    client(Storage(str(folder / "storage"))).create_model_version("toy", str(tmp_path / "plain"))
    gate = Gate(min_rows=1, min_class_recall=None, min_retention=None, max_latency_ratio=None)
    found = judge_version(folder / "storage", gate, 1, 2)
    assert "failed" not in verdicts(found).values(), [rule for rule in found["rules"] if rule["verdict"] == "failed"]
    assert verdicts(found)["labels"] == "passed"
    assert found["comparison"]["pairs"][0]["differences"]["entity_f1"]["low"] > 0


@pytest.mark.slow
def test_its_folder_is_a_plain_tagger_with_transitions_in_its_config(finished: tuple[dict[str, Any], Path]) -> None:
    path = Path(finished[0]["student"]["path"])
    config = json.loads((path / "config.json").read_text())
    assert config["architectures"] == ["BertForTokenClassification"]
    transitions = np.array(config["crf"]["transitions"])
    assert transitions.shape == (len(LABELS) + 1, len(LABELS))
    forbidden = {(a, b) for a, b in np.argwhere(transitions < -1000)}
    rows = [*((name,) for name in LABELS), ()]
    expected = {(i, j) for i, row in enumerate(rows) for j, name in enumerate(LABELS) if is_stray(row, name)}
    assert forbidden == expected
    assert np.abs(transitions[transitions > -1000]).max() > 0.1  # it has learned something
    _, report = AutoModelForTokenClassification.from_pretrained(path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert len(pipeline("token-classification", str(path), ignore_labels=[])("the bank and the minister")) == 5
    card = (path / "README.md").read_text()
    assert "read the CRF's transitions, too" in card


def is_stray(before: tuple[str, ...], name: str) -> bool:
    """Whether a label may not follow; a word before it may be inside an entity that began earlier."""
    begun = [*(tag.replace("I-", "B-") for tag in before), *before]
    return stray([*begun, name]) == len(begun)


def test_a_sweep_may_choose_the_head(tmp_path: Path) -> None:
    finetune = {"num_epochs": 2, "learning_rate": 3e-3, "head": "crf"}
    changes = {"train__num_workers": 1, "evaluate__baseline": False, "teacher__finetune": finetune}
    plain = tagged_config(tmp_path, 160, data__max_length=LENGTH, **changes)
    name, heads = "student.head", ("softmax", "crf")
    shared = make_shared(plain | {"sweep": {"space": {name: {"choice": heads}}, "scheduler": "none"}})
    for number, head in enumerate(heads):
        spec = TrialSpec(number, f"t{number}", ((0, {name: head}),))
        reports = list(trial_reports(make_context(trial_job(shared, spec)), shared))
        assert reports[-1]["score"] == max(report["validation/entity_f1"] for report in reports)
        made = Artifact(Storage(plain["storage"]), "student", reports[-1]["student"]).local() / "model"
        assert ("crf" in json.loads((made / "config.json").read_text())) == (head == "crf")


@pytest.mark.slow
def test_a_constrained_student_gives_no_stray_label_where_softmax_does(toy: Toy, tmp_path: Path) -> None:
    teacher = teacher_of(toy)
    counts = {}
    for head in ("softmax", "constrained_crf"):
        model = build_student(teacher, EncoderStudent(num_layers=2, head=head), seed=0)
        save_model(model, toy.folder / "encoder", tmp_path / head)
        task = TASK.for_model(json.loads((tmp_path / head / "config.json").read_text()))
        emissions = Ragged(np.random.default_rng(0).normal(size=(200, len(LABELS))), np.full(20, 10))
        given, _ = task.read_outputs(emissions)
        rows = given.reshape(20, 10).tolist()
        counts[head] = sum(stray([LABELS[label] for label in row]) is not None for row in rows)
    assert counts["constrained_crf"] == 0 < counts["softmax"]


def test_a_task_with_transitions_is_rebuilt_and_reordered() -> None:
    random = np.random.default_rng(0)
    task = TASK.for_model({"crf": {"transitions": random.normal(size=(6, 5)).tolist()}})
    outputs = Ragged(random.normal(size=(40, 5)), np.array([10, 0, 7, 23]))
    order = [3, 0, 4, 1, 2]
    given, marginals = task.read_outputs(outputs)
    assert np.exp(marginals).sum(axis=1) == pytest.approx(np.ones(40))
    other, others = task.reordered(order).read_outputs(Ragged(outputs.flat[:, order], outputs.lengths))
    assert np.array_equal(np.array(order)[other], given)
    assert np.allclose(others, marginals[:, order])
    facts = json.loads(json.dumps(task.facts()))
    facts.pop("type")
    again = TokenClassification(**facts)
    assert np.array_equal(again.read_outputs(outputs)[0], given)
    assert task.agreement(outputs, outputs, TASK) == float((given == outputs.flat.argmax(1)).mean()) < 1


CRF = {"num_epochs": 1, "head": "crf"}


def test_a_head_is_in_the_keys_of_what_it_makes(tmp_path: Path) -> None:
    def made(**changes: Any) -> tuple[recipes.Recipe, recipes.Recipe, recipes.Recipe]:
        config = load_config(tagged_config(tmp_path, **changes))
        teacher = recipes.teacher_recipe(config, "s", "k", "float32")
        student = recipes.student_recipe(config, "s", "t", "k", "float32", MODES["cached"])
        return teacher, student, recipes.baseline_recipe(config, "s", "k", "float32")

    usual = made()
    assert [a != b for a, b in zip(usual, made(student__head="crf"), strict=True)] == [False, True, True]
    tuned = {"num_epochs": 6, "learning_rate": 2e-3, "head": "crf"}
    assert [a != b for a, b in zip(usual, made(teacher__finetune=tuned), strict=True)] == [True, False, False]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stages__distill__losses": {"b": {"type": "k_best"}}}, r"losses.b: .*the teacher is no CRF"),
        ({"student__head": "constrained_crf", "task__scheme": "io"}, r"student.head: no label is forbidden.*take crf"),
        (
            {"student__head": "crf", "stages__distill__losses": {"m": {"type": "logit_mse"}}},
            r"losses.m: logits of a CRF say nothing",
        ),
        (
            {"teacher__finetune": CRF, "stages__distill__losses": {"m": {"type": "logit_mse"}}},
            r"losses.m: logits of a CRF say nothing",
        ),
        (
            {"student__head": "crf", "stages__distill__losses": {"t": {"type": "task", "label_smoothing": 0.1}}},
            r"losses.t: the loss of a CRF is the likelihood of whole rows",
        ),
        ({"task__type": "text_classification", "student__head": "crf"}, r"student.head: crf reads labels of words"),
        (
            {"task__type": "text_classification", "stages__distill__losses": {"b": {"type": "k_best"}}},
            r"k_best needs labels of words",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(tagged_config(tmp_path, **changes))


@pytest.mark.slow
def test_what_only_data_and_models_tell_is_refused_before_any_work(
    finished: tuple[dict[str, Any], Path], toy: Toy, tmp_path: Path
) -> None:
    plain = build_student(teacher_of(toy), EncoderStudent(num_layers=2), seed=0)
    save_model(plain, toy.folder / "encoder", tmp_path / "plain")
    tuned = {"teacher__finetune": None, "registry__name": None}
    k_best, mse = ({"x": {"type": kind}} for kind in ("k_best", "logit_mse"))
    for changes, message in (
        (
            {**tuned, "teacher__model": str(tmp_path / "plain"), "stages__distill__losses": k_best},
            "the teacher is no CRF",
        ),
        ({**tuned, "teacher__model": finished[0]["student"]["path"], "stages__distill__losses": mse}, "say nothing"),
    ):
        with pytest.raises(ConfigError, match=message):
            raydistill.distill(tagged_config(tmp_path, **changes))
    (tmp_path / "tagged.jsonl").write_text(
        "".join(json.dumps({"tokens": [f"w{i}", "bank"], "ner_tags": ["O", "ORG"]}) + "\n" for i in range(60))
    )
    with pytest.raises(ConfigError, match=r"student.head: in the labels of this data \(scheme io\) none is forbidden"):
        raydistill.distill(tagged_config(tmp_path, student__head="constrained_crf", data__max_labeled=20))
