"""A job's log in pieces: lines without credentials, the result, and what is said of a job that has none."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydistill.cli.submit.answers import Transcript, failure, outcome, read
from raydistill.errors import ConfigError, Interrupted, RaydistillError

LOG = (
    "2026-11-25 01:31:36,036\tINFO job_manager.py:581 -- Runtime env is setting up.\n"
    "Running entrypoint for job x: exec python -m raydistill distill --json cfg.yaml\n"
    "    0.0 s  prepare\n"
    '{"looks": "like a result", "but": "is none"}\n'
    "\n"
    "{not json}\n"
    "    7.0 s  student  ━━╌╌ at http://me:pw@host\n"
    '{"verdict": "better", "text": "ü"}\n'
    "a last word"
)
LINES = ["    0.0 s  prepare", "", "{not json}", "    7.0 s  student  ━━╌╌ at http://***@host", "a last word"]


def job(status: str = "FAILED", exit_code: int | None = 1, message: str = "") -> dict[str, Any]:
    return {"id": "x", "status": status, "exit_code": exit_code, "message": message}


@given(st.lists(st.integers(0, len(LOG))), st.integers(0, len(LOG)))
def test_pieces_of_any_size_and_lost_connections(cuts: list[int], lost: int) -> None:
    lines: list[str] = []
    transcript = Transcript(lines.append)
    bounds = [0, *sorted(cuts), len(LOG)]
    transcript.feed(LOG[:lost])
    transcript.rewind()
    for start, end in pairwise(bounds):
        transcript.feed(LOG[start:end])
    transcript.close()
    assert lines == LINES
    assert transcript.result == {"verdict": "better", "text": "ü"}


def test_a_result_comes_with_the_exit_code_of_the_command() -> None:
    made = outcome(job("FAILED", 3), "promote", read(LOG))
    assert (made.exit_code, made.data()["verdict"]) == (3, "better")
    assert outcome(job("SUCCEEDED", 0), "distill", read(LOG)).exit_code == 0


@pytest.mark.parametrize(
    ("kind", "code", "expected"),
    [("ConfigError", 2, ConfigError), ("UsageError", 2, RaydistillError), ("TypeError", 1, RaydistillError)],
)
def test_errors_of_the_command_are_raised_here(kind: str, code: int, expected: type[Exception]) -> None:
    log = json.dumps({"error": {"type": kind, "message": "what happened"}})
    with pytest.raises(expected, match=r"^what happened$") as caught:
        outcome(job("FAILED", code), "distill", read(log))
    assert caught.type is expected
    assert caught.value.exit_code == code  # type: ignore[attr-defined]
    assert expected.exit_code in (1, 2)  # type: ignore[attr-defined]


def test_a_stopped_job_is_an_interruption() -> None:
    log = json.dumps({"error": {"type": "Interrupted", "message": "a checkpoint was written"}})
    error = failure(job("STOPPED", None), read(log))
    assert (type(error), str(error), error.exit_code) == (Interrupted, "a checkpoint was written", 130)
    error = failure(job("STOPPED", None), read("    0.0 s  prepare\n"))
    assert (type(error), error.exit_code) == (Interrupted, 130)
    assert "the last checkpoint is kept" in str(error)


@pytest.mark.parametrize(
    ("log", "made", "expected"),
    [
        ("/usr/bin/python: No module named raydistill\n", job(), "the cluster's image lacks raydistill. Install"),
        ("Traceback\nModuleNotFoundError: No module named 'torch'\n", job(), "the cluster's image lacks torch."),
        ("sh: 1: exec: python: not found\n", job(exit_code=127), "failed: sh: 1: exec: python: not found"),
        ("  9.0 s  student\n", job(exit_code=-9), "was killed by signal 9"),
        ("  9.0 s  student\n", job(exit_code=137), "was killed by signal 9"),
        ("Segmentation fault\n", job(exit_code=139), "was killed by signal 11"),
        ("something else\nin two lines\n", job(), "failed: something else\nin two lines"),
        ("", job(exit_code=None, message="runtime_env setup failed"), "failed: runtime_env setup failed"),
        ("", job(), "its log is empty"),
    ],
)
def test_reasons_where_the_command_gave_none(log: str, made: dict[str, Any], expected: str) -> None:
    with pytest.raises(RaydistillError) as caught:
        outcome(made, "distill", read(log))
    assert str(caught.value).startswith("Job x failed: ")
    assert expected in str(caught.value)


def test_a_result_on_a_line_that_a_library_began() -> None:
    assert read('Batches:  50%{"verdict": "better"}').result == {"verdict": "better"}


def test_a_result_of_another_version_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    made = outcome(job("SUCCEEDED", 0), "distill", read('{"verdict": "better", "unheard_of": 1}'))
    made.show(Console())
    assert "unheard_of" in capsys.readouterr().out
    assert made.exit_code == 0
