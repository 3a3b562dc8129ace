"""Words that are labelled, from rows to a registered student: windows, workers, cached signals, loading elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from kit.finished import predict_texts
from kit.news import distill_news
from kit.ranks import run_ranks
from kit.runs import perturbed_artifacts, predictions, texts_of_test_rows
from kit.stages import assert_ranks_equal_one, batch_gradients, gradient_differences, record_signals, stage_setup
from kit.tagged import LABELS, tagged_config, tagged_rows, write_jsonl
from kit.toy import Toy
from news import news_sentences
from rich.console import Console
from transformers import pipeline

import raydistill
from raydistill.cli.show.results import results_table
from raydistill.cluster.device import Device
from raydistill.cluster.group import Group
from raydistill.config.data import Data
from raydistill.config.loading import load_config
from raydistill.config.student import EncoderStudent
from raydistill.data.prepare import prepare_data
from raydistill.data.tokens import tokenize_data
from raydistill.deploy.export.export import export
from raydistill.deploy.inference import evaluate_model
from raydistill.deploy.opening import open_folder
from raydistill.errors import ConfigError
from raydistill.evaluate.compare import read_predictions
from raydistill.evaluate.predict import predict
from raydistill.evaluate.robustness import SAME_PART
from raydistill.models.capture import capture
from raydistill.models.load import load_model
from raydistill.models.scorer import Scorer
from raydistill.models.signals import LOGITS, Signal
from raydistill.models.student import build_student
from raydistill.storage.storage import Storage
from raydistill.tasks.token_classification import TokenClassification
from raydistill.tasks.token_classification.words import stray
from raydistill.teacher.signals import OnlineSignals, Signals
from raydistill.train.loop import Setup

LENGTH = 12
"""Tokens of a window: half of the rows need several."""
TASK = TokenClassification(LABELS)


def make_tagged(folder: Path) -> Toy:
    folder.mkdir(parents=True, exist_ok=True)
    config = load_config(tagged_config(folder, data__max_length=LENGTH, data__max_labeled=100))
    storage = Storage(config.storage)
    tokens = tokenize_data(prepare_data(config, storage), folder / "encoder", LENGTH, storage)
    return Toy(folder, storage, tokens, LABELS)


def teacher_of(toy: Toy) -> Any:
    return load_model(toy.folder / "encoder", TASK.head, seed=3)


def setup_of(toy: Toy, name: str, row_ids: np.ndarray, signals: Signals | None = None) -> Setup:
    """A stage with every kind of loss that words allow; the student is narrower than its teacher."""
    teacher = teacher_of(toy)
    student = build_student(teacher, EncoderStudent(num_layers=2, hidden_size=16, num_heads=2), seed=0)
    terms = {
        "kd": {"type": "forward_kl"},
        "logits": {"type": "logit_mse", "weight": 0.1},
        "decoupled": {"type": "dkd", "weight": 0.1},
        "hidden": {"type": "hidden_mse", "layers": [[1, 2], [2, 4]], "weight": 0.2},
        "task": {"type": "task", "weight": 0.5},
    }
    return stage_setup(toy, name, (student, teacher), TASK, terms, row_ids, signals)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return make_tagged(tmp_path_factory.mktemp("tagged"))


def test_losses_go_by_words_and_labelled_words(toy: Toy) -> None:
    rows = toy.rows()
    assert rows.units is not None
    assert rows.num_rows > len(rows.examples[0]) > 100
    setup = setup_of(toy, "counts", np.arange(rows.num_rows))
    batch = rows.batch(np.arange(40))
    words = rows.units.lengths[:40]
    counts = dict(zip(setup.losses.terms, setup.losses.counts([batch]), strict=True))
    labeled = rows.targets.labeled[:40]
    assert 0 < labeled.sum() < 40
    assert counts == {
        "kd": words.sum(),
        "logits": words.sum(),
        "decoupled": words.sum(),
        "hidden": rows.lengths[:40].sum(),
        "task": words[labeled].sum(),
    }


def test_the_task_loss_is_cross_entropy_at_first_tokens_of_labelled_rows(toy: Toy) -> None:
    """By hand, row by row, each alone: -100 for all but the first token of each word."""
    rows, model = toy.rows(), teacher_of(toy)
    ids = np.arange(30)
    setup = setup_of(toy, "hand", ids)
    batch = rows.batch(ids)
    with torch.no_grad():
        values = setup.losses["task"](capture(model, batch.inputs, {LOGITS}), {}, batch)
        total, count = 0.0, 0
        for row in ids[rows.targets.labeled[ids]]:
            labels = torch.full((1, int(rows.lengths[row])), -100)
            labels[0, rows.units[row].tolist()] = torch.tensor(rows.targets.values[row][:, 2]).long()
            inputs = {
                "input_ids": torch.tensor(rows.values["input_ids"][rows.starts[row] :][: rows.lengths[row]].tolist())[
                    None
                ].long()
            }
            own = int((labels >= 0).sum())
            total, count = total + float(model(**inputs, labels=labels).loss) * own if own else total, count + own
    assert len(values) == count
    assert float(values.sum()) == pytest.approx(total, rel=1e-4)


def test_recorded_signals_are_the_teachers_own(toy: Toy) -> None:
    signals = [Signal("logits"), Signal("hidden_states[2]"), Signal("hidden_states[4]")]
    rows = toy.rows()
    recorded = record_signals(toy, teacher_of(toy), signals)
    ids = np.random.default_rng(0).permutation(rows.num_rows)[:50]
    stored, own = recorded.rows(ids), OnlineSignals(teacher_of(toy), signals, Device()).read(rows.batch(ids))
    assert stored[LOGITS].dtype == torch.float32
    assert len(stored[LOGITS]) == rows.units[ids].lengths.sum()
    for signal in signals:
        tolerance = 1e-5 if signal == LOGITS else 2e-3
        torch.testing.assert_close(stored[signal].float(), own[signal].float(), rtol=1e-3, atol=tolerance)
    online = batch_gradients(setup_of(toy, "online", np.arange(64)))
    cached = batch_gradients(setup_of(toy, "cached", np.arange(64), recorded))
    difference = gradient_differences(online, cached)
    assert max(difference.values()) < 2e-3


def rank_gradients(folder: Path) -> dict[str, Any]:
    toy = make_tagged(folder)
    found = batch_gradients(setup_of(toy, "ranks", np.arange(64)))
    outputs = predict(teacher_of(toy), toy.rows("test"), tokens=100, device=Device(), group=Group())
    return {"gradients": found, "outputs": outputs.flat, "rank": Group().rank}


def test_two_workers_equal_one(tmp_path: Path) -> None:
    make_tagged(tmp_path / "two")
    one = rank_gradients(tmp_path / "one")
    difference = assert_ranks_equal_one(one, run_ranks(rank_gradients, 2, tmp_path / "ranks", tmp_path / "two"))
    assert any("projections" in name for name in difference)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("finished")
    changes = {
        "teacher__finetune": {"num_epochs": 10, "learning_rate": 3e-3},
        "stages__distill__num_epochs": 8,
        "stages__distill__learning_rate": 3e-3,
        "data__split": {"validation": 0.1, "test": 0.4},
        "evaluate__robustness": True,
    }
    config = tagged_config(folder, 400, data__max_length=LENGTH, data__max_labeled=None, **changes)
    return dict(raydistill.distill(config)), folder


def test_a_student_learns_entities_from_its_teacher(finished: tuple[dict[str, Any], Path]) -> None:
    """The group after "the" is found from what stands before it; the word alone stands in other places as often."""
    results, folder = finished
    student = results["student"]
    found = {entry["name"]: entry for entry in student["per_class"]}
    assert found["ORG"]["recall"] > 0.7
    assert student["test"]["entity_f1"]["low"] > 0.3
    assert results["retention"]["entity_f1"] > 0.8
    assert results["agreement"] > 0.85
    assert results["task"]["main_metric"] == "entity_f1"
    kept = predictions(results, Storage(str(folder / "storage")))
    assert len(kept.targets) == results["data"]["num_rows"]["test"]  # windows are texts again
    assert student["entity_errors"]["exact"] == sum(
        round(entry["recall"] * entry["support"]) for entry in student["per_class"]
    )
    for row in results["errors"]:
        assert row["label"] != row["student"]["answer"]
    page = Path(folder / "storage" / "runs")
    assert any("What became of the entities" in path.read_text() for path in page.glob("*/report.html"))


def test_answers_are_the_same_everywhere(finished: tuple[dict[str, Any], Path]) -> None:
    """``predict``, the stored scorer and transformers' pipeline, also on texts of many windows."""
    results, _ = finished
    model = results["student"]["path"]
    texts = [" ".join(row["tokens"]) for row in tagged_rows(40, seed=9, longest=30)] + ["the bank " * 60]
    own = [found["entities"] for found in predict_texts(model, texts, max_length=LENGTH)]
    assert sum(map(len, own)) > 20
    for text, entities in zip(texts, own, strict=True):
        assert all(text[entity["start"] : entity["end"]] == entity["text"] for entity in entities)
    stored = Scorer(model, LENGTH).predict(pd.DataFrame({"text": texts}))
    for told, entities in zip(stored, own, strict=True):
        assert [{**entity, "score": 0} for entity in told["entities"]] == [
            {**entity, "score": 0} for entity in entities
        ]
        assert [e["score"] for e in told["entities"]] == pytest.approx([e["score"] for e in entities], abs=1e-5)
    tagger = pipeline("token-classification", model, ignore_labels=[])
    rows = tagged_rows(40, seed=8, longest=8)
    short = [" ".join(row["tokens"]) for row in rows if len(row["tokens"]) <= LENGTH - 2]
    for text, found in zip(short, predict_texts(model, short), strict=True):
        tags = [token["entity"] for token in tagger(text)]
        assert len(tags) == len(text.split())
        while (word := stray(tags)) is not None:
            tags[word] = "O"  # strict: what continues nothing is no entity
        spans = [(entity["start"], entity["end"], entity["label"]) for entity in found["entities"]]
        assert spans == marks_of(text.split(), tags)
    windows = pipeline("token-classification", model, aggregation_strategy="simple", stride=TASK.overlap(LENGTH))
    assert max(entity["end"] for entity in windows(texts[-1])) > len(texts[-1]) - 10  # as the page says to load it


