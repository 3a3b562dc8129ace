"""Promotions as processes: killed at random calls of the registry, and two at once."""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from kit.forked import run_command
from kit.registered import LENIENT, aliases, make_life
from kit.servers import free_port, start_server, stop_server
from mlflow import MlflowClient

from raydistill.deploy.gate.promotion import promote, rollback
from raydistill.storage.storage import Storage
from raydistill.tracking.endpoint import tracking_uri
from raydistill.tracking.registry.aliases import move_champion

pytestmark = pytest.mark.slow

GATE = LENIENT.model_copy(update={"max_latency_ratio": None})
"""To measure how fast models are takes 2 s a promotion, and calls nothing that could be cut off."""
CALLS = ("set_model_version_tag", "set_registered_model_alias", "delete_registered_model_alias", "create_run")
CALLS += ("log_batch", "log_artifacts", "set_terminated")


def kill_at_call(number: int, made: Path) -> None:
    """Let this process die before that call of the registry; the calls are written to a file."""

    def counted(plain: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            with made.open("a+") as file:
                file.seek(0)
                if len(file.readlines()) == number:
                    os.kill(os.getpid(), signal.SIGKILL)
                file.write(f"{plain.__name__}\n")
            return plain(*arguments, **named)

        return call

    for name in CALLS:
        setattr(MlflowClient, name, counted(getattr(MlflowClient, name)))


@pytest.fixture(autouse=True)
def gate(tmp_path: Path) -> None:
    (tmp_path / "gate.yaml").write_text(json.dumps(GATE.model_dump()))


def command(place: Storage, kill_at: int, *words: str) -> tuple[int, list[str]]:
    """Exit code of a command that dies before that call, or at none, and the calls that it made."""
    folder = Path(place.root).parent
    gate = ["--gate", str(folder / "gate.yaml")] if words[0] == "promote" else []
    (made := folder / "made").write_text("")
    before = partial(kill_at_call, kill_at, made)
    done = run_command(*words, "--storage", place.root, *gate, folder=folder, before=before)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode, made.read_text().split()


def test_kill_9_at_random_calls_never_leaves_the_name_without_a_champion(place: Storage) -> None:
    """Promote and roll back, each killed before a call drawn at random, then repeated to its end."""
    move_champion("toy", 1, None, tracking_uri(place))
    draw = random.Random(4)
    code, calls = command(place, -1, "promote", "toy")
    assert code == 0
    previous = calls.index("set_registered_model_alias")
    champion = calls.index("set_registered_model_alias", previous + 1)
    assert 10 <= previous < champion < len(calls) - 1
    rollback("toy", storage=place.root)
    for number in [champion, *draw.sample(range(champion), 3)]:
        assert command(place, number, "promote", "toy") == (-signal.SIGKILL, calls[:number])
        assert aliases(place)["champion"] == 1
        assert promote("toy", gate=GATE, storage=place.root)["verdict"] == "passed"
        assert aliases(place) == {"challenger": 3, "champion": 3, "previous": 1}
        assert command(place, 1, "rollback", "toy")[0] == -signal.SIGKILL
        assert aliases(place)["champion"] == 1
        rollback("toy", storage=place.root)
        assert aliases(place) == {"challenger": 3, "champion": 1}
    assert command(place, draw.randrange(champion + 1, len(calls)), "promote", "toy")[0] == -signal.SIGKILL
    assert aliases(place) == {"challenger": 3, "champion": 3, "previous": 1}
    assert promote("toy", gate=GATE, storage=place.root)["verdict"] == "unchanged"


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
        assert promote("toy", version=1, gate=GATE, storage=url)["moved"]
        assert promote("toy", version=2, gate=GATE, storage=url)["verdict"] == "refused"
        verdict = promote("toy", gate=GATE, storage=url)
        assert (verdict["verdict"], verdict["champion"]) == ("passed", 1)
        assert aliases(place) == {"challenger": 3, "champion": 3, "previous": 1}
        assert rollback("toy", storage=url)["now"] == 1
        assert aliases(place) == {"challenger": 3, "champion": 1}
    finally:
        stop_server(server)
