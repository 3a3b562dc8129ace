"""An MLflow server that goes away for a whole training, or while a student is registered: nothing is lost."""

from __future__ import annotations

import http.client
import os
import signal
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from kit.faults import patience
from kit.runs import Command, metric_steps, mlflow_runs, read_weights, same_weights, versions, write_config
from kit.servers import free_port, start_server, stop_server
from kit.tiny import save_tiny
from kit.toy import toy_config

from raydistill.config.loading import load_config
from raydistill.storage.storage import Storage
from raydistill.tracking.endpoint import made_whole, way_out
from raydistill.tracking.registry.students import register_student
from raydistill.tracking.registry.versions import list_versions
from raydistill.tracking.runs import start_run

NAMES = ("train/loss", "teacher/train/loss", "baseline/train/loss", "validation/accuracy", "train/learning_rate")
MODELS = ("teacher", "student", "baseline")


def test_a_full_disk_under_the_database_is_told_as_such():
    for uri in ("sqlite:////data/mlflow.db", "http://127.0.0.1:5000"):
        for reason in ("(sqlite3.OperationalError) database or disk is full", "[Errno 28] No space left on device"):
            assert "Free space" in way_out(uri, reason)
    assert "folder is writable" in way_out("sqlite:////data/mlflow.db", "unable to open database file")


def test_a_database_whose_making_is_cut_off_is_made_anew(tmp_path):
    """MLflow takes the half-made tables for another release's and refuses them for ever."""
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    with pytest.raises(IsADirectoryError), made_whole(uri) as address:
        Path(address.removeprefix("sqlite:///")).write_bytes(tmp_path.read_bytes())
    assert list(tmp_path.iterdir()) == []
    (tmp_path / ".mlflow.db.part-0123").write_bytes(b"left by a killed process")
    with made_whole(uri) as address:
        Path(address.removeprefix("sqlite:///")).write_bytes(b"whole")
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]
    with made_whole(uri) as address:
        assert address == uri


class LosesAnswers(ThreadingHTTPServer):
    """A proxy that hands every request on to a server and loses the first answer of each that makes something."""

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), Forwarder)
        self.port, self.lost = port, []

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Forwarder(BaseHTTPRequestHandler):
    server: LosesAnswers

    def forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        there = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=60)
        there.request(self.command, self.path, body, {**self.headers, "Connection": "close"})
        answer = there.getresponse()
        content = answer.read()
        there.close()
        if self.path.endswith("/create") and self.path not in self.server.lost:
            self.server.lost.append(self.path)
            self.close_connection = True
            return
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.headers.get("Content-Type", "text/plain"))
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = forward

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.slow
def test_answers_that_are_lost_leave_one_run_and_one_version(tmp_path, monkeypatch):
    port = free_port()
    server = start_server(tmp_path, port)
    with LosesAnswers(port) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        try:
            monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.uri)
            student = save_tiny(tmp_path / "student", "bert", num_layers=1, labels=("bad", "good"))
            ref = start_run(load_config(toy_config(tmp_path)), Storage("memory://bucket"), "key")
            assert register_student(ref, "toy", student, {}, run_key="key") == 1
            assert register_student(ref, "toy", student, {}, run_key="key") == 1
            made = {path.split("/mlflow/")[1] for path in proxy.lost}
            assert made == {"experiments/create", "runs/create", "registered-models/create", "model-versions/create"}
            (run,) = mlflow_runs(proxy.uri)
            assert run.info.run_id == ref.run_id
            assert [version.version for version in list_versions("toy", proxy.uri)] == [1]
        finally:
            proxy.shutdown()
            stop_server(server)


def steps_done(command: Command) -> int:
    return sum(line.startswith(("step ", "shard ")) for line in command.lines())


def registers(command: Command) -> bool:
    """Wait until registration is near, 0 to 2 s away; False where the command ended before."""
    return command.wait_until(lambda: " baseline" in command.err.read_text(), patience(120))