def marks_of(words: list[str], tags: list[str]) -> list[tuple[int, int, str]]:
    """Begin and end in the text, and type, of entities."""
    ends = np.cumsum([len(word) + 1 for word in words]) - 1
    marks: list[tuple[int, int, str]] = []
    for word, end, tag in zip(words, ends, tags, strict=True):
        if tag.startswith("B-"):
            marks.append((int(end) - len(word), int(end), tag[2:]))
        elif tag.startswith("I-"):
            marks[-1] = (marks[-1][0], int(end), tag[2:])
    return marks


def test_models_are_measured_on_words_written_otherwise(finished: tuple[dict[str, Any], Path]) -> None:
    """Of half of the words the change is that of these words alone, which models read with the others before."""
    results, folder = finished
    test, (_, found) = predictions(results, Storage(str(folder / "storage"))), perturbed_artifacts(results)
    (texts,) = texts_of_test_rows(results)
    sentences = [text.split() for text in texts]
    robustness, labels = results["robustness"], test.targets.values
    assert robustness["metric"] == "entity_f1"
    assert robustness["left_out"] == {}
    assert robustness["perturbations"]["lower"]["same_because"] == "the texts have no upper-case letter"
    kept = (labels.lengths + 1) // 2
    written = {"upper": [" ".join(words).upper() for words in sentences]}
    written["half"] = [" ".join(words[:count]) for words, count in zip(sentences, kept, strict=True)]
    for name in ("upper", "typos", "half"):
        own, one = read_predictions(found.local(), f"test-{name}"), robustness["perturbations"][name]
        counts = kept if name == "half" else labels.lengths
        assert own.hashes == test.hashes
        assert own.targets.values.lengths.tolist() == counts.tolist()
        true = [labels[row][:count, 2] for row, count in enumerate(counts)]
        assert all((own.targets.values[row][:, 2] == tags).all() for row, tags in enumerate(true))
        for model, figure in one["models"].items():
            before, after = (
                f1_by_hand([side.outputs[model][row][: len(tags)].argmax(1) for row, tags in enumerate(true)], true)
                for side in (test, own)
            )
            assert figure["value"] == pytest.approx(after, rel=1e-4)
            assert figure["change"]["value"] == pytest.approx(after - before, abs=1e-5)
            assert figure["change"]["low"] <= figure["change"]["value"] <= figure["change"]["high"]
            part = figure["same_part"]  # what the change is against is shown where it is not the figure of whole rows
            assert part is None if name != "half" else part["value"] == pytest.approx(before, rel=1e-4)
            if name in written:
                outputs = open_folder(Path(results[model]["path"]), LENGTH, "cpu").outputs(written[name])
                np.testing.assert_allclose(own.outputs[model].flat, outputs.flat, atol=2e-3)
    said = Path(results["report"]).read_text("utf-8")
    assert "the first half of the words alone, compared on these words" in said
    assert said.count(SAME_PART) == 1
    console = Console(width=100)
    with console.capture() as shown:
        console.print(results_table(results))
    lines = shown.get().splitlines()
    (place,) = (i for i, line in enumerate(lines) if line.startswith("  that part before"))
    assert lines[place - 1].startswith("cut to half, %")
    student = robustness["perturbations"]["half"]["models"]["student"]
    assert f"{100 * student['same_part']['value']:.1f}" in lines[place]


