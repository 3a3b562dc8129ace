"""MLflow runs with one writer: metrics go to a local file first, a thread sends them on, training never waits.

The driver starts a run (:func:`start_run`) and finishes it (:func:`finish_run`); rank 0 holds a :class:`Tracker`.
MLflow is imported inside functions: it takes 1.5 s.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from raydistill.config.syntax import dump_yaml
from raydistill.errors import TrackingError
from raydistill.models.folder import CARD
from raydistill.storage.garbage import referred
from raydistill.storage.manifest import folder_digest
from raydistill.storage.ownership import identity
from raydistill.storage.redaction import redact, redact_tree, redact_values
from raydistill.storage.runs import run_id as recorded_id
from raydistill.tracking.endpoint import (
    DEFAULTS,
    artifact_location,
    check_server,
    made_whole,
    store_lock,
    tracking_uri,
    way_out,
)
from raydistill.tracking.journal import Point, Sender, Writer, metric_name
from raydistill.tracking.lineage import (
    config_hash,
    describe_environment,
    figures,
    lineage_tags,
    parameters,
    run_name,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.store.entities import PagedList
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    from raydistill.config.data import Data
    from raydistill.config.tree import Config
    from raydistill.storage.ownership import Owner
    from raydistill.storage.storage import Storage

T = TypeVar("T")
RUN_KEY, STORAGE = "raydistill.run_key", "raydistill.storage"
DIGEST, CLOSED = "raydistill.student_digest", "raydistill.closed"
"""Content of the student that a run has stored; a run with ``CLOSED`` is not gone on with."""
EXPERIMENT_KIND = {"mlflow.experimentKind": "custom_model_development"}
"""Makes MLflow's page show runs and not what is for language models."""
REQUEST = "raydistill.request"
"""A random name for each request that makes a run."""
SAMPLING_SECONDS = 5.0
MAX_PARAM_LENGTH, MAX_DIGEST_LENGTH = 6000, 36  # MLflow's own limits


@dataclass(frozen=True)
class RunRef:
    """Where a run is, for any process; the URI may hold credentials and is not shown."""

    tracking_uri: str = field(repr=False)
    experiment_id: str
    run_id: str


def prepare_store(uri: str) -> None:
    """Import MLflow and make sure that the store answers; a new sqlite database is created, by one process at a time.

    Takes 2 s the first time on an idle core; safe to call from a thread. Raises TrackingError, where no server answers
    after 4 s.
    """
    with reported(uri), store_lock(uri):
        check_server(uri)
        with made_whole(uri) as address:
            open_client(address).search_experiments(max_results=1)


def start_run(config: Config, storage: Storage, run_key: str, lineage: Mapping[str, Any] | None = None) -> RunRef:
    """The MLflow run of this storage and run key, with parameters, config, tags and lineage logged.

    One that is there is reopened, unless it has stored a student that the storage holds no more: another student will
    be of other content, and a version once judged keeps its own. ``lineage`` holds further digests, for example
    ``{"data": ..., "teacher": ...}``: they become tags ``raydistill.<name>`` and part of ``lineage.json``. Raises
    TrackingError.
    """
    uri = tracking_uri(storage)
    prepare_store(uri)
    with reported(uri):
        client = open_client(uri)
        with store_lock(uri):
            experiment_id = experiment_named(client, config.tracking.experiment, artifact_location(uri, storage))
            name = config.tracking.run_name or run_name(config, str((lineage or {}).get("kind", "distill")))
            more, goes_on = {STORAGE: identity(storage)}, partial(_goes_on, storage, run_key)
            run_id = open_run(client, experiment_id, name, {RUN_KEY: run_key}, more, goes_on)
        facts = describe_environment() | {"config_hash": config_hash(config), "seed": config.seed, "run_key": run_key}
        facts |= dict(lineage or {})
        log_params(client, run_id, parameters(config))
        set_tags(client, run_id, config.tracking.tags | lineage_tags(facts))
        client.log_text(run_id, dump_yaml(redact_tree(config.model_dump(mode="json"))), "config.yaml")
        client.log_text(run_id, json.dumps(redact_tree(facts), indent=2, default=str), "lineage.json")
    return RunRef(uri, experiment_id, run_id)


