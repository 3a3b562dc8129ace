"""The lines of the design's security section that no other test holds, hostile configs, and a run on hostile data.

Elsewhere: pickled weights (test_folder), alias bombs, tags and 1 MB of YAML (test_config), ``pkg://`` (test_location),
names inside storage (test_storage, test_artifacts), redaction (test_tracking, test_cli, test_hub), hostile text in
pages and cards (test_pages, test_page, test_card), what a job is sent (test_project, test_refusals), tokens of clusters
(test_hosts, test_submit, test_cluster_files).
"""

from __future__ import annotations

import ast
import base64
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache, partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from kit import ROOT
from kit.forked import run_command
from kit.runs import only_run_key, write_config
from kit.servers import free_port, start_server, stop_server
from kit.tiny import WORDS, save_tiny
from kit.toy import TOPICS, Toy, sweep_config, toy_config

from raydistill.cli import console
from raydistill.cli import main as cli
from raydistill.cli.commands import remote
from raydistill.cli.submit.project import NOTHING
from raydistill.config.loading import load_config
from raydistill.deploy.hub import print_pushed
from raydistill.errors import RaydistillError
from raydistill.pipeline.distill import distill
from raydistill.pipeline.job import Job, TeacherJob
from raydistill.pipeline.plan import make_plan
from raydistill.search.sharing import Shared
from raydistill.search.trial import TrialSpec, trial_job
from raydistill.storage.faults import not_common
from raydistill.storage.ownership import Owner
from raydistill.storage.storage import Storage
from raydistill.tracking.runs import RunRef

PICKLES = {"search/tuning.py", "pipeline/worker.py"}
"""The first reads what Ray Tune itself has pickled a moment ago in the same process: a trial's exception. The second
reads what the run's own worker returns, through Ray, which would open it in this very process if it were no bytes."""


