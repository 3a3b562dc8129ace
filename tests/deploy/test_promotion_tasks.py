"""Promotion of models that predict numbers or several labels a row: what is judged, skipped and refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from kit.finished import LENGTH, NUMBERS, TAGS, TOPIC, WRITERS, finish
from kit.registered import client, judge_version, verdicts
from kit.toy import toy_config

from raydistill.config.gate import Gate
from raydistill.config.loading import load_config, load_data
from raydistill.errors import ConfigError, ModelError
from raydistill.pipeline.distill import distill
from raydistill.storage.storage import Storage

pytestmark = pytest.mark.usefixtures("quick_timing")

MAIN = {NUMBERS: "pearson", TAGS: "micro_f1"}
NUM_ROWS, NUM_TEST = 480, 48
LENIENT = Gate(min_rows=NUM_TEST, max_latency_ratio=20.0, min_class_recall=0.1, min_retention=0.5)
ALONE = LENIENT.model_copy(update={"min_retention": None, "max_leaked_rows": None})
"""For versions that come from no run."""


@pytest.fixture(scope="module", params=[NUMBERS, TAGS])
def life(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, dict[str, Any]]:
    """A run's student is version 1; version 2 has learned nothing, version 3 is for another kind of problem."""
    kind, folder = request.param, tmp_path_factory.mktemp("life")
    toy_config(folder)
    rows = WRITERS[kind](folder / "rows.csv", NUM_ROWS)
    settings = {
        "task__type": kind,
        "data__path": str(rows),
        "data__max_labeled": None,
        "data__max_length": LENGTH,
        "teacher__finetune__num_epochs": 10,
        "student__num_layers": 3,
        "stages__distill__num_epochs": 5,
        "stages__distill__losses": {"kd": {"type": "logit_mse"}, "task": {"type": "task", "weight": 0.5}},
        "evaluate__baseline": False,
    }
    results = distill(load_config(toy_config(folder, **settings)))
    fresh = WRITERS[kind](folder / "fresh.csv", 200, seed=5)
    unlearned = finish(folder / "unlearned", fresh, kind, num_steps=0)
    other = finish(folder / "other", WRITERS[TOPIC](folder / "topics.csv"), TOPIC, num_steps=0)
    for made in (unlearned, other):
        client(Storage(str(folder / "storage"))).create_model_version("toy", str(made))
    return kind, folder, results


def judged(life: tuple[str, Path, dict[str, Any]], *asked: Any, **more: Any) -> Any:
    return judge_version(life[1] / "storage", *asked, **more)


def test_a_student_is_judged_by_the_metric_of_its_task(life: tuple[str, Path, dict[str, Any]]) -> None:
    kind, folder, results = life
    found = judged(life, LENIENT, 1, None)
    assert found["verdict"] == "passed", found["rules"]
    task, own = found["comparison"]["data"]["task"], found["comparison"]["models"]["challenger"]
    assert (task["type"], task["main_metric"]) == (kind, MAIN[kind])
    expected = results["student"]["test"][MAIN[kind]]["value"]
    assert own["metrics"][MAIN[kind]]["value"] == pytest.approx(expected, abs=1e-5)
    assert found["retention"]["value"] == pytest.approx(results["retention"][MAIN[kind]], abs=1e-4)
    assert found["retention"]["num_rows"] == NUM_TEST
    assert verdicts(found)["calibration"] == "skipped"
    assert verdicts(found)["class_recall"] == ("skipped" if kind == NUMBERS else "passed")
    assert ("scatter" in own, "per_class" in own) == (kind == NUMBERS, kind == TAGS)

    fresh = judged(life, LENIENT, 1, None, data=load_data(str(folder / "fresh.csv")))
    assert fresh["retention"] == found["retention"]  # of the run's own test rows


def test_a_worse_challenger_is_refused(life: tuple[str, Path, dict[str, Any]]) -> None:
    kind, folder, _ = life
    rows = load_data(str(folder / "fresh.csv"))
    found = judged(life, ALONE, 2, 1, data=rows)
    assert found["verdict"] == "refused"
    assert verdicts(found)["non_inferiority"] == "failed"
    (pair,) = found["comparison"]["pairs"]
    assert pair["differences"][MAIN[kind]]["high"] < 0
    assert (pair["mcnemar"] is None) == (kind == NUMBERS)
    better = judged(life, ALONE, 1, 2, data=rows)
    assert better["verdict"] == "passed", better["rules"]
    first, second = better["comparison"]["pairs"][0]["differences"][MAIN[kind]], pair["differences"][MAIN[kind]]
    assert first["value"] == pytest.approx(-second["value"], abs=1e-6)


def test_another_kind_of_problem_is_no_champion_to_compare_with(life: tuple[str, Path, dict[str, Any]]) -> None:
    words = life[0].replace("_", " ")
    with pytest.raises(ModelError, match=f"it is for text classification, the challenger for {words}"):
        judged(life, LENIENT, 1, 3)
    found = judged(life, LENIENT, 1, 3, force=True, reason="the task has changed")
    assert found["verdict"] == "passed"
    assert set(found["comparison"]["models"]) == {"challenger"}
    assert any("under a name of its own" in note for note in found["notes"])


def test_a_gate_names_a_metric_that_the_task_has(life: tuple[str, Path, dict[str, Any]]) -> None:
    with pytest.raises(ConfigError, match=r"The gate compares accuracy, which .* does not have"):
        judged(life, LENIENT.model_copy(update={"metric": "accuracy"}), 1, None)
