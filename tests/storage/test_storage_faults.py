"""Storage that is away, full or damaged: waited for, told, mended; and the student is that of an undisturbed run."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kit.faults import patience
from kit.processes import damage
from kit.runs import Command, check_artifacts, keys_by_kind, read_weights, same_weights, write_config
from kit.servers import S3
from kit.toy import toy_config

from raydistill.config.loading import load_config
from raydistill.errors import ArtifactError, Interrupted
from raydistill.models.signals import LOGITS
from raydistill.pipeline.distill import distill
from raydistill.storage.artifacts import Artifact
from raydistill.storage.faults import Missing, is_transient
from raydistill.storage.manifest import FileInfo
from raydistill.storage.outages import OUTAGES
from raydistill.storage.storage import Storage
from raydistill.teacher import record, store
from raydistill.teacher.store import find_shards, reopen_damaged, shard_name, write_shard
from raydistill.tracking.journal import Journal, read_points, select_new, write_history

OUTAGE_SECONDS = 30.0
MODELS = ("teacher", "student", "baseline")
LENGTHY = {
    "student": {"num_layers": 2, "hidden_size": 16, "num_heads": 2},
    "stages__distill__losses__hidden": {"type": "hidden_mse", "layers": [[1, 2], [2, 4]], "weight": 0.1},
    "stages__distill__num_epochs": 6,
    "train__checkpoint_steps": 3,
}
"""24 + 72 + 72 steps and 7 shards of 40 rows."""


class Failing:
    """Stands in for a method of a file system: raises ``error`` so many times, then does what it did before."""

    def __init__(self, method: Callable[..., Any], error: BaseException, times: float) -> None:
        self.method, self.error, self.times, self.calls = method, error, times, 0

    def __call__(self, *args: Any, **options: Any) -> Any:
        self.calls += 1
        if self.calls <= self.times:
            raise self.error
        return self.method(*args, **options)


def fail(storage: Storage, monkeypatch: pytest.MonkeyPatch, error: BaseException, times: float = np.inf) -> Failing:
    failing = Failing(storage.fs.pipe_file, error, times)
    monkeypatch.setattr(storage.fs, "pipe_file", failing)
    return failing


@pytest.fixture
def known(tmp_path: Path) -> Storage:
    """A storage that has answered before."""
    storage = Storage(f"memory://{tmp_path.name}-{time.monotonic_ns()}")
    storage.check()
    return storage


def lost_connections() -> list[BaseException]:
    import aiohttp
    import botocore.exceptions as boto
    import requests

    return [
        OSError(errno.EIO, "Input/output error"),
        OSError(errno.EBUSY, "Service Unavailable"),  # what s3fs makes of a 503
        ConnectionResetError(),
        TimeoutError(),
        boto.EndpointConnectionError(endpoint_url="http://127.0.0.1:1"),
        boto.ReadTimeoutError(endpoint_url="http://127.0.0.1:1"),
        boto.ConnectionClosedError(endpoint_url="http://127.0.0.1:1"),
        aiohttp.ServerDisconnectedError(),
        requests.ConnectionError(),
    ]


def test_lost_connections_are_told_from_what_waiting_does_not_mend():
    import botocore.exceptions as boto

    assert [error for error in lost_connections() if not is_transient(error)] == []
    lasting = [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        OSError(errno.EROFS, "read-only"),
        OSError(errno.EINVAL, "Bad request"),
        PermissionError(),
        FileNotFoundError(),
        ValueError("x"),
        boto.NoCredentialsError(),
        boto.SSLError(endpoint_url="https://127.0.0.1:1", error="certificate"),
    ]
    assert [error for error in lasting if is_transient(error)] == []


def test_storage_that_is_away_for_a_moment_is_waited_for(known, monkeypatch):
    told: list[str] = []
    monkeypatch.setattr(OUTAGES, "notes", [])
    failing = fail(known, monkeypatch, OSError(errno.EIO, "Input/output error"), times=2)
    with OUTAGES.obeying(threading.Event(), told.append):
        known.write_bytes(b"x", "a")
        known.write_bytes(b"y", "b")
    assert known.read_bytes("a") == b"x"
    assert failing.calls == 4
    assert [("does not answer" in text, "answers again" in text) for text in told] == [(True, False), (False, True)]
    assert len(OUTAGES.notes) == 1
    assert known.url in OUTAGES.notes[0]


@pytest.mark.parametrize("error", [PermissionError("no"), OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))])
def test_what_lasts_is_not_tried_again(known, monkeypatch, error):
    failing = fail(known, monkeypatch, error)
    with pytest.raises(ArtifactError, match="Cannot write memory"):
        known.write_bytes(b"x", "a")
    assert failing.calls == 1


def test_a_storage_that_never_answered_and_a_check_are_not_waited_for(known, monkeypatch):
    failing = fail(known, monkeypatch, ConnectionRefusedError("refused"))
    with pytest.raises(ArtifactError, match="ConnectionRefusedError"):
        known.check()
    with pytest.raises(ArtifactError, match="ConnectionRefusedError"):
        Storage("memory://elsewhere").write_bytes(b"x", "a")
    assert failing.calls == 2


def test_patience_ends_and_is_not_begun_anew_by_the_next_request(known, monkeypatch):
    monkeypatch.setenv("RAYDISTILL_STORAGE_RETRY_SECONDS", "0.4")
    failing = fail(known, monkeypatch, TimeoutError("no answer"))
    began = time.monotonic()
    with pytest.raises(ArtifactError, match=r"TimeoutError: no answer.*run the command again"):
        known.write_bytes(b"x", "a")
    assert 0.2 < time.monotonic() - began < patience(20.0)  # of 120 that are usual; a busy machine took 3.7 once
    calls = failing.calls
    assert calls > 1
    with pytest.raises(ArtifactError, match="no answer"):
        known.write_bytes(b"x", "a")
    assert failing.calls == calls + 1
    for text in ("soon", "-0.5", "inf", "nan"):
        monkeypatch.setenv("RAYDISTILL_STORAGE_RETRY_SECONDS", text)
        with pytest.raises(ArtifactError, match=f"'{text}'.*Set it to a number"):
            known.write_bytes(b"x", "a")


def test_a_request_to_stop_ends_the_waiting(known, monkeypatch):
    fail(known, monkeypatch, OSError(errno.EIO, "Input/output error"))
    request = threading.Event()
    threading.Timer(0.3, request.set).start()
    began = time.monotonic()
    with OUTAGES.obeying(request, lambda text: None), pytest.raises(Interrupted, match="storage did not answer"):
        known.write_bytes(b"x", "a")
    assert time.monotonic() - began < patience(3.0)


def test_an_object_whose_answer_was_lost_is_ones_own(known, monkeypatch):
    """Trying again, a lease would find itself taken, by nobody else than itself."""
    create = known.fs.pipe_file

    def create_and_lose(*args: Any, **options: Any) -> None:
        create(*args, **options)
        monkeypatch.setattr(known.fs, "pipe_file", create)
        raise ConnectionResetError

    monkeypatch.setattr(known.fs, "pipe_file", create_and_lose)
    assert known.create(b"me", "lease")
    assert not known.create(b"you", "lease")
    assert known.read_bytes("lease") == b"me"


def test_metrics_wait_in_memory_while_their_file_cannot_be_written(tmp_path, monkeypatch, caplog):
    folder = tmp_path / "run"
    folder.write_text("in the way")
    journal = Journal(folder / "metrics.jsonl")
    for step in range(3):
        journal.append({"loss": 1.0 / (step + 1)}, step)
    folder.unlink()
    journal.append({"loss": 0.25}, 3)
    journal.close()
    assert len([record for record in caplog.records if "wait in memory" in record.message]) == 1
    points, _ = read_points(folder / "metrics.jsonl", 0, 100)
    assert [(point.step, point.value) for point in points] == [(0, 1.0), (1, 0.5), (2, 1 / 3), (3, 0.25)]


def test_metrics_of_a_lost_node_are_written_again_from_the_histories(tmp_path):
    reports = [{"step": step, "validated": step == 4, "train/loss": 1 / step} for step in (2, 4)]
    write_history(tmp_path / "m", {"teacher": reports[:1], "student": reports})
    points, _ = read_points(tmp_path / "m", 0, 100)
    assert [(point.key, point.step, point.value) for point in points] == [
        ("teacher/train/loss", 2, 0.5),
        ("train/loss", 2, 0.5),
        ("train/loss", 4, 0.25),
    ]
    assert select_new(points, {"train/loss": 2, "teacher/train/loss": 2})[0] == points[2:]


def seal_shards(storage: Storage, folder: Path) -> Any:
    artifact = Artifact(storage, "signals", "0123456789abcdef0123", {})
    files = {}
    for index in range(3):
        path = folder / "shard"
        write_shard(path, np.arange(5) + 5 * index, np.ones(5, dtype=np.int32), torch.randn(5, 3), LOGITS)
        info = FileInfo.of(path)
        name = shard_name(index, info.sha256)
        files[name] = artifact.put(path, name)
    artifact.seal(files)
    return artifact


@pytest.mark.parametrize("how", ["truncated", "flipped", "missing"])
def test_only_damaged_shards_are_opened_for_recording(local, tmp_path, how):
    artifact = seal_shards(local, tmp_path)
    assert reopen_damaged(artifact) == []
    digest = artifact.digest
    names = sorted(artifact.manifest().files)
    damage(Path(local.path("signals", artifact.key, names[1])), how)
    assert reopen_damaged(artifact) == [names[1]]
    assert not artifact.exists()
    assert sorted(find_shards(artifact)) == [0, 2]
    assert reopen_damaged(artifact) == []
    local.write_bytes(b"{", "signals", artifact.key, "manifest.json")
    assert reopen_damaged(artifact) == ["manifest.json"]
    with pytest.raises(Missing):
        assert digest == artifact.digest


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    import fsspec

    server = S3()
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    file_systems = fsspec.get_filesystem_class("s3")
    file_systems.clear_instance_cache()  # those of another server of this process
    fsspec.filesystem("s3", skip_instance_cache=True).mkdir("bucket")
    yield server
    server.stop()
    file_systems.clear_instance_cache()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Results of an undisturbed run on a local disk."""
    folder = tmp_path_factory.mktemp("whole")
    with start(write_config(folder, toy_config(folder, **LENGTHY)), folder) as command:
        return command.results(patience(180))


