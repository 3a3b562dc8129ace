"""Registered students behind HTTP: the Ray Serve application of ``raydistill init serve``, ``mlflow models serve``."""

from __future__ import annotations

import ast
import itertools
import json
import os
import runpy
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import psutil
import pytest
import yaml
from kit import ROOT
from kit.pictures import png, save_tiny_pictures, toy_picture
from kit.servers import free_port
from kit.tiny import save_tiny
from kit.toy import toy_config
from mlflow import MlflowClient
from transformers import pipeline

from raydistill.cli import main as cli
from raydistill.config.loading import load_config
from raydistill.pipeline.distill import distill
from raydistill.tracking.registry.students import write_model

SERVE = ROOT / "jobs" / "serve.py"
TEXTS = ["the team was good and the match was great", "money in the bank", "a poor film", "movie " * 50]
POLL_SECONDS = 0.5

# a version that answers with the number of rows that it was asked for at once, as a label
COUNTING = """
import time
class Counting:
    def predict(self, rows, params=None):
        time.sleep(0.05)
        return [{"label": str(len(rows)), "score": 1.0}] * len(rows)
def _load_pyfunc(folder):
    return Counting()
"""


class Server:
    """A server command in a session of its own, by which its processes are found."""

    def __init__(self, folder: Path, *command: str, blocked: Path, **environment: str) -> None:
        self.log = folder / f"{command[0]}-{secrets.token_hex(4)}.log"
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
        settings = {
            "PYTHONPATH": str(blocked),
            "RAY_ADDRESS": "local",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # seven more processes
            "HF_HUB_OFFLINE": "1",
            "NO_COLOR": "1",
        }
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [str(Path(sys.executable).parent / command[0]), *command[1:]],
                cwd=folder,
                env={**clean, **settings, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_until(self, what: Callable[[], Any], seconds: float = 120.0) -> Any:
        """What ``what`` returns when that is true; an error of its HTTP call counts as false."""
        deadline = time.monotonic() + seconds
        while True:
            with suppress(OSError):
                if found := what():
                    return found
            assert time.monotonic() < deadline, self.log.read_text()[-4000:]
            assert self.process.poll() is None, self.log.read_text()[-4000:]
            time.sleep(0.1)

    def processes(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, ProcessLookupError):
                if os.getsid(process.pid) == self.process.pid:
                    found.append(process)
        return found

    def end(self, signum: int, seconds: float = 60.0) -> tuple[int, list[str]]:
        """Send a signal to the command alone; its exit code, and the names of processes that it leaves."""
        self.process.send_signal(signum)
        code = self.process.wait(seconds)
        _, alive = psutil.wait_procs(self.processes(), timeout=10)
        return code, [process.name() for process in alive]

    def clean_up(self) -> None:
        for process in self.processes():
            with suppress(psutil.Error):
                process.kill()
        self.process.wait(20)


def call(url: str, data: Any = None, **headers: str) -> tuple[int, Any]:
    """Status and JSON, or text, of an answer; ``data`` is sent as JSON unless it is bytes."""
    body = data if data is None or isinstance(data, bytes | itertools.repeat) else json.dumps(data).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json", **headers})
    try:
        answer = urllib.request.urlopen(request, timeout=30)
    except urllib.error.HTTPError as error:
        answer = error
    with answer:
        text = answer.read().decode()
    try:
        return answer.status, json.loads(text)
    except json.JSONDecodeError:
        return answer.status, text


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Storage with two versions of ``toy``, then one that counts and a broken one, and versions of ``pairs`` and
    ``pictures``."""
    folder = tmp_path_factory.mktemp("serving")
    for seed in (1, 2):
        distill(load_config(toy_config(folder, evaluate__baseline=False, train__seed=seed)))
    client = MlflowClient(tracking_uri=store(folder))
    counting = folder / "counting"
    write_model(save_tiny(folder / "student", num_layers=1), counting)
    (code,) = (counting / "code").iterdir()
    code = code.rename(code.with_name("counting_scorer.py"))
    code.write_text(COUNTING)
    settings = yaml.safe_load((counting / "MLmodel").read_text())
    settings["flavors"]["python_function"] |= {"loader_module": code.stem, "config": None}
    (counting / "MLmodel").write_text(yaml.safe_dump(settings))
    broken = Path(shutil.copytree(downloaded(folder, 2), folder / "broken"))
    (broken / "model.safetensors").write_bytes((broken / "model.safetensors").read_bytes()[:-100])
    write_model(folder / "student", folder / "pairs", has_pairs=True)
    write_model(save_tiny_pictures(folder / "vit", num_labels=4), folder / "pictures")
    for name in ("pairs", "pictures"):
        client.create_registered_model(name)
    own = [(name, folder / name) for name in ("pairs", "pictures")]
    for name, source in (("toy", counting), ("toy", broken), *own):
        client.create_model_version(name, source.as_uri())
    for name in ("pairs", "pictures"):
        client.set_registered_model_alias(name, "champion", "1")
    client.set_registered_model_alias("toy", "champion", "1")
    return folder


FIRST, SECOND, COUNTS, BROKEN = 1, 2, 3, 4


def store(folder: Path) -> str:
    return f"sqlite:///{folder}/storage/mlflow.db"


def downloaded(folder: Path, version: int) -> Path:
    """The folder of a version of ``toy``, as a user gets it."""
    target = folder / f"downloaded-{version}"
    if not target.exists():
        with using(store(folder)):
            mlflow.artifacts.download_artifacts(f"models:/toy/{version}", dst_path=str(target))
    return target


@contextmanager
def using(uri: str) -> Iterator[None]:
    """MLflow in this process looks at another store."""
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)


def expected(folder: Path, version: int, texts: list[str] = TEXTS) -> list[dict[str, Any]]:
    """What transformers says, cut to the 20 tokens that the students were trained with."""
    model = pipeline("text-classification", str(downloaded(folder, version)), device="cpu")
    return model(texts, truncation=True, max_length=20)


def same(rows: list[dict[str, Any]], others: list[dict[str, Any]]) -> bool:
    """Labels equal, scores within 1e-5."""
    return len(rows) == len(others) and all(
        a["label"] == b["label"] and a["score"] == pytest.approx(b["score"], abs=1e-5)
        for a, b in zip(rows, others, strict=True)
    )


@pytest.fixture(scope="module")
def blocked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PYTHONPATH in which raydistill cannot be imported."""
    folder = tmp_path_factory.mktemp("blocked")
    (folder / "raydistill.py").write_text("raise ImportError('raydistill is not there')")
    return folder


class Registry:
    """An MLflow server, which can go away and come back."""

    def __init__(self, folder: Path, blocked: Path) -> None:
        self.folder, self.blocked, self.port = folder, blocked, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        place = ("--backend-store-uri", store(self.folder), "--artifacts-destination", str(self.folder / "artifacts"))
        where = ("--host", "127.0.0.1", "--port", str(self.port), "--workers", "1")
        self.server = Server(self.folder, "mlflow", "server", *place, *where, blocked=self.blocked)
        self.server.wait_until(lambda: urllib.request.urlopen(f"{self.uri}/health", timeout=5).status == 200)

    def move(self, version: int | None) -> None:
        client = MlflowClient(tracking_uri=self.uri)
        if version is None:
            client.delete_registered_model_alias("toy", "champion")
        else:
            client.set_registered_model_alias("toy", "champion", str(version))


class Served:
    """``serve run`` with the copied application, for ``toy`` at ``url``, for ``pairs`` and ``pictures`` below it."""

    def __init__(self, folder: Path, registry: Registry, blocked: Path) -> None:
        self.folder, self.registry = folder, registry
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/"
        part = [{"name": "Champion", "ray_actor_options": {"num_cpus": 0.3}}]
        applications = [
            {"name": "toy", "route_prefix": "/", "args": {"name": "toy", "poll_seconds": POLL_SECONDS}},
            *({"name": n, "route_prefix": f"/{n}", "args": {"name": n}} for n in ("pairs", "pictures")),
        ]
        config = {
            "http_options": {"host": "127.0.0.1", "port": self.port},
            "applications": [{**one, "import_path": "serve:app", "deployments": part} for one in applications],
        }
        (folder / "served.yaml").write_text(yaml.safe_dump(config))
        self.server = Server(
            folder,
            "serve",
            "run",
            "served.yaml",
            blocked=blocked,
            MLFLOW_TRACKING_URI=registry.uri,
            OMP_NUM_THREADS="1",
        )
        for path in ("", "pairs/", "pictures/"):
            self.server.wait_until(lambda path=path: call(self.url + path)[0] == 200)

    def ask(self, *texts: str) -> tuple[int, Any]:
        return call(self.url, {"texts": list(texts)})

    def champion(self, version: int) -> None:
        """Give the alias to a version and wait until that one answers."""
        self.registry.move(version)
        self.wait_for(version)

    def wait_for(self, version: int) -> None:
        self.server.wait_until(lambda: call(self.url)[1]["version"] == version)

    def wait_for_line(self, *words: str) -> None:
        start = self.server.log.stat().st_size
        self.server.wait_until(
            lambda: any(
                all(word in line for word in words) for line in self.server.log.read_text()[start:].splitlines()
            )
        )


@pytest.fixture(scope="module")
def served(folder: Path, blocked: Path) -> Iterator[Served]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert cli.execute(["init", "serve"]) == 0
    registry = Registry(folder, blocked)
    made: Served | None = None
    try:
        made = Served(folder, registry, blocked)
        yield made
        assert made.server.end(signal.SIGINT) == (0, [])
    finally:
        registry.server.clean_up()
        if made is not None:
            made.server.clean_up()


def test_the_application_imports_nothing_of_raydistill() -> None:
    tree = ast.parse(SERVE.read_text(encoding="utf-8"))
    imported = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {"mlflow", "ray"} <= imported
    assert [name for name in imported if name.startswith("raydistill")] == []


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names of serve.py, run in this process; its setting of the environment is undone."""
    pytest.importorskip("fastapi")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    return runpy.run_path(str(SERVE))


def test_errors_are_shown_without_passwords(program: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        using(f"http://someone:hunter2@127.0.0.1:{free_port()}"),
        pytest.raises(ValueError, match="models:/toy@champion") as error,
    ):
        program["app"](program["Settings"](name="toy"))
    assert "hunter2" not in str(error.value)
    assert "127.0.0.1" in str(error.value)
    said = program["plain"]("no postgresql://a:b%40c@db/x, https://u@h/y; models:/toy@champion is 1")
    assert said == "no postgresql://db/x, https://h/y; models:/toy@champion is 1"


@pytest.mark.parametrize("name", ["relative", "absolute"])
def test_replicas_find_a_store_of_a_relative_path(
    program: dict[str, Any], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    place = "mlflow.db" if name == "relative" else f"{tmp_path}/mlflow.db"
    client = MlflowClient(tracking_uri=f"sqlite:///{place}")
    client.create_registered_model("toy")
    client.create_model_version("toy", str(tmp_path))
    client.set_registered_model_alias("toy", "champion", "1")
    with using(f"sqlite:///{place}"):
        bound = program["app"](program["Settings"](name="toy"))
    arguments = bound._bound_deployment.init_args
    assert arguments[1] == f"sqlite:///{tmp_path}/mlflow.db"


@pytest.mark.slow
def test_answers_are_those_of_transformers(served: Served) -> None:
    served.champion(FIRST)
    status, found = served.ask(*TEXTS)
    assert (status, found["version"], found.keys()) == (200, FIRST, {"version", "results"})
    assert same(found["results"], expected(served.folder, FIRST))
    assert call(served.url) == (200, {"name": "toy", "version": FIRST})
    assert call(served.url + "-/healthz") == (200, "success")


@pytest.mark.slow
def test_it_listens_on_loopback_only(served: Served) -> None:
    listening = [each for each in psutil.net_connections("tcp") if each.status == psutil.CONN_LISTEN]
    assert {each.laddr.ip for each in listening if each.laddr.port == served.port} == {"127.0.0.1"}


@pytest.mark.slow
def test_without_a_config_file_ray_serve_chooses_loopback() -> None:
    code = "from ray.serve.config import HTTPOptions; print(HTTPOptions().host)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "127.0.0.1\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("data", "status", "why"),
    [
        (b"no json", 422, "body: Invalid JSON: expected ident at line 1 column 2"),
        (b"", 422, "body: Invalid JSON: EOF while parsing a value at line 1 column 0"),
        (b'{"texts": ["\xff"]}', 422, "body: Invalid JSON: invalid unicode code point at line 1 column 13"),
        (b'{"texts": ["\\ud800"]}', 422, "body: Invalid JSON"),
        (b'{"texts": ' + b"[" * 100_000, 422, "body: Invalid JSON: recursion limit exceeded"),
        (["a"], 422, "body: Input should be an object"),
        ({}, 422, "texts: Field required"),
        ({"texts": "a"}, 422, "texts: Input should be a valid array"),
        ({"texts": []}, 422, "texts: List should have at least 1 item"),
        ({"texts": ["a"] * 65}, 422, "texts: List should have at most 64 items"),
        ({"texts": ["a", 1]}, 422, "texts.1"),
        ({"texts": [None]}, 422, "texts.0"),
        ({"texts": ["a"], "text": "b"}, 422, "text: Extra inputs are not permitted"),
        ({"texts": [["a", "b"]]}, 422, "A row of this model is 1 text(s)."),
        ({"texts": ["a" * 2**18]}, 413, "The request has more than 262144 bytes."),
    ],
)  # fmt: skip
def test_bad_requests_get_a_reason_in_one_line(served: Served, data: Any, status: int, why: str) -> None:
    found, answer = call(served.url, data)
    assert (found, answer.keys()) == (status, {"detail"})
    assert answer["detail"].startswith(why)
    assert "\n" not in answer["detail"]
    assert len(answer["detail"]) < 100
    assert served.ask("a film")[0] == 200


@pytest.mark.slow
def test_a_body_without_a_length_is_measured_while_it_comes(served: Served) -> None:
    parts = itertools.repeat(b"a" * 2**16, 5)  # the fifth is beyond the limit
    assert call(served.url, parts, **{"Transfer-Encoding": "chunked"})[0] == 413


@pytest.mark.slow
def test_pairs_are_rows_of_two_texts(served: Served) -> None:
    pairs = [["good film", "bad plot"], ["good film", "money"]]
    status, found = call(served.url + "pairs/", {"texts": pairs})
    assert status == 200
    with using(store(served.folder)):
        rows = [dict(zip(("text", "text_pair"), pair, strict=True)) for pair in pairs]
        assert same(found["results"], mlflow.pyfunc.load_model("models:/pairs/1").predict(rows))
    assert call(served.url + "pairs/", {"texts": ["a"]}) == (422, {"detail": "A row of this model is 2 text(s)."})


@pytest.mark.slow
def test_pictures_are_posted_as_they_are(served: Served) -> None:
    picture = png(toy_picture("tall", np.random.default_rng(0)))
    (served.folder / "tall.png").write_bytes(picture)
    status, found = call(served.url + "pictures/", picture)
    assert (status, found["version"]) == (200, 1)
    model = pipeline("image-classification", str(served.folder / "vit"), device="cpu")
    assert same(found["results"], model(str(served.folder / "tall.png"), top_k=1))
    why = "The body is no picture that can be read: UnidentifiedImageError."
    assert call(served.url + "pictures/", {"texts": ["a"]}) == (422, {"detail": why})
    assert call(served.url + "pictures/", picture[:200])[0] == 422
    assert call(served.url + "pictures/", picture + bytes(2**24))[0] == 413


@pytest.mark.slow
def test_requests_that_come_together_share_a_batch(served: Served) -> None:
    served.champion(COUNTS)
    assert served.ask("a", "b", "c")[1]["results"] == [{"label": "3", "score": 1.0}] * 3
    with ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(lambda number: served.ask(*["a"] * (1 + number % 3)), range(64)))
    assert {status for status, _ in answers} == {200}
    assert [len(found["results"]) for _, found in answers] == [1 + number % 3 for number in range(64)]
    sizes = [int(found["results"][0]["label"]) for _, found in answers]
    assert max(sizes) >= 6  # three requests or more at once; alone they would be 1, 2 or 3
    served.champion(FIRST)


@pytest.mark.slow
def test_the_alias_moves_without_a_failed_request(served: Served) -> None:
    served.champion(FIRST)
    wanted = {version: expected(served.folder, version) for version in (FIRST, SECOND)}
    assert not same(*wanted.values())
    answers: list[tuple[int, Any]] = []
    stop = threading.Event()

    def keep_asking() -> None:
        while not stop.is_set():
            answers.append(served.ask(*TEXTS))

    with ThreadPoolExecutor(2) as clients:
        asking = [clients.submit(keep_asking) for _ in range(2)]
        try:
            served.champion(SECOND)
            time.sleep(0.5)
        finally:
            stop.set()
        for one in asking:
            one.result()
    assert {status for status, _ in answers} == {200}
    assert {found["version"] for _, found in answers} == {FIRST, SECOND}
    assert all(same(found["results"], wanted[found["version"]]) for _, found in answers)
    assert served.ask("a film")[1]["version"] == SECOND
    served.champion(FIRST)  # as a rollback does


@pytest.mark.slow
def test_the_old_version_stays_when_the_new_one_is_broken_or_the_alias_gone(served: Served) -> None:
    served.champion(FIRST)
    wanted = expected(served.folder, FIRST)
    for version, reason in ((BROKEN, "toy version 1 stays"), (None, "alias champion not found")):
        served.registry.move(version)
        served.wait_for_line("WARNING", "stays", reason)
        status, found = served.ask(*TEXTS)
        assert (status, found["version"]) == (200, FIRST)
        assert same(found["results"], wanted)
    served.champion(SECOND)


@pytest.mark.slow
def test_the_old_version_stays_while_the_registry_is_away(served: Served) -> None:
    served.champion(FIRST)
    assert served.registry.server.end(signal.SIGTERM)[1] == []
    served.wait_for_line("WARNING", "toy version 1 stays", "Connection refused")
    assert served.ask("a film")[1]["version"] == FIRST
    served.registry.start()
    served.champion(SECOND)
    assert "Traceback" not in served.server.log.read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["name=nothing"], "models:/nothing@champion: Registered Model with name=nothing not found"),
        (["name=toy", "alias=nobody"], "models:/toy@nobody: Registered model alias nobody not found"),
        (["nam=toy"], "Field required"),
    ],
)
def test_a_wrong_name_ends_before_ray_starts(
    folder: Path, blocked: Path, arguments: list[str], message: str, tmp_path: Path
) -> None:
    shutil.copyfile(SERVE, tmp_path / "serve.py")
    uri = store(folder)
    server = Server(tmp_path, "serve", "run", "serve:app", *arguments, blocked=blocked, MLFLOW_TRACKING_URI=uri)
    try:
        assert server.process.wait(60) == 1
        assert message in server.log.read_text()
        assert "Started a local Ray" not in server.log.read_text()
    finally:
        server.clean_up()


@pytest.mark.slow
def test_mlflow_models_serve(folder: Path, blocked: Path) -> None:
    MlflowClient(tracking_uri=store(folder)).set_registered_model_alias("toy", "champion", str(FIRST))
    port = free_port()
    options = ("-m", "models:/toy@champion", "--env-manager", "local", "-h", "127.0.0.1", "-p", str(port))
    server = Server(folder, "mlflow", "models", "serve", *options, blocked=blocked, MLFLOW_TRACKING_URI=store(folder))
    url = f"http://127.0.0.1:{port}"
    try:
        server.wait_until(lambda: urllib.request.urlopen(f"{url}/ping", timeout=5).status == 200)
        wanted = expected(folder, FIRST)
        for body in ({"inputs": TEXTS}, {"dataframe_split": {"data": [[text] for text in TEXTS]}}):
            status, found = call(f"{url}/invocations", body)
            assert status == 200
            assert same(found["predictions"], wanted)
        for body, reason in ((b"no json", "JSON"), ({"texts": ["a"]}, "inputs"), ({"inputs": []}, "schema")):
            status, found = call(f"{url}/invocations", body)
            assert status == 400
            assert reason in found["message"]
        assert call(f"{url}/invocations", b"a", **{"Content-Type": "text/plain"})[0] == 415
        assert server.end(signal.SIGTERM)[1] == []
    finally:
        server.clean_up()
