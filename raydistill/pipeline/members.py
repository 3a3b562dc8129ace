"""Several teachers before any model runs: each is looked at, completed and given its tokens as if it were alone, so
that what another run made of it is found again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from raydistill.config.section import known
from raydistill.config.student import EncoderStudent
from raydistill.config.teacher import MixtureTeacher
from raydistill.config.tree import SEVERAL_CRFS, Config
from raydistill.data.augmentation import Augmentation
from raydistill.data.prepare import DataInfo
from raydistill.data.size import Texts
from raydistill.data.tokens import tokenize_data
from raydistill.errors import ConfigError
from raydistill.models.crf import is_crf
from raydistill.models.embedding import set_head_of
from raydistill.models.folder import model_digest, resolve_model, tokenizer_digest
from raydistill.models.head import Head, vector_width
from raydistill.models.load import read_config
from raydistill.pipeline.completion import Models, check_models, check_pooled, complete
from raydistill.pipeline.defaults import Choice
from raydistill.pipeline.failures import about_member
from raydistill.pipeline.job import MemberJob
from raydistill.storage.artifacts import Artifact
from raydistill.storage.storage import Storage
from raydistill.tasks import task_of


@dataclass(frozen=True)
class Opened:
    """One of several teachers: the config that it alone would have, its folder, and what is known of it."""

    config: Config
    source: Path
    models: Models


def open_members(config: Config) -> dict[str, Opened]:
    """Look at each of several teachers. Raises RaydistillError for one that cannot be, which it names."""
    found = {}
    for number, (name, member) in enumerate(config.members.items()):
        own = config.model_copy(update={"teacher": member.alone})
        if number:  # students are cut from the first one
            evaluate = config.evaluate.model_copy(update={"baseline": False})
            own = own.model_copy(update={"student": EncoderStudent(), "evaluate": evaluate, "sweep": None})
        with about_member(name):
            source = resolve_model(member.model, member.revision, member.trust_remote_code)
            found[name] = Opened(own, source, check_models(own, source))
            if is_crf(found[name].models.teacher):
                raise ConfigError(f"{member.model} is a CRF: {SEVERAL_CRFS} Name it alone.")
    return found


def complete_members(
    config: Config, opened: Mapping[str, Opened], info: DataInfo, texts: Texts
) -> tuple[Config, dict[str, Opened], list[Choice]]:
    """The config, completed for the first teacher, and those of the teachers, with everything chosen that is open; the
    choices of the later ones."""
    if not isinstance(config.teacher, MixtureTeacher):
        return config, {}, []
    done, choices, members = {}, [], dict(config.teacher.members)
    for number, (name, one) in enumerate(opened.items()):
        own = config.model_copy(update={"teacher": config.lead})
        if number:
            with about_member(name):
                own, made = complete(one.config, one.models, info, texts, one.source)
            choices += [named(choice, name) for choice in made if choice.name.startswith(("teacher.", "data."))]
            members[name] = members[name].model_copy(update={"finetune": own.lead.finetune})
        done[name] = replace(one, config=own)
        with about_member(name):
            check_pooled(own, one.models)
    mixture = config.teacher.model_copy(update={"members": members})
    if config.task.kind == "vector" and config.task.num_components is None:
        check_widths(done, task_of(info.task).head)
    return config.model_copy(update={"teacher": mixture}), done, choices


def named(choice: Choice, name: str) -> Choice:
    """A choice for one of several teachers, where it stands in the config of all."""
    own = f"teacher.members.{name}"
    is_own = choice.name.startswith("teacher.")
    return replace(choice, name=own + choice.name.removeprefix("teacher") if is_own else f"{choice.name} of {own}")


def check_widths(opened: Mapping[str, Opened], head: Head) -> None:
    """ConfigError for vectors that have no mean."""
    widths = {}
    for name, one in opened.items():
        own = read_config(one.source, one.config.lead.trust_remote_code)
        set_head_of(own, one.source, head)
        widths[name] = vector_width(own)
    if len({*widths.values()}) > 1:
        told = ", ".join(f"{name} {width}" for name, width in widths.items())
        raise ConfigError(
            f"teacher.members: vectors of other widths ({told}) have no mean. Bring all to one with task.width, or "
            "name teachers of one width."
        )


def member_jobs(
    opened: Mapping[str, Opened],
    tokens: Artifact,
    data: Artifact,
    storage: Storage,
    weights: Sequence[float],
    *,
    symmetric: bool,
    augmentation: Augmentation | None,
) -> tuple[MemberJob, ...]:
    """What workers are told of each teacher, its rows in its own tokens; ``tokens``: of the first one."""
    jobs: list[MemberJob] = []
    for (name, one), weight in zip(opened.items(), weights, strict=True):
        own = tokens
        if jobs:
            with about_member(name):
                check_copies(augmentation, one.source)
                length = known(one.config.data.max_length)
                own = tokenize_data(data, one.source, length, storage, symmetric=symmetric, augmentation=augmentation)
                check_tokens(one.config, tokens, own)
        jobs.append(MemberJob(name, weight, one.config, own, model_digest(one.source)))
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
