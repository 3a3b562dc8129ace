"""Promotion of models of numbers, of several labels a row and of hidden tokens: what is judged, skipped, refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from kit.browser import Tags
from kit.finished import LENGTH, NUMBERS, TAGS, TOPIC, WRITERS, finish
from kit.masked import PIECES, VOCABULARY, documents, masked_config, save_masked, wordpiece
from kit.registered import client, judge_version, verdicts
from kit.toy import toy_config
from rich.console import Console

from raydistill.cli.show.gate import print_verdict
from raydistill.config.gate import Gate
from raydistill.config.loading import load_config, load_data
from raydistill.deploy.comparison import compare_models
from raydistill.deploy.gate.page import page_text
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_another_kind_of_problem_is_no_champion_to_compare_with(life: tuple[str, Path, dict[str, Any]]) -> None:
    words = life[0].replace("_", " ")
    with pytest.raises(ModelError, match=f"it is for text classification, the challenger for {words}"):
        judged(life, LENIENT, 1, 3)
    found = judged(life, LENIENT, 1, 3, force=True, reason="the task has changed")
    assert found["verdict"] == "passed"
    assert set(found["comparison"]["models"]) == {"challenger"}
    assert any("under a name of its own" in note for note in found["notes"])


@pytest.mark.slow
def test_a_gate_names_a_metric_that_the_task_has(life: tuple[str, Path, dict[str, Any]]) -> None:
    with pytest.raises(ConfigError, match=r"The gate compares accuracy, which .* does not have"):
        judged(life, LENIENT.model_copy(update={"metric": "accuracy"}), 1, None)


HIDDEN_LENGTH = 32
PERPLEXITY = LENIENT.model_copy(update={"metric": "perplexity", "min_rows": 1, "above_chance": False})
HIDDEN_ALONE = PERPLEXITY.model_copy(update={"min_retention": None, "max_leaked_rows": None})
APART = {
    4: "has another tokenizer than",
    5: "reads pieces of 64 tokens, not of 32 as",
    6: "hides 30 % of the tokens of a text, not 15 % as",
}
"""Versions that cannot be compared with the others, and why."""


def hiding(folder: Path, num_layers: int = 1, *, length: int = HIDDEN_LENGTH, **changes: Any) -> Path:
    """A masked language model that has learned nothing, for rows of so many tokens; ``changes``: of config.json."""
    save_masked(folder, num_layers=num_layers, seed=11)
    for name, more in (("config.json", changes), ("tokenizer_config.json", {"model_max_length": length})):
        (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | more))
    return folder


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Version 1 is a run's student; 2 and 3 have learned nothing; those of APART guess other tokens of a text."""
    folder = tmp_path_factory.mktemp("masked")
    results = distill(load_config(masked_config(folder, evaluate__baseline=False)))
    swapped = hiding(folder / "swapped")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kit.masked.VOCABULARY", (*PIECES, *reversed(VOCABULARY[len(PIECES) :])))
        tokenizer = wordpiece()
        tokenizer.model_max_length = HIDDEN_LENGTH
        tokenizer.save_pretrained(swapped)
    made = [hiding(folder / "two"), hiding(folder / "three", 2), swapped, hiding(folder / "longer", length=64)]
    made.append(hiding(folder / "share", masked_language_modeling={"share": 0.3}))
    for one in made:
        client(Storage(str(folder / "storage"))).create_model_version("toy", str(one))
    (folder / "fresh.txt").write_text("\n".join(documents(40, seed=9)))
    return folder, results


def test_perplexity_is_compared_by_ratios(masked: tuple[Path, dict[str, Any]]) -> None:
    folder, results = masked
    found = judge_version(folder / "storage", PERPLEXITY, 1, 2)
    assert found["verdict"] == "passed", found["rules"]
    of = {name: results[name]["test"]["perplexity"]["value"] for name in ("teacher", "student")}
    kept = found["retention"]
    assert kept["low"] < kept["value"] < kept["high"]
    assert kept["value"] == pytest.approx(of["teacher"] / of["student"], rel=1e-4)
    assert kept["value"] == pytest.approx(results["retention"]["perplexity"], rel=1e-4)
    models = {name: one["metrics"]["perplexity"]["value"] for name, one in found["comparison"]["models"].items()}
    assert models["challenger"] == pytest.approx(of["student"], rel=1e-4)
    better = found["comparison"]["pairs"][0]["ratios"]["perplexity"]
    assert better["value"] == pytest.approx(models["challenger"] / models["champion"], rel=1e-5)
    assert better["high"] < 1

    worse = judge_version(folder / "storage", HIDDEN_ALONE, 2, 1, data=load_data(str(folder / "fresh.txt")))
    assert (worse["verdict"], verdicts(worse)["non_inferiority"]) == ("refused", "failed")
    ratio = worse["comparison"]["pairs"][0]["ratios"]["perplexity"]
    assert 1.02 < ratio["low"] < ratio["value"] < ratio["high"]
    rule = next(rule for rule in worse["rules"] if rule["name"] == "non_inferiority")
    assert (rule["value"], rule["limit"]) == (ratio["high"], 1.02)
    said = f"perplexity ÷ champion's (less is better), upper end of the interval {ratio['high']:.3f} (<= 1.02)"
    assert said in worse["sentence"]
    console = Console(width=200)
    with console.capture() as shown:
        print_verdict(console, worse)
    for text in (shown.get(), Tags(page_text(worse)).text):
        assert "perplexity ÷ champion's (less is better), upper end of the interval" in text
        assert f"ratio {ratio['value']:.3f}, 95 % interval {ratio['low']:.3f} to {ratio['high']:.3f}" in text
    lenient = HIDDEN_ALONE.model_copy(update={"non_inferiority_margin": ratio["high"] - 1 + 1e-9})
    assert judge_version(folder / "storage", lenient, 2, 1, data=load_data(str(folder / "fresh.txt")))["verdict"] == (
        "passed"
    )


def test_files_of_one_tokenizer_may_differ(masked: tuple[Path, dict[str, Any]]) -> None:
    """Two models that guess the same tokens, though a tokenizer was saved anew."""
    folder, _ = masked
    path = folder / "three" / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()), indent=1))
    found = compare_models([str(folder / "two"), str(folder / "three")], load_data(str(folder / "fresh.txt")))
    assert found["pairs"][0]["ratios"]["perplexity"]["high"] > 1


@pytest.mark.parametrize("version", APART)
def test_perplexities_of_other_tokens_are_not_compared(masked: tuple[Path, dict[str, Any]], version: int) -> None:
    folder, _ = masked
    rows, names = load_data(str(folder / "fresh.txt")), {4: "swapped", 5: "longer", 6: "share"}
    with pytest.raises(ModelError, match=f"it {APART[version]} the challenger.*under a name of its own"):
        judge_version(folder / "storage", HIDDEN_ALONE, 2, version, data=rows)
    forced = judge_version(
        folder / "storage", HIDDEN_ALONE, 2, version, data=rows, force=True, reason="other tokens from now on"
    )
    assert set(forced["comparison"]["models"]) == {"challenger"}
    both = [str(folder / "two"), str(folder / names[version])]
    with pytest.raises(
        ModelError, match=rf"{names[version]} {APART[version]} .*two: .*Compare models of one tokenizer"
    ):
        compare_models(both, rows, latency=False)
    if version == 5:
        assert compare_models(both, rows, max_length=HIDDEN_LENGTH, latency=False)["pairs"][0]["agreement"] == 1
