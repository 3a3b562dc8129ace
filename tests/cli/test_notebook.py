"""What Python shows: progress where somebody looks, results as a table that are still a plain dict."""

from __future__ import annotations

import copy
import json
import pickle
import sys
import types
from typing import Any

import pytest

from raydistill.cli.console import Progress
from raydistill.cli.notebook import NotebookProgress, Result, in_notebook, shown
from raydistill.cli.show.sweep import Table


class Handle:
    """Stands for the cell's output that IPython can change."""

    def __init__(self, texts: list[str]) -> None:
        self.texts = texts

    def update(self, content: dict[str, str], raw: bool) -> None:
        self.texts.append(content["text/plain"])


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """IPython as in a Jupyter kernel; what the cell showed, one text after the other."""
    texts: list[str] = []

    def display(content: dict[str, str], raw: bool, display_id: bool) -> Handle:
        texts.append(content["text/plain"])
        return Handle(texts)

    shell = types.SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "IPython.display", types.SimpleNamespace(display=display))  # type: ignore[arg-type]
    return texts


def test_a_notebook_gets_a_line_for_each_phase_and_the_present_one_changes(kernel: list[str]) -> None:
    assert in_notebook()
    with shown(None) as show:
        assert isinstance(show, NotebookProgress)
        show.INTERVAL_S = 0.0
        show({"phase": "prepare"})
        for done in (1, 2):
            show({"phase": "train", "done": done, "total": 4, "unit": "steps", "rate": 2.0})
    assert len(kernel) == 3
    assert [len(text.splitlines()) for text in kernel] == [1, 2, 2]
    assert "1/4 steps" in kernel[1]
    assert "2/4 steps" in kernel[2]
    assert "1/4" not in kernel[2]


def test_it_changes_at_most_five_times_a_second(kernel: list[str]) -> None:
    with shown(None) as show:
        assert show is not None
        for done in range(1000):
            show({"phase": "train", "done": done, "total": 1000})
        assert len(kernel) < 100
        show({"phase": "evaluate"})  # another phase always shows
    assert "evaluate" in kernel[-1]


@pytest.mark.parametrize(("is_sweep", "kind"), [(False, Progress), (True, Table)])
def test_a_terminal_gets_what_the_command_shows(
    is_sweep: bool, kind: type, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with shown(None, is_sweep=is_sweep) as show:
        assert isinstance(show, kind)


def test_it_is_silent_where_nobody_looks_or_when_told_so(kernel: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with shown(False) as show:
        assert show is None
    monkeypatch.delitem(sys.modules, "IPython")
    with shown(None) as show:
        assert show is None
    entries: list[Any] = []
    with shown(entries.append) as show:
        assert show == entries.append


def print_it(console: Any, content: dict[str, Any]) -> None:
    console.print(f"{content['name']}: 87.5", markup=False)


def test_a_result_is_a_plain_dict_that_shows_itself() -> None:
    content = {"name": "<b>\x1b]0;x", "values": [1, {"a": None}]}
    found = Result(content, f"{__name__}:print_it")
    assert found == content
    assert json.loads(json.dumps(found)) == content
    for twin in (pickle.loads(pickle.dumps(found)), copy.deepcopy(found)):
        html = twin._repr_html_()
        assert html.startswith("<pre")
        assert ": 87.5" in html
        assert "<b>" not in html
        assert "\x1b" not in html
