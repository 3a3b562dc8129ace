"""The straight line, seen from the driver: config, data, worker group, results, registry. Reads from top to bottom."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raydistill.cluster.connection import connected, set_environment
from raydistill.cluster.resources import object_store_bytes
from raydistill.config.tree import Config
from raydistill.data.prepare import DataInfo
from raydistill.errors import Interrupted, TrackingError
from raydistill.evaluate.divergence import divergence_of
from raydistill.evaluate.results import SCHEMA
from raydistill.models.folder import settled_models
from raydistill.pipeline.assembly import assemble
from raydistill.pipeline.links import links_of
from raydistill.pipeline.prepare import Clock, Prepared, prepare
from raydistill.pipeline.seeds import series_of
from raydistill.pipeline.stopping import Stop, stoppable
from raydistill.pipeline.tfidf import tfidf_outcome
from raydistill.storage.board import Show
from raydistill.storage.garbage import refer, referred
from raydistill.storage.locks import lock
from raydistill.storage.ownership import Owner
from raydistill.storage.redaction import redact
from raydistill.storage.storage import Storage
from raydistill.tracking.endpoint import tracking_uri
from raydistill.tracking.registry.students import is_tracked, log_student, name_challenger, register_student
from raydistill.tracking.runs import RunRef, drain, finish_run, log_data, log_files, prepare_store, start_run, tag_run

if TYPE_CHECKING:
    from raydistill.pipeline.phases import PhaseResults


def distill(config: Config, *, progress: Show | None = None, started: float | None = None) -> dict[str, Any]:
    """Distil a student as ``config`` says and return the content of ``results.json``.

    Whatever an earlier run computed is reused; the same config again returns its results at once. ``started``: when
    whoever asks for it began, by ``time.perf_counter``, from where its seconds count. Raises RaydistillError
    (Interrupted after Ctrl-C or SIGTERM, with a checkpoint written).
    """
    show = progress or (lambda entry: None)
    clock = Clock() if started is None else Clock(started=started)
    set_environment()  # before MLflow, which imports Ray where it finds it
    with stoppable(show) as stop, settled_models(), ThreadPoolExecutor(1) as background:
        storage = Storage(config.storage)
        storage.check()
        store = background.submit(prepare_store, tracking_uri(storage))
        with clock.phase("prepare", show):
            prepared = prepare(config, storage)
        say_targets(prepared.info, show)
        with lock(storage, "runs", prepared.run_key, "driver.lock", waiting=lambda: say_waiting(show)):
            store.result()
            if (results := finished(prepared)) is not None and is_here(prepared, results, show):
                if (claimed := claim_alias(prepared, results)) is not results:
                    storage.write_json(claimed, "runs", prepared.run_key, "results.json")
                return claimed
            return run(prepared, stop, clock, show)


def run(prepared: Prepared, stop: Stop, clock: Clock, show: Show) -> dict[str, Any]:
    """Run the phases in the worker group, assemble the results, register the student."""
    from raydistill.pipeline.reporting import metrics_path

    storage, parts = prepared.storage, ("runs", prepared.run_key)
    owner = take_over(prepared)
    with tracked(prepared) as ref:
        tfidf = tfidf_outcome(prepared, clock, show)
        stop.is_obeyed = True
        outcome = run_phases_somewhere(prepared.job(owner, ref), stop, show)
        stop.is_obeyed = False
        tag_run(ref, {"teacher": outcome.teacher.digest})
        with clock.phase("register", show):
            if (metrics := metrics_path(storage, *parts)).exists():
                drain(ref, metrics)  # what the writer could not send while the tracking server was away
            if not storage.is_local:
                drain_histories(prepared, ref, outcome)
            results = assemble(prepared, ref, outcome, tfidf, clock)
            results = publish(prepared, ref, outcome, results)
    results["seconds"] = clock.whole(outcome.seconds)
    storage.write_json(results, *parts, "results.json")
    return results


def take_over(prepared: Prepared) -> Owner:
    """Own the run folder, and refer to the run's data and to models of earlier runs that it needs, which then stay
    however long the run waits for its workers."""
    storage, key = prepared.storage, prepared.run_key
    owner = Owner.acquire(storage, "runs", key)
    refer(storage, key, [*prepared.made, *links_of(prepared.config, storage)])
    if not all(artifact.exists() for artifact in prepared.made):
        prepare(prepared.config, storage)  # garbage collection came between
    return owner


def drain_histories(prepared: Prepared, ref: RunRef, outcome: PhaseResults) -> None:
    """Send what the models' training reported: the writer's own file lies on a node that may be gone."""
    from raydistill.pipeline.stages import read_history
    from raydistill.tracking.journal import write_history

    models = {"student": outcome.student, "baseline": outcome.baseline, "teacher": outcome.teacher.artifact}
    names = prepared.config.members
    models |= {f"{name}/teacher": one.artifact for name, one in zip(names, outcome.teacher.members, strict=False)}
    for index, made in enumerate(outcome.seeds):
        series = series_of(index, made.seed)
        models |= {series or "student": made.student, f"{series}/baseline".lstrip("/"): made.baseline}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "metrics.jsonl"
        write_history(path, {kind: read_history(a) for kind, a in models.items() if a is not None})
        drain(ref, path)


@contextmanager
def tracked(prepared: Prepared, kind: str = "distill") -> Iterator[RunRef]:
    """The MLflow run of this run key; what ends the body early ends the run as KILLED or FAILED."""
    lineage = {"kind": kind, "data": prepared.data.digest, "tokens": prepared.tokens.digest}
    ref = start_run(prepared.config, prepared.storage, prepared.run_key, lineage)
    status = "FAILED"
    try:
        num_rows = {split: counts.rows for split, counts in prepared.info.counts.items()}
        log_data(ref, prepared.config.data, prepared.data.digest, num_rows)
        yield ref
        status = "FINISHED"
    except Interrupted:
        status = "KILLED"
        raise
    finally:
        if status != "FINISHED":
            try:
                finish_run(ref, status=status)
            except TrackingError as error:  # a store that is away must not hide what ended the run
                logging.getLogger(__name__).warning("The run's end was not tracked. %s", error)


def run_phases_somewhere(job: Any, stop: Stop, show: Show) -> PhaseResults:
    """Run the phases in a Ray Train worker group or, with ``train.num_workers: 0``, in this process."""
    if job.config.train.num_workers == 0:
        from raydistill.pipeline.phases import run_local

        return run_local(job, show, stop)
    show({"phase": "start", "note": "Ray"})
    with connected(object_store_bytes(job.config)):
        from raydistill.pipeline.phases import run_phases
        from raydistill.pipeline.worker import run_workers

        stop.listen()
        if stop.is_set():
            raise Interrupted("The run was stopped before its workers started; everything finished so far is kept.")
        if job.config.teacher.has_actors:
            from raydistill.pipeline.pooled import run_with_pool

            return run_with_pool(job, show, stop)
        return run_workers(job, show, stop, run_phases)


def publish(prepared: Prepared, ref: RunRef, outcome: PhaseResults, results: dict[str, Any]) -> dict[str, Any]:
    """Log the results, store the student with its card in MLflow and register it where the config names a model."""
    from raydistill.evaluate.compare import read_predictions
    from raydistill.evaluate.evidence import write_evidence
    from raydistill.evaluate.report.card import model_card, write_card
    from raydistill.pipeline.rivals import why_not_challenger
    from raydistill.tasks import task_of

    student, name = outcome.student.local() / "model", wanted_name(prepared.config, results)
    card = model_card(results, prepared.info)
    write_card(card, outcome.student)
    has_pairs = prepared.info.has_pairs and not task_of(prepared.info.task).reads_apart
    kept: Any = {"card": card, "max_length": prepared.config.data.max_length, "has_pairs": has_pairs}
    with tempfile.TemporaryDirectory() as folder:
        write_evidence(prepared.data, outcome.evaluation, Path(folder))
        log_files(ref, Path(folder))  # before there is a version: a gate may look at it at once
    if name is not None:
        test = read_predictions(outcome.evaluation.local(), "test")
        why = None if prepared.config.registry.challenger else why_not_challenger(name, ref, results, test)
        kept |= {"takes_alias": why is None}
        version = register_student(ref, name, student, results, run_key=prepared.run_key, **kept)
        results = {**results, "model_version": version, "challenger": {"taken": why is None, "why": why}}
        if why is not None:
            note = f"Version {version} is registered, but does not take the alias challenger: {why}. --challenger gives"
            results["notes"] = [*results["notes"], f"{note} it the alias all the same."]
    else:
        log_student(ref, student, **kept)
        results = {**results, "notes": [*results["notes"], *why_not_registered(prepared.config, results)]}
    with tempfile.TemporaryDirectory() as folder:
        results = add_report(prepared, results, Path(folder))
        finish_run(ref, results, Path(folder), status="FINISHED")
    return results


def wanted_name(config: Config, results: Mapping[str, Any]) -> str | None:
    """The registered model that the student becomes a version of; None where it becomes none."""
    refused = divergence_of(results["student"]) is not None and not config.registry.allow_diverged
    return None if refused else config.registry.name


def why_not_registered(config: Config, results: Mapping[str, Any]) -> list[str]:
    """A note on a student that was not registered although the config names a model; else none."""
    name = config.registry.name
    if name is None or wanted_name(config, results) is not None:
        return []
    return [
        f"The student is not registered as {name}, because its training diverged. The same command with --set "
        "registry.allow_diverged=true registers it."
    ]


def add_report(prepared: Prepared, results: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Draw the run's page into ``folder`` and beside ``results.json``, and return the results that name it.

    What can be wrong with a page is a note: the student is trained and measured, and `raydistill report` draws again.
    """
    from raydistill.evaluate.report.page import write_run_report

    parts = ("runs", prepared.run_key, "report.html")
    try:
        write_run_report(results, folder / "report.html")
        prepared.storage.upload(folder / "report.html", *parts)
    except Exception as error:
        logging.getLogger(__name__).exception("The report was not drawn.")
        note = f"The report was not drawn: {type(error).__name__}: {error}"
        return {**results, "report": None, "notes": [*results["notes"], note]}
    return {**results, "report": prepared.storage.show(*parts)}


