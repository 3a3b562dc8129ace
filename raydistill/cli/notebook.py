"""What Python shows of long work and its results: a bar in a terminal; in a notebook lines that change, and a table."""

from __future__ import annotations

import importlib
import io
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from raydistill.cli.console import Progress, describe_progress
from raydistill.storage.redaction import harmless

Show = Callable[[Mapping[str, Any]], None]
WIDTH = 100


class Result(dict[str, Any]):
    """A plain dict that a notebook shows as the command prints it; ``printer``: ``module:function`` that does so."""

    def __init__(self, content: Mapping[str, Any], printer: str) -> None:
        super().__init__(content)
        self._printer = printer

    def _repr_html_(self) -> str:
        from rich.console import Console

        module, _, function = self._printer.partition(":")
        console = Console(record=True, file=io.StringIO(), width=WIDTH, force_jupyter=False, highlight=False)
        getattr(importlib.import_module(module), function)(console, self)
        return harmless(console.export_html(inline_styles=True, code_format="<pre>{code}</pre>"))


@contextmanager
def shown(progress: Show | bool | None, *, is_sweep: bool = False) -> Iterator[Show | None]:
    """Yield what is told of long work: ``progress`` itself, a display where somebody looks, or None (False: never)."""
    if callable(progress):
        yield progress
    elif progress is False:
        yield None
    elif in_notebook():
        yield NotebookProgress()
    elif sys.stderr.isatty():
        from raydistill.cli.show.sweep import Table

        with Table() if is_sweep else Progress() as display:
            yield display
    else:
        yield None


def in_notebook() -> bool:
    """Whether a Jupyter kernel runs this."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return getattr(shell, "kernel", None) is not None


class NotebookProgress:
    """A line for each phase; that of the present one changes, at most five times a second."""

    INTERVAL_S = 0.2

    def __init__(self) -> None:
        self.lines: dict[str, str] = {}
        self.start, self.last, self.handle = time.monotonic(), 0.0, None

    def __call__(self, entry: Mapping[str, Any]) -> None:
        now, phase = time.monotonic(), entry["phase"]
        is_new = phase not in self.lines
        if not is_new and now - self.last < self.INTERVAL_S:
            return
        self.last = now
        self.lines[phase] = f"{now - self.start:7.1f} s  {self.describe(entry)}"
        self.display("\n".join(self.lines.values()))

    def describe(self, entry: Mapping[str, Any]) -> str:
        if "trials" not in entry:
            return describe_progress(entry)
        from raydistill.cli.show.trials import Search, overview, tally

        search = Search.of(entry)
        return f"{search.phase}: {overview(search)}; {tally(search)}"

    def display(self, text: str) -> None:
        from IPython.display import display

        content = {"text/plain": harmless(text)}
        if self.handle is None:
            self.handle = display(content, raw=True, display_id=True)
        else:
            self.handle.update(content, raw=True)