def tag_run(ref: RunRef, lineage: Mapping[str, Any]) -> None:
    """Add lineage that became known after the start, as tags ``raydistill.<name>``. Raises TrackingError."""
    with reported(ref.tracking_uri):
        set_tags(open_client(ref.tracking_uri), ref.run_id, lineage_tags(lineage))


def log_data(ref: RunRef, data: Data, digest: str, num_rows: Mapping[str, int]) -> None:
    """The data set as an input of the run: its source, our digest and the rows of each split. Raises TrackingError."""
    with reported(ref.tracking_uri):
        from mlflow.entities import Dataset, DatasetInput, InputTag

        entity = Dataset(
            name=redact(data.path.rstrip("/").rsplit("/", 1)[-1])[:500] or "data",
            digest=digest[:MAX_DIGEST_LENGTH],
            source_type="code",  # the one of MLflow's types that takes any kind of path
            source=json.dumps({"tags": {"path": redact(data.path)}}),
            profile=json.dumps({"num_rows": dict(num_rows)}),
        )
        inputs = [DatasetInput(entity, tags=[InputTag("mlflow.data.context", "training")])]
        open_client(ref.tracking_uri).log_inputs(ref.run_id, datasets=inputs)


def log_files(ref: RunRef, folder: Path) -> None:
    """Log everything in a folder among the run's artefacts. Raises TrackingError."""
    with reported(ref.tracking_uri):
        open_client(ref.tracking_uri).log_artifacts(ref.run_id, str(folder))


def finish_run(
    ref: RunRef, results: Mapping[str, Any] | None = None, artifacts: Path | None = None, status: str = "FINISHED"
) -> None:
    """Log final figures and ``results.json``, everything in the folder ``artifacts``, and end the run.

    ``status``: FINISHED, FAILED or KILLED. Doing it again changes nothing. Raises TrackingError.
    """
    with reported(ref.tracking_uri):
        check_server(ref.tracking_uri)  # 4 s, and not 90, to end a run whose server hangs
        client = open_client(ref.tracking_uri)
        if results is not None:
            log_figures(client, ref.run_id, figures(results))
            client.log_text(ref.run_id, json.dumps(redact_tree(results), indent=2), "results.json")
        if artifacts is not None:
            client.log_artifacts(ref.run_id, str(artifacts))
        client.set_terminated(ref.run_id, status)


class MetricStore:
    """One run as the metrics writer sees it, with MLflow's view of this node under ``system/`` when ``watch`` is on."""

    def __init__(self, ref: RunRef, watch: bool = False) -> None:
        self._ref, self._watch = ref, watch
        self._monitor: SystemMetricsMonitor | None = None

    def last_steps(self) -> dict[str, int]:
        """The last step of every metric of the run, in one request. Asked at the start and after each outage."""
        with reported(self._ref.tracking_uri):
            run = open_client(self._ref.tracking_uri).get_run(self._ref.run_id)
            self.close()  # MLflow's monitor ends by itself at an outage
            if self._watch:
                self._monitor = _start_monitor(self._ref)
            return {metric.key: metric.step for metric in run.data.to_proto().metrics}

    def send(self, points: list[Point]) -> None:
        with reported(self._ref.tracking_uri):
            from mlflow.entities import Metric

            metrics = [Metric(*point) for point in points]
            open_client(self._ref.tracking_uri).log_batch(self._ref.run_id, metrics=metrics)

    def close(self) -> None:
        if self._monitor is not None:
            self._monitor.finish()
            self._monitor = None


class Tracker(Writer):
    """Rank 0's writer of metrics by step; see :class:`raydistill.tracking.journal.Writer`. ``path`` is a local file."""

    def __init__(self, ref: RunRef, path: Path, *, owner: Owner | None = None, system_metrics: bool = False) -> None:
        super().__init__(MetricStore(ref, watch=system_metrics), path, owner)


