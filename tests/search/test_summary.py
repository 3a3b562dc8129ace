"""sweep.json: means, shrinkage and choice by hand, strict JSON, a winner that can be had again, an honest verdict."""

import json
import math
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydistill.config.loading import load_config
from raydistill.config.syntax import as_yaml, parse_yaml
from raydistill.config.tree import Config
from raydistill.errors import ModelError
from raydistill.search import finals, front, summary
from raydistill.search.ledger import Trial
from raydistill.search.space import default_params, label, sweep_of, with_params
from raydistill.search.summary import Finalist, SeedOutcome, build_summary, choose
from raydistill.storage.locks import is_held
from raydistill.storage.storage import Storage

KD = "stages.distill.losses.kd.temperature"
HIDDEN = "stages.distill.losses.hidden"
RATE = "stages.distill.learning_rate"
LAYERS = {"type": "hidden_mse", "weight": 0.5, "layers": [[1, 3], [2, 6]]}


def config(task: str = "text_classification", **sweep: Any) -> Config:
    space = {
        KD: {"uniform": [1, 8]},
        RATE: {"loguniform": [1e-5, 1e-3]},
        "student.num_layers": {"integer": [1, 4]},
        HIDDEN: {"choice": [None, LAYERS]},
        "stages.distill.schedule": {"choice": ["linear", "cosine"]},
    }
    kd = "forward_kl" if task == "text_classification" else "logit_mse"
    space = space if kd == "forward_kl" else {name: values for name, values in space.items() if name != KD}
    losses = {"kd": {"type": kd}, "task": {"type": "task", "weight": 0.5}}
    content = {
        "data": {"path": "rows.csv"},
        "task": {"type": task},
        "teacher": {"model": "some/model"},
        "student": {"num_layers": 2},
        "stages": {"distill": {"learning_rate": 5e-5, "losses": losses}},
        "sweep": {"space": space, **sweep},
    }
    return load_config(content)


def params(number: int) -> dict[str, Any]:
    rate = 1e-5 * 1.37 ** (number + 1)
    layers, schedule = 1 + number % 4, ("linear", "cosine")[number % 3 % 2]
    section = label(LAYERS) if number % 2 else None
    own = {KD: 1.0 + number / 7, RATE: rate, "student.num_layers": layers, HIDDEN: section}
    return own | {"stages.distill.schedule": schedule}


def make_trials() -> list[Trial]:
    """Eight trials; accuracy follows the learning rate, and nothing else."""
    trials = []
    for number in range(8):
        facts = {"num_parameters": 23_456_789.0 + number, "latency_ms": 1.0 + number}
        values = {"validation/accuracy": 0.80 + number / 90, "validation/log_loss": 0.5}
        report = {"step": 30, "num_steps": 60, "seconds": 1.5, "train/loss": 2 / 3, **values}
        history = ({**report, "step": 15, "validation/accuracy": math.nan}, report)
        trials.append(Trial(number, params(number), "completed", facts=facts, values=values, history=history))
    own = default_params(config())
    trials[0] = replace(trials[0], params=own)
    trials.append(Trial(8, params(8), "rejected", reason="latency_ms: 9 is above the max of 8.", facts=trials[7].facts))
    return trials


TRIALS = dict(enumerate(make_trials()))


def finalist(
    trial: int,
    validation: list[float],
    test: list[float],
    roles: tuple[str, ...] = ("best",),
    metric: str = "accuracy",
) -> Finalist:
    seeds = [
        SeedOutcome(seed, f"key{seed}", f"students/{seed}", {metric: high}, {metric: low, "mcc": math.nan})
        for seed, (high, low) in enumerate(zip(validation, test, strict=True), 1)
    ]
    return Finalist(trial, roles, tuple(seeds))


OWN = finalist(0, [0.80, 0.81, 0.79], [0.79, 0.80, 0.78], ("default",))
"""The config's own values with the same seeds: sd 0.01."""


def build(finalists: list[Finalist] | None = None, settings: Config | None = None, **more: Any) -> dict[str, Any]:
    settings = settings or config()
    sweep = sweep_of(settings)
    trials = more.pop("trials", make_trials())
    if finalists is None:
        finalists = [finalist(7, [0.87, 0.88, 0.86], [0.85, 0.87, 0.83]), OWN]
    arguments = {
        "config": settings,
        "sweep_key": "abc",
        "run_id": None,
        "trials": trials,
        "front": front.pareto_front([t for t in trials if t.state == "completed"], sweep.objectives),
        "finalists": finalists,
        "winner": choose(finalists, sweep, TRIALS) if finalists else None,
        "results": {"verdict": "fine", "value": 0.123456789},
        "shapes": [{"num_parameters": 5, "latency_ms": math.inf}],
        "seconds": {"search": 12.3456789, "total": 20},
        "concurrency": 2,
        "stopped_by": "num_trials",
        "teacher": {"passes": 1, "passes_saved": 7, "rows": 100},
        "notes": ["a note"],
    }
    return build_summary(**(arguments | more))


