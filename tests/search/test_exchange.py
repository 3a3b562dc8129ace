"""Settings that change while a student trains: written in the config, or found by a pbt sweep, and then replayed."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from kit.runs import make_context, make_shared, read_weights, replay, same_weights
from kit.toy import toy_config, weights
from ray.tune.schedulers import PopulationBasedTraining

from raydistill.config.loading import load_config
from raydistill.config.training import Optimization
from raydistill.config.tree import Config
from raydistill.errors import ConfigError
from raydistill.losses import build_losses
from raydistill.models.student import build_student
from raydistill.pipeline.stages import stage_reports
from raydistill.search.actor import TrialActor
from raydistill.search.ledger import Ledger, Params
from raydistill.search.schedulers import Exchange, scheduler_for
from raydistill.search.sharing import Shared
from raydistill.search.sweep import sweep
from raydistill.search.trial import TrialSpec, trial_config
from raydistill.storage.artifacts import Artifact
from raydistill.storage.storage import Storage
from raydistill.train import loop
from raydistill.train.checkpoint import TrainProgress
from raydistill.train.optimizer import build_optimizer, set_rates, trainable
from raydistill.train.schedule import Schedule

RATE, WEIGHT, TEMPERATURE = (
    f"stages.distill.{name}" for name in ("learning_rate", "losses.kd.weight", "losses.kd.temperature")
)
SPACE = {
    RATE: {"loguniform": [2e-4, 5e-3]},
    WEIGHT: {"uniform": [0.5, 2.0]},
    TEMPERATURE: {"choice": [1.0, 2.0, 4.0]},
}
STEPS_PER_EPOCH, NUM_STEPS = 12, 24
CHANGES = (
    (4, {"learning_rate": 4e-3, "losses.kd.weight": 0.25}),
    (STEPS_PER_EPOCH, {"losses.kd.temperature": 5.0}),
    (13, {"weight_decay": 0.3, "learning_rate": 1e-3}),
    (NUM_STEPS - 1, {"losses.kd.weight": 3.0}),
)
"""In the middle, at a validation, right after it, and before the last step."""


def pbt_config(folder: Path, **changes: Any) -> dict[str, Any]:
    settings = {
        "teacher__finetune__num_epochs": 2,
        "evaluate__metric": "log_loss",
        "evaluate__baseline": False,
        "train__num_workers": 1,
        "sweep": {
            "space": SPACE,
            "scheduler": "pbt",
            "num_trials": 4,
            "objectives": {"validation/log_loss": "min"},
            "final_seeds": 1,
        },
    }
    return toy_config(folder, **(settings | changes))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Shared:
    """Teacher and signals for the trials of a pbt sweep."""
    return make_shared(pbt_config(tmp_path_factory.mktemp("shared")))


@pytest.fixture
def fresh(shared: Shared, request: pytest.FixtureRequest) -> Shared:
    """The same, with a folder for checkpoints that only this test has."""
    return replace(shared, job=replace(shared.job, run_key=f"{shared.job.run_key}-{request.node.name}"))


def changing(config: Config, changes: tuple[tuple[int, dict[str, float]], ...] = CHANGES) -> Config:
    plain = config.model_dump(mode="json", exclude={"sweep"})
    plain["stages"]["distill"]["changes"] = [{"step": step, "set": values} for step, values in changes]
    return Config.model_validate(plain)


def train(shared: Shared, config: Config) -> torch.nn.Module:
    """The stages of a config, its student not published; the model with its best weights."""
    context = make_context(replace(shared.job, config=config, folder=("work", "stages")))
    teacher = context.teacher(shared.teacher)
    model = build_student(teacher, config.student, seed=0, attn_implementation=context.attention)
    for _ in stage_reports(context, "student", model, config.stages, shared.signals, shared.teacher, is_trial=True):
        pass
    return model


def train_by_hand(shared: Shared, changes: tuple[tuple[int, dict[str, float]], ...] = CHANGES) -> dict[str, Any]:
    """One loop over all steps; what changes is set by hand in the live losses and rates. The better epoch's weights."""
    config = shared.job.config
    context = make_context(replace(shared.job, folder=("work", "hand")))
    teacher = context.teacher(shared.teacher)
    model = build_student(teacher, config.student, seed=0, attn_implementation=context.attention)
    whole = config.stages["distill"]
    losses = build_losses(whole.losses, context.task, model.config, teacher.config, seed=0)
    rates = Optimization(**whole.model_dump(exclude={"losses", "changes"}))
    setup = loop.Setup(
        name="student.distill",
        model=model,
        losses=losses,
        signals=context.recorded(shared.signals),
        rows=context.rows["train"],
        row_ids=np.arange(context.rows["train"].num_rows),
        schedule=Schedule(NUM_STEPS, STEPS_PER_EPOCH),
        optimization=rates,
        settings=config.train,
        seed=0,
        validate=lambda: context.validate(model, "log_loss"),
        checkpoints=context.checkpoints("student", "distill"),
        group=context.group,
        device=context.device,
    )
    stage = loop.StageRun(setup)
    parameters = trainable(model, losses)
    optimizer = build_optimizer(parameters, rates)
    kept: dict[str, Any] = {}
    progress = TrainProgress()
    for step in range(NUM_STEPS):
        for name, value in dict(changes).get(step, {}).items():
            *parents, leaf = name.split(".")
            if parents:
                setattr(losses[parents[1]], leaf, value)
            else:
                rates = rates.model_copy(update={leaf: value})
        batches = stage.collate(step)
        stage.accumulate(step, batches, losses.counts(batches))
        assert config.train.max_grad_norm is not None
        torch.nn.utils.clip_grad_norm_(parameters, config.train.max_grad_norm)
        set_rates(optimizer, setup.schedule.learning_rate(step, TrainProgress(), rates), rates.weight_decay)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % STEPS_PER_EPOCH == 0:
            model.eval()
            found = context.validate(model, "log_loss")
            assert found.score == -found.metrics["log_loss"]
            kept = weights(model) if progress.take(found.score, found.samples) else kept
    return kept


