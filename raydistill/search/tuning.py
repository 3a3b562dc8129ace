"""Ray Tune runs the trials: who is next, who may go on, and what the ledger is told of it."""

from __future__ import annotations

import logging
import os
import pickle
import threading
import time
from collections.abc import Callable
from concurrent.futures import wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.execution import class_cache
from ray.tune.schedulers import PopulationBasedTraining, TrialScheduler
from ray.tune.search import Searcher

from raydistill.errors import Interrupted, RaydistillError
from raydistill.pipeline.worker import in_background, ray_storage, stop_seconds
from raydistill.search.actor import NODE_FAULTS, TrialActor, TrialGroup, threads_of
from raydistill.search.sharing import Shared
from raydistill.search.sources import TrialSource
from raydistill.storage.board import Board

AWS_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN")


@dataclass(frozen=True)
class TrialResources:
    """What the trials run on: ``workers`` a trial, each with ``resources``, at most ``concurrency`` trials at a time
    (None: whatever the cluster grows to)."""

    workers: int
    resources: dict[str, float]
    concurrency: int | None


class DriverOnly:
    """Lives in the driver. Tune writes its callbacks beside its own state, from which nothing here is ever restored."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class Feed(DriverOnly, Searcher):
    """Hands the source's trials to Tune, which keeps nothing of its own: the ledger is what a resumed sweep reads."""

    def __init__(self, source: TrialSource) -> None:
        super().__init__()
        self.source = source

    def suggest(self, trial_id: str) -> Any:
        trial = self.source.next()
        if trial is not None:
            return {"trial": self.source.spec(trial).to_plain()}
        return Searcher.FINISHED if self.source.is_exhausted else None

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        pass

    def save(self, checkpoint_path: str) -> None:
        pass

    def restore(self, checkpoint_path: str) -> None:
        pass


class Watch(DriverOnly, tune.Callback):
    """Writes what becomes of trials to their source, in the thread of the tuner."""

    def __init__(self, source: TrialSource) -> None:
        self.source = source

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.source.start(trial.config["trial"]["number"])

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if "validation" in result:
            self.source.report(trial.config["trial"]["number"], entry_of(result))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        result, number = trial.last_result, trial.config["trial"]["number"]
        if result.get("interrupted") or (self.source.stop.is_set() and not result.get("finished")):
            return  # it goes on in the next session
        if "failure" in result:
            self.source.end(number, "failed", reason=result["failure"], is_blameless=bool(result.get("blameless")))
        elif result.get("finished"):
            self.source.end(number, "completed", student=result["student"], reused=bool(result["reused"]))
        else:
            self.source.end(number, "stopped")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        if self.source.stop.is_set():
            return
        error = error_of(trial)
        cause = getattr(error, "cause", None) or error
        text = str(cause).strip().splitlines() or ["no message"]
        first = text[-1].split(". ")[0][:300]  # Ray explains a killed worker in a paragraph of 700 characters
        reason = f"{type(cause).__name__}: {first}" if error is not None else "its actor died"
        blameless = isinstance(cause, NODE_FAULTS) or bool(getattr(error, "preempted", False))
        self.source.end(trial.config["trial"]["number"], "failed", reason=reason, is_blameless=blameless)


def error_of(trial: Any) -> BaseException | None:
    """What ended a trial's actor: Tune has it on the driver's disk by now, in storage only later."""
    path = trial.pickled_error_file
    if path is None or not Path(path).exists():
        return None
    error: BaseException = pickle.loads(Path(path).read_bytes())
    return error


class Ending(DriverOnly, tune.Stopper):
    """Ends running trials at their next validation once the budget is used up."""

    def __init__(self, source: TrialSource) -> None:
        self.source = source

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return self.source.is_over

    def stop_all(self) -> bool:
        return False  # at Ctrl-C trials end by themselves, with a checkpoint; Tune would kill their actors


def entry_of(result: dict[str, Any]) -> dict[str, Any]:
    """A trial's own words out of what Tune adds to them."""
    own = ("step", "num_steps", "seconds", "setup_seconds", "validation", "kept", "score", "schedule")
    return {n: v for n, v in result.items() if n in own or n.startswith(("train/", "validation/"))}


