"""How far a run is: which of its phases are there, by what lies in storage."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from raydistill.config.section import known
from raydistill.config.teacher import Mode
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


def phases(
    resolved: Resolved, storage: Storage, tokens: Sequence[Artifact | None], needs: Collection[Signal], mode: Mode
) -> list[dict[str, str]]:
    """Return each phase with ``there``, ``to do`` or, where that hangs on an earlier phase, ``after <phase>``.

    ``tokens``: each teacher's.
    """
    config, dtype, made = resolved.config, resolved.dtype, list[dict[str, str]]()

    def add(name: str, artifact: Artifact | None, after: str) -> None:
        there = artifact is not None and artifact.exists()
        made.append({"phase": name, "state": "there" if there else "to do" if artifact else f"after {after}"})

    def recorded(signal: Signal, teacher: TeacherIdentity | None, tokens: Artifact | None) -> Artifact | None:
        if teacher is None or tokens is None:
            return None
        return signal_artifact(
            storage, signal, "train", teacher_digest=teacher.digest, tokens_digest=tokens.digest, dtype=dtype
        )

    add("data", resolved.data, "")
    add("tokens", tokens[0], "data")
    wanted = sorted(needs) if mode.needs_recording else []
    teachers: list[TeacherIdentity] = []
    for name, one, own in zip(resolved.suffixes, resolved.teachers, tokens, strict=True):
        if (found := find_teacher(one, own, storage, dtype)) is not None:
            teachers.append(found)
            made.append({"phase": f"teacher{name}", "state": "there"})
        else:
            add(f"teacher{name}", tuned_artifact(one, own, storage, dtype), "tokens")
        for signal in wanted if name else ():
            add(f"signal {signal}{name}", recorded(signal, found, own), f"teacher{name}")
    teacher = None
    if len(teachers) == len(resolved.teachers):
        teacher = recipes.mixed(teachers, [one.weight for one in resolved.teachers])
    for signal in wanted:
        add(f"signal {signal}", recorded(signal, teacher, tokens[0]), "teacher")
    has_baseline = recipes.baseline_settings(config) is not None
    configs = recipes.seeded(config)
    later = [f" (seed {recipes.student_seed(one)})" for one in configs[1:]]
    names = [name + seed for name in (*(["baseline"] * has_baseline), "student") for seed in ("", *later)]
    models: list[Artifact | None] = [None] * len(names)
    if teacher is not None and tokens[0] is not None:
        given = (storage, teacher, tokens[0].digest, dtype)
        models = [recipes.baseline_artifact(one, *given) for one in configs] if has_baseline else []
        models += [recipes.student_artifact(one, *given, mode) for one in configs]
    for name, artifact in zip(names, models, strict=True):
        add(name, artifact, "teacher")
    return made
