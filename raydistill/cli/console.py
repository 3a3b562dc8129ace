"""What a command prints and how it ends: results on stdout, all else on stderr, one JSON object with --json.

Exit codes: 0 done, 1 failure, 2 usage or config error, 3 a gate refused, 130 interrupted.
"""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, cast

from raydistill.errors import RaydistillError
from raydistill.storage.redaction import harmless, redact

if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status

REFUSED, INTERRUPTED = 3, 130
UNWRAPPED = 10_000  # columns


@dataclass(frozen=True)
class CommandResult:
    """What a command hands back; only one of the two functions is called."""

    data: Callable[[], Mapping[str, Any]]
    """The object for --json."""
    show: Callable[[Console], None]
    """Prints the same for people."""
    exit_code: int = 0


class HarmlessStream:
    """A text stream whose control characters other than rich's colours are shown and not obeyed."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        self.stream.write(harmless(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def stdout_console() -> Console:
    from rich.console import Console

    # what reads a pipe or a file wants whole lines; rich would take 80 columns
    return Console(highlight=False, width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else UNWRAPPED)


def stderr_console() -> Console:
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


class Progress:
    """Shows what long work says of itself, on stderr: a bar on a terminal, elsewhere a line now and then.

    An entry holds `phase`, `done`, `total`, `unit`, `rate` (units a second) and `note`.
    """

    LINE_SECONDS = 10.0

    def __init__(self) -> None:
        self.start = time.monotonic()
        self.console = stderr_console()
        self.last_line = -self.LINE_SECONDS
        self.last_phase = ""
        self.status: Status | None = None

    def __call__(self, entry: Mapping[str, Any]) -> None:
        from rich.text import Text

        now = time.monotonic() - self.start
        is_new = entry["phase"] != self.last_phase
        if self.console.is_terminal:
            if self.status is None:
                self.status = self.console.status("")
                self.status.start()
            self.status.update(Text(describe_progress(entry)))
        if is_new or (not self.console.is_terminal and now - self.last_line >= self.LINE_SECONDS):
            self.last_line, self.last_phase = now, entry["phase"]
            self.console.print(f"{now:7.1f} s  {describe_progress(entry)}", style="dim", markup=False)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self.status is not None:
            self.status.stop()


def describe_progress(entry: Mapping[str, Any]) -> str:
    """One line: phase, a bar, done of total, rate (below one a second: time of each), time left, note."""
    parts = [f"{entry['phase']:9}"]
    done, total, rate = entry.get("done", 0), entry.get("total", 0), entry.get("rate", 0.0)
    if total:
        filled = round(20 * min(done / total, 1))
        parts.append(f"{'━' * filled}{'╌' * (20 - filled)} {done:,}/{total:,} {entry.get('unit', '')}".rstrip())
    if total and rate > 0:
        left = max(total - done, 0) / rate
        speed = f"{rate:,.0f}/s" if rate >= 1 else f"{1 / rate:,.1f} s each"
        parts.append(f"{speed}, {int(left // 60)}:{int(left % 60):02} left")
    return harmless("  ".join([*parts, *([entry["note"]] if entry.get("note") else [])]).rstrip())


@contextmanager
def claimed_stdout(claim: bool) -> Iterator[Callable[[str], None]]:
    """Yield a function that writes to stdout; while `claim`, what anything else prints there goes to stderr.

    The file descriptor is redirected, so prints of libraries and of child processes count too.
    """
    if not claim:
        yield lambda text: print(text, flush=True)
        return
    sys.stdout.flush()
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as saved:
        os.dup2(2, 1)
        try:
            with redirect_stdout(sys.stderr):
                yield lambda text: print(text, file=saved, flush=True)
        finally:
            sys.stdout.flush()
            os.dup2(saved.fileno(), 1)


def run(command: Callable[[Sequence[str]], Any], arguments: Sequence[str], usage_error: type[Exception]) -> int:
    """Run one command line and return its exit code; nothing but RAYDISTILL_DEBUG=1 lets an exception through.

    `command` takes the arguments and returns a CommandResult, or an exit code (as --help does).
    """
    as_json = "--json" in arguments
    try:
        with claimed_stdout(as_json) as emit:
            try:
                outcome = command(arguments)
                if not isinstance(outcome, CommandResult):
                    return int(outcome or 0)
                if as_json:
                    emit(to_json(outcome.data()))
                else:
                    with redirect_stdout(cast("IO[str]", HarmlessStream(sys.stdout))):
                        outcome.show(stdout_console())
                sys.stdout.flush()
                return outcome.exit_code
            except BrokenPipeError:
                raise
            except KeyboardInterrupt:
                return fail(emit, as_json, "Interrupted", "interrupted", INTERRUPTED)
            except RaydistillError as error:
                return fail(emit, as_json, type(error).__name__, str(error), error.exit_code)
            except usage_error as error:
                return fail(emit, as_json, "UsageError", describe_usage(error, arguments), 2)
            except Exception as error:
                if os.environ.get("RAYDISTILL_DEBUG") == "1":
                    raise
                return fail(emit, as_json, type(error).__name__, describe_crash(error, arguments), 1)
    except BrokenPipeError:  # the reader went away, as `| head` does; Python must not flush into it at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0


def fail(emit: Callable[[str], None], as_json: bool, kind: str, message: str, exit_code: int) -> int:
    """Report an error in the way the user asked for, without credentials, and return the exit code."""
    message = redact(message)
    if as_json:
        emit(to_json({"error": {"type": kind, "message": message}}))
    else:
        from rich.text import Text

        stderr_console().print(Text.assemble(("error: ", "bold red"), (harmless(message), "red")))
    return exit_code


def describe_usage(error: Exception, arguments: Sequence[str]) -> str:
    """A usage error's message and where to read on."""
    for option, name, value in zip(arguments, arguments[1:], arguments[2:], strict=False):
        if option == "--set" and "=" not in name and not value.startswith("-"):  # what is left over is its value
            return f'--set {name} {value}: an "=" stands between name and value: --set {name}={value}'
    message = error.format_message() if hasattr(error, "format_message") else str(error)
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "raydistill"
    return f"{message or 'no command was given.'} See: {path} --help"


def describe_crash(error: Exception, arguments: Sequence[str]) -> str:
    """Write the traceback to a log file in the temporary folder and return one line that names it."""
    first = next((line for line in str(error).splitlines() if line.strip()), "no message")
    text = f"raydistill {' '.join(arguments)}\nPython {sys.version}\n\n{''.join(traceback.format_exception(error))}"
    prefix = f"raydistill-crash-{time.strftime('%Y%m%d-%H%M%S')}-"
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", prefix=prefix, suffix=".log", delete=False) as file:
        file.write(redact(text))
    return (
        f"unexpected {type(error).__name__}: {first[:300]}. This is a fault in raydistill or its surroundings; the "
        f"traceback is in {file.name}. please report it with that file. RAYDISTILL_DEBUG=1 shows it here."
    )


def to_json(value: Any) -> str:
    """One line of standard JSON: what is not finite becomes null."""
    return json.dumps(finite(value), allow_nan=False, default=str)


def finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): finite(below) for name, below in value.items()}
    if isinstance(value, list | tuple):
        return [finite(below) for below in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
