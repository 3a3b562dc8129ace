"""What the rows at hand do not define: every place that tells, judges or tracks results says so, and goes on."""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from kit.outcomes import LATENCY, multi_label_outcome, outcome, regression_outcome, with_perturbed
from kit.results import make_results
from kit.summaries import make_summary
from rich.console import Console

from raydistill.cli.show.gate import print_verdict
from raydistill.cli.show.results import print_results
from raydistill.cli.show.sweep import print_sweep
from raydistill.config.gate import Gate
from raydistill.config.tree import Config
from raydistill.deploy.comparison import print_comparison
from raydistill.deploy.export.checks import judge_metric
from raydistill.deploy.export.table import cells, interval
from raydistill.deploy.gate import page as gate_page
from raydistill.deploy.gate.promotion import describe, sentence
from raydistill.deploy.inference import print_scores
from raydistill.evaluate.compare import chance
from raydistill.evaluate.figure import Figure
from raydistill.evaluate.intervals import interval as ends
from raydistill.evaluate.report.card import model_card
from raydistill.evaluate.report.page import page_text
from raydistill.evaluate.results import RunMeasurements, SplitRows, build_results
from raydistill.evaluate.rules import Facts, Retention, judge
from raydistill.evaluate.verdict import verdict as verdict_of
from raydistill.pipeline.rivals import why_behind
from raydistill.search.report.page import write_report
from raydistill.search.verdict import verdict as sweep_verdict
from raydistill.tasks.scores import Floor
from raydistill.tracking.lineage import figures, headline
from raydistill.tracking.registry.versions import Version

MODELS = ("teacher", "student", "baseline", "tfidf", "champion")
UNDEFINED = dict.fromkeys(("value", "low", "high"))
BAD = re.compile(r"\b(None|nan|null)\b")
RUNS: dict[str, Callable[[], RunMeasurements]] = {
    "text_classification": outcome,
    "multi_label_classification": multi_label_outcome,
    "text_regression": regression_outcome,
}

QUICK: dict[str, Any] = {"derandomize": True, "phases": [Phase.explicit, Phase.generate]}
"""An example takes half a second, most of it for pages: one that fails is not made smaller."""


def config_of(task: str) -> dict[str, Any]:
    loss = "logit_mse" if task == "text_regression" else "forward_kl"
    given = {
        "data": {"path": "owner/news", "max_length": 32},
        "task": {"type": task},
        "teacher": {"model": "owner/encoder", "finetune": {"num_epochs": 4, "method": "full"}},
        "stages": {"distill": {"num_epochs": 3, "learning_rate": 5e-5, "losses": {"kd": {"type": loss}}}},
        "registry": {"name": "news"},
    }
    return Config.model_validate(given).model_dump(mode="json")


def all_five(run: RunMeasurements) -> RunMeasurements:
    run = with_perturbed(run, {"upper": (0.5, 1.0)})
    words = replace(run.baseline, path=None, latency=None, more={"model": "linear", "num_rows": 150}, perturbed={})
    return replace(run, tfidf=words, champion=replace(run.baseline, more={"version": 2}, perturbed={}), num_samples=100)


@cache
def text_of(task: str) -> str:
    """JSON of a run with all five models in which everything is defined."""
    results = make_results(made=all_five(RUNS[task]()))
    spread = {name: {"mean": 0.5, "sd": 0.1} for name in results["student"]["test"]}
    seeds = {"num": 3, **{model: {"seed": 1, "test": spread, "values": []} for model in ("student", "baseline")}}
    for model in MODELS:
        results[model]["latency_by_shape"] = None
    return json.dumps(
        {**results, "curves": {name: [] for name in MODELS[:3]}, "seeds": seeds, "config": config_of(task)}
    )


def blank(results: dict[str, Any], gone: dict[str, set[str]], open_ended: set[str]) -> None:
    """Make metrics undefined: of models those in ``gone``, and intervals of those in ``open_ended``."""
    for model in MODELS:
        for name in gone[model]:
            for split in ("validation", "test"):
                if results[model][split] is not None:
                    results[model][split][name] = UNDEFINED
            if model in (results["seeds"] or ()):
                results["seeds"][model]["test"][name] = {"mean": None, "sd": None}
        for name in open_ended - gone[model]:
            results[model]["test"][name] = {"value": results[model]["test"][name]["value"], "low": None, "high": None}
    for model in MODELS:
        found = results["differences"].get(f"student_minus_{model}")
        for name in (gone[model] | gone["student"] | open_ended) if found else ():
            is_gone = name in gone[model] | gone["student"]
            found[name] = UNDEFINED if is_gone else {"value": found[name]["value"], "low": None, "high": None}
    for name in gone["student"] | gone["teacher"]:
        results["retention"] = (
            {**results["retention"], name: None} if name in results["retention"] else results["retention"]
        )
    main = results["task"]["main_metric"]
    for one in results["robustness"]["perturbations"].values():
        for model, found in (one["models"] or {}).items():
            if main in gone[model]:
                one["models"][model] = {**UNDEFINED, "change": UNDEFINED}
                one |= {"student_minus_teacher": UNDEFINED, "is_more_fragile": False}
            elif main in open_ended:
                found |= {"low": None, "high": None, "change": {**found["change"], "low": None, "high": None}}


