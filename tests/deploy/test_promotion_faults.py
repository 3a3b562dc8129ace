"""Promotions as processes: killed at random calls of the registry, and two at once."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from kit.registered import LENIENT, aliases, make_life
from kit.servers import free_port, start_server, stop_server

from raydistill.deploy.gate.promotion import promote, rollback
from raydistill.storage.storage import Storage
from raydistill.tracking.endpoint import tracking_uri
from raydistill.tracking.registry.aliases import move_champion

pytestmark = pytest.mark.slow

PROCESS = """
import os, signal, sys
from mlflow import MlflowClient
from raydistill.cli.main import execute

number, made = int(sys.argv[1]), []
names = ("set_model_version_tag", "set_registered_model_alias", "delete_registered_model_alias", "create_run")
names += ("log_batch", "log_artifacts", "set_terminated")

def counted(plain):
    def call(*arguments, **named):
        if len(made) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        made.append(plain.__name__)
        return plain(*arguments, **named)
    return call

for name in names:
    setattr(MlflowClient, name, counted(getattr(MlflowClient, name)))
code = execute(sys.argv[2:])
print(*made, file=sys.stderr)
sys.exit(code)
"""


@pytest.fixture(autouse=True)
def gate(tmp_path: Path) -> None:
    (tmp_path / "gate.yaml").write_text(json.dumps(LENIENT.model_dump()))


def command(place: Storage, kill_at: int, *arguments: str) -> subprocess.Popen[str]:
    gate = ["--gate", str(Path(place.root).parent / "gate.yaml")] if arguments[0] == "promote" else []
    line = [sys.executable, "-c", PROCESS, str(kill_at), *arguments, "--storage", place.root, *gate]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)


def test_kill_9_at_random_calls_never_leaves_the_name_without_a_champion(place: Storage) -> None:
    """Promote and roll back, each killed before a call drawn at random, then repeated to its end."""
    move_champion("toy", 1, None, tracking_uri(place))
    draw = random.Random(4)
    with command(place, -1, "promote", "toy") as process:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
    calls = said.strip().splitlines()[-1].split()
    previous = calls.index("set_registered_model_alias")
    champion = calls.index("set_registered_model_alias", previous + 1)
    assert 10 <= previous < champion < len(calls) - 1
    rollback("toy", storage=place.root)
    for number in [champion, *draw.sample(range(champion), 3)]:
        with command(place, number, "promote", "toy") as process:
            process.communicate(timeout=120)
            assert process.returncode == -signal.SIGKILL
        assert aliases(place)["champion"] == 1
        assert promote("toy", gate=LENIENT, storage=place.root)["verdict"] == "passed"
        assert aliases(place) == {"challenger": 3, "champion": 3, "previous": 1}
        with command(place, 1, "rollback", "toy") as process:
            process.communicate(timeout=120)
            assert process.returncode == -signal.SIGKILL
        assert aliases(place)["champion"] == 1
        rollback("toy", storage=place.root)
        assert aliases(place) == {"challenger": 3, "champion": 1}
    with command(place, draw.randrange(champion + 1, len(calls)), "promote", "toy") as process:
        process.communicate(timeout=120)
        assert process.returncode == -signal.SIGKILL
    assert aliases(place) == {"challenger": 3, "champion": 3, "previous": 1}
    assert promote("toy", gate=LENIENT, storage=place.root)["verdict"] == "unchanged"


def test_it_is_the_same_with_a_server_and_storage_behind_a_url(
    s3_storage_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    server = start_server(tmp_path, port)
    url = f"{s3_storage_url}/promotion"
    try:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("RAYDISTILL_CACHE", str(tmp_path / "node-cache"))
        make_life(tmp_path, storage=url)
        place = Storage(url)
        assert promote("toy", version=1, gate=LENIENT, storage=url)["moved"]
        assert promote("toy", version=2, gate=LENIENT, storage=url)["verdict"] == "refused"
        verdict = promote("toy", gate=LENIENT, storage=url)
        assert (verdict["verdict"], verdict["champion"]) == ("passed", 1)
        assert aliases(place) == {"challenger": 3, "champion": 3, "previous": 1}
        assert rollback("toy", storage=url)["now"] == 1
        assert aliases(place) == {"challenger": 3, "champion": 1}
    finally:
        stop_server(server)