def test_mean_spread_and_shrinkage_by_hand() -> None:
    section, _ = build()["finalists"]
    assert section["validation"] == {"accuracy": {"mean": 0.87, "sd": 0.01}}
    assert section["test"]["accuracy"] == {"mean": 0.85, "sd": 0.02}
    assert section["test"]["mcc"] == {"mean": None, "sd": None}
    # the trial had 0.80 + 7/90 = 0.877778 in the search
    assert section["search"]["validation/accuracy"] == 0.877778
    assert section["shrinkage"] == {"accuracy": 0.0277778}
    (section,) = build([finalist(7, [0.87], [0.85])])["finalists"]
    assert section["validation"]["accuracy"] == {"mean": 0.87, "sd": None}


def test_the_winner_has_the_best_mean_and_not_the_best_single_seed() -> None:
    steady, lucky = finalist(1, [0.85, 0.87, 0.86], [0.1, 0.1, 0.1]), finalist(2, [0.99, 0.70, 0.70], [0.9, 0.9, 0.9])
    sweep = sweep_of(config())
    won, seed = choose([lucky, steady], sweep, TRIALS)
    assert (won.trial, seed.seed) == (1, 2)  # on test the other is better: nobody looks there


def test_the_winner_by_a_metric_that_is_better_when_lower() -> None:
    sweep = sweep_of(config(objectives={"latency_ms": "min", "validation/log_loss": "min"}))
    a = finalist(0, [0.5, math.nan, 0.3], [0.1] * 3, metric="log_loss")
    b = finalist(1, [0.45, 0.41], [0.1] * 2, ("knee",), metric="log_loss")
    assert choose([b, a], sweep, TRIALS) == (a, a.seeds[2])


def test_the_configs_own_values_do_not_win_against_a_constraint() -> None:
    own, best = finalist(0, [0.95, 0.96], [0.9, 0.9], ("default",)), finalist(5, [0.9, 0.91], [0.9, 0.9])
    for bounds, winner in (({}, own), ({"validation/accuracy": {"min": 0.85}}, best)):  # 0.80 in its trial
        sweep = sweep_of(config(constraints=bounds))
        assert choose([own, best], sweep, TRIALS) == (winner, winner.seeds[1])
    assert choose([own], sweep, TRIALS) is None


def test_no_winner_without_a_value() -> None:
    sweep = sweep_of(config())
    with pytest.raises(ModelError, match="No trial that was trained again has a validation/accuracy"):
        choose([Finalist(0, ("best",), ()), finalist(1, [math.nan], [0.5])], sweep, TRIALS)


def test_it_is_strict_json_with_six_digits_and_exact_settings() -> None:
    built = build()
    text = json.dumps(built, allow_nan=False)
    assert json.loads(text) == built
    assert built["seconds"]["search"] == 12.3457
    assert built["trials"][3]["params"] == params(3)
    assert built["trials"][3]["measures"]["num_parameters"] == 23_456_792
    assert built["curves"]["3"] == [
        {"step": 15, "train/loss": 0.666667, "validation/accuracy": None, "validation/log_loss": 0.5},
        {"step": 30, "train/loss": 0.666667, "validation/accuracy": 0.833333, "validation/log_loss": 0.5},
    ]
    assert built["shapes"] == [{"num_parameters": 5, "latency_ms": None}]
    assert built["results"]["value"] == 0.123456789


def test_trials_counts_and_front() -> None:
    built = build()
    assert built["counts"] == {"waiting": 0, "running": 0, "completed": 8, "stopped": 0, "failed": 0, "rejected": 1}
    assert built["front"] == [7]
    rejected = built["trials"][8]
    assert (rejected["state"], rejected["step"], rejected["validations"]) == ("rejected", None, 0)
    assert rejected["reason"].startswith("latency_ms")
    assert {name: built["trials"][0][name] for name in ("step", "num_steps", "validations")} == {
        "step": 30,
        "num_steps": 60,
        "validations": 2,
    }
    assert built["default"] == built["trials"][0]["params"]
    assert built["space"][HIDDEN] == {"choice": [None, LAYERS]}
    assert load_config(built["config"]) == config()