def finished(prepared: Prepared) -> dict[str, Any] | None:
    """Return the results of the same run, if it came to its end before and the models it names are still there."""
    parts = ("runs", prepared.run_key, "results.json")
    if not prepared.storage.exists(*parts):
        return None
    results: dict[str, Any] = prepared.storage.read_json(*parts)
    is_known = results.get("schema") == SCHEMA  # else they are put together anew, from what is in storage
    return {**results, "reused": ["run"]} if is_known and locate_models(prepared, results) else None


def is_here(prepared: Prepared, results: dict[str, Any], show: Show) -> bool:
    """Whether the MLflow store of this command has the run that ``results`` name and its version.

    A finished run may have been tracked in another store, or its version deleted: it then goes through its phases
    again, which find everything made, and is tracked and registered here.
    """
    name, uri = wanted_name(prepared.config, results), tracking_uri(prepared.storage)
    if is_tracked(results["run_id"], uri, name, results.get("model_version")):
        return True
    what = "this run" if name is None else f"this run's version of {name}"
    note = f"MLflow at {redact(uri)} does not have {what}. What storage holds is used again, and goes in there."
    show({"phase": "track", "note": note})
    return False


def claim_alias(prepared: Prepared, results: dict[str, Any]) -> dict[str, Any]:
    """Results of a finished run, whose version gets the alias now where it had not and the config asks for it."""
    name, version = prepared.config.registry.name, results["model_version"]
    is_asked = prepared.config.registry.challenger and not (results.get("challenger") or {}).get("taken", True)
    if name is None or version is None or not is_asked:
        return results
    name_challenger(name, version, tracking_uri(prepared.storage))
    notes = [note for note in results["notes"] if "alias challenger" not in note]
    return {**results, "challenger": {"taken": True, "why": None}, "notes": notes}


def locate_models(prepared: Prepared, results: dict[str, Any]) -> bool:
    """Whether the models of ``results`` are still in storage; their paths are set to where this node has them."""
    for artifact in referred(prepared.storage, prepared.run_key):
        model = results.get(artifact.kind) or {}  # of a student, teacher or baseline
        if artifact.key in (model.get("path") or ""):
            if not artifact.exists():
                return False
            model["path"] = str(artifact.local() / "model")
    return True


def say_targets(info: DataInfo, show: Show) -> None:
    """Say which classes were found and what is doubtful of them, before anything is trained on them."""
    show({"phase": "data", "note": " ".join([f"{info.summary}.", *info.doubts])})


def say_waiting(show: Show) -> None:
    show({"phase": "wait", "note": "another process runs this config; its results will be used"})
