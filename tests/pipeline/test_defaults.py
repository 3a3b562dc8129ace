"""What is chosen where a config says nothing, and that it amounts to a config that says it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from kit.toy import toy_config

from raydistill.config.loading import flatten, load_config
from raydistill.errors import ConfigError
from raydistill.pipeline.defaults import FEW_VALIDATION, Facts, choose, few_rows, told
from raydistill.pipeline.distill import distill
from raydistill.pipeline.plan import make_plan

BARE = {"data": {"path": "texts.csv"}, "teacher": {"model": "encoder"}}
FACTS = {
    "has_head": False,
    "is_foreign": False,
    "kind": "categorical",
    "num_outputs": 2,
    "width": 384,
    "teacher_layers": 6,
    "student_layers": 3,
    "num_rows": 2000,
    "num_labeled": 300,
    "num_tokens": 27,
    "limit": 512,
}
EPOCHS, RATE = "teacher.finetune.num_epochs", "teacher.finetune.learning_rate"
STAGE, LEAST = "stages.distill.num_epochs", "teacher.finetune.min_epochs"
DECAYING = {"kd": {"type": "forward_kl", "weight": {"start": 1, "end": 0}}}


def chosen(config: dict[str, Any], **facts: Any) -> dict[str, Any]:
    return {choice.name: choice.value for choice in choose(load_config(config), Facts(**(FACTS | facts)))[1]}


def test_everything_that_is_open_is_chosen_and_nothing_else() -> None:
    config, choices = choose(load_config(BARE), Facts(**FACTS))
    said = flatten(config)
    assert {choice.name: choice.value for choice in choices if choice.value != {}}.items() <= said.items()
    assert choose(config, Facts(**FACTS)) == (config, [])
    assert all(choice.why for choice in choices)
    (note,) = told(choices)
    assert "data.max_length 32 (99 % of the texts stay whole)" in note
    assert "student.num_layers 3 (the teacher has 6)" in note


def test_what_the_user_writes_stays() -> None:
    written = {
        "data": {"path": "texts.csv", "max_length": 7},
        "teacher": {
            "model": "encoder",
            "finetune": {"num_epochs": 2, "learning_rate": 0.5, "method": "full", "max_attempts": 7},
        },
        "student": {"num_layers": 1},
        "stages": {"distill": {"num_epochs": 0.5, "learning_rate": 0.25}},
    }
    config = load_config(written)
    assert choose(config, Facts(**FACTS)) == (config, [])
    half = load_config({**written, "stages": {"distill": {"num_epochs": 0.5}}})
    (choice,) = choose(half, Facts(**FACTS))[1]
    assert choice.name == "stages.distill.learning_rate"


@pytest.mark.parametrize(
    ("labeled", "steps"), [(50, (60, 60)), (100, (120, 120)), (300, (150, 159)), (5000, (471, 471))]
)
def test_few_rows_are_seen_more_often(labeled: int, steps: tuple[int, int]) -> None:
    """At least 150 steps for pairs, 300 for others, within 3 and 30 epochs; as long as it pays eight times as many."""
    made, each = chosen(BARE, num_labeled=labeled), -(-labeled // 32)
    least, most = made[LEAST], made[EPOCHS]
    assert 3 <= least <= 30
    assert steps[0] <= least * each <= steps[1]
    assert most <= 120
    assert 240 <= most * each <= 8 * (150 if labeled <= 1000 else 300)


@pytest.mark.parametrize(
    ("facts", "epochs"),
    [
        ({"num_labeled": 100}, 30),  # more passes over so few rows only where validation gains
        ({"num_labeled": 300}, 30),
        ({"num_labeled": 1000}, 10),
        ({"num_labeled": 1000, "num_rows": 9000}, 27),
        ({"num_labeled": 9000, "num_rows": 9000}, 3),
        ({"num_labeled": 1000, "num_labeled_copies": 2, "num_copies": 2}, 6),
    ],
)
def test_a_teacher_is_trained_no_shorter_than_the_baseline_beside_it(facts: dict[str, Any], epochs: int) -> None:
    made = chosen(BARE, kind="value", num_outputs=1, **facts)
    stage = chosen(BARE, **facts)
    rows = facts["num_labeled"] * facts.get("num_labeled_copies", 1)
    of_all = facts.get("num_rows", 2000) * facts.get("num_copies", 1)
    teacher = made.get(LEAST, made[EPOCHS]) * -(-rows // 32)
    student = stage.get("stages.distill.min_epochs", stage[STAGE]) * -(-of_all // 32)
    assert made.get(LEAST, made[EPOCHS]) == epochs
    assert teacher >= student or epochs == 30


def test_of_many_rows_three_passes_are_enough() -> None:
    made = chosen(BARE, num_labeled=40_000, num_rows=40_000)
    assert (made[EPOCHS], made[STAGE]) == (3, 3)
    assert not [name for name in made if name.endswith("min_epochs")]


@pytest.mark.parametrize(
    "written",
    [
        {"stages": {"distill": {"losses": DECAYING}}},
        {"stages": {"distill": {"num_epochs": 7}}},
        {"sweep": {"scheduler": "pbt", "space": {"stages.distill.learning_rate": {"loguniform": [1e-5, 1e-3]}}}},
        {"sweep": {"space": {"stages.distill.num_epochs": {"choice": [1, 2]}}}},
    ],
)
def test_the_end_is_not_open_where_it_must_be_known(written: dict[str, Any]) -> None:
    made = chosen({**BARE, **written})
    assert "stages.distill.min_epochs" not in made
    assert made.get(STAGE, 5) == 5
    assert LEAST in made  # the teacher's is


def test_an_own_least_length_stays() -> None:
    made = chosen({**BARE, "stages": {"distill": {"min_epochs": 50}}})
    assert made[STAGE] == 50  # beyond the usual limit it is the length
    assert chosen({**BARE, "stages": {"distill": {"min_epochs": 1.5}}})[STAGE] == 38
    for wrong in ({"min_epochs": 3, "num_epochs": 2}, {"min_epochs": 1, "losses": DECAYING}):
        with pytest.raises(ConfigError, match="min_epochs"):
            load_config({**BARE, "stages": {"distill": wrong}})


def test_a_stage_counts_the_rows_that_it_trains_on() -> None:
    labels_alone = {**BARE, "stages": {"distill": {"losses": {"task": {"type": "task"}}}}}
    least = "stages.distill.min_epochs"
    assert chosen(BARE)[least] * 63 >= 300 > (chosen(BARE)[least] - 1) * 63
    assert chosen(labels_alone)[least] == 20


def test_wide_models_learn_slowly() -> None:
    rates = [chosen(BARE, width=width)[RATE] for width in (256, 384, 768, 1024, 4096)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] > rates[2] > rates[3]


def test_a_trained_head_is_not_trained_again() -> None:
    made = chosen(BARE, has_head=True)
    assert made["teacher.finetune"] is None
    assert EPOCHS not in made
    assert chosen({**BARE, "teacher": {"model": "m", "finetune": {}}}, has_head=True)[EPOCHS] > 0
    pretrained = {**BARE, "evaluate": {"baseline": {"start": "pretrained"}}}
    with pytest.raises(ConfigError, match=r"pretrained is the encoder before teacher\.finetune, which is not set"):
        choose(load_config(pretrained), Facts(**(FACTS | {"has_head": True})))


@pytest.mark.parametrize(
    ("facts", "method"),
    [
        ({}, "contrastive"),
        ({"num_labeled": 1001}, "full"),
        ({"num_outputs": 9}, "full"),  # in 16 rows hardly any pair has one class
        ({"kind": "value", "num_outputs": 1}, "full"),
        ({"kind": "bernoulli"}, "full"),
        ({"is_foreign": True}, "full"),
        ({"has_head": True}, "full"),
    ],
)
def test_few_labels_of_few_classes_are_learned_by_pairs(facts: dict[str, Any], method: str) -> None:
    made = chosen({**BARE, "teacher": {"model": "encoder", "finetune": {}}}, **facts)
    assert made["teacher.finetune.method"] == method
    assert made[RATE] == (0.5e-4 if method == "contrastive" else 1e-4)
    small = {**BARE, "train": {"global_batch_size": 6}}
    assert chosen(small)["teacher.finetune.method"] == "full"


def test_a_length_or_rate_of_ones_own_is_that_of_a_usual_training() -> None:
    def tuning(**written: Any) -> Any:
        return load_config({**BARE, "teacher": {"model": "encoder", "finetune": written}}).teacher.finetune

    assert tuning(learning_rate=1e-3).method == tuning(num_epochs=2).method == "full"
    assert tuning(num_epochs=2, method="contrastive").method == "contrastive"
    assert tuning(learning_rate="auto").method == "auto"
    attempts = "teacher.finetune.max_attempts"
    many = {"num_labeled": 5000}
    assert chosen(BARE, **many)[attempts] == 3
    assert attempts not in chosen(BARE)
    for written in ({"learning_rate": 1e-3}, {"max_attempts": 2}):
        assert attempts not in chosen({**BARE, "teacher": {"model": "encoder", "finetune": written}}, **many)
    assert set(chosen({**BARE, "teacher": {"model": "m", "finetune": {"method": "probe"}}})) == {
        *("data.max_length", "student.num_layers", "stages.distill.min_epochs", STAGE, "stages.distill.learning_rate"),
    }


@pytest.mark.parametrize(("needed", "limit", "length"), [(3, 512, 16), (27, 512, 32), (32, 512, 32), (900, 512, 512)])
def test_rows_stay_whole_as_far_as_models_go(needed: int, limit: int, length: int) -> None:
    assert chosen(BARE, num_tokens=needed, limit=limit)["data.max_length"] == length


def test_where_most_rows_are_of_one_class_macro_f1_picks_the_epoch(tmp_path: Path) -> None:
    full = toy_config(tmp_path)
    header, *lines = Path(full["data"]["path"]).read_text().splitlines()
    rare = [line for line in lines if not line.endswith("film")][:20]
    (tmp_path / "skewed.csv").write_text("\n".join([header, *(line for line in lines if line.endswith("film")), *rare]))
    skewed = {"data": {"path": str(tmp_path / "skewed.csv")}, "teacher": full["teacher"], "train": full["train"]}
    found = {}
    for name, config in {
        "skewed": skewed,
        "written": skewed | {"evaluate": {"metric": "accuracy"}},
        "even": skewed | {"data": {"path": full["data"]["path"]}},
    }.items():
        plan = make_plan(load_config(config | {"storage": str(tmp_path / "none")}))
        found[name] = {choice["name"]: choice["value"] for choice in plan["choices"]}.get("evaluate.metric")
    assert found == {"skewed": "macro_f1", "written": None, "even": None}


@pytest.mark.slow
def test_a_config_of_data_and_teacher_is_the_run_of_the_config_that_says_what_was_chosen(tmp_path: Path) -> None:
    full = toy_config(tmp_path)
    bare = {name: full[name] for name in ("storage", "train", "tracking")} | {
        "data": {"path": full["data"]["path"]},
        "teacher": {"model": full["teacher"]["model"], "allow_chance": True},
        "evaluate": {"latency": False, "bootstrap_samples": 100},
    }
    planned = make_plan(load_config(bare))["choices"]
    results = distill(load_config(bare))
    assert results["choices"] == planned == make_plan(load_config(bare))["choices"]
    said = [f"{choice['name']}={json.dumps(choice['value'])}" for choice in results["choices"]]
    assert any("Chosen, as the config leaves it open" in note for note in results["notes"])
    again = distill(load_config(bare, said))
    assert again["reused"] == ["run"]
    assert (again["run_id"], again["config"]) == (results["run_id"], results["config"])
    assert few_rows(24)[0] in results["notes"]
    assert not few_rows(FEW_VALIDATION)
    names = {choice["name"] for choice in planned}
    assert names == {
        *("data.max_length", "student.num_layers", "teacher.finetune", EPOCHS, RATE, STAGE),
        *("teacher.finetune.method", "stages.distill.learning_rate"),
        *("teacher.finetune.min_epochs", "stages.distill.min_epochs"),
    }
    steps = {name: results["curves"][name][-1]["step"] for name in ("teacher", "student")}
    assert steps["teacher"] >= 150
    assert steps["student"] >= 240