def start(config: Path, folder: Path, within: Sequence[str] = (), **environment: str) -> Command:
    return Command(config, folder / "counts", within=within, RAYDISTILL_SHARD_ROWS="40", **environment)


def wait_for(command: Command, line: str) -> bool:
    return command.wait_until(lambda: any(found.startswith(line) for found in command.lines()), patience(120))


def assert_same_models(results: dict[str, Any], whole: dict[str, Any]) -> None:
    for model in MODELS:
        assert same_weights(read_weights(results[model]["path"]), read_weights(whole[model]["path"])), model


def work_repeated(command: Command) -> dict[str, int]:
    done = Counter(" ".join(line.split()[:3]) for line in command.lines() if not line.startswith("start "))
    return {kind: sum(n - 1 for line, n in done.items() if line.startswith(kind)) for kind in ("step", "shard")}


@pytest.mark.slow
def test_s3_that_goes_away_for_30_seconds_costs_30_seconds(s3, whole, tmp_path, measured):
    """First a request to stop while it is away, then an outage in the student's training, and one while recording."""
    draw = np.random.default_rng(5)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    environment = {"MLFLOW_TRACKING_URI": uri, "RAYDISTILL_CACHE": str(tmp_path / "cache"), **s3.environment()}
    config = write_config(tmp_path, toy_config(tmp_path, **LENGTHY, storage="s3://bucket/away"))
    with start(config, tmp_path, RAYDISTILL_SHARD_SECONDS="0.5", **environment) as command:
        assert wait_for(command, f"shard train/hidden_states[2]+hidden_states[4]+logits {draw.integers(1, 4)} ")
        s3.stop()
        assert command.wait_until(lambda: "does not answer" in command.err.read_text())
        sent = time.monotonic()
        command.kill(15)
        code, answer, err = command.end(patience(180))
        stop_seconds = time.monotonic() - sent
        assert (code, answer["error"]["type"]) == (130, "Interrupted"), err
        assert stop_seconds < patience(10.0)
    s3.start()
    with start(config, tmp_path, **environment) as command:
        step = draw.integers(5, 60)
        assert wait_for(command, f"step student.distill {step} ")
        s3.stop()
        time.sleep(OUTAGE_SECONDS)
        s3.start()
        results = command.results(patience(180))
    assert "answers again" in command.err.read_text()
    assert any("did not answer for" in note for note in results["notes"]), results["notes"]
    assert_same_models(results, whole)
    assert check_artifacts(Storage("s3://bucket/away")) == 12
    repeated = work_repeated(command)
    assert repeated["step"] == 0
    assert repeated["shard"] <= 1
    measured.fault("S3, and SIGTERM while it is away", "recording", "", f"ended after {stop_seconds:.1f} s")
    work = f"0 steps, {repeated['shard']} shards"
    measured.fault(f"S3 for {OUTAGE_SECONDS:.0f} s", f"step {step} of 72", work)