@pytest.mark.parametrize("changes", [(), CHANGES[:1], CHANGES[1:2], CHANGES[3:], CHANGES], ids=len)
def test_settings_that_change_train_as_a_loop_does_in_which_they_are_changed_by_hand(fresh, changes):
    changed = weights(train(fresh, changing(fresh.job.config, changes)))
    assert same_weights(changed, train_by_hand(fresh, changes))
    assert same_weights(changed, train_by_hand(fresh, ())) == (not changes)


class Killed(BaseException):
    pass


@pytest.mark.parametrize(
    "checkpoint_steps", [pytest.param(1, marks=pytest.mark.slow), 5, pytest.param(100, marks=pytest.mark.slow)]
)
def test_killed_at_every_step_it_ends_with_the_same_weights(fresh, monkeypatch, checkpoint_steps):
    """A kill leaves the last checkpoint, which is one at each change, too."""
    config = changing(fresh.job.config)
    config = config.model_copy(update={"train": config.train.model_copy(update={"checkpoint_steps": checkpoint_steps})})
    original, taken = loop.StageRun.take_step, []

    def take_step(self: loop.StageRun, step: int, *arguments: Any) -> None:
        taken.append(step)
        if step == dies_at:
            raise Killed
        original(self, step, *arguments)

    monkeypatch.setattr(loop.StageRun, "take_step", take_step)
    saved = {0, *(step for step, _ in CHANGES), *range(0, NUM_STEPS, checkpoint_steps)}
    for dies_at in range(NUM_STEPS):
        taken.clear()
        with pytest.raises(Killed):
            train(fresh, config)
        reached = max(0, dies_at - 1)  # the session before died in this step
        assert taken == list(range(max(step for step in saved if step <= reached), dies_at + 1))
    dies_at = -1
    assert same_weights(weights(train(fresh, config)), train_by_hand(fresh))


class Actor(TrialActor):
    """A trial actor in this process, driven by hand as Tune drives it."""

    def __init__(self, shared: Shared, order: dict[str, Any]) -> None:
        self.setup({"trial": order}, shared, 1, True)

    def train_to(self, validation: int | None = None) -> dict[str, Any]:
        """Step up to a validation (None: the end); the last result."""
        while True:
            result = self.step()
            assert "failure" not in result, result
            if result["done"] or result["validation"] == validation:
                return result


