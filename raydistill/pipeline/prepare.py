"""What is there before any model runs: prepared data, tokens, and the key of the run."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from raydistill.config.plugins import registered
from raydistill.config.section import known
from raydistill.config.tree import Config
from raydistill.data.perturbations import perturb_rows
from raydistill.data.prepare import DataInfo, prepare_data, read_info
from raydistill.data.rows import Rows, read_texts
from raydistill.data.tokens import tokenize_data
from raydistill.models.folder import model_digest, resolve_model, settled
from raydistill.pipeline.completion import augmentation_of, check_models, check_pooled, check_validation, complete
from raydistill.pipeline.defaults import Choice
from raydistill.pipeline.job import Job, MemberJob
from raydistill.pipeline.links import with_links, with_models
from raydistill.pipeline.members import complete_members, member_jobs, open_members
from raydistill.pipeline.recipes import named_sources, start_digest
from raydistill.storage.artifacts import Artifact
from raydistill.storage.board import Show
from raydistill.storage.manifest import recipe_key
from raydistill.storage.ownership import Owner
from raydistill.storage.paths import resolve_path
from raydistill.storage.storage import Storage
from raydistill.tasks import task_of
from raydistill.tracking.runs import RunRef


@dataclass(frozen=True)
class Prepared:
    """The driver's part of the work before any model runs."""

    config: Config
    """With everything chosen that it left open."""
    choices: list[Choice]
    storage: Storage
    data: Artifact
    tokens: Artifact
    info: DataInfo
    source: Path
    dtype: str
    run_key: str
    reused: tuple[str, ...]
    perturbed: Artifact | None = None
    """Tokens of the perturbed test rows, where ``evaluate.robustness`` is on."""
    members: tuple[MemberJob, ...] = ()

    @property
    def made(self) -> list[Artifact]:
        """What the driver has made for the workers."""
        own = [self.data, self.tokens, *([self.perturbed] if self.perturbed is not None else [])]
        return [*dict.fromkeys([*own, *(member.tokens for member in self.members)])]

    def job(self, owner: Owner, run: RunRef) -> Job:
        """What the workers are handed."""
        data, tokens, task = self.data, self.tokens, self.info.task
        shared = (self.config, self.run_key, self.storage, owner, data, tokens, task, self.dtype, run)
        more = (registered(), settled())
        return Job(*shared, *more, perturbed=self.perturbed, members=self.members)


def prepare(config: Config, storage: Storage) -> Prepared:
    """Prepare and tokenise the data; compute the key of the run."""
    from raydistill.cluster.resources import device_type
    from raydistill.models.precision import compute_dtype

    config = with_absolute_paths(with_links(config, storage))
    source = resolve_model(config.lead.model, config.lead.revision, config.lead.trust_remote_code)
    models = check_models(config, source)
    opened = open_members(config)
    before = {kind: set(storage.list(kind)) for kind in ("data", "tokens")}
    data = prepare_data(config, storage)
    info = read_info(data).answered_by(models.teacher)
    texts = partial(read_texts, data)
    config, choices = complete(config, models, info, texts, source)
    config, opened, more = complete_members(config, opened, info, texts)
    choices += more
    check_pooled(config, models)
    how: dict[str, Any] = {"symmetric": config.data.symmetric, "augmentation": augmentation_of(config, source)}
    tokens = tokenize_data(data, source, known(config.data.max_length), storage, **how)
    check_validation(config, task_of(info.task), Rows.open(tokens.local(), "validation").examples[0])
    weights = [member.weight for member in config.members.values()]
    members = member_jobs(opened, tokens, data, storage, weights, **how)
    is_perturbed = config.evaluate.robustness
    perturbed = perturb_rows(data, tokens, source, config.seed, storage) if is_perturbed else None
    dtype = compute_dtype(config.train.dtype, device_type(config))
    reused = [a.kind for a in (data, tokens) if a.key in before[a.kind]]
    key = run_key(config, info.row_digest, tokens, source, dtype, members)
    made = (storage, data, tokens, info, source, dtype, key, tuple(reused), perturbed, members)
    return Prepared(config, choices, *made)


def run_key(
    config: Config, row_digest: str, tokens: Artifact, source: Path, dtype: str, members: Sequence[MemberJob] = ()
) -> str:
    """Key of a run: all of the config that determines what it makes, MLflow run and registered version included.

    Models count by their content, the task's facts with the tokens; rows by their texts, too (``row_digest``), which
    may differ where their first ``data.max_length`` tokens do not: a run keeps which rows it has seen.
    """
    excluded: dict[str, Any] = {
        "storage": True,
        "sweep": True,
        "data": {"path", "unlabeled"},
        "teacher": {"members": {"__all__": {"model"}}, **dict.fromkeys(("model", "pool", "allow_chance"), True)},
        "student": {"start"},
        "registry": {"challenger", "allow_diverged"},
        "train": {
            *("num_workers", "min_workers", "resources_per_worker", "accelerator_type", "max_failures"),
            *("max_wait_minutes", "tokens_per_micro_batch", "checkpoint_steps"),
        },
    }
    settings = config.recipe(exclude=excluded)
    digest = model_digest(source)
    inputs: dict[str, Any] = {
        "rows": row_digest,
        "tokens": tokens.digest,
        "source": digest,
        "start": start_digest(config.student, digest),
    }
    if members:
        inputs["members"] = [[member.name, member.source_digest, member.tokens.digest] for member in members]
    inputs |= {"dtype": dtype, **named_sources(settings.get("stages", {}))}
    return recipe_key({"config": settings, **inputs})


def with_absolute_paths(config: Config) -> Config:
    """Name local models by absolute paths: workers may have another folder."""

    def absolute(name: str, setting: str) -> str:
        path = None if name.startswith("pkg://") else resolve_path(name)
        return name if path is None else str(path)

    return with_models(config, absolute)


@dataclass
class Clock:
    """Seconds of the driver's phases, and of the whole."""

    seconds: dict[str, float] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)

    @contextmanager
    def phase(self, name: str, show: Show) -> Iterator[None]:
        show({"phase": name})
        started = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - started, 3)

    def total(self) -> float:
        return round(time.perf_counter() - self.started, 3)

    def whole(self, phases: Mapping[str, float]) -> dict[str, float]:
        """Seconds of all phases (the worker's are ``phases``), ``start``: of what is in none of them, such as Ray's and
        MLflow's start, and ``total``, to which the others add up."""
        known = {**phases, **self.seconds}
        total = max(self.total(), sum(known.values()))
        return known | {"start": round(total - sum(known.values()), 3), "total": round(total, 3)}
