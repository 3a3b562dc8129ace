"""Registered students in a real local store: loadable by others, one version a run, aliases that never dangle."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from kit.finished import predict_texts
from kit.servers import make_config
from kit.tiny import save_tiny

from raydistill.cli import main as cli
from raydistill.errors import TrackingError
from raydistill.search.children import start_child
from raydistill.storage.artifacts import Artifact
from raydistill.storage.garbage import refer
from raydistill.storage.storage import Storage
from raydistill.tracking.registry.students import is_tracked, log_student, register_student
from raydistill.tracking.registry.versions import list_versions, version_by_alias
from raydistill.tracking.runs import RunRef, open_client, start_run

LABELS = ("bad", "fine", "good")
RESULTS = {
    "student": {
        "num_parameters": 22713216,
        "bytes": 90852864,
        "latency_ms": {"p50": 1.23456789},
        "test": {"accuracy": {"value": 0.875, "low": 0.8, "high": 0.9}},
    },
    "retention": {"accuracy": 0.97},
}
HEADLINE = {
    "test/accuracy": "0.875",
    "retention/accuracy": "0.97",
    "num_parameters": "22713216",
    "bytes": "90852864",
    "latency_ms/p50": "1.23457",
}


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    return Storage(str(tmp_path_factory.mktemp("store")))


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("hf") / "student", "bert", num_layers=1, labels=LABELS)


def run(storage: Storage, run_key: str, **more: Any) -> RunRef:
    return start_run(make_config(**more), storage, run_key)


def register(ref: RunRef, name: str, student: Path, run_key: str = "key") -> int:
    return register_student(ref, name, student, RESULTS, run_key=run_key, max_length=8)


def in_plain_process(code: str, **values: str) -> dict:
    """Run code where raydistill cannot be imported; what it prints last is JSON."""
    guard = """
        import json, sys
        class Blocked:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in ("raydistill", "ray"):
                    raise ImportError("blocked: " + name)
        sys.meta_path.insert(0, Blocked())
        values = json.loads(sys.argv[1])
    """
    script = textwrap.dedent(guard) + textwrap.dedent(code)
    command = [sys.executable, "-c", script, json.dumps(values)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=values["folder"])
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.mark.slow
def test_registered_student_loads_without_raydistill(storage: Storage, student: Path, tmp_path: Path) -> None:
    """By MLflow and by transformers; a pair by its columns."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    ref = run(storage, "plain")
    register(ref, "plain", student)
    register_student(run(storage, "pairs"), "pairs", student, RESULTS, run_key="pairs", has_pairs=True)
    texts = ["a good film", "the bad plot and the poor actor in a very bad scene", "money"]
    answer = in_plain_process(
        """
        import mlflow
        from transformers import AutoModelForSequenceClassification, AutoTokenizer
        mlflow.set_tracking_uri(values["uri"])
        uri = "models:/plain@challenger"
        model = mlflow.pyfunc.load_model(uri)
        folder = mlflow.artifacts.download_artifacts(uri, dst_path=values["folder"])
        plain = AutoModelForSequenceClassification.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        texts = json.loads(values["texts"])
        pairs = mlflow.pyfunc.load_model("models:/pairs/1")
        print(json.dumps({
            "rows": model.predict(texts),
            "one": model.predict("a good film"),
            "flavour": mlflow.transformers.load_model(uri)(texts[0])[0],
            "pair": pairs.predict([{"text": texts[0], "text_pair": texts[0]}])[0],
            "logits": plain(**tokenizer(texts[0], return_tensors="pt")).logits.tolist(),
            "ours": [name for name in sys.modules if name.partition(".")[0] == "raydistill"],
        }))
        """,
        uri=ref.tracking_uri,
        folder=str(tmp_path),
        texts=json.dumps(texts),
    )
    model = AutoModelForSequenceClassification.from_pretrained(student)
    tokenizer = AutoTokenizer.from_pretrained(student)
    for text, row in zip(texts, answer["rows"], strict=True):
        inputs = tokenizer(text, return_tensors="pt", truncation=True, max_length=8)
        scores = model(**inputs).logits.detach().softmax(-1)[0]
        assert row["label"] == LABELS[int(scores.argmax())]
        assert row["score"] == pytest.approx(float(scores.max()), abs=1e-5)
    (one,) = answer["one"]
    for alone in (one, answer["flavour"]):  # a batch of one rounds otherwise than one of three
        assert alone["label"] == answer["rows"][0]["label"]
        assert alone["score"] == pytest.approx(answer["rows"][0]["score"], abs=1e-5)
    (pair,) = predict_texts(str(student), [(texts[0], texts[0])])
    assert (answer["pair"]["label"], answer["pair"]["score"]) == (pair["label"], pytest.approx(pair["score"], abs=1e-5))
    assert abs(pair["score"] - one["score"]) > 1e-5
    logits = model(**tokenizer(texts[0], return_tensors="pt")).logits.detach()
    torch.testing.assert_close(torch.tensor(answer["logits"]), logits, atol=1e-6, rtol=0)
    assert answer["ours"] == []


