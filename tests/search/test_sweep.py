"""Whole sweeps on Ray: one teacher pass, trials that equal ``distill``, stops, resumes, finals, and what is tracked."""

from __future__ import annotations

import itertools
import json
import os
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from kit.processes import KEY, fill
from kit.runs import (
    artifacts_of_run,
    find_run,
    make_shared,
    metric_steps,
    mlflow_runs,
    read_weights,
    recorded_rows,
    same_weights,
)
from kit.toy import relative_difference, toy_config, without_key_biases
from kit.toy import weights as module_weights
from mlflow import MlflowClient
from mlflow.entities import Run
from ray.util import placement_group_table

from raydistill.config.loading import load_config
from raydistill.config.tree import Config
from raydistill.errors import Interrupted, ModelError
from raydistill.pipeline.distill import distill
from raydistill.pipeline.stages import read_history
from raydistill.search.actor import TrialActor
from raydistill.search.ledger import Ledger, Params, Trial
from raydistill.search.sources import FinalSource
from raydistill.search.sweep import finished, sweep
from raydistill.search.trial import FOLDER, TrialSpec, trial_config
from raydistill.storage.artifacts import Artifact
from raydistill.storage.board import Show
from raydistill.storage.garbage import referred, remove_artifact
from raydistill.storage.ownership import Owner
from raydistill.storage.storage import Storage
from raydistill.tracking.runs import RunRef

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("mlflow_uri")]

LAYERS, RATE, PAIRS = "student.num_layers", "stages.distill.learning_rate", "stages.distill.losses.hidden.layers"
TOO_FAST = 1e9
NUM_EPOCHS, STEPS_AN_EPOCH = 6, 12
NUM_STEPS = NUM_EPOCHS * STEPS_AN_EPOCH
SHAPES = {
    "teacher__finetune__num_epochs": 2,
    "stages__distill__num_epochs": NUM_EPOCHS,
    "stages__distill__losses__hidden": {"type": "hidden_mse", "layers": [[1, 2]], "weight": 0.1},
    "train__num_workers": 1,
    "evaluate__baseline": False,
}
SWEEP: dict[str, Any] = {
    "space": {
        LAYERS: {"choice": [1, 2, 3]},
        RATE: {"choice": [1e-3, 4e-3, TOO_FAST]},
        PAIRS: {"choice": [[[1, 2]], [[1, 4]]]},
    },
    "search": "random",
    "scheduler": "none",
    "num_trials": 6,
    "objectives": {"validation/accuracy": "max", "num_parameters": "min"},
    "constraints": {"num_parameters": {"max": 24_000}},
    "final_seeds": 2,
}
"""18 combinations: 6 have 3 layers and are too large, 4 of the others learn too fast, 8 come to their end."""


@dataclass
class Session:
    """One call of ``sweep``, and what its workers counted meanwhile."""

    summary: dict[str, Any]
    trials: dict[int, Trial]
    finals: dict[int, Trial]
    lines: list[str]
    opened: list[tuple[str, int, str]] = field(default_factory=list)
    """Split, lines counted before it was opened, process."""

    def steps(self) -> Counter[int]:
        """How often the students' step of each number was taken."""
        return Counter(int(line.split()[2]) for line in self.lines if line.startswith("step student.distill "))


@dataclass
class Swept:
    """The same sweep three times: stopped by Ctrl-C, gone on with to the end of its space, and looked up."""

    config: Config
    storage: Storage
    stopped: Session
    message: str
    resumed: Session
    again: Session

    @property
    def lines(self) -> list[str]:
        return self.stopped.lines + self.resumed.lines

    def student(self, trial: Trial) -> Artifact:
        return Artifact(self.storage, "student", str(trial.student))


