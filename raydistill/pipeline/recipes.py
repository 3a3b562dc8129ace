"""Recipes of the artefacts: the part of the config that determines a result, with the digests of its inputs.

Settings that are their defaults are left out (``Section.recipe``), so a setting that is added changes no key. Device,
number of workers, batch budget, checkpoints, tracking and logging are never in them; the compute dtype is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from raydistill.config.evaluate import Baseline
from raydistill.config.losses import TaskLoss
from raydistill.config.plugins import sources_in
from raydistill.config.section import known
from raydistill.config.student import EncoderStudent, Student
from raydistill.config.teacher import Mode, ModelTeacher
from raydistill.config.training import Stage
from raydistill.config.tree import Config
from raydistill.models.signals import Signal
from raydistill.storage.artifacts import Artifact
from raydistill.storage.manifest import recipe_key
from raydistill.storage.storage import Storage

if TYPE_CHECKING:
    from raydistill.data.size import Size

Recipe = dict[str, Any]

Recorded = dict[str, dict[Signal, Artifact]]
"""Recorded signals: split → signal → artefact."""


@dataclass(frozen=True)
class TeacherIdentity:
    """The teacher that speaks: where it is named, the digest of its weights, and what it was fine-tuned from."""

    settings: ModelTeacher
    digest: str
    source_digest: str
    artifact: Artifact | None
    """None for a teacher that was already fine-tuned: it stays where the user keeps it."""

    members: tuple[TeacherIdentity, ...] = ()
    """Those that speak with this one voice, where there are several; folder and source are the first one's."""

    @cached_property
    def folder(self) -> Path:
        """Where its weights lie on this node: of storage that is a URL each node has copies of its own. ModelError for
        other weights than those that speak."""
        from raydistill.models.folder import check_content

        folder = teacher_folder(self.settings, self.start.artifact)
        if self.start.artifact is not None:  # the others are compared where their name is resolved
            check_content(folder, self.settings.model, self.start.digest)
        return folder

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "folder"}

    @cached_property
    def parents(self) -> dict[str, str]:
        """Digests of the weights that it is made of, by role."""
        if self.members:
            return {f"teacher {i}": member.parents["teacher"] for i, member in enumerate(self.members)}
        return {"teacher": self.artifact.digest if self.artifact else self.digest}

    @property
    def start(self) -> TeacherIdentity:
        """The one from whose weights students are cut."""
        return self.members[0] if self.members else self


def mixed(members: Sequence[TeacherIdentity], weights: Sequence[float]) -> TeacherIdentity:
    """Several teachers as one, with weights of any sum; one alone stays what it is."""
    if len(members) == 1:
        return members[0]
    shares = [[member.digest, weight / sum(weights)] for member, weight in zip(members, weights, strict=True)]
    first = members[0]
    return TeacherIdentity(first.settings, recipe_key({"mixture": shares}), first.source_digest, None, tuple(members))


def identify_teachers(config: Config, artifacts: Sequence[Artifact | None]) -> TeacherIdentity:
    """The teacher of a config, or the several ones, with the fine-tuned weights of each."""
    if not config.members:
        return identify_teacher(config.lead, artifacts[0])
    members = [*config.members.values()]
    found = [identify_teacher(one.alone, artifact) for one, artifact in zip(members, artifacts, strict=True)]
    return mixed(found, [one.weight for one in members])


def identify_teacher(settings: ModelTeacher, artifact: Artifact | None) -> TeacherIdentity:
    """The teacher that speaks: the model of the config, or its fine-tuned weights in ``artifact``."""
    from raydistill.models.folder import model_digest

    digest = model_digest(teacher_folder(settings, None))
    identity = TeacherIdentity(settings, digest, digest, None)
    return identity if artifact is None else fine_tuned(identity, artifact)


def fine_tuned(source: TeacherIdentity, artifact: Artifact) -> TeacherIdentity:
    """The teacher that ``source`` became. The source is not read again: hashing it takes 0.7 s a GB."""
    from raydistill.models.folder import model_digest

    return TeacherIdentity(source.settings, model_digest(artifact.local() / "model"), source.digest, artifact)


def teacher_folder(settings: ModelTeacher, artifact: Artifact | None) -> Path:
    """Where the teacher's weights lie on this node, for whoever needs no digests."""
    from raydistill.models.folder import resolve_model

    if artifact is not None:
        return artifact.local() / "model"
    return resolve_model(settings.model, settings.revision, settings.trust_remote_code)


def student_seed(config: Config) -> int:
    """Seed of what student and baseline draw; data and teacher go by the config's own."""
    return config.seed if config.train.seed is None else config.train.seed


def seeded(config: Config) -> list[Config]:
    """The config with each of its ``evaluate.seeds``, its own first."""
    first, train = student_seed(config), config.train
    later = [train.model_copy(update={"seed": first + i}) for i in range(1, config.evaluate.seeds)]
    return [config, *(config.model_copy(update={"train": settings}) for settings in later)]


def _common(config: Config, seed: int, tokens_digest: str, dtype: str) -> Recipe:
    return {
        "tokens": tokens_digest,
        "dtype": dtype,
        "seed": seed,
        "metric": config.epoch_metric,
        "train": config.train.recipe(include={"global_batch_size", "max_grad_norm", "early_stopping"}),
        "task": config.task.recipe(),
    }


def named_sources(settings: Recipe) -> Recipe:
    """With the versions of the user's own losses that settings name; nothing where there are none. Those of a task are
    in the digest of the tokens."""
    return {"sources": found} if (found := sources_in(settings)) else {}