@pytest.mark.chaos
def test_a_disk_that_fails_for_30_seconds_under_a_ray_run(whole, tmp_path, measured):
    """Driver and worker wait for it, and neither is started again."""
    away = tmp_path / "away"
    config = write_config(tmp_path, toy_config(tmp_path, **LENGTHY, train__num_workers=1))
    step = np.random.default_rng(9).integers(5, 60)
    with start(config, tmp_path, RAYDISTILL_AWAY_FILE=str(away)) as command:
        assert wait_for(command, f"step student.distill {step} ")
        away.touch()
        time.sleep(OUTAGE_SECONDS)
        away.unlink()
        results = command.results(patience(180))
    assert any("did not answer for" in note for note in results["notes"]), results["notes"]
    assert_same_models(results, whole)
    assert work_repeated(command) == {"step": 0, "shard": 0}
    assert sum(line.startswith("start ") for line in command.lines()) == 1
    measured.fault(f"writes to a disk for {OUTAGE_SECONDS:.0f} s", f"step {step} of 72", "0 steps, 0 shards")


class SmallDisk:
    """A disk of a few megabytes in a mount namespace of its own, which goes with the process that holds it."""

    def __init__(self, folder: Path, size: int) -> None:
        folder.mkdir()
        self.folder = folder
        mount = f"mount -t tmpfs -o size={size} tmpfs {folder} && echo ready && exec cat"
        self.holder = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", mount], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.holder.stdout is not None
        assert self.holder.stdout.readline() == "ready\n"
        self.within = ["nsenter", f"--mount=/proc/{self.holder.pid}/ns/mnt"]

    def grow(self, size: int) -> None:
        subprocess.run([*self.within, "mount", "-o", f"remount,size={size}", str(self.folder)], check=True)

    def seen_from_here(self) -> Path:
        return Path(f"/proc/{self.holder.pid}/root{self.folder}")

    def close(self) -> None:
        self.holder.communicate()


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("nsenter"), reason="needs root, for a disk of its own")
def test_a_disk_that_is_full_is_told_breaks_nothing_and_with_more_room_the_run_goes_on(whole, tmp_path, measured):
    """First in the making of MLflow's database, then, with that elsewhere, in whatever the run was just writing."""
    storage = Path(whole["student"]["path"]).parents[3]
    sizes = [(path.name, path.stat().st_size) for path in storage.rglob("*") if path.is_file()]
    used = sum(size for name, size in sizes if name not in ("mlflow.db", "report.html"))  # a report is 4.9 MB of script
    shares = np.sort(np.exp(np.random.default_rng(23).uniform(np.log(0.1), np.log(0.8), 3)))
    disk = SmallDisk(tmp_path / "disk", int(0.08 * used))
    config = write_config(tmp_path, toy_config(tmp_path, **LENGTHY, storage=str(disk.folder / "storage")))
    seen = Storage(str(disk.seen_from_here() / "storage"))
    elsewhere = {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'mlflow.db'}"}
    told: list[str] = []
    try:
        for share in [0.08, *shares, 3.0 * sum(size for _, size in sizes) / used]:
            disk.grow(int(share * used))
            command = start(config, tmp_path, within=disk.within, **(elsewhere if told else {}))
            code, results, err = command.end(patience(180))
            assert (code == 0) == ("error" not in results), err
            for kind, keys in keys_by_kind(seen).items():
                for key in keys:
                    Artifact(seen, kind, key).local(verify=True)
            if code == 0:
                break
            assert code == 1
            told.append(results["error"]["message"])
        assert code == 0, err
        assert len(told) >= 3, told
        assert [text for text in told if "full" not in text and "No space left" not in text] == []
        assert [text for text in told if "ree space" not in text] == []
        assert len({text.split(":")[0] for text in told}) > 1, told
        for model in MODELS:
            folder = disk.seen_from_here() / Path(results[model]["path"]).relative_to(disk.folder)
            assert same_weights(read_weights(folder), read_weights(whole[model]["path"])), model
        assert check_artifacts(seen) == 12
    finally:
        left = command.clean_up()
        disk.close()
    assert left == []
    when = f"at {0.08:.0%}, {', '.join(f'{share:.0%}' for share in shares)} of the bytes that a run writes"
    work = ", ".join(f"{count} {kind}s" for kind, count in work_repeated(command).items())
    measured.fault(f"room on the disk, {len(told)} times", when, work)


