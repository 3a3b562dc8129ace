"""How far a run is: which of its phases are there, by what lies in storage."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from raydistill.config.section import known
from raydistill.config.teacher import Finetune, Mode
from raydistill.config.tree import Config
from raydistill.data.tokens import tokens_recipe
from raydistill.models.folder import model_digest, tokenizer_digest
from raydistill.models.signals import Signal
from raydistill.pipeline import recipes
from raydistill.pipeline.completion import augmentation_of
from raydistill.pipeline.members import Opened
from raydistill.pipeline.recipes import TeacherIdentity
from raydistill.storage.artifacts import Artifact
from raydistill.storage.manifest import recipe_key
from raydistill.storage.storage import Storage
from raydistill.teacher.store import signal_artifact


def find_tokens(
    storage: Storage, data: Artifact, tokenizer: Path, max_length: int, config: Config, lead: Path | None = None
) -> Artifact | None:
    """The tokens of the data; None while it is not prepared. ``lead``: the teacher by which copies of rows are written,
    where it is not the one that reads them."""
    if not data.exists():
        return None
    known = (data.digest, tokenizer_digest(tokenizer), max_length, config.data.symmetric)
    tokens = Artifact(storage, "tokens", recipe_key(tokens_recipe(*known, augmentation_of(config, lead or tokenizer))))
    return tokens if tokens.exists() else None


@dataclass(frozen=True)
class Speaker:
    """A teacher as it would be alone, and its tokens, where they are there."""

    config: Config
    source: Path
    tokens: Artifact | None

    def tuned(self, storage: Storage, dtype: str) -> Artifact | None:
        """Where its fine-tuned weights lie; None where that is not known yet."""
        if self.tokens is None:
            return None
        recipe = recipes.teacher_recipe(self.config, model_digest(self.source), self.tokens.digest, dtype)
        return recipes.artifact_of(storage, "teacher", recipe)

    def identity(self, storage: Storage, dtype: str) -> TeacherIdentity | None:
        """The teacher that speaks; None while it is to be fine-tuned."""
        plain = recipes.identify_teacher(self.config.lead, None)
        if not recipes.changes_teacher(self.config):
            return plain
        tuned = self.tuned(storage, dtype)
        return recipes.fine_tuned(plain, tuned) if tuned is not None and tuned.exists() else None


def speakers_of(
    config: Config,
    source: Path,
    tokens: Artifact | None,
    opened: Mapping[str, Opened],
    storage: Storage,
    data: Artifact,
) -> dict[str, Speaker]:
    """Every teacher, by what its phases have behind their names: nothing where there is one."""
    if len(opened) < 2:
        return {"": Speaker(config, source, tokens)}
    found = {}
    for name, one in opened.items():
        length = known(one.config.data.max_length)
        own = find_tokens(storage, data, one.source, length, config, source)
        found[f" ({name})"] = Speaker(one.config, one.source, own)
    return found


def phases(
    config: Config,
    storage: Storage,
    data: Artifact,
    tokens: Artifact | None,
    speakers: Mapping[str, Speaker],
    dtype: str,
    needs: Collection[Signal],
    mode: Mode,
) -> list[dict[str, str]]:
    """Return each phase with ``there``, ``to do`` or, where that hangs on an earlier phase, ``after <phase>``."""
    made: list[dict[str, str]] = []

    def add(name: str, artifact: Artifact | None, after: str) -> None:
        there = artifact is not None and artifact.exists()
        made.append({"phase": name, "state": "there" if there else "to do" if artifact else f"after {after}"})

    def recorded(signal: Signal, teacher: TeacherIdentity | None, tokens: Artifact | None) -> Artifact | None:
        if teacher is None or tokens is None:
            return None
        digests = {"teacher_digest": teacher.digest, "tokens_digest": tokens.digest, "dtype": dtype}
        return signal_artifact(storage, signal, "train", **digests)[0]

    add("data", data, "")
    add("tokens", tokens, "data")
    wanted = sorted(needs) if mode.needs_recording else []
    teachers: list[TeacherIdentity] = []
    for name, speaker in speakers.items():
        if (one := speaker.identity(storage, dtype)) is not None:
            teachers.append(one)
            made.append({"phase": f"teacher{name}", "state": "there"})
        else:
            add(f"teacher{name}", speaker.tuned(storage, dtype), "tokens")
        for signal in wanted if len(speakers) > 1 else ():
            add(f"signal {signal}{name}", recorded(signal, one, speaker.tokens), f"teacher{name}")
    teacher = None
    if len(teachers) == len(speakers):
        teacher = recipes.mixed(teachers, [member.weight for member in config.members.values()])
    for signal in wanted:
        add(f"signal {signal}", recorded(signal, teacher, tokens), "teacher")
    has_baseline = recipes.baseline_settings(config) is not None
    configs = recipes.seeded(config)
    later = [f" (seed {recipes.student_seed(one)})" for one in configs[1:]]
    names = [name + seed for name in (*(["baseline"] * has_baseline), "student") for seed in ("", *later)]
    found: list[Artifact | None] = [None] * len(names)
    if teacher is not None and tokens is not None:
        given = (storage, teacher, tokens.digest, dtype)
        found = [recipes.baseline_artifact(one, *given)[0] for one in configs] if has_baseline else []
        found += [recipes.student_artifact(one, *given, mode)[0] for one in configs]
    for name, artifact in zip(names, found, strict=True):
        add(name, artifact, "teacher")
    return made


def tunings(config: Config) -> dict[str, Finetune | None]:
    """How each teacher is fine-tuned, by what its phases have behind their names."""
    if len(config.members) > 1:
        return {f" ({name})": known(member.finetune) for name, member in config.members.items()}
    return {"": known(config.lead.finetune)}