def take_session(counts: Path, config: Config, **options: Any) -> Session:
    """Sweep; the summary of a session that is interrupted has the error's text alone."""
    opened = counts.with_name(f"{counts.name}.opened")
    offset, before = counts.stat().st_size, len(opened.read_text().splitlines()) if opened.exists() else 0
    try:
        summary = sweep(config, **options)
    except Interrupted as error:
        summary = {"interrupted": str(error)}
    storage = Storage(config.storage)
    (key,) = [name for name in storage.list("runs") if storage.exists("runs", name, "trials")]
    ledgers = [Ledger(storage, ("runs", key), name=name) for name in ("trials", "finals")]
    content = counts.read_bytes()
    noted = [line.split() for line in opened.read_text().splitlines()[before:]]
    return Session(
        summary,
        *({trial.number: trial for trial in ledger} for ledger in ledgers),
        lines=content[offset:].decode().splitlines(),
        opened=[(split, content[offset : int(size)].count(b"\n"), pid) for split, size, pid in noted],
    )


def ctrl_c_in_the_middle() -> Show:
    """Shows nothing; Ctrl-C, once, when a trial has validated but has half of its steps before it."""
    sent: list[int] = []

    def show(entry: Any) -> None:
        half = [t for t in entry.get("trials", []) if t.state == "running" and 0 < len(t.history) <= NUM_EPOCHS // 2]
        if half and not sent:
            sent.append(half[0].number)
            os.kill(os.getpid(), signal.SIGINT)

    return show


def with_trials(config: Config, num_trials: int) -> Config:
    assert config.sweep is not None
    return config.model_copy(update={"sweep": config.sweep.model_copy(update={"num_trials": num_trials})})


@pytest.fixture(scope="module")
def swept(ray_cluster: Path, tmp_path_factory: pytest.TempPathFactory) -> Swept:
    config = load_config(toy_config(tmp_path_factory.mktemp("swept"), **SHAPES, sweep=SWEEP))
    storage = Storage(config.storage)
    stopped = take_session(ray_cluster, config, progress=ctrl_c_in_the_middle())
    resumed = take_session(ray_cluster, with_trials(config, 100))
    again = take_session(ray_cluster, with_trials(config, 100))
    return Swept(config, storage, stopped, stopped.summary["interrupted"], resumed, again)


def in_state(trials: dict[int, Trial], *states: str) -> list[Trial]:
    return [trial for trial in trials.values() if trial.state in states]


@pytest.mark.slow
def test_the_teacher_sees_every_row_once_however_many_trials_and_sessions_there_are(swept):
    assert len(in_state(swept.resumed.trials, "completed", "failed")) == 12
    shards = Counter(tuple(line.split()[1:3]) for line in swept.lines if line.startswith("shard "))
    assert shards == {
        ("train/hidden_states[2]+hidden_states[4]+logits", "0"): 1,  # what any trial may need, in one pass
        ("validation/logits", "0"): 1,
        ("test/logits", "0"): 1,
    }
    run_key = swept.resumed.summary["sweep_key"]
    shared = swept.storage.read_json("runs", run_key, "shared.json")
    assert shared["signals"].keys() == {"hidden_states[2]", "hidden_states[4]", "logits"}
    for key in swept.storage.list("signals"):
        rows = recorded_rows(Artifact(swept.storage, "signals", key))
        assert np.array_equal(rows, np.arange(len(rows)))
    assert all(len(recorded_rows(Artifact(swept.storage, "signals", key))) == 192 for key in shared["signals"].values())
    told = swept.resumed.summary["teacher"]
    epochs = NUM_EPOCHS * (len(in_state(swept.resumed.trials, "completed")) + len(swept.resumed.finals))
    assert told == {"passes": 1, "passes_saved": epochs - 1, "rows": 192}


@pytest.mark.slow
def test_nobody_opens_test_rows_before_the_last_student_is_trained(swept):
    trainers = {line.split()[-1] for line in swept.lines if line.startswith("step student.")}
    both = swept.stopped.opened + swept.resumed.opened
    assert trainers <= {pid for split, _, pid in both if split == "train"}  # it is noted who opens what
    assert "test" not in {split for split, _, _ in swept.stopped.opened}
    tests = [(position, pid) for split, position, pid in swept.resumed.opened if split == "test"]
    last = max(i for i, line in enumerate(swept.resumed.lines) if line.startswith("step "))
    assert len(tests) == 1
    assert tests[0][0] > last
    assert tests[0][1] not in trainers


@pytest.mark.slow
def test_ctrl_c_tells_how_to_go_on_and_what_trained_is_not_trained_again(swept):
    assert "same command" in swept.message
    states = [trial.state for trial in swept.stopped.trials.values()]
    assert "running" in states
    assert "stopped" not in states
    assert all(trial.params[RATE] == TOO_FAST for trial in in_state(swept.stopped.trials, "failed"))
    assert swept.stopped.finals == {}
    for number, trial in swept.stopped.trials.items():
        assert swept.resumed.trials[number].params == trial.params
    for trial in in_state(swept.stopped.trials, "completed"):
        assert swept.resumed.trials[trial.number] == trial
    assert 0 < swept.stopped.steps().total() < NUM_STEPS * len(states)


@pytest.mark.slow
def test_a_resumed_sweep_goes_on_from_its_checkpoints(swept):
    ended = in_state(swept.resumed.trials, "completed")
    trained = len(ended) + len(swept.resumed.finals)
    steps = swept.stopped.steps() + swept.resumed.steps()
    late = {step: times for step, times in steps.items() if step >= NUM_STEPS // 2}  # failing ones end before
    assert late == dict.fromkeys(range(NUM_STEPS // 2, NUM_STEPS), trained)
    assert steps[0] == trained + len(in_state(swept.resumed.trials, "failed"))
    begun = swept.resumed.steps()
    failed = [number for number, trial in swept.stopped.trials.items() if trial.state == "failed"]
    fresh = begun[0] - (len(in_state(swept.resumed.trials, "failed")) - len(failed))
    assert fresh < begun[NUM_STEPS - 1]  # some did not begin at their beginning
    for trial in ended:
        assert [entry["step"] for entry in trial.history] == list(range(12, NUM_STEPS + 1, STEPS_AN_EPOCH))
        seconds = [entry["seconds"] for entry in trial.history]
        assert seconds == sorted(seconds)
    work = ("runs", swept.resumed.summary["sweep_key"], FOLDER)
    assert all(swept.storage.list(*work, name, "student") == [] for name in swept.storage.list(*work))


@pytest.mark.slow
def test_a_finished_sweep_returns_its_summary_at_once(swept):
    assert swept.again.summary == swept.resumed.summary
    assert swept.again.lines == []
    assert swept.again.trials == swept.resumed.trials


@pytest.mark.slow
def test_with_more_trials_the_same_sweep_goes_on_to_the_end_of_its_space(swept):
    summary = swept.resumed.summary
    assert summary["counts"] | {"completed": 8, "failed": 4, "rejected": 6} == summary["counts"]
    assert summary["stopped_by"] == "grid"


@pytest.mark.slow
def test_no_combination_trains_twice(swept):
    combinations = Counter(json.dumps(trial.params, sort_keys=True) for trial in swept.resumed.trials.values())
    assert len(combinations) == 18
    assert set(combinations.values()) == {1}
    students = [trial.student for trial in in_state(swept.resumed.trials, "completed")]
    assert len(set(students)) == 8


@pytest.mark.slow
def test_a_combination_beyond_a_constraint_never_trains_and_says_why(swept, mlflow_uri):
    rejected = in_state(swept.resumed.trials, "rejected")
    assert [trial.params[LAYERS] for trial in rejected] == [3] * 6
    for trial in rejected:
        assert "num_parameters 30,787 is above 24,000 (bert of 3 layers" in str(trial.reason)
        assert (trial.history, trial.run_id, trial.student, trial.seconds) == ((), None, None, 0.0)
    names = [run.info.run_name for run in children(swept.resumed, mlflow_uri)]
    assert not {f"trial-{trial.number:05d}" for trial in rejected} & set(names)


@pytest.mark.slow
def test_a_failing_trial_is_recorded_with_its_reason_and_ends_nothing_else(swept, mlflow_uri):
    failed = in_state(swept.resumed.trials, "failed")
    assert [trial.params[RATE] for trial in failed] == [TOO_FAST] * 4
    runs = {run.info.run_id: run for run in children(swept.resumed, mlflow_uri)}
    for trial in failed:
        assert "is not finite at step" in str(trial.reason)
        run = runs[str(trial.run_id)]
        assert run.info.status == "FAILED"
        assert run.data.tags["raydistill.state"] == "failed"
        assert run.data.tags["raydistill.reason"] == trial.reason
    assert not set(swept.resumed.summary["front"]) & {trial.number for trial in failed}


@pytest.mark.slow
def test_finals_are_trained_with_seeds_that_the_search_never_had(swept):
    finalists = swept.resumed.summary["finalists"]
    roles = {role for finalist in finalists for role in finalist["roles"]}
    assert roles >= {"best", "default"}
    assert len(finalists) >= 2
    students = {trial.student for trial in swept.resumed.trials.values()}
    for finalist in finalists:
        trial = swept.resumed.trials[finalist["trial"]]
        assert finalist["params"] == trial.params
        assert [outcome["seed"] for outcome in finalist["seeds"]] == [1, 2]
        assert not {outcome["student"] for outcome in finalist["seeds"]} & students
        mean = finalist["test"]["accuracy"]["mean"]
        assert mean == pytest.approx(np.mean([o["test"]["accuracy"] for o in finalist["seeds"]]), abs=1e-5)
        drop = trial.measures["validation/accuracy"] - mean
        assert finalist["shrinkage"]["accuracy"] == pytest.approx(drop, abs=1e-5)
        for outcome in finalist["seeds"]:
            recipe = Artifact(swept.storage, "student", outcome["student"]).manifest().recipe
            assert recipe["seed"] == outcome["seed"]
            assert recipe["student"]["num_layers"] == trial.params[LAYERS]


@pytest.mark.slow
def test_the_winner_is_the_best_mean_and_its_line_gives_distill_a_finished_run(swept, tmp_path):
    summary = swept.resumed.summary
    winner = summary["winner"]
    means = {f["trial"]: f["validation"]["accuracy"]["mean"] for f in summary["finalists"]}
    assert means[winner["trial"]] == max(means.values())
    results = distill(load_config(as_file(tmp_path, swept.config), winner["set"]))
    assert results["reused"] == ["run"]
    assert results["student"]["path"] == winner["path"]
    assert results["run_id"] in (Path(winner["path"]) / "README.md").read_text("utf-8")  # its model card
    assert results["run_id"] == summary["results"]["run_id"]
    seeds = next(f["seeds"] for f in summary["finalists"] if f["trial"] == winner["trial"])
    outcome = next(outcome for outcome in seeds if outcome["seed"] == winner["seed"])
    assert results["student"]["test"]["accuracy"]["value"] == pytest.approx(outcome["test"]["accuracy"], abs=1e-5)


def as_file(folder: Path, config: Config) -> Path:
    """The config as JSON, which is YAML too."""
    path = folder / "config.yaml"
    path.write_text(config.model_dump_json())
    return path


@pytest.mark.slow
def test_the_winner_is_registered_as_challenger_with_its_results(swept, mlflow_uri):
    summary, client = swept.resumed.summary, MlflowClient(tracking_uri=mlflow_uri)
    version = client.get_model_version_by_alias("toy", "challenger")
    results = summary["results"]
    assert int(version.version) == results["model_version"]
    assert version.run_id == results["run_id"]
    run = client.get_run(results["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.tags["mlflow.parentRunId"] == summary["run_id"]
    path = client.download_artifacts(results["run_id"], "results.json")
    assert json.loads(Path(path).read_text())["student"]["path"] == summary["winner"]["path"]
    pages = [results["report"], client.download_artifacts(results["run_id"], "report.html")]
    assert all(summary["winner"]["path"] in Path(page).read_text("utf-8") for page in pages)


def children(session: Session, uri: str) -> list[Run]:
    parent = session.summary["run_id"]
    return [run for run in mlflow_runs(uri) if run.data.tags.get("mlflow.parentRunId") == parent]


@pytest.mark.slow
def test_mlflow_has_one_parent_with_a_child_a_trial_named_and_measured_as_runs_are(swept, mlflow_uri):
    session = swept.resumed
    client = MlflowClient(tracking_uri=mlflow_uri)
    parent = client.get_run(session.summary["run_id"])
    assert parent.info.status == "FINISHED"
    assert "mlflow.parentRunId" not in parent.data.tags
    winner = session.summary["winner"]["trial"]
    (won,) = [finalist for finalist in session.summary["finalists"] if finalist["trial"] == winner]
    for split in ("validation", "test"):
        mean = won[split]["accuracy"]["mean"]
        assert parent.data.metrics[f"winner/{split}/accuracy"] == pytest.approx(mean, abs=1e-5)
    assert {item.path for item in client.list_artifacts(parent.info.run_id)} >= {
        "sweep.json",
        "report.html",
        "trials.csv",
    }
    runs = {run.info.run_name: run for run in children(session, mlflow_uri)}
    trained = in_state(session.trials, "completed", "failed")
    names = {f"trial-{t.number:05d}" for t in trained} | {f"final-{number:05d}" for number in session.finals}
    assert runs.keys() - {"winner"} == names
    counts = Counter(run.info.run_name for run in children(session, mlflow_uri))
    assert all(counts[name] == 1 for name in names)
    for trial in in_state(session.trials, "completed"):
        run = runs[f"trial-{trial.number:05d}"]
        assert run.info.run_id == trial.run_id
        assert run.info.status == "FINISHED"
        assert run.data.params[LAYERS] == str(trial.params[LAYERS])
        assert float(run.data.params[RATE]) == trial.params[RATE]
        assert run.data.metrics["best_validation/accuracy"] == trial.measures["validation/accuracy"]
        every_epoch = list(range(STEPS_AN_EPOCH, NUM_STEPS + 1, STEPS_AN_EPOCH))
        assert metric_steps(mlflow_uri, run.info.run_id, "validation/accuracy") == every_epoch
        assert metric_steps(mlflow_uri, run.info.run_id, "train/loss")[-1] == NUM_STEPS


@pytest.mark.slow
def test_the_sweep_keeps_what_it_calls_best_from_garbage_collection(swept):
    kept = artifacts_of_run(swept.storage, swept.resumed.summary["sweep_key"])
    finalists = {o["student"] for finalist in swept.resumed.summary["finalists"] for o in finalist["seeds"]}
    assert {artifact.key for artifact in kept["student"]} >= finalists
    assert all(artifact.exists() for artifact in kept["student"])


@pytest.mark.slow
def test_a_trial_gives_the_very_student_that_distill_gives(swept, tmp_path):
    """Another storage, no Ray: the same weights and figures, also of a trial that was stopped on its way."""
    storage = Storage(str(tmp_path))
    ended = in_state(swept.resumed.trials, "completed")
    stopped = in_state(swept.stopped.trials, "running")
    midway = next(trial.number for trial in stopped if trial.history)
    chosen = {midway, *(next(t.number for t in ended if t.params[LAYERS] == size) for size in (1, 2))}
    for trial in (swept.resumed.trials[number] for number in chosen):
        made = trial_config(swept.config, ((0, trial.params),))
        local = made.train.model_copy(update={"num_workers": 0})
        results = distill(made.model_copy(update={"storage": storage.url, "train": local}))
        (student,) = artifacts_of_run(storage, find_run(results, storage))["student"]
        mine = swept.student(trial)
        assert student.key == mine.key
        assert same_weights(read_weights(student.local() / "model"), read_weights(mine.local() / "model"))
        histories = [read_history(artifact) for artifact in (student, mine)]
        if trial.number in [halted.number for halted in stopped]:  # mean losses since a report begin anew
            histories = [[{n: v for n, v in e.items() if "train/" not in n} for e in known] for known in histories]
        assert histories[0] == histories[1]
        told = [entry["validation/log_loss"] for entry in histories[0] if entry["validated"]]
        assert [entry["validation/log_loss"] for entry in trial.history] == told


def order_of(number: int, params: Params, seed: int | None = None) -> dict[str, Any]:
    return {"trial": TrialSpec(number, f"trial-{number:05d}", ((0, params),), seed).to_plain()}


def train_to_end(actor: TrialActor, most: int = 100) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = []
    while len(entries) < most and not (entries and entries[-1]["done"]):
        entries.append(actor.step())
    return entries


def without_times(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{n: v for n, v in entry.items() if not n.endswith("seconds")} for entry in entries]


def test_a_teacher_at_chance_ends_a_sweep_before_its_first_trial(tmp_path):
    weak = {"teacher__finetune": {"num_epochs": 1, "learning_rate": 1e-9}, "teacher__allow_chance": False}
    with pytest.raises(ModelError, match=r"no better than guessing.*teacher\.allow_chance=true goes on"):
        make_shared(toy_config(tmp_path, **SHAPES | weak, sweep=SWEEP))


def test_nothing_of_a_trial_is_left_for_the_next_one_of_its_actor(tmp_path):
    """The first trial's settings again as the fifth, after other shapes, a trial cut short and one that failed."""
    shared = make_shared(toy_config(tmp_path, **SHAPES, sweep=SWEEP))

    class Alone(TrialActor):
        """As Tune makes it, which hands over what is shared in its own way."""

        def setup(self, config: dict[str, Any]) -> None:  # type: ignore[override]
            super().setup(config, shared, 1, exchanges=False)

    params: Params = {LAYERS: 2, RATE: 1e-3, PAIRS: "[[1,2]]"}
    actor = Alone(order_of(0, params))
    first = train_to_end(actor)
    student = Artifact(shared.job.storage, "student", str(first[-1]["student"]))
    weights = read_weights(student.local() / "model")
    rows, teacher = actor.context.rows["train"], actor.context.teacher_model
    recorded = dict(actor.context._recorded)
    untouched = module_weights(teacher)
    shared.job.storage.delete("student", student.key)

    assert actor.reset_config(order_of(1, {LAYERS: 1, RATE: 4e-3, PAIRS: "[[1,4]]"}, seed=7))
    assert train_to_end(actor)[-1]["finished"]
    assert actor.reset_config(order_of(2, {LAYERS: 2, RATE: 4e-3, PAIRS: "[[1,2]]"}))
    assert len(train_to_end(actor, most=3)) == 3
    assert actor.reset_config(order_of(3, {LAYERS: 1, RATE: TOO_FAST, PAIRS: "[[1,2]]"}))
    assert "not finite" in train_to_end(actor)[-1]["failure"]
    assert actor.reset_config(order_of(4, params))
    fifth = train_to_end(actor)

    assert not fifth[-1]["reused"]
    assert fifth[-1]["student"] == student.key
    assert same_weights(read_weights(student.local() / "model"), weights)
    assert without_times(fifth) == without_times(first)
    assert len(first) == NUM_EPOCHS
    assert actor.context.rows["train"] is rows
    assert actor.context.teacher_model is teacher
    assert same_weights(module_weights(teacher), untouched)
    assert all(actor.context._recorded[key] is signals for key, signals in recorded.items())
    assert len(recorded) == 1
    assert "test" not in dict(actor.context.rows)


@pytest.mark.slow
def test_a_finished_sweep_goes_on_with_a_larger_budget(ray_cluster, tmp_path, mlflow_uri):
    """Its only trial, of the config's own values, fails: there is no winner. Then there is one, and then two to choose
    from, without anything being trained twice."""
    space = {RATE: {"choice": [TOO_FAST, 1e-5, 4e-3]}}  # the last one is the better one, so that it is not stopped
    search = {"space": space, "search": "grid", "scheduler": "asha", "final_seeds": 1}  # asha asks for every score
    changes = {"teacher__finetune__num_epochs": 1, "train__num_workers": 1, "evaluate__baseline": False}
    config = load_config(toy_config(tmp_path, **changes, stages__distill__learning_rate=TOO_FAST, sweep=search))
    sessions = [take_session(ray_cluster, with_trials(config, number)) for number in (1, 2, 3)]
    summary = sessions[0].summary
    assert summary["winner"] is summary["results"] is None
    assert ["is not finite at step" in trial["reason"] for trial in summary["trials"]] == [True]
    assert summary["verdict"].startswith("No winner: ")
    for before, after in itertools.pairwise(sessions):
        assert after.summary["sweep_key"] == before.summary["sweep_key"]
        assert after.summary["run_id"] == before.summary["run_id"]
        assert after.trials | before.trials == after.trials
        assert after.summary["counts"]["completed"] == before.summary["counts"]["completed"] + 1
        assert after.steps()[2 * STEPS_AN_EPOCH - 1] == 1 + len(after.finals) - len(before.finals)
        assert [line for line in after.lines if line.startswith("shard train")] == []
        version = MlflowClient(tracking_uri=mlflow_uri).get_model_version_by_alias("toy", "challenger")
    assert version.run_id == sessions[-1].summary["results"]["run_id"]


@pytest.mark.slow
def test_trials_of_two_workers_each_on_two_cpus_never_wait_for_each_other(ray_cluster, tmp_path):
    """Not even the final for a trial that asha stops half way: its workers' place is free again. And they give what one
    process gives, within rounding."""
    space = {RATE: {"choice": [1e-3, 1e-7]}}
    settings = {"space": space, "search": "grid", "scheduler": "asha", "final_seeds": 1}
    changes = SHAPES | {"stages__distill__num_epochs": 3, "train__num_workers": 2}
    config = load_config(toy_config(tmp_path, **changes, sweep=settings))
    session = take_session(ray_cluster, config)
    assert session.summary["concurrency"] == 1
    states = [trial.state for trial in session.trials.values()]
    assert states == ["completed", "stopped"]
    assert len(session.finals) == 1
    ranks = Counter(line.split()[3] for line in session.lines if line.startswith("step student.distill "))
    assert ranks["0"] == ranks["1"] >= STEPS_AN_EPOCH * (3 * states.count("completed") + 1 + 3 * len(session.finals))
    shards = Counter(line.split()[1] for line in session.lines if line.startswith("shard train/"))
    assert shards == {"train/hidden_states[2]+logits": 1}
    deadline = time.monotonic() + 30
    while held := [group for group in placement_group_table().values() if group["state"] != "REMOVED"]:
        assert time.monotonic() < deadline, held
        time.sleep(0.5)

    trial = session.trials[min(session.trials)]
    made = trial_config(config, ((0, trial.params),))
    one = made.model_copy(
        update={"storage": str(tmp_path / "one"), "train": made.train.model_copy(update={"num_workers": 0})}
    )
    results = distill(one)
    mine = Artifact(Storage(config.storage), "student", str(trial.student)).local() / "model"
    pair = [without_key_biases(read_weights(folder)) for folder in (mine, results["student"]["path"])]
    assert max(relative_difference(*pair).values()) < 1e-4


def test_a_finalist_that_was_removed_makes_the_sweep_unfinished_and_is_trained_again(tmp_path):
    without = {name: value for name, value in SWEEP.items() if name != "objectives"}  # the task's own is filled in
    config = load_config(toy_config(tmp_path, **SHAPES, sweep=without))
    storage = Storage(str(tmp_path / "storage"))
    student = fill(Artifact(storage, "student", KEY))
    ledger = Ledger(storage, ("runs", "s"), Owner.acquire(storage, "runs", "s"), name="finals")
    shared: Any = SimpleNamespace(job=SimpleNamespace(storage=storage, run_key="s", config=config))
    wanted = [(Trial(3, {LAYERS: 1}, "completed"), 1)]
    make_source = partial(FinalSource, ledger, shared, RunRef("", "", ""), Event(), wanted)
    source = make_source()
    final = source.next()
    assert final is not None
    source.end(final.number, "completed", student=KEY, reused=False)
    assert referred(storage, "s") == [student]  # a day may pass before the last one is trained
    assert make_source().open == []

    outcome = {"student": KEY, "path": "/of/another/node"}
    summary = {
        "finalists": [{"seeds": [outcome]}],
        "winner": outcome,
        "results": {"student": {"path": f"/other/{KEY}"}},
    }
    storage.write_json({**summary, "config": config.model_dump(mode="json")}, "runs", "s", "sweep.json")
    prepared: Any = SimpleNamespace(storage=storage, run_key="s", config=config)
    found = finished(prepared)
    assert found is not None
    told = [found["finalists"][0]["seeds"][0], found["winner"], found["results"]["student"]]
    assert {one["path"] for one in told} == {str(student.local() / "model")}

    assert finished(SimpleNamespace(**{**vars(prepared), "config": with_trials(config, 100)})) is None

    remove_artifact(storage, f"student/{KEY}", force=True)
    assert finished(prepared) is None
    assert make_source().open == [final.number]