def order_of(number: int, params: Params) -> dict[str, Any]:
    return TrialSpec(number, f"trial-{number:05d}", ((0, params),)).to_plain()


def exchanged(shared: Shared, trial: dict[str, Any], of: dict[str, Any]) -> dict[str, Any]:
    """What Tune would tell a trial that takes over another one."""
    scheduler = scheduler_for(shared.job.config.sweep, [])
    config, _ = scheduler._get_new_config(
        SimpleNamespace(config={"trial": trial}), SimpleNamespace(config={"trial": of})
    )
    return config["trial"]


GOOD: Params = {RATE: 2e-3, WEIGHT: 1.0, TEMPERATURE: 2.0}
BAD: Params = {RATE: 3e-4, WEIGHT: 0.6, TEMPERATURE: 4.0}


def test_a_trial_that_takes_over_stays_itself_and_gets_other_settings(shared):
    random.seed(0)
    first, second = order_of(1, GOOD), order_of(2, BAD)
    for _ in range(20):
        told = exchanged(shared, second, first)
        assert {**told, "params": GOOD} == {**first, "number": 2, "name": "trial-00002"}
        assert told["params"].keys() == GOOD.keys()
        assert told["params"] != GOOD
    assert first == order_of(1, GOOD)


def test_perturbed_settings_stay_in_their_ranges(shared):
    random.seed(1)
    seen = []
    for extreme in ({RATE: 5e-3, WEIGHT: 2.0, TEMPERATURE: 4.0}, {RATE: 2e-4, WEIGHT: 0.5, TEMPERATURE: 1.0}):
        for _ in range(100):
            params = exchanged(shared, order_of(2, BAD), order_of(1, extreme))["params"]
            assert SPACE[RATE]["loguniform"][0] <= params[RATE] <= SPACE[RATE]["loguniform"][1]
            assert SPACE[WEIGHT]["uniform"][0] <= params[WEIGHT] <= SPACE[WEIGHT]["uniform"][1]
            assert params[TEMPERATURE] in SPACE[TEMPERATURE]["choice"]
            seen.append(params)
    assert len({params[RATE] for params in seen}) > 20
    assert {params[TEMPERATURE] for params in seen} == set(SPACE[TEMPERATURE]["choice"])


def test_what_was_taken_over_can_be_trained_again_from_the_schedule(fresh, tmp_path):
    good, bad = order_of(1, GOOD), order_of(2, BAD)
    leader, follower = Actor(fresh, good), Actor(fresh, bad)
    follower.train_to(1)
    leader.train_to(1)
    (folder := tmp_path / "checkpoint").mkdir()
    leader.save_checkpoint(str(folder))
    random.seed(2)
    told = exchanged(fresh, bad, good)
    follower.reset_config({"trial": told})
    own = (*follower._work(), "student", "of its own")
    fresh.job.storage.write_bytes(b"x", *own)
    follower.load_checkpoint(str(folder))
    assert not fresh.job.storage.exists(*own)
    assert follower.step()["validation"] == 1  # the leader's
    schedule = follower.spec.schedule
    assert schedule == ((0, GOOD), (STEPS_PER_EPOCH, told["params"]))
    result = follower.train_to()
    assert result["schedule"] == schedule
    assert 0 < result["setup_seconds"] < 600
    assert 0 < result["seconds"] < 600
    student = Artifact(fresh.job.storage, "student", result["student"]).local() / "model"
    replayed = train(fresh, trial_config(fresh.job.config, schedule))
    assert same_weights(read_weights(student), weights(replayed))
    leader.train_to()


def test_taking_over_twice_at_one_step_leaves_one_change(fresh, tmp_path):
    """A trial that has not trained since it took over is itself taken over: the settings between never held."""
    first: Params = {**GOOD, WEIGHT: 1.1}
    leader, middle, last = (Actor(fresh, order_of(number, first)) for number in (1, 2, 3))
    leader.train_to(1)
    told = first
    for index, (giver, taker) in enumerate([(leader, middle), (middle, last)]):
        (folder := tmp_path / str(index)).mkdir()
        giver.save_checkpoint(str(folder))
        told = {**told, WEIGHT: 1.2 + index / 4}
        taker.reset_config({"trial": {**order_of(index + 2, first), "params": told}})
        taker.load_checkpoint(str(folder))
    assert last.spec.schedule == ((0, first), (STEPS_PER_EPOCH, told))