def test_registering_does_not_import_torch(storage: Storage, student: Path, tmp_path: Path) -> None:
    code = """
        import json, sys, time
        from pathlib import Path
        from raydistill.tracking.registry.students import register_student
        from raydistill.tracking.runs import RunRef
        import mlflow
        ref, student, results = RunRef(*json.loads(sys.argv[1])), Path(sys.argv[2]), json.loads(sys.argv[3])
        start = time.process_time()
        register_student(ref, "light", student, results, run_key="light", max_length=8)
        print(json.dumps([time.process_time() - start, "torch" in sys.modules, "transformers" in sys.modules]))
    """
    ref = run(storage, "light")
    fields = json.dumps([ref.tracking_uri, ref.experiment_id, ref.run_id])
    command = [sys.executable, "-c", textwrap.dedent(code), fields, str(student), json.dumps(RESULTS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    seconds, *heavy = json.loads(done.stdout)
    assert heavy == [False, False]
    assert seconds < 3  # of processor time; 0.4 measured


def test_version_has_headline_alias_and_run(storage: Storage, student: Path) -> None:
    ref = run(storage, "tags")
    assert register(ref, "tags", student, "run-key-1") == 1
    version = version_by_alias("tags", "challenger", ref.tracking_uri)
    assert version is not None
    assert (version.version, version.run_id, version.aliases) == (1, ref.run_id, ("challenger",))
    assert version.source == f"runs:/{ref.run_id}/student"
    assert version.tags.items() >= (HEADLINE | {"raydistill.run_key": "run-key-1"}).items()
    tags = open_client(ref.tracking_uri).get_run(ref.run_id).data.tags
    assert (tags["raydistill.model"], tags["raydistill.model_version"]) == ("tags", "1")


def test_a_version_is_known_by_its_run_not_by_its_number(storage: Storage, student: Path) -> None:
    """Another store, too, has a version 1 of the name, which is another run's."""
    own, other = run(storage, "own"), run(storage, "other")
    register(own, "numbered", student)
    uri = own.tracking_uri
    assert is_tracked(own.run_id, uri, "numbered", 1)
    assert not is_tracked(other.run_id, uri, "numbered", 1)
    assert not is_tracked(own.run_id, uri, "unknown", 1)
    assert is_tracked(other.run_id, uri, None, None)
    assert not is_tracked("0" * 32, uri, None, None)


def test_run_registers_once_and_later_runs_take_the_alias(storage: Storage, student: Path) -> None:
    first, second = run(storage, "one"), run(storage, "two")
    assert [register(first, "race", student), register(first, "race", student)] == [1, 1]
    assert register(second, "race", student) == 2
    assert register(first, "race", student) == 1
    versions = list_versions("race", first.tracking_uri)
    assert [(version.version, version.aliases) for version in versions] == [(2, ("challenger",)), (1, ())]


@pytest.fixture(scope="module")
def other(student: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student of the same recipe whose weights are others, as another device makes them."""
    return save_tiny(tmp_path_factory.mktemp("hf") / "student", "bert", num_layers=1, labels=LABELS, seed=1)


def weights_of(ref: RunRef, name: str, version: int, folder: Path) -> bytes:
    client = open_client(ref.tracking_uri)
    run_id = client.get_model_version(name, str(version)).run_id
    return Path(client.download_artifacts(run_id, "student/model.safetensors", str(folder))).read_bytes()


def test_storages_that_share_a_server_share_no_run(
    student: Path, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the second would put its student in the place of the first one's, which a gate let through."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    storages = [Storage(str(tmp_path / name)) for name in "ab"]
    first, second = (run(storage, "shared") for storage in storages)
    assert first.run_id != second.run_id
    children = [start_child(one, make_config(), "shared/trial-0", "trial-0", facts={}) for one in (first, second)]
    assert children[0].run_id != children[1].run_id
    assert [run(storage, "shared") for storage in storages] == [first, second]
    assert [register(first, "shared", student), register(second, "shared", other)] == [1, 2]
    assert start_child(second, make_config(), "shared/trial-0", "trial-0", facts={}) == children[1]
    for version, made in ((1, student), (2, other)):
        assert weights_of(first, "shared", version, tmp_path) == (made / "model.safetensors").read_bytes()


def test_a_student_that_is_trained_again_is_another_run_and_version(student: Path, other: Path, tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    made = Artifact(storage, "student", "0" * 20, {})

    def trained(model: Path) -> Path:
        with made.write() as folder:
            shutil.copytree(model, folder / "model")
        return made.local() / "model"

    refer(storage, "again", [made])
    first = run(storage, "again")
    assert register(first, "again", trained(student)) == 1
    assert run(storage, "again") == first  # cut off before its results were written
    made.delete()  # cache rm
    second = run(storage, "again")
    assert second.run_id != first.run_id
    assert register(second, "again", trained(other)) == 2
    assert run(storage, "again") == second
    for version, model in ((1, student), (2, other)):
        assert weights_of(first, "again", version, tmp_path) == (model / "model.safetensors").read_bytes()


def test_nothing_is_written_to_a_complete_version(storage: Storage, student: Path, other: Path, tmp_path: Path) -> None:
    ref = run(storage, "complete")
    for card in ("first", "second"):
        register_student(ref, "complete", student, RESULTS, run_key="complete", card=card)
    for _ in range(2):
        with pytest.raises(TrackingError, match=r"holds another student already.*Run the same command again"):
            register(ref, "complete", other)
    client = open_client(ref.tracking_uri)
    assert Path(client.download_artifacts(ref.run_id, "student/README.md", str(tmp_path))).read_text() == "first"
    assert weights_of(ref, "complete", 1, tmp_path) == (student / "model.safetensors").read_bytes()
    assert run(storage, "complete").run_id != ref.run_id


def test_registration_cut_off_after_creation_is_completed(storage: Storage, student: Path) -> None:
    ref = run(storage, "cut")
    client = open_client(ref.tracking_uri)
    client.create_registered_model("cut")
    client.create_model_version("cut", log_student(ref, student), run_id=ref.run_id)
    assert version_by_alias("cut", "challenger", ref.tracking_uri) is None
    assert register(ref, "cut", student) == 1
    (version,) = list_versions("cut", ref.tracking_uri)
    assert version.aliases == ("challenger",)
    assert version.tags.items() >= HEADLINE.items()


def twice(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """What MLflow's HTTP client does where an answer is lost: the request arrives twice, the second answer counts."""
    from mlflow import MlflowClient

    for name in names:
        plain = getattr(MlflowClient, name)

        def call(self: MlflowClient, *arguments: Any, plain: Any = plain, **named: Any) -> Any:
            plain(self, *arguments, **named)
            return plain(self, *arguments, **named)

        monkeypatch.setattr(MlflowClient, name, call)


def test_a_repeated_request_leaves_one_version(
    storage: Storage, student: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = run(storage, "repeated")
    twice(monkeypatch, "create_model_version", "delete_model_version")
    assert register(ref, "repeated", student) == 1
    versions = list_versions("repeated", ref.tracking_uri)
    assert [(version.version, version.aliases) for version in versions] == [(1, ("challenger",))]
    assert versions[0].tags["raydistill.complete"] == "true"


def test_an_orphan_never_becomes_the_challenger(storage: Storage, student: Path) -> None:
    """Of two versions that an earlier release made of one run the second was registered to its end."""
    first, second = run(storage, "orphan-a"), run(storage, "orphan-b")
    client, source = open_client(first.tracking_uri), log_student(first, student)
    client.create_registered_model("orphan")
    client.create_model_version("orphan", source, run_id=first.run_id)
    client.create_model_version("orphan", source, run_id=first.run_id)
    client.set_model_version_tag("orphan", "2", "raydistill.complete", "true")
    assert register(second, "orphan", student) == 3
    assert register(first, "orphan", student) == 2
    versions = list_versions("orphan", first.tracking_uri)
    assert [(version.version, version.aliases) for version in versions] == [(3, ("challenger",)), (2, ())]


def test_completing_an_older_version_leaves_the_alias_of_a_later_one(storage: Storage, student: Path) -> None:
    first, second = run(storage, "late-a"), run(storage, "late-b")
    client = open_client(first.tracking_uri)
    client.create_registered_model("late")
    client.create_model_version("late", log_student(first, student), run_id=first.run_id)
    assert register(second, "late", student) == 2
    assert register(first, "late", student) == 1
    versions = list_versions("late", first.tracking_uri)
    assert [(version.version, version.aliases) for version in versions] == [(2, ("challenger",)), (1, ())]


def test_missing_weights_are_not_registered(storage: Storage, student: Path, tmp_path: Path) -> None:
    ref = run(storage, "hollow")
    hollow = Path(shutil.copytree(student, tmp_path / "hollow"))
    (hollow / "model.safetensors").unlink()
    with pytest.raises(TrackingError, match=r"model\.safetensors"):
        register(ref, "hollow", hollow)
    assert list_versions("hollow", ref.tracking_uri) == []
    assert version_by_alias("hollow", "challenger", ref.tracking_uri) is None


def test_lost_artefacts_are_uploaded_again(storage: Storage, student: Path) -> None:
    ref = run(storage, "lost")
    log_student(ref, student)
    weights = Path(storage.root) / "mlruns" / ref.run_id / "artifacts" / "student" / "model.safetensors"
    written = weights.stat().st_mtime_ns
    log_student(ref, student)
    assert weights.stat().st_mtime_ns == written  # the same content is not copied twice
    weights.unlink()
    assert register(ref, "lost", student) == 1
    assert weights.read_bytes() == (student / "model.safetensors").read_bytes()


def test_model_uris_lead_to_a_folder(storage: Storage, student: Path, tmp_path: Path) -> None:
    from raydistill.deploy.opening import open_model
    from raydistill.tracking.registry.versions import resolve_model_uri

    ref = run(storage, "uris")
    register(ref, "uris", student)
    for uri in (f"runs:/{ref.run_id}/student", "models:/uris/1", "models:/uris@challenger"):
        folder = resolve_model_uri(uri, storage)
        assert (folder / "model.safetensors").read_bytes() == (student / "model.safetensors").read_bytes()
        assert open_model(uri, None, storage.url).max_length == 8
    with pytest.raises(TrackingError, match="nobody"):
        resolve_model_uri("models:/uris@nobody", storage)
    with pytest.raises(TrackingError, match="There is no MLflow store"):
        resolve_model_uri("models:/uris@challenger", Storage(str(tmp_path)))
    assert list(tmp_path.iterdir()) == []


def test_data_is_read_by_the_column_names_of_the_models_run(storage: Storage, student: Path, tmp_path: Path) -> None:
    """Labelled data and tables for predict: the run's names where the table has them, else usual ones."""
    from raydistill.config.data import Columns, Data
    from raydistill.deploy.own_rows import columns_of, find_test_rows
    from raydistill.tasks import TextClassification

    ref = run(storage, "columns", data={"path": "x", "columns": {"text": "body", "label": "stars"}})
    register(ref, "columns", student)
    task = TextClassification(("bad", "good"))
    (tmp_path / "own.csv").write_text("id,body,stars,text\n1,a good film,good,none\n")
    (tmp_path / "usual.csv").write_text("text,label\na bad film,bad\n")
    for model in ("models:/columns/1", f"runs:/{ref.run_id}/student"):
        assert columns_of(model, storage.url) == Columns(text="body", label="stars")
        for name, text, label in (("own", "a good film", "good"), ("usual", "a bad film", "bad")):
            rows = find_test_rows(model, task, Data(path=str(tmp_path / f"{name}.csv")), "test", storage.url)
            assert (rows.texts, task.outputs[rows.targets.values[0]]) == ((text,), label)
    asked = Data(path=str(tmp_path / "own.csv"), columns={"text": "text"})
    assert find_test_rows("models:/columns/1", task, asked, "test", storage.url).texts == ("none",)
    command = ["predict", "models:/columns/1", "--storage", storage.url, "--file", str(tmp_path / "own.csv")]
    assert cli.execute([*command, "--out", str(tmp_path / "out.jsonl")]) == 0
    (found,) = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    (plain,) = predict_texts(str(student), ["a good film"])
    assert found["score_good"] == pytest.approx(plain["scores"]["good"], abs=1e-5)


def test_data_is_read_as_the_models_run_wrote_its_labels(storage: Storage, tmp_path: Path) -> None:
    from raydistill.config.data import Data
    from raydistill.deploy.own_rows import find_test_rows
    from raydistill.tasks.multi_label import MultiLabelClassification

    task = MultiLabelClassification(("art", "law", "tax"))
    settings = {"type": task.type, "separator": "|", "labels": list(task.outputs)}
    ref = run(storage, "separated", task=settings)
    (tmp_path / "rows.csv").write_text("text,labels\na film,art\na vote,law|tax\n")
    rows = find_test_rows(
        f"runs:/{ref.run_id}/student", task, Data(path=str(tmp_path / "rows.csv")), "test", storage.url
    )
    assert rows.targets.values.tolist() == [[1, 0, 0], [0, 1, 1]]
    storage.write_json({"artifacts": ["student/4567"]}, "runs", "tagged", "run.json")
    storage.write_json({"config": {"task": settings}}, "runs", "tagged", "results.json")
    folder = f"{storage.url}/student/4567/model"
    rows = find_test_rows(folder, task, Data(path=str(tmp_path / "rows.csv")), "test", storage.url)
    assert rows.targets.values.tolist() == [[1, 0, 0], [0, 1, 1]]


def test_the_bare_name_of_a_registered_model_gets_a_hint(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    from raydistill.deploy.opening import open_model
    from raydistill.errors import ModelError

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"HF_HUB_OFFLINE is set.*A registered model is called models:/NAME@ALIAS"):
        open_model("mood", None, storage.url)


def test_columns_of_a_student_that_lies_in_storage(tmp_path: Path) -> None:
    from raydistill.deploy.own_rows import columns_of

    place = Storage(str(tmp_path))
    place.write_json({"artifacts": ["student/0123"]}, "runs", "key", "run.json")
    folder = str(tmp_path / "student" / "0123" / "model")
    assert columns_of(folder, place.url).text is None  # the run has no results yet
    place.write_json({"config": {"data": {"columns": {"text": "body"}}}}, "runs", "key", "results.json")
    assert columns_of(folder, place.url).text == "body"