def drain(ref: RunRef, path: Path) -> int:
    """Send what a metrics file holds and the run lacks; the number of values sent. Raises TrackingError."""
    check_server(ref.tracking_uri)
    return Sender(MetricStore(ref), path).send()


@contextmanager
def reported(uri: str) -> Iterator[None]:
    """Turn MLflow's and the network's errors into a TrackingError that names the store and the way out."""
    _set_up()
    from mlflow.exceptions import MlflowException

    try:
        yield
    except Exception as error:  # artefact stores bring their own: botocore's NoCredentialsError, a missing boto3
        if not isinstance(error, MlflowException | OSError | ImportError) and not is_of_store(error):
            raise
        reason = redact(str(error)).strip().split("\n")[0][:500]
        raise TrackingError(f"MLflow at {redact(uri)}: {reason}. {way_out(uri, reason)}") from error


def is_of_store(error: Exception) -> bool:
    """Whether an error comes from the library of a database or of an artefact store."""
    libraries = ("sqlalchemy", "alembic", "boto3", "botocore", "google", "azure", "requests", "urllib3")
    return type(error).__module__.partition(".")[0] in libraries


def open_client(uri: str) -> MlflowClient:
    """A client of the store; its chatter goes to logging, never to the terminal."""
    _set_up()
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def _set_up() -> None:
    """Import MLflow with short patience and send what it says to logging instead of to the terminal."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    import mlflow  # noqa: F401

    for library in (logging.getLogger("mlflow"), logging.getLogger("alembic")):
        streams = [handler for handler in library.handlers if type(handler) is logging.StreamHandler]
        if streams:
            for handler in streams:
                library.removeHandler(handler)
            library.addHandler(logging.NullHandler())  # without any, logging's last resort is the terminal
            library.propagate = True


def all_pages(search: Callable[..., PagedList[T]], *arguments: Any, **options: Any) -> Iterator[T]:
    """What a search of MLflow's client finds, over all its pages."""
    token: str | None = None
    while True:
        page = search(*arguments, **options, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def set_tags(client: MlflowClient, run_id: str, tags: Mapping[str, str]) -> None:
    """Set tags of a run, redacted, in one request."""
    from mlflow.entities import RunTag

    client.log_batch(run_id, tags=[RunTag(*tag) for tag in redact_values(tags).items()])


def set_version_tags(client: MlflowClient, name: str, version: int | str, tags: Mapping[str, str]) -> None:
    """Set tags of a version of a registered model, redacted, a request each."""
    for key, value in redact_values(tags).items():
        client.set_model_version_tag(name, str(version), key, value)


def experiment_named(client: MlflowClient, name: str, location: str | None) -> str:
    """Id of the experiment, made if it is not there. Raises TrackingError for a deleted one."""
    from mlflow.exceptions import MlflowException

    for attempt in (1, 2):
        experiment = client.get_experiment_by_name(name)
        if experiment is not None:
            break
        try:
            return str(client.create_experiment(name, artifact_location=location, tags=EXPERIMENT_KIND))
        except MlflowException as error:  # another process may have been faster
            if attempt == 2 or error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
    assert experiment is not None
    if experiment.lifecycle_stage != "active":
        raise TrackingError(
            f"The MLflow experiment {name!r} is deleted. Restore it with: mlflow experiments restore --experiment-id "
            f"{experiment.experiment_id}, or set tracking.experiment to another name."
        )
    for tag, value in EXPERIMENT_KIND.items():
        if tag not in experiment.tags:
            client.set_experiment_tag(experiment.experiment_id, tag, value)
    return str(experiment.experiment_id)


def page_of(uri: str, run_id: str) -> str:
    """Where MLflow's page shows the runs of a run's experiment, below its address. Raises TrackingError."""
    with reported(uri):
        experiment = open_client(uri).get_run(run_id).info.experiment_id
    return f"#/experiments/{experiment}?workflowType=machine_learning"  # 3.17 goes by this alone, and shows GenAI first


def open_run(
    client: MlflowClient,
    experiment_id: str,
    name: str,
    tags: Mapping[str, str],
    more: Mapping[str, str],
    goes_on: Callable[[Run], bool] = lambda run: True,
) -> str:
    """The first run with ``tags`` that ``goes_on``, reopened, or a new one, which gets the tags ``more``, too."""
    found = _earliest(client, experiment_id, tags, goes_on)
    if found is None:
        return create_run(client, experiment_id, name, {**tags, **more})
    client.update_run(found, status="RUNNING")
    return found


def is_of(storage: Storage, run_key: str, run_id: str, tags: Mapping[str, str]) -> bool:
    """Whether a run with this key is the storage's own: of earlier releases only the run's folder tells it."""
    return tags.get(STORAGE) == identity(storage) or run_id == recorded_id(storage, run_key)


def _goes_on(storage: Storage, run_key: str, run: Run) -> bool:
    """Whether the run is this storage's and not closed, and its student, if it has one, is still in the storage."""
    tags = run.data.tags
    if CLOSED in tags or not is_of(storage, run_key, str(run.info.run_id), tags):
        return False
    digest = tags.get(DIGEST)
    if digest is None:
        return True
    students = [one for one in referred(storage, run_key) if one.kind == "student"]
    if not all(one.exists() for one in students):  # several seeds: which of them it will be is known at the end only
        return False
    return digest in {folder_digest(one.local() / "model", without=(CARD,)) for one in students}


def create_run(client: MlflowClient, experiment_id: str, name: str, tags: Mapping[str, str]) -> str:
    """A new run, one also where MLflow's client repeats the request because the answer was lost."""
    request = uuid.uuid4().hex
    facts = {**tags, REQUEST: request, "mlflow.source.name": "raydistill", "mlflow.source.type": "LOCAL"}
    made = client.create_run(experiment_id, tags=facts, run_name=name)
    return _earliest(client, experiment_id, {REQUEST: request}) or str(made.info.run_id)


def _earliest(
    client: MlflowClient,
    experiment_id: str,
    tags: Mapping[str, str],
    fits: Callable[[Run], bool] = lambda run: True,
) -> str | None:
    """The first run with the tags that ``fits``; others that the same request made are deleted."""
    condition = " AND ".join(f"tags.`{tag}` = '{value}'" for tag, value in tags.items())
    order = ["attributes.start_time ASC"]
    found = [run for run in client.search_runs([experiment_id], condition, order_by=order) if fits(run)]
    if not found:
        return None
    request = found[0].data.tags.get(REQUEST)
    for twin in found[1:]:
        if request is not None and twin.data.tags.get(REQUEST) == request:
            client.delete_run(twin.info.run_id)
    return str(found[0].info.run_id)


def log_params(client: MlflowClient, run_id: str, values: Mapping[str, str]) -> None:
    """Log what is not there yet: MLflow's parameters are write-once. What a resumed run changed config.yaml has."""
    from mlflow.entities import Param

    present = client.get_run(run_id).data.params
    wanted = {metric_name(key): value[:MAX_PARAM_LENGTH] for key, value in values.items()}
    client.log_batch(run_id, params=[Param(key, value) for key, value in wanted.items() if key not in present])


def log_figures(client: MlflowClient, run_id: str, values: Mapping[str, float]) -> None:
    from mlflow.entities import Metric

    present, now = client.get_run(run_id).data.metrics, time.time_ns() // 1_000_000
    named = {metric_name(key): value for key, value in values.items() if not math.isinf(value)}
    changed = {key: value for key, value in named.items() if repr(present.get(key)) != repr(value)}
    client.log_batch(run_id, metrics=[Metric(key, value, now, 0) for key, value in changed.items()])


def _start_monitor(ref: RunRef) -> SystemMetricsMonitor:
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    monitor = SystemMetricsMonitor(
        ref.run_id, sampling_interval=SAMPLING_SECONDS, resume_logging=True, tracking_uri=ref.tracking_uri
    )
    monitor.start()
    return monitor