def trial_function(shared: Shared, trial_resources: TrialResources, exchanges: bool) -> Any:
    """The trainable with its resources: a warm actor, or a group of workers inside each trial."""
    if trial_resources.workers > 1:
        # The workers ask for themselves. Tune refuses a trial that asks for nothing, and a share of a CPU would leave
        # too little for two workers on two CPUs: one byte of memory is next to nothing.
        bundle = tune.PlacementGroupFactory([{"memory": 1}])
        group = tune.with_parameters(TrialGroup, shared=shared, resources=trial_resources.resources)
        return tune.with_resources(group, bundle)
    actor = tune.with_parameters(
        TrialActor, shared=shared, num_threads=threads_of(trial_resources.resources), exchanges=exchanges
    )
    return tune.with_resources(actor, trial_resources.resources)


def run_trials(
    source: TrialSource,
    trial_resources: TrialResources,
    watch: Callable[[], None],
    scheduler: TrialScheduler | None = None,
) -> None:
    """Train the source's trials; ``watch`` is called twice a second meanwhile. Raises Interrupted after its stop."""
    job = source.shared.job
    folder = f"{job.run_key}-{job.owner.number}-{source.kind}"
    exchanges = isinstance(scheduler, PopulationBasedTraining)
    space: dict[str, Any] = {}
    search: dict[str, Any] = {"search_alg": Feed(source), "num_samples": -1}
    if exchanges:  # PBT takes no searcher: its population is there from the start
        population = []
        while (trial := source.next()) is not None:
            population.append(source.spec(trial).to_plain())
        space, search = {"trial": tune.grid_search(population)}, {}
    # Tune hands these to every actor, and Ray's log on each node has what an actor is handed; nodes have their own
    class_cache.ENV_VARS_TO_PROPAGATE.difference_update(AWS_KEYS)
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(trial_resources.concurrency or 4)
    storage_path, filesystem = ray_storage(job.storage)
    tuner = tune.Tuner(
        trial_function(source.shared, trial_resources, exchanges),
        param_space=space,
        tune_config=tune.TuneConfig(
            scheduler=scheduler,
            reuse_actors=trial_resources.workers == 1,
            max_concurrent_trials=trial_resources.concurrency if not exchanges else None,
            trial_dirname_creator=lambda trial: str(trial.trial_id),
            **search,
        ),
        run_config=tune.RunConfig(
            name=folder,
            storage_path=storage_path,
            storage_filesystem=filesystem,
            verbose=0,
            callbacks=[Watch(source)],
            stop=Ending(source),
            failure_config=tune.FailureConfig(max_failures=job.config.train.max_failures),
            # by default Tune asks for one, and retries a trial that failed before it had anything to save
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    )
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # what failed is told by the ledger, without tracebacks

    def look() -> None:
        source.check_faults()
        watch()

    supervise(tuner, Board(job.storage, job.board_parts, job.owner), source.stop, look, stop_seconds(job))
    job.storage.delete("ray", folder)  # Tune's own files, and the checkpoints that pbt exchanged


def supervise(
    tuner: tune.Tuner, board: Board, stop: threading.Event, watch: Callable[[], None], patience: float
) -> None:
    """Wait for the tuner, in a thread of its own so that Ctrl-C stays ours; after a request to stop for ``patience``
    seconds."""
    fitting = in_background("ray-tune", tuner.fit)
    asked_at: float | None = None
    try:
        while not wait([fitting], timeout=0.5).done:
            watch()
            if stop.is_set() and asked_at is None:
                asked_at = time.monotonic()
                board.request_stop()
            if asked_at is not None and time.monotonic() - asked_at > patience:
                break
    except BaseException:
        board.request_stop()  # a Ray that was there before this sweep stays, and its trials with it
        raise
    watch()
    if stop.is_set():
        raise Interrupted("The sweep was stopped; finished trials are kept, running ones have a checkpoint.")
    if (error := fitting.exception()) is not None:
        if isinstance(error, RaydistillError):
            raise error
        raise RaydistillError(
            f"Ray Tune ended the sweep: {type(error).__name__}: {error}\nFinished trials are kept; the same command "
            "goes on from there."
        ) from error