def logged(uri: str, run_id: str) -> dict[str, list[int]]:
    return {name: metric_steps(uri, run_id, name) for name in NAMES}


def assert_refused(command: Command, seconds: float) -> float:
    """The command ends with exit code 1 and says that the server cannot be reached; seconds that it took."""
    began = time.monotonic()
    code, answer, err = command.end(seconds)
    assert (code, answer["error"]["type"]) == (1, "TrackingError"), err
    assert "Start the server" in answer["error"]["message"]
    return time.monotonic() - began


@pytest.mark.slow
def test_a_server_away_for_a_whole_training_and_in_the_registration_loses_nothing(tmp_path, measured):
    draw = np.random.default_rng(11)
    folders = {name: tmp_path / name for name in ("whole", "faulty")}
    for folder in folders.values():
        folder.mkdir()
    configs = {name: write_config(folder, toy_config(folder)) for name, folder in folders.items()}
    reference = Command(configs["whole"], folders["whole"] / "counts")
    code, whole, err = reference.end()
    assert code == 0, err
    port, folder = free_port(), folders["faulty"]
    uri = f"http://127.0.0.1:{port}"

    def start() -> Command:
        return Command(configs["faulty"], folder / "counts", MLFLOW_TRACKING_URI=uri)

    server = start_server(folder, port)
    try:
        command = start()
        assert command.wait_for_line(f"step teacher.finetune {draw.integers(0, 3)} ")
        stop_server(server)
        assert_refused(command, patience(180))  # at the registration: training went on to its end
        done = steps_done(command)
        assert done == steps_done(reference)
        assert_refused(start(), patience(60))  # still away: nothing is begun
        kills = 0
        for delay in [*np.sort(draw.uniform(0, 2.5, 3)), None]:
            server = start_server(folder, port)
            command = start()
            if delay is not None and registers(command):
                time.sleep(delay)
                stop_server(server)
            code, results, err = command.end(patience(180))
            if code == 0:
                break
            assert results["error"]["type"] == "TrackingError", err
            kills += 1
        assert code == 0, err
        assert kills > 0
        if server.poll() is not None:  # the last kill came too late for anything but the end of this test
            server = start_server(folder, port)
        assert steps_done(command) == done
        (run,) = mlflow_runs(uri)
        assert run.info.status == "FINISHED"
        assert [int(version.version) for version in versions(uri)] == [results["model_version"]] == [1]
        assert versions(uri)[0].tags["raydistill.complete"] == "true"
        own = f"sqlite:///{folders['whole'] / 'storage' / 'mlflow.db'}"
        assert logged(uri, run.info.run_id) == logged(own, whole["run_id"])
        for model in MODELS:
            assert same_weights(read_weights(results[model]["path"]), read_weights(whole[model]["path"]))
    finally:
        stop_server(server)
        left = command.clean_up()
    assert left == []
    when = f"for the whole training, then {kills} times during the registration"
    measured.fault("MLflow server", when, "0 steps, no metric lost, one version")


@pytest.mark.slow
def test_a_server_that_hangs_does_not_hold_up_a_stop(tmp_path, measured):
    port = free_port()
    server = start_server(tmp_path, port)
    try:
        config = write_config(tmp_path, toy_config(tmp_path, stages__distill__num_epochs=200))
        command = Command(config, tmp_path / "counts", MLFLOW_TRACKING_URI=f"http://127.0.0.1:{port}")
        assert command.wait_for_line("step student.distill 5 ")
        os.killpg(server.pid, signal.SIGSTOP)
        sent = time.monotonic()
        command.kill(signal.SIGTERM)
        code, answer, err = command.end()
        assert (code, answer["error"]["type"]) == (130, "Interrupted"), err
        took = time.monotonic() - sent
        assert took < patience(10.0)
    finally:
        stop_server(server)
        left = command.clean_up()
    assert left == []
    measured.line(f"SIGTERM while the MLflow server hangs: ended after {took:.1f} s")