def changes_teacher(config: Config) -> bool:
    """Whether the teacher that speaks is made from the one that the config names."""
    return config.lead.finetune is not None or config.task.num_components is not None


def teacher_recipe(config: Config, source_digest: str, tokens_digest: str, dtype: str) -> Recipe:
    finetune = known(config.lead.finetune)
    return {
        "source": source_digest,
        "finetune": None if finetune is None else finetune.recipe(),
        **_common(config, config.seed, tokens_digest, dtype),
    }


def student_recipe(
    config: Config, start_digest: str, teacher_digest: str, tokens_digest: str, dtype: str, mode: Mode
) -> Recipe:
    """``start_digest``: the model whose weights the student starts from."""
    return {
        "start": start_digest,
        "teacher": teacher_digest,
        "mode": mode.name,
        "student": _student_recipe(config.student),
        "stages": (stages := {name: stage.recipe() for name, stage in config.stages.items()}),
        **named_sources(stages),
        **_common(config, student_seed(config), tokens_digest, dtype),
    }


def baseline_recipe(config: Config, start_digest: str, tokens_digest: str, dtype: str) -> Recipe:
    return {
        "start": start_digest,
        "student": _student_recipe(config.student),
        "stages": {name: stage.recipe() for name, stage in baseline_stages(config).items()},
        "speaks": [name for name, stage in config.stages.items() if teacher_speaks(stage)],
        **_common(config, student_seed(config), tokens_digest, dtype),
    }


def _student_recipe(student: Student, *unused: str) -> Recipe:
    """The student without what it starts from; with ``width_start`` where that decides what is kept."""
    keeps_part = isinstance(student, EncoderStudent) and student.keeps_part
    return student.recipe(exclude={"start", *([] if keeps_part else ["width_start"]), *unused})


def start_digest(student: Student, teacher_digest: str) -> str:
    """Identity of the weights a student starts from: the teacher's (or its shape alone), or a checkpoint's."""
    if student.checkpoint is None:
        return f"{student.start}:{teacher_digest}"
    from raydistill.models.folder import model_digest, resolve_model

    return f"{teacher_digest}+{model_digest(resolve_model(student.checkpoint))}"


def teacher_artifact(config: Config, storage: Storage, source_digest: str, tokens_digest: str, dtype: str) -> Artifact:
    """The fine-tuned teacher."""
    recipe = teacher_recipe(config, source_digest, tokens_digest, dtype)
    return Artifact.of(storage, "teacher", recipe, {"tokens": tokens_digest, "source": source_digest})


def student_artifact(
    config: Config, storage: Storage, teacher: TeacherIdentity, tokens_digest: str, dtype: str, mode: Mode
) -> Artifact:
    start = start_digest(config.student, teacher.start.digest)
    recipe = student_recipe(config, start, teacher.digest, tokens_digest, dtype, mode)
    return Artifact.of(storage, "student", recipe, {"tokens": tokens_digest, **teacher.parents})


def baseline_artifact(
    config: Config, storage: Storage, teacher: TeacherIdentity, tokens_digest: str, dtype: str
) -> Artifact:
    """The baseline that ``evaluate.baseline`` asks for."""
    settings = baseline_settings(config)
    assert settings is not None
    source = teacher.start.digest if settings.start == "same" else teacher.source_digest
    recipe = baseline_recipe(config, start_digest(config.student, source), tokens_digest, dtype)
    return Artifact.of(storage, "baseline", recipe, {"tokens": tokens_digest, **teacher.parents})


def layers_artifact(config: Config, storage: Storage, teacher: TeacherIdentity, tokens_digest: str) -> Artifact:
    """How alike the layers of the student, before it is taught, and of the teacher are. Dropout and the seed of the
    training have no part in it: trials and seeds that differ in these compare the same layers."""
    recipe = {
        "start": start_digest(config.student, teacher.start.digest),
        "student": _student_recipe(config.student, "dropout"),
        "tokens": tokens_digest,
        "seed": config.seed,
        "measure": "linear_cka",
    }
    return Artifact.of(storage, "layers", recipe, {"tokens": tokens_digest, **teacher.parents})


def teacher_speaks(stage: Stage) -> bool:
    return any(loss.role != "task" for loss in stage.losses.values())


def stage_rows(stage: Stage, labeled: np.ndarray) -> np.ndarray:
    """Rows a stage trains on: all of them where a teacher speaks, otherwise the labelled ones."""
    return np.arange(len(labeled)) if teacher_speaks(stage) else np.flatnonzero(labeled)


def num_stage_rows(stage: Stage, size: Size) -> int:
    """How many rows ``stage_rows`` are, from the size of the data."""
    return size.num_inputs["train"] if teacher_speaks(stage) else size.num_labeled_inputs


def baseline_stages(config: Config) -> dict[str, Stage]:
    """The student's stages with the task loss alone."""
    return {
        name: stage.model_copy(update={"losses": {"task": task_alone(stage)}, "changes": ()})
        for name, stage in config.stages.items()
    }


def task_alone(stage: Stage) -> TaskLoss:
    """What labels teach in the stage where nothing else does: its classes weigh as much as they do for the student."""
    found = [loss for loss in stage.losses.values() if isinstance(loss, TaskLoss)]
    return found[0].model_copy(update={"weight": 1.0}) if found else TaskLoss()


def baseline_settings(config: Config) -> Baseline | None:
    match config.evaluate.baseline:
        case True:
            return Baseline()
        case False:
            return None
        case Baseline() as baseline:
            return baseline
