"""Chains of runs: a teacher, or what a student starts from, that an earlier run made.

``run:NAME`` is the student of a finished run in the same storage, ``run:NAME/teacher`` the teacher that it fine-tuned;
``runs:/…`` and ``models:/NAME@ALIAS`` are students that MLflow knows. In a config that runs they stand as the place of
the model's folder in storage, where every node finds them; what is made of a model is known by its content.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from raydistill.config.teacher import MixtureTeacher
from raydistill.config.tree import Config
from raydistill.deploy.own_rows import run_key_of
from raydistill.errors import ConfigError, did_you_mean
from raydistill.pipeline.failures import about_member
from raydistill.storage.artifacts import Artifact
from raydistill.storage.garbage import referred
from raydistill.storage.manifest import KEY
from raydistill.storage.runs import LINKS, RUN, named, only
from raydistill.storage.storage import Storage

MADE = ("student", "teacher")


def with_links(config: Config, storage: Storage) -> Config:
    """The config with the folders of models that earlier runs made. Raises ConfigError, TrackingError for a name of
    none."""
    return with_models(config, lambda name, setting: linked(name, storage, setting))


def with_models(config: Config, named: Callable[[str, str], str]) -> Config:
    """The config with what ``named`` makes of each model's name and the setting that has it."""
    teacher: Any = config.teacher
    if isinstance(teacher, MixtureTeacher):
        members = {}
        for name, member in teacher.members.items():
            with about_member(name):
                members[name] = member.model_copy(update={"model": named(member.model, "model")})
        teacher = teacher.model_copy(update={"members": members})
    else:
        teacher = teacher.model_copy(update={"model": named(teacher.model, "teacher.model")})
    student: Any = config.student
    if student.checkpoint is not None:
        student = student.model_copy(update={"start": named(student.checkpoint, "student.start")})
    return config.model_copy(update={"teacher": teacher, "student": student})


def links_of(config: Config, storage: Storage) -> list[Artifact]:
    """The models in storage that a config with links names: what earlier runs made and this one needs."""
    found: list[Artifact] = []
    place = re.compile(rf"{re.escape(storage.url)}/({'|'.join(MADE)})/({KEY.pattern})/model")

    def note(name: str, setting: str) -> str:
        if (link := place.fullmatch(name)) is not None:
            found.append(Artifact(storage, link[1], link[2]))
        return name

    with_models(config, note)
    return found


def linked(name: str, storage: Storage, setting: str) -> str:
    """The model's folder in storage, a path or a URL; a name that is of no run stays as it is."""
    if not name.startswith(LINKS):
        return name
    kind = "student"
    if name.startswith(RUN):
        wanted, _, rest = name.removeprefix(RUN).partition("/")
        kind = rest or kind
        if kind not in MADE:
            raise ConfigError(f"{setting}: {name} ends with {kind!r}. {did_you_mean(kind, MADE)}")
        finished = [key for key in storage.list("runs") if storage.exists("runs", key, "results.json")]
        if not wanted:
            raise ConfigError(f"{setting}: {name} names no run. Write {RUN} and the beginning of a run's key.")
        try:
            key = only(named(storage, finished, wanted), wanted, storage.show())
        except ConfigError as error:
            raise ConfigError(f"{setting}: {error}") from error
    else:
        found = run_key_of(name, storage)
        if found is None or not storage.exists("runs", found, "results.json"):
            raise ConfigError(
                f"{setting}: {name} comes from no finished run of the storage {storage.show()}. Give its folder: "
                f"`raydistill export {name} FOLDER`."
            )
        key = found
    place = str(storage.read_json("runs", key, "results.json")[kind]["path"])
    made = [artifact for artifact in referred(storage, key) if artifact.kind == kind and artifact.key in place]
    if not made or not made[0].exists():
        raise ConfigError(
            f"{setting}: run {key[:8]} of {storage.show()} has no {kind} of its own any more, or never had (a teacher "
            "that was not fine-tuned stays where it was). Run its config again, or name the model's folder."
        )
    return f"{storage.url}/{kind}/{made[0].key}/model"
