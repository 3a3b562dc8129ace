"""The `raydistill` command in a process that is forked from a server which has imported its libraries: to import them
takes 8 s of a core. All of raydistill itself, and Ray, are imported by the process, in the environment it is given."""

from __future__ import annotations

import faulthandler
import functools
import gc
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

LIBRARIES = (
    *(
        "transformers.modeling_utils",
        "transformers.models.auto.modeling_auto",
        "transformers.models.auto.tokenization_auto",
    ),
    *("transformers.models.bert.modeling_bert", "transformers.models.bert.tokenization_bert"),
    *("torch.distributed", "safetensors.torch", "datasets", "pandas", "pyarrow.parquet", "pyarrow.dataset"),
    *("mlflow.tracking", "mlflow.store.tracking.sqlalchemy_store", "mlflow.store.model_registry.sqlalchemy_store"),
    *("mlflow.models", "sklearn.linear_model", "sklearn.feature_extraction.text", "scipy.stats", "scipy.optimize"),
    *("plotly.graph_objects", "jinja2", "jsonschema", "requests", "aiohttp", "typer", "rich.console", "pydantic"),
    *("optuna", "s3fs", "psutil", "huggingface_hub"),
)
READ_AT_IMPORT = ("HF_", "TRANSFORMERS_", "TORCH", "OMP_", "MKL_", "PYTHON", "LANG", "LC_")
"""Settings that libraries and Python itself read only once: a server has them as its processes have."""


class Started:
    """A process, as subprocess.Popen has it, of a session of its own."""

    def __init__(self, server: Server, pid: int) -> None:
        self.server, self.pid = server, pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self.server.ask("poll", pid=self.pid)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        deadline = time.monotonic() + (float("inf") if timeout is None else timeout)
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
            time.sleep(0.01)
        return code

    def send_signal(self, signum: int) -> None:
        if self.poll() is None:  # only poll reaps it: the number is still its own
            os.kill(self.pid, signum)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Server:
    """The process that forks; it ends with this one."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.socket, other = socket.socketpair()
        with other:
            self.process = subprocess.Popen(
                [sys.executable, __file__, str(other.fileno())],
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                pass_fds=[other.fileno()],
                start_new_session=True,
            )
        self.lines = self.socket.makefile("rw")

    def ask(self, what: str, **arguments: Any) -> Any:
        self.lines.write(json.dumps([what, arguments]) + "\n")
        self.lines.flush()
        return json.loads(self.lines.readline())


@functools.cache
def _server(settings: frozenset[tuple[str, str]]) -> Server:
    known = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", *READ_AT_IMPORT))}
    return Server(known | dict(settings))


def start(words: Sequence[str], environment: Mapping[str, str], out: Path, err: Path) -> Started:
    """Begin ``raydistill`` with these words, its output in two files, in this folder."""
    settings = {(name, value) for name, value in environment.items() if name.startswith(READ_AT_IMPORT)}
    server = _server(frozenset(pair for pair in settings if pair[0] != "PYTHONPATH"))
    said = (str(out), str(err))
    for path in (out, err):
        path.touch()  # the process opens them later than this returns
    pid = server.ask("start", words=list(words), environment=dict(environment), folder=os.getcwd(), said=said)
    return Started(server, pid)


def _become(words: Sequence[str], environment: Mapping[str, str], folder: str, said: Sequence[str]) -> None:
    """In a forked process: be what Python is that was started with this environment."""
    os.setsid()
    os.chdir(folder)
    for descriptor, path in enumerate(said, start=1):
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(opened, descriptor)
        os.close(opened)
    faulthandler.enable()  # else a crash of a library's says nothing
    os.environ.clear()
    os.environ.update(environment)
    sys.argv[:] = ["-c", *words]
    sys.path[1:1] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    sys.modules.pop("sitecustomize", None)
    with suppress(ImportError):
        importlib.import_module("sitecustomize")


def _serve(connection: socket.socket) -> None:
    """Answer until the other side is gone; returns in forked processes alone."""
    with connection, connection.makefile("rw") as lines:
        for line in lines:
            what, arguments = json.loads(line)
            if what == "start":
                answer = os.fork()
                if answer == 0:
                    break
            else:
                pid, status = os.waitpid(arguments["pid"], os.WNOHANG)
                answer = os.waitstatus_to_exitcode(status) if pid else None
            lines.write(json.dumps(answer) + "\n")
            lines.flush()
        else:
            os._exit(0)
    _become(**arguments)


if __name__ == "__main__":
    sys.path[0] = ""  # as of python -c
    import raydistill  # noqa: F401 (before torch, which it tells how threads wait)

    for library in LIBRARIES:
        importlib.import_module(library)
    gc.freeze()  # to look through what is shared would copy it
    _serve(socket.socket(fileno=int(sys.argv[1])))
    from raydistill.cli.main import main

    main()
