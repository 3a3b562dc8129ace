"""What a job says: its log line by line, and at the end the result, shown as the same command here would show it."""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from raydistill.cli.console import CommandResult
from raydistill.errors import Interrupted, RaydistillError
from raydistill.storage.redaction import redact

if TYPE_CHECKING:
    from rich.console import Console

TAIL_LINES = 15
OF_RAY = re.compile(r"Running entrypoint for job |\S+ \S+\tINFO \w+\.py:\d+ -- ")
"""Lines of Ray's job server about itself."""
MISSING = re.compile(r"No module named '?([\w.]+)'?$", re.MULTILINE)


class Transcript:
    """Takes a job's log in pieces and hands on its lines, without credentials; the last JSON object is the result.

    It may follow on a line what a library printed without ending it.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self.result: dict[str, Any] | None = None
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self.part = ""
        self.seen = self.skip = 0

    def rewind(self) -> None:
        """The log comes from its beginning again, as after a lost connection: what was seen is passed over."""
        self.skip = self.seen

    def feed(self, text: str) -> None:
        passed = min(self.skip, len(text))
        self.skip -= passed
        self.seen += len(text) - passed
        *lines, self.part = (self.part + text[passed:]).split("\n")
        for line in lines:
            self.take(line.rstrip("\r"))

    def close(self) -> None:
        """Take the last line, which may lack its end."""
        if self.part:
            self.take(self.part)
            self.part = ""

    def take(self, line: str) -> None:
        if (found := json_object(line)) is None and (start := line.find('{"')) > 0:
            found = json_object(line[start:])
        if found is not None:
            self.result = found
        elif not OF_RAY.match(line):
            self.tail.append(redact(line))
            self.say(redact(line))


def json_object(line: str) -> dict[str, Any] | None:
    if not (line.startswith("{") and line.endswith("}")):
        return None
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def read(log: str, say: Callable[[str], None] = lambda line: None) -> Transcript:
    """A whole log at once."""
    transcript = Transcript(say)
    transcript.feed(log)
    transcript.close()
    return transcript


def outcome(job: Mapping[str, Any], command: str, transcript: Transcript) -> CommandResult:
    """The job's result with its exit code. Raises the error that ended it.

    ``job``: ``id``, ``status``, ``exit_code`` and ``message``, as jobs.describe gives them.
    """
    result = transcript.result
    if result is None or job["exit_code"] is None or set(result) == {"error"}:
        raise failure(job, transcript)
    found = result
    return CommandResult(lambda: found, lambda console: show(command, console, found), job["exit_code"])


def failure(job: Mapping[str, Any], transcript: Transcript) -> RaydistillError:
    """The error that ended a job: its own, or what its log and Ray's job server tell."""
    result = transcript.result or {}
    if isinstance(told := result.get("error"), Mapping):
        known = {kind.__name__: kind for kind in RaydistillError.__subclasses__()}
        error = known.get(str(told.get("type")), RaydistillError)(str(told.get("message")))
        error.exit_code = job["exit_code"] if job["exit_code"] in (1, 2, 3, 130) else error.exit_code
        return error
    if job["status"] == "STOPPED":
        return Interrupted(f"Job {job['id']} was stopped before it could say more; the last checkpoint is kept.")
    return RaydistillError(f"Job {job['id']} failed: {reason(job, transcript)}")


def reason(job: Mapping[str, Any], transcript: Transcript) -> str:
    """Why a job failed that printed no result of its own."""
    log, code = "\n".join(transcript.tail), job["exit_code"]
    if (missing := MISSING.search(log)) is not None:
        return (
            f"the cluster's image lacks {missing[1]}. Install raydistill with what it needs there (in cluster.yaml: "
            "setup_commands), in the Python that comes first in the head node's PATH."
        )
    if code is not None and (code < 0 or code > 128):
        return (
            f"its driver was killed by signal {-code if code < 0 else code - 128}, on the head node; 9 is often a lack "
            f"of memory there. The same command goes on from the last checkpoint.\n{log}"
        )
    return (job["message"] if code is None else log) or "its log is empty."


def show(command: str, console: Console, result: Mapping[str, Any]) -> None:
    """Print the result of a command that ran elsewhere as it does itself; as JSON where another raydistill made it."""
    try:
        match command:
            case "distill":
                from raydistill.cli.show.results import print_distilled
                from raydistill.config.loading import load_config

                print_distilled(console, result, load_config(result["config"]))
            case "sweep":
                from raydistill.cli.show.sweep import print_sweep

                print_sweep(console, result)
            case "evaluate":
                from raydistill.deploy.inference import print_scores

                print_scores(console, result)
            case "promote":
                from raydistill.cli.show.gate import print_verdict

                print_verdict(console, result)
            case "doctor":
                from raydistill.cli.doctor.checks import Check, print_checks

                print_checks(console, [Check(**check) for check in result["checks"]])
            case _:
                console.print_json(data=dict(result))
    except (RaydistillError, KeyError, TypeError, AttributeError):
        console.print_json(data=dict(result))
