"""Small artefacts, and other processes that can be killed at a given moment."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

from raydistill.storage.artifacts import Artifact

KEY = "0123456789abcdef0123"


OTHER = "fedcba98765432100123"


def fill(artifact: Artifact, text: str = "content", parents: dict[str, str] | None = None) -> Artifact:
    with replace(artifact, recipe={"text": text}, parents=parents or {}).write() as folder:
        (folder / "a.txt").write_text(text)
        (folder / "sub").mkdir()
        (folder / "sub" / "b.bin").write_bytes(bytes(range(256)))
    return artifact


def start(script: str, *args: str) -> subprocess.Popen[str]:
    """Run a script in another process; it says "ready" when the interesting moment has come."""
    names = {"artifacts": "Artifact", "storage": "Storage", "ownership": "Owner", "locks": "lock"}
    imports = [f"from raydistill.storage.{module} import {name}" for module, name in names.items()]
    code = "\n".join(["import os, sys, time", *imports, ""]) + textwrap.dedent(script)
    return subprocess.Popen(
        [sys.executable, "-c", code, *args], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def wait_for(process: subprocess.Popen[str], word: str = "ready") -> None:
    assert process.stdout is not None
    assert process.stdout.readline().strip() == word


def say_go(process: subprocess.Popen[str]) -> None:
    """Answer the line that the process waits for."""
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


def damage(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "truncated":
        path.write_bytes(data[:-1])
    elif how == "flipped":
        data[100] ^= 1
        path.write_bytes(data)
    else:
        path.unlink()
