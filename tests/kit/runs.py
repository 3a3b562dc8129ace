"""Whole runs on the toy: what they leave in storage and in MLflow, and how they behave as processes to kill."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import psutil
import safetensors.torch
import torch
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run

from kit.started import Started, start
from kit.stores import TEMPLATE
from raydistill.cluster.device import Device
from raydistill.cluster.group import Group
from raydistill.config.loading import load_config
from raydistill.config.tree import Config
from raydistill.data.rows import read_texts
from raydistill.evaluate.compare import Predictions, read_predictions
from raydistill.pipeline.context import Context
from raydistill.pipeline.distill import distill
from raydistill.pipeline.job import Job
from raydistill.pipeline.prepare import prepare
from raydistill.search.sharing import Shared, share
from raydistill.search.trial import trial_config
from raydistill.storage.artifacts import Artifact
from raydistill.storage.board import Board
from raydistill.storage.manifest import KINDS
from raydistill.storage.ownership import Owner
from raydistill.storage.storage import Storage
from raydistill.train.schedule import Schedule

COUNTING = Path(__file__).parent / "counting"


def make_context(job: Job) -> Context:
    """A job's tools in this process."""
    board = Board(job.storage, job.run_parts, job.owner, listener=lambda entry: None)
    return Context(job, Group(Device().torch_device), Device(), board)


def make_shared(plain: dict[str, Any]) -> Shared:
    """What the trials of a sweep share, made in this process instead of in a worker group."""
    config = load_config(plain)
    prepared = prepare(config, Storage(config.storage))
    job = prepared.job(Owner.acquire(prepared.storage, "runs", prepared.run_key), None)  # not tracked
    return share(make_context(job))


def read_weights(folder: str | Path) -> dict[str, torch.Tensor]:
    """Weights of a Hugging Face folder."""
    return safetensors.torch.load_file(Path(folder) / "model.safetensors")