@pytest.mark.slow
def test_a_damaged_shard_is_named_and_recorded_again_alone(tmp_path, monkeypatch, measured):
    """Two of the recorded training shards, and one of the test rows, are damaged between two runs that share them."""
    monkeypatch.setattr(store, "SHARD_ROWS", 40)
    short = {**LENGTHY, "stages__distill__num_epochs": 1, "evaluate__baseline": False}
    first = load_config(toy_config(tmp_path, **short))
    second = toy_config(tmp_path, **short, stages__distill__losses__kd={"type": "forward_kl", "temperature": 3.0})
    distill(first)
    reference = distill(load_config({**second, "storage": str(tmp_path / "undamaged")}))
    storage = Storage(str(tmp_path / "storage"))
    artifacts = [Artifact(storage, "signals", key) for key in storage.list("signals")]
    of_train = [a for a in artifacts if a.manifest().recipe["split"] == "train"]
    (of_test,) = [a for a in artifacts if a.manifest().recipe["split"] == "test"]
    assert len(of_train) == 3
    digests = {artifact.key: artifact.digest for artifact in artifacts}
    harmed = {}
    for artifact, index, how in ((of_train[0], 1, "truncated"), (of_train[1], 3, "flipped"), (of_test, 0, "missing")):
        name = sorted(artifact.manifest().files)[index]
        damage(Path(storage.path("signals", artifact.key, name)), how)
        harmed[artifact.key] = name
    recorded: list[tuple[int, list[str]]] = []
    original = record.record_shard

    def record_shard(teacher: Any, rows: Any, row_ids: Any, index: int, wanted: Any, *arguments: Any) -> Any:
        recorded.append((index, [artifact.key for artifact in wanted.values()]))
        return original(teacher, rows, row_ids, index, wanted, *arguments)

    monkeypatch.setattr(record, "record_shard", record_shard)
    results = distill(load_config(second))
    assert sorted(recorded) == [(0, [of_test.key]), (1, [of_train[0].key]), (3, [of_train[1].key])]
    for key, name in harmed.items():
        assert any(name in note and key in note and "Damaged" in note for note in results["notes"]), name
    assert {artifact.key: artifact.digest for artifact in artifacts} == digests
    assert check_artifacts(storage) == check_artifacts(Storage(str(tmp_path / "undamaged"))) + 2
    assert same_weights(read_weights(results["student"]["path"]), read_weights(reference["student"]["path"]))
    measured.fault("shards: one truncated, one flipped, one missing", "between two runs", "those 3 shards")
