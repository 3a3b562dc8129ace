"""Runs in a real local store: lineage, one run a run key, metrics that arrive once, whatever dies in between."""

from __future__ import annotations

import json
import logging
import math
import pickle
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from kit.servers import free_port, make_config, start_server, stop_server
from kit.tiny import save_tiny

from raydistill.config.data import Data
from raydistill.errors import StaleOwner, TrackingError
from raydistill.storage.redaction import redact
from raydistill.storage.storage import Storage
from raydistill.tracking.endpoint import tracking_uri
from raydistill.tracking.journal import metric_name
from raydistill.tracking.lineage import describe_environment, figures, headline
from raydistill.tracking.registry.students import register_student
from raydistill.tracking.registry.versions import version_by_alias
from raydistill.tracking.runs import (
    RunRef,
    Tracker,
    drain,
    finish_run,
    log_data,
    open_client,
    page_of,
    prepare_store,
    start_run,
    tag_run,
)

RESULTS = {
    "schema": 1,
    "student": {
        "num_parameters": 1234,
        "bytes": 5000,
        "latency_ms": {"p50": 1.25, "p95": 2.0},
        "test": {"accuracy": {"value": 0.875, "low": 0.8, "high": 0.9}, "log_loss": {"value": 0.5}},
    },
    "teacher": {"test": {"accuracy": {"value": 0.9375}}},
    "baseline": None,
    "retention": {"accuracy": 0.9333},
    "agreement": 0.75,
    "seconds": {"train": 3.5},
}


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    return Storage(str(tmp_path_factory.mktemp("a store")))


@pytest.fixture
def ref(storage: Storage, request: pytest.FixtureRequest) -> RunRef:
    return start_run(make_config(), storage, run_key=request.node.name)


def history(ref: RunRef, key: str) -> list[tuple[int, float]]:
    points = open_client(ref.tracking_uri).get_metric_history(ref.run_id, key)
    return sorted((point.step, point.value) for point in points)


def close(tracker: Tracker) -> None:
    assert tracker.close(timeout=30) == 0


def test_uri_is_absolute_and_in_the_storage_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tracking_uri(Storage(str(tmp_path))) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///runs.db")
    assert tracking_uri(Storage("elsewhere")) == f"sqlite:///{tmp_path}/runs.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.example")
    assert tracking_uri(Storage("memory://bucket")) == "https://mlflow.example"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(TrackingError, match=r"MLFLOW_TRACKING_URI.*mlflow server"):
        tracking_uri(Storage("memory://bucket/x"))


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("at https://user:pa:ss@host/x", "pa:ss"),
        ("postgresql://u:p@ss@host:5432/db", "p@ss"),
        ("https://t0ken@host", "t0ken"),
        ("s3://b/x?token=abc123&size=3", "abc123"),
        ("https://h/x?X-Amz-Signature=f00&a=1", "f00"),
        ("login with hf_AbCdEfGhIjKlMnOp", "AbCdEfGhIjKlMnOp"),
        ("key AKIAIOSFODNN7EXAMPLE", "IOSFODNN7"),
        ("AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMI/K7MDENG", "wJalrXUtnFEMI"),
        ("Authorization: Bearer ey.J0.eX", "ey.J0.eX"),
        ('{"password": "hunter2"}', "hunter2"),
        ("  api_key: sesame\n", "sesame"),
    ],
)
def test_secrets_are_redacted(text: str, secret: str) -> None:
    assert secret not in redact(text)
    assert redact(redact(text)) == redact(text)


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/key",
        "https://host:5000/path?x=1",
        "tokens_per_micro_batch: 8192",
        "pkg://p/data",
        "a@b.org",
        "hf_ok",
    ],
)
def test_the_rest_is_not_redacted(text: str) -> None:
    assert redact(text) == text


