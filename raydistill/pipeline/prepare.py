"""What is there before any model runs: prepared data, tokens, and the key of the run."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raydistill.config.plugins import registered
from raydistill.config.section import known
from raydistill.config.tree import Config
from raydistill.data.augmentation import Augmentation
from raydistill.data.perturbations import perturb_rows
from raydistill.data.prepare import DataInfo
from raydistill.data.rows import Rows
from raydistill.data.tokens import tokenize_data
from raydistill.errors import ConfigError
from raydistill.models.folder import model_digest, settled, tokenizer_digest
from raydistill.pipeline.completion import augmentation_of, check_validation
from raydistill.pipeline.defaults import Choice
from raydistill.pipeline.failures import about_member
from raydistill.pipeline.job import Job, TeacherJob
from raydistill.pipeline.links import with_links, with_models
from raydistill.pipeline.recipes import named_sources, start_digest
from raydistill.pipeline.resolve import Resolved, resolve
from raydistill.storage.artifacts import Artifact
from raydistill.storage.board import Show
from raydistill.storage.manifest import recipe_key
from raydistill.storage.ownership import Owner
from raydistill.storage.paths import resolve_path
from raydistill.storage.storage import Storage
from raydistill.tracking.runs import RunRef


@dataclass(frozen=True)
class Prepared:
    """The driver's part of the work before any model runs."""

    config: Config
    """With everything chosen that it left open."""
    choices: tuple[Choice, ...]
    storage: Storage
    data: Artifact
    info: DataInfo
    source: Path
    dtype: str
    run_key: str
    reused: tuple[str, ...]
    teachers: tuple[TeacherJob, ...]
    perturbed: Artifact | None = None
    """Tokens of the perturbed test rows, where ``evaluate.robustness`` is on."""

    @property
    def tokens(self) -> Artifact:
        """The rows as the student, and its first teacher, read them."""
        return self.teachers[0].tokens

    @property
    def made(self) -> list[Artifact]:
        """What the driver has made for the workers."""
        own = [self.data, self.tokens, *([self.perturbed] if self.perturbed is not None else [])]
        return [*dict.fromkeys([*own, *(one.tokens for one in self.teachers)])]

    def job(self, owner: Owner, run: RunRef) -> Job:
        """What the workers are handed."""
        shared = (self.config, self.run_key, self.storage, owner, self.data, self.info.task, self.dtype, run)
        return Job(*shared, self.teachers, registered(), settled(), perturbed=self.perturbed)


def prepare(config: Config, storage: Storage) -> Prepared:
    """Resolve the config, prepare and tokenise the data, and compute the key of the run."""
    before = {kind: set(storage.list(kind)) for kind in ("data", "tokens")}
    resolved = resolve(with_absolute_paths(with_links(config, storage)), storage, prepares=True)
    config, data, info = resolved.config, resolved.data, resolved.info
    teachers = teacher_jobs(resolved, storage)
    tokens = teachers[0].tokens
    check_validation(config, resolved.task, Rows.open(tokens.local(), "validation").examples[0])
    is_perturbed = config.evaluate.robustness
    perturbed = perturb_rows(data, tokens, resolved.source, config.seed, storage) if is_perturbed else None
    reused = tuple(a.kind for a in (data, tokens) if a.key in before[a.kind])
    key = run_key(config, info.row_digest, resolved.dtype, teachers)
    return Prepared(
        config,
        resolved.choices,
        storage,
        data,
        info,
        resolved.source,
        resolved.dtype,
        key,
        reused,
        teachers,
        perturbed,
    )


def teacher_jobs(resolved: Resolved, storage: Storage) -> tuple[TeacherJob, ...]:
    """What workers are told of each teacher, the rows in its own tokens."""
    symmetric, augmentation = resolved.config.data.symmetric, augmentation_of(resolved.config, resolved.source)
    jobs: list[TeacherJob] = []
    for one in resolved.teachers:
        with about_member(one.name):
            check_copies(augmentation, one.source)
            length = known(one.config.data.max_length)
            how: dict[str, Any] = {"symmetric": symmetric, "augmentation": augmentation}
            tokens = tokenize_data(resolved.data, one.source, length, storage, **how)
            if jobs:
                check_tokens(one.config, jobs[0].tokens, tokens)
            jobs.append(TeacherJob(one.name, one.weight, one.config, tokens, model_digest(one.source)))
    return tuple(jobs)


def check_copies(augmentation: Augmentation | None, source: Path) -> None:
    """ConfigError where copies of texts are written with a vocabulary that is not this teacher's."""
    if augmentation is None or "words" not in augmentation.settings.ways:
        return
    if tokenizer_digest(source) != tokenizer_digest(augmentation.model):
        raise ConfigError(
            "it has another tokenizer than the first teacher, by whose words data.augment writes copies. Leave words "
            "out of data.augment.ways, for example for masked, or name teachers with one tokenizer."
        )


def check_tokens(config: Config, first: Artifact, own: Artifact) -> None:
    """ConfigError where predictions of two teachers would not be of the same tokens."""
    if own.digest == first.digest:
        return
    has_units = config.task.has_units
    if has_units or config.evaluate.robustness:
        what = f"task.type: {config.task.type}" if has_units else "evaluate.robustness"
        raise ConfigError(
            f"its tokens are not those of the first teacher, and {what} is about tokens, which would not be the same "
            "for both. Name teachers with one tokenizer and as many positions."
        )


def run_key(config: Config, row_digest: str, dtype: str, teachers: Sequence[TeacherJob]) -> str:
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
    inputs: dict[str, Any] = {
        "rows": row_digest,
        "teachers": [[one.name, one.source_digest, one.tokens.digest] for one in teachers],
        "start": start_digest(config.student, teachers[0].source_digest),
        "dtype": dtype,
        **named_sources(settings.get("stages", {})),
    }
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