@cache
def calls() -> list[tuple[str, ast.Call, str]]:
    """Every call in the package: file, call, and the dotted name of what is called."""
    return [
        (path.relative_to(ROOT / "raydistill").as_posix(), node, ast.unparse(node.func))
        for path in sorted((ROOT / "raydistill").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
    ]


def test_nothing_is_loaded_that_could_run_code() -> None:
    found = calls()
    loads = [(file, call) for file, call, name in found if name == "torch.load"]
    assert loads
    for file, call in loads:
        settings = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert settings.get("weights_only") == "True", file
    unsafe = ("pickle.load", "cloudpickle.load", "dill.load", "joblib.load", "yaml.load", "yaml.unsafe_load")
    assert {file for file, _, name in found if name.startswith(unsafe)} <= PICKLES
    assert {file for file, _, name in found if name in ("eval", "exec", "os.system", "compile")} == set()
    shells = [file for file, call, _ in found for word in call.keywords if word.arg == "shell"]
    assert shells == []


def test_code_that_comes_with_a_model_is_trusted_by_the_config_alone() -> None:
    """The only literal is the default, False; all else is handed on from ``teacher.trust_remote_code``."""
    values = {
        (file, ast.unparse(word.value))
        for file, call, _ in calls()
        for word in call.keywords
        if word.arg == "trust_remote_code"
    }
    assert values
    assert not {(file, value) for file, value in values if value == "True"}


def test_no_server_listens_on_all_interfaces() -> None:
    hosts = [word for _, call, _ in calls() for word in call.keywords if word.arg in ("host", "dashboard_host")]
    assert not [word for word in hosts if "0.0.0.0" in ast.unparse(word.value)]
    for path in (ROOT / "jobs").rglob("*.py"):
        assert "0.0.0.0" not in path.read_text(encoding="utf-8")


def model_with_code(folder: Path, proof: Path) -> Path:
    """A classifier whose config names Python code beside it, which tells when it is run."""
    save_tiny(folder, "bert", classifier=False)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(
        f"from transformers import BertConfig\nopen({str(proof)!r}, 'w').close()\n"
        "class OwnConfig(BertConfig):\n    model_type = 'own'\n"
    )
    return folder


def test_code_of_a_model_does_not_run_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    proof = tmp_path / "proof"
    teacher = model_with_code(tmp_path / "own", proof)
    config = load_config(toy_config(tmp_path, teacher__model=str(teacher)))
    for call in (make_plan, distill):
        with pytest.raises(RaydistillError, match="trust_remote_code: true, once you have read that code"):
            call(config)
    assert not proof.exists()


def test_a_plan_shows_in_red_that_code_will_be_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    from raydistill.cli.show.plan import print_plan

    plan = make_plan(load_config(toy_config(tmp_path, teacher__trust_remote_code=True)))
    print_plan(Console(force_terminal=True, color_system="standard", width=300, highlight=False), plan)
    assert f"\x1b[31m!\x1b[0m teacher.trust_remote_code: code that comes with {tmp_path}" in capsys.readouterr().out


def test_a_pickled_teacher_ends_the_command_with_the_reason(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = toy_config(tmp_path)
    encoder = Path(config["teacher"]["model"])
    (encoder / "model.safetensors").unlink()
    torch.save(Bomb(tmp_path / "proof"), encoder / "pytorch_model.bin")
    path = write_config(tmp_path, config)
    for command in ("plan", "distill"):
        assert cli.execute([command, str(path), "--json"]) == 2
        error = json.loads(capfd.readouterr().out)["error"]
        assert error["type"] == "ModelError"
        assert "pytorch_model.bin" in error["message"]
        assert "run code" in error["message"] or "can run" in error["message"]
    assert not (tmp_path / "proof").exists()


class Bomb:
    """Unpickled it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.path, "w")


HOSTILE = (
    "../../up",
    "/etc/passwd",
    "a/b",
    "..",
    ".",
    "a\0b",
    "a\nb",
    "\x1b[31m",
    "x" * 5000,
    "{{7*7}}",
    "${HOME}",
    "~no_such_user",
)


@pytest.mark.parametrize("value", HOSTILE, ids=ascii)
@pytest.mark.parametrize(
    "name",
    ["registry__name", "tracking__experiment", "tracking__run_name", "teacher__model", "student__start", "data__path"],
)
def test_hostile_values_are_refused_or_harmless(
    name: str, value: str, hostile_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One message and no traceback, or a plan; nothing is written outside the storage."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(hostile_folder)
    before = set(hostile_folder.parent.iterdir())
    said = ""
    try:
        assert make_plan(load_config(toy_config(hostile_folder, **{name: value})))["phases"]
    except RaydistillError as error:
        said = str(error)
    assert len(said) < 20_000
    assert set(hostile_folder.parent.iterdir()) == before


@pytest.fixture(scope="module")
def hostile_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile") / "here"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("name", ["../../up", "a/b", "..", "a\0b", "a.b", "", " ", "\x1b[31m", "x" * 500], ids=ascii)
@pytest.mark.parametrize("what", ["stage", "loss"])
def test_hostile_names_of_stages_and_losses_are_refused(what: str, name: str, tmp_path: Path) -> None:
    """They become folders and metrics."""
    config = toy_config(tmp_path)
    stage = config["stages"].pop("distill")
    if what == "loss":
        stage["losses"] = {name: {"type": "forward_kl"}}
    config["stages"][name if what == "stage" else "distill"] = stage
    with pytest.raises(RaydistillError, match="stages"):
        load_config(config)


def test_a_huge_config_is_refused_before_it_is_read(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "huge.yaml"
    with path.open("wb") as file:
        file.truncate(100 * 2**20)  # no byte of it is on the disk
    started = time.monotonic()
    for command in (["plan", str(path)], ["distill", str(path)], ["promote", "toy", "--gate", str(path)]):
        assert cli.execute([*command, "--json"]) == 2
        assert "larger than 1,000 kB" in json.loads(capfd.readouterr().out)["error"]["message"]
    assert time.monotonic() - started < 20


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;title\x07", "�]0;title�"),
        ("\x1b[2J\x1b[31mred\x1b[0m", "�[2J\x1b[31mred\x1b[0m"),
        ("a\tb\nc", "a\tb\nc"),
        ("\x9b31m\x00\r", "�31m��"),
        ("🙂 ä 漢", "🙂 ä 漢"),
    ],
)
def test_a_terminal_is_not_told_what_to_do(text: str, shown: str) -> None:
    assert console.harmless(text) == shown


def test_what_others_say_goes_to_the_terminal_without_its_orders(capsys: pytest.CaptureFixture[str]) -> None:
    """A warning before a job, a hub's warning, an error of a worker."""
    order = "\x1b]0;owned\x07\x1b[2J"
    remote.say_sending("http://head:8265", "job", NOTHING, [order])
    pushed = {"files": [], "left_out": [], "deleted": [], "warnings": [f"renamed {order}"], "private": True}
    print_pushed(console.stderr_console(), pushed | dict.fromkeys(("repo", "revision", "url"), ""))
    console.Progress()({"phase": "wait", "note": f"away {order}"})
    shown = capsys.readouterr().err
    assert shown.count("owned") == 3
    assert not set(shown) & set("\x1b\x07")


CLASSES = {
    "<script>alert(1)</script>": "film",
    "\x1b[31mred\x1b]0;owned\x07 [/bold] [link=x]": "money",
    "🏦 ../../etc/passwd\u202e{{7*7}}": "sport",
}
POISON = (
    *("", "<img src=x onerror=alert(2)>", "\x07\x1b[2J", "🙂" * 50, "</script><!--", "\u202e", "'; DROP TABLE x; --"),
    *("${jndi:ldap://x}", "a" * 1_000_000),
)


def write_hostile_data(path: Path) -> None:
    """240 rows like the toy's with something nasty in most of them, and rows of nothing."""
    draw = random.Random(0)
    rows = []
    for number in range(240):
        name = draw.choice([*CLASSES])
        words = [draw.choice(TOPICS[CLASSES[name]] if draw.random() < 0.5 else WORDS) for _ in range(9)]
        poison = POISON[number % 9] if number % 9 < 8 or number < 30 else ""
        rows.append({"text": f"{' '.join(words)} {number} {poison}", "label": name})
    rows += [{"text": text, "label": name} for text in ("", " \n\t", "\0") for name in CLASSES]
    path.write_text("\n".join(map(json.dumps, [*rows, {"text": "no label", "label": ""}])))


class Page(HTMLParser):
    """Tags of a page and what their attributes are called; what stands in <script> is no markup."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, tuple[str, ...]]] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(name for name, _ in attributes)))


@pytest.mark.slow
def test_hostile_data_goes_through_a_whole_run_and_harms_nobody(tmp_path: Path) -> None:
    config = toy_config(
        tmp_path,
        data__path=str(tmp_path / "hostile.jsonl"),
        data__max_labeled=None,
        teacher__finetune__num_epochs=2,
        evaluate__baseline=False,
        stages__distill__num_epochs=1,
    )
    write_hostile_data(tmp_path / "hostile.jsonl")
    path = str(write_config(tmp_path, config))
    said = {name: run_command(name, path, folder=tmp_path) for name in ("plan", "distill")}
    storage = Storage(config["storage"])
    (tmp_path / "texts.txt").write_text("\n".join(["a" * 1_000_000, "\x1b]0;owned\x07", "🙂", "<b>"]))
    model = ["models:/toy@challenger", "--storage", config["storage"]]
    said["predict"] = run_command("predict", *model, "--file", "texts.txt", folder=tmp_path)
    said["evaluate"] = run_command("evaluate", *model, folder=tmp_path)
    said["promote"] = run_command("promote", "toy", "--storage", config["storage"], folder=tmp_path)
    for name, done in said.items():
        assert done.returncode == (3 if name == "promote" else 0), (name, done.stderr[-2000:], done.stdout[-2000:])
        assert not {"\x07", "\x1b]", "\x1b[2J"} & {bad for bad in ("\x07", "\x1b]", "\x1b[2J") if bad in done.stdout}
        assert "Glyph" not in done.stderr
    results = storage.read_json("runs", only_run_key(storage), "results.json")
    assert sorted(results["labels"]) == sorted(CLASSES)
    assert any("empty" in note for note in results["notes"])
    html = storage.read_bytes("runs", only_run_key(storage), "report.html").decode()
    page = Page()
    page.feed(html)
    assert not [name for _, names in page.tags for name in names if name.startswith("on")]
    assert not [tag for tag, names in page.tags if tag in ("img", "script", "link", "iframe") and "src" in names]
    assert "alert(1)</script>" not in html
    assert not set(html) & set("\x00\x07\x1b")
    assert len(html) < 8_000_000  # a text of 1 MB is cut
    assert not (tmp_path / "etc").exists()


@pytest.mark.slow
def test_a_cluster_that_a_run_starts_is_closed_to_others(tmp_path: Path) -> None:
    """Its ports are open on the machine's interfaces; who has no token is turned away. Workers come with the work."""
    done = subprocess.run(
        [sys.executable, "-c", OPEN_AND_KNOCK],
        env={name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answers = json.loads(done.stdout.splitlines()[-1])
    assert answers.pop("workers") == 2  # the agents of its node
    assert answers == {"ours": "in", "none": "AuthenticationError", "another": "AuthenticationError"}


SECRETS = {
    name: f"{name}Sesame{number}77" for number, name in enumerate(("track", "data", "query", "tag", "aws", "hub"))
}


def spellings(secret: str) -> list[bytes]:
    """As it is, in two bytes a character, and inside base64 at each of its three places."""
    plain = secret.encode()
    inside = [base64.b64encode(b" " * before + plain)[4 if before else 0 : -4] for before in range(3)]
    return [plain, secret.encode("utf-16-le"), *inside]


def places(secrets: Mapping[str, str], *folders: Path) -> list[str]:
    """Where a secret stands, in files of any kind."""
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    assert len(files) > 10
    contents = {path: path.read_bytes() for path in files}
    forms = [(name, form) for name, secret in secrets.items() for form in spellings(secret)]
    return [f"{name} in {path}" for path, content in contents.items() for name, form in forms if form in content]


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """The names of Ray's sockets have at most 107 characters."""
    folder = Path(tempfile.mkdtemp(prefix="rd-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
def test_nothing_that_is_left_behind_holds_a_secret(
    tmp_path: Path, short_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sweep is killed amid its trials, and goes on to its winner; a command ends with a traceback."""
    own, server, home, temp = (tmp_path / name for name in ("own", "server", "home", "temp"))
    for folder in (own, server, home, temp):
        folder.mkdir()
    files = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(own)))
    threading.Thread(target=files.serve_forever, daemon=True).start()
    port = free_port()
    space = {"student.num_layers": {"choice": [1, 2]}, "stages.distill.learning_rate": {"choice": [1e-3, 1e-2]}}
    config = toy_config(
        own,
        storage=str(tmp_path / "storage"),
        data__path=f"http://me:{SECRETS['data']}@127.0.0.1:{files.server_port}/toy.csv?token={SECRETS['query']}",
        data__format="csv",
        tracking__tags={"api_key": f"{SECRETS['tag']}, {SECRETS['tag']}", "place": f"s3://me:{SECRETS['tag']}@host/x"},
        teacher__finetune__num_epochs=1,
        stages__distill__num_epochs=1,
        evaluate__baseline=False,
        train__num_workers=1,
        sweep={"space": space, "search": "random", "scheduler": "none", "num_trials": 2, "final_seeds": 1},
    )
    aws = dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"), SECRETS["aws"])
    environment = {
        **os.environ,
        **aws,
        "MLFLOW_TRACKING_URI": f"http://me:{SECRETS['track']}@127.0.0.1:{port}",
        "HF_TOKEN": f"hf_{SECRETS['hub']}",
        "HOME": str(home),
        "TMPDIR": str(temp),
        "RAY_TMPDIR": str(short_folder),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "raydistill", "sweep", str(write_config(own, config))]
    left = (tmp_path / "storage", server, home, temp, short_folder)
    tracking = start_server(server, port)
    try:
        with (home / "said").open("wb") as said:
            begun = subprocess.Popen(command, env=environment, cwd=home, stdout=said, stderr=said)
            wait_until(lambda: list((tmp_path / "storage").glob("ray/*-trial/experiment_state-*.json")), begun)
            begun.kill()
            begun.wait()
        assert places(SECRETS, *left) == []
        with (home / "more").open("wb") as said:
            assert subprocess.run(command, env=environment, cwd=home, stdout=said, stderr=said).returncode == 0
    finally:
        stop_server(tracking)
        files.shutdown()
    monkeypatch.setattr(tempfile, "tempdir", str(temp))
    console.describe_crash(
        RuntimeError(environment["MLFLOW_TRACKING_URI"]), ["plan", f"--set=api_key={SECRETS['tag']}"]
    )
    assert [*temp.glob("raydistill-crash-*.log")]
    assert [*(tmp_path / "storage").glob("runs/*/sweep.json")]
    assert places(SECRETS, *left) == []


def test_what_tune_is_told_of_a_trial_holds_no_address(toy: Toy) -> None:
    """Tune keeps it in a file; the address of MLflow may hold a password."""
    run, config = RunRef("http://me:sesame@host", "1", "of the sweep"), sweep_config(toy.folder)
    teacher, owner = TeacherJob("", 1.0, config, toy.tokens, ""), Owner.acquire(toy.storage, "runs", "key")
    job = Job(config, "key", toy.storage, owner, toy.tokens, {}, "", run, (teacher,))
    told = TrialSpec(0, "trial-00000", ((0, {}),), run_id="of the trial").to_plain()
    assert "sesame" not in json.dumps(told)
    shared = Shared(job, None, {}, (), 0, {}, [], [])  # type: ignore[arg-type]
    assert trial_job(shared, TrialSpec.from_plain(told)).run == replace(run, run_id="of the trial")


def wait_until(there: Callable[[], Any], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 240
    while not there():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)


OPEN_AND_KNOCK = """
import json, os, psutil, subprocess, sys
from raydistill.cluster.connection import connected

KNOCK = '''
import sys
from ray._raylet import GcsClient
try:
    GcsClient(address=sys.argv[1]).get_all_node_info(timeout=10)
    print("in")
except Exception as error:
    print(type(error).__name__)
'''
with connected():
    import ray
    address = ray.get_runtime_context().gcs_address
    none = {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": ""}
    known = {"ours": {}, "none": none, "another": {"RAY_AUTH_TOKEN": "f" * 64}}
    answers = {}
    for name, changes in known.items():
        done = subprocess.run([sys.executable, "-c", KNOCK, address], env={**os.environ, **changes},
                              capture_output=True, text=True, timeout=60)
        answers[name] = done.stdout.strip()
    answers["workers"] = sum("ray::" in process.name() for process in psutil.Process().children(recursive=True))
print(json.dumps(answers))
"""


def test_what_storage_a_plan_and_data_say_holds_no_credentials(tmp_path):
    servers = ("http://user:s3cret@127.0.0.1:9/x.csv", "http://127.0.0.1:9/x.csv?token=s3cret")
    for url in (*servers, "ftp://user:s3cret@127.0.0.1:9/runs", "nothing://user:s3cret@127.0.0.1:9/runs"):
        with pytest.raises(RaydistillError, match=r"\*\*\*") as caught:
            Storage(url).check()
        assert "s3cret" not in str(caught.value)
        assert "s3cret" not in str(not_common(url))
    for url in servers:
        with pytest.raises(RaydistillError, match=r"\*\*\*") as caught:
            make_plan(load_config(toy_config(tmp_path, data__path=url)))
        assert "s3cret" not in str(caught.value)
    plan = make_plan(load_config(toy_config(tmp_path, storage="memory://user:s3cret@host/runs")))
    assert "s3cret" not in json.dumps(plan)
