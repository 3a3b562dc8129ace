"""Commands in processes that a server forks which has imported everything: where it is not the start that is tested."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from kit.ranks import CONTEXT, PRELOADED, take_environment
from kit.started import LIBRARIES
from raydistill.cli.main import execute

CONTEXT.set_forkserver_preload([*PRELOADED, "raydistill.deploy.gate.promotion", *LIBRARIES])


def _command_main(
    environment: dict[str, str], folder: str, said: tuple[str, str], before: Callable[[], None], words: Sequence[str]
) -> None:
    take_environment(environment)
    os.chdir(folder)
    for descriptor, path in enumerate(said, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
    before()
    sys.exit(execute(words))


def run_command(
    *words: str, folder: Path, before: Callable[[], None] = int, seconds: float = 240.0
) -> subprocess.CompletedProcess[str]:
    """Run ``raydistill`` with these words in a folder, on no terminal; ``before`` is called first in its process."""
    with tempfile.TemporaryDirectory() as place:
        out, err = (Path(place) / name for name in ("out", "err"))
        process = CONTEXT.Process(
            target=_command_main, args=(dict(os.environ), str(folder), (str(out), str(err)), before, words)
        )
        process.start()
        process.join(seconds)
        assert process.exitcode is not None, err.read_text()
        return subprocess.CompletedProcess(words, process.exitcode, out.read_text("utf-8"), err.read_text("utf-8"))