def f1_by_hand(given: list[np.ndarray], truth: list[np.ndarray]) -> float:
    """Entity F1 of labels by row: a B-, and all I- of its type that follow."""
    hits = total = 0
    for pair in zip(given, truth, strict=True):
        sides = []
        for tags in pair:
            names, marks = [LABELS[tag] for tag in tags], set()
            for start, name in enumerate(names):
                if name.startswith("B-"):
                    rest = [following == f"I-{name[2:]}" for following in [*names[start + 1 :], "O"]]
                    marks.add((start, start + 1 + rest.index(False), name[2:]))
            sides.append(marks)
        hits, total = hits + len(sides[0] & sides[1]), total + len(sides[0]) + len(sides[1])
    return 2 * hits / total


def test_a_finished_model_is_measured_on_its_own_rows_and_on_others(
    finished: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    results, folder = finished
    model, storage = results["student"]["path"], str(folder / "storage")
    own = evaluate_model(model, storage=storage, max_length=LENGTH)
    for name, found in results["student"]["test"].items():
        assert own["metrics"][name]["value"] == pytest.approx(found["value"], abs=2e-4), name
    rows = tagged_rows(50, seed=5)
    spans = [
        {"text": " ".join(row["tokens"]), "label": [list(mark) for mark in marks_of(row["tokens"], row["ner_tags"])]}
        for row in rows
    ]
    values = []
    for name, told in (("words.jsonl", rows), ("spans.jsonl", spans)):
        data = Data(path=str(write_jsonl(tmp_path / name, told)))
        values.append(evaluate_model(model, data, storage=storage)["metrics"])
    assert values[0] == values[1]


def test_what_needs_one_prediction_a_row_is_refused(tmp_path: Path) -> None:
    loss = {"pairs": {"type": "cosine_pairs"}}
    for changes, message in (
        ({"stages__distill__losses": loss}, "cosine_pairs needs one class a row"),
        ({"stages__distill__losses": {"kd": {"type": "dist"}}}, "dist needs one class a row"),
        ({"teacher__finetune": {"method": "probe"}}, "probe needs one prediction a row"),
        ({"evaluate__metric": "accuracy"}, "accuracy is no metric of token_classification"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_config(tagged_config(tmp_path, **changes))


def test_a_student_says_by_itself_what_it_is(finished: tuple[dict[str, Any], Path]) -> None:
    config = json.loads((Path(finished[0]["student"]["path"]) / "config.json").read_text())
    assert config["architectures"] == ["BertForTokenClassification"]
    assert config["id2label"] == {str(i): name for i, name in enumerate(LABELS)}


def test_its_card_speaks_of_words(finished: tuple[dict[str, Any], Path]) -> None:
    card = (Path(finished[0]["student"]["path"]) / "README.md").read_text()
    assert "pipeline_tag: token-classification" in card
    assert f'"FOLDER_OR_REPO", aggregation_strategy="first", stride={LENGTH // 4})' in card
    assert f"Longer texts are read in windows of {LENGTH} tokens." in card
    assert "Labelled words by label:" in card


@pytest.mark.slow
def test_an_export_says_the_same_of_long_texts_too(finished: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    results, folder = finished
    model, out = results["student"]["path"], tmp_path / "exported"
    found = export(model, ["onnx"], out, storage=str(folder / "storage"), max_length=LENGTH, latency=False)
    assert found["good"], found
    about = json.loads((out / "export.json").read_text())
    assert about["outputs"] == [{"name": "logits", "dtype": "float32", "axes": ["batch", "length", len(LABELS)]}]
    texts = [" ".join(row["tokens"]) for row in tagged_rows(20, seed=9, longest=30)]
    own, others = (list(predict_texts(path, texts, max_length=LENGTH)) for path in (model, out))
    for first, second in zip(own, others, strict=True):
        assert [{**entity, "score": 0} for entity in first["entities"]] == [
            {**entity, "score": 0} for entity in second["entities"]
        ]


@pytest.mark.slow
def test_two_of_six_layers_find_the_entities_of_news(tmp_path: Path) -> None:
    """Real text and a real encoder; the rules need context (a title before a name), form and a list."""
    teacher = {"num_epochs": 4, "learning_rate": 4e-4, "freeze": ["*embeddings*"]}
    student = {"num_epochs": 6, "learning_rate": 5e-4, "freeze": ["*embeddings*"]}
    data = {"max_length": 48, "split": {"validation": 0.1, "test": 0.3}}
    results = distill_news(tmp_path, news_sentences(600), "token_classification", data, teacher, student)
    assert results["teacher"]["test"]["entity_f1"]["value"] > 0.75
    assert results["student"]["test"]["entity_f1"]["low"] > 0.65
    assert results["retention"]["entity_f1"] > 0.9
    recall = {entry["name"]: entry["recall"] for entry in results["student"]["per_class"]}
    assert recall.keys() == {"PER", "MONEY", "DATE", "LOC"}
    assert recall["PER"] > 0.5  # no list knows the names
