"""Which phases of a run are done already, by what lies in storage: what plan lists and its estimates count."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from raydistill.config.section import known
from raydistill.config.teacher import Mode
from raydistill.config.tree import Config
from raydistill.data.tokens import tokens_recipe
from raydistill.models.folder import model_digest, tokenizer_digest
from raydistill.models.signals import Signal
from raydistill.pipeline import recipes
from raydistill.pipeline.completion import augmentation_of
from raydistill.pipeline.recipes import TeacherIdentity
from raydistill.pipeline.resolve import Resolved, ResolvedTeacher
from raydistill.storage.artifacts import Artifact
from raydistill.storage.storage import Storage
from raydistill.teacher.store import signal_artifact

Kind = Literal["data", "tokens", "teacher", "signal", "baseline", "student"]


@dataclass(frozen=True)
class Phase:
    """A part of a run that leaves an artefact."""

    kind: Kind
    state: str
    """``there``, ``to do`` or, where its key depends on an earlier phase, ``after <phase>``."""
    of: str = ""
    """The signal that is recorded."""
    suffix: str = ""
    """What tells it from others of its kind: `` (name)`` of one of several teachers, `` (seed n)`` of a later seed."""

    @classmethod
    def making(cls, artifact: Artifact | None, kind: Kind, of: str = "", suffix: str = "", *, after: str = "") -> Phase:
        """The phase that makes ``artifact``; None where its key is not known until ``after`` is done."""
        state = f"after {after}" if artifact is None else "there" if artifact.exists() else "to do"
        return cls(kind, state, of, suffix)

    @property
    def name(self) -> str:
        return f"{self.kind} {self.of}{self.suffix}" if self.of else f"{self.kind}{self.suffix}"

    @property
    def is_done(self) -> bool:
        return self.state == "there"


def find_tokens(resolved: Resolved, storage: Storage) -> list[Artifact | None]:
    """The rows in each teacher's tokens; None where they are not prepared."""
    if not resolved.data.exists():
        return [None] * len(resolved.teachers)
    found: list[Artifact | None] = []
    symmetric, augmentation = resolved.config.data.symmetric, augmentation_of(resolved.config, resolved.source)
    for one in resolved.teachers:
        given = (resolved.data.digest, tokenizer_digest(one.source), known(one.config.data.max_length))
        tokens = Artifact.of(storage, "tokens", tokens_recipe(*given, symmetric, augmentation))
        found.append(tokens if tokens.exists() else None)
    return found


def tuned_artifact(one: ResolvedTeacher, tokens: Artifact | None, storage: Storage, dtype: str) -> Artifact | None:
    """Where the teacher's fine-tuned weights lie; None where that is not known yet."""
    if tokens is None:
        return None
    return recipes.teacher_artifact(one.config, storage, model_digest(one.source), tokens.digest, dtype)


def find_teacher(one: ResolvedTeacher, tokens: Artifact | None, storage: Storage, dtype: str) -> TeacherIdentity | None:
    """The teacher that speaks; None while it is to be fine-tuned."""
    plain = recipes.identify_teacher(one.config.lead, None)
    if not recipes.changes_teacher(one.config):
        return plain
    tuned = tuned_artifact(one, tokens, storage, dtype)
    return recipes.fine_tuned(plain, tuned) if tuned is not None and tuned.exists() else None


def find_phases(
    resolved: Resolved, storage: Storage, tokens: Sequence[Artifact | None], needs: Collection[Signal], mode: Mode
) -> list[Phase]:
    """The phases in the order in which they run. ``tokens``: each teacher's."""
    config, dtype = resolved.config, resolved.dtype

    def recorded(signal: Signal, teacher: TeacherIdentity | None, tokens: Artifact | None) -> Artifact | None:
        if teacher is None or tokens is None:
            return None
        return signal_artifact(
            storage, signal, "train", teacher_digest=teacher.digest, tokens_digest=tokens.digest, dtype=dtype
        )

    found = [Phase.making(resolved.data, "data"), Phase.making(tokens[0], "tokens", after="data")]
    wanted = sorted(needs) if mode.needs_recording else []
    teachers: list[TeacherIdentity] = []
    for suffix, one, own in zip(resolved.suffixes, resolved.teachers, tokens, strict=True):
        if (identity := find_teacher(one, own, storage, dtype)) is not None:
            teachers.append(identity)
            found.append(Phase("teacher", "there", suffix=suffix))
        else:
            tuned = tuned_artifact(one, own, storage, dtype)
            found.append(Phase.making(tuned, "teacher", suffix=suffix, after="tokens"))
        for signal in wanted if suffix else ():
            artifact = recorded(signal, identity, own)
            found.append(Phase.making(artifact, "signal", signal, suffix, after=f"teacher{suffix}"))
    teacher = None
    if len(teachers) == len(resolved.teachers):
        teacher = recipes.mixed(teachers, [one.weight for one in resolved.teachers])
    for signal in wanted:
        found.append(Phase.making(recorded(signal, teacher, tokens[0]), "signal", signal, after="teacher"))

    def trained(kind: Literal["baseline", "student"], one: Config) -> Phase:
        suffix = "" if one is configs[0] else f" (seed {recipes.student_seed(one)})"
        if teacher is None or tokens[0] is None:
            return Phase.making(None, kind, suffix=suffix, after="teacher")
        given = (one, storage, teacher, tokens[0].digest, dtype)
        artifact = recipes.student_artifact(*given, mode) if kind == "student" else recipes.baseline_artifact(*given)
        return Phase.making(artifact, kind, suffix=suffix)

    configs = recipes.seeded(config)
    if recipes.baseline_settings(config) is not None:
        found += [trained("baseline", one) for one in configs]
    return found + [trained("student", one) for one in configs]