def same_weights(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def keys_by_kind(storage: Storage, *without: str) -> dict[str, set[str]]:
    """Keys of the whole artefacts of each kind."""
    return {
        kind: {key for key in storage.list(kind) if len(key) == 20 and Artifact(storage, kind, key).exists()}
        for kind in KINDS
        if kind not in without
    }


def texts_of_test_rows(results: Mapping[str, Any]) -> list[list[str]]:
    """The texts of a run's test rows, one column or two."""
    storage = Storage(results["config"]["storage"])
    (data,) = artifacts_of_run(storage, find_run(results, storage))["data"]
    return [column.to_pylist() for column in read_texts(data, "test")]


def perturbed_artifacts(results: Mapping[str, Any]) -> tuple[Artifact, Artifact]:
    """The tokens of a run's perturbed rows, and what models say of them."""
    storage = Storage(results["config"]["storage"])
    made = artifacts_of_run(storage, find_run(results, storage))
    (tokens,) = [one for one in made["tokens"] if "perturbed" in one.manifest().recipe]
    (found,) = [one for one in made["evaluation"] if one.manifest().recipe["tokens"] == tokens.digest]
    return tokens, found


def check_artifacts(storage: Storage) -> int:
    """Verify every file of every artefact and return how many artefacts there are; nothing half-made may lie around."""
    found = [Artifact(storage, kind, key) for kind, keys in keys_by_kind(storage).items() for key in keys]
    for artifact in found:
        artifact.local(verify=True)
    for kind in KINDS:
        assert {key for key in storage.list(kind) if len(key) == 20} == keys_by_kind(storage)[kind]
    return len(found)


def artifacts_of_run(storage: Storage, run_key: str) -> dict[str, list[Artifact]]:
    """What a run refers to, by kind."""
    made: dict[str, list[Artifact]] = {}
    for name in storage.read_json("runs", run_key, "run.json")["artifacts"]:
        kind, key = name.split("/")
        made.setdefault(kind, []).append(Artifact(storage, kind, key))
    return made


def only_run_key(storage: Storage) -> str:
    (key,) = storage.list("runs")
    return key


def find_run(results: dict[str, Any], storage: Storage) -> str:
    """Key of the run that made these results."""
    ended = [key for key in storage.list("runs") if storage.exists("runs", key, "run.json")]
    (key,) = [key for key in ended if storage.read_json("runs", key, "run.json")["run_id"] == results["run_id"]]
    return key


def predictions(results: dict[str, Any], storage: Storage, split: str = "test") -> Predictions:
    """Stored logits of the run that made these results, of the rows as they are."""
    made = artifacts_of_run(storage, find_run(results, storage))["evaluation"]
    (artifact,) = [one for one in made if "measured" in one.manifest().recipe]
    return read_predictions(artifact.local(), split)


def mlflow_runs(uri: str) -> list[Run]:
    client = MlflowClient(tracking_uri=uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return list(client.search_runs(experiments))


def metric_steps(uri: str, run_id: str, key: str) -> list[int]:
    return [metric.step for metric in MlflowClient(tracking_uri=uri).get_metric_history(run_id, key)]


def versions(uri: str, name: str = "toy") -> list[Any]:
    return list(MlflowClient(tracking_uri=uri).search_model_versions(f"name = '{name}'"))


def recorded_rows(artifact: Artifact) -> np.ndarray:
    """Row ids of all the shard files that lie in a signal's folder, sorted."""
    import pyarrow as pa

    names = [name for name in artifact.names() if name.endswith(".arrow")]
    folder = artifact.local(verify=True)
    batches = [pa.ipc.open_file(pa.memory_map(str(folder / name))).get_batch(0) for name in names]
    return np.sort(np.concatenate([batch.column("row_id").to_numpy() for batch in batches]))


def replay(config: Config, schedule: Schedule, storage: Path, seed: int | None = None) -> Path:
    """Let plain ``distill``, without Ray and in a storage of its own, train a trial's student; the model's folder."""
    folder = storage.parent
    made = trial_config(config, schedule, seed).model_dump(mode="json", exclude={"sweep"})
    made |= {"storage": str(storage), "train": made["train"] | {"num_workers": 0}}
    results = distill(load_config(write_config(folder, made, "replay.yaml")))
    return Path(results["student"]["path"])


def write_config(folder: Path, config: Mapping[str, Any], name: str = "config.yaml") -> Path:
    path = folder / name
    path.write_text(yaml.safe_dump(dict(config)))
    return path


class Command:
    """``raydistill distill``, or ``sweep``, in a process of its own session, all that it does counted in a file."""

    sessions: ClassVar[dict[Path, set[int]]] = {}
    """By count file. A process that was forked has in /proc the environment of the one that forked it."""

    def __init__(
        self,
        config: Path,
        counts: Path,
        *,
        name: str = "distill",
        within: Sequence[str] = (),
        is_fresh: bool = False,
        **environment: str,
    ) -> None:
        """``within``: a command that runs it, such as nsenter. ``is_fresh``: in an interpreter that has yet to import
        everything, for what is about the start."""
        self.counts = counts
        # files and not pipes: what a killed driver leaves behind would hold a pipe open
        self.out, self.err = (counts.with_name(f"{uuid.uuid4().hex[:8]}.{kind}") for kind in ("out", "err"))
        clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        python_path = [str(COUNTING), *filter(None, clean.get("PYTHONPATH", "").split(os.pathsep))]
        settings = {
            "PYTHONPATH": os.pathsep.join(python_path),
            "RAYDISTILL_COUNT_FILE": str(counts),
            "OMP_NUM_THREADS": "1",
        }
        words, whole = [name, str(config), "--json"], {**clean, **settings, **environment}
        if within:  # a place of which it is tested what it does to a store that is being made
            whole.pop(TEMPLATE, None)
        self.process: Started | subprocess.Popen[bytes]
        if within or is_fresh:
            code = "from raydistill.cli.main import main; main()"
            with self.out.open("w") as out, self.err.open("w") as err:
                self.process = subprocess.Popen(
                    [*within, sys.executable, "-c", code, *words],
                    env=whole,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=err,
                    start_new_session=True,
                )
        else:
            self.process = start(words, whole, self.out, self.err)
        self.sessions.setdefault(counts, set()).add(self.process.pid)

    def lines(self) -> list[str]:
        return self.counts.read_text().splitlines() if self.counts.exists() else []

    def wait_until(self, condition: Callable[[], bool], seconds: float = 300.0) -> bool:
        """Wait for the condition; False where the process ended before."""
        deadline = time.monotonic() + seconds
        while not condition():
            if self.process.poll() is not None:
                return False
            assert time.monotonic() < deadline, f"the run stands still: {self.err.read_text()}"
            time.sleep(0.005)
        return True

    def wait_for_line(self, start: str) -> bool:
        return self.wait_until(lambda: any(line.startswith(start) for line in self.lines()))

    def end(self, seconds: float = 400.0) -> tuple[int, dict[str, Any], str]:
        """Wait for the end: exit code, the JSON object of stdout, stderr."""
        code = self.process.wait(seconds)
        text = self.out.read_text()
        return code, json.loads(text) if text.strip() else {}, self.err.read_text()

    def results(self, seconds: float = 400.0) -> dict[str, Any]:
        """What it found, once it has ended well."""
        code, found, err = self.end(seconds)
        assert code == 0, f"exit code {code}\n{err}"
        return found

    def __enter__(self) -> Command:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Nothing of it is left, nor of commands with the same count file."""
        left = self.clean_up()
        assert kind is not None or left == [], left

    def kill(self, signum: int) -> None:
        """Send a signal to the command alone, not to the processes it has started."""
        self.process.send_signal(signum)

    def left_processes(self) -> list[psutil.Process]:
        """Living processes that this command, or another with the same count file, or its children started."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, ProcessLookupError):
                is_counted = process.environ().get("RAYDISTILL_COUNT_FILE") == str(self.counts)
                if is_counted or os.getsid(process.pid) in self.sessions[self.counts]:
                    found.append(process)
        return found

    def clean_up(self, seconds: float = 60.0) -> list[str]:
        """Wait until all its processes are gone, then kill the rest; what was left.

        An agent of Ray's that is starting when its raylet is killed looks for it five times, two seconds apart, before
        it ends: 10 s on idle cores, above 20 on busy ones.
        """
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(20)
        _, alive = psutil.wait_procs(self.left_processes(), timeout=seconds)
        names = [process.name() for process in alive]
        for process in alive:
            with suppress(psutil.Error):
                process.kill()
        return names
