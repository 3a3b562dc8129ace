"""How torch's threads wait: told in time by whatever loads raydistill first, and said where it is too late."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

POLICY = "OMP_WAIT_POLICY"


def start(code: str, **environment: str) -> str:
    """What Python says on stderr, with what OpenMP shows of its settings when torch loads it."""
    clean = {name: value for name, value in os.environ.items() if name != POLICY}
    command = [sys.executable, "-c", code]
    shown = {"OMP_DISPLAY_ENV": "TRUE"}
    done = subprocess.run(command, env=clean | shown | environment, capture_output=True, text=True, check=True)
    return done.stderr


@pytest.mark.parametrize("code", ["import raydistill, torch", "from raydistill.losses import ForwardKl"])
def test_torch_that_is_loaded_after_raydistill_lets_its_threads_sleep(code: str) -> None:
    said = start(code)
    assert f"{POLICY} = 'PASSIVE'" in said
    assert "UserWarning" not in said


def test_what_the_user_has_set_stays() -> None:
    said = start("import raydistill, torch", OMP_WAIT_POLICY="ACTIVE")
    assert f"{POLICY} = 'ACTIVE'" in said
    assert "UserWarning" not in start("import torch, raydistill", OMP_WAIT_POLICY="ACTIVE")


def test_a_torch_that_was_there_before_is_told_of() -> None:
    said = start(
        "import torch, os\nimport raydistill\nassert os.environ['OMP_WAIT_POLICY'] == 'PASSIVE'"
    )  # for workers
    assert "<string>:2: UserWarning: torch was loaded before raydistill" in said
    assert f"{POLICY}=PASSIVE" in said