def test_run_has_parameters_tags_and_files(storage: Storage) -> None:
    config = make_config(seed=7, tracking={"tags": {"team": "nlp", "api_key": "sesame"}, "run_name": "first"})
    ref = pickle.loads(pickle.dumps(start_run(config, storage, "key-a", {"data": "d" * 64, "teacher": "t1"})))
    tag_run(ref, {"signals": "s1"})
    client = open_client(ref.tracking_uri)
    run = client.get_run(ref.run_id)
    params, tags = run.data.params, run.data.tags
    assert params["stages.distill.losses.kd.temperature"] == "3.0"
    assert params["train.num_workers"] == "1"
    assert params["data.columns.text"] == "null"
    assert params["evaluate.baseline"] == "false"
    assert params["tracking.tags.api_key"] == "***" == tags["api_key"]
    assert "sesame" not in ref.tracking_uri + json.dumps(params)
    expected = {"run_key": "key-a", "data": "d" * 64, "teacher": "t1", "signals": "s1", "seed": "7"}
    assert {name: tags[f"raydistill.{name}"] for name in expected} == expected
    assert tags["team"] == "nlp"
    assert run.info.run_name == "first"
    assert re.fullmatch(r"[0-9a-f]{20}", tags["raydistill.config_hash"])
    artifacts = Path(storage.root) / "mlruns" / ref.run_id / "artifacts"
    assert "sesame" not in (artifacts / "config.yaml").read_text()
    assert json.loads((artifacts / "lineage.json").read_text())["packages"]["mlflow"]


def test_lineage_knows_commit_and_changes(tmp_path: Path) -> None:
    assert (describe_environment(tmp_path)["git"] or {}).keys() <= {"commit", "dirty"}
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.org"]
    (tmp_path / "x").write_text("1")
    for words in (["init", "-q"], ["add", "x"], ["commit", "-qm", "one"]):
        subprocess.run([*git, *words], check=True)
    clean = describe_environment(tmp_path)["git"]
    assert re.fullmatch(r"[0-9a-f]{40}", clean["commit"])
    assert clean["dirty"] is False
    (tmp_path / "x").write_text("2")
    assert describe_environment(tmp_path)["git"] == clean | {"dirty": True}


def test_same_run_key_reopens_its_run(storage: Storage) -> None:
    first = start_run(make_config(), storage, "key-b")
    client = open_client(first.tracking_uri)
    for status in ("FINISHED", "FAILED", "KILLED"):
        finish_run(first, status=status)
        assert client.get_run(first.run_id).info.status == status
        assert start_run(make_config(), storage, "key-b") == first
        assert client.get_run(first.run_id).info.status == "RUNNING"
    assert start_run(make_config(), storage, "key-c").run_id != first.run_id
    assert len(client.search_runs([first.experiment_id], "tags.`raydistill.run_key` = 'key-b'")) == 1


