"""Fixtures that several test modules share."""

from __future__ import annotations

import logging
import os
import signal
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import settings
from kit.environment import neutralize
from kit.stores import TEMPLATE, copied

neutralize(os.environ)  # before the imports of what reads it only once

from raydistill.storage import node_cache  # noqa: E402 (before torch, which it tells how threads wait)
from raydistill.storage.storage import Storage  # noqa: E402
from raydistill.tracking.endpoint import DEFAULTS, made_whole  # noqa: E402

settings.register_profile("suite", deadline=None)  # a machine may be busy
settings.load_profile("suite")

PROCESS_BYTES = 3 * 2**30
"""Memory of a process of tests with the processes that it starts."""
ON_RAY = ("test_pool.py", "test_sweep.py", "test_worker.py")
"""Files whose tests share the session's Ray cluster."""
LONG = (
    *("test_faults.py", "test_submit.py", "test_node_faults.py", "test_storage_faults.py", "test_sweep_faults.py"),
    *("test_placement.py", "test_tracking_faults.py", "test_promotion_faults.py"),
    *("test_hosts.py", "test_security.py", "test_serving.py"),
)
"""Files whose slow tests take from one to five minutes."""
FAULT = ("fault", "when", "repeated", "weights differ by", "time")


@dataclass(frozen=True)
class Measured:
    """What a test found out in numbers: shown when all tests have ended, whichever process they ran in."""

    note: Callable[[str, object], None]

    def line(self, text: str) -> None:
        self.note("line", text)

    def fault(self, fault: str, when: str, repeated: str, time: str = "", difference: float = 0.0) -> None:
        """A row of the table of faults; ``difference``: relative, of weights to those of an undisturbed run."""
        self.note("fault", [fault, when, repeated, f"{difference:.1e}" if difference else "0", time])


@pytest.fixture
def measured(record_property: Callable[[str, object], None]) -> Measured:
    return Measured(record_property)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    told = [entry for report in terminalreporter.getreports("passed") for entry in report.user_properties]
    rows = [cells for name, cells in told if name == "fault"]
    if told:
        terminalreporter.section("measured")
    if rows:
        for cells in (FAULT, ["---"] * len(FAULT), *rows):
            terminalreporter.write_line(f"| {' | '.join(cells)} |")
    for name, text in told:
        if name == "line":
            terminalreporter.write_line(text)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files on Ray go first: a process in which another Ray was started and ended keeps that one's token. The longest
    are next, and then whole runs, so that no process is left with a long file at the end."""
    items.sort(key=lambda i: (i.path.name not in ON_RAY, i.path.name not in LONG, i.path.parent.name != "pipeline"))
    assert all(item.path.name in ON_RAY for item in items if "ray_cluster" in getattr(item, "fixturenames", ()))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """As many processes as there are cores for this one, and memory."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, psutil.virtual_memory().available // PROCESS_BYTES))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Tests of a file stay in one process, and those of all files on Ray. The option loadgroup cannot say so: xdist 3.8
    does nothing by it under pytest 9.2."""
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = str(super()._split_scope(nodeid))
            return "ray" if Path(file).name in ON_RAY else file

    return ByFile(config, log)


@pytest.fixture(scope="session", autouse=True)
def ctrl_c() -> None:
    """A shell starts background jobs, CI runners among them, with SIGINT ignored, and processes inherit that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def kit_for_all() -> None:
    """Test files that are run as scripts, in namespaces of their own, import the kit, too."""
    known = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(Path(__file__).parent), known)))


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Bit-identical results need a fixed number of threads; two on tiny tensors only wait for each other."""
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="module", autouse=True)
def own_tracking() -> Iterator[None]:
    """No module sees the tracking server of another, nor the settings of MLflow: both are in the environment."""
    if (mlflow := sys.modules.get("mlflow")) is not None:
        mlflow.set_tracking_uri(None)  # what a test before has set counts more than the environment
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        for name, value in DEFAULTS.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="session", autouse=True)
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """New MLflow databases of this process, and of commands that count, are copies of the first one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(TEMPLATE, str(tmp_path_factory.mktemp("template") / "mlflow.db"))
        patch.setattr("raydistill.tracking.runs.made_whole", copied(made_whole))
        yield


@pytest.fixture(scope="module")
def mlflow_uri(own_tracking: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One MLflow store for all runs of a module."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        yield uri


@pytest.fixture(scope="session")
def s3_storage_url() -> Iterator[str]:
    """URL of a bucket on a local moto S3 server; AWS_* points every process of the session at it."""
    import fsspec
    from kit.servers import S3

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line a request otherwise
    server = S3()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment().items():
            patch.setenv(name, value)
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
            patch.delenv(name, raising=False)
        fsspec.get_filesystem_class("s3").clear_instance_cache()  # those of another server of this process
        bucket = f"bucket-{uuid.uuid4().hex[:8]}"  # all moto servers of a process hold the same buckets
        fsspec.filesystem("s3", skip_instance_cache=True).mkdir(bucket)
        yield f"s3://{bucket}/prefix"
    server.stop()


@pytest.fixture
def local(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "storage"))


@pytest.fixture
def remote(s3_storage_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Storage]:
    """A fresh prefix on S3, with an own node cache."""
    monkeypatch.setenv("RAYDISTILL_CACHE", str(tmp_path / "node-cache"))
    yield Storage(f"{s3_storage_url}/{uuid.uuid4().hex}")
    for descriptor in node_cache._IN_USE.values():
        os.close(descriptor)
    node_cache._IN_USE.clear()


@pytest.fixture(params=["local", "memory", "remote"])
def storage(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    monkeypatch.setenv("RAYDISTILL_CACHE", str(tmp_path / "node-cache"))
    if request.param == "memory":
        return Storage(f"memory://{uuid.uuid4().hex}")
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The toy data, prepared and tokenised, with a tiny teacher (see toy.py); 60 of its training rows have labels."""
    from kit.toy import make_toy

    return make_toy(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="session")
def ray_cluster(one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One local Ray cluster of 2 CPUs for the session; the file in which its workers count (see kit/counting)."""
    import ray
    from kit.runs import COUNTING

    from raydistill.cluster import connection

    connection.set_environment()
    counts = tmp_path_factory.mktemp("ray") / "counts"
    counts.touch()
    with pytest.MonkeyPatch.context() as patch:  # for Ray's daemons, which hand it on to workers
        patch.setenv("PYTHONPATH", str(COUNTING), prepend=os.pathsep)
        patch.setenv("RAYDISTILL_COUNT_FILE", str(counts))
        patch.setenv(connection.WATCHER, "0")  # as in a cluster that a run starts
        patch.delenv("RAY_ADDRESS", raising=False)
        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=connection.OBJECT_STORE_BYTES,
        )
    yield counts
    ray.shutdown()
