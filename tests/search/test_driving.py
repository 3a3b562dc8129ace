"""What a sweep's driver hands to Tune and to trials, and what it notes of them, without Ray."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from kit.processes import KEY, fill
from kit.toy import sweep_config
from ray.tune.schedulers import PopulationBasedTraining

from raydistill.errors import ConfigError, Interrupted, RaydistillError, TrackingError
from raydistill.search import sources, tuning
from raydistill.search.actor import TrialGroup, ended, threads_of
from raydistill.search.driver import Driver
from raydistill.search.finals import Choice
from raydistill.search.ledger import Ledger, Trial
from raydistill.search.sources import OF, FinalSource, TrialSource
from raydistill.search.space import SEED, default_params
from raydistill.search.sweep import sweep_key
from raydistill.search.trial import TrialSpec
from raydistill.search.tuning import TrialResources, run_trials, supervise
from raydistill.storage.artifacts import Artifact
from raydistill.storage.storage import Storage
from raydistill.tracking.runs import RunRef

LAYERS = "student.num_layers"
RUN = RunRef("uri", "0", "run")


class Source(TrialSource):
    kind = "trial"


@pytest.fixture
def shared(tmp_path: Path) -> Any:
    """Of what trials share the job alone."""
    config, storage = sweep_config(tmp_path), Storage(str(tmp_path / "storage"))
    job = SimpleNamespace(
        storage=storage, run_key="key", config=config, owner=SimpleNamespace(number=1), board_parts=("runs", "key")
    )
    return SimpleNamespace(job=job)


def ledger_of(shared: Any, name: str = "trials") -> Ledger:
    return Ledger(shared.job.storage, ("runs", "key"), name=name)


def test_a_trial_is_told_its_settings_and_its_run_and_the_run_how_it_ended(
    shared: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, finished = list[Any](), list[Any]()

    def start_child(parent: RunRef, config: Any, key: str, name: str, *, facts: Any) -> RunRef:
        started.append((parent, config.student.num_layers, key, name, facts))
        if len(started) > 1:
            raise TrackingError("The server is away.")
        return RUN

    monkeypatch.setattr(sources, "start_child", start_child)
    monkeypatch.setattr(sources, "finish_child", lambda run, status, **told: finished.append((run, status, told)))
    ledger = ledger_of(shared)
    source = Source(ledger, shared, RunRef("uri", "0", "sweep"), threading.Event())
    trial = ledger.add({LAYERS: 4}, facts={"num_parameters": 5.0})
    assert source.spec(trial) == TrialSpec(0, "trial-00000", ((0, {LAYERS: 4}),), None, "run")
    assert started == [(source.parent, 4, "key/trial-00000", "trial-00000", {"num_parameters": 5.0})]
    source.start(0)
    assert (ledger[0].state, ledger[0].run_id) == ("running", "run")
    source.end(0, "failed", reason="no memory")
    told = {"values": {"num_parameters": 5.0}, "tags": {"state": "failed", "reason": "no memory"}}
    assert finished == [(RUN, "FAILED", told)]

    ledger.update(0, state="waiting")
    assert source.spec(ledger[0]).run_id is None
    assert ledger[0].run_id == "run"  # what it has told so far is still there
    source.end(0, "completed")
    assert len(finished) == 1


def test_finals_come_in_order_with_the_settings_of_their_finalist_and_a_seed_of_their_own(shared: Any) -> None:
    stop = threading.Event()
    changed = ((0, {LAYERS: 1}), (8, {LAYERS: 2}))
    wanted = [(Trial(7, {LAYERS: 1}), 5), (Trial(9, {LAYERS: 2}, schedule=changed), 6), (Trial(7, {LAYERS: 1}), 8)]
    source = FinalSource(ledger_of(shared, "finals"), shared, RUN, stop, wanted)
    finals = [source.next(), source.next()]
    assert [final and final.params for final in finals] == [
        {LAYERS: 1, SEED: 5, OF: 7},
        {LAYERS: 2, SEED: 6, OF: 9},
    ]
    assert [source._settings(final) for final in finals if final] == [(((0, {LAYERS: 1}),), 5), (changed, 6)]
    assert not source.is_exhausted
    stop.set()
    assert source.next() is None
    assert source.is_exhausted  # with one open
    stop.clear()
    assert source.next() is not None
    assert source.is_exhausted
    assert source.next() is None


def test_only_this_sessions_finals_count_and_the_configs_own_trial_is_one_that_kept_its_settings(shared: Any) -> None:
    storage, config = shared.job.storage, shared.job.config
    choice: Any = object.__new__(Choice)
    choice.prepared, choice.roles = SimpleNamespace(storage=storage, config=config), {7: ["best"]}
    choice.ledger = ledger_of(shared, "finals")
    student = fill(Artifact(storage, "student", KEY))
    for seed, state, key in ((1, "completed", KEY), (2, "failed", None), (3, "completed", KEY), (1, "completed", "no")):
        values = {"validation/accuracy": seed / 10}
        choice.ledger.add({LAYERS: 1, SEED: seed, OF: 7}, state=state, student=key, values=values)
    choice.ledger.add({LAYERS: 1, SEED: 1, OF: 8}, state="completed", student=KEY)
    (outcome,) = choice._finalist(7, [1, 2]).seeds
    assert (outcome.seed, outcome.student, outcome.validation) == (1, KEY, {"accuracy": 0.1})
    assert outcome.path == str(student.local() / "model")

    own, history = default_params(config), ({"step": 1},)
    trials = [
        Trial(0, own),
        Trial(1, {**own, LAYERS: 4}, history=history),
        Trial(2, own, history=history, schedule=((0, own), (8, own))),
    ]
    assert choice._own_values(trials) is None
    assert choice._own_values([*trials, Trial(3, own, history=history)]) == 3


def test_the_same_sweep_goes_on_under_its_newest_key_and_a_fresh_one_is_the_next(shared: Any) -> None:
    storage = shared.job.storage
    prepared: Any = SimpleNamespace(config=shared.job.config, storage=storage, run_key="data")
    key = sweep_key(prepared, False)
    assert sweep_key(prepared, True) == key
    for number, name in enumerate((key, f"{key}-2", f"{key}-3"), start=1):
        storage.write_json({}, "runs", name, "sweep.json")
        assert sweep_key(prepared, False) == name
        assert sweep_key(prepared, True) == f"{key}-{number + 1}"


@pytest.mark.parametrize("exchanges", [False, True])
def test_tune_gets_searcher_or_population_and_the_storage(
    shared: Any, monkeypatch: pytest.MonkeyPatch, exchanges: bool
) -> None:
    told: dict[str, Any] = {}

    def tuner(trainable: Any, **settings: Any) -> None:
        told.update(settings)
        raise InterruptedError

    trials = [Trial(0, {LAYERS: 1}), Trial(1, {LAYERS: 2})]
    left, filesystem = list(trials), object()
    source: Any = SimpleNamespace(
        kind="trial",
        shared=shared,
        next=lambda: left.pop(0) if left else None,
        spec=lambda trial: TrialSpec(trial.number, "name", trial.course),
    )
    monkeypatch.setattr("ray.tune.Tuner", tuner)
    monkeypatch.setattr("ray.tune.RunConfig", lambda **settings: SimpleNamespace(**settings))
    monkeypatch.setattr(tuning, "ray_storage", lambda storage: ("place", filesystem))
    monkeypatch.setattr(tuning, "trial_function", lambda *arguments: None)
    monkeypatch.setenv("TUNE_MAX_PENDING_TRIALS_PG", "200")
    scheduler = PopulationBasedTraining(hyperparam_mutations={"x": [1, 2]}, metric="score", mode="max")
    with pytest.raises(InterruptedError):
        run_trials(source, TrialResources(1, {"CPU": 1.0}, 2), print, scheduler if exchanges else None)
    assert (told["run_config"].storage_path, told["run_config"].storage_filesystem) == ("place", filesystem)
    assert told["run_config"].checkpoint_config.checkpoint_at_end is False
    search = told["tune_config"]
    if exchanges:
        specs = [source.spec(trial).to_plain() for trial in trials]
        assert told["param_space"] == {"trial": {"grid_search": specs}}
        assert (search.search_alg, search.num_samples, search.max_concurrent_trials) == (None, 1, None)
    else:
        assert told["param_space"] == {}
        assert isinstance(search.search_alg, tuning.Feed)
        assert (search.num_samples, search.max_concurrent_trials) == (-1, 2)  # as many as the searcher has


@pytest.mark.parametrize(
    ("fails", "expected", "says"),
    [
        (None, None, ""),
        (ValueError("boom"), RaydistillError, r"Ray Tune ended the sweep: ValueError: boom\nFinished trials are kept"),
        (ConfigError("no such thing"), ConfigError, "^no such thing$"),
    ],
)
def test_a_tuner_that_ends_by_itself_is_waited_for_and_its_error_told(
    fails: Exception | None, expected: Any, says: str
) -> None:
    def fit() -> None:
        time.sleep(0.7)  # longer than a look
        if fails is not None:
            raise fails

    looks: list[int] = []
    call: Callable[[], None] = lambda: supervise(  # noqa: E731
        SimpleNamespace(fit=fit),  # type: ignore[arg-type]
        None,  # type: ignore[arg-type]
        threading.Event(),
        lambda: looks.append(1),
        9.0,
    )
    if expected is None:
        call()
    else:
        with pytest.raises(expected, match=says):
            call()
    assert len(looks) == 2


def test_a_tuner_that_does_not_stop_is_left_after_a_while() -> None:
    stop, release, asked = threading.Event(), threading.Event(), list[float]()
    stop.set()
    board: Any = SimpleNamespace(request_stop=lambda: asked.append(time.monotonic()))
    tuner: Any = SimpleNamespace(fit=lambda: release.wait(20))
    try:
        with pytest.raises(Interrupted, match="The sweep was stopped"):
            supervise(tuner, board, stop, lambda: None, 0.3)
        assert 0.3 < time.monotonic() - asked[0] < 10
        assert len(asked) == 1
    finally:
        release.set()


@pytest.mark.parametrize(
    ("error", "outcome", "expected"),
    [
        (None, None, {"done": True}),
        (None, Interrupted("stop"), {"interrupted": True, "done": True}),
        (ConfigError("bad"), None, {"failure": "bad", "blameless": False, "done": True}),
    ],
)
def test_a_group_tells_how_it_ended(error: Any, outcome: Any, expected: dict[str, Any]) -> None:
    group: Any = object.__new__(TrialGroup)
    group.fitting = SimpleNamespace(done=lambda: True, exception=lambda: error, result=lambda: outcome)
    group.reports = SimpleNamespace(qsize=lambda: 0)
    assert group.step() == expected


def test_a_student_too_large_for_the_memory_is_told_in_one_line() -> None:
    told = ended(torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 9 GiB"))["failure"]
    assert told.startswith("out of memory: CUDA out of memory.. Lower train.tokens_per_micro_batch")
    assert ended(MemoryError())["failure"].startswith("out of memory: MemoryError. Lower")


def test_a_trial_has_as_many_threads_as_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [threads_of(resources) for resources in ({"CPU": 4.0}, {"CPU": 1.0}, {"CPU": 0.5}, {"GPU": 1.0})] == [
        *(4, 1, 1, 1)
    ]
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads_of({"CPU": 4.0}) == 3


@pytest.mark.parametrize("waits", [True, False])
def test_waiting_for_room_is_shown_instead_of_trials(shared: Any, waits: bool) -> None:
    shown: list[Any] = []
    driver: Any = object.__new__(Driver)
    driver.config, driver.sweep, driver.show = shared.job.config, shared.job.config.sweep, shown.append
    driver.resources, driver.clock = TrialResources(1, {}, 2), SimpleNamespace(started=time.perf_counter() - 5)
    driver.waiting = SimpleNamespace(look=lambda nothing_runs: waits)
    driver.view("search", [Trial(0, {}, "completed", seconds=8.0)], 4)
    if waits:
        assert shown == []
    else:
        ((entry),) = shown
        assert (entry["phase"], entry["total"], entry["left"]) == ("search", 4, 12.0)
        assert 5 <= entry["elapsed"] < 15
