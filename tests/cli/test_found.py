"""Which run or sweep `raydistill report` draws."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from raydistill.cli.found import find_finished
from raydistill.errors import ConfigError
from raydistill.storage.storage import Storage


def finish(storage: Storage, key: str, kind: str = "run", schema: int | None = None) -> None:
    storage.write_json({"run_id": f"{key}-in-mlflow"}, "runs", key, "run.json")
    file = {"run": "results.json", "sweep": "sweep.json"}[kind]
    storage.write_json({"schema": schema or {"run": 2, "sweep": 1}[kind], "of": key}, "runs", key, file)
    time.sleep(0.02)  # file times of some kernels step by 10 ms


@pytest.mark.parametrize("kind", ["local", "memory"])
def test_by_key_or_the_newest(tmp_path: Path, kind: str) -> None:
    storage = Storage(tmp_path if kind == "local" else f"memory://{tmp_path.name}")
    with pytest.raises(ConfigError, match="no finished run or sweep"):
        find_finished(storage, None)
    storage.write_json({}, "runs", "0000", "run.json")  # not finished
    finish(storage, "abc1")
    finish(storage, "fff1", "sweep")
    finish(storage, "abd2", "sweep")
    finish(storage, "ccc3")
    newest = find_finished(storage, None)
    assert (newest.kind, newest.key, newest.content["of"]) == ("run", "ccc3", "ccc3")
    assert find_finished(storage, "f").kind == "sweep"
    assert find_finished(storage, "abc").key == "abc1"
    assert find_finished(storage, "abd2-in-ml").key == "abd2"  # by the id of its MLflow run
    with pytest.raises(ConfigError, match="No run 'x'"):
        find_finished(storage, "x")
    with pytest.raises(ConfigError, match="2 runs begin with 'ab': abc1, abd2"):
        find_finished(storage, "ab")
    with pytest.raises(ConfigError, match="No run '0000'"):
        find_finished(storage, "0000")


@pytest.mark.parametrize("kind", ["run", "sweep"])
def test_another_schema_is_refused(tmp_path: Path, kind: str) -> None:
    storage = Storage(tmp_path)
    finish(storage, "new", kind, schema=7)
    with pytest.raises(ConfigError, match=r"schema 7.*reads schema [12]"):
        find_finished(storage, "new")