@pytest.mark.parametrize("number", range(8))
def test_the_winner_can_be_had_again_with_set(number: int) -> None:
    settings = config()
    winner = build([finalist(number, [0.9, 0.8], [0.9, 0.8])], trials=make_trials())["winner"]
    assert (winner["trial"], winner["seed"], winner["path"]) == (number, 1, "students/1")
    again = load_config(settings, winner["set"])
    trial = with_params(settings, make_trials()[number].params)
    expected = trial.model_copy(update={"train": trial.train.model_copy(update={"seed": 1})})
    assert again.model_copy(update={"sweep": None}) == expected


def test_the_winners_seed_goes_before_a_seed_of_the_space() -> None:
    content = config().model_dump(mode="json")
    content["sweep"]["space"] = {"train.seed": {"choice": [3, 4]}}
    assert summary.settings(load_config(content), {"train.seed": 4}, 9) == ["train.seed=9"]


scalars = st.none() | st.booleans() | st.integers(-(10**17), 10**17) | st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=12) | st.sampled_from(
    ["1e-3", "null", "~"]
)


@given(st.recursive(scalars | texts, lambda below: st.lists(below) | st.dictionaries(texts, below), max_leaves=6))
def test_every_value_reads_back(value: Any) -> None:
    read = parse_yaml(as_yaml(value), "").data
    assert json.dumps(read) == json.dumps(value)


def test_importance_names_the_setting_that_matters_and_repeats_itself() -> None:
    trials = [
        replace(t, params={**t.params, RATE: 10 ** (-5 + (i * 0.37) % 2), KD: 1 + (i * 2.3) % 7})
        for i, t in enumerate(make_trials()[:8] * 3)
    ]
    trials = [
        replace(t, number=i, values={"validation/accuracy": math.log10(t.params[RATE])}) for i, t in enumerate(trials)
    ]
    settings = config(objectives={"validation/accuracy": "max", "latency_ms": "min"})
    shares = summary.importance(settings, trials)
    assert list(shares) == ["validation/accuracy", "latency_ms"]
    assert next(iter(shares["validation/accuracy"])) == RATE
    assert shares["validation/accuracy"][RATE] > 0.8
    assert sum(shares["latency_ms"].values()) == pytest.approx(1)
    assert shares == summary.importance(settings, trials)


def test_importance_is_left_out_where_it_says_nothing() -> None:
    trials = make_trials()
    few = [replace(trials[0], number=i, values={"validation/accuracy": i / 20}) for i in range(20)]
    assert summary.importance(config(), few[:19]) == {}
    assert summary.importance(config(), few) != {}
    assert summary.importance(config(), [replace(t, state="stopped") for t in few]) == {}
    same = [replace(t, values={"validation/accuracy": 0.5}) for t in few]
    assert summary.importance(config(), same) == {}


def test_verdict_says_what_won_and_by_how_much() -> None:
    assert build()["verdict"] == (
        "The search paid off: trial 7 is 7.0 points better than the config's own values. "
        "The winner reaches 87.0 ± 1.0 % accuracy on validation, the mean of 3 fresh seeds. "
        "The config's own values reach 80.0 ± 1.0 % there. On test it reaches 85.0 ± 2.0 %. "
        "That is 2.8 points worse than what the search saw on validation (87.8 %). "
        "8 trials searched for validation accuracy (bayesian, asha). 1 more was rejected untrained."
    )


def test_verdict_claims_no_gain_that_seeds_could_make() -> None:
    # half width for 3 seeds and equal spreads: t(4 df) 2.776 * sd 0.01 * sqrt(2/3) = 0.0227
    doubt = "The seed alone may explain that"
    assert doubt in build([finalist(7, [0.822, 0.812, 0.832], [0.8] * 3), OWN])["verdict"]
    assert doubt not in build([finalist(7, [0.823, 0.813, 0.833], [0.8] * 3), OWN])["verdict"]
    assert (
        "due to the seed is not known"
        in build([finalist(7, [0.95], [0.9]), finalist(0, [0.8], [0.8], ("default",))])["verdict"]
    )


def test_verdict_when_the_configs_own_values_win_or_were_not_trained() -> None:
    own = build([finalist(0, [0.87, 0.88], [0.85, 0.87])])["verdict"]
    assert own.startswith("The search found nothing better than the config's own values (trial 0). ")
    assert "points better than the config" not in own
    assert "were not trained again" in build([finalist(7, [0.9, 0.8], [0.9, 0.8])])["verdict"]
    assert (
        "The winner reaches 90.0 % accuracy on validation, with one fresh seed."
        in build([finalist(7, [0.9], [0.8])])["verdict"]
    )