def printed(show: Callable[[Console], None]) -> str:
    stream = io.StringIO()
    show(Console(file=stream, width=120, no_color=True))
    return stream.getvalue()


def facts_of(results: dict[str, Any]) -> Facts:
    """The student as a challenger beside the champion."""
    student, other, main = results["student"], results["champion"], results["task"]["main_metric"]
    differences = results["differences"]["student_minus_champion"]
    retention = results["retention"].get(main)
    return Facts(
        challenger={**student, "metrics": student["test"]},
        chance=student["chance"],
        task=results["task"],
        champion={**other, "metrics": other["test"], "latency_ms": student["latency_ms"]},
        pair={
            **{"first": "champion", "second": "challenger", "differences": differences, "agreement": None},
            **{"ratios": dict.fromkeys(differences, UNDEFINED), "mcnemar": None, "latency_ratio": None},
        },
        labels=tuple(results["labels"]),
        champion_labels=tuple(results["labels"]),
        retention=Retention(retention, None, None, 500),
        leaked=None,
        num_rows=500,
    )


def compared(results: dict[str, Any], facts: Facts) -> dict[str, Any]:
    """As ``deploy.paired`` makes it."""
    speed = {**LATENCY, "latency_ms": None}
    models = {
        name: {**model, "path": "x", "runtime": "torch", "throughput": 1.0, "latency_setting": speed}
        for name, model in (("champion", facts.champion), ("challenger", facts.challenger))
    }
    data = {
        "source": "rows.csv",
        "split": "test",
        "num_rows": 500,
        "labels": results["labels"],
        "task": results["task"],
    }
    bootstrap = {"samples": 100, "level": 0.95}
    return {"data": data, "bootstrap": bootstrap, "models": models, "pairs": [facts.pair], "notes": []}


def take_through_all(results: dict[str, Any]) -> None:
    """Everything that tells of results or judges them says whole sentences, and tracking gets numbers alone."""
    main, student = results["task"]["main_metric"], results["student"]
    results["verdict"] = verdict_of(results)
    said = [
        results["verdict"],
        printed(lambda console: print_results(console, results)),
        model_card(results).replace("top_k=None", ""),
    ]
    page_text(results)
    assert all(math.isfinite(value) for value in {**figures(results), **headline(results)}.values())

    facts = facts_of(results)
    rulings = judge(Gate(), facts)
    version = Version("news", 3, "run", "", {}, (), 0)
    champion, decision = (
        replace(version, version=2),
        "refused" if any(r.verdict == "failed" for r in rulings) else "passed",
    )
    told = sentence(version, champion, rulings, decision, None)
    for found in rulings:
        assert found.value is not None or found.verdict != "passed", found
        said += [found.why, *found.shown.values()]
        if found.shown["value"] == "not known":
            assert found.why, found
            assert found.verdict != "failed" or f"not known, as {found.why}" in told
    summary = compared(results, facts)
    measured = {
        "rules": [one.to_json() for one in rulings],
        "gate": Gate().model_dump(mode="json"),
        "comparison": summary,
    }
    verdict = describe(version, champion, decision, told, **measured)
    gate_page.page_text(verdict)
    said += [told, printed(lambda console: print_verdict(console, verdict))]
    said += [printed(lambda console: print_comparison(console, summary))]

    own, other = (Figure.of(main, results[model]["test"][main]) for model in ("student", "champion"))
    assert decision == "refused" or own.value is not None  # exit code 3, and no traceback
    ahead = Figure.of(main, results["differences"]["student_minus_champion"][main]).gained
    behind = [why_behind("version 2, which has it,", own, other, ahead, won) for won in (False, True)]
    assert own.value is None or other.value is not None or behind == [None, None]
    said += [text for text in behind if text]
    section = {
        "metric": student["test"][main],
        "difference": vars(ahead),
        "bytes": 1,
        "latency_ms": None,
        "throughput": None,
    }
    said += [
        *cells(section, main),
        interval(student["test"][main], main),
        *(text for texts in judge_metric(vars(ahead), main, 0.01) for text in texts),
    ]
    assert not [text for text in said if BAD.search(text)]


