"""The space of a sweep: what is refused, and the config of a trial."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raydistill.config.loading import load_config
from raydistill.config.tree import Config
from raydistill.errors import ConfigError
from raydistill.search.space import (
    check_space,
    combination,
    contains,
    default_params,
    fresh_seeds,
    label,
    space_size,
    value_of,
    with_params,
)

KD = "stages.distill.losses.kd"
HINT = "stages.distill.losses.hint"


def sweeping(space: dict[str, Any], **sweep: Any) -> Config:
    losses = {"kd": {"type": "forward_kl", "temperature": 2.0}, "task": {"type": "task", "weight": 0.5}}
    tree = {
        "data": {"path": "texts.csv"},
        "teacher": {"model": "encoder"},
        "student": {"num_layers": 2, "num_heads": 12},
        "stages": {"distill": {"losses": losses}},
        "sweep": {"space": space, **sweep},
    }
    return load_config(tree)


def message(space: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        check_space(sweeping(space))
    return str(caught.value)


WRONG: list[tuple[str, dict[str, Any], str]] = [
    (f"{KD}.temprature", {"uniform": [1, 2]}, f"unknown name; did you mean {KD}.temperature?"),
    ("student.num_layer", {"choice": [1]}, "unknown name; did you mean student.num_layers?"),
    ("num_heads", {"choice": [1]}, "unknown name here; it belongs to student.num_heads."),
    ("", {"choice": [1]}, "unknown name. Known here: storage, seed, data"),
    ("stages.distill.losses.kdd.weight", {"choice": [1]}, f"has no stages.distill.losses.kdd; did you mean {KD}?"),
    ("stages.warm.num_epochs", {"choice": [1]}, "the config has no stages.warm; it has distill."),
    ("student.start.x", {"choice": [1]}, "nothing goes below student.start, which takes a plain value."),
    ("student", {"choice": [{"num_layers": 2}]}, "is a whole part of the config; name the settings below it"),
    ("stages", {"choice": [{}]}, "is a whole part of the config"),
    ("data.max_length", {"choice": [64]}, "changes the data, which all trials share"),
    ("task.labels", {"choice": [["a", "b"]]}, "changes the data, which all trials share"),
    ("teacher.model", {"choice": ["other"]}, "changes the teacher, which all trials share"),
    ("evaluate.metric", {"choice": ["mcc"]}, "changes how students are measured"),
    ("seed", {"choice": [1]}, "splits the data too, which all trials share; write train.seed."),
    ("train.dtype", {"choice": ["float32"]}, "not what it becomes; of train only global_batch_size"),
    ("registry.name", {"choice": ["a"]}, "has no influence on what a student learns"),
    ("sweep.patience", {"choice": [1]}, "has no influence on what a student learns"),
    (f"{KD}.type", {"choice": ["task"]}, f"write {KD}: {{choice: [{{type: …}}, …]}} instead."),
    (f"{KD}.temperature", {"uniform": [0, 8]}, "Input should be greater than 0, got 0.0."),
    ("student.dropout", {"uniform": [0, 1]}, "Input should be less than 1, got 1.0."),
    (f"{KD}.weight", {"choice": [1, -1]}, "Input should be greater than or equal to 0, got -1."),
    ("train.max_grad_norm", {"choice": [None, "1"]}, "Input should be a valid number, got '1'."),
    ("student.num_layers", {"uniform": [1, 4]}, "takes whole numbers; write integer: [low, high] or choice."),
    ("student.num_layers", {"integer": [0, 4]}, "Input should be greater than or equal to 1, got 0."),
    ("student.num_layers", {"choice": [2, 2.5]}, "Input should be a valid integer or 'auto', got 2.5."),
    ("student.start", {"integer": [1, 2]}, "takes no numbers, so it has no range; write choice."),
    ("stages.distill.schedule", {"choice": ["linaer"]}, "unknown value 'linaer'; did you mean 'linear'?"),
    (HINT, {"uniform": [0, 1]}, "takes no numbers, so it has no range; write choice."),
    (HINT, {"choice": [{"type": "hidden_msee"}]}, "type: unknown type 'hidden_msee'; did you mean 'hidden_mse'?"),
    (
        HINT,
        {"choice": [{"type": "hidden_mse", "weight": -1}]},
        f"{HINT}: weight: Input should be greater than or equal to 0",
    ),
    (
        "stages.distill.losses",
        {"choice": [{}]},
        "Dictionary should have at least 1 item after validation, not 0, got {}.",
    ),
    (f"{KD}.weight", {"choice": [1, 1.0]}, "names the same value twice, 1 and 1.0; delete one."),
    (KD, {"choice": [{"type": "forward_kl"}, {"weight": 1, "type": "forward_kl"}]}, "names the same value twice"),
]


@pytest.mark.parametrize(("name", "values", "expected"), WRONG)
def test_wrong_name_or_value(name: str, values: dict[str, Any], expected: str) -> None:
    text = message({name: values})
    assert text.startswith(f"sweep.space.{name}: ")
    assert expected in text
    assert "problems" not in text


def test_all_problems_in_one_error() -> None:
    first = {name: (values, expected) for name, values, expected in reversed(WRONG)}
    text = message({name: values for name, (values, _) in first.items()})
    for name, (_, expected) in first.items():
        assert any(f"sweep.space.{name}: " in line and expected in line for line in text.splitlines()), name
    assert text.startswith(f"sweep.space: {text.count('  - ')} problems")


def test_names_inside_each_other() -> None:
    space = {f"{KD}.weight": {"choice": [1]}, KD: {"choice": [{"type": "logit_mse"}]}}
    assert message(space) == f"sweep.space.{KD}.weight: lies inside {KD}, which varies too; keep one of them."
    check_space(sweeping({f"{KD}.weight": {"choice": [1]}, "stages.distill.weight_decay": {"choice": [0]}}))


def test_too_many_students_that_may_need_their_own_teacher_outputs() -> None:
    space = {"student.num_layers": {"integer": [1, 40]}, "student.num_heads": {"integer": [1, 26]}}
    space |= {"train.seed": {"integer": [0, 10**6]}, f"{KD}.weight": {"uniform": [0, 1]}}
    assert "student.num_layers, student.num_heads have 1,040 combinations" in message(space)
    check_space(sweeping(space | {"student.num_heads": {"integer": [1, 25]}}))


def test_seeds_of_distill_are_none_of_a_sweep() -> None:
    config = sweeping({"student.num_layers": {"choice": [2]}})
    several = config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"seeds": 3})})
    with pytest.raises(ConfigError, match=r"evaluate\.seeds is for distill.*sweep\.final_seeds"):
        check_space(several)


def test_config_without_sweep() -> None:
    config = load_config(sweeping({"student.num_layers": {"choice": [2]}}).model_copy(update={"sweep": None}))
    with pytest.raises(ConfigError, match="sweep: is missing"):
        check_space(config)


def test_values_impossible_only_together_are_rejected_one_by_one() -> None:
    config = sweeping({"student.hidden_size": {"choice": [96, 100]}, "student.num_heads": {"choice": [10, 12]}})
    check_space(config)
    assert with_params(config, {"student.hidden_size": 100, "student.num_heads": 10}).student.hidden_size == 100
    with pytest.raises(ConfigError) as caught:
        with_params(config, {"student.hidden_size": 100, "student.num_heads": 12})
    expected = "student.hidden_size: 100 is not divisible by num_heads (12); change one of them."
    assert str(caught.value) == f"impossible combination: {expected}"


def test_config_of_a_trial_is_the_config_with_these_values() -> None:
    space = {
        f"{KD}.temperature": {"uniform": [1, 8]},
        HINT: {"choice": [None, {"type": "hidden_mse", "layers": [[0, 0], [2, 6]]}]},
        "stages.distill.losses.task": {"choice": [{"type": "task"}, None]},
        "stages.distill.num_epochs": {"integer": [1, 3]},
        "train.max_grad_norm": {"choice": [None, 1.0]},
    }
    config = sweeping(space)
    check_space(config)
    hint = '{"layers":[[0,0],[2,6]],"type":"hidden_mse"}'
    shown = {f"{KD}.temperature": 3.25, HINT: hint, "stages.distill.losses.task": None, "stages.distill.num_epochs": 2}
    trial = with_params(config, {**shown, "train.max_grad_norm": None})
    by_hand = [f"{KD}.temperature=3.25", "stages.distill.num_epochs=2", "train.max_grad_norm=null"]
    by_hand += [f"{HINT}={hint}", "stages.distill.losses.task=null", "sweep=null"]
    assert trial == load_config(config, by_hand)
    assert trial.sweep is None
    assert set(trial.stages["distill"].losses) == {"kd", "hint"}
    assert set(with_params(config, {HINT: None}).stages["distill"].losses) == {"kd", "task"}


def test_label_that_is_no_choice() -> None:
    config = sweeping({"student.num_layers": {"choice": [2, 3]}})
    with pytest.raises(ConfigError, match=r"4 is none of the choices 2, 3\."):
        with_params(config, {"student.num_layers": 4})


scalars = st.none() | st.booleans() | st.integers(-99, 99) | st.floats(-9, 9) | st.text("abc", max_size=4)
plain = st.recursive(scalars, lambda below: st.lists(below) | st.dictionaries(st.text("ab"), below), max_leaves=6)


@given(st.lists(plain, min_size=1, max_size=6, unique_by=lambda value: str(label(value)) + str(type(value))))
@settings(max_examples=50, deadline=None)
def test_label_is_undone(choices: list[Any]) -> None:
    values = sweeping({"student.num_layers": {"choice": choices}}).sweep.space["student.num_layers"]  # type: ignore[union-attr]
    for choice in choices:
        shown = label(choice)
        assert shown is None or isinstance(shown, bool | int | float | str)
        found = value_of(values, shown)
        assert found == choice
        assert type(found) is type(choice)


LAYERS = st.sampled_from(["auto", "last", [[0, 0]], [[1, 2], [2, 4]]])
HINTS = st.fixed_dictionaries({"type": st.sampled_from(["hidden_mse", "hidden_cosine"]), "layers": LAYERS})


@given(st.lists(st.none() | HINTS, min_size=1, max_size=4, unique_by=label), st.floats(1, 8))
@settings(max_examples=25, deadline=None)
def test_with_params_undoes_label(hints: list[Any], temperature: float) -> None:
    config = sweeping({HINT: {"choice": hints}, f"{KD}.temperature": {"uniform": [1, 8]}})
    for hint in hints:
        params = {HINT: label(hint), f"{KD}.temperature": temperature}
        assert contains(config.sweep, params)  # type: ignore[arg-type]
        losses = with_params(config, params).stages["distill"].model_dump(mode="json")["losses"]
        assert losses["kd"]["temperature"] == temperature
        assert (hint is None and "hint" not in losses) or losses["hint"].items() >= hint.items()
        # the trial's own config says the same again
        again = with_params(config, params).model_copy(update={"sweep": config.sweep})
        assert default_params(again) == params


def test_default_params_are_the_choices_that_mean_what_the_config_says() -> None:
    config = sweeping(
        {
            KD: {"choice": [{"type": "logit_mse"}, {"temperature": 2, "type": "forward_kl"}]},
            HINT: {"choice": [{"type": "hidden_mse"}, None]},
            "stages.distill.num_epochs": {"integer": [1, 5]},
            "stages.distill.weight_decay": {"choice": [0, 0.01]},
            "student.num_layers": {"choice": [2, 3]},
        }
    )
    assert config.sweep is not None
    config = load_config(config, ["stages.distill.num_epochs=3"])
    params = default_params(config)
    assert params[KD] == '{"temperature":2,"type":"forward_kl"}'
    assert [*params.values()][1:] == [None, 3, 0.01, 2]
    assert isinstance(params["stages.distill.num_epochs"], int)
    assert contains(config.sweep, params)
    assert with_params(config, params) == load_config(config, ["sweep=null"])


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("student.num_layers", {"choice": [3, 4]}),
        ("student.num_layers", {"integer": [3, 4]}),
        ("student.hidden_size", {"integer": [8, 16]}),
        (f"{KD}.temperature", {"uniform": [2.5, 8]}),
        (KD, {"choice": [{"type": "forward_kl", "temperature": 3}]}),
    ],
)
def test_default_outside_the_space(name: str, values: dict[str, Any]) -> None:
    config = sweeping({name: values})
    check_space(config)
    assert config.sweep is not None
    assert not contains(config.sweep, default_params(config))
    more = sweeping({name: values, "stages.distill.num_epochs": {"integer": [1, 5]}})
    assert more.sweep is not None
    assert not contains(more.sweep, default_params(more))  # each setting lies in it, or the combination does not


def test_combinations_in_the_order_written_last_name_fastest() -> None:
    sweep = sweeping({"student.num_layers": {"choice": [3, 2]}, "student.num_heads": {"integer": [1, 3]}}).sweep
    assert sweep is not None
    assert space_size(sweep) == 6
    found = [combination(sweep, index) for index in range(6)]
    assert [tuple(params.values()) for params in found] == [(3, 1), (3, 2), (3, 3), (2, 1), (2, 2), (2, 3)]
    assert all(list(params) == ["student.num_layers", "student.num_heads"] for params in found)


def test_size_of_a_continuous_space() -> None:
    sweep = sweeping({"student.num_layers": {"choice": [3, 2]}, f"{KD}.weight": {"loguniform": [0.1, 1]}}).sweep
    assert sweep is not None
    assert space_size(sweep) is None


@pytest.mark.parametrize(
    ("values", "tried", "fresh"),
    [
        ({"choice": [1, 2, 3]}, [0, 2, 3], [4, 5, 6]),  # 1 may be tried by the same sweep with a larger budget
        ({"choice": [None, 1]}, [None, 1], [2, 3, 4]),
        ({"integer": [0, 2**31 - 1]}, [0, 1, 3], [2, 4, 5]),
    ],
)
def test_finals_have_seeds_that_the_search_cannot_select_on(
    values: dict[str, Any], tried: list[int | None], fresh: list[int]
) -> None:
    config = sweeping({"train.seed": values}, final_seeds=3)
    assert fresh_seeds(config, [{"train.seed": seed} for seed in tried]) == fresh


def test_finals_have_the_seeds_after_the_configs_own() -> None:
    config = sweeping({f"{KD}.weight": {"choice": [1, 2]}}, final_seeds=2)
    assert fresh_seeds(config, [{f"{KD}.weight": 1}]) == [1, 2]