def test_verdict_of_values_that_break_a_constraint_or_are_as_good_claims_no_gain() -> None:
    worse = finalist(7, [0.7] * 3, [0.7] * 3)
    broken = build([worse, OWN], winner=(worse, worse.seeds[0]))
    assert broken["verdict"].startswith("Trial 7 won within the constraints, which the config's own values break. ")
    equal = build([finalist(7, [0.80, 0.81, 0.79], [0.8] * 3), OWN])["verdict"]
    assert equal.startswith("No gain: trial 7 is as good as the config's own values. ")


def test_verdict_of_a_front_names_size_and_speed() -> None:
    settings = config(objectives={"validation/accuracy": "max", "latency_ms": "min"}, scheduler="none")
    text = build(settings=settings)["verdict"]
    assert text.endswith(
        "It has a latency of 8 ms. 8 trials searched for validation accuracy and latency (bayesian). "
        "8 of them form the Pareto front. 1 more was rejected untrained."
    )
    bounded = config(constraints={"num_parameters": {"max": 30_000_000}, "latency_ms": {"max": 9}})
    assert "It has 23,456,796 parameters and a latency of 8 ms. " in build(settings=bounded)["verdict"]
    one = build(settings=settings, front=make_trials()[7:8])["verdict"]
    assert one.endswith("(bayesian). The winner is best in every objective. 1 more was rejected untrained.")


@pytest.mark.parametrize(
    ("task", "main"),
    [
        ("text_classification", "accuracy"),
        ("text_regression", "pearson"),
        ("multi_label_classification", "micro_f1"),
    ],
)
def test_a_sweep_looks_for_the_task_s_main_metric_unless_told_otherwise(task: str, main: str) -> None:
    settings = config(task)
    assert sweep_of(settings).objectives == {f"validation/{main}": "max"}
    own = {"validation/log_loss": "min"}
    assert sweep_of(config(objectives=own)).objectives == own


def test_verdict_on_an_error_that_falls() -> None:
    settings = config(objectives={"validation/log_loss": "min"})
    best = finalist(7, [0.43, 0.44, 0.42], [0.43, 0.44, 0.42], metric="log_loss")
    own = finalist(0, [0.5, 0.51, 0.49], [0.5, 0.51, 0.49], ("default",), metric="log_loss")
    chosen = choose([best, own], sweep_of(settings), TRIALS)
    assert chosen == (best, best.seeds[2])
    text = build([best, own], settings, winner=chosen)["verdict"]
    assert text.startswith("The search paid off: trial 7 is 0.070 better than the config's own values. ")
    assert "The winner reaches 0.430 ± 0.010 log loss on validation" in text
    assert "That is 0.070 better than what the search saw on validation (0.500)." in text
    assert "searched for validation log loss" in text


def test_verdict_without_a_winner_says_why() -> None:
    trials = [replace(make_trials()[0], state="failed"), make_trials()[8]]
    built = build([], trials=trials, results=None)
    assert built["winner"] is None
    assert built["verdict"] == (
        "No winner: no trial was trained to its end within the constraints. Trials: 1 failed, 1 rejected."
    )


def test_the_winners_run_is_locked_from_before_it_is_taken_over_until_it_is_registered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome: Any = None
    storage, held_at = Storage(str(tmp_path)), dict[str, bool | None]()
    won: Any = SimpleNamespace(storage=storage, run_key="won", config=None, job=lambda owner, ref: None)

    def look(name: str, answer: Any = None) -> Any:
        def step(*args: Any, **options: Any) -> Any:
            held_at[name] = is_held(storage, "runs", "won", "driver.lock")
            return answer

        return step

    choice: Any = object.__new__(finals.Choice)
    choice.prepared, choice.ref, choice.stop, choice.show = (
        SimpleNamespace(storage=storage, run_key="sweep"),
        None,
        None,
        print,
    )
    choice.finalists, choice.winner, choice._winner_prepared = [finalist(7, [0.9], [0.8])], (None, None), lambda: won
    for name in ("start_run", "adopt", "take_over"):
        monkeypatch.setattr(finals, name, look(name))
    tested = {"validation": {"accuracy": 0.7}, "test": {"accuracy": 0.6}}
    closing = finals.Closing(outcome=outcome, scores={"key1": tested})
    monkeypatch.setattr(finals, "run_workers", look("run_workers", closing))
    with ExitStack() as held:
        choice.evaluate(held)
        look("until registered")()
    look("after")()
    (seed,) = choice.finalists[0].seeds
    assert {"validation": seed.validation, "test": seed.test} == tested
    assert held_at.pop("after") is False
    assert all(held_at.values())
    assert len(held_at) == 5
