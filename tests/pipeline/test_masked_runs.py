"""Masked language models from raw text to a student: masks by epoch, workers, records, restarts, bad input."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from kit.finished import predict_texts
from kit.masked import VOCABULARY, document, documents, masked_config, save_masked, wordpiece
from kit.ranks import run_ranks
from kit.runs import make_context, make_shared, same_weights
from kit.stages import assert_ranks_equal_one, batch_gradients, gradient_differences, record_signals, stage_setup
from kit.toy import Toy, weights
from transformers import AutoModelForMaskedLM, pipeline

import raydistill
from raydistill.cli.proposal import propose
from raydistill.cluster.device import Device
from raydistill.cluster.group import Group
from raydistill.config.data import Data
from raydistill.config.loading import data_config, load_config
from raydistill.config.student import EncoderStudent
from raydistill.config.syntax import parse_yaml
from raydistill.data.prepare import prepare_data
from raydistill.data.rows import Rows, read_texts
from raydistill.data.tokens import tokenize_data
from raydistill.deploy.export.export import export
from raydistill.deploy.inference import evaluate_model
from raydistill.errors import ConfigError, DataError, Interrupted, ModelError
from raydistill.evaluate.predict import predict
from raydistill.models.load import load_model
from raydistill.models.signals import ANSWERS
from raydistill.models.student import build_student
from raydistill.pipeline.plan import make_plan
from raydistill.pipeline.prepare import prepare
from raydistill.search.trial import TrialSpec, trial_job, trial_reports
from raydistill.storage.storage import Storage
from raydistill.tasks.masked_language_modeling import MaskedLanguageModeling
from raydistill.teacher.signals import OnlineSignals, Signals
from raydistill.train.loop import Setup, StageRun, Validation, train

TERMS = {
    "kd": {"type": "forward_kl"},
    "task": {"type": "task", "weight": 0.4},
    "hidden": {"type": "hidden_cosine", "weight": 0.2},
}


def make_masked(folder: Path, **changes: Any) -> Toy:
    folder.mkdir(parents=True, exist_ok=True)
    config = load_config(masked_config(folder, **changes))
    storage = Storage(config.storage)
    tokens = tokenize_data(prepare_data(config, storage), folder / "bert", 32, storage)
    return Toy(folder, storage, tokens, ())


def setup_of(
    toy: Toy, name: str, signals: Signals | None = None, top_k: int | None = None, terms: Mapping[str, Any] = TERMS
) -> Setup:
    task = MaskedLanguageModeling(top_k=top_k)
    teacher = load_model(toy.folder / "bert", task.head, dropout=0.0)
    student = build_student(teacher, EncoderStudent(num_layers=1), seed=0)
    setup = stage_setup(toy, name, (student, teacher), task, terms, np.arange(64), signals)

    def validate() -> Validation:
        found = predict(student, toy.rows("validation"), tokens=999, device=Device(), group=Group(), signal=ANSWERS)
        perplexity = float(np.exp(-found.flat[:, 0].mean()))
        return Validation({"perplexity": perplexity}, -perplexity)

    return replace(setup, validate=validate)


def rank_gradients(folder: Path) -> dict[str, Any]:
    toy = make_masked(folder)
    setup = setup_of(toy, "ranks")
    outputs = predict(setup.model, toy.rows("test"), tokens=100, device=Device(), group=Group(), signal=ANSWERS)
    return {"gradients": batch_gradients(setup, step=3), "outputs": outputs.flat, "rank": Group().rank}


def test_two_workers_equal_one(tmp_path: Path) -> None:
    make_masked(tmp_path / "two")
    one = rank_gradients(tmp_path / "one")
    assert_ranks_equal_one(one, run_ranks(rank_gradients, 2, tmp_path / "ranks", tmp_path / "two"))


def test_micro_batches_do_not_change_masks_or_gradient(tmp_path: Path) -> None:
    toy = make_masked(tmp_path)
    setup, other = (setup_of(toy, "micro") for _ in range(2))
    small = replace(other, settings=other.settings.model_copy(update={"tokens_per_micro_batch": 200}))
    many, few = (StageRun(one).collate(3) for one in (small, setup))
    assert len(many) > 3
    assert len(few) == 1
    hidden = [np.concatenate([batch.targets.values.flat for batch in batches]) for batches in (many, few)]
    assert np.array_equal(*hidden)
    difference = gradient_differences(batch_gradients(setup, 3), batch_gradients(small, 3))
    assert max(difference.values()) < 2e-5


def test_each_epoch_hides_other_tokens_where_the_teacher_is_asked_online(tmp_path: Path) -> None:
    toy = make_masked(tmp_path)
    setup = setup_of(toy, "epochs")  # 64 rows, two steps an epoch
    stage = StageRun(setup)

    def hidden(step: int) -> dict[int, list[int]]:
        found: dict[int, list[int]] = {}
        for batch in stage.collate(step):
            width = batch.inputs["input_ids"].shape[1]
            for place in batch.inputs["unit_positions"].tolist():
                found.setdefault(int(batch.row_ids[place // width]), []).append(place % width)
        return found

    first, second, again = ({**hidden(2 * e), **hidden(2 * e + 1)} for e in (0, 1, 0))
    assert first == again
    assert first.keys() == second.keys() == set(range(64))
    assert sum(first[row] != second[row] for row in range(64)) > 50
    stored = toy.rows().units
    assert stored is not None
    assert {row: len(places) for row, places in first.items()} == dict(enumerate(stored.lengths[:64].tolist()))


def test_a_record_of_all_tokens_teaches_what_the_teacher_itself_does(tmp_path: Path) -> None:
    toy, everything = make_masked(tmp_path), len(VOCABULARY)
    teacher = load_model(tmp_path / "bert", MaskedLanguageModeling().head, dropout=0.0)
    recorded = record_signals(toy, teacher, [f"top_logits[{everything}]", "hidden_states[2]"])
    cached = setup_of(toy, "cached", recorded, everything)
    stage = StageRun(cached)
    batches = stage.collate(3)  # tokens stay hidden as they are stored
    rows = toy.rows()
    assert all(torch.equal(batch.inputs["input_ids"], rows.inputs(batch.row_ids)["input_ids"]) for batch in batches)

    class Fixed(OnlineSignals):
        """Asked online of what is stored."""

        knows_batch = False

    plain = setup_of(toy, "online")
    online = replace(plain, signals=Fixed(teacher, plain.losses.teacher_needs, Device()))
    asked = batch_gradients(online, 3)
    difference = gradient_differences(asked, batch_gradients(cached, 3))
    assert max(difference.values()) < 2e-3
    few = record_signals(toy, teacher, ["top_logits[4]", "hidden_states[2]"])
    cut = gradient_differences(asked, batch_gradients(setup_of(toy, "few", few, 4), 3))
    assert max(cut.values()) > 5 * max(difference.values())


def test_a_stopped_stage_goes_on_with_the_masks_of_its_epoch(tmp_path: Path) -> None:
    toy = make_masked(tmp_path)
    whole = setup_of(toy, "whole")
    for _ in train(whole):
        pass
    calls = iter(range(99))
    stopped = replace(setup_of(toy, "stopped"), should_stop=lambda: next(calls) >= 3)
    with pytest.raises(Interrupted):
        for _ in train(stopped):
            pass
    resumed = setup_of(toy, "stopped")
    for _ in train(resumed):
        pass
    assert same_weights(weights(whole.model), weights(resumed.model))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, mlflow_uri: str) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("masked")
    return folder, raydistill.distill(load_config(masked_config(folder)), progress=False)


def test_a_run_from_raw_text_to_a_model_that_transformers_loads(run: tuple[Path, dict[str, Any]]) -> None:
    _, results = run
    for model in ("teacher", "student", "baseline"):
        found = results[model]["test"]
        assert found["perplexity"]["low"] < found["perplexity"]["value"] < found["perplexity"]["high"]
        assert found["log_loss"]["value"] == pytest.approx(np.log(found["perplexity"]["value"]), rel=1e-4)
        assert results[model]["hidden_tokens"] > 100
    assert results["tfidf"] is None
    assert 0 < results["agreement"] <= 1
    assert results["config"]["teacher"]["mode"] == "online"
    assert results["config"]["evaluate"]["metric"] == "perplexity"
    told = {row["label"] for row in results["errors"]}
    words = {word.strip(" …") for label in told for word in label.split(", ")}
    assert words - {""} <= {*VOCABULARY, "…"}
    path = results["student"]["path"]
    model = AutoModelForMaskedLM.from_pretrained(path)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    filled = pipeline("fill-mask", path, tokenizer_kwargs={"truncation": True})("web [MASK] and the play", top_k=5)
    (answer,) = predict_texts(path, ["web [MASK] and the play"])
    words = answer["words"][0]
    assert [entry["word"] for entry in words] == [entry["token_str"] for entry in filled]
    assert [entry["score"] for entry in words] == pytest.approx([entry["score"] for entry in filled], rel=1e-4)
    long = f"{'web code ' * 40}the [MASK]"
    registered = mlflow.pyfunc.load_model(f"models:/toy/{results['model_version']}")
    said = registered.predict(pd.DataFrame({"text": ["web [MASK] and the play", "no mask", long]}))
    own = [*predict_texts(path, ["web [MASK] and the play", "no mask", long])]
    assert [len(one["words"]) for one in said] == [1, 0, 1]
    for one, other in zip(said, own, strict=True):
        for a, b in zip(one["words"], other["words"], strict=True):
            assert [entry["word"] for entry in a] == [entry["word"] for entry in b]
            assert [entry["score"] for entry in a] == pytest.approx([entry["score"] for entry in b], rel=1e-4)
    card = (Path(path) / "README.md").read_text()
    assert "pipeline_tag: fill-mask" in card
    assert 'pipeline("fill-mask", "FOLDER_OR_REPO", tokenizer_kwargs={"truncation": True})' in card
    report = Path(results["report"]).read_text()
    assert "perplexity" in report


def test_a_model_is_measured_on_the_very_tokens_that_its_run_hid(run: tuple[Path, dict[str, Any]]) -> None:
    folder, results = run
    found = evaluate_model(results["student"]["path"], storage=str(folder / "storage"))
    for name in ("perplexity", "masked_accuracy"):
        assert found["metrics"][name]["value"] == pytest.approx(results["student"]["test"][name]["value"], rel=1e-4)


def test_other_documents_can_be_named(run: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    _, results = run
    (tmp_path / "more.txt").write_text("\n".join(documents(30, seed=9)))
    found = evaluate_model(results["student"]["path"], Data(path=str(tmp_path / "more.txt")))
    assert found["num_rows"] == 30
    assert found["metrics"]["perplexity"]["value"] > 1


@pytest.mark.slow
def test_exports_are_the_same_model(run: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, results = run
    made = export(results["student"]["path"], ["onnx", "safetensors-bf16"], tmp_path, storage=str(folder / "storage"))
    assert made["formats"]["onnx"]["good"]
    assert made["formats"]["onnx"]["largest_difference"] < 1e-5
    (exported,) = (predict_texts(tmp_path / "onnx", ["web [MASK]"]),)
    (own,) = predict_texts(results["student"]["path"], ["web [MASK]"])
    assert [entry["word"] for entry in next(exported)["words"][0]] == [entry["word"] for entry in own["words"][0]]


def test_the_same_run_again_computes_nothing(run: tuple[Path, dict[str, Any]]) -> None:
    folder, results = run
    again = raydistill.distill(load_config(masked_config(folder)), progress=False)
    assert again["reused"] == ["run"]
    assert again["student"]["test"] == results["student"]["test"]


@pytest.mark.slow
def test_a_record_of_copies_and_an_encoder_without_a_head(tmp_path: Path) -> None:
    """Of a table; the teacher gets a head whose decoder is its embedding."""
    save_masked(tmp_path / "bert", has_head=False)
    (tmp_path / "corpus").mkdir()
    pd.DataFrame({"text": documents(120), "label": 1}).to_parquet(tmp_path / "corpus" / "train.parquet")
    config = load_config(masked_config(tmp_path, task__copies=2, task__top_k=5, registry__name=None))
    assert config.teacher.mode == "cached"
    planned = raydistill.plan(config)
    results = raydistill.distill(config, progress=False)
    assert any("came without a head that guesses tokens" in note for note in results["notes"])
    storage = Storage(config.storage)
    (key,) = (key for key in storage.list("tokens") if len(key) == 20)
    rows = Rows.open(Path(storage.path("tokens", key)), "train")
    single = make_masked(tmp_path / "single", data__path=str(tmp_path / "corpus")).rows()
    assert rows.num_rows == 2 * single.num_rows
    assert planned["teacher"]["mode"] == "cached"
    masked = rows.targets.num_units
    assert planned["teacher"]["signal_bytes"]["top_logits[5]"] == pytest.approx(masked * (2 * 5 + 1) * 4, rel=0.1)
    plan = raydistill.plan(config)
    assert {phase["state"] for phase in plan["phases"]} == {"there"}
    assert plan["teacher"]["signal_bytes"]["top_logits[5]"] == masked * (2 * 5 + 1) * 4


@pytest.mark.slow
@pytest.mark.parametrize("copies", [1, 2])
def test_a_trial_of_a_sweep_is_judged_by_what_is_kept(tmp_path: Path, copies: int) -> None:
    """Beside its teacher, or by the record that all trials share."""
    temperature = "stages.distill.losses.kd.temperature"
    plain = masked_config(tmp_path, task__copies=copies, train__num_workers=1, evaluate__baseline=False)
    shared = make_shared(plain | {"sweep": {"space": {temperature: {"choice": [1.0, 2.0]}}, "scheduler": "none"}})
    assert set(shared.signals) == (set() if copies == 1 else {"top_logits[64]", "hidden_states[2]"})
    spec = TrialSpec(0, "t0", ((0, {temperature: 1.0}),))
    *_, last = trial_reports(make_context(trial_job(shared, spec)), shared)
    assert last["finished"]
    assert last["score"] == last["validation/masked_accuracy"] > 0


def texts_in(folder: Path, **changes: Any) -> list[str]:
    """The prepared training texts, and held-out ones behind them."""
    config = load_config(masked_config(folder, **changes))
    data = prepare_data(config, Storage(config.storage))
    found = []
    for split in ("train", "validation", "test"):
        found += read_texts(data, split)[0].to_pylist()
    return found


def test_long_documents_count_by_their_pieces(tmp_path: Path) -> None:
    """A hundred documents of 900 words are 3,000 rows or so of 32 tokens: 3 epochs, where a hundred rows have 20."""
    save_masked(tmp_path / "bert")
    (tmp_path / "corpus").mkdir()
    draw = random.Random(0)
    for i in range(125):
        (tmp_path / "corpus" / f"{i}.txt").write_text(document(draw, 900))
    config = masked_config(tmp_path)
    for section in (config["teacher"]["finetune"], config["stages"]["distill"]):
        section.pop("num_epochs", None)
    chosen = {choice["name"]: choice["value"] for choice in make_plan(load_config(config))["choices"]}
    prepared = prepare(load_config(config), Storage(config["storage"]))
    rows = len(Rows.open(prepared.tokens.local(), "train").lengths)
    assert 2500 < rows < 6000
    steps = -(-rows // config["train"]["global_batch_size"])
    least = max(3, -(-300 // steps))
    for section in ("stages.distill", "teacher.finetune"):
        assert chosen.get(f"{section}.min_epochs", chosen[f"{section}.num_epochs"]) == least
        assert chosen[f"{section}.num_epochs"] == max(least, 8 * 300 // steps)
    assert dict(chosen) == {choice.name: choice.value for choice in prepared.choices}


def test_what_a_document_is(tmp_path: Path) -> None:
    """A file, whatever its folder is called; a paragraph; a line; a row of a table, whose other columns say nothing."""
    save_masked(tmp_path / "bert")
    texts = documents(12)
    for i, text in enumerate(texts):
        (path := tmp_path / "corpus" / ("news", "mail", "")[i % 3]).mkdir(parents=True, exist_ok=True)
        (path / f"{i}.txt").write_text(text)
    assert sorted(texts_in(tmp_path)) == sorted(texts)
    split = tmp_path / "split"
    for i, text in enumerate(texts):
        (path := split / ("train", "dev", "test")[i % 3]).mkdir(parents=True, exist_ok=True)
        (path / f"{i}.txt").write_text(text)
    found = texts_in(tmp_path, data__path=str(split))
    assert sorted(found[:4]) == sorted(texts[::3])
    assert sorted(found[4:8]) == sorted(texts[1::3])
    lines = tmp_path / "lines.txt"
    lines.write_text("\ufeff" + "\r\n".join(texts) + "\r\n")
    assert sorted(texts_in(tmp_path, data__path=str(lines))) == sorted(texts)
    paragraphs = tmp_path / "paragraphs.txt"
    both = [f"{a}\n{b}" for a, b in zip(texts[::2], texts[1::2], strict=True)]
    paragraphs.write_text("\n \n\n".join(both))
    assert sorted(texts_in(tmp_path, data__path=str(paragraphs))) == sorted(both)
    table = tmp_path / "table.jsonl"
    rows = [{"text": text, "label": None, "text_pair": "other", "year": 1999} for text in [*texts, texts[0], " "]]
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert sorted(texts_in(tmp_path, data__path=str(table))) == sorted(texts)


def test_a_config_is_written_for_a_corpus(tmp_path: Path) -> None:
    """By ``raydistill init``; and every loss can be checked before a run."""
    config = masked_config(tmp_path)
    about = data_config(config["data"]["path"], ["task.type=masked_language_modeling"])
    text, survey = propose(about, config["teacher"]["model"])
    assert survey.summary == "300 documents"
    written = load_config(parse_yaml(text, "it").data, [f"storage={tmp_path / 'other'}"])
    assert (written.task.type, written.teacher.mode) == ("masked_language_modeling", "online")
    plan = raydistill.plan(written, check=True)
    assert "Hidden are" in plan["data"]["notes"][-1]
    assert "others at each epoch" in plan["data"]["notes"][-1]
    assert any("distillation" in finding for finding in plan["findings"])


def bad_files(folder: Path) -> dict[str, str]:
    """By what is wrong, what is told of it."""
    (folder / "bert").mkdir(parents=True)
    save_masked(folder / "bert")
    (folder / "empty").mkdir()
    (folder / "blank").mkdir()
    for i in range(4):
        (folder / "blank" / f"{i}.txt").write_text(" \n")
    (folder / "binary").mkdir()
    (folder / "binary" / "noise.bin").write_bytes(bytes(range(256)))
    (folder / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    (folder / "few.txt").write_text("web code\n\ngood film\n")
    (folder / "numbers.csv").write_text("year,place\n1999,3\n")
    return {
        "empty": "is an empty folder",
        "blank": "Fewer than 3 different documents are left in training",
        "binary": "holds no UTF-8 text: noise.bin",
        "bytes.txt": "bytes.txt cannot be read as text",
        "few.txt": "Fewer than 3 different documents",
        "numbers.csv": "no column that is recognised as the text",
    }


def test_bad_corpora_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    for name, told in bad_files(tmp_path).items():
        config = load_config(masked_config(tmp_path, data__path=str(tmp_path / name)))
        with pytest.raises(DataError, match=told):
            raydistill.plan(config)


def test_bad_teachers_are_refused(tmp_path: Path) -> None:
    config = masked_config(tmp_path, teacher__finetune=None)
    save_masked(tmp_path / "bert", has_head=False)
    with pytest.raises(ModelError, match="is an encoder without a trained head for masked_language_modeling"):
        raydistill.distill(load_config(config), progress=False)
    blind = wordpiece()
    blind.mask_token = None
    blind.save_pretrained(tmp_path / "bert")
    with pytest.raises(ConfigError, match="no mask token"):
        raydistill.distill(load_config(config), progress=False)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"data__max_labeled": 3}, "data.max_labeled: masked_language_modeling needs nothing but texts"),
        ({"data__columns__label": "x"}, "data.columns.label: masked_language_modeling needs nothing but texts"),
        ({"data__symmetric": True}, "data.symmetric: masked_language_modeling needs nothing but texts"),
        ({"data__augment": {}}, "data.augment: rewrites whole texts"),
        ({"data__unlabeled": "more.txt"}, "data.unlabeled: no text has a label here"),
        ({"evaluate__robustness": True}, "evaluate.robustness: in a text that is written otherwise"),
        ({"student__type": "conv"}, "conv has no head that guesses tokens"),
        ({"teacher__mode": "pool", "train__num_workers": 1}, "other tokens are hidden at each epoch. Write online"),
        ({"teacher__pool": {}, "train__num_workers": 1}, "teacher.pool: teacher actors know rows as they are stored"),
        ({"task__copies": 2, "teacher__mode": "online"}, "task.copies: 2 copies are for a record"),
        ({"task__top_k": 9}, "task.top_k: is for a record"),
        ({"stages__distill__losses": {"a": {"type": "dkd"}}}, "dkd tells one right class from the others"),
        ({"stages__distill__losses": {"a": {"type": "dist"}}}, "dist needs one class a row"),
        ({"stages__distill__losses": {"a": {"type": "logit_mse"}}}, "forward_kl can learn from tokens"),
        ({"stages__distill__losses": {"a": {"type": "crd"}}}, "crd tells rows from each other"),
        ({"stages__distill__losses": {"a": {"type": "gradient_match"}}}, "needs the gradient of one prediction a row"),
        (
            {"teacher__mode": "cached", "stages__distill__losses": {"a": {"type": "jsd"}}},
            "a record has the 64 likeliest tokens, and jsd needs all",
        ),
    ],
)
def test_what_says_nothing_of_raw_text_is_refused(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        load_config(masked_config(tmp_path, **changes))