@pytest.mark.parametrize("task", RUNS)
@settings(max_examples=12, **QUICK)
@given(data=st.data())
def test_any_metric_may_be_undefined(task: str, data: st.DataObject) -> None:
    results = json.loads(text_of(task))
    names = sorted(results["student"]["test"])
    some = st.sets(st.sampled_from(names))
    gone = {model: data.draw(some) for model in MODELS}
    blank(results, gone, data.draw(some))
    if data.draw(st.booleans()):
        for model in MODELS:
            for entry in results[model].get("per_class", ()):
                entry["support"] = 0
    if data.draw(st.booleans()):
        results["agreement"] = None
        for model in MODELS:
            results[model]["agreement"] = None
    told = results["student"]["chance"]
    floor = Floor(told["metric"], told["value"], told["answer"], None, (told["metric"], 0.0))
    results["student"]["chance"] = chance(results["student"]["test"], floor)
    take_through_all(results)


@pytest.mark.parametrize("task", RUNS)
@settings(max_examples=4, **QUICK)
@given(rows=st.sets(st.integers(0, 499), min_size=1, max_size=4))
def test_any_few_rows_may_be_those_of_the_test(task: str, rows: set[int]) -> None:
    """One row, one class, equal numbers: metrics are undefined as they are in real life."""
    run, kept = all_five(RUNS[task]()), np.array(sorted(rows))
    cut = {
        name: replace(
            getattr(run, name),
            test=getattr(run, name).test[kept],
            perturbed={kind: found[kept] for kind, found in getattr(run, name).perturbed.items()},
        )
        for name in MODELS
    }
    test = SplitRows(run.test.targets.take(kept), run.test.example_ids[kept])
    results = build_results(replace(run, test=test, config=config_of(task), **cut))
    results |= {"layers": {"student": 2, "teacher": 6, "start": [], "losses": {}}, "notes": [], "report": None}
    take_through_all(json.loads(json.dumps(results)))


METRIC = "validation/accuracy"


@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture], **QUICK)
@given(data=st.data())
def test_a_sweep_may_have_trials_without_values(tmp_path: Path, data: st.DataObject) -> None:
    summary = json.loads(sweep_text())
    for trial in summary["trials"]:
        if data.draw(st.booleans()):
            trial["measures"].pop(METRIC, None)
    for finalist in summary["finalists"]:
        won = finalist["trial"] == summary["winner"]["trial"]
        for split in ("test",) if won else ("validation", "test"):
            if data.draw(st.booleans()):
                finalist[split]["accuracy"] = {"mean": None, "sd": None}
                for seed in finalist["seeds"]:
                    seed[split]["accuracy"] = None
                finalist["shrinkage"].pop("accuracy", None)
        if data.draw(st.booleans()):
            finalist["search"].pop(METRIC, None)
            finalist["shrinkage"].pop("accuracy", None)
    summary["verdict"] = sweep_verdict(summary)
    assert not BAD.search(summary["verdict"])
    print_sweep(Console(file=io.StringIO()), summary)
    write_report(summary, tmp_path / "sweep.html")


@cache
def sweep_text() -> str:
    return json.dumps(make_summary())


def test_what_is_not_defined_is_said_with_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    lost, known = Figure.of("auc", UNDEFINED), Figure.of("auc", {"value": 0.9, "low": 0.8, "high": 0.95})
    reason = "AUC is not defined on these rows, because a label stands in all of them, or in none"
    assert (lost.why, lost.text, lost.said, lost.bounds()) == (reason, "-", "not defined", "")
    assert (known.why, known.text, known.bounds(", ")) == ("", "0.900", "0.800, 0.950")
    assert Figure.of("accuracy", {"value": 0.9, "low": None, "high": None}).why.startswith("accuracy has no interval")
    assert (
        Figure.of("map", None).difference
        == "mAP is not defined on these rows, because no such object is labelled in them"
    )
    assert (lost.is_better, lost.is_worse) == (False, False)
    less = Figure.of("rmse", {"value": -0.2, "low": -0.3, "high": -0.1})
    assert (less.is_better, less.is_worse, less.gained.value) == (True, False, 0.2)
    task = {"metrics": ["auc"]}
    scores = {"model": "m", "num_rows": 1, "data": "d", "task": task, "metrics": {"auc": UNDEFINED}, "notes": []}
    print_scores(Console(), scores)
    assert reason in capsys.readouterr().out
    assert ends(math.nan, np.array([math.nan])) == UNDEFINED


@pytest.mark.parametrize("model", ["student", "teacher"])
def test_a_latency_of_one_model_alone_has_no_ratio(model: str) -> None:
    run = replace(outcome(), num_samples=100)
    ratios = build_results(replace(run, **{model: replace(getattr(run, model), latency=None)}))["ratios"]
    assert ratios["latency_p50"] is ratios["throughput"] is None
    assert ratios["num_parameters"] is not None


@pytest.mark.parametrize(
    ("retention", "said"), [(0.999, "keeps 99.9 %"), (1.0, "keeps 100.0 %"), (1.01, "reaches 101.0 %")]
)
def test_who_is_as_good_as_the_teacher_keeps_all_of_it(retention: float, said: str) -> None:
    results = build_results(replace(outcome(), num_samples=100))
    results["retention"][results["task"]["main_metric"]] = retention
    assert f"The student {said} of its teacher's" in verdict_of(results)
