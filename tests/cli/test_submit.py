"""Commands as jobs on a real Ray head with its job server and token authentication, from refusal to promotion."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
import yaml
from kit.faults import patience
from kit.runs import COUNTING, mlflow_runs, read_weights, same_weights, versions, write_config
from kit.servers import free_port
from kit.toy import toy_config

from raydistill.config.loading import load_config
from raydistill.pipeline.distill import distill

pytestmark = pytest.mark.slow

STEP_SECONDS = 0.2
MARK = "RAYDISTILL_TEST_HEAD"
NEVER_SENT = ("hf_0123456789abcdefghij", "a-password-of-mine")
PRIVATE = (".env", "credentials.json", "weights.bin", "deploy.pem", "other.csv")
PORTS = (
    *("port", "dashboard-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port", "runtime-env-agent-port"),
    *("metrics-export-port", "ray-client-server-port"),
)


def clean_environment() -> dict[str, str]:
    """Without what another test of this process may have left to point at its cluster, MLflow or S3 server."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_", "AWS_"))}


class Cli:
    """One raydistill command in a process of its own."""

    def __init__(self, folder: Path, logs: Path, *words: str, **environment: str) -> None:
        self.out, self.err = (logs / f"{uuid.uuid4().hex[:8]}.{kind}" for kind in ("out", "err"))
        clean = clean_environment()
        home = {"HOME": str(logs / "home"), "HF_TOKEN": NEVER_SENT[0], "DB_PASSWORD": NEVER_SENT[1]}
        with self.out.open("w") as out, self.err.open("w") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "raydistill", *words],
                cwd=folder,
                env={**clean, **home, **environment},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    def wait_for(self, condition: Callable[[], bool], seconds: float = 300.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, self.err.read_text()
            assert time.monotonic() < deadline, self.err.read_text()
            time.sleep(0.02)

    def end(self, seconds: float = 300.0) -> tuple[int, str, str]:
        try:
            code = self.process.wait(seconds)
        finally:
            with suppress(ProcessLookupError):
                self.process.kill()
        return code, self.out.read_text(), self.err.read_text()


@dataclass
class Head:
    """A head on this machine, the project that is submitted to it, and a folder that both have in common."""

    address: str
    token: str
    temp: Path
    project: Path
    common: Path
    counts: Path
    process: subprocess.Popen[bytes] = field(repr=False)

    def start(self, *words: str, **environment: str) -> Cli:
        own = {"RAY_API_SERVER_ADDRESS": self.address, "RAY_AUTH_TOKEN": self.token}
        return Cli(self.project, self.counts.parent, *words, **{**own, **environment})

    def run(self, *words: str, **environment: str) -> tuple[int, str, str]:
        return self.start(*words, **environment).end()

    def submit(self, *words: str) -> Cli:
        return self.start("submit", *words, "--shared", str(self.common))

    def api(self, path: str) -> Any:
        headers = {"Authorization": f"Bearer {self.token}"}
        return requests.get(f"{self.address}{path}", headers=headers, timeout=30)

    def steps(self) -> list[int]:
        """Steps of the student that were begun, by all jobs."""
        return [
            int(line.split()[2]) for line in self.counts.read_text().splitlines() if line.startswith("step student")
        ]


def marked_processes(mark: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(MARK) == mark:
                found.append(process)
    return found


def start_head(folder: Path) -> Head:
    token, ports = secrets.token_hex(32), {name: free_port() for name in PORTS}
    temp = Path(tempfile.mkdtemp(prefix="rd-", dir="/tmp"))  # short: the names of Ray's sockets have 107 characters
    (counts := folder / "counts").touch()
    clean = clean_environment()
    own = {
        "PATH": f"{Path(sys.executable).parent}:{clean['PATH']}",
        "PYTHONPATH": os.pathsep.join(filter(None, (str(COUNTING), clean.get("PYTHONPATH")))),
        "RAYDISTILL_COUNT_FILE": str(counts),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
        MARK: str(temp),
    }
    options = [f"--{name}={port}" for name, port in ports.items()]
    options += ["--num-cpus=2", f"--object-store-memory={100 * 2**20}", f"--temp-dir={temp}"]
    options += ["--dashboard-host=127.0.0.1", "--min-worker-port=0", "--max-worker-port=0"]
    with (folder / "head.log").open("w") as log:
        process = subprocess.Popen(
            ["ray", "start", "--head", "--block", *options],
            env={**clean, **own},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    (project := folder / "project").mkdir()
    (common := folder / "common").mkdir()
    address = f"http://127.0.0.1:{ports['dashboard-port']}"
    return Head(address, token, temp, project, common, counts, process)


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    folder = tmp_path_factory.mktemp("submit")
    head = start_head(folder)
    try:
        deadline = time.monotonic() + 120
        while True:
            assert head.process.poll() is None, (folder / "head.log").read_text()
            assert time.monotonic() < deadline, (folder / "head.log").read_text()
            with suppress(requests.ConnectionError):
                if head.api("/api/jobs/").status_code == 200:
                    break
            time.sleep(0.2)
        fill_project(head)
        yield head
    finally:
        processes = marked_processes(str(head.temp))
        for process in processes:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(processes, timeout=20)
        head.process.wait(20)
        shutil.rmtree(head.temp, ignore_errors=True)


def fill_project(head: Head) -> None:
    """A config in a folder of the project, its data in the project, teacher and storage in the common folder."""
    config = toy_config(
        head.common, train__num_workers=1, evaluate__baseline=False, stages__distill__num_epochs=6, data__path="toy.csv"
    )
    shutil.copy(head.common / "toy.csv", head.project)
    write_config(head.project, config)
    (head.project / "gate.yaml").write_text("min_class_recall: 1.0\n")
    for name in PRIVATE:
        (head.project / name).write_text("private")


@dataclass
class Life:
    """A job that was followed, left, looked at, stopped and submitted again."""

    first_step: float
    sent: set[str]
    left: tuple[int, str, str]
    running: list[dict[str, Any]]
    stopping: float
    stopped: dict[str, Any]
    followed_after: tuple[int, str, str]
    steps_before: list[int]
    ended: tuple[int, str, str]
    steps_after: list[int]


@pytest.fixture(scope="module")
def life(head: Head) -> Life:
    began = time.monotonic()
    slow = ("config.yaml", "--env", f"RAYDISTILL_STEP_SECONDS={STEP_SECONDS}", "--id", "first")
    followed = head.submit(*slow)
    followed.wait_for(lambda: "step " in head.counts.read_text())
    first_step = time.monotonic() - began
    (package,) = head.temp.glob("session_2*/runtime_resources/working_dir_files/_ray_pkg_*/")
    sent = {path.relative_to(package).as_posix() for path in package.rglob("*") if path.is_file()}
    followed.wait_for(lambda: len(head.steps()) > 8 and "student" in followed.err.read_text())
    followed.process.send_signal(signal.SIGINT)
    left = followed.end(patience(20))
    steps = len(head.steps())
    running = json.loads(head.run("jobs", "--json")[1])["jobs"]
    deadline = time.monotonic() + patience(20)
    while len(head.steps()) < steps + 3:
        assert time.monotonic() < deadline, "the job stands still"
        time.sleep(0.05)
    began = time.monotonic()
    code, out, err = head.run("stop", "first", "--json")
    stopping = time.monotonic() - began
    assert code == 0, err
    after = head.run("logs", "first", "--follow")
    before = head.steps()
    ended = head.submit("config.yaml", "--json").end()
    return Life(
        first_step, sent, left, running, stopping, json.loads(out), after, before, ended, head.steps()[len(before) :]
    )


def test_no_token_wrong_token_no_server(head: Head) -> None:
    words = ("submit", "config.yaml", "--shared", str(head.common))
    assert "Missing authentication token. Set RAY_AUTH_TOKEN" in refused(head.run(*words, RAY_AUTH_TOKEN=""))
    wrong = refused(head.run(*words, RAY_AUTH_TOKEN="f" * 64))
    assert "Invalid authentication token. Set RAY_AUTH_TOKEN" in wrong
    assert "f" * 64 not in wrong
    assert "does not let us in" in refused(head.run("jobs", RAY_AUTH_TOKEN="f" * 64))
    assert "unset RAY_AUTH_MODE=disabled" in refused(head.run(*words, RAY_AUTH_MODE="disabled"))
    assert "No job server" in refused(head.run("jobs", "--address", f"http://127.0.0.1:{free_port()}"))
    file = head.common / "token"
    file.write_text(f"{head.token}\n")
    code, out, _ = head.run("jobs", "--json", RAY_AUTH_TOKEN="", RAY_AUTH_TOKEN_PATH=str(file))
    assert code == 0
    assert "jobs" in json.loads(out)


def refused(ended: tuple[int, str, str]) -> str:
    code, out, err = ended
    assert (code, out) == (1, ""), err
    assert "Traceback" not in err
    return err


def test_what_cannot_work_is_told_at_once_and_nothing_is_sent(head: Head) -> None:
    code, out, err = head.run("submit", "config.yaml", RAY_AUTH_TOKEN="", MLFLOW_TRACKING_URI="sqlite:///mlflow.db")
    assert (code, out) == (2, "")
    assert "Nothing was sent: 4 problems" in err
    for start in ("  - storage: ", "  - teacher.model: ", "  - tracking: ", "  - The cluster at "):
        assert err.count(start) == 1
    code, out, _ = head.run("submit", "config.yaml", "--set", "sed=1", "--json")
    assert code == 2
    assert "did you mean seed" in json.loads(out)["error"]["message"]
    assert head.run("submit", "promote", "--jsn")[0] == 2


def test_first_step_after_seconds(life: Life, measured: Any) -> None:
    measured.line(f"from submit to the first training step: {life.first_step:.1f} s")
    assert life.first_step < patience(60)


def test_ctrl_c_leaves_the_job_running(head: Head, life: Life) -> None:
    code, out, err = life.left
    assert (code, out) == (130, "")
    assert "Job first goes on; only the following has ended." in err
    assert f"raydistill stop first --address {head.address}" in err
    assert re.search(r"^ +\d+\.\d s  student +[━╌]+ \d+/72 steps", err, re.MULTILINE)  # the lines of the local command
    (job,) = (job for job in life.running if job["id"] == "first")
    assert job["status"] == "RUNNING"
    assert job["command"] == "raydistill distill config.yaml"


def test_stop_writes_a_checkpoint_within_ten_seconds(head: Head, life: Life) -> None:
    assert life.stopping < patience(10)
    assert life.stopped["status"] == "STOPPED"
    assert life.stopped["stopped"] is True
    assert re.search(r"stopped after step \d+ of 72; a checkpoint was written", life.stopped["message"])
    code, out, err = life.followed_after
    assert (code, out) == (130, "")
    assert "a checkpoint was written" in err
    code, out, _ = head.run("stop", "first")
    assert (code, out) == (0, "Job first had ended before: STOPPED.\n")


def test_the_same_command_goes_on_and_ends_like_an_undisturbed_run(
    head: Head, life: Life, tmp_path: Path, measured: Any
) -> None:
    code, out, err = life.ended
    assert code == 0, err
    results = json.loads(out)
    assert out.count("\n") == 1
    assert results["model_version"] == 1
    assert life.steps_after == list(range(life.steps_before[-1] + 1, 72))  # nothing twice, nothing left out
    assert [run.info.status for run in mlflow_runs(f"sqlite:///{head.common}/storage/mlflow.db")] == ["FINISHED"]
    config = load_config(str(head.project / "config.yaml"), [f"data.path={head.project}/toy.csv"])
    changes = {"storage": str(tmp_path / "storage"), "train": config.train.model_copy(update={"num_workers": 0})}
    whole = distill(config.model_copy(update=changes))
    assert same_weights(read_weights(results["student"]["path"]), read_weights(whole["student"]["path"]))
    when = f"step {life.steps_before[-1]} of 72"
    measured.fault("raydistill stop, of a submitted job", when, "0 steps", f"ended after {life.stopping:.1f} s")


def test_nothing_private_is_sent(head: Head, life: Life) -> None:
    assert life.sent == {"config.yaml", "gate.yaml", "toy.csv"}
    told = head.api("/api/jobs/first").json()
    assert set(told["runtime_env"]["env_vars"]) == {"RAY_JOB_STOP_WAIT_TIME_S", "RAYDISTILL_STEP_SECONDS"}
    everything = json.dumps(told) + head.api("/api/jobs/first/logs").text + life.left[2]
    for secret in (*NEVER_SENT, head.token):
        assert secret not in everything


def test_promote_and_evaluate(head: Head, life: Life) -> None:
    more = ("--storage", str(head.common / "storage"))
    promote = head.submit("promote", "toy", "--gate", "gate.yaml", "--json", *more)
    evaluate = head.submit("evaluate", "models:/toy@challenger", *more)
    code, out, err = promote.end()
    assert code == 3, out + err
    verdict = json.loads(out)
    assert verdict["verdict"] == "refused"
    assert verdict["gate"]["min_class_recall"] == 1.0
    (version,) = versions(f"sqlite:///{head.common}/storage/mlflow.db")
    assert "champion" not in version.aliases
    code, out, err = evaluate.end()
    assert code == 0, err
    assert out.startswith("models:/toy@challenger on 24 rows of")  # as the local command prints it


def test_sweep_and_doctor(head: Head, life: Life) -> None:
    """Both trials at once on the two CPUs, with the teacher of the run before; then what doctor says of the node."""
    config = yaml.safe_load((head.project / "config.yaml").read_text())
    space = {"stages.distill.learning_rate": {"choice": [1e-4, 1e-3]}}
    config["sweep"] = {"space": space, "search": "grid", "scheduler": "none", "final_seeds": 1}
    write_config(head.project, config, "sweep.yaml")
    before = len(head.counts.read_text())
    code, out, err = head.submit("sweep", "sweep.yaml", "--json").end()
    assert code == 0, err
    summary = json.loads(out)
    assert summary["counts"]["completed"] == sum(summary["counts"].values()) == 2
    kinds = {" ".join(line.split()[:2]) for line in head.counts.read_text()[before:].splitlines()}
    assert kinds == {"start run", "step student.distill"}  # no teacher, no shard
    code, out, err = head.submit("doctor", "--storage", str(head.common / "storage"), "--json").end()
    assert code == 0, out
    checks = {check["name"]: check for check in json.loads(out)["checks"]}
    assert checks["nodes"]["detail"].startswith("1 answer: ")
    for name in ("versions", "packages", "token", "storage", "tracking", "clocks"):
        assert checks[name]["state"] == "ok", checks[name]


def test_jobs_and_logs(head: Head, life: Life) -> None:
    code, out, _ = head.run("jobs", COLUMNS="160")
    assert code == 0
    assert re.search(r"^first +STOPPED +raydistill distill config\.yaml +\d{4}-\d\d-\d\d \d\d:\d\d +\S+ +-", out, re.M)
    assert len(json.loads(head.run("jobs", "--limit", "1", "--json")[1])["jobs"]) == 1
    code, out, _ = head.run("logs", "first")
    assert code == 0
    assert "student" in out
    assert "{" not in out
    assert out.splitlines()[-1].startswith("error: student.distill stopped after step")
    for command in ("logs", "stop"):
        assert f"There is no job {command}-nothing on this cluster" in refused(head.run(command, f"{command}-nothing"))
    code, _, err = head.submit("config.yaml", "--id", "first").end()
    assert code == 2
    assert "--id first: the cluster has a job of that name" in err


def test_an_image_without_raydistill_is_called_that(head: Head, tmp_path: Path) -> None:
    """Python of the machine itself instead of the environment that has raydistill; followed after a detached start."""
    (tmp_path / "python").symlink_to(Path(sys.base_prefix) / "bin" / "python3")
    python = ("--env", f"PATH={tmp_path}:/usr/bin:/bin", "--env", f"PYTHONPATH={tmp_path}")
    code, out, err = head.submit("config.yaml", *python, "--detach", "--json").end()
    assert code == 0, err
    job = json.loads(out)
    assert job["entrypoint"].startswith("exec python -m raydistill distill ")
    code, _, err = head.run("logs", job["id"], "--follow")
    assert code == 1
    assert "the cluster's image lacks " in err