def test_a_repeated_request_leaves_one_run(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow's HTTP client repeats a request whose answer was lost."""
    from mlflow import MlflowClient

    plain = MlflowClient.create_run

    def twice(self: Any, *arguments: Any, **named: Any) -> Any:
        plain(self, *arguments, **named)
        return plain(self, *arguments, **named)

    monkeypatch.setattr(MlflowClient, "create_run", twice)
    ref = start_run(make_config(), storage, "key-twice")
    client = open_client(ref.tracking_uri)
    (run,) = client.search_runs([ref.experiment_id], "tags.`raydistill.run_key` = 'key-twice'")
    assert run.info.run_id == ref.run_id == start_run(make_config(), storage, "key-twice").run_id


LOSSES = {"kd": {"type": "forward_kl"}, "task": {"type": "task"}}
STAGES = {"first": {"losses": {"hidden": {"type": "hidden_mse"}}}, "second": {"losses": LOSSES}}


@pytest.mark.parametrize(
    ("kind", "sections", "name"),
    [
        ("distill", {"student": {"num_layers": None}}, "reviews all layers kd"),
        ("distill", {"registry": {"name": "mood"}, "student": {"num_layers": 2}}, "mood 2 layers kd"),
        ("distill", {"stages": STAGES, "student": {"num_layers": 1, "hidden_size": 96}}, "reviews 1 layer of 96 "),
        (
            "distill",
            {"data": {"path": "s3://me:sesame@bucket/a/mood.parquet?token=sesame"}, "student": {"num_layers": 3}},
            "mood 3 layers kd",
        ),
        ("sweep", {"registry": {"name": "mood"}}, "mood sweep"),
        ("sweep", {"tracking": {"run_name": "my own"}}, "my own"),
    ],
)
def test_a_run_is_named_by_what_it_is(storage: Storage, kind: str, sections: dict[str, Any], name: str) -> None:
    name += "hidden+kd+task" if "stages" in sections else ""
    ref = start_run(make_config(**sections), storage, f"named {name}", {"kind": kind})
    assert open_client(ref.tracking_uri).get_run(ref.run_id).info.run_name == name


def test_mlflow_shows_runs_and_not_what_is_for_language_models(storage: Storage) -> None:
    config = make_config(tracking={"experiment": "of a person"})
    client = open_client(start_run(make_config(), storage, "key-kind").tracking_uri)
    made = client.create_experiment("of a person", tags={"mlflow.experimentKind": "finetuning"})
    plain = client.create_experiment("older")
    assert start_run(config, storage, "key-kind").experiment_id == made
    ref = start_run(make_config(tracking={"experiment": "older"}), storage, "key-kind")
    assert ref.experiment_id == plain
    kinds = {one.name: one.tags.get("mlflow.experimentKind") for one in client.search_experiments()}
    assert kinds["of a person"] == "finetuning"
    assert kinds["raydistill"] == kinds["older"] == "custom_model_development"
    assert page_of(ref.tracking_uri, ref.run_id) == f"#/experiments/{plain}?workflowType=machine_learning"


def test_a_changed_setting_of_a_resumed_run_is_in_its_config(storage: Storage) -> None:
    ref = start_run(make_config(), storage, "key-d")
    start_run(make_config(train={"num_workers": 3}), storage, "key-d")
    data = open_client(ref.tracking_uri).get_run(ref.run_id).data
    assert data.params["train.num_workers"] == "1"
    artifacts = Path(storage.root) / "mlruns" / ref.run_id / "artifacts"
    assert "num_workers: 3" in (artifacts / "config.yaml").read_text()


def test_deleted_experiment_is_refused(storage: Storage) -> None:
    config = make_config(tracking={"experiment": "gone"})
    ref = start_run(config, storage, "key-e")
    open_client(ref.tracking_uri).delete_experiment(ref.experiment_id)
    with pytest.raises(TrackingError, match="experiments restore"):
        start_run(config, storage, "key-e")


def test_data_is_an_input_once(ref: RunRef) -> None:
    import mlflow.data

    for _ in range(2):
        log_data(ref, Data(path="s3://user:pw@bucket/x?token=pw"), "ab" * 32, {"train": 80, "test": 20})
    (entry,) = open_client(ref.tracking_uri).get_run(ref.run_id).inputs.dataset_inputs
    assert entry.dataset.digest == ("ab" * 32)[:36]
    assert json.loads(entry.dataset.profile) == {"num_rows": {"train": 80, "test": 20}}
    assert mlflow.data.get_source(entry.dataset).to_dict()["tags"] == {"path": "s3://***@bucket/x?token=***"}
    assert "pw" not in entry.dataset.source + entry.dataset.name


def test_final_figures_and_files_are_logged_once(ref: RunRef, tmp_path: Path) -> None:
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "curve.png").write_bytes(b"png")
    finish_run(ref, RESULTS, tmp_path)
    finish_run(ref, RESULTS, tmp_path)
    client = open_client(ref.tracking_uri)
    run = client.get_run(ref.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["test/accuracy"] == 0.875
    assert run.data.metrics["teacher/test/accuracy"] == 0.9375
    assert history(ref, "test/accuracy") == [(0, 0.875)]
    assert history(ref, "latency_ms/p95") == [(0, 2.0)]
    values = [value for name, value in run.data.metrics.items()]
    assert len(values) == len(set(values))  # every figure of the results is another one, and has one name
    assert {file.path for file in client.list_artifacts(ref.run_id)} >= {"results.json", "plots", "config.yaml"}


def test_files_of_a_run_are_whole_without_what_is_secret(storage: Storage, tmp_path: Path) -> None:
    """Labels may be called like secrets; texts hold quotes."""
    config = make_config(tracking={"tags": {"password": "sesame, open sesame", "note": '"token": sesame'}})
    ref = start_run(config, storage, "key-secret", {"token": 3, "why": '{"api_key": "sesame"}'})
    counts = {"token": 3, "password": 12.5, "https://me:sesame@host/x": None}
    notes = {"notes": ['"password": "sesame", \\"more\\"'], "api_key": "sesame, sesame"}
    finish_run(ref, RESULTS | {"labels": [*counts], "per_class": counts} | notes)
    client = open_client(ref.tracking_uri)
    files = {
        name: Path(client.download_artifacts(ref.run_id, name, str(tmp_path))).read_text()
        for name in ("results.json", "lineage.json", "config.yaml")
    }
    assert "sesame" not in "".join(files.values())
    made = json.loads(files["results.json"])
    assert made["per_class"] == {"token": 3, "password": 12.5, "https://***@host/x": None}
    assert made["labels"] == [*made["per_class"]]
    assert (made["notes"], made["api_key"]) == (['"password": "***", \\"more\\"'], "***")
    assert json.loads(files["lineage.json"])["token"] == 3
    tags = {"password": "***", "note": '"token": ***'}
    assert yaml.safe_load(files["config.yaml"])["tracking"]["tags"] == tags
    assert json.loads(client.get_run(ref.run_id).data.params.get("tracking.tags", json.dumps(tags))) == tags


def test_headline_and_figures() -> None:
    assert headline(RESULTS) == {
        "test/accuracy": 0.875,
        "test/log_loss": 0.5,
        "num_parameters": 1234,
        "bytes": 5000,
        "latency_ms/p50": 1.25,
        "retention/accuracy": 0.9333,
        "agreement": 0.75,
    }
    assert figures(RESULTS)["seconds/train"] == 3.5
    validated = {"teacher": {"validation": {"accuracy": {"value": 0.75, "low": 0.7, "high": 0.8}}}}
    assert figures(validated) == {"teacher/best_validation/accuracy": 0.75}  # not the name of a curve
    assert figures({"student": validated["teacher"]}) == {"best_validation/accuracy": 0.75}
    assert headline({}) == {}


def test_metrics_arrive_and_log_returns_at_once(ref: RunRef, tmp_path: Path) -> None:
    tracker = Tracker(ref, tmp_path / "metrics.jsonl")
    taken = []
    for step in range(700):
        start = time.perf_counter()
        tracker.log({"train/loss": step / 10, "train/loss/kd": 1.0}, step)
        taken.append(time.perf_counter() - start)
    close(tracker)
    assert history(ref, "train/loss") == [(step, step / 10) for step in range(700)]
    assert len(history(ref, "train/loss/kd")) == 700
    assert sorted(taken)[len(taken) // 2] < 0.2e-3


def test_nan_is_kept_inf_dropped_and_bad_values_do_not_raise(ref: RunRef, tmp_path: Path) -> None:
    tracker = Tracker(ref, tmp_path / "metrics.jsonl")
    tracker.log({"a": math.nan, "b": math.inf, "c": -math.inf, "odd <name>//x": 1.0}, 0)
    tracker.log({"a": "text"}, 1)  # type: ignore[dict-item]
    tracker.log({"a": 2.0, "b": 3.0}, 2)
    close(tracker)
    (first, second) = history(ref, "a")
    assert math.isnan(first[1])
    assert second == (2, 2.0)
    assert history(ref, "b") == [(2, 3.0)]
    assert history(ref, "c") == []
    assert history(ref, "odd _name_/x") == [(0, 1.0)]


def test_resumed_steps_appear_once_with_the_same_file_or_a_new_one(ref: RunRef, tmp_path: Path) -> None:
    parts = [("a", range(0, 60), 1.0), ("a", range(40, 80), 2.0), ("b", range(70, 100), 3.0)]
    for name, steps, value in parts:
        tracker = Tracker(ref, tmp_path / f"{name}.jsonl")
        for step in steps:
            tracker.log({"train/loss": value}, step)
        close(tracker)
    expected = [(step, 1.0 if step < 60 else 2.0 if step < 80 else 3.0) for step in range(100)]
    assert history(ref, "train/loss") == expected


def test_drain_sends_what_is_missing(ref: RunRef, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    line = '{"step": %d, "time": 1, "metrics": {"m": %d.5}}\n'
    path.write_text(line % (1, 1) + line % (2, 2) + '{"step": 3, "ti')
    assert drain(ref, path) == 2
    tracker = Tracker(ref, path)  # closes the cut-off line first
    tracker.log({"m": 3.5}, 3)
    close(tracker)
    assert drain(ref, path) == 0
    assert drain(ref, tmp_path / "none.jsonl") == 0
    assert history(ref, "m") == [(1, 1.5), (2, 2.5), (3, 3.5)]


def test_stale_writer_stops_sending(ref: RunRef, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Taken:
        def check(self) -> None:
            raise StaleOwner("a newer process writes")

    tracker = Tracker(ref, tmp_path / "metrics.jsonl", owner=Taken())
    tracker.log({"m": 1.0}, 1)
    assert tracker.close(timeout=10) == 1
    assert history(ref, "m") == []
    assert "a newer process writes" in caplog.text


def test_system_metrics_go_on_after_a_resume(ref: RunRef, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.2")
    key, counts = "system/cpu_utilization_percentage", []
    for part in range(2):
        tracker = Tracker(ref, tmp_path / f"{part}.jsonl", system_metrics=True)
        deadline = time.monotonic() + 20
        while len(history(ref, key)) <= sum(counts) and time.monotonic() < deadline:
            time.sleep(0.1)
        close(tracker)
        counts.append(len(history(ref, key)) - sum(counts))
    steps = [step for step, _ in history(ref, key)]
    assert min(counts) >= 1
    assert steps == list(range(len(steps)))


@pytest.mark.parametrize(("name", "clean"), [("a//b/../c", "a/b/c"), ("/x", "x"), ("ä=1", "ä_1"), ("..", "_")])
def test_metric_names_are_made_valid(name: str, clean: str) -> None:
    assert metric_name(name) == clean


def test_unreachable_server_is_told_within_seconds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    port = free_port()
    start = time.monotonic()
    for uri in (f"http://user:secret@127.0.0.1:{port}", "not-a-scheme://x"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        with pytest.raises(TrackingError) as caught:
            start_run(make_config(), Storage(str(tmp_path)), "key")
        assert "MLFLOW_TRACKING_URI" in str(caught.value)
        assert "secret" not in str(caught.value)
    with socket.socket() as silent:  # takes connections, answers nothing
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(TrackingError, match="no answer within 4 s"):
            prepare_store(f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert time.monotonic() - start < 10


def test_close_tells_how_many_values_wait(tmp_path: Path) -> None:
    ref = RunRef(f"http://127.0.0.1:{free_port()}", "0", "f" * 32)
    tracker = Tracker(ref, tmp_path / "metrics.jsonl")
    for step in range(3):
        tracker.log({"a": 1.0, "b": math.nan, "c": math.inf}, step)
    start = time.monotonic()
    assert tracker.close(timeout=1) == 6
    assert time.monotonic() - start < 3
    with pytest.raises(TrackingError):
        drain(ref, tmp_path / "metrics.jsonl")


PREPARE = "import sys; from raydistill.tracking.runs import prepare_store; prepare_store(sys.argv[1])"


def test_two_processes_create_one_database_in_silence(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/new/mlflow.db"
    both = [
        subprocess.Popen(
            [sys.executable, "-c", PREPARE, uri], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for _ in range(2)
    ]
    assert [process.communicate(timeout=60)[0] for process in both] == ["", ""]
    assert [process.returncode for process in both] == [0, 0]


WRITE = """
import sys, time
from pathlib import Path
from raydistill.tracking.runs import RunRef, Tracker
tracker = Tracker(RunRef(*sys.argv[1:4]), Path(sys.argv[4]))
for step in range(int(sys.argv[5]), int(sys.argv[6])):
    tracker.log({"train/loss": float(step), "train/rate": 1.0}, step)
    time.sleep(0.001)
print("written", flush=True)
left = tracker.close() if sys.argv[7] == "close" else time.sleep(60)
sys.exit(left)
"""


@pytest.mark.slow
def test_killed_writer_is_continued(ref: RunRef, tmp_path: Path) -> None:
    fields = [ref.tracking_uri, ref.experiment_id, ref.run_id, str(tmp_path / "metrics.jsonl")]
    command = [sys.executable, "-c", WRITE, *fields]
    first = subprocess.Popen([*command, "0", "100000", "wait"])
    deadline = time.monotonic() + 120
    while len(history(ref, "train/loss")) < 200 and time.monotonic() < deadline:
        time.sleep(0.1)
    first.send_signal(signal.SIGKILL)
    first.wait()
    acknowledged = len(history(ref, "train/loss"))
    assert acknowledged >= 200
    written = len((tmp_path / "metrics.jsonl").read_bytes().splitlines())  # more than was acknowledged
    resumed_at, end = acknowledged - 150, written + 300
    subprocess.run([*command, str(resumed_at), str(end), "close"], check=True, capture_output=True, timeout=60)
    for key in ("train/loss", "train/rate"):
        assert [step for step, _ in history(ref, key)] == list(range(end))


@pytest.mark.slow
def test_server_that_dies_and_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow.artifacts

    port = free_port()
    server = start_server(tmp_path, port)
    try:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
        ref = start_run(make_config(), Storage("memory://bucket"), "key")
        tracker = Tracker(ref, tmp_path / "metrics.jsonl")
        for step in range(600):
            tracker.log({"loss": float(step)}, step)
        deadline = time.monotonic() + 120
        while len(history(ref, "loss")) < 600 and time.monotonic() < deadline:
            time.sleep(0.2)
        stop_server(server)
        slowest = 0.0
        for step in range(600, 1500):
            start = time.perf_counter()
            tracker.log({"loss": math.nan if step == 700 else float(step)}, step)
            slowest = max(slowest, time.perf_counter() - start)
            time.sleep(0.002)
        assert slowest < 0.1
        server = start_server(tmp_path, port)
        assert tracker.close(timeout=60) == 0
        assert [step for step, _ in history(ref, "loss")] == list(range(1500))
        finish_run(ref, RESULTS)
        assert any(file.path == "results.json" for file in open_client(ref.tracking_uri).list_artifacts(ref.run_id))
        student = save_tiny(tmp_path / "hf", "bert", num_layers=1)
        assert register_student(ref, "served", student, RESULTS, run_key="key") == 1
        version = version_by_alias("served", "challenger", ref.tracking_uri)
        assert version is not None
        stored = mlflow.artifacts.download_artifacts(version.source, tracking_uri=ref.tracking_uri)
        assert (Path(stored) / "model.safetensors").read_bytes() == (student / "model.safetensors").read_bytes()
    finally:
        stop_server(server)


def test_what_mlflow_says_goes_to_logging(ref: RunRef) -> None:
    assert not any(type(handler) is logging.StreamHandler for handler in logging.getLogger("mlflow").handlers)
    assert logging.getLogger("mlflow").propagate
