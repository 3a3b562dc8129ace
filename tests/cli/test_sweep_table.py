"""What a sweep looks like on a terminal and in a log, while it runs and at its end."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.summaries import make_summary
from rich.console import Console

from raydistill.cli.show.sweep import Table, print_sweep
from raydistill.cli.show.trials import MARK, STATES, Search, cell, draw, fit_rows, heading, minutes
from raydistill.config.sweep import Bounds
from raydistill.search.ledger import Trial

LOSSES = "stages.distill.losses"
STEPS = {"completed": 600, "stopped": 200, "running": 300}


def make_trial(number: int, state: Any, accuracy: float | None = None, **changes: Any) -> Trial:
    params = {
        f"{LOSSES}.kd.temperature": 1.0 + number / 3,
        f"{LOSSES}.kd.weight": 0.5,
        "student.num_layers": 2 + number % 3,
        "stages.distill.learning_rate": 1e-4 / (number + 1),
    }
    history = tuple({"step": s, "num_steps": 600, "seconds": s / 10} for s in range(100, STEPS.get(state, 0) + 1, 100))
    values = {} if accuracy is None else {"validation/accuracy": accuracy}
    facts = {"latency_ms": 1.0 + number}
    return Trial(number, params, state, None, facts, values, history, **{"seconds": len(history) * 10.0, **changes})


def make_trials(num_completed: int = 20) -> list[Trial]:
    completed = [make_trial(n, "completed", 0.6 + (n * 7 % num_completed) / 100) for n in range(num_completed)]
    others = [("running", 0.5), ("running", None), ("stopped", 0.55), ("rejected", None), ("waiting", None)]
    return completed + [make_trial(num_completed + i, *other) for i, other in enumerate(others)]


def entry(trials: list[Trial], **changes: Any) -> dict[str, Any]:
    about = {"phase": "search", "total": 30, "elapsed": 222.0, "left": 75.0, "metric": "validation/accuracy"}
    return {**about, "trials": trials, "objectives": {"validation/accuracy": "max"}, **changes}


def drawn(content: dict[str, Any], width: int = 100, height: int = 30) -> list[str]:
    console = Console(
        record=True, force_terminal=True, color_system=None, width=width, height=height, file=io.StringIO()
    )
    console.print(draw(Search.of(content), console))
    return [line.rstrip() for line in console.export_text().splitlines()]


def numbers(lines: list[str]) -> list[int]:
    """Trials in the rows of the table."""
    first = next(i for i, line in enumerate(lines) if line.startswith("─")) + 1
    rows = [line.removeprefix(MARK).split() for line in lines[first:]]
    return [int(words[0]) for words in rows if words[0].isdigit() and words[1] in STATES]


def test_best_first_then_what_has_no_value_yet() -> None:
    trials = make_trials()
    shown = numbers(drawn(entry(trials), height=60))
    values = {trial.number: trial.measures.get("validation/accuracy") for trial in trials}
    known = [values[number] for number in shown if values[number] is not None]
    assert known == sorted(known, reverse=True)
    assert shown[-2:] == [21, 24]  # running without a validation, waiting
    assert len(shown) == len(trials) - 1  # the rejected one is counted only
    assert numbers(drawn(entry(trials, objectives={"validation/accuracy": "min"}), height=60))[0] == 20


def test_the_front_is_marked_and_trials_outside_the_constraints_are_not() -> None:
    trials = [make_trial(0, "completed", 0.8), make_trial(1, "completed", 0.9), make_trial(2, "completed", 0.7)]
    trials.append(make_trial(3, "running", 0.99))
    both = {"validation/accuracy": "max", "latency_ms": "min"}
    assert Search.of(entry(trials)).marked == {1}
    assert Search.of(entry(trials, objectives=both)).marked == {0, 1}
    bounded = entry(trials, objectives=both, constraints={"latency_ms": Bounds(max=1.5)})
    assert Search.of(bounded).marked == {0}
    lines = drawn(entry(trials, objectives=both))
    assert sorted(numbers([line for line in lines if line.startswith(("─", MARK))])) == [0, 1]


@pytest.mark.parametrize("width", [60, 80, 160])
@pytest.mark.parametrize("height", [16, 24, 50])
@pytest.mark.parametrize("failed", [False, True])
def test_it_fits_the_screen(width: int, height: int, failed: bool) -> None:
    trials = make_trials(40)
    if failed:
        trials[3] = replace(trials[3], state="failed", values={}, reason="out of memory: " + "much " * 80 + "\nmore")
    lines = drawn(entry(trials), width, height)
    assert len(lines) < height
    assert max(map(len, lines)) <= width
    assert {40, 41} <= set(numbers(lines)) or height == 16  # running ones have their place
    assert any("22 trials" in line or "not shown" in line for line in lines)
    assert any(line.startswith("trial 3 failed: out of memory") for line in lines) == failed


@given(st.lists(st.sampled_from(["completed", "running", "waiting", "failed"]), max_size=60), st.integers(-5, 70))
def test_rows_keep_their_order_and_the_first_running_ones(states: list[Any], room: int) -> None:
    trials = [Trial(number, {}, state) for number, state in enumerate(states)]
    rows, hidden = fit_rows(trials, room)
    assert len(rows) + hidden == len(trials)
    assert len(rows) <= max(room, 3)
    assert [trial.number for trial in rows] == sorted(trial.number for trial in rows)
    running = [trial for trial in trials if trial.state == "running"]
    assert set(map(id, running[: max(room, 3) // 2])) <= set(map(id, rows))


def test_settings_have_short_names_and_those_without_room_are_named() -> None:
    heads = "\n".join(drawn(entry(make_trials()), width=120)[:4])
    assert "temperature" in heads
    assert "kd.weight" in heads
    assert "losses" not in heads
    narrow = drawn(entry(make_trials()), width=60)
    (missing,) = [line for line in narrow if line.startswith("not shown")]
    assert "kd.weight, student.num_layers" in missing
    assert "temperature" not in missing
    assert heading("student.num_layers") == "student.\nnum_\nlayers"
    assert heading("kd.weight") == "kd.weight"


@given(st.lists(st.text("abcdefgh", min_size=1, max_size=12), min_size=1, max_size=6), st.sampled_from("._"))
def test_headings_are_narrow(parts: list[str], dot: str) -> None:
    lines = heading(dot.join(parts)).splitlines()
    assert len(lines) <= 3
    assert max(map(len, lines)) <= 14
    assert heading(dot.join(parts)).startswith(parts[0])


def test_cells() -> None:
    params = {"a": 0.000123456, "b": 3, "c": '{"layers":"last","type":"hidden_mse"}', "d": None, "e": "x\x1b[31m"}
    trial = Trial(0, params)
    assert [cell(trial, name) for name in "abf"] == ["0.000123", "3", "–"]
    assert cell(trial, "c") == "hidden_mse (l…"
    assert "\x1b" not in cell(trial, "e")
    assert [minutes(s) for s in (0, 9, 61, 3600, 36061)] == ["0:00", "0:09", "1:01", "1:00:00", "10:01:01"]


def test_progress_of_a_running_trial_and_of_the_whole() -> None:
    lines = drawn(entry(make_trials()), height=60)
    (row,) = [line for line in lines if line.split()[:2] == ["20", "running"]]
    assert row.split()[2:5] == ["━━━", "0:30", "left"]  # 300 of 600 steps took 30 s
    assert "50.0" in row
    whole = next(line for line in lines if line.startswith("search "))
    assert "21 of 30 trials, 3:42, about 1:15 left" in whole
    assert "20 completed, 1 stopped, 2 running, 1 waiting, 1 rejected" in lines[lines.index(whole) + 1]


def told(number: int, *values: float | None) -> Trial:
    trial = make_trial(number, "running")
    points = enumerate(values, 1)
    return replace(
        trial, history=tuple({"step": i, "num_steps": 9, "seconds": i, "validation/accuracy": v} for i, v in points)
    )


def test_running_trials_show_their_values_by_validation() -> None:
    done = make_trial(0, "completed", 0.9)
    trials = [told(4, 0.5, None, 0.625), done, told(2, *(i / 10 for i in range(1, 9))), make_trial(5, "running")]
    line = "accuracy, % by validation, trial 2: … 30.0 40.0 50.0 60.0 70.0 80.0; 4: 50.0 62.5"
    assert line in drawn(entry(trials))
    assert line in logged(entry(trials))
    assert not any("by validation" in said for said in [*drawn(entry([done])), *logged(entry([done]))])
    narrow = drawn(entry([told(n, *[0.5] * 6) for n in range(40)]), width=60, height=24)
    assert len(narrow) < 24
    assert max(map(len, narrow)) <= 60


def logged(*entries: dict[str, Any]) -> list[str]:
    console = Console(file=io.StringIO(), width=80, highlight=False)
    with Table(console) as table:
        for content in entries:
            table(content)
    assert isinstance(console.file, io.StringIO)
    return [line.split("s  ", 1)[1] for line in console.file.getvalue().splitlines()]


def test_a_log_has_one_line_for_every_trial_that_ends() -> None:
    before = make_trials(4)
    after = [*before]
    after[4] = replace(make_trial(4, "completed", 0.9), seconds=60)
    after[5] = replace(before[5], state="failed", reason="out of memory: 3 GiB\nand a traceback")
    lines = logged(
        {"phase": "record", "done": 1, "total": 10}, entry(before), entry(after), entry(after), {"phase": "evaluate"}
    )
    assert lines[0].startswith("record")
    assert lines[1].startswith("search: 5 of 30 trials, 3:42, about 1:15 left; 4 completed, 1 stopped, 2 running")
    assert lines[2].startswith("trial 4 completed  accuracy 90.0 % BEST  (kd.temperature 2.333, kd.weight 0.5, ")
    assert lines[2].endswith(" 1.0 min")
    assert lines[3].startswith("trial 5 failed: out of memory: 3 GiB (kd.")
    assert [line.split()[0] for line in lines[4:]] == ["evaluate"]


def test_a_log_does_not_repeat_trials_of_an_earlier_session() -> None:
    old, new = make_trial(0, "completed", 0.7, started=1.0), make_trial(1, "rejected", started=2e12)
    lines = logged(entry([old, new]))
    assert [line.split(":")[0] for line in lines] == ["trial 1 rejected", "search"]


def test_the_live_table_gives_way_to_other_phases() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100, height=30)
    with Table(console) as table:
        table({"phase": "record", "done": 1, "total": 10})
        table(entry(make_trials()))
        assert table.live is not None
        assert table.progress.status is None
        table({"phase": "evaluate"})
        assert table.live is None
        table(entry(make_trials(), phase="finals"))
    assert table.live is None
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert text.index("record") < text.index("search") < text.index("evaluate") < text.index("finals")


def ending(summary: dict[str, Any], width: int = 80) -> str:
    console = Console(record=True, width=width, file=io.StringIO())
    print_sweep(console, summary)
    return console.export_text()


def test_the_end_shows_finalists_verdict_and_what_to_type() -> None:
    summary = make_summary()
    won = summary["winner"]["trial"]
    text = ending(summary)
    rows = [line for line in text.splitlines() if "±" in line and "%" not in line]
    assert [row.startswith(MARK) for row in rows] == [True, False, False]
    assert rows[0].split()[1] == str(won)
    mean = summary["finalists"][0]["test"]["accuracy"]["mean"]
    assert f"{100 * mean:.1f} ± 0.3" in rows[0]
    assert summary["verdict"].split(":")[0] in text
    assert f'raydistill predict {summary["winner"]["path"]} --text "…"' in text
    assert all(f"--set {given.split('=')[0]}=" in text.replace("'", "") for given in summary["winner"]["set"])
    assert f"raydistill report {summary['sweep_key']}" in text
    assert "hunter2" not in text
    table = text[: text.index(f"trial {won}  ")].splitlines()
    assert max(map(len, table)) <= 80


def test_the_end_without_a_finalist() -> None:
    summary = {**make_summary(), "finalists": [], "winner": None, "results": None, "verdict": "Nothing was found."}
    text = ending(summary)
    assert "Nothing was found." in text
    assert "--retry-failed" in text
    assert "predict" not in text