def test_a_student_out_of_storage_takes_no_part_in_exchanges(fresh, monkeypatch):
    """It comes with its whole history at once, and there is no checkpoint to take over."""
    order = order_of(1, {**GOOD, WEIGHT: 1.3})
    assert not Actor(fresh, order).train_to()["reused"]
    again = Actor(replace(fresh, job=replace(fresh.job, run_key=f"{fresh.job.run_key}-again")), order)
    first = again.step()
    assert (first["validation"], first["reused"], first["done"]) == (1, True, False)
    scheduler = scheduler_for(fresh.job.config.sweep, [])
    assert isinstance(scheduler, Exchange)
    trial = SimpleNamespace(trial_id="0", config={"trial": order})  # of which pbt would want a checkpoint
    monkeypatch.setattr(PopulationBasedTraining, "on_trial_result", lambda *told: "PAUSE")
    assert scheduler.on_trial_result(None, trial, first) == scheduler.CONTINUE
    assert scheduler.on_trial_result(None, trial, {**first, "reused": False}) == "PAUSE"
    assert again.train_to()["student"] is not None


@pytest.mark.slow
def test_a_pbt_sweep_records_schedules_that_distill_can_replay(tmp_path):
    """Plain distill, in a storage that has seen no sweep, trains the very same students."""
    config = load_config(pbt_config(tmp_path, stages__distill__num_epochs=6))
    summary = sweep(config)
    assert summary["counts"]["completed"] == sum(summary["counts"].values()) == 4
    trials = list(Ledger(Storage(config.storage), ("runs", summary["sweep_key"])))
    changed = [trial for trial in trials if len(trial.schedule) > 1]
    assert changed
    for trial in trials:
        assert [entry["validation"] for entry in trial.history] == [1, 2, 3, 4, 5, 6]
        assert [entry["step"] for entry in trial.history] == [STEPS_PER_EPOCH * n for n in range(1, 7)]
    for trial in changed:
        steps = [step for step, _ in trial.schedule]
        assert steps == sorted(set(steps))
        assert all(step % STEPS_PER_EPOCH == 0 for step in steps)
        assert trial.params == trial.schedule[-1][1]
    for trial in [max(changed, key=lambda trial: len(trial.schedule)), trials[0]]:
        schedule = trial.schedule or ((0, trial.params),)
        mine = Artifact(Storage(config.storage), "student", str(trial.student)).local() / "model"
        assert same_weights(read_weights(mine), read_weights(replay(config, schedule, tmp_path / "other")))


def test_pbt_refuses_what_cannot_change_on_the_way(tmp_path):
    plain = pbt_config(tmp_path)
    plain["sweep"]["space"] = {"student.num_layers": {"choice": [1, 2]}, "train.seed": {"choice": [1, 2]}, **SPACE}
    with pytest.raises(ConfigError) as caught:
        load_config(plain)
    text = str(caught.value)
    for name in ("student.num_layers", "train.seed"):
        assert f"sweep.space.{name}: changes what is trained, and pbt changes settings while it trains" in text
    assert RATE not in text


@pytest.mark.parametrize("value", ["auto", {"start": 1.0, "end": 0.0}])
def test_pbt_refuses_choices_that_are_no_numbers(tmp_path, value):
    """A trial that took one over would have it as a number from then on."""
    name = RATE if value == "auto" else "stages.distill.losses.kd.weight"
    plain = pbt_config(tmp_path)
    plain["sweep"]["space"] = {name: {"choice": [0.5, value]}}
    with pytest.raises(ConfigError, match=f"sweep.space.{name}: pbt changes numbers while it trains"):
        load_config(plain)
    plain["sweep"]["scheduler"] = "none"
    load_config(plain)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"losses.task.temperature": 2.0}, "losses.task.temperature cannot change on the way"),
        ({"num_epochs": 3}, "num_epochs cannot change on the way"),
    ],
)
def test_changes_that_a_stage_cannot_make_are_refused(tmp_path, values, text):
    plain = pbt_config(tmp_path)
    plain["stages"]["distill"]["changes"] = [{"step": 3, "set": values}]
    with pytest.raises(ConfigError, match=text):
        load_config(plain)
