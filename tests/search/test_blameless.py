"""What is wrong with a node or with storage is no trial's fault: its actor ends, its checkpoint and name are kept."""

from __future__ import annotations

import os
import pickle
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from raydistill.errors import ArtifactError, Diverged, RaydistillError
from raydistill.search import actor as actors
from raydistill.search import tuning
from raydistill.search.actor import TrialActor, TrialGroup, ended
from raydistill.search.driver import reopen
from raydistill.search.ledger import Ledger
from raydistill.search.sources import MAX_FAULTS, TrialSource
from raydistill.search.trial import FOLDER, TrialSpec
from raydistill.search.tuning import TrialResources, Watch, trial_function
from raydistill.storage.storage import Storage

FULL = ArtifactError("The disk is full.")


class Source(TrialSource):
    kind = "trial"


@pytest.fixture
def source(tmp_path: Path) -> Source:
    """Of four running trials, each with a checkpoint."""
    storage = Storage(str(tmp_path))
    ledger = Ledger(storage, ("runs", "key"))
    for _ in range(4):
        trial = ledger.add({}, state="running")
        storage.write_bytes(b"weights", "runs", "key", FOLDER, f"trial-{trial.number:05d}", "student", "last")
    shared: Any = SimpleNamespace(job=SimpleNamespace(storage=storage, run_key="key"))
    return Source(ledger, shared, None, threading.Event())  # type: ignore[arg-type]  # nothing is tracked


def has_checkpoint(source: Source, number: int) -> bool:
    return source.shared.job.storage.exists("runs", "key", FOLDER, f"trial-{number:05d}", "student", "last")


@pytest.mark.parametrize("error", [FULL, OSError(28, "no space left"), Diverged("The loss is not finite.")])
def test_an_actor_ends_with_what_is_no_fault_of_its_trial(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(actors, "time", SimpleNamespace(sleep=pauses.append))

    def reports() -> Any:
        raise error
        yield

    actor: Any = TrialActor.__new__(TrialActor)
    actor.context = SimpleNamespace(report=SimpleNamespace(flush=lambda: None))
    actor.reports = reports()
    if isinstance(error, Diverged):
        assert actor.step() == {"failure": str(error), "blameless": False, "done": True}
        assert not pauses
    else:
        with pytest.raises(type(error)):
            actor.step()
        assert pauses == [actors.FAULT_SECONDS]
    assert actor.reports is None
    assert ended(FULL)["blameless"]  # of a group, which Ray has begun again by itself


@pytest.mark.parametrize(("error", "is_blameless"), [(FULL, True), (RuntimeError("a bug"), False)])
def test_a_trial_keeps_its_checkpoint_where_it_is_not_to_blame(
    source: Source, tmp_path: Path, error: Exception, is_blameless: bool
) -> None:
    path = tmp_path / "error.pkl"
    path.write_bytes(pickle.dumps(error))
    Watch(source).on_trial_error(1, [], SimpleNamespace(pickled_error_file=path, config={"trial": {"number": 0}}))
    for number, blameless in ((1, True), (2, False)):
        result = {"failure": "why", "blameless": blameless}
        trial = SimpleNamespace(last_result=result, config={"trial": {"number": number}})
        Watch(source).on_trial_complete(1, [], trial)
    ledger = source.ledger
    assert [trial.is_blameless for trial in ledger] == [is_blameless, True, False, False]
    assert [has_checkpoint(source, number) for number in range(4)] == [is_blameless, True, False, True]

    reopen(ledger, retry_failed=False)
    assert [t.state for t in ledger] == ["waiting" if is_blameless else "failed", "waiting", "failed", "running"]
    assert not any(trial.is_blameless for trial in ledger)
    reopen(ledger, retry_failed=True)
    assert [trial.state for trial in ledger] == ["waiting"] * 3 + ["running"]


def test_trial_after_trial_without_blame_ends_the_session(source: Source) -> None:
    source.end(0, "failed", reason="The disk is full.", is_blameless=True)
    source.end(1, "completed", student="s")
    source.start(0)  # it goes on
    for number in (0, 2, 3):
        source.check_faults()
        source.end(number, "failed", reason="The disk is full.", is_blameless=True)
    with pytest.raises(RaydistillError, match=rf"{MAX_FAULTS} trials in a row.*The disk is full\. Mend that"):
        source.check_faults()


def test_the_end_that_was_noted_first_stands(source: Source, tmp_path: Path) -> None:
    """Tune stops a trial, fails to stop its actor, and tells of an error."""
    source.end(3, "stopped")
    path = tmp_path / "error.pkl"
    path.write_bytes(pickle.dumps(FULL))
    Watch(source).on_trial_error(1, [], SimpleNamespace(pickled_error_file=path, config={"trial": {"number": 3}}))
    trial = source.ledger[3]
    assert (trial.state, trial.reason, trial.is_blameless) == ("stopped", None, False)


def test_workers_of_a_trial_ask_for_what_was_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the driver knows how many trials share a machine, and whether more nodes may come."""
    handed: dict[str, Any] = {}
    monkeypatch.setattr("ray.tune.with_parameters", lambda kind, **given: handed.update(given))
    monkeypatch.setattr("ray.tune.with_resources", lambda kind, resources: kind)
    trial_function(None, TrialResources(2, {"CPU": 2.0}, 4), False)  # type: ignore[arg-type]
    assert handed["resources"] == {"CPU": 2.0}
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    trial_function(None, TrialResources(1, {"CPU": 3.0}, 4), True)  # type: ignore[arg-type]
    assert (handed["num_threads"], handed["exchanges"]) == (3, True)  # one worker needs no group

    asked: list[dict[str, float]] = []
    monkeypatch.setattr(actors, "make_trainer", lambda job, phases, name, resources, callbacks: asked.append(resources))
    monkeypatch.setattr(actors, "in_background", lambda name, function: None)
    monkeypatch.setattr(actors, "Queue", lambda **options: None)
    job = SimpleNamespace(run_key="key", owner=SimpleNamespace(number=1))
    monkeypatch.setattr(actors, "trial_job", lambda shared, spec: job)
    spec = TrialSpec(0, "trial-00000", ((0, {}),)).to_plain()
    TrialGroup.setup(TrialGroup.__new__(TrialGroup), {"trial": spec}, None, handed["resources"])  # type: ignore[arg-type]
    assert asked == [{"CPU": 2.0}]


@pytest.mark.parametrize(("concurrency", "expected"), [(2, "2"), (None, "4")])
def test_no_more_trials_wait_for_a_place_than_may_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, concurrency: int | None, expected: str
) -> None:
    """By default Tune asks the cluster for the places of up to 200: an autoscaler would bring nodes for all of them."""
    told: list[str] = []

    def tuner(*arguments: Any, **settings: Any) -> None:
        told.append(os.environ["TUNE_MAX_PENDING_TRIALS_PG"])
        raise InterruptedError

    monkeypatch.setenv("TUNE_MAX_PENDING_TRIALS_PG", "200")
    monkeypatch.setattr("ray.tune.Tuner", tuner)
    monkeypatch.setattr(tuning, "trial_function", lambda *arguments: None)
    job = SimpleNamespace(
        run_key="key",
        owner=SimpleNamespace(number=1),
        storage=Storage(str(tmp_path)),
        config=SimpleNamespace(train=SimpleNamespace(max_failures=0)),
    )
    source: Any = SimpleNamespace(kind="trial", shared=SimpleNamespace(job=job))
    with pytest.raises(InterruptedError):
        tuning.run_trials(source, TrialResources(1, {"CPU": 1.0}, concurrency), lambda: None)
    assert told == [expected]
